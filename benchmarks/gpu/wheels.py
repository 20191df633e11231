"""The packages that a bare machine may lack, as a folder of wheels that travels with the checkout.

    python -m benchmarks.gpu.wheels              # fills .wheels for Python 3.12 on x86-64

Filled where there is a network, in an environment with `disp-server[server]`. `installed` puts
what is missing on a machine without one into a folder of its own. PyTorch and the packages around
it are never carried: a GPU machine has them, built for its driver.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".wheels"
EXPECTED = frozenset(
    {
        "accelerate",
        "hf-xet",
        "huggingface-hub",
        "numpy",
        "peft",
        "pillow",
        "pyarrow",
        "safetensors",
        "tokenizers",
        "torch",
        "transformers",
    }
)
"""On every machine that runs such models, with what they need themselves."""

_MOST_BYTES = 40 * 1024**2
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_TOOLS = ("pytest", "hypothesis", "jsonschema")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills the folder; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="3.12", help="of the machine")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    names = closure("disp-server", extra="server") | closure_of_tools()
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in sorted(names)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    command += [str(options.out), "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", options.python]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.whl"):
        old.unlink()
    subprocess.run([*command, *wanted], check=True)
    size = sum(file.stat().st_size for file in options.out.glob("*.whl"))
    print(f"{len(wanted)} wheels, {size / 2**20:.1f} MiB, in {options.out}")
    return 0 if size <= _MOST_BYTES else 1


def closure(name: str, *, extra: str = "") -> set[str]:
    """Installed packages that one needs, directly or not; without those that are expected."""
    found: set[str] = set()
    todo = [(name, extra)]
    while todo:
        package, wanted = todo.pop()
        for requirement in importlib.metadata.requires(package) or ():
            needed, _, marker = requirement.partition(";")
            match = re.match(r"[A-Za-z0-9._-]+", needed)
            if match is None or not _applies(marker, wanted):
                continue
            key = re.sub(r"[-_.]+", "-", match[0]).lower()
            if key in found or key in EXPECTED or not _is_installed(key):
                continue
            found.add(key)
            todo.append((key, ""))
    return found


def closure_of_tools() -> set[str]:
    """What the tests need."""
    tools = {name for name in _TOOLS if _is_installed(name)}
    return tools.union(*(closure(name) for name in tools))


def installed(site: Path, folder: Path = FOLDER) -> dict[str, str]:
    """Installs the carried packages that are missing here.

    Args:
        site: Folder that they go to.
        folder: The wheels.

    Returns:
        Environment variables with which Python finds them.
    """
    missing = [wheel for wheel in sorted(folder.glob("*.whl")) if not _is_installed(_name(wheel))]
    if not missing:
        return {}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--target", str(site), *map(str, missing)]
    subprocess.run(command, check=True)
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def _name(wheel: Path) -> str:
    """The package's name in a wheel's file name."""
    return wheel.name.split("-", 1)[0].replace("_", "-").lower()


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _applies(marker: str, extra: str) -> bool:
    """Whether a requirement counts with an extra; other markers are taken to hold."""
    named = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", marker)
    return named is None or named[1] == extra


if __name__ == "__main__":
    sys.exit(main())
