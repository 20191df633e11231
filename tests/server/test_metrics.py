"""`/metrics` of a real server: what moves, what does not, who may read it, what is documented."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text

from server.app import ROUTERS, create_app
from server.config import ServerConfig, StartError
from server.engine import Engine
from server.jobs.service import JobService
from server.metrics.requests import MOST_MODELS, OTHER, UNROUTED, RequestMetrics
from server.metrics.trace import Trace
from server.security.keys import KeyRing, new_secret, record_of
from server.services import Services
from server.store.blobs import BlobStore
from server.store.database import Database
from tests.support.metrics import Reading
from tests.support.service import ROOT, Body, Service

CHAT = "/v1/chat/completions"
SECONDS = "disp_request_duration_seconds_count"


def test_an_answer_moves_what_it_should(service: Service, ask: Callable[..., Body]) -> None:
    with service.client() as client:
        before = Reading.take(client)
        # A question of its own: a defence that is still kept for another test's is not made again.
        body = ask("What moves with an answer?", max_tokens=8)
        answer = client.post(CHAT, json=body).raise_for_status().json()
        after = Reading.take(client)

    def moved(sample: str, **labels: str) -> float:
        return after.value(sample, **labels) - before.value(sample, **labels)

    model = answer["system_fingerprint"]
    assert moved(SECONDS, route=CHAT, status="200", model=model) == 1
    assert moved(SECONDS, route="/metrics", status="200", model="") == 1
    assert moved("disp_answers_total", outcome="completed") == 1
    assert moved("disp_answers_total") == 1
    assert moved("disp_answer_tokens_total") == answer["usage"]["completion_tokens"]
    assert moved("disp_denoise_steps_total") == answer["usage"]["steps"]
    assert moved("disp_denoise_step_batch_size_count") == answer["usage"]["steps"]
    assert moved("disp_denoise_step_batch_size_bucket", le="1.0") == answer["usage"]["steps"]
    assert moved("disp_masked_visual_tokens_count", level="patch") == 1
    assert moved("disp_masked_visual_tokens_sum") == answer["defense"]["masked"]
    timings = answer["defense"]["timings"]
    for part in ("queue", "encode", "saliency", "denoise"):
        assert moved(f"disp_{part}_seconds_count") == 1
        assert moved(f"disp_{part}_seconds_sum") == pytest.approx(timings[part] / 1000, abs=1e-5)
    assert moved("disp_requests_refused_total") == 0
    assert moved("disp_time_to_first_chunk_seconds_count") == 0
    assert after.value("disp_active_checkpoint_info", checkpoint=model) == 1
    assert after.value("disp_queue_depth") == after.value("disp_requests_running") == 0
    assert after.value("disp_requests_in_flight") == 1
    assert after.value("process_open_fds") > 0


def test_undefended_streamed_and_shared_answers(service: Service, ask: Callable[..., Body]) -> None:
    with service.client() as client:
        first = Reading.take(client)
        body = ask("Is it shared?", max_tokens=4)
        client.post(CHAT, json=body).raise_for_status()
        client.post(CHAT, json=body).raise_for_status()
        shared = Reading.take(client)
        client.post(CHAT, json=ask(max_tokens=4, defense={"enabled": False})).raise_for_status()
        undefended = Reading.take(client)
        client.post(CHAT, json=ask(max_tokens=8, stream=True)).raise_for_status()
        streamed = Reading.take(client)
    for name, step in {
        "disp_defences_shared_total": (1, 0),
        "disp_saliency_seconds_count": (1, 0),
        "disp_encode_seconds_count": (1, 1),
        "disp_masked_visual_tokens_count": (2, 0),
        "disp_answers_total": (2, 1),
    }.items():
        found = (
            shared.value(name) - first.value(name),
            undefended.value(name) - shared.value(name),
        )
        assert found == step, name
    name = "disp_time_to_first_chunk_seconds"
    assert streamed.value(f"{name}_count") - undefended.value(f"{name}_count") == 1
    whole = "disp_request_duration_seconds_sum"
    took = streamed.value(whole, route=CHAT) - undefended.value(whole, route=CHAT)
    assert 0 < streamed.value(f"{name}_sum") - undefended.value(f"{name}_sum") < took


def test_refused_requests_count_and_no_label_is_the_clients(
    service: Service, ask: Callable[..., Body]
) -> None:
    with service.client() as client:
        before = Reading.take(client)
        # First, for it is counted once its answer is sent, on a connection of its own.
        with service.client(None) as nobody:
            nobody.get("/v1/models")
        client.get("/secret-of-mine")
        client.get("/v1/files/file-secret-of-mine")
        client.post(CHAT, json=ask(model="secret-of-mine"))
        client.request("SECRETOFMINE", "/v1/models")
        client.post(CHAT, content=b"{", headers={"content-type": "application/json"})
        after = Reading.take(client)
        told = client.get("/metrics").text

    def moved(**labels: str) -> float:
        return after.value(SECONDS, **labels) - before.value(SECONDS, **labels)

    assert moved(route=UNROUTED, status="404") == 1
    assert moved(route=UNROUTED, status="401") == 1
    assert moved(route="/v1/files/{file_id}", status="404", model="") == 1
    assert moved(route=CHAT, status="404") == 1
    assert moved(route=CHAT, status="400") == 1
    assert moved(status="405") == 1
    assert moved() == 7
    assert "secret" not in told.lower()
    routes = [route for router in ROUTERS for route in router.routes]
    templates = {re.sub(r":\w+}", "}", r.path) for r in routes if isinstance(r, APIRoute)}
    assert after.labels(SECONDS, "route") <= templates | {UNROUTED}


def test_the_document_lists_every_metric(service: Service, ask: Callable[..., Body]) -> None:
    with service.client() as client:
        client.post(CHAT, json=ask(max_tokens=4)).raise_for_status()
        reading = Reading.take(client)
    found: dict[str, tuple[str, set[str]]] = {}
    for family in reading.families.values():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert family.samples, name
        assert family.documentation, name
        labels = {label for sample in family.samples for label in sample.labels}
        found[name] = (family.type, labels - {"le"})
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    described = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(
            r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE
        )
    }
    assert described == found
    assert f"first {MOST_MODELS}" in page
    assert len(page.splitlines()) <= 200


async def status_of(app: Any, **headers: str) -> int:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return (await client.get("/metrics", headers=headers)).status_code


@pytest.mark.parametrize(
    ("public", "host", "status"),
    [
        (False, "127.0.0.1:8000", 401),
        (True, "127.0.0.1:8000", 200),
        (True, "localhost", 200),
        (True, "evil.example", 401),
        (True, "", 401),
    ],
)
def test_metrics_are_public_only_where_it_was_said(public: bool, host: str, status: int) -> None:
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    app = create_app(engine, ServerConfig(public_metrics=public), KeyRing([]))
    assert asyncio.run(status_of(app, host=host)) == status


def test_a_key_for_metrics_reads_them_and_nothing_else() -> None:
    secret = new_secret()
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    keys = KeyRing([record_of(secret, "prometheus", ["metrics:read"])])
    app = create_app(engine, ServerConfig(), keys)
    assert asyncio.run(status_of(app, authorization=f"Bearer {secret}")) == 200


def test_public_metrics_need_a_loopback_address() -> None:
    with pytest.raises(StartError, match="metrics:read"):
        ServerConfig(host="0.0.0.0", public_metrics=True)


def test_applications_count_for_themselves() -> None:
    async def scenario() -> tuple[str, str]:
        apps = []
        for _ in range(2):
            engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
            apps.append(create_app(engine, ServerConfig(insecure_no_auth=True), None))
        transports = [httpx.ASGITransport(app=app) for app in apps]
        one, two = (
            httpx.AsyncClient(transport=item, base_url="http://127.0.0.1") for item in transports
        )
        async with one, two:
            await one.get("/v1/models")
            return (await one.get("/metrics")).text, (await two.get("/metrics")).text

    one, two = map(Reading.of, asyncio.run(scenario()))
    assert one.value(SECONDS, route="/v1/models", status="503") == 1
    assert two.value(SECONDS) == 0
    assert one.labels("disp_active_checkpoint_info", "checkpoint") == set()


def test_an_unexpected_error_counts_as_500(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    monkeypatch.setattr(engine, "serving", lambda: 1 / 0)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)

    async def scenario() -> Reading:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get("/v1/models")).status_code == 500
            monkeypatch.undo()
            return Reading.of((await client.get("/metrics")).text)

    assert asyncio.run(scenario()).value(SECONDS, route="/v1/models", status="500") == 1


def test_checkpoints_that_are_told_apart_are_few() -> None:
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry)
    for number in range(MOST_MODELS + 5):
        metrics.ended({}, 200, Trace(checkpoint=f"model-{number}"))
    reading = Reading.of(generate_latest(registry).decode())
    assert len(reading.labels(SECONDS, "model")) == MOST_MODELS + 1
    assert reading.value(SECONDS, model=OTHER) == 5
    assert reading.value(SECONDS, model="model-0") == 1


def test_a_database_that_fails_hides_nothing_else(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'disp.sqlite'}")
    database.create_tables()
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    services = Services(jobs=JobService(database, BlobStore(tmp_path / "blobs")))
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None, services)
    reading = Reading.of(app.state.metrics.text().decode())
    assert reading.value("disp_database_up") == 1
    assert reading.labels("disp_jobs", "status") >= {"queued", "running", "succeeded"}
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO gone"))
    reading = Reading.of(app.state.metrics.text().decode())
    assert reading.value("disp_database_up") == 0
    assert "disp_jobs" not in reading.families
    assert "disp_queue_depth" in reading.families
    database.close()
