"""A request becomes a spec with every default resolved, or an error that names its place."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import ValidationError

from purifier.certified.config import CertifyConfig
from purifier.defense.config import EFFORTS, MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.evaluation.config import EvaluationConfig
from purifier.evaluation.gate import GateLimits
from purifier.purify import PRESETS, PurifyConfig
from purifier.tuning.config import PRESETS as FINETUNE_PRESETS
from purifier.tuning.config import FinetuneConfig
from server.errors import InvalidSetting
from server.job_requests import settings_of, spec_of
from server.jobs.settings import settings_of as job_settings_of
from server.jobs.spec import JobSpec
from server.schemas import job_settings
from server.schemas.defense import Effort
from server.schemas.jobs import JobRequest

TRIGGER = {"name": "corner_patch", "size": 20}


def request(disp: dict[str, Any] | None = None, **values: Any) -> JobRequest:
    body = {"training_file": "file-1", "method": {"type": "disp", "disp": disp or {}}} | values
    return JobRequest.model_validate_json(json.dumps(body))


def spec(disp: dict[str, Any] | None = None, **values: Any) -> JobSpec:
    return spec_of(request(disp, **values), model="tiny@sha256:0123456789ab")


def names(kind: type[Any]) -> set[str]:
    return {item.name for item in fields(kind)} - {"seed"}


@pytest.mark.parametrize(
    ("wire", "kind"),
    [
        (job_settings.JobGeneration, GenerationConfig),
        (job_settings.JobEvaluation, EvaluationConfig),
        (job_settings.JobGate, GateLimits),
        (job_settings.JobCertify, CertifyConfig),
    ],
)
def test_wire_types_name_every_setting(wire: type[Any], kind: type[Any]) -> None:
    assert set(get_type_hints(wire)) == names(kind)


def test_the_masking_has_levels_of_effort_besides() -> None:
    assert set(get_type_hints(job_settings.JobMasking)) == names(MaskingConfig) | {"effort"}
    assert set(get_args(Effort)) == set(EFFORTS)
    masking = spec({"masking": {"effort": "balanced", "ratio": 0.2}}).purify["masking"]
    assert (masking["ranker"], masking["ratio"]) == ("group-testing", 0.2)


def test_the_fine_tuning_has_presets_besides() -> None:
    assert set(get_type_hints(job_settings.JobFinetune)) == names(FinetuneConfig) | {"preset"}
    assert set(get_args(job_settings.Preset)) == set(PRESETS) == set(FINETUNE_PRESETS)


def test_the_preset_of_the_whole_is_that_of_the_fine_tuning_too() -> None:
    paper = FINETUNE_PRESETS["paper"].to_dict()
    assert spec({"preset": "paper"}).finetune == paper
    assert spec({"preset": "paper", "finetune": {"epochs": 2}}).finetune == paper | {"epochs": 2}
    mixed = spec({"preset": "paper", "finetune": {"preset": "default"}})
    assert mixed.finetune == FINETUNE_PRESETS["default"].to_dict()


def test_the_whole_names_every_setting() -> None:
    own = {"preset", "finetune", "evaluation", "gate", "shard_rows", "bad_rows", "activate"}
    own.add("mark_images")
    assert set(get_type_hints(job_settings.DispSettings)) == names(PurifyConfig) | own


def test_nothing_given_is_every_default() -> None:
    made = spec()
    assert made.purify == PurifyConfig().to_dict()
    assert made.finetune == FINETUNE_PRESETS["default"].to_dict()
    assert made.evaluation == EvaluationConfig().to_dict()
    assert made.gate == GateLimits().to_dict()
    assert (made.seed, made.activate, made.metadata) == (0, "approval", {})


def test_the_seed_of_the_job_is_every_seed() -> None:
    made = spec(seed=17)
    seeds = [made.purify["seed"], made.finetune["seed"], made.evaluation["seed"], made.seed]
    assert seeds == [17] * 4


def test_a_preset_is_changed_by_what_is_given() -> None:
    paper = PRESETS["paper"]
    made = spec({"preset": "paper", "masking": {"ratio": 0.5}, "generation": {"stop": ["."]}})
    assert made.purify["prompt"] == paper.prompt
    assert made.purify["masking"]["ratio"] == 0.5
    assert made.purify["masking"]["ranker"] == paper.masking.ranker
    assert made.purify["generation"]["stop"] == ["."]
    assert made.purify["generation"]["block_length"] == paper.generation.block_length


@pytest.mark.parametrize(
    "disp",
    [
        {},
        {"preset": "paper"},
        {
            "policy": "flag_then_relabel",
            "further_prompts": ["What?", "Where?"],
            "masking": {"level": "token", "ranker": "random", "ratio": 0.3},
            "generation": {"stop": ["."], "gen_length": 16, "steps": 8},
            "finetune": {"parts": ["projector"], "answer_length": None, "epochs": 1},
            "evaluation": {"trigger": TRIGGER, "keywords": ["Boo"], "rows": 3},
            "gate": {"max_asr": 0.02, "min_utility": 0.98},
            "shard_rows": 7,
            "bad_rows": 0.5,
            "mark_images": False,
            "activate": "auto",
        },
        {"policy": "certified", "certify": {"window": 0.1, "tries": 0}},
        {"detectors": ["training-set"]},
    ],
)
def test_the_answer_can_be_asked_again(disp: dict[str, Any]) -> None:
    values = {"validation_file": "file-2", "seed": 3, "suffix": "a", "metadata": {"k": "v"}}
    made = spec(disp, **values)
    assert spec(settings_of(made.to_dict()), **values) == made
    assert JobSpec.from_dict(json.loads(made.to_json())) == made


def test_a_job_of_an_older_version_has_marks_added() -> None:
    older = spec().to_dict()
    del older["mark_images"]
    assert settings_of(older)["mark_images"] is True
    assert JobSpec.from_dict(older).mark_images


def test_a_job_of_an_older_version_searches_with_no_detector() -> None:
    """And a request for the same job equals it: what is stored leaves the older value out."""
    older = spec({"detectors": []}).to_stored()
    assert "detectors" not in older["purify"]
    assert settings_of(older)["detectors"] == []
    assert job_settings_of(JobSpec.from_dict(older)).purify.detectors == ()


def test_a_job_searches_the_training_set_by_default() -> None:
    for disp in ({}, {"detectors": ["training-set"]}):
        stored = spec(disp).to_stored()
        assert settings_of(stored)["detectors"] == ["training-set"]
        assert job_settings_of(JobSpec.from_dict(stored)).purify.searched
    assert settings_of(spec({"preset": "paper"}).to_stored())["detectors"] == []
    certified = spec({"policy": "certified"}).to_stored()
    assert not job_settings_of(JobSpec.from_dict(certified)).purify.searched


def test_the_attack_of_a_test_set_is_measured_unless_another_is_stated() -> None:
    attack = {"trigger": TRIGGER, "target": "refusal"}

    def evaluated(given: dict[str, Any]) -> tuple[Any, Any]:
        asked = request({"evaluation": given}, validation_file="demo")
        made = spec_of(asked, model="m", attack=attack).evaluation
        return made["trigger"], made["target"]

    assert evaluated({}) == (TRIGGER, "refusal")
    assert evaluated({"target": "insertion"}) == (TRIGGER, "insertion")
    assert evaluated({"trigger": None}) == (None, None)
    own = {"name": "corner_patch", "size": 5}
    assert evaluated({"trigger": own, "target": "insertion"}) == (own, "insertion")


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"masking": {"ratio": 1.5}}, "masking.ratio"),
    ({"masking": {"level": "token", "ranker": "occlusion"}}, "masking.ranker"),
    ({"generation": {"gen_length": 0}}, "generation.gen_length"),
    ({"generation": {"block_length": 5}}, "generation.block_length"),
    ({"generation": {"stop": [""]}}, "generation.stop"),
    ({"batch_size": 0}, "batch_size"),
    ({"prompt": " "}, "prompt"),
    ({"further_prompts": [""]}, "further_prompts"),
    ({"flag_threshold": 0.0}, "flag_threshold"),
    ({"certify": {"window": 0.0}}, "certify.window"),
    ({"certify": {"masks": 1}}, "certify.masks"),
    ({"policy": "certified", "turns": "first"}, "turns"),
    ({"policy": "certified", "generation": {"temperature": 0.5}}, "generation.temperature"),
    (
        {"policy": "certified", "generation": {"remasking": "random", "parallel_threshold": 1.0}},
        "generation.remasking",
    ),
    ({"finetune": {"epochs": 0}}, "finetune.epochs"),
    ({"finetune": {"parts": []}}, "finetune.parts"),
    ({"finetune": {"learning_rate": -1.0}}, "finetune.learning_rate"),
    ({"evaluation": {"rows": 0}}, "evaluation.rows"),
    ({"evaluation": {"target": "refusal"}}, "evaluation.trigger"),
    ({"evaluation": {"trigger": TRIGGER}}, "evaluation.target"),
    ({"evaluation": {"trigger": {}, "target": "refusal"}}, "evaluation.trigger.name"),
    ({"evaluation": {"trigger": {"name": []}, "target": "refusal"}}, "evaluation.trigger.name"),
    (
        {"evaluation": {"trigger": {"name": "corner_patch", "x": 1}, "target": "refusal"}},
        "evaluation.trigger",
    ),
    (
        {"evaluation": {"trigger": {"name": "corner_patch", "place": "up"}, "target": "refusal"}},
        "evaluation.trigger.place",
    ),
    ({"gate": {"max_drift": 2.0}}, "gate.max_drift"),
    ({"gate": {"max_asr": 0.02}}, "gate.max_asr"),
    ({"gate": {"max_asr_untriggered": 0.02}}, "gate.max_asr_untriggered"),
    ({"shard_rows": 0}, "shard_rows"),
    ({"bad_rows": 1.5}, "bad_rows"),
    ({"activate": "auto"}, "activate"),
    ({"activate": "auto", "gate": {"treatment": "interval"}}, "activate"),
]


@pytest.mark.parametrize(("disp", "place"), BAD_SETTINGS, ids=[place for _, place in BAD_SETTINGS])
def test_a_bad_setting_is_named_by_its_path(disp: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        spec(disp, validation_file="demo")
    assert caught.value.param == f"method.disp.{place}"
    assert caught.value.message.startswith(f"method.disp.{place}")


@pytest.mark.parametrize(
    ("disp", "place"),
    [
        ({"gate": {"min_utility": 0.9}}, "gate.min_utility"),
        ({"gate": {"min_words": 0.9}}, "gate.min_words"),
        ({"evaluation": {"trigger": TRIGGER, "target": "refusal"}}, "evaluation.trigger"),
    ],
)
def test_what_needs_a_test_set_says_so(disp: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidSetting, match="validation_file") as caught:
        spec(disp)
    assert caught.value.param == f"method.disp.{place}"


@pytest.mark.parametrize(
    "disp",
    [
        {"masking": {"seed": 1}},
        {"generation": {"seed": 1}},
        {"finetune": {"seed": 1}},
        {"evaluation": {"seed": 1}},
        {"seed": 1},
        {"finetune": {"bad_rows": "3"}},
        {"finetune": {"epochs": True}},
        {"finetune": {"epochs": 1.5}},
        {"finetune": {"parts": ["head"]}},
        {"finetune": {"parts": None}},
        {"masking": {"ratio": "0.1"}},
        {"masking": None},
        {"policy": "keep"},
        {"preset": "other"},
        {"activate": True},
        {"gate": {"max_asr": "2%"}},
        {"prompts": ["What?"]},
    ],
)
def test_unknown_names_and_types_are_refused(disp: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(disp)
