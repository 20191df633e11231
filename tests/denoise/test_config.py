from typing import Any

import pytest

from purifier import GenerationConfig, InvalidSetting


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"gen_length": 0}, "gen_length"),
        ({"gen_length": 5000}, "gen_length"),
        ({"gen_length": 32, "block_length": 5}, "block_length"),
        ({"gen_length": 32, "block_length": 64}, "block_length"),
        ({"gen_length": 32, "block_length": 8, "steps": 6}, "steps"),
        ({"gen_length": 32, "block_length": 8, "steps": 2}, "steps"),
        ({"steps": 5000}, "steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"guidance_scale": 99.0}, "guidance_scale"),
        ({"remasking": "best"}, "remasking"),
        ({"stop": ("",)}, "stop"),
        ({"stop": "<|eot_id|>"}, "stop"),
        ({"gen_length": 8.0}, "gen_length"),
        ({"steps": True}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_settings_name_the_field(settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        GenerationConfig(**settings)
    assert caught.value.param == param
    assert param in caught.value.message or param == "stop"


def test_defaults_are_one_block_and_one_token_a_step() -> None:
    config = GenerationConfig(gen_length=24)
    assert (config.block, config.n_blocks, config.n_steps, config.steps_per_block) == (
        24,
        1,
        24,
        24,
    )
