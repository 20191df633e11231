from hypothesis import given
from hypothesis import strategies as st

from purifier.denoise.schedule import linear_schedule


@given(st.integers(0, 300), st.integers(1, 300))
def test_schedule_commits_everything_evenly(n: int, steps: int) -> None:
    schedule = linear_schedule(n, steps)
    assert len(schedule) == steps
    assert sum(schedule) == n
    assert max(schedule) - min(schedule) <= 1
    assert schedule == sorted(schedule, reverse=True)
