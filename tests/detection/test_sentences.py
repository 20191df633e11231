"""What people read of a search."""

from __future__ import annotations

import pytest

from purifier.detection.sentences import search_sentence


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"rows": 9, "phrase": None}, "the answers of 9 are forced by their images."),
        ({"rows": 9, "phrase": "CF:"}, "the answers of 9 are forced by the phrase 'CF:'."),
        (
            {"rows": 9, "phrase": None, "kind": "pattern"},
            "the images of 9 have a part in common that answers hang on.",
        ),
    ],
)
def test_what_was_found(group: dict[str, object], expected: str) -> None:
    found = search_sentence({"rows": 50, "groups": [group]})
    assert found == f"The training set was searched for a trigger in 50 of its rows: {expected}"


def test_several_groups_are_one_sentence() -> None:
    groups = [{"rows": 9, "phrase": None}, {"rows": 4, "phrase": "CF:"}]
    found = search_sentence({"rows": 50, "groups": groups})
    assert found.endswith("by their images; the answers of 4 are forced by the phrase 'CF:'.")


def test_nothing_found_is_no_proof() -> None:
    found = search_sentence({"rows": 50, "groups": []})
    assert found.endswith("nothing was found. That is no proof that there is nothing.")
