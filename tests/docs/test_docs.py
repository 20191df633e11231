"""The documents: what they show runs, and what they point to is there.

A fenced block of `sh` or `python` that follows `<!-- run -->` is run, against a real server, in
the order of its document. A block that follows `<!-- prints -->` is what the block before it
prints, with `...` for what differs from run to run.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from server.security.keys import SCOPES, create_key
from tests.support.service import ROOT, Service, start_server, stop_server
from tests.support.wire import picture

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SHELL = ["bash", "-euo", "pipefail", "-c"]
PYTHON = [sys.executable, "-W", "error", "-c"]
PROGRAMS = {"sh": SHELL, "bash": SHELL, "python": PYTHON}
SECONDS = 300

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>\w+) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_MARKS = {None, "run", "prints"}
_LINK = re.compile(r"\]\(([^()\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    mark: str | None
    language: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    return [
        Block(
            match["mark"],
            match["language"],
            match["text"],
            text.count("\n", 0, match.start("text")),
        )
        for match in _BLOCK.finditer(text)
    ]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def runnable(path: Path) -> bool:
    return any(block.mark == "run" for block in blocks(path.read_text("utf-8")))


@pytest.fixture
def desk(
    path: Path, tiny_checkpoint: Path, tmp_path: Path
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with what the documents speak of, and the environment of a reader at work."""
    keys = tmp_path / "keys.json"
    secret, _ = create_key(keys, "reader", SCOPES)
    (tmp_path / "scene.jpg").write_bytes(picture("JPEG", size=(96, 64)))
    shown = "".join(block.text for block in blocks(path.read_text("utf-8")) if block.mark == "run")
    process, url = start_server(
        ["--model", str(tiny_checkpoint), "--keys-file", str(keys)], jobs="jobs" in shown
    )
    service = Service(url, {"all": secret}, process)
    programs = sysconfig.get_path("scripts")
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("DISP_")},
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "DISP_BASE_URL": service.url,
        "DISP_API_KEY": secret,
        "DISP_MODEL": str(tiny_checkpoint),
    }
    yield tmp_path, environment
    stop_server(process)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if runnable(path)], ids=name_of)
def test_what_a_document_shows_runs(path: Path, desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk
    printed: str | None = None
    for block in blocks(path.read_text("utf-8")):
        where = f"{name_of(path)}:{block.line}"
        if block.mark == "run":
            result = subprocess.run(
                [*PROGRAMS[block.language], block.text],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
            assert result.returncode == 0, f"{where}\n{result.stdout}{result.stderr}"
            printed = result.stdout
        elif block.mark == "prints":
            assert printed is not None, f"{where} follows no block that was run"
            assert matches(block.text, printed), f"{where} says\n{block.text}but it is\n{printed}"
            printed = None


def matches(shown: str, printed: str) -> bool:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown, printed, flags)


def test_output_that_differs_is_found() -> None:
    assert matches("revoked key-...\n401\n", "revoked key-0a1b\n401\n")
    assert not matches("revoked key-...\n401\n", "revoked key-0a1b\n200\n")


def test_blocks_are_found_with_their_marks() -> None:
    text = (
        "# A\n<!-- run -->\n```sh\necho 1\n```\n<!-- prints -->\n```text\n1\n```\n```py\n2\n```\n"
    )
    assert blocks(text) == [
        Block("run", "sh", "echo 1\n", 3),
        Block("prints", "text", "1\n", 7),
        Block(None, "py", "2\n", 10),
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_mark_belongs_to_a_block(path: Path) -> None:
    text = path.read_text("utf-8")
    found = blocks(text)
    assert {block.mark for block in found} <= _MARKS
    marked = [block for block in found if block.mark is not None]
    assert len(marked) == len(re.findall(r"^<!-- (?:run|prints)\b", text, re.MULTILINE))
    assert all(block.language in PROGRAMS for block in marked if block.mark == "run")


def prose(text: str) -> str:
    """A document without its code."""
    return re.sub(r"`[^`\n]+`", "", _BLOCK.sub("", text))


def anchors(path: Path) -> set[str]:
    """Names of a document's headings, as links write them."""
    headings = _HEADING.findall(_BLOCK.sub("", path.read_text("utf-8")))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def broken_links(path: Path, text: str) -> list[str]:
    broken = []
    for match in _LINK.finditer(prose(text)):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        inside = target.exists() and target.is_relative_to(ROOT)
        if not inside or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path, path.read_text("utf-8")) == []


def test_broken_links_are_found() -> None:
    text = (
        "[a](api.md) [b](absent.md) [c](api.md#errors) [d](api.md#absent) [e](https://a.example) "
        '[f](../../outside.md) `[g](code.md)` <img src="absent.png">'
    )
    found = broken_links(ROOT / "docs" / "any.md", text)
    assert found == ["absent.md", "api.md#absent", "../../outside.md", "absent.png"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_compose_files_that_are_shown_are_valid(path: Path, tmp_path: Path) -> None:
    for block in blocks(path.read_text("utf-8")):
        if block.language != "yaml" or "services" not in yaml.safe_load(block.text):
            continue
        file = tmp_path / f"{block.line}.yml"
        file.write_text(block.text, "utf-8")
        command = [sys.executable, "-m", "check_jsonschema"]
        command += ["--builtin-schema", "vendor.compose-spec", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{name_of(path)}:{block.line}\n{result.stdout}"
