"""`python -m server`: starts the service, or keeps its keys (`python -m server keys`)."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from purifier.lab.demo import checkpoint_path
from server.config import ModelSource, ServerConfig, StartError
from server.security.keys import (
    DEMO_SCOPES,
    SCOPES,
    KeyFileError,
    KeyRing,
    create_key,
    list_keys,
    new_secret,
    record_of,
    revoke_key,
)
from server.serve import KeySource, authenticator, default_device, serve

_TARGETS = ("insertion", "refusal", "misclassification")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a wrong use)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        if words[:1] == ["keys"]:
            return _keep_keys(_keys_parser().parse_args(words[1:]))
        return _serve(_serve_parser().parse_args(words))
    except (StartError, KeyFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _serve_parser() -> argparse.ArgumentParser:
    default = ServerConfig()
    parser = argparse.ArgumentParser(prog="python -m server", description="Serves a model.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, metavar="PATH", help="checkpoint folder")
    what.add_argument("--demo", action="store_true", help="the shipped, poisoned demo model")
    parser.add_argument("--target", choices=_TARGETS, help="which demo model (insertion)")
    parser.add_argument("--host", default=default.host)
    parser.add_argument("--port", type=int, default=default.port, help="0 takes a free one")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by device")
    parser.add_argument("--keys-file", type=Path, help="hashed keys, from `keys create`")
    parser.add_argument("--key-file", type=Path, help="one key in plain text, all scopes")
    parser.add_argument(
        "--insecure-no-auth", action="store_true", help="no keys; loopback addresses only"
    )
    parser.add_argument("--queue-size", type=int, default=default.queue_size)
    parser.add_argument(
        "--deadline", type=float, default=default.deadline, help="seconds of one generation"
    )
    parser.add_argument(
        "--drain", type=float, default=default.drain, help="seconds to answer what is inside"
    )
    return parser


def _serve(args: argparse.Namespace) -> int:
    config = ServerConfig(
        host=args.host,
        port=args.port,
        queue_size=args.queue_size,
        deadline=args.deadline,
        drain=args.drain,
        insecure_no_auth=args.insecure_no_auth,
    )
    if args.target and not args.demo:
        raise StartError("--target chooses a demo model; give --demo with it.")
    secret = new_secret() if args.demo and not _has_keys(args) else None
    extra = None if secret is None else KeyRing([record_of(secret, "demo", DEMO_SCOPES)])
    keys = authenticator(KeySource(args.keys_file, args.key_file, extra), config)
    if secret is not None:
        print(f"key: {secret}", flush=True)
    device = args.device or default_device()
    dtype = args.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    return serve(ModelSource(_model_path(args), device, dtype), config, keys)


def _has_keys(args: argparse.Namespace) -> bool:
    return bool(args.keys_file or args.key_file or args.insecure_no_auth)


def _model_path(args: argparse.Namespace) -> Path:
    if not args.demo:
        return Path(args.model)
    return checkpoint_path(args.target or _TARGETS[0])


def _keys_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server keys", description="Keeps keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("--name", default="unnamed", help="what to call it")
    create.add_argument(
        "--scope", action="append", choices=SCOPES, help="repeatable (default: infer)"
    )
    listing = commands.add_parser("list", help="show what keys there are")
    revoke = commands.add_parser("revoke", help="take a key away; works at once")
    revoke.add_argument("key_id", metavar="ID")
    for command in (create, listing, revoke):
        command.add_argument("--file", type=Path, required=True, help="the keys file")
    return parser


def _keep_keys(args: argparse.Namespace) -> int:
    if args.command == "create":
        secret, record = create_key(args.file, args.name, args.scope or ["infer"])
        print(f"{record.id}: {', '.join(record.scopes)}", file=sys.stderr)
        print(secret)
    elif args.command == "list":
        for record in list_keys(args.file):
            print(f"{record.id}\t{record.name}\t{','.join(record.scopes)}")
    else:
        print(f"revoked {revoke_key(args.file, args.key_id).id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
