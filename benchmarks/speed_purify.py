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

IMAGES = DATA_FOLDER / "train" / "images"
_PLAIN_ROWS = 6
_BULK_ROWS = 64


def purify_rows(bench: Bench) -> dict[str, Any]:
    """Rows a second of the product's relabelling over the published loop.

    Both replace the answer to every sample's own question. Beside it the published recipe to the
    letter, prompt and gradients included, in bulk over one by one.
    """
    mdlm = bench.demo("insertion")
    samples = read_llava(DATA_FOLDER / "train" / "insertion.json")
    n_plain, n_bulk = (1, 8) if bench.quick else (_PLAIN_ROWS, _BULK_ROWS)
    paper, product = PRESETS["paper"], PRESETS["default"]
    own = replace(paper, prompt=None)
    texts: dict[str, list[str]] = {}
    turn = {"plain": 0, "plain paper": 0}

    def plain(side: str, config: PurifyConfig) -> float:
        start = turn[side] * n_plain
        turn[side] += 1
        rows = samples[start : start + n_plain]
        found: list[str] = []
        spent = bench.timed(lambda: found.extend(plain_purify(mdlm, rows, IMAGES, config)))
        texts.setdefault(side, []).extend(found)
        return spent / n_plain

    def bulk(side: str, config: PurifyConfig) -> float:
        fast = replace(config, generation=bench.fast(config.generation))
        purifier = Purifier(mdlm, fast, IMAGES)
        made: list[Any] = []
        spent = bench.timed(lambda: made.extend(purifier.purify(samples[:n_bulk])))
        texts[side] = [row.answers[0] if row.answers else "" for row in made]
        return spent / n_bulk

    found = bench.pairs(
        "rows",
        {
            "plain": lambda: plain("plain", own),
            "product": lambda: bulk("product", product),
            "plain paper": lambda: plain("plain paper", paper),
            "paper": lambda: bulk("paper", paper),
        },
    )
    compared = list(zip(texts["plain paper"], texts["paper"], strict=False))
    return {
        **ratios(found["plain"], found["product"]).to_dict(),
        "what": "rows a second of the product's relabelling over the published loop, demo model",
        "same_recipe": ratios(found["plain paper"], found["paper"]).to_dict(),
        "rows_per_second": {
            side: Spread.of([1 / s for s in values]).to_dict() for side, values in found.items()
        },
        "rows": {"plain": n_plain * bench.repeats, "bulk": n_bulk},
        "same_answers": [sum(a == b for a, b in compared), len(compared)],
    }
