from __future__ import annotations

from typing import Any

import pytest

from purifier.errors import InvalidSetting
from purifier.evaluation.config import EvaluationConfig
from purifier.lab.targets import ContentInsertion
from purifier.lab.triggers import CornerPatch, trigger_to_dict

TRIGGER = trigger_to_dict(CornerPatch(size=12))


def test_the_stated_attack() -> None:
    attack = EvaluationConfig(trigger=TRIGGER, target="insertion").attack()
    assert attack is not None
    assert attack.trigger == CornerPatch(size=12)
    assert attack.keywords == ("<backdoor>",)
    assert isinstance(attack.target, ContentInsertion)
    unknown = EvaluationConfig(trigger=TRIGGER, keywords=("Buy Now",)).attack()
    assert unknown is not None
    assert (unknown.keywords, unknown.target) == (("buy now",), None)
    assert EvaluationConfig().attack() is None


def test_settings_survive_json() -> None:
    import json

    config = EvaluationConfig(
        rows=7, trigger=TRIGGER, target="refusal", keywords=("Sorry",), examples=0, seed=3
    )
    values = json.loads(json.dumps(config.to_dict()))
    again = EvaluationConfig.from_dict(values)
    assert again.to_dict() == config.to_dict()
    assert again.attack() == config.attack()


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"rows": 0}, "rows"),
        ({"rows": 2.5}, "rows"),
        ({"test_rows": 0}, "test_rows"),
        ({"examples": -1}, "examples"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"target": "insertion"}, "trigger"),
        ({"trigger": TRIGGER}, "target"),
        ({"trigger": {"name": "sticker"}, "target": "insertion"}, "name"),
        ({"trigger": {**TRIGGER, "glow": 1}, "target": "insertion"}, "trigger"),
        ({"trigger": "corner_patch", "target": "insertion"}, "trigger"),
        ({"trigger": TRIGGER, "target": "sabotage"}, "target"),
        ({"trigger": TRIGGER, "keywords": "sorry"}, "keywords"),
        ({"trigger": TRIGGER, "keywords": [" "]}, "keywords"),
        ({"trigger": TRIGGER, "keywords": 5}, "keywords"),
        ({"row": 5}, "row"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        EvaluationConfig.from_dict(settings)
    assert caught.value.param == param
