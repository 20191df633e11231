"""The 8B shape on this machine's CPU: written, loaded, and asked one question.

    python -m benchmarks.full_size --work /somewhere/with/18/GB

The loader's test at full size: bfloat16, 16.9 GB of weights and as much disk while it runs. Says
how long each part takes and how much memory it needs; the answer has two tokens, for every pass
over the whole sequence takes a CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.gpu.loading import plain_read
from benchmarks.gpu.shapes import SHAPES, checkpoint_files, picture, write_checkpoint
from benchmarks.middle import QUESTION
from benchmarks.peak_memory import host_mib, reset_host_peak
from benchmarks.speed_timing import machine
from purifier.answer import answer
from purifier.denoise.config import GenerationConfig
from purifier.evaluation.report import markdown_table
from purifier.mdlm.registry import load_mdlm
from purifier.mdlm.shards import INDEX

RESULTS = Path("docs/results")
NAME = "full_size"
_TOKENS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--work", type=Path, help="folder for the weights; emptied at the end")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.answer is not None:
        print(json.dumps(loaded_and_asked(options.answer, options.shape)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="disp-full-size-", dir=options.work))
    try:
        result = measured(folder, options.shape)
    finally:
        shutil.rmtree(folder)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{NAME}.md").write_text(markdown(result))
    print(markdown(result))
    return 0


def measured(folder: Path, shape: str) -> dict[str, Any]:
    """Writes the weights, reads them plainly, loads and asks in a process of its own."""
    start = perf_counter()
    n_bytes = write_checkpoint(folder, SHAPES[shape], device="cpu")
    written = perf_counter() - start
    start = perf_counter()
    plain_read(checkpoint_files(folder))
    read = perf_counter() - start
    command = [sys.executable, "-m", "benchmarks.full_size", "--shape", shape]
    done = subprocess.run(
        [*command, "--answer", str(folder)], check=True, capture_output=True, text=True
    )
    return {
        "command": "python -m benchmarks.full_size",
        "machine": machine("cpu"),
        "shape": shape,
        "weight_bytes": n_bytes,
        "shards": len(set(json.loads((folder / INDEX).read_text())["weight_map"].values())),
        "write_seconds": written,
        "read_seconds": read,
        **json.loads(done.stdout),
    }


def loaded_and_asked(folder: Path, shape: str) -> dict[str, Any]:
    """Seconds and MiB of loading and of one short answer about a picture."""
    torch.zeros(1)
    reset_host_peak()
    before = host_mib("VmRSS")
    start = perf_counter()
    mdlm = load_mdlm(folder, dtype="bfloat16")
    loaded = perf_counter() - start
    load_peak = host_mib("VmHWM")
    reset_host_peak()
    start = perf_counter()
    generation = GenerationConfig(gen_length=_TOKENS, stop=())
    made = answer(mdlm, picture(SHAPES[shape], 0), QUESTION, generation=generation)
    return {
        "before_mib": before,
        "load_seconds": loaded,
        "load_peak_mib": load_peak,
        "answer_seconds": perf_counter() - start,
        "answer_peak_mib": host_mib("VmHWM"),
        "tokens": len(made.token_ids),
        "visual_tokens": made.n_visual_tokens,
        "steps": made.steps,
        "timings": made.timings,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The page."""
    facts = result["machine"]
    return (
        f"# The {result['shape']} shape on a CPU\n\n"
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, bfloat16, "
        f"torch {facts['torch']}; random weights, one run. `{result['command']}`\n\n"
        f"{full_size_table(result)}"
    )


def full_size_table(result: Mapping[str, Any]) -> str:
    """Seconds and memory of every part; empty without a result."""
    rows = []
    if result:
        asked = f"{result['tokens']} tokens about {result['visual_tokens']} visual tokens, seconds"
        rows = [
            ["weights, GB", f"{result['weight_bytes'] / 1e9:.1f} in {result['shards']} shards"],
            ["drawn and written, seconds", f"{result['write_seconds']:.0f}"],
            ["a plain read of the files, seconds", f"{result['read_seconds']:.0f}"],
            ["loaded, seconds", f"{result['load_seconds']:.0f}"],
            ["peak memory of the process while it loads, GB", _gb(result["load_peak_mib"])],
            [asked, f"{result['answer_seconds']:.0f}"],
            ["peak memory of the process while it answers, GB", _gb(result["answer_peak_mib"])],
        ]
    return markdown_table(["what", "measured"], rows)


def _gb(mib: float) -> str:
    return f"{mib * 2**20 / 1e9:.1f}"


if __name__ == "__main__":
    sys.exit(main())
