"""Generated requests to a running server, and what is wrong with its answers.

Schemathesis makes requests from the server's own OpenAPI document, valid ones and invalid ones;
`questions` makes chat requests that mostly reach the model. Both are checked the same way.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import APIOperation, Case, CheckFunction, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CHAT = "POST /v1/chat/completions"
JOBS = "POST /v1/fine_tuning/jobs"
_TEXTS = ["<image>", "<|eot_id|>", "What is <image>?", "<|mdm_mask|>", "", " ", "What?"]
_SECONDS = 120.0
_LONGEST_REASON = 600


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        secret: A key; None sends none.
        scopes: What it allows; empty if the server does not know it.
    """

    secret: str | None
    scopes: frozenset[str]


@dataclass
class Tally:
    """What was sent to one operation, and what came back.

    Attributes:
        statuses: Status -> how often.
        failures: What was wrong, one text for each answer that was.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.statuses.values())


@dataclass(frozen=True)
class Asked:
    """A generated request: as it is, or with ids that the server knows."""

    case: Case[Any]
    caller: Caller
    mode: GenerationMode
    real: bool


Known = Callable[[str], Mapping[str, Any]]
"""Ids that the server knows, made anew for an operation: path parameters and fields of a body."""


def fuzz(
    url: str, callers: Mapping[str, Caller], known: Known, *, cases: int, start: int
) -> Iterator[tuple[str, Tally]]:
    """Asks every operation of the server's document.

    Args:
        url: Of the server.
        callers: Who asks, by name; half of the requests are of the last one, `all`, which has
            every scope.
        known: Ids for the operation of a label.
        cases: Requests of all operations together, about.
        start: Seed of the generator.

    Yields:
        Label of the operation, and what came of it.
    """
    with requests.Session() as session:
        session.trust_env = False
        secret = callers["all"].secret
        headers = {"authorization": f"Bearer {secret}"}
        answer = session.get(f"{url}/openapi.json", headers=headers, timeout=_SECONDS)
        answer.raise_for_status()
        document = answer.json()
        scopes = _taken_scopes(document)
        schema = schemathesis.openapi.from_dict(document)
        operations = [cast(Any, result).ok() for result in schema.get_all_operations()]
        weights = [weight_of(operation) for operation in operations]
        for operation, weight in zip(operations, weights, strict=True):
            share = max(2, round(cases * weight / sum(weights)))
            ids = known(operation.label)
            tally = Tally()
            strategy = _asked(operation, list(callers.values()))
            _every(
                strategy, share, start, _sender(session, url, scopes[operation.label], ids, tally)
            )
            yield operation.label, tally
        by_label = {operation.label: operation for operation in operations}
        for label, name, bodies in ((CHAT, "questions", questions()), (JOBS, "jobs", jobs())):
            if label not in by_label:
                continue
            allowed = [each for each in callers.values() if scopes[label] <= each.scopes]
            tally = Tally()
            ids = known(label) if label == JOBS else {}
            asked = _built(by_label[label], bodies, allowed, real=bool(ids))
            share = max(2, round(cases / (5 if label == CHAT else 30)))
            _every(asked, share, start, _sender(session, url, scopes[label], ids, tally))
            yield f"{label}, {name}", tally


def _built(
    operation: APIOperation[Any, Any, Any, Any],
    bodies: st.SearchStrategy[dict[str, Any]],
    callers: list[Caller],
    *,
    real: bool,
) -> st.SearchStrategy[Asked]:
    """Requests with given bodies, from callers whose keys allow them."""
    return st.builds(
        lambda body, caller: Asked(
            operation.Case(body=body, media_type="application/json"),
            caller,
            GenerationMode.POSITIVE,
            real,
        ),
        bodies,
        st.sampled_from(callers),
    )


def _taken_scopes(document: dict[str, Any]) -> dict[str, set[str]]:
    """The scopes that every operation needs, by its label; taken out of the document.

    Keys are drawn here: schemathesis would make up its own.
    """
    scopes = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            asked = operation.pop("security", [])
            needed = {scope for item in asked for names in item.values() for scope in names}
            scopes[f"{method.upper()} {path}"] = needed
    return scopes


def weight_of(operation: APIOperation[Any, Any, Any, Any]) -> float:
    """How many of the requests an operation gets: what takes more in gets more."""
    return 6.0 if list(operation.body) else 2.0 if list(operation.query) else 1.0


def questions() -> st.SearchStrategy[dict[str, Any]]:
    """Chat requests that are mostly in order, with values at the edges of what is allowed."""
    text = st.text(min_size=1, max_size=40) | st.sampled_from(_TEXTS)
    urls = st.sampled_from(_images()) | st.sampled_from(_images()) | st.text(max_size=30)
    part = text.map(lambda value: {"type": "text", "text": value}) | urls.map(
        lambda value: {"type": "image_url", "image_url": {"url": value}}
    )
    said = st.lists(part, max_size=3).map(lambda parts: [*parts, {"type": "text", "text": "So?"}])
    turn = st.fixed_dictionaries({"role": st.just("user"), "content": text | said}) | (
        st.fixed_dictionaries(
            {"role": st.sampled_from(["assistant", "system", "developer"]), "content": text}
        )
    )
    last = st.fixed_dictionaries({"role": st.just("user"), "content": text | said})
    return st.builds(
        lambda before, end, fields: {"messages": [*before, end], **fields},
        st.lists(turn, max_size=3),
        last,
        st.fixed_dictionaries({}, optional=_fields(text)),
    )


def jobs() -> st.SearchStrategy[dict[str, Any]]:
    """Requests for a job, in order but for some levels of effort; the file's id is put in."""
    masking = st.fixed_dictionaries(
        {}, optional={"effort": st.sampled_from(["fast", "balanced", "thorough", "none"])}
    )
    return st.fixed_dictionaries(
        {"training_file": st.just("file-0")},
        optional={
            "seed": st.integers(0, 2**31),
            "method": masking.map(lambda given: {"type": "disp", "disp": {"masking": given}}),
        },
    )


def _fields(text: st.SearchStrategy[str]) -> dict[str, st.SearchStrategy[Any]]:
    """Settings of a question, one in some values out of range."""
    share = st.floats(0, 1) | st.sampled_from([0, 1, -0.0, 1e-300, 1.5])
    defense = st.fixed_dictionaries(
        {},
        optional={
            "enabled": st.booleans(),
            "level": st.sampled_from(["token", "patch"]),
            "ratio": share,
            "effort": st.sampled_from(["fast", "balanced", "thorough"]),
            "ranker": st.sampled_from(
                ["two-stage", "group-testing", "knockout", "fisher", "random", "attention"]
            ),
            "probed": st.integers(1, 8) | st.just(0),
            "probing": st.sampled_from(["knockout", "masking"]),
            "threshold": st.floats(0, 1000) | st.sampled_from([0, 0, -1]),
            "probes": st.integers(1, 64) | st.just(0),
            "top_k": st.integers(2, 12) | st.just(1001),
            "temperature": st.floats(0.1, 100) | st.just(101.0),
            "pooling": st.sampled_from([1, 3, 9, 2]),
            "seed": st.integers(0, 2**63 - 1) | st.just(-1),
            "return_saliency": st.booleans(),
        },
    )
    return {
        "max_tokens": st.sampled_from([0, 8, 8, 16, 16, 4097, None]),
        "block_length": st.sampled_from([0, 1, 2, 4, 8, None]),
        "steps": st.sampled_from([0, 8, 8, 16, 16, None]),
        "temperature": st.floats(0, 10) | st.just(10.1),
        "guidance_scale": st.sampled_from([0, 1.5, 50, 51]),
        "remasking": st.sampled_from(["low_confidence", "random", "margin", "entropy"]),
        "cache": st.sampled_from(["none", "prefix", "dual", "dllm"]),
        "stop": text | st.lists(text, max_size=4) | st.none(),
        "seed": st.integers(0, 2**63 - 1),
        "stream": st.booleans() | st.none(),
        "top_p": share,
        "n": st.just(1),
        "response_format": st.just({"type": "text"}) | st.none(),
        "defense": defense,
    }


def _images() -> list[str]:
    """Pictures as data URLs, in several formats and spellings of base64."""
    urls = []
    picture = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    for kind, size in (("PNG", (48, 32)), ("JPEG", (64, 16)), ("WEBP", (33, 41)), ("PNG", (7, 7))):
        file = io.BytesIO()
        picture.resize(size).save(file, kind)
        text = base64.b64encode(file.getvalue()).decode()
        header = f"data:image/{kind.lower()};base64,"
        urls += [header + text, header + "\n".join(textwrap.wrap(text, 76)) + "\n"]
        urls += [header + text.rstrip("=").translate(str.maketrans("+/", "-_")), header + text[:-9]]
    return urls


@st.composite
def _asked(
    draw: st.DrawFn, operation: APIOperation[Any, Any, Any, Any], callers: list[Caller]
) -> Asked:
    mode = GenerationMode.POSITIVE
    if _has_input(operation) and draw(st.booleans()):
        mode = GenerationMode.NEGATIVE
    case = draw(operation.as_strategy(generation_mode=mode))
    who = st.just(callers[-1]) | st.sampled_from(callers)
    return Asked(case, draw(who), mode, draw(st.booleans()))


def _has_input(operation: APIOperation[Any, Any, Any, Any]) -> bool:
    """Whether there is anything to get wrong besides the key, which is drawn by itself."""
    return bool(list(operation.body) or list(operation.query) or list(operation.path_parameters))


def _every(
    strategy: st.SearchStrategy[Asked], cases: int, start: int, send: Callable[[Asked], None]
) -> None:
    """Sends requests of a strategy; a small set of them ends early."""

    @seed(start)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(asked=strategy)
    def run(asked: Asked) -> None:
        send(asked)

    with suppress(Unsatisfiable):
        run()


def _sender(
    session: requests.Session,
    url: str,
    scopes: set[str],
    ids: Mapping[str, Any],
    tally: Tally,
) -> Callable[[Asked], None]:
    def send(asked: Asked) -> None:
        case, secret = asked.case, asked.caller.secret
        if asked.real:
            _make_real(case, ids)
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        answer = case.call(base_url=url, session=session, headers=headers, timeout=_SECONDS)
        tally.statuses[answer.status_code] = tally.statuses.get(answer.status_code, 0) + 1
        checks = list(CHECKS)
        if asked.mode is GenerationMode.NEGATIVE and not asked.real:
            checks.append(negative_data_rejection)
        wrong = _access(asked.caller, scopes, answer)
        try:
            case.validate_response(answer, checks=checks)
        except FailureGroup as group:
            wrong += [f"{type(error).__name__}: {error}" for error in group.exceptions]
        if wrong:
            said = "; ".join(wrong)[:_LONGEST_REASON]
            tally.failures.append(f"{said}\n{case.as_curl_command()[:_LONGEST_REASON]}")

    return send


def _make_real(case: Case[Any], ids: Mapping[str, Any]) -> None:
    """Puts ids that the server knows where the request has made-up ones."""
    for name in case.path_parameters:
        if name in ids:
            case.path_parameters[name] = quote(ids[name], safe="")
    if isinstance(case.body, dict):
        case.body.update({name: ids[name] for name in case.body if name in ids})


def _access(caller: Caller, needed: set[str], answer: Any) -> list[str]:
    """What is wrong with whom the server let in or kept out."""
    status, wrong = answer.status_code, []
    if not needed:
        return ["a public route asked for a key"] if status == 401 else []
    if not caller.scopes and status not in (400, 401, 413):
        wrong.append(f"an unknown key got {status}")
    if caller.scopes and status == 401:
        wrong.append("a known key got 401")
    if caller.scopes and not needed <= caller.scopes and status < 400:
        wrong.append(f"a key without {', '.join(sorted(needed))} got {status}")
    return wrong
