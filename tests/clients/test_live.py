"""Both clients against the real server with a tiny random model."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import clients
from clients import AsyncClient, Client
from tests.support.service import Service
from tests.support.wire import picture


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, live: Service) -> Callable[..., Any]:
    """Calls a method of a client of either kind on the real server."""

    def run(method: str, *args: Any, key: str = "all", **kwargs: Any) -> Any:
        secret = live.keys.get(key, key)
        if request.param == "sync":
            with Client(live.url, secret) as client:
                return getattr(client, method)(*args, **kwargs)

        async def talk() -> Any:
            async with AsyncClient(live.url, secret) as client:
                awaitable: Awaitable[Any] = getattr(client, method)(*args, **kwargs)
                return await awaitable

        return asyncio.run(talk())

    return run


def test_the_server_is_up_and_ready(ask: Callable[..., Any]) -> None:
    assert ask("health").status == "ok"
    assert ask("ready") is True
    assert ask("status").state == "ready"
    assert "default" in [card.id for card in ask("models")]


def test_a_defended_answer_brings_its_evidence(ask: Callable[..., Any], scene: Path) -> None:
    answer = ask(
        "answer",
        scene,
        "What is it?",
        defense={"ratio": 0.25, "threshold": 0.0},
        return_saliency=True,
        gen_length=4,
    )
    assert answer.defense.applied
    assert answer.defense.ratio == 0.25
    assert 0 < answer.defense.masked < answer.defense.total
    assert answer.checkpoint == answer.response.system_fingerprint
    (grid,) = answer.saliency
    assert (len(grid.saliency), len(grid.saliency[0])) == (grid.rows, grid.columns)
    png = clients.draw_overlay([scene.read_bytes()], [grid.saliency], [grid.masked])
    assert png.startswith(b"\x89PNG")


def test_several_images_and_none(ask: Callable[..., Any], scene: Path) -> None:
    two = ask(
        "answer",
        [scene, picture("JPEG", (64, 64))],
        "Which is red?",
        return_saliency=True,
        gen_length=4,
    )
    assert len(two.saliency) == 2
    assert not ask("answer", None, "Hello?", gen_length=4).defense.applied


def test_undefended_only_with_a_key_that_may(ask: Callable[..., Any], scene: Path) -> None:
    answer = ask("answer", scene, "What is it?", defense=False, gen_length=4)
    assert not answer.defense.applied
    assert answer.defense.reason == "disabled"
    with pytest.raises(clients.Forbidden) as caught:
        ask("answer", scene, "What is it?", key="infer", defense=False)
    assert caught.value.code == "scope_missing"
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("change", "kind", "param"),
    [
        ({"key": "sk-wrong"}, clients.Unauthorized, None),
        ({"model": "other"}, clients.NotFound, "model"),
        ({"defense": {"ratio": 2.0}}, clients.Unprocessable, "defense.ratio"),
        ({"gen_length": 6, "block_length": 4}, clients.Unprocessable, "block_length"),
    ],
)
def test_what_the_server_refuses_becomes_its_error(
    ask: Callable[..., Any],
    scene: Path,
    change: dict[str, Any],
    kind: type[clients.StatusError],
    param: str | None,
) -> None:
    with pytest.raises(kind) as caught:
        ask("answer", scene, "What is it?", **change)
    assert type(caught.value) is kind
    assert caught.value.param == param
    assert caught.value.code is not None


def test_the_same_seed_gives_the_same_answer(ask: Callable[..., Any], scene: Path) -> None:
    settings: dict[str, Any] = {"gen_length": 8, "temperature": 1.0, "seed": 5}
    first, second = (ask("answer", scene, "What is it?", **settings) for _ in range(2))
    assert first.text == second.text


def test_where_nobody_listens_the_error_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", max_retries=0) as client,
        pytest.raises(clients.ConnectionFailed, match="disp serve"),
    ):
        client.health()
