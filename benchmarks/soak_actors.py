"""Who makes the mixed load: those who ask, leave, crowd in, send nonsense, and swap."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.load_questions import Question
from benchmarks.served import CHAT, Served

MOST_FAULTS = 50
_LEAVES_WITHIN = 2.0
_BETWEEN_CROWDS = 15.0
_BETWEEN_SWAPS = 4.0
_BETWEEN_NONSENSE = 0.7
_LONGEST_WAIT = 10.0
_REFUSALS = range(400, 430)


class Fault(Exception):
    """Something that must not happen."""


@dataclass
class Ledger:
    """What happened.

    Attributes:
        counts: Ends of requests and other events, by name.
        answered_by: Checkpoint -> answers.
        faults: What must not happen.
    """

    counts: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        self.counts["faults"] += 1
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(text)


@dataclass(frozen=True)
class Told:
    """An answer, streamed or not, in what must not depend on the company."""

    checkpoint: str
    text: str
    finish_reason: str


@dataclass(frozen=True)
class Stage:
    """What every actor works with.

    Attributes:
        server: Is asked.
        questions: What may be asked.
        nonsense: What must be refused, by what is wrong with it.
        expected: Checkpoint -> the answers to the questions, as an idle server gave them.
        ledger: Where it is written down.
        until: Monotonic seconds of the end.
        seed: Of all choices; every actor has its own stream.
        crowd: Requests that come at once, now and then.
    """

    server: Served
    questions: Sequence[Question]
    nonsense: Mapping[str, bytes]
    expected: Mapping[str, Sequence[Told]]
    ledger: Ledger
    until: float
    seed: int
    crowd: int

    def turns(self) -> Iterator[None]:
        """An actor's turns: one in any case, then until the time is over."""
        yield
        while time.monotonic() < self.until:
            yield

    def choices(self, *actor: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *actor])

    def check(self, number: int, told: Told) -> None:
        """Compares an answer with the one of the checkpoint that it names."""
        self.ledger.counts["checked"] += 1
        self.ledger.answered_by[told.checkpoint] += 1
        name = self.questions[number].name
        if told.checkpoint not in self.expected:
            self.ledger.fault(f"{name}: answered by {told.checkpoint}, which was never served")
        elif told != (right := self.expected[told.checkpoint][number]):
            self.ledger.fault(f"{name}: {told} instead of {right}")

    async def pause(self, seconds: float) -> None:
        """Waits, but not beyond the end."""
        await asyncio.sleep(max(0.0, min(seconds, self.until - time.monotonic())))


async def ask(client: httpx.AsyncClient, question: Question, *, stream: bool) -> Told | int:
    """Asks; returns the answer, or the seconds of `Retry-After` of a full queue.

    Raises:
        Fault: If it is answered in any other way.
    """
    if not stream:
        response = await client.post(CHAT, content=question.body())
        if response.status_code == 429:
            return int(response.headers["retry-after"])
        if response.status_code != 200:
            raise Fault(f"{question.name}: {response.status_code} {response.text}")
        body = response.json()
        choice = body["choices"][0]
        return Told(
            body["system_fingerprint"], choice["message"]["content"], choice["finish_reason"]
        )
    async with client.stream("POST", CHAT, content=question.body(stream=True)) as response:
        if response.status_code == 429:
            return int(response.headers["retry-after"])
        lines = [line async for line in response.aiter_lines() if line]
        if response.status_code != 200:
            raise Fault(f"{question.name}: {response.status_code} {lines}")
    return read_stream(question.name, lines)


def read_stream(name: str, lines: Sequence[str]) -> Told:
    """The answer that the lines of a stream make up.

    Raises:
        Fault: If the stream holds an error, several checkpoints, or no end.
    """
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    if any(line.startswith("event: error") for line in lines) or data[-1:] != ["[DONE]"]:
        raise Fault(f"{name}: the stream ended in {lines[-2:]}")
    chunks = [json.loads(item) for item in data[:-1]]
    checkpoints = {chunk["system_fingerprint"] for chunk in chunks}
    if len(checkpoints) != 1:
        raise Fault(f"{name}: one stream of {sorted(checkpoints)}")
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    ends = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    return Told(checkpoints.pop(), text, ends[-1])


async def asker(stage: Stage, actor: int) -> None:
    """Asks one question after another, every other one as a stream; waits where it is told to."""
    choices = stage.choices(0, actor)
    async with stage.server.client() as client:
        for _ in stage.turns():
            number, stream = int(choices.integers(len(stage.questions))), bool(choices.integers(2))
            told = await ask(client, stage.questions[number], stream=stream)
            if isinstance(told, int):
                stage.ledger.counts["refused"] += 1
                await stage.pause(min(told, _LONGEST_WAIT))
                continue
            stage.ledger.counts["streamed" if stream else "answered"] += 1
            stage.check(number, told)


async def leaver(stage: Stage, actor: int) -> None:
    """Asks and goes away without waiting for the end, queued, begun or in mid-stream."""
    choices = stage.choices(1, actor)
    for _ in stage.turns():
        number, stream = int(choices.integers(len(stage.questions))), bool(choices.integers(2))
        patience = float(choices.exponential(_LEAVES_WITHIN))
        async with stage.server.client() as client:
            try:
                async with asyncio.timeout(patience):
                    told = await ask(client, stage.questions[number], stream=stream)
            except TimeoutError:
                stage.ledger.counts["left"] += 1
                continue
        if isinstance(told, int):
            stage.ledger.counts["refused"] += 1
            await stage.pause(min(told, _LONGEST_WAIT))
        else:
            stage.ledger.counts["stayed"] += 1
            stage.check(number, told)


async def crowd(stage: Stage) -> None:
    """Now and then asks more at once than the queue takes; half of them leave."""
    choices = stage.choices(2)

    async def one(client: httpx.AsyncClient, number: int, patience: float | None) -> None:
        try:
            async with asyncio.timeout(patience):
                told = await ask(client, stage.questions[number], stream=False)
        except TimeoutError:
            stage.ledger.counts["left"] += 1
            return
        if isinstance(told, int):
            stage.ledger.counts["refused"] += 1
            return
        stage.ledger.counts["answered"] += 1
        stage.check(number, told)

    for _ in stage.turns():
        await stage.pause(_BETWEEN_CROWDS / 5)
        async with stage.server.client() as client:
            numbers = choices.integers(len(stage.questions), size=stage.crowd)
            patience = choices.exponential(_LEAVES_WITHIN, size=stage.crowd)
            await asyncio.gather(
                *(
                    one(client, int(number), float(patience[at]) if at % 2 else None)
                    for at, number in enumerate(numbers)
                )
            )
        stage.ledger.counts["crowds"] += 1
        await stage.pause(_BETWEEN_CROWDS)


async def vandal(stage: Stage) -> None:
    """Sends what must be refused, and looks that it is."""
    choices, bodies = stage.choices(3), stage.nonsense
    async with stage.server.client() as client:
        for _ in stage.turns():
            name = str(choices.choice(list(bodies)))
            response = await client.post(CHAT, content=bodies[name])
            if response.status_code == 429:
                stage.ledger.counts["refused"] += 1
            elif response.status_code not in _REFUSALS:
                raise Fault(f"{name}: {response.status_code} {response.text[:300]}")
            else:
                stage.ledger.counts["nonsense refused"] += 1
            await stage.pause(float(choices.exponential(_BETWEEN_NONSENSE)))


async def swapper(stage: Stage) -> None:
    """Activates the checkpoints in turn, rolls back, and asks for ones that are not there."""
    choices = stage.choices(4)
    ids = list(stage.expected)
    async with stage.server.client() as client:
        at = 0
        for _ in stage.turns():
            await stage.pause(float(choices.exponential(_BETWEEN_SWAPS)))
            kind = int(choices.integers(4))
            if kind == 0:
                unknown = await client.post("/v1/checkpoints/nobody@sha256:000000000000/activate")
                if unknown.status_code != 404:
                    raise Fault(f"an unknown checkpoint: {unknown.status_code} {unknown.text}")
                stage.ledger.counts["swaps refused"] += 1
                continue
            at += 1
            address = f"/v1/checkpoints/{ids[at % len(ids)]}/activate"
            address = "/v1/deployments/rollback" if kind == 1 else address
            response = await client.post(address)
            if response.status_code != 200:
                raise Fault(f"{address}: {response.status_code} {response.text}")
            served = (await client.get("/v1/models")).raise_for_status().json()
            if served["data"][0]["root"] != response.json()["id"]:
                raise Fault(f"{address}: {served} serves")
            stage.ledger.counts["swaps"] += 1


async def reader(stage: Stage) -> None:
    """Reads the metrics, as a collector does."""
    async with stage.server.client() as client:
        for _ in stage.turns():
            told: httpx.Response = await client.get("/metrics")
            if told.status_code != 200 or "disp_requests_running" not in told.text:
                raise Fault(f"/metrics: {told.status_code}")
            stage.ledger.counts["scrapes"] += 1
            await stage.pause(5.0)


async def guarded(stage: Stage, name: str, actor: Any) -> None:
    """Runs an actor to the end of the stage; what goes wrong with it is written down."""
    try:
        await actor
    except Fault as fault:
        stage.ledger.fault(f"{name}: {fault}")
    except httpx.HTTPError as error:
        stage.ledger.fault(f"{name}: {type(error).__name__} {error}")
