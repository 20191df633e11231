"""The packages that a bare machine may lack, as a folder of wheels that travels with the checkout.

    python -m benchmarks.gpu.wheels              # fills .wheels for Python 3.12 on x86-64

Filled where there is a network, in an environment with `disp-server[server]`. `installed` puts
what is missing or too old on a machine without one into a folder of its own. PyTorch and the
packages around it are never carried: a GPU machine has them, built for its driver.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".wheels"
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

_MOST_BYTES = 30 * 1024**2
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
    """Installed packages that one needs, directly or not; without those that are expected.

    Args:
        name: The package.
        extra: One of its extras. Those that requirements name are followed as well: without
            `psycopg[binary]` there would be no driver inside `psycopg`.
    """
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [(name, extra)]
    while todo:
        package, wanted = todo.pop()
        if (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        for requirement in importlib.metadata.requires(package) or ():
            needed, _, marker = requirement.partition(";")
            match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[([^]]*)\])?", needed)
            if match is None or not _applies(marker, wanted):
                continue
            key = _canonical(match[1])
            if key in EXPECTED or _version(key) is None:
                continue
            found.add(key)
            extras = [each.strip() for each in (match[2] or "").split(",")]
            todo += [(key, each) for each in ("", *filter(None, extras))]
    return found


def closure_of_tools() -> set[str]:
    """What the tests need."""
    tools = {name for name in _TOOLS if _version(name) is not None}
    return tools.union(*(closure(name) for name in tools))


def installed(site: Path, folder: Path = FOLDER) -> list[str]:
    """Installs the carried packages that are missing here, or there in a version that is refused.

    Args:
        site: Folder that they go to.
        folder: The wheels.

    Returns:
        Folders in which Python has to look for packages first.
    """
    wanted = needed(folder)
    if not wanted:
        return []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--target", str(site), *map(str, wanted)]
    subprocess.run(command, check=True)
    return [str(site)]


def needed(folder: Path, project: Path = ROOT / "pyproject.toml") -> list[Path]:
    """The wheels of a folder whose package is missing here, or here in a version that is refused.

    What is installed must satisfy the project and all packages of the folder, each in the version
    that will be used: a newer one may need a newer companion.

    Args:
        folder: The wheels.
        project: Names the versions that the project takes.
    """
    carried = {_canonical(wheel.name.split("-", 1)[0]): wheel for wheel in folder.glob("*.whl")}
    chosen = {name for name in carried if _version(name) is None}
    before = None
    while before != chosen:
        before = set(chosen)
        requirements = _project_requirements(project)
        for name, wheel in carried.items():
            requirements += _requirements(name, wheel if name in chosen else None)
        chosen |= _refused(requirements, carried.keys() - chosen)
    return sorted(carried[name] for name in chosen)


def _refused(requirements: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of the installed packages whose version some requirement does not allow."""
    # Imported here, as nothing is carried yet: every machine with transformers has it.
    from packaging.requirements import Requirement  # noqa: PLC0415

    found = set()
    for text in requirements:
        requirement = Requirement(text)
        name = _canonical(requirement.name)
        if name not in names or (requirement.marker and not requirement.marker.evaluate()):
            continue
        if not requirement.specifier.contains(_version(name) or "0", prereleases=True):
            found.add(name)
    return found


def _project_requirements(project: Path) -> list[str]:
    """What the project needs with its server, and for its tests."""
    facts = tomllib.loads(project.read_text())["project"]
    extras = facts["optional-dependencies"]
    return [*facts["dependencies"], *extras["server"], *extras["dev"]]


def _requirements(name: str, wheel: Path | None) -> list[str]:
    """What a wheel's package needs; without a wheel, what the installed one needs."""
    if wheel is None:
        return list(importlib.metadata.requires(name) or ())
    [package] = importlib.metadata.distributions(path=[str(wheel)])
    return list(package.requires or ())


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _applies(marker: str, extra: str) -> bool:
    """Whether a requirement counts with an extra; other markers are taken to hold."""
    named = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", marker)
    return named is None or named[1] == extra


if __name__ == "__main__":
    sys.exit(main())
