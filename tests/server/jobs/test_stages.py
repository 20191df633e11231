"""What a job's events say of its stages."""

from __future__ import annotations

from server.jobs.stages import FEW, FEW_STEPS, _sentence


def test_a_fine_tuning_of_few_steps_says_what_to_change() -> None:
    plain = _sentence({"event": "started", "step": 0, "steps": FEW_STEPS})
    assert plain == f"The fine-tuning goes from step 0 of {FEW_STEPS}."
    few = _sentence({"event": "started", "step": 3, "steps": 40})
    assert few == f"The fine-tuning goes from step 3 of 40. {FEW}"
    assert "finetune.batch_size" in FEW
