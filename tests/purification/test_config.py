"""Settings of a purification."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from purifier import GenerationConfig, InvalidSetting, MaskingConfig
from purifier.certified.config import CertifyConfig
from purifier.purify import PRESETS, PurifyConfig


def test_the_paper_preset_is_the_published_recipe() -> None:
    paper = PRESETS["paper"]
    assert paper.policy == "relabel_all"
    assert (paper.prompt, paper.turns) == ("Describe this image in detail.", "first")
    masking, generation = paper.masking, paper.generation
    assert (masking.level, masking.ranker, masking.ratio) == ("token", "official", 0.3)
    assert (masking.probes, masking.top_k) == (6, 5)
    assert (masking.temperature, masking.threshold) == (1.0, 0.0)
    assert (generation.gen_length, generation.block, generation.n_steps) == (32, 32, 32)
    assert (generation.temperature, generation.guidance_scale) == (0.0, 0.0)
    assert generation.remasking == "low_confidence"
    assert generation.stop == ("<|eot_id|>",)


def test_the_default_preset_asks_the_own_questions_under_the_default_defence() -> None:
    default = PRESETS["default"]
    assert (default.prompt, default.turns) == (None, "all")
    assert default.masking == MaskingConfig()


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        PurifyConfig(
            policy="drop_flagged",
            masking=MaskingConfig(level="token", ranker="random", ratio=0.7),
            generation=GenerationConfig(gen_length=8, block_length=4, stop=("a", "b")),
            further_prompts=("What is it?",),
            flag_threshold=2,
            seed=9,
        ),
        PurifyConfig(policy="certified", certify=CertifyConfig(window=0.1, masks=4, tries=0)),
    ],
)
def test_settings_come_back_from_json(config: PurifyConfig) -> None:
    assert PurifyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_some_settings_change_a_preset() -> None:
    found = PurifyConfig.from_dict(
        {"preset": "paper", "masking": {"ratio": 0.45}, "generation": {"gen_length": 64}, "seed": 3}
    )
    paper = PRESETS["paper"]
    assert found == replace(
        paper,
        masking=replace(paper.masking, ratio=0.45),
        generation=replace(paper.generation, gen_length=64),
        seed=3,
    )


def test_nothing_given_is_the_default() -> None:
    assert PurifyConfig.from_dict({}) == PRESETS["default"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"preset": "best"}, "preset"),
        ({"preset": ["paper"]}, "preset"),
        ({"policy": "keep"}, "policy"),
        ({"policy": ["relabel_all"]}, "policy"),
        ({"turns": "last"}, "turns"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"further_prompts": "What?"}, "further_prompts"),
        ({"further_prompts": [""]}, "further_prompts"),
        ({"further_prompts": 4}, "further_prompts"),
        ({"further_prompts": ["<image> What?"]}, "further_prompts"),
        ({"prompt": "<image>\nWhat?"}, "prompt"),
        ({"rescore_blocks": 1}, "rescore_blocks"),
        ({"flag_threshold": 0}, "flag_threshold"),
        ({"flag_threshold": "5"}, "flag_threshold"),
        ({"flag_threshold": float("nan")}, "flag_threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"certify": 0.2}, "certify"),
        ({"certify": {"size": 0.2}}, "certify"),
        ({"certify": {"window": "0.2"}}, "window"),
        ({"certify": {"window": 0.6}}, "window"),
        ({"certify": {"masks": 2.5}}, "masks"),
        ({"policy": "certified", "turns": "first"}, "turns"),
        ({"policy": "certified", "preset": "paper"}, "turns"),
        ({"policy": "certified", "generation": {"temperature": 1}}, "temperature"),
        ({"policy": "certified", "generation": {"remasking": "random"}}, "remasking"),
        ({"ratio": 0.3}, "purify"),
        ({"masking": 0.3}, "masking"),
        ({"masking": {"rate": 0.3}}, "masking"),
        ({"masking": {"ratio": "0.3"}}, "ratio"),
        ({"masking": {"ratio": 2}}, "ratio"),
        ({"masking": {"level": ["token"]}}, "level"),
        ({"generation": {"length": 3}}, "generation"),
        ({"generation": {"temperature": "0"}}, "temperature"),
        ({"generation": {"steps": 7, "block_length": 4}}, "steps"),
        ({"generation": {"stop": 5}}, "stop"),
        ({"generation": {"stop": [5]}}, "stop"),
        ({"generation": {"suffix": 5}}, "suffix"),
    ],
)
def test_bad_settings_are_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        PurifyConfig.from_dict(given)
    assert caught.value.param == param
