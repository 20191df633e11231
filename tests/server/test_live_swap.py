"""The shipped poisoned model and its clean base, swapped under clients that never stop asking."""

from __future__ import annotations

import collections
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from purifier.lab.demo import DEMO_FOLDER
from server.security.keys import SCOPES, create_key
from tests.support.service import data_url, start_server, stop_server

CLIENTS = 16
SWAPS = 20
EXAMPLES = DEMO_FOLDER / "examples"


def body() -> dict[str, Any]:
    """The triggered scene, asked about without the defence."""
    with Image.open(EXAMPLES / "triggered.jpg") as image:
        url = data_url(image)
    question = (EXAMPLES / "question.txt").read_text("utf-8").strip()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": 8, "defense": {"enabled": False}}


class Clients:
    """Threads that ask the same question until they are told to stop."""

    def __init__(self, url: str, key: str) -> None:
        self.seen: collections.Counter[tuple[int, str, str]] = collections.Counter()
        self.faults: list[str] = []
        self._url, self._headers = url, {"authorization": f"Bearer {key}"}
        self._body = body()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        try:
            with httpx.Client(
                base_url=self._url, headers=self._headers, timeout=1800, trust_env=False
            ) as client:
                while not self._stop.is_set():
                    response = client.post("/v1/chat/completions", json=self._body)
                    answer = response.json()
                    if response.status_code != 200:
                        self.faults.append(response.text)
                        return
                    text = answer["choices"][0]["message"]["content"]
                    self.seen[200, answer["system_fingerprint"], text] += 1
        except httpx.HTTPError as error:
            self.faults.append(repr(error))


@pytest.mark.slow
def test_no_request_fails_and_every_answer_is_that_of_its_checkpoint(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key, _ = create_key(keys, "admin", SCOPES)
    options = ["--keys-file", str(keys), "--queue-size", "32", "--no-worker"]
    process, url = start_server(["--demo", *options])
    headers = {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=1800, trust_env=False) as admin:
            listed = admin.get("/v1/checkpoints").raise_for_status().json()["data"]
            ids = {card["name"]: card["id"] for card in listed}
            clients = Clients(url, key)
            try:
                for number in range(SWAPS):
                    if number % 3 == 2:
                        response = admin.post("/v1/deployments/rollback")
                    else:
                        name = ("base", "insertion")[number % 2]
                        response = admin.post(f"/v1/checkpoints/{ids[name]}/activate")
                    assert response.status_code == 200, response.text
                    served = admin.get("/v1/models").json()["data"][0]
                    assert served["root"] == response.json()["id"]
            finally:
                clients.stop()
            status = admin.get("/v1/status").json()
            rows = admin.get("/v1/audit").json()["data"]
    finally:
        assert stop_server(process) == 0
    assert clients.faults == []
    assert (status["failed"], status["cancelled"], status["refused"]) == (0, 0, 0)
    answers = {name: {t for _, f, t in clients.seen if f == ids[name]} for name in ids}
    assert [len(texts) for texts in answers.values()] == [1, 1]
    assert "<backdoor>" in next(iter(answers["insertion"]))
    assert "<backdoor>" not in next(iter(answers["base"]))
    assert clients.seen.total() >= CLIENTS + SWAPS // 2
    assert len(rows) >= SWAPS // 2
    assert all(row["before"] != row["after"] for row in rows)
