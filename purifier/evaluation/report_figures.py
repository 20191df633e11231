"""The report's figures as geometry for inline SVG; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LEFT, RIGHT, TOP, STEP = 210, 950, 14, 46
WIDTH = 984
LOSS_WIDTH, LOSS_HEIGHT, LOSS_LEFT, LOSS_BOTTOM = 984, 190, 56, 160


def interval_figure(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Every metric before and after as a dot with its 95% interval on one scale, 0 to 100%.

    Args:
        metrics: With `heading`, and the rates `before` and `after`.

    Returns:
        Coordinates in pixels; None without metrics.
    """
    if not metrics:
        return None
    rows = []
    for number, metric in enumerate(metrics):
        y = TOP + STEP * number + STEP / 2
        marks = [
            {"kind": kind, "y": y + shift, **_span(metric[kind])}
            for kind, shift in (("before", -7), ("after", 7))
        ]
        rows.append({"heading": metric["heading"], "y": y, "marks": marks})
    bottom = TOP + STEP * len(rows)
    ticks = [{"x": _x(share / 100), "label": f"{share}%"} for share in (0, 25, 50, 75, 100)]
    return {
        "width": WIDTH,
        "height": bottom + 26,
        "left": LEFT,
        "right": RIGHT,
        "top": TOP,
        "bottom": bottom,
        "rows": rows,
        "ticks": ticks,
    }


def loss_figure(points: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """The training loss over the steps; None for fewer than two points."""
    if len(points) < 2:
        return None
    steps, losses = zip(*points, strict=True)
    first, last, top = min(steps), max(steps), max(losses) or 1.0
    right, height = LOSS_WIDTH - 20, LOSS_BOTTOM - 12
    line = [
        (
            LOSS_LEFT + (right - LOSS_LEFT) * (step - first) / max(last - first, 1e-9),
            LOSS_BOTTOM - height * max(loss, 0.0) / top,
        )
        for step, loss in points
    ]
    return {
        "width": LOSS_WIDTH,
        "height": LOSS_HEIGHT,
        "left": LOSS_LEFT,
        "right": right,
        "bottom": LOSS_BOTTOM,
        "top": LOSS_BOTTOM - height,
        "path": " ".join(f"{x:.1f},{y:.1f}" for x, y in line),
        "highest": f"{top:.3g}",
        "first": f"{first:g}",
        "last": f"{last:g}",
    }


def _span(rate: Mapping[str, Any]) -> dict[str, float]:
    return {"x": _x(rate["value"]), "low": _x(rate["low"]), "high": _x(rate["high"])}


def _x(share: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * min(max(share, 0.0), 1.0), 1)
