"""Checkpoints over HTTP: activation, rollback, refusals, and what a restart serves."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from purifier.mdlm.delta import write_delta
from purifier.mdlm.registry import base_hash, load_mdlm
from server.security.keys import SCOPES, create_key
from server.store.audit import AuditLog
from server.store.checkpoints import CheckpointStore
from server.store.database import Database, open_database
from server.store.deployments import Deployments
from server.store.home import Home
from tests.support.metrics import Reading
from tests.support.service import Body, start_server, stop_server

PATIENCE = 60


@dataclass(frozen=True)
class Place:
    """A data folder with a base, which is started, and deltas on it, which are staged.

    Attributes:
        ids: By name: `tiny`, `first`, `second`, `failed` (whose gate failed) and `broken`
            (whose numbers are so large that its answers have none).
    """

    home: Home
    model: Path
    database: Database
    store: CheckpointStore
    ids: dict[str, str]
    keys: dict[str, str]

    def start(self, *options: str) -> tuple[Any, str]:
        words = ["--model", str(self.model), "--keys-file", str(self.home.root / "keys.json")]
        return start_server([*words, "--no-worker", *options], self.home.root)

    def client(self, url: str, key: str = "all") -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[key]}"}
        return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


def make_place(folder: Path, tiny_checkpoint: Path) -> Place:
    home = Home.at(folder / "data").create()
    model = folder / "models" / "tiny"
    shutil.copytree(tiny_checkpoint, model)
    weights = load_mdlm(model).published_weights()
    name, generator = "model.mm_projector.0.weight", torch.Generator().manual_seed(0)
    database = open_database(home.database_url)
    store = CheckpointStore(database, home.checkpoints)
    ids = {"tiny": store.register(model).id}
    for delta in ("first", "second", "failed", "broken"):
        change = torch.randn(weights[name].shape, generator=generator)
        write_delta(
            model.parent / delta,
            base="tiny",
            base_sha256=base_hash(model),
            projector={name: change * (1e38 if delta == "broken" else 1.0)},
            adapter={},
            lora_scale=1.0,
            details={},
        )
        ids[delta] = store.stage(model.parent / delta, base=ids["tiny"], parent=ids["tiny"]).id
    store.record_gate(ids["failed"], False, ["The utility fell."])
    file = home.root / "keys.json"
    keys = {"all": create_key(file, "all", SCOPES)[0]}
    keys["infer"] = create_key(file, "infer", ["infer", "jobs:read"])[0]
    return Place(home, model, database, store, ids, keys)


@pytest.fixture(scope="module")
def place(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = make_place(tmp_path_factory.mktemp("place"), tiny_checkpoint)
    yield place
    place.database.close()


@pytest.fixture(scope="module")
def url(place: Place) -> Iterator[str]:
    process, url = place.start()
    yield url
    stop_server(process)


@pytest.fixture
def admin(place: Place, url: str) -> Iterator[httpx.Client]:
    """A client of a server that serves the model it was started with."""
    with place.client(url) as client:
        client.post(f"/v1/checkpoints/{place.ids['tiny']}/activate").raise_for_status()
        yield client


def activate(client: httpx.Client, checkpoint: str, **body: Any) -> httpx.Response:
    return client.post(f"/v1/checkpoints/{checkpoint}/activate", json=body or None)


def fingerprint(client: httpx.Client, ask: Callable[..., Body]) -> str:
    answer = client.post("/v1/chat/completions", json=ask(max_tokens=4)).raise_for_status().json()
    assert answer["defense"]["checkpoint"] == answer["system_fingerprint"]
    return str(answer["system_fingerprint"])


def test_activation_moves_answers_models_and_states(
    admin: httpx.Client, place: Place, ask: Callable[..., Body]
) -> None:
    response = activate(admin, place.ids["first"])
    assert response.status_code == 200
    assert response.json()["state"] == "active"
    assert response.json()["parent"] == place.ids["tiny"]
    assert fingerprint(admin, ask) == place.ids["first"]
    cards = {card["id"]: card for card in admin.get("/v1/models").json()["data"]}
    assert set(cards) == {"default", place.ids["first"]}
    assert cards["default"]["root"] == place.ids["first"]
    assert cards["default"]["parent"] == place.ids["tiny"]
    states = {c["name"]: c["state"] for c in admin.get("/v1/checkpoints").json()["data"]}
    assert (states["first"], states["tiny"]) == ("active", "previous")
    one = admin.get(f"/v1/checkpoints/{place.ids['first']}").json()
    assert (one["name"], one["gate"]) == ("first", None)


def test_the_server_answers_while_the_database_is_locked(
    admin: httpx.Client, place: Place, url: str, ask: Callable[..., Body]
) -> None:
    """The activation waits for the lock beside the engine; nobody else waits for either."""
    tiny, first = place.ids["tiny"], place.ids["first"]
    for checkpoint in (first, tiny):
        activate(admin, checkpoint).raise_for_status()
    codes: list[int] = []
    with place.client(url) as other:
        thread = threading.Thread(target=lambda: codes.append(activate(other, first).status_code))
        with closing(sqlite3.connect(place.home.root / "disp.sqlite", timeout=60)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            thread.start()
            assert [fingerprint(admin, ask) for _ in range(8)] == [tiny] * 8
            for path in ("/v1/checkpoints", "/v1/models", "/v1/status", "/v1/fine_tuning/jobs"):
                assert admin.get(path).status_code == 200
            assert codes == []
            holder.rollback()
        thread.join()
    assert codes == [200]
    assert fingerprint(admin, ask) == first


def test_swaps_show_in_the_metrics(admin: httpx.Client, place: Place) -> None:
    before = Reading.take(admin)
    activate(admin, place.ids["first"]).raise_for_status()
    assert activate(admin, place.ids["broken"]).status_code == 409
    after = Reading.take(admin)
    for sample, labels, expected in (
        ("disp_swaps_total", {"outcome": "done"}, 1),
        ("disp_swaps_total", {"outcome": "failed"}, 1),
        ("disp_swap_seconds_count", {}, 1),
    ):
        assert after.value(sample, **labels) - before.value(sample, **labels) == expected
    told = after.labels("disp_active_checkpoint_info", "checkpoint")
    assert told == {place.ids["first"]}


def test_rollback_goes_back_and_forth_and_is_written_down(
    admin: httpx.Client, place: Place, ask: Callable[..., Body]
) -> None:
    activate(admin, place.ids["second"]).raise_for_status()
    last = admin.get("/v1/audit", params={"limit": 1000}).json()["data"][-1]["number"]
    for name in ("tiny", "second"):
        response = admin.post("/v1/deployments/rollback", headers={"x-request-id": f"back-{name}"})
        assert response.json()["id"] == place.ids[name]
        assert fingerprint(admin, ask) == place.ids[name]
    page = admin.get("/v1/audit", params={"after": last, "limit": 1}).json()
    assert page["has_more"]
    rows = admin.get("/v1/audit", params={"after": last}).json()["data"]
    assert [(row["action"], row["actor"], row["request_id"]) for row in rows] == [
        ("rollback", "all", "back-tiny"),
        ("rollback", "all", "back-second"),
    ]
    assert rows[1]["before"] == rows[0]["after"] == rows[0]["target"] == place.ids["tiny"]
    assert all(row["key_id"].startswith("key-") for row in rows)
    assert AuditLog(place.database).verify().problem is None


def test_activating_what_serves_changes_nothing(admin: httpx.Client, place: Place) -> None:
    before = admin.get("/v1/audit", params={"limit": 1000}).json()["data"]
    assert activate(admin, place.ids["tiny"]).json()["state"] == "active"
    assert admin.get("/v1/audit", params={"limit": 1000}).json()["data"] == before


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("absent", 404, "checkpoint_not_found"),
        ("failed", 409, "gate_failed"),
        ("broken", 409, "canary_failed"),
    ],
)
def test_refusal_leaves_everything_as_it_was(
    admin: httpx.Client, place: Place, ask: Callable[..., Body], name: str, status: int, code: str
) -> None:
    response = activate(admin, place.ids.get(name, "absent@sha256:000000000000"))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers["x-should-retry"] == "false"
    assert fingerprint(admin, ask) == place.ids["tiny"]
    active = admin.get(f"/v1/checkpoints/{place.ids['tiny']}").json()
    assert active["state"] == "active"


def test_force_passes_a_failed_gate_and_is_written_down(
    admin: httpx.Client, place: Place, ask: Callable[..., Body]
) -> None:
    assert activate(admin, place.ids["failed"], force=True).status_code == 200
    assert fingerprint(admin, ask) == place.ids["failed"]
    row = admin.get("/v1/audit", params={"limit": 1000}).json()["data"][-1]
    assert (row["action"], row["after"]) == ("force", place.ids["failed"])


def test_a_retired_checkpoint_is_deleted_and_written_down(
    admin: httpx.Client, place: Place, ask: Callable[..., Body], tmp_path: Path
) -> None:
    lone = tmp_path / "lone"
    shutil.copytree(place.store.path(place.ids["first"]), lone)
    manifest = json.loads((lone / "delta.json").read_text())
    (lone / "delta.json").write_text(json.dumps(manifest | {"note": "its own content"}))
    record = place.store.stage(lone, base=place.ids["tiny"], parent=place.ids["tiny"])
    address = f"/v1/checkpoints/{record.id}"
    for name, state in ((record.id, "active"), (place.ids["second"], "previous")):
        activate(admin, name).raise_for_status()
        assert admin.get(address).json()["state"] == state
        refused = admin.delete(address)
        assert (refused.status_code, error_code(refused)) == (409, "checkpoint_conflict")
    assert error_code(admin.delete(f"/v1/checkpoints/{place.ids['tiny']}")) == "checkpoint_conflict"
    activate(admin, place.ids["tiny"]).raise_for_status()
    alive = Deployments(place.database).alive
    wait_for(lambda: all(server.checkpoint != record.id for server in alive()))
    gone = admin.delete(address, headers={"x-request-id": "gone-1"}).raise_for_status().json()
    assert gone == {"id": record.id, "object": "checkpoint", "deleted": True}
    assert not record.path.parent.exists()
    assert place.model.is_dir()
    row = admin.get("/v1/audit", params={"limit": 1000}).json()["data"][-1]
    assert (row["action"], row["target"], row["before"]) == (
        "delete_checkpoint",
        record.id,
        "retired",
    )
    assert (row["actor"], row["request_id"]) == ("all", "gone-1")
    for response in (admin.delete(address), admin.get(address), activate(admin, record.id)):
        assert (response.status_code, error_code(response)) == (404, "checkpoint_not_found")
    assert fingerprint(admin, ask) == place.ids["tiny"]
    assert admin.post("/v1/deployments/rollback").json()["id"] == place.ids["second"]


def error_code(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


def test_altered_file_is_refused_by_its_name(admin: httpx.Client, place: Place) -> None:
    file = place.store.path(place.ids["second"]) / "projector.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(altered(content))
        response = activate(admin, place.ids["second"])
    finally:
        file.write_bytes(content)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "checkpoint_damaged")
    assert "projector.safetensors" in response.json()["error"]["message"]
    assert str(place.home.root) not in response.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/checkpoints/x/activate"),
        ("POST", "/v1/deployments/rollback"),
        ("DELETE", "/v1/checkpoints/x"),
        ("GET", "/v1/audit"),
    ],
)
def test_scope_is_needed(place: Place, url: str, method: str, path: str) -> None:
    with place.client(url, "infer") as client:
        response = client.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "scope_missing")
        assert client.get("/v1/checkpoints").status_code == 200


def test_other_processes_and_servers_are_answered(
    admin: httpx.Client, place: Place, ask: Callable[..., Body]
) -> None:
    """A row asks; one server takes it, and another server of the deployment follows."""
    deployments = Deployments(place.database)
    process, other_url = place.start()
    try:
        wait_for(lambda: len(deployments.alive(place.ids["tiny"])) == 2)
        for name, state in (("first", "done"), ("broken", "failed")):
            request = deployments.request(place.ids[name], requested_by="job 1")
            assert request is not None
            wait_for(lambda request=request: ended(deployments, request.id) is not None)  # type: ignore[misc]
            assert ended(deployments, request.id) == state
        with place.client(other_url) as other:
            for client in (admin, other):
                wait_for(lambda client=client: fingerprint(client, ask) == place.ids["first"])  # type: ignore[misc]
    finally:
        assert stop_server(process) == 0
    assert len(deployments.alive(place.ids["tiny"])) == 1
    row = admin.get("/v1/audit", params={"limit": 1000}).json()["data"][-1]
    assert (row["actor"], row["key_id"], row["after"]) == ("job 1", None, place.ids["first"])


def altered(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def ended(deployments: Deployments, request: str) -> str | None:
    found = deployments.get(request)
    assert found is not None
    return found.state if found.state in ("done", "failed") else None


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline


def test_killed_server_serves_what_was_activated_and_nothing_else(
    tiny_checkpoint: Path,
    tmp_path: Path,
    ask: Callable[..., Body],
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = make_place(tmp_path, tiny_checkpoint)
    process, url = place.start()
    with place.client(url) as client:
        activate(client, place.ids["second"]).raise_for_status()
    process.kill()
    stop_server(process)
    process, url = place.start("--swap", "in-place")
    with place.client(url) as client:
        assert fingerprint(client, ask) == place.ids["second"]
        assert activate(client, place.ids["broken"]).json()["error"]["code"] == "canary_failed"
        assert fingerprint(client, ask) == place.ids["second"]
        activate(client, place.ids["first"]).raise_for_status()
        assert fingerprint(client, ask) == place.ids["first"]
    assert stop_server(process) == 0
    file = place.store.path(place.ids["first"]) / "projector.safetensors"
    file.write_bytes(altered(file.read_bytes()))
    capfd.readouterr()
    with pytest.raises(AssertionError, match="status 1"):
        place.start()
    assert "first: projector.safetensors was altered or damaged" in capfd.readouterr().err
    place.database.close()
