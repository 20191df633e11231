"""The commands of `disp`, one module each: `add(subparsers)` declares, `run(args)` does."""
