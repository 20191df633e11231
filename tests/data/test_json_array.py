from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from purifier.data import json_array
from purifier.data.json_array import JsonArray
from purifier.data.sample import Place
from purifier.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


records_of_keys = st.dictionaries(st.text(max_size=3), values, min_size=1, max_size=3)
EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 3)
    monkeypatch.setattr(json_array, "STRIDE", 2)


@pytest.mark.usefixtures("small_chunks")
@EXAMPLES
@given(
    records=st.lists(values, max_size=7),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    ascii_only=st.booleans(),
    start=st.integers(0, 8),
)
def test_any_list_is_read_from_anywhere(
    records: list[object], indent: int | str | None, ascii_only: bool, start: int, tmp_path: Path
) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), "utf-8")
    file = JsonArray(path)
    for first in (start, 0, start):
        read = [(place.record, record) for place, record in file.records(first)]
        assert read == list(enumerate(records))[first:]


@pytest.mark.usefixtures("small_chunks")
@EXAMPLES
@given(
    entries=st.lists(
        st.tuples(records_of_keys, st.sampled_from([True, False, None])), min_size=1, max_size=5
    ),
    indent=st.sampled_from([None, 1, 2, 4]),
)
def test_a_rewritten_list_looks_like_the_old_one(
    entries: list[tuple[dict[str, object], bool | None]], indent: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "set.json"
    end = "\n"
    records, kept = zip(*entries, strict=True)
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=False) + end, "utf-8")

    def edit(place: Place, record: dict[str, object]) -> list[dict[str, object]]:
        # A copy is written anew, as a changed record is.
        return {True: [record], False: [dict(record)], None: []}[kept[place.record]]

    (tmp_path / "new").mkdir(exist_ok=True)
    target = JsonArray(path).rewrite(tmp_path / "new", edit)
    left = [record for record, keep in zip(records, kept, strict=True) if keep is not None]
    assert target.read_text("utf-8") == json.dumps(left, indent=indent, ensure_ascii=False) + end


def test_a_mistake_is_found_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 64)
    path = tmp_path / "set.json"
    path.write_text('[{"a": 1}, {"b": }, ' + "7, " * 100_000 + "7]")
    reads: list[int] = []
    grow = json_array._Window._grow

    def counted(window: json_array._Window) -> None:
        reads.append(1)
        grow(window)

    monkeypatch.setattr(json_array._Window, "_grow", counted)
    with pytest.raises(DataError, match="not valid JSON after record 0"):
        list(JsonArray(path).records())
    assert len(reads) < 5, "the rest of the file is not read"


@pytest.mark.parametrize("text", ["[1 2]", "[1,]", "[1", "[1] 2", "[,1]", '["a]', "[tru]", "[1,"])
def test_what_is_no_list_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not valid JSON"):
        list(JsonArray(path).records())
