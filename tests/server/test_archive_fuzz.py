"""Whatever an archive says of itself, it is unpacked within its limits or leaves nothing."""

from __future__ import annotations

import pytest

from tests.support.archive_fuzz import PROPERTIES
from tests.support.fuzzing import require_property

EXAMPLES = {
    "sound archives": 200,
    "odd members": 600,
    "damaged archives": 600,
    "headers of tar": 600,
    "headers of zip": 400,
    "any bytes": 200,
}
"""Examples a run; `python -m benchmarks.fuzz_readers archive` tries more."""


@pytest.mark.parametrize("name", PROPERTIES)
def test_any_archive_is_unpacked_or_refused(name: str) -> None:
    require_property(PROPERTIES[name], EXAMPLES[name])


def test_every_property_has_its_number_of_examples() -> None:
    assert EXAMPLES.keys() == PROPERTIES.keys()
    assert sum(EXAMPLES.values()) >= 2_000
