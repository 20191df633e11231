"""What a detection says of the answer that follows."""

from __future__ import annotations

import pytest

from purifier.detection.guard import Detection


@pytest.mark.parametrize(
    ("detection", "token_ids", "expected"),
    [
        (Detection(0.9, 0.1, payload=frozenset({7})), [3, 7], True),
        (Detection(0.9, 0.1, payload=frozenset({7})), [3, 4], False),
        (Detection(0.1, 0.1, payload=frozenset({7})), [3, 7], False),
        (Detection(0.9, 0.4, suspicious=True), [], True),
    ],
    ids=["payload", "another answer", "not detected", "not silenced"],
)
def test_an_answer_is_doubted(detection: Detection, token_ids: list[int], expected: bool) -> None:
    assert detection.doubts(token_ids) is expected
