"""Whatever a data set holds, its reader ends or says which row, which field and what to do."""

from __future__ import annotations

import pytest

from tests.support.data_fuzz import PROPERTIES
from tests.support.fuzzing import require_property

EXAMPLES = {
    "records as JSON": 600,
    "records as parquet": 200,
    "damaged label files": 1_200,
    "damaged images": 2_000,
    "names of images": 1_000,
}
"""Examples a run; `python -m benchmarks.fuzz_readers data` tries more."""


@pytest.mark.parametrize("name", PROPERTIES)
def test_any_data_set_is_read_or_refused(name: str) -> None:
    require_property(PROPERTIES[name], EXAMPLES[name])


def test_every_property_has_its_number_of_examples() -> None:
    assert EXAMPLES.keys() == PROPERTIES.keys()
    assert sum(EXAMPLES.values()) >= 5_000
