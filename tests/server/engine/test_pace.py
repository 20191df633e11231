"""How long until there is room: measured by a clock that the test moves."""

from __future__ import annotations

import pytest

from server.engine.pace import Load, Pace, Room, as_retry_after


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_room_is_bounded_by_requests_and_by_positions() -> None:
    room = Room(requests=3, positions=100)
    assert room.takes(60, [40])
    assert not room.takes(61, [40])
    assert room.takes(10, [10, 10])
    assert not room.takes(10, [10, 10, 10])
    assert room.takes(1000, [])


@pytest.mark.parametrize(
    ("positions", "running", "expected"),
    [
        (10, [], 0),
        (10, [(50, 9)], 0),
        (60, [(50, 9)], 9),
        (10, [(10, 9), (10, 3), (10, 5)], 3),
        (50, [(30, 9), (30, 3), (30, 5)], 5),
        (200, [(30, 9), (30, 3), (30, 5)], 9),
    ],
)
def test_steps_until_enough_have_left(
    positions: int, running: list[tuple[int, float]], expected: float
) -> None:
    room = Room(requests=3, positions=100)
    assert room.steps_until(positions, [Load(*load) for load in running]) == expected


def test_seconds_are_those_of_shared_steps_with_all_that_lies_between_them() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.steps_per_second == pace.seconds_until(10) == 0
    pace.begins()
    clock.now += 3
    pace.joins(alone=True)
    for _ in range(50):
        clock.now += 0.2
        pace.begins()
        clock.now += 0.05
        pace.joins(alone=False)
        clock.now += 0.25
        pace.steps()
    assert pace.steps_per_second == pytest.approx(2.0)
    assert pace.seconds_until(10) == pytest.approx(5.0)


def test_idle_time_is_no_part_of_a_step() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.joins(alone=True)
    clock.now += 1
    pace.steps()
    clock.now += 1000
    pace.begins()
    pace.joins(alone=True)
    clock.now += 1
    pace.steps()
    assert pace.steps_per_second == pytest.approx(1.0)


def test_newcomer_has_to_join_before_the_next_is_taken_up() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.learn(begin_seconds=8.0, step_seconds=0.5)
    assert pace.seconds_until(4) == 2.0
    pace.begins()
    assert pace.seconds_until(4) == 8.0
    clock.now += 5
    assert pace.seconds_until(4) == 3.0
    clock.now += 5
    assert pace.seconds_until(4) == 2.0
    pace.gives_up()
    assert pace.seconds_until(0) == 0.0


def test_newcomer_may_join_while_somebody_asks() -> None:
    """The engine's thread forgets when it began between two reads of it."""
    clock = Clock()

    def reading() -> float:
        if asked:
            pace.gives_up()
        return clock()

    pace = Pace(reading)
    asked = False
    pace.learn(begin_seconds=8.0, step_seconds=0.5)
    pace.begins()
    asked = True
    assert pace.seconds_until(4) == 8.0


def test_responses_that_end_early_are_expected_to_go_on_doing_so() -> None:
    pace = Pace(Clock())
    assert pace.steps_left(0, of=32) == 32
    for _ in range(50):
        pace.ends(8, of=32)
    assert pace.steps_left(0, of=32) == pytest.approx(8)
    assert pace.steps_left(6, of=32) == pytest.approx(2)
    assert pace.steps_left(20, of=32) == 1


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (7.5, 8), (1e9, 3600)]
)
def test_header_is_whole_seconds(seconds: float, expected: int) -> None:
    assert as_retry_after(seconds) == expected
