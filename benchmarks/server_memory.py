"""Memory and speed of a running server, as a client sees them.

    python -m benchmarks.server_memory --demo
    python -m benchmarks.server_memory --model /models/LLaDA-V --device cuda

Starts the server, asks one question several times with the defence on and off, and prints
one JSON object: resident memory once the model is loaded, the peak after the questions (both
of the server's process, in MB) and the median seconds of an answer.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from PIL import Image

from server.security.keys import SCOPES, create_key

_MB = 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--demo", action="store_true")
    what.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--questions", type=int, default=5)
    args = parser.parse_args()
    chosen = ["--demo"] if args.demo else ["--model", str(args.model)]
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        secret, _ = create_key(keys, "benchmark", SCOPES)
        command = [sys.executable, "-m", "server", *chosen, "--device", args.device]
        command += ["--port", "0", "--keys-file", str(keys)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                print(json.dumps(measure(process, secret, args.questions), indent=1))
            finally:
                process.terminate()
    return 0


def measure(process: subprocess.Popen[str], secret: str, questions: int) -> dict[str, float]:
    """Asks a started server and looks at its process."""
    assert process.stdout is not None
    lines = (line for line in process.stdout if line.startswith("listening on "))
    url = next(lines).removeprefix("listening on ").strip()
    loaded = psutil.Process(process.pid).memory_info().rss
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=url, headers=headers, timeout=600, trust_env=False) as client:
        seconds = {
            name: statistics.median(ask(client, enabled) for _ in range(questions))
            for name, enabled in (("undefended", False), ("defended", True))
        }
        peak = client.get("/v1/status").raise_for_status().json()["peak_memory_bytes"]
    return {
        "loaded_mb": round(loaded / _MB),
        "peak_mb": round(peak / _MB),
        "undefended_seconds": round(seconds["undefended"], 3),
        "defended_seconds": round(seconds["defended"], 3),
    }


def ask(client: httpx.Client, enabled: bool) -> float:
    """Seconds of one answer."""
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "Describe the picture."},
    ]
    body = {"messages": [{"role": "user", "content": content}], "defense": {"enabled": enabled}}
    start = time.perf_counter()
    client.post("/v1/chat/completions", json=body).raise_for_status()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
