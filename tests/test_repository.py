"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("purifier", "server", "clients")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
IDS = [path.relative_to(ROOT).as_posix() for path in SOURCES]

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60

OPENS_IMAGES = {
    "purifier/imaging/decode.py": "every image of a request or a data set",
    "clients/_overlay.py": "the user's own file, in the user's process",
    "purifier/lab/": "the lab's own pictures",
}
READS_TENSORS = {
    "purifier/mdlm/": "checkpoints, behind the registry's checks",
    "purifier/tuning/state.py": "where a training left off",
}
WEB_FRAMEWORK = ("server/app.py", "server/routes/")
UNSAFE_MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
UNSAFE_CALLS = {
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "eval",
    "exec",
    "numpy.load",
    "np.load",
}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def called(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules and what is taken from them (`` if the module itself is)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def committed_files() -> list[Path]:
    """Files under version control; all files of a copy without it."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every committed text file."""
    for path in committed_files():
        if path.is_file():
            content = path.read_bytes()
            if b"\0" not in content[:4096]:
                yield name_of(path), content.decode("utf-8", "replace")


def test_the_import_contracts_hold() -> None:
    program = Path(sysconfig.get_path("scripts")) / "lint-imports"
    result = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno - docstring.count("\n")
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_nothing_unfinished_is_left(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK|SKELETON)\b", text)
    assert "NotImplementedError" not in text


def test_images_are_opened_in_few_places() -> None:
    for path in SOURCES:
        if "Image.open" in set(called(parsed(path))):
            assert name_of(path).startswith(tuple(OPENS_IMAGES)), name_of(path)


def test_weights_are_loaded_in_one_place() -> None:
    for path in SOURCES:
        tree = parsed(path)
        reads = [taken for module, taken in imported(tree) if module.startswith("safetensors")]
        reads = [taken for taken in reads if not taken.startswith("save")]
        loads = [name for name in called(tree) if name.endswith(".from_pretrained")]
        if reads or loads:
            assert name_of(path).startswith(tuple(READS_TENSORS)), (name_of(path), reads, loads)


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_nothing_runs_code_from_a_file(path: Path) -> None:
    tree = parsed(path)
    assert not {module.partition(".")[0] for module, _ in imported(tree)} & UNSAFE_MODULES
    assert not set(called(tree)) & UNSAFE_CALLS
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert "trust_remote_code" not in keywords


def test_the_web_framework_stays_at_the_door() -> None:
    for path in SOURCES:
        modules = {module.partition(".")[0] for module, _ in imported(parsed(path))}
        if "fastapi" in modules:
            assert name_of(path).startswith(WEB_FRAMEWORK), name_of(path)


def test_no_file_names_a_folder_of_this_machine() -> None:
    here = [str(folder) for folder in (ROOT, Path.home()) if len(folder.parts) > 2]
    for name, text in texts():
        assert not [folder for folder in here if folder in text], name


def test_no_file_names_a_package_registry() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    configured = shown.stdout + " ".join(
        text for name, text in os.environ.items() if name.startswith(("PIP_", "UV_"))
    )
    hosts = set(re.findall(r"https?://(?:[^\s'/@]*@)?([\w.\-]+)", configured))
    for name, text in texts():
        assert not [host for host in hosts if host in text], name
        assert not re.search(r"(index-url|find-links)[= ]+[\"']?(https?|file):", text), name


def test_no_weights_but_those_of_the_lab_are_committed() -> None:
    """The demo's, and attacks that figures are measured on."""
    folders = ("purifier/lab/demo/", "benchmarks/defense/checkpoints/")
    for path in committed_files():
        if path.suffix in {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".pkl"}:
            assert path.suffix == ".safetensors", name_of(path)
            assert name_of(path).startswith(folders), name_of(path)
            assert name_of(path).startswith(folders[0]) or path.stat().st_size < 2**20, path


def test_set_up_and_tests_have_one_command_each() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in ("install", "demo", "test", "coverage", "lint", "format"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text("utf-8")
    assert "export CI=true" in script.read_text("utf-8")
    for program in ("make", "git", "curl"):
        assert f"needed+=({program})" in script.read_text("utf-8")
    subprocess.run(["bash", "-n", script], check=True)


def test_the_licence_is_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")[:200]
