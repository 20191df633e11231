"""The job API over a real socket: created, shown, steered; every refusal."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from purifier.mdlm.registry import checkpoint_id
from server.errors import NotFound
from server.jobs.service import report_key
from server.jobs.spec import Sources
from server.routes.access import needed
from server.store.job_tables import jobs
from server.store.jobs import APPROVAL
from tests.support.job_server import (
    JOBS,
    JobServer,
    create_job,
    data_archive,
    refusal,
)

DEMO = {"training_file": "demo"}


def test_a_job_is_created_with_every_default(server: JobServer, tiny_checkpoint: Path) -> None:
    with server.client() as client:
        response = client.post(JOBS, json=DEMO)
        made = response.json()
        assert response.status_code == 202
        assert response.headers["location"] == f"{JOBS}/{made['id']}"
        assert client.get(response.headers["location"]).json() == made
    assert made["object"] == "fine_tuning.job"
    assert made["model"] == checkpoint_id(tiny_checkpoint)
    assert (made["status"], made["stage"], made["training_file"]) == ("queued", None, "demo")
    assert (made["fine_tuned_model"], made["error"], made["finished_at"]) == (None, None, None)
    assert made["progress"] == {
        "rows_done": 0,
        "rows_total": None,
        "rows_per_second": None,
        "steps_done": None,
        "steps_total": None,
        "estimated_finish": None,
    }
    assert made["method"]["disp"]["masking"]["ratio"] == 0.1
    assert str(server.home) not in json.dumps(made)
    again = create_job(server, **{name: made[name] for name in ("method", "seed", "model")})
    assert again["method"] == made["method"]


def test_ids_become_places_on_the_server_alone(server: JobServer, tiny_checkpoint: Path) -> None:
    with server.client() as client:
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("x.zip", data_archive())}}
        file_id = client.post("/v1/files", **form).json()["id"]  # type: ignore[arg-type]
    made = create_job(server, training_file=file_id, validation_file="demo")
    sources = Sources.from_dict(server.jobs.get(made["id"]).sources)
    assert sources.model == tiny_checkpoint.resolve()
    assert sources.data == server.files.data(file_id)
    assert sources.test is not None
    assert sources.test.name == "test.json"
    assert made["method"]["disp"]["evaluation"]["target"] == "insertion"
    assert made["method"]["disp"]["evaluation"]["trigger"]["name"] == "corner_patch"


@pytest.mark.parametrize("name", ["default", "tiny"])
def test_a_model_has_several_names(server: JobServer, tiny_checkpoint: Path, name: str) -> None:
    assert create_job(server, model=name)["model"] == checkpoint_id(tiny_checkpoint)


BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no training file": ({"training_file": None}, 422, "invalid_request", "training_file"),
    "empty id": ({"training_file": ""}, 422, "invalid_request", "training_file"),
    "a path": ({"training_file": "/etc/passwd"}, 404, "file_not_found", "training_file"),
    "unknown file": ({"training_file": "file-0"}, 404, "file_not_found", "training_file"),
    "unknown set": ({"training_file": "dataset:x"}, 404, "file_not_found", "training_file"),
    "unknown test set": ({"validation_file": "x"}, 404, "file_not_found", "validation_file"),
    "unknown model": ({"model": "gpt-4o-mini"}, 404, "model_not_found", "model"),
    "unknown field": ({"hyperparameters": {}}, 422, "invalid_request", "hyperparameters"),
    "other method": ({"method": {"type": "dpo"}}, 422, "invalid_request", "method.type"),
    "no object": ({"method": "disp"}, 422, "invalid_request", "method"),
    "negative seed": ({"seed": -1}, 422, "invalid_request", "seed"),
    "seed as text": ({"seed": "1"}, 422, "invalid_request", "seed"),
    "suffix with a path": ({"suffix": "../x"}, 422, "invalid_request", "suffix"),
    "long suffix": ({"suffix": "x" * 65}, 422, "invalid_request", "suffix"),
    "metadata of numbers": ({"metadata": {"a": 1}}, 422, "invalid_request", "metadata.a"),
    "much metadata": (
        {"metadata": {str(n): "" for n in range(17)}},
        422,
        "invalid_request",
        "metadata",
    ),
}
BAD_SETTINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown": ({"masks": {}}, "invalid_request", "masks"),
    "unknown inside": ({"masking": {"rate": 0.1}}, "invalid_request", "masking.rate"),
    "a type": ({"masking": {"ratio": "0.1"}}, "invalid_request", "masking.ratio"),
    "a choice": ({"finetune": {"schedule": "x"}}, "invalid_request", "finetune.schedule"),
    "a list": ({"finetune": {"parts": ["x"]}}, "invalid_request", "finetune.parts[0]"),
    "a range": ({"masking": {"ratio": 2}}, "invalid_setting", "masking.ratio"),
    "a range of the tuning": ({"finetune": {"epochs": 0}}, "invalid_setting", "finetune.epochs"),
    "what does not fit": ({"gate": {"max_asr": 0.1}}, "invalid_setting", "gate.max_asr"),
}
for _name, (_disp, _code, _place) in BAD_SETTINGS.items():
    BAD[f"setting: {_name}"] = (
        {"method": {"type": "disp", "disp": _disp}},
        422,
        _code,
        f"method.disp.{_place}",
    )


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_by_name(server: JobServer, name: str) -> None:
    body, *expected = BAD[name]
    with server.client() as client:
        before = client.get(JOBS).json()["data"]
        response = client.post(JOBS, json=DEMO | body)
        assert list(refusal(response)) == expected
        assert expected[-1] in response.json()["error"]["message"] or expected[0] == 404
        assert client.get(JOBS).json()["data"] == before


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b"{", "application/json", (400, "invalid_body", None)),
        (b"[]", "application/json", (422, "invalid_request", None)),
        (b"{}", "application/json", (422, "invalid_request", "training_file")),
        (b"{}", "text/plain", (415, "unsupported_media_type", None)),
    ],
)
def test_a_bad_body_is_refused(
    server: JobServer, content: bytes, content_type: str, expected: tuple[int, str, str | None]
) -> None:
    with server.client() as client:
        sent = client.post(JOBS, content=content, headers={"content-type": content_type})
    assert refusal(sent) == expected


def test_activating_without_asking_needs_a_scope(server: JobServer) -> None:
    disp = {"activate": "auto", "gate": {"max_drift": 0.1}}
    body = {"method": {"type": "disp", "disp": disp}}
    with server.client() as client:
        refused = client.post(JOBS, json=DEMO | body)
    assert refusal(refused) == (403, "scope_missing", "method.disp.activate")
    assert create_job(server, "admin", **body)["method"]["disp"]["activate"] == "auto"


def test_an_idempotency_key_finds_the_job_again(server: JobServer) -> None:
    with server.client() as client, server.client("bob") as bob:
        headers = {"idempotency-key": "a key"}
        first = client.post(JOBS, json=DEMO, headers=headers)
        second = client.post(JOBS, json=DEMO | {"seed": 0}, headers=headers)
        assert (second.status_code, second.json()) == (202, first.json())
        assert second.headers["location"] == first.headers["location"]
        other = client.post(JOBS, json=DEMO | {"seed": 1}, headers=headers)
        assert refusal(other) == (422, "idempotency_conflict", None)
        assert bob.post(JOBS, json=DEMO, headers=headers).json()["id"] != first.json()["id"]
        for bad in ("", "x" * 256):
            sent = client.post(JOBS, json=DEMO, headers={"idempotency-key": bad})
            assert refusal(sent) == (422, "invalid_request", "Idempotency-Key")


def test_one_idempotency_key_sent_at_once_makes_one_job(server: JobServer) -> None:
    ids: list[str] = []

    def send() -> None:
        with server.client() as client:
            sent = client.post(JOBS, json=DEMO, headers={"idempotency-key": "at once"})
            ids.append(sent.raise_for_status().json()["id"])

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ids) == 6
    assert len(set(ids)) == 1


def test_what_the_openai_package_repeats_is_made_once(server: JobServer) -> None:
    body = DEMO | {"seed": 4711}
    first, again = ({"x-stainless-retry-count": count} for count in ("0", "1"))
    with server.client() as client:
        made = client.post(JOBS, json=body, headers=first).json()["id"]
        repeated = client.post(JOBS, json=body, headers=again).json()["id"]
        asked_twice = client.post(JOBS, json=body, headers=first).json()["id"]
        other = client.post(JOBS, json=body | {"seed": 4712}, headers=again).json()["id"]
    with server.client("bob") as bob:
        elsewhere = bob.post(JOBS, json=body, headers=again).json()["id"]
    assert made == repeated
    assert len({made, asked_twice, other, elsewhere}) == 4


def test_jobs_are_listed_in_pages_for_their_owner(server: JobServer) -> None:
    mine = [create_job(server, "bob", seed=n)["id"] for n in range(3)]
    with server.client("bob") as bob:
        page = bob.get(JOBS, params={"limit": 2}).json()
        assert [job["id"] for job in page["data"]] == mine[:0:-1]
        assert page["has_more"] is True
        rest = bob.get(JOBS, params={"limit": 100, "after": mine[1]}).json()
        assert rest["data"][0]["id"] == mine[0]
        assert rest["has_more"] is False
    with server.client("admin") as admin:
        assert mine[0] in {
            job["id"] for job in admin.get(JOBS, params={"limit": 100}).json()["data"]
        }


def test_a_job_of_another_key_is_not_there(server: JobServer) -> None:
    job = create_job(server, "bob")["id"]
    routes = [
        ("GET", f"{JOBS}/{job}"),
        ("GET", f"{JOBS}?after={job}"),
        ("GET", f"{JOBS}/{job}/events"),
        ("GET", f"{JOBS}/{job}/events?stream=true"),
        ("GET", f"{JOBS}/{job}/checkpoints"),
        ("GET", f"/v1/jobs/{job}/report"),
        ("POST", f"{JOBS}/{job}/cancel"),
        ("POST", f"{JOBS}/{job}/pause"),
        ("POST", f"{JOBS}/{job}/resume"),
    ]
    with server.client("alice") as alice, server.client("bob") as bob:
        for method, path in routes:
            assert refusal(alice.request(method, path)) == (404, "job_not_found", None)
            nobody = path.replace(job, "ftjob-0")
            assert refusal(alice.request(method, nobody)) == (404, "job_not_found", None)
        assert bob.get(f"{JOBS}/{job}").json()["status"] == "queued"
    with server.client("admin") as admin:
        assert admin.get(f"{JOBS}/{job}").json()["id"] == job


def test_a_file_of_another_key_is_not_there(server: JobServer) -> None:
    with server.client("bob") as bob, server.client("alice") as alice:
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("x.zip", data_archive())}}
        file_id = bob.post("/v1/files", **form).json()["id"]  # type: ignore[arg-type]
        for field in ("training_file", "validation_file"):
            sent = alice.post(JOBS, json=DEMO | {field: file_id})
            assert refusal(sent) == (404, "file_not_found", field)


def test_a_job_is_paused_resumed_and_cancelled(server: JobServer) -> None:
    job = create_job(server)["id"]
    with server.client() as client:
        for action, status in [("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")]:
            done = client.post(f"{JOBS}/{job}/{action}").raise_for_status().json()
            assert (done["id"], done["status"]) == (job, status)
        for action in ("cancel", "pause", "resume"):
            assert refusal(client.post(f"{JOBS}/{job}/{action}"))[:2] == (409, "job_state_conflict")
        assert client.get(f"{JOBS}/{job}").json()["finished_at"] is not None


def test_who_only_reads_changes_nothing(server: JobServer) -> None:
    job = create_job(server)["id"]
    with server.client("reader") as reader:
        assert refusal(reader.post(JOBS, json=DEMO)) == (403, "scope_missing", None)
        for action in ("cancel", "pause", "resume", "approve"):
            sent = reader.post(f"{JOBS}/{job}/{action}")
            assert refusal(sent) == (403, "scope_missing", None)


def test_approval_is_an_admins_and_is_written_down(server: JobServer) -> None:
    job = create_job(server)["id"]
    with server.client() as client, server.client("admin") as admin:
        assert refusal(client.post(f"{JOBS}/{job}/approve"))[:2] == (403, "scope_missing")
        assert refusal(admin.post(f"{JOBS}/{job}/approve"))[:2] == (409, "job_state_conflict")
        assert server.services.audit is not None
        before = server.services.audit.verify().rows
        waits = {"status": "paused", "stage": APPROVAL, "result": "tiny-2@sha256:0"}
        with server.files._database.transaction() as connection:
            connection.execute(jobs.update().where(jobs.c.id == job).values(waits))
        done = admin.post(f"{JOBS}/{job}/approve", headers={"x-request-id": "r-1"})
        assert done.json()["fine_tuned_model"] == "tiny-2@sha256:0"
    last = server.services.audit.list()[0]
    assert server.services.audit.verify().rows == before + 1
    assert (last.action, last.object, last.after) == ("approve_job", job, "tiny-2@sha256:0")
    assert (last.key_id, last.request_id) == (server.key_ids["admin"], "r-1")


def test_the_checkpoint_of_a_job_is_shown(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create_job(server)["id"]
    path = f"{JOBS}/{job}/checkpoints"
    with server.client() as client:
        assert client.get(path).json()["data"] == []
        made = server.checkpoints.list()[0].id
        record = replace(server.jobs.get(job), result=made)
        monkeypatch.setattr(server.jobs, "get", lambda job_id: record)
        listed = client.get(path).json()
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (made, made, False)
    [shown] = listed["data"]
    assert (shown["fine_tuned_model_checkpoint"], shown["fine_tuning_job_id"]) == (made, job)
    assert (shown["state"], shown["gate_passed"], shown["evaluation"]) == ("active", None, {})


def test_a_report_is_served_closed(server: JobServer) -> None:
    job = create_job(server)["id"]
    path = f"/v1/jobs/{job}/report"
    with server.client() as client:
        assert refusal(client.get(path))[:2] == (409, "job_state_conflict")
        server.store.write(report_key(job, "html"), b"<h1>Report</h1><script>alert(1)</script>")
        server.store.write(report_key(job, "json"), b'{"job": 1}')
        page = client.get(path, headers={"accept": "text/html,*/*"})
        assert page.text.startswith("<h1>")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for response in (page, client.get(path), client.get(path, params={"format": "json"})):
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; img-src data:")
            assert policy.endswith("sandbox")
            assert "script-src" not in policy
            assert response.headers["x-content-type-options"] == "nosniff"
        assert client.get(path).json() == {"job": 1}
        asked = client.get(path, params={"format": "html"}, headers={"accept": "application/json"})
        assert asked.text == page.text
        bad = client.get(path, params={"format": "pdf"})
        assert refusal(bad) == (422, "invalid_request", "format")


def test_a_server_without_a_data_folder_says_so() -> None:
    with pytest.raises(NotFound, match="data folder"):
        needed(None)
