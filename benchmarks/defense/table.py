"""Every run's settings, seed and result as one tidy table, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.defense.attacks import attack_by_name, parts_of, passes_of
from benchmarks.defense.cells import Row
from benchmarks.defense.defences import DEFENCES

FIGURES = (
    "asr",
    "asr_exact",
    "asr_untriggered",
    "clean_exact",
    "clean_slots",
    "recovered",
    "recovered_true",
)
_PARTS = ("value", "low", "high", "n")


def write_table(rows: Sequence[Row], facts: Mapping[str, str], path: Path) -> None:
    """Writes one line a cell, as parquet.

    Args:
        rows: Measured cells.
        facts: What all have in common; kept in the file's metadata.
        path: The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    undefended = {row["attack"]: row for row in rows if row["defence"] == "none"}
    table = pa.Table.from_pylist([_flat(row, undefended.get(row["attack"])) for row in rows])
    pq.write_table(table.replace_schema_metadata(dict(facts)), path)


def read_table(path: Path) -> tuple[list[Row], dict[str, str]]:
    """The rows of a table, without the answers themselves, and what all have in common."""
    table = pq.read_table(path)
    facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    rows = []
    for line in table.to_pylist():
        figures = {name: {part: line[f"{name}_{part}"] for part in _PARTS} for name in FIGURES}
        own = {name: line[name] for name in ("key", "attack", "defence", "changed", "seconds")}
        # A table of older cells has no such columns.
        own |= {"outdated": bool(line.get("outdated")), "weights": line.get("weights") or ""}
        details = json.loads(line.get("details") or "{}")
        own |= {"details": details} if details else {}
        rows.append({**own, "figures": figures if line["asr_n"] is not None else None})
    return rows, facts


def _flat(row: Row, undefended: Row | None) -> dict[str, Any]:
    listed, kind = parts_of(row["attack"])
    attack = attack_by_name(row["attack"])
    flat: dict[str, Any] = {
        "attack": row["attack"],
        "list": listed,
        "kind": kind,
        "target": attack.target.name,
        "rate": attack.rate,
        "seed": attack.seed,
        "epochs": passes_of(row["attack"]),
        "defence": row["defence"],
        "settings": str(dict(DEFENCES[row["defence"]].settings)),
        "seconds": row["seconds"],
        "changed": _changed(row, undefended),
        "details": json.dumps(row["details"]) if "details" in row else None,
        "outdated": bool(row.get("outdated")),
        "weights": row.get("weights", ""),
        "key": row["key"],
    }
    for name in FIGURES:
        figure = (row["figures"] or {}).get(name, {})
        flat |= {f"{name}_{part}": figure.get(part) for part in _PARTS}
    return flat


def _changed(row: Row, undefended: Row | None) -> float | None:
    """Share of the answers to clean images that differ from the undefended ones.

    A row that was read from a table has the share and no answers.
    """
    if undefended is None or "clean" not in undefended or "clean" not in row:
        return row.get("changed")
    pairs = list(zip(undefended["clean"], row["clean"], strict=True))
    changed: int = sum(before != after for before, after in pairs)
    return changed / len(pairs)
