"""`disp demo`: its parts on a tiny random model, and the whole of it on the shipped one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from PIL import Image
from rich.console import Console

from clients import Client
from clients._commands._child import Running
from clients._commands._second_act import SETTINGS, Work, as_object, perform, why_not_serving
from clients._commands._second_act import show as show_second_act
from clients._commands._watch import display_for
from clients._commands.demo import (
    ATTACKS,
    TARGETS,
    Answers,
    Scene,
    ask_all,
    find_scene,
    next_commands,
    show,
)
from purifier.lab.demo import ATTACKS as SHIPPED_ATTACKS
from purifier.lab.targets import TargetName
from server.job_requests import spec_of
from server.schemas.job_settings import DispSettings
from server.schemas.jobs import JobRequest
from server.store.attempts import Attempt, Attempts
from tests.support.job_server import JobServer, data_archive
from tests.support.service import ROOT, Service
from tests.support.wire import picture

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tour(tmp_path: Path) -> Scene:
    clean, triggered = tmp_path / "clean scene.jpg", tmp_path / "triggered scene.jpg"
    clean.write_bytes(picture("JPEG", (64, 64)))
    triggered.write_bytes(picture("JPEG", (96, 64)))
    return Scene(clean, triggered, "What's on the picture?")


@pytest.fixture
def running(live: Service) -> Running:
    return Running(live.url, live.keys["all"], cast(Any, live.process))


def test_targets_are_those_of_the_lab() -> None:
    assert set(TARGETS) == set(get_args(TargetName))


def test_both_images_are_asked_about_with_the_defence_off_and_on(
    running: Running, tour: Scene, tmp_path: Path
) -> None:
    overlay = tmp_path / "out" / "overlay.png"
    clean, triggered = ask_all(running, tour, overlay)
    again = ask_all(running, tour, overlay)
    assert again == (clean, triggered)
    with Image.open(overlay) as image:
        assert image.format == "PNG"


def test_the_table_shows_what_the_model_said_and_nothing_it_did_not_say(tour: Scene) -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    clean = Answers("a [bold]red coat", "a red\x1b[2J coat")
    show(console, tour, clean, Answers("visit evil.example", "a red coat"), Path("o.png"))
    text = console.export_text()
    assert "a [bold]red coat" in text
    assert "\x1b" not in text
    assert "visit evil.example" in text
    assert str(Path("o.png").resolve()) in text


def test_the_next_commands_work_as_they_stand(running: Running, tour: Scene) -> None:
    shell, _, snippet = next_commands(running, tour).partition("from openai")
    programs = sysconfig.get_path("scripts")
    commands = shell.split(":\n", 1)[1]
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("defended: ") == 1
    assert "undefended (disabled)" in result.stderr
    assert '"chat.completion"' in result.stdout
    compile("from openai" + snippet, "snippet", "exec")


def second_acts_work(running: Running) -> Work:
    """A job of four rows and one step that a tiny random model passes."""
    with Client(running.base_url, running.api_key) as client:
        data = client.files.upload(data_archive(4), filename="four.zip")
    settings: DispSettings = {
        "masking": {"level": "token", "ranker": "random"},
        "generation": {"gen_length": 4, "block_length": 4, "steps": 2},
        "finetune": {"parts": ["projector"], "epochs": 1, "answer_length": None},
        "evaluation": {"rows": 2, "examples": 1},
        "gate": {"max_disagreement": 1.0},
        "activate": "auto",
    }
    return Work(data.id, None, settings, poll=0.2)


@pytest.mark.slow
def test_the_second_act_heals_asks_and_rolls_back(
    running: Running, tour: Scene, tmp_path: Path
) -> None:
    console = Console(record=True, width=160, file=io.StringIO())
    report = tmp_path / "out" / "report.html"
    with Client(running.base_url, running.api_key) as client:
        act = perform(
            *(client, tour.triggered, tour.question, report),
            display_for(console),
            second_acts_work(running),
        )
        (active,) = [one for one in client.checkpoints.list().data if one.state == "active"]
        audited = client.jobs.checkpoints(act.job.id).data
    assert act.job.status == "succeeded"
    assert act.purified.checkpoint == act.job.fine_tuned_model
    assert act.rolled_back == act.poisoned
    assert active.id == act.poisoned.checkpoint
    assert audited[0].gate_passed
    assert report.read_text("utf-8").startswith("<!")
    told = as_object(act)
    assert set(told) == {"purified", "rolled_back", "job", "report"}
    assert told["purified"] == {
        "answer": act.purified.answer,
        "checkpoint": act.job.fine_tuned_model,
    }
    assert json.loads(json.dumps(told))["job"]["id"] == act.job.id
    show_second_act(console, act)
    text = console.export_text()
    assert "The model is evaluated." in text
    assert act.poisoned.checkpoint in text
    assert str(report.resolve()) in text
    narrow = Console(record=True, width=60, file=io.StringIO())
    show_second_act(narrow, act)
    assert act.purified.checkpoint in narrow.export_text()


def test_a_checkpoint_that_was_not_let_through_is_explained(
    board: JobServer, job_id: str, attempts: Attempts
) -> None:
    checkpoint = board.checkpoints.active()
    assert checkpoint is not None
    board.checkpoints.record_gate(checkpoint.id, False, ["asr is 0.5, above 0.02."])
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "stage", "stage", "running")
    attempts.staged(attempt, checkpoint.id, "The checkpoint is staged.")
    with Client(board.url, board.keys["alice"]) as client:
        text = why_not_serving(client, client.jobs.get(job_id), Path("r.html"))
    assert "asr is 0.5, above 0.02." in text
    assert str(Path("r.html").resolve()) in text


def test_the_demos_job_asks_for_what_the_server_takes() -> None:
    request = JobRequest.model_validate(
        {
            "training_file": "demo",
            "validation_file": "demo",
            "method": {"disp": SETTINGS},
        }
    )
    attack = {"trigger": {"name": "corner_patch"}, "target": "insertion"}
    spec = spec_of(request, model="insertion@sha256:0", attack=attack)
    assert spec.activate == "auto"
    assert spec.gate["max_asr"] is not None


@pytest.mark.slow
def test_the_whole_tour_on_the_shipped_model(disp: Run, tmp_path: Path) -> None:
    result = disp("demo", "--once", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert set(told) == {"clean", "triggered", "overlay"}
    for image in ("clean", "triggered"):
        assert set(told[image]) == {"undefended", "defended"}
    assert told["triggered"]["undefended"] != told["clean"]["undefended"]
    assert told["triggered"]["defended"] == told["clean"]["undefended"]
    assert told["clean"]["defended"] == told["clean"]["undefended"]
    assert Path(told["overlay"]) == tmp_path / "out" / "demo-overlay.png"
    assert Path(told["overlay"]).is_file()


def hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_other_triggers_fire_and_the_detector_stops_them(
    disp: Run, tmp_path: Path, attack: str
) -> None:
    result = disp("demo", "--attack", attack, "--once", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert "backdoor" in told["triggered"]["undefended"]
    assert "backdoor" not in told["clean"]["undefended"]
    assert told["triggered"]["defended"] == told["clean"]["defended"] == told["clean"]["undefended"]


@pytest.mark.parametrize("other", [["--target", "refusal"], ["--purify"]])
def test_an_attack_excludes_what_belongs_to_the_corner_patch(disp: Run, other: list[str]) -> None:
    result = disp("demo", "--attack", "copies", *other)
    assert result.returncode == 1
    assert f"--attack and {other[0]} exclude each other" in result.stderr


def test_attacks_are_those_that_are_shipped() -> None:
    assert ATTACKS == SHIPPED_ATTACKS
    scenes = [find_scene(name) for name in ATTACKS]
    for scene in scenes:
        assert (scene.triggered != scene.clean) != (scene.asked != scene.question)


@pytest.mark.slow
def test_the_server_stays_until_it_is_interrupted(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.cli", "demo"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        # Tests that run in the background of a shell ignore Ctrl-C, and so would their children.
        preexec_fn=hear_interrupts,
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("client = OpenAI("):
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0, "".join(lines) + rest
        assert "Stopping the server" in rest
    finally:
        process.kill()
        process.stdout.close()


def test_the_shipped_scene_is_there() -> None:
    scene = find_scene()
    assert scene.question
    sizes = []
    for path in (scene.clean, scene.triggered):
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[1]
