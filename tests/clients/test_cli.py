"""The command `disp`: as a process against the real server, and its usage errors."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from PIL import Image

from clients import cli
from clients._commands import delegated
from clients._commands._common import printable
from tests.support.service import Service

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def asking(disp: Run, live: Service) -> Run:
    """`disp` with the server and a key in its environment."""

    def run(*arguments: str | Path, key: str = "all") -> CompletedProcess[str]:
        return disp(*arguments, DISP_BASE_URL=live.url, DISP_API_KEY=live.keys.get(key, key))

    return run


def parsed(result: CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert result.returncode == code, result.stderr
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_ask_prints_the_answer_alone_on_standard_output(asking: Run, scene: Path) -> None:
    words = ("ask", scene, "What is it?", "--gen-length", "8")
    plain = asking(*words)
    structured = parsed(asking(*words, "--json"))
    assert plain.returncode == 0
    assert plain.stdout == printable(structured["answer"]) + "\n"
    assert plain.stderr.startswith("defended: ")


def test_ask_passes_every_setting_on(asking: Run, scene: Path) -> None:
    result = parsed(
        asking(
            *("ask", scene, "What is it?", "--json", "--level", "token", "--ratio", "0.5"),
            *(
                "--ranker",
                "official",
                "--threshold",
                "0.01",
                "--probes",
                "3",
                "--defense-seed",
                "9",
                "--pooling",
                "1",
            ),
            *("--gen-length", "8", "--block-length", "4", "--steps", "4", "--seed", "2"),
            *("--remasking", "margin", "--temperature", "0.5", "--guidance-scale", "1.5"),
        )
    )
    defense = result["defense"]
    assert defense["applied"]
    assert (defense["level"], defense["ratio"], defense["ranker"]) == ("token", 0.5, "official")
    assert (defense["threshold"], defense["probes"], defense["seed"]) == (0.01, 3, 9)
    assert result["usage"]["steps"] == 4
    assert result["request_id"]


def test_ask_takes_the_occlusion_ranker(asking: Run, scene: Path) -> None:
    words = ("--ranker", "occlusion", "--threshold", "1000", "--gen-length", "4", "--json")
    defense = parsed(asking("ask", scene, "What is it?", *words))["defense"]
    assert (defense["ranker"], defense["threshold"], defense["masked"]) == ("occlusion", 1000, 0)


def test_ask_with_a_level_of_effort(asking: Run, scene: Path) -> None:
    words = ("--effort", "balanced", "--ratio", "0.2", "--gen-length", "4", "--json")
    defense = parsed(asking("ask", scene, "What is it?", *words))["defense"]
    assert (defense["ranker"], defense["ratio"]) == ("group-testing", 0.2)
    assert defense["verdict"] in ("nothing found", "masked")


def test_ask_for_a_certified_answer(asking: Run, scene: Path, tmp_path: Path) -> None:
    """One that no window decides: a mask changes nothing of a plain picture."""
    plain = tmp_path / "plain.png"
    Image.new("RGB", (80, 64), (180, 90, 40)).save(plain)
    words = ("What is it?", "--certified", "--window", "0.1", "--gen-length", "4")
    result = parsed(asking("ask", plain, *words, "--json"))
    defense = result["defense"]
    assert (defense["method"], defense["verdict"]) == ("certified", "certified")
    assert (defense["certified"]["window"], defense["certified"]["agreement"]) == (0.1, 1.0)
    assert (bool(result["answer"]), result["refusal"]) == (True, None)
    shown = asking("ask", plain, *words)
    assert shown.stdout.strip() == result["answer"]
    said = " ".join(shown.stderr.split())
    assert "certified against triggers of 10% of each side: 25 answers, 100% of the" in said


def test_ask_says_that_there_is_no_certified_answer(asking: Run, scene: Path) -> None:
    words = ("ask", scene, "What is it?", "--certified", "--gen-length", "8")
    result = parsed(asking(*words, "--json"))
    assert result["defense"]["verdict"] == "not certified"
    assert (result["answer"], result["finish_reason"]) == ("", "stop")
    assert asking(*words).stdout.strip() == result["refusal"]


def test_ask_for_the_token_level_alone(asking: Run, scene: Path) -> None:
    words = ("--level", "token", "--gen-length", "4", "--json")
    defense = parsed(asking("ask", scene, "What is it?", *words))["defense"]
    assert (defense["level"], defense["applied"]) == ("token", True)


def test_ask_saves_the_overlay(asking: Run, scene: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "overlay.png"
    words = ("ask", scene, "What is it?", "--gen-length", "4", "--overlay", target, "--json")
    assert parsed(asking(*words))["overlay"] == str(target)
    with Image.open(target) as picture:
        assert (picture.format, picture.width > picture.height) == ("PNG", True)


def test_ask_without_defence(asking: Run, scene: Path) -> None:
    words = ("ask", scene, "What is it?", "--gen-length", "4", "--no-defense", "--json")
    assert parsed(asking(*words))["defense"]["reason"] == "disabled"
    refused = parsed(asking(*words, key="infer"), code=1)["error"]
    assert (refused["status"], refused["code"]) == (403, "scope_missing")


def test_ask_takes_several_images_or_none(asking: Run, scene: Path) -> None:
    two = parsed(asking("ask", scene, scene, "Same?", "--gen-length", "4", "--json"))
    none = parsed(asking("ask", "Hello?", "--gen-length", "4", "--json"))
    assert two["usage"]["visual_tokens"] > 0 == none["usage"]["visual_tokens"]


def test_inspect_says_what_every_level_found(asking: Run, scene: Path, tmp_path: Path) -> None:
    words = ("inspect", scene, "What is it?", "--gen-length", "4")
    found = parsed(asking(*words, "--json", "--overlays", tmp_path / "found"))
    assert [each["effort"] for each in found["findings"]] == ["fast", "balanced"]
    assert all("overlays" not in each for each in found["findings"])
    for name in ("fast-0.png", "balanced-0.png"):
        with Image.open(tmp_path / "found" / name) as picture:
            assert picture.format == "PNG"
    shown = asking(*words, "--effort", "fast").stdout
    assert shown.startswith(f"{found['verdict']}, checkpoint ")
    assert "undefended: " in shown
    assert "balanced" not in shown
    refused = parsed(asking(*words, "--json", key="infer"), code=1)["error"]
    assert refused["code"] == "scope_missing"


def test_models_and_health(asking: Run) -> None:
    cards = parsed(asking("models", "--json"))["data"]
    assert "default" in {card["id"] for card in cards}
    assert cards[0]["root"] in asking("models").stdout
    assert parsed(asking("health", "--json")) == {"up": True, "ready": True}
    assert asking("health").stdout == "up and ready\n"


def test_what_fails_says_so_and_ends_with_1(asking: Run, scene: Path, tmp_path: Path) -> None:
    wrong_key = asking("models", key="sk-wrong")
    assert (wrong_key.returncode, wrong_key.stdout) == (1, "")
    assert wrong_key.stderr.startswith("disp: ")
    absent = parsed(asking("ask", tmp_path / "absent.png", "What?", "--json"), code=1)
    assert "absent.png" in absent["error"]["message"]
    ratio = parsed(asking("ask", scene, "What?", "--ratio", "7", "--json"), code=1)
    assert ratio["error"]["param"] == "defense.ratio"


def test_no_server(disp: Run) -> None:
    result = disp("health", "--base-url", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "disp serve" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["unknown"],
        ["ask"],
        ["ask", "a.png", "What?", "--level", "pixel"],
        ["ask", "a.png", "What?", "--ratio", "much"],
        ["ask", "a.png", "What?", "--no-defense", "--ratio", "0.3"],
        ["ask", "a.png", "What?", "--no-defense", "--overlay", "o.png"],
        ["ask", "What?", "--overlay", "o.png"],
        ["ask", "a.png", "What?", "--certified", "--ratio", "0.3"],
        ["ask", "a.png", "What?", "--certified", "--overlay", "o.png"],
        ["ask", "a.png", "What?", "--certified", "--no-defense"],
        ["ask", "a.png", "What?", "--window", "0.1"],
        ["demo", "--target", "none"],
    ],
)
def test_wrong_use_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: disp")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    own = ("ask", "inspect", "models", "health", "jobs", "checkpoints", "files", "demo", "doctor")
    for command in (*own, *delegated.DELEGATES):
        assert re.search(rf"^    {command}\s", text, re.MULTILINE)


def test_doctor_tells_what_is_here(disp: Run) -> None:
    found = parsed(disp("doctor", "--json"))
    assert found["packages"]["torch"]
    assert found["device"]["cpu_threads"] >= 1
    assert found["memory_bytes"] > 0
    assert "torch" in disp("doctor").stdout


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("serve", ["server"]),
        ("keys", ["server.security"]),
        ("checkpoints", ["server.store"]),
        ("evaluate", ["purifier.evaluate"]),
    ],
)
def test_delegated_commands_keep_their_arguments(name: str, module: list[str]) -> None:
    line = delegated.command_line(name, ["--json", "-x"])
    assert line == [sys.executable, "-P", "-m", *module, "--json", "-x"]


def test_a_folder_named_server_does_not_take_the_servers_place(disp: Run, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__main__.py").write_text("print('hijacked')")
    (tmp_path / "server" / "__init__.py").write_text("")
    result = disp("serve", "--help", PYTHONSAFEPATH="1")
    assert result.returncode == 0
    assert "--demo" in result.stdout
    assert "hijacked" not in result.stdout


def test_keys_are_made_listed_and_revoked(disp: Run, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = disp("keys", "create", "--file", file, "--name", "laptop")
    assert made.stdout.startswith("sk-")
    (line,) = disp("keys", "list", "--file", file).stdout.splitlines()
    key_id, name, _ = line.split("\t")
    assert name == "laptop"
    assert disp("keys", "revoke", key_id, "--file", file).returncode == 0
    assert disp("keys", "list", "--file", file).stdout == ""


def test_an_answer_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b1m\u202ec\nd\te") == "a\ufffd[2Jb\ufffd\ufffd1m\ufffdc\nd\te"


def test_output_whose_reader_has_gone_is_no_traceback(
    live: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return closed.fileno()

    with open("/dev/null", "w") as closed:
        monkeypatch.setattr(sys, "stdout", Gone())
        monkeypatch.setenv("DISP_BASE_URL", live.url)
        assert cli.main(["health"]) == 1
