"""Rows a second that a data set is purified at: in bulk against the published loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.plain import plain_purify
from benchmarks.speed_timing import Bench, Spread, ratios
from purifier.data.llava import read_llava
from purifier.lab.demo import DATA_FOLDER
from purifier.purification.config import PRESETS, PurifyConfig
from purifier.purification.purifier import Purifier

_PLAIN_ROWS = 6
_BULK_ROWS = 64


def purify_rows(bench: Bench) -> dict[str, Any]:
    """Rows a second of the published recipe: the same settings, fast and in bulk, over plain."""
    mdlm = bench.demo("insertion")
    images = DATA_FOLDER / "train" / "images"
    samples = read_llava(DATA_FOLDER / "train" / "insertion.json")
    n_plain, n_bulk = (1, 8) if bench.quick else (_PLAIN_ROWS, _BULK_ROWS)
    configs = {"paper": _fast(bench, PRESETS["paper"]), "default": _fast(bench, PRESETS["default"])}
    texts: dict[str, list[str]] = {}
    turn = iter(range(bench.repeats + 1))

    def plain() -> float:
        start = next(turn) * n_plain
        rows = samples[start : start + n_plain]
        found: list[str] = []
        spent = bench.timed(lambda: found.extend(plain_purify(mdlm, rows, images)))
        texts.setdefault("plain", []).extend(found)
        return spent / n_plain

    def bulk(name: str) -> float:
        purifier = Purifier(mdlm, configs[name], images)
        made: list[Any] = []
        spent = bench.timed(lambda: made.extend(purifier.purify(samples[:n_bulk])))
        texts[name] = [row.answers[0] if row.answers else "" for row in made]
        return spent / n_bulk

    sides = {"plain": plain, "paper": lambda: bulk("paper"), "default": lambda: bulk("default")}
    found = bench.pairs("rows", sides)
    compared = list(zip(texts["plain"], texts["paper"], strict=False))
    return {
        **ratios(found["plain"], found["paper"]).to_dict(),
        "what": "rows a second of the paper's recipe, in bulk over one by one, demo model",
        "default_settings": ratios(found["plain"], found["default"]).to_dict(),
        "rows_per_second": {
            side: Spread.of([1 / s for s in values]).to_dict() for side, values in found.items()
        },
        "rows": {"plain": n_plain * bench.repeats, "bulk": n_bulk},
        "same_answers": [sum(a == b for a, b in compared), len(compared)],
    }


def _fast(bench: Bench, config: PurifyConfig) -> PurifyConfig:
    return replace(config, generation=bench.fast(config.generation))
