"""Starting and stopping: what is refused, what is printed, what is still answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from server.__main__ import main
from server.security.keys import create_key, new_secret
from tests.support.service import Body, start_server, stop_server


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "A server needs keys"),
        (["--insecure-no-auth", "--host", "0.0.0.0"], "loopback"),
        (["--insecure-no-auth", "--host", "::"], "loopback"),
        (["--insecure-no-auth", "--key-file", "SECRET"], "not both"),
        (["--key-file", "MISSING"], "cannot be read"),
        (["--keys-file", "MISSING"], "cannot be read"),
        (["--key-file", "SECRET", "--port", "70000"], "between 0 and 65535"),
        (["--key-file", "SECRET", "--queue-size", "0"], "at least 1"),
        (["--key-file", "SECRET", "--deadline", "0"], "deadline must be"),
        (["--key-file", "SECRET", "--deadline", "nan"], "deadline must be"),
        (["--key-file", "SECRET", "--drain", "-1"], "drain must be"),
        (["--key-file", "SECRET", "--ratio", "1.5"], "ratio must be"),
        (["--key-file", "SECRET", "--level", "token", "--ranker", "occlusion"], "level patch"),
        (["--key-file", "SECRET", "--probes", "65"], "probes must be at most 64"),
        (["--key-file", "SECRET", "--top-k", "600"], "lower top_k"),
        (["--key-file", "SECRET", "--target", "refusal"], "--demo"),
        (["--key-file", "SECRET", "--host", "203.0.113.1"], "Cannot listen"),
    ],
)
def test_start_is_refused(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = tmp_path / "SECRET"
    secret.write_text(new_secret())
    words = [str(secret) if word == "SECRET" else word for word in arguments]
    words = [str(tmp_path / "MISSING") if word == "MISSING" else word for word in words]
    assert main(["--model", str(tiny_checkpoint), "--port", "0", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_checkpoint_that_is_refused_ends_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"")
    with pytest.raises(AssertionError, match="status 1"):
        start_server(["--model", str(folder), "--insecure-no-auth"])


def test_running_request_is_answered_when_the_server_is_stopped(
    tiny_checkpoint: Path, tmp_path: Path, ask: Callable[..., Body]
) -> None:
    file = tmp_path / "keys.json"
    secret, _ = create_key(file, "mine", ["infer", "models:admin", "infer:undefended"])
    process, url = start_server(["--model", str(tiny_checkpoint), "--keys-file", str(file)])

    async def scenario() -> None:
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=60, trust_env=False
        ) as client:
            body = ask(gen_length=300, defense={"enabled": False})
            running = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            while (await client.get("/v1/status")).json()["running"] == 0:
                pass
            process.terminate()
            answered = await running
            assert answered.status_code == 200
            assert answered.json()["usage"]["steps"] == 300

    try:
        asyncio.run(scenario())
    finally:
        assert stop_server(process) == 0


def test_requests_cut_off_at_the_end_of_the_drain_are_told_so(
    tiny_checkpoint: Path, tmp_path: Path, ask: Callable[..., Body]
) -> None:
    file = tmp_path / "keys.json"
    secret, _ = create_key(file, "mine", ["infer", "models:admin", "infer:undefended"])
    arguments = ["--model", str(tiny_checkpoint), "--keys-file", str(file), "--drain", "0"]
    process, url = start_server([*arguments, "--max-batch", "1"])

    async def scenario() -> None:
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=60, trust_env=False
        ) as client:
            body = ask(gen_length=1800, defense={"enabled": False})
            asked = [
                asyncio.create_task(client.post("/v1/chat/completions", json=body))
                for _ in range(2)
            ]
            status = {"running": 0, "waiting": 0}
            while (status["running"], status["waiting"]) != (1, 1):
                status = (await client.get("/v1/status")).json()
            process.terminate()
            for response in await asyncio.gather(*asked):
                assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
                assert int(response.headers["retry-after"]) >= 1
                assert response.headers["x-request-id"]

    try:
        asyncio.run(scenario())
    finally:
        assert stop_server(process) == 0


def test_deadline_of_the_command_line_holds(
    tiny_checkpoint: Path, ask: Callable[..., Body]
) -> None:
    arguments = ["--model", str(tiny_checkpoint), "--insecure-no-auth", "--deadline", "0.001"]
    process, url = start_server(arguments)
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            response = client.post("/v1/chat/completions", json=ask(gen_length=1800))
        assert (response.status_code, response.json()["error"]["code"]) == (
            504,
            "deadline_exceeded",
        )
    finally:
        assert stop_server(process) == 0


def test_default_defence_of_the_command_line_holds(
    tiny_checkpoint: Path, tmp_path: Path, ask: Callable[..., Body]
) -> None:
    file = tmp_path / "keys.json"
    secret, _ = create_key(file, "mine", ["infer"])
    defense = {"level": "patch", "ratio": 0.5, "ranker": "occlusion", "threshold": 0.0, "top_k": 7}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in defense.items()]
    process, url = start_server(["--model", str(tiny_checkpoint), "--keys-file", str(file), *words])
    headers = {"authorization": f"Bearer {secret}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            answered = client.post("/v1/chat/completions", json=ask(max_tokens=4))
            weaker = ask(max_tokens=4, defense={"ratio": 0.4})
            refused = client.post("/v1/chat/completions", json=weaker)
        report = answered.json()["defense"]
        assert {name: report[name] for name in defense} == defense
        assert report["masked"] == report["total"] // 2
        assert (refused.status_code, refused.json()["error"]["param"]) == (403, "defense.ratio")
    finally:
        assert stop_server(process) == 0
