"""`python -m server`: starts the service."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from purifier.defense.config import Effort, Level, MaskingConfig, RankerName
from purifier.errors import InvalidSetting
from purifier.lab.demo import ATTACKS, checkpoint_path
from purifier.lab.targets import TargetName
from server.config import (
    DEFAULT_EFFORT,
    MEGABYTE,
    ModelSource,
    ServerConfig,
    StartError,
    UploadLimits,
)
from server.data_sets import DataOptions, parse_roots
from server.devices import default_device, default_dtype
from server.security.keys import SCOPES, KeyRing, new_secret, record_of
from server.serve import KeySource, authenticator, serve
from server.store.home import Home, find_root

_DEFENSE = ("effort", "level", "ratio", "ranker", "threshold", "probes", "pooling", "top_k")
_MOST_MEGABYTES = 10_000_000
_TARGETS: tuple[TargetName, ...] = get_args(TargetName)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a wrong use)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        return _serve(_serve_parser().parse_args(arguments))
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _serve_parser() -> argparse.ArgumentParser:
    default = ServerConfig()
    parser = argparse.ArgumentParser(prog="disp serve", description="Serves a model.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, metavar="PATH", help="checkpoint folder")
    what.add_argument("--demo", action="store_true", help="the shipped, poisoned demo model")
    parser.add_argument("--target", choices=_TARGETS, help="which demo model (insertion)")
    parser.add_argument(
        "--attack", choices=ATTACKS, help="a demo model with another trigger, and its detector"
    )
    parser.add_argument("--host", default=default.host)
    parser.add_argument("--port", type=int, default=default.port, help="0 takes a free one")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by device")
    parser.add_argument("--keys-file", type=Path, help="hashed keys, from `keys create`")
    parser.add_argument("--key-file", type=Path, help="one key in plain text, all scopes")
    parser.add_argument(
        "--insecure-no-auth", action="store_true", help="no keys; loopback addresses only"
    )
    parser.add_argument(
        "--public-metrics",
        action="store_true",
        help="/metrics without a key; loopback addresses only",
    )
    parser.add_argument(
        "--public-docs", action="store_true", help="/docs and /openapi.json without a key"
    )
    _add_load(parser, default)
    parser.add_argument(
        "--drain", type=float, default=default.drain, help="seconds to answer what is inside"
    )
    _add_data(parser, default)
    _add_defense(parser)
    return parser


def _add_load(parser: argparse.ArgumentParser, default: ServerConfig) -> None:
    parser.add_argument("--queue-size", type=int, default=default.queue_size)
    parser.add_argument(
        "--max-batch", type=int, default=default.max_batch, help="requests denoised together"
    )
    parser.add_argument(
        "--max-positions",
        type=int,
        default=default.max_positions,
        help="sequence positions denoised together; bounds memory",
    )
    parser.add_argument(
        "--passes-per-step",
        type=int,
        default=default.passes_per_step,
        help="passes of those who join between two steps of those that run",
    )
    parser.add_argument(
        "--shared-defences",
        type=float,
        default=default.shared_bytes / MEGABYTE,
        metavar="MB",
        help="memory of defences kept for identical requests; 0 keeps none",
    )
    parser.add_argument(
        "--deadline", type=float, default=default.deadline, help="seconds of one request"
    )


def _add_data(parser: argparse.ArgumentParser, default: ServerConfig) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir",
        type=Path,
        help="checkpoints, jobs, uploads (DISP_DATA_DIR; ./disp-data; for the demo in the cache)",
    )
    data.add_argument("--database-url", help="postgresql+psycopg://... (SQLite in the data folder)")
    data.add_argument(
        "--swap",
        choices=("auto", "in-place"),
        default="auto",
        help="in-place never holds two models in memory",
    )
    data.add_argument(
        "--no-worker", action="store_true", help="leave the jobs to `disp worker` processes"
    )
    data.add_argument("--store", help="URL of the store all workers share (the data folder)")
    data.add_argument(
        "--dataset-root",
        action="append",
        metavar="NAME=PATH",
        help="label file or folder that jobs may name dataset:NAME; may be repeated",
    )
    data.add_argument(
        "--dataset-images",
        action="append",
        metavar="NAME=PATH",
        help="its image folder, where that is elsewhere",
    )
    data.add_argument(
        "--max-upload",
        type=float,
        default=default.upload.file_bytes / MEGABYTE,
        metavar="MB",
        help="size of an upload",
    )


def _add_defense(parser: argparse.ArgumentParser) -> None:
    defense = parser.add_argument_group("default defence")
    defense.add_argument(
        "--effort",
        choices=get_args(Effort),
        help=f"stands for those below; {DEFAULT_EFFORT} unless a level or a ranker is given",
    )
    defense.add_argument("--level", choices=get_args(Level))
    defense.add_argument("--ratio", type=float, help="fraction that is masked, 0 to 1")
    defense.add_argument("--ranker", choices=get_args(RankerName))
    defense.add_argument("--threshold", type=float, help="least score that is masked")
    defense.add_argument("--probes", type=int, help="probes of official and fisher")
    defense.add_argument("--pooling", type=int, help="side of the averaged neighbourhood")
    defense.add_argument("--top-k", type=int, help="vocabulary entries at every position")


def _serve(args: argparse.Namespace) -> int:
    config = ServerConfig(
        host=args.host,
        port=args.port,
        queue_size=args.queue_size,
        max_batch=args.max_batch,
        max_positions=args.max_positions,
        passes_per_step=args.passes_per_step,
        shared_bytes=_megabytes("--shared-defences", args.shared_defences, least=0),
        deadline=args.deadline,
        drain=args.drain,
        masking=_masking(args),
        upload=UploadLimits(file_bytes=_megabytes("--max-upload", args.max_upload, least=1)),
        swap="in_place" if args.swap == "in-place" else "auto",
        worker=not args.no_worker,
        public_metrics=args.public_metrics,
        public_docs=args.public_docs,
        insecure_no_auth=args.insecure_no_auth,
    )
    for name in ("target", "attack"):
        if getattr(args, name) and not args.demo:
            raise StartError(f"--{name} chooses a demo model; give --demo with it.")
    if args.target and args.attack:
        raise StartError("--target and --attack exclude each other; give one of them.")
    secret = new_secret() if args.demo and not _has_keys(args) else None
    extra = None if secret is None else KeyRing([record_of(secret, "demo", SCOPES)])
    keys = authenticator(KeySource(args.keys_file, args.key_file, extra), config)
    if secret is not None:
        print(f"key: {secret}", flush=True)
    device = args.device or default_device()
    dtype = args.dtype or default_dtype(device)
    home = Home.at(find_root(args.data_dir, demo=args.demo), args.database_url)
    demo: TargetName | None = None
    if args.demo and not args.attack:  # the training sets of the attacks are not shipped
        demo = args.target or _TARGETS[0]
    roots = parse_roots(args.dataset_root or [], args.dataset_images or [])
    data = DataOptions(roots, demo, args.store)
    return serve(ModelSource(_model_path(args), device, dtype), config, keys, home, data)


def _megabytes(option: str, value: float, *, least: int) -> int:
    """An option in megabytes as bytes, `least` of them or more."""
    if not least <= value * MEGABYTE < _MOST_MEGABYTES * MEGABYTE:
        raise StartError(
            f"{option} must be {'above' if least else 'at least'} 0 and below "
            f"{_MOST_MEGABYTES:,} MB."
        )
    return int(value * MEGABYTE)


def _masking(args: argparse.Namespace) -> MaskingConfig:
    given = {name: getattr(args, name) for name in _DEFENSE}
    if not (args.effort or args.level or args.ranker):
        given["effort"] = DEFAULT_EFFORT
    try:
        return MaskingConfig().adjusted(**given)
    except InvalidSetting as error:
        raise StartError(error.message) from None


def _has_keys(args: argparse.Namespace) -> bool:
    return bool(args.keys_file or args.key_file or args.insecure_no_auth)


def _model_path(args: argparse.Namespace) -> Path:
    if not args.demo:
        return Path(args.model)
    return checkpoint_path(args.attack or args.target or _TARGETS[0])


if __name__ == "__main__":
    sys.exit(main())
