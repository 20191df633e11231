"""How much a job will have to do after its relabelling, for the estimate of its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from server.jobs.job import Job

_MODELS = 2
_ANSWERS_PER_ROW = 2
"""Unmasked and masked."""


def planned_steps(job: Job, plan: Mapping[str, Any]) -> int:
    """Optimizer steps of the fine-tuning, if relabelling leaves no row out.

    Args:
        job: The job.
        plan: Its plan.
    """
    config, purify = job.settings.finetune, job.settings.purify
    a_row = 1 if purify.policy == "drop_flagged" else 1 + len(purify.further_prompts)
    rows = (int(plan["rows"]) - len(plan["bad"])) * a_row
    return config.epochs * math.ceil(rows / config.batch_size)


def planned_answers(job: Job, plan: Mapping[str, Any]) -> int:
    """Answers that the evaluation asks of both models.

    Args:
        job: The job.
        plan: Its plan.
    """
    config = job.settings.evaluation
    rows = min(config.rows, int(plan["rows"]) - len(plan["bad"]))
    tests = int(plan.get("test_rows", 0))
    if config.test_rows is not None:
        tests = min(tests, config.test_rows)
    copies = 1 if config.trigger is None else 2
    return _MODELS * (_ANSWERS_PER_ROW * rows + copies * tests)
