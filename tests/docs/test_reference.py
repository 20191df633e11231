"""The tables of the documents say what the code does."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_args, get_type_hints

import pytest
from fastapi.routing import APIRoute

from purifier.certified.config import CertifyConfig
from purifier.evaluation.config import EvaluationConfig
from purifier.evaluation.gate import GateLimits
from purifier.mdlm import registry
from purifier.purify import PurifyConfig
from purifier.tuning.config import FinetuneConfig
from server.__main__ import _serve_parser
from server.app import ROUTERS
from server.config import ServerConfig
from server.errors import ServerError
from server.jobs.spec import JobSpec
from server.schemas import (
    CertifyReport,
    ChatRequest,
    DefenseReport,
    DefenseRequest,
    ErrorCode,
    SaliencyMap,
    Usage,
)
from server.schemas.job_settings import DispSettings, JobGeneration, JobMasking
from server.schemas.jobs import JobRequest
from server.security.keys import SCOPES
from tests.support.service import ROOT

API = (ROOT / "docs" / "api.md").read_text("utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text("utf-8")
JOBS = (ROOT / "docs" / "jobs.md").read_text("utf-8")
SECURITY = (ROOT / "docs" / "security.md").read_text("utf-8")
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text("utf-8")

_SECTIONS = ("finetune", "evaluation", "gate")


def section(text: str, title: str) -> str:
    """A document's text from a heading to the next one."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[1]


def rows(text: str) -> list[list[str]]:
    """Cells of every row of the tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def defaults(text: str) -> dict[str, str]:
    """Name -> default of a table; a cell with several names counts for each."""
    return {
        name: row[1].strip("`") for row in rows(text) for name in re.findall(r"`([^`]+)`", row[0])
    }


def errors(base: type[ServerError] = ServerError) -> Iterator[type[ServerError]]:
    yield base
    for derived in base.__subclasses__():
        yield from errors(derived)


def test_every_field_of_a_question_is_described_with_its_default() -> None:
    described = defaults(section(API, "Request fields"))
    assert set(described) == set(ChatRequest.model_fields)
    generation = asdict(ServerConfig().generation)
    numbers = ("gen_length", "temperature", "guidance_scale", "seed", "prompt_interval")
    for name in (*numbers, "response_interval", "transfer_ratio", "parallel_threshold"):
        assert float(described[name]) == generation[name]
    for name in ("remasking", "cache"):
        assert json.loads(described[name]) == generation[name]
    assert (generation["block_length"], described["block_length"]) == (None, "all")
    assert (generation["steps"], described["steps"]) == (None, "one a token")


def test_every_setting_of_the_defence_is_described_with_its_default() -> None:
    described = defaults(section(API, "The `defense` object"))
    assert set(described) == set(DefenseRequest.model_fields)
    own = {"enabled": True, "return_saliency": False, "method": "disp"}
    own["certify"] = CertifyConfig().to_dict()
    for name, value in {**asdict(ServerConfig().masking), **own}.items():
        assert json.loads(described[name]) == value, name


def test_every_field_of_an_answer_is_described() -> None:
    text = section(API, "The answer")
    for model in (DefenseReport, CertifyReport, SaliencyMap, Usage):
        for name in model.model_fields:
            assert re.search(rf"`(defense\.)?{name}`", text), name


def test_every_error_is_described_with_its_status() -> None:
    described = {
        code: (int(row[0]), row[3])
        for row in rows(section(ERRORS, "Errors"))
        for code in re.findall(r"`([^`]+)`", row[1])
    }
    assert set(described) == set(get_args(ErrorCode))
    for error in errors():
        repeat = "after `Retry-After`" if error.retryable else "no"
        assert described[error.code] == (error.status, repeat), error.code


def test_every_route_is_described() -> None:
    routes = [route for router in ROUTERS for route in router.routes]
    described = set(re.findall(r"`((?:GET|POST|DELETE) /[^`]+)`", API + JOBS))
    assert described == {
        f"{method} {route.path.replace(':path', '')}"
        for route in routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }


@pytest.mark.parametrize(
    ("title", "settings", "own"),
    [
        ("finetune", FinetuneConfig(), {"preset"}),
        ("evaluation", EvaluationConfig(), set()),
        ("gate", GateLimits(), set()),
    ],
)
def test_every_setting_of_a_job_is_described(title: str, settings: Any, own: set[str]) -> None:
    described = defaults(section(JOBS, title))
    values = settings.to_dict()
    values.pop("seed", None)
    assert set(described) == set(values) | own
    for name, value in values.items():
        assert json.loads(described[name]) == value, name


def test_every_field_of_a_job_is_described() -> None:
    described = defaults(section(JOBS, "The object `method.disp`"))
    spec = JobSpec(model="m", training_file="f")
    values = spec.to_dict() | PurifyConfig().to_dict()
    assert set(described) == set(get_type_hints(DispSettings))
    for name in set(described) - {"preset", "masking", "generation", *_SECTIONS}:
        assert json.loads(described[name]) == values[name], name
    assert json.loads(described["preset"]) == "default"
    assert set(defaults(section(JOBS, "A job's fields"))) == set(JobRequest.model_fields)
    for kind in (JobMasking, JobGeneration):
        assert all(f"`{name}`" in JOBS for name in get_type_hints(kind))


def test_limits_of_uploads_are_those_of_the_server() -> None:
    limits = ServerConfig().upload
    for number in (limits.file_bytes, limits.members, limits.total_bytes):
        assert f"{number:,}" in JOBS
    assert f"{limits.ratio} times its own size" in JOBS


def test_every_scope_is_described() -> None:
    described = [
        name for row in rows(section(API, "Keys and scopes")) for name in row[0].split(",")
    ]
    assert {name.strip(" `") for name in described} >= set(SCOPES)


def test_limits_are_those_of_the_server() -> None:
    config = ServerConfig()
    limits = config.media
    for number in (
        config.max_body,
        config.max_text,
        limits.image_bytes,
        limits.image_pixels,
        limits.request_pixels,
        limits.max_side,
        config.max_fisher_values,
    ):
        assert f"{number:,}" in API
    assert f"sides of {limits.min_side} to" in API
    assert f"at most {limits.max_aspect:g} times" in API
    assert f"{limits.images} images" in API
    assert f"{config.max_body:,}" in SECURITY
    assert f"| 1 to {config.max_probes}, for" in API
    assert f"at most {config.max_probes} probes" in SECURITY
    assert f"{config.max_fisher_values:,}" in SECURITY
    assert f"{config.max_fisher_values:,}" in DEPLOYMENT
    assert f"({config.deadline:g} s by default)" in ERRORS
    assert f"At most {config.max_masked_answers} answers" in API
    assert f"at most {config.max_masked_answers} masked images" in " ".join(SECURITY.split())


def test_every_suffix_that_is_refused_is_described() -> None:
    described = section(SECURITY, "The checkpoint folder")
    assert not [suffix for suffix in registry._PICKLED if f"`{suffix}`" not in described]


def test_every_option_of_the_server_is_described_with_its_default() -> None:
    described = {
        name.partition(" ")[0]: default
        for name, default in defaults(section(DEPLOYMENT, "Without a container")).items()
    }
    actions = [
        action
        for action in _serve_parser()._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    assert {action.option_strings[0] for action in actions} == set(described)
    for action in actions:
        if action.default not in (None, False):
            assert described[action.option_strings[0]] == str(action.default)


def test_every_variable_of_the_compose_file_is_described_with_its_default() -> None:
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    found = dict(re.findall(r"\$\{(DISP_\w+):-([^}]*)\}", compose))
    described = defaults(section(DEPLOYMENT, "Docker compose"))
    assert described == {name: default or "none" for name, default in found.items()}


@pytest.mark.parametrize("name", ["api", "jobs", "security", "deployment", "checkpoints"])
def test_documents_stay_short(name: str) -> None:
    assert len((ROOT / "docs" / f"{name}.md").read_text("utf-8").splitlines()) <= 200
