"""Who uses the model next, counted."""

from __future__ import annotations

import pytest

from server.engine.fairness import Alternation


@pytest.mark.parametrize(("passes", "expected"), [(1, 7), (2, 3), (3, 2), (10, 0)])
def test_running_batch_stands_still_for_so_many_passes_at_most(passes: int, expected: int) -> None:
    order: list[str] = []
    turns = Alternation(lambda: order.append("step"), passes)
    for _ in range(7):
        order.append("pass")
        turns.passed()
    assert order.count("step") == expected
    assert (
        max(map(len, "".join("p" if name == "pass" else "s" for name in order).split("s")))
        <= passes
    )


def test_newcomer_is_delayed_by_one_step_a_pass_at_most() -> None:
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    turns = Alternation(step)
    for passes in range(1, 100):
        turns.passed()
        assert steps == passes


def test_passes_before_a_step_do_not_count_after_it() -> None:
    steps: list[str] = []
    turns = Alternation(lambda: steps.append("step"), 2)
    turns.passed()
    turns.step()
    turns.passed()
    assert steps == ["step"]
    turns.passed()
    assert steps == ["step", "step"]


def test_step_begins_no_newcomer() -> None:
    turns = Alternation(lambda: turns.passed())
    with pytest.raises(RuntimeError, match="inside another"):
        turns.step()
