"""The load test's report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifier.evaluation.report import markdown_table, percent


def markdown(result: Mapping[str, Any]) -> str:
    """The report beside the figures."""
    facts, settings = result["machine"], result["settings"]
    capacity, memory = result["capacity"], result["memory"]
    parts = [
        "# The service under load\n",
        f"Made by `{result['command']}` on {facts['processor']}, {facts['cores']} cores, device "
        f"{facts['device']}, Python {facts['python']}, torch {facts['torch']}, transformers "
        f"{facts['transformers']}; load average at the start {facts['load']}. Seed "
        f"{settings['seed']}. Server: `disp serve {' '.join(settings['server'])}`.\n",
        "Open loop: requests come by a Poisson process, whatever became of earlier ones, and "
        "latency counts from the moment a request was due. The client runs on the same machine. "
        f"Questions: {settings['questions']}. Capacity: {capacity['per_second']:.2f} answers a "
        f"second with {capacity['clients']} clients that ask anew once they are answered, measured "
        f"for {capacity['seconds']:g} s before. *Bound*: queue and batch full, "
        f"{settings['places']} requests at that rate, {result['bound_seconds']:.1f} s.\n",
        "## Load\n",
        level_table(result["levels"]),
        "*Retried*: share of refused requests that were admitted when they came again after "
        "`Retry-After`, while everybody else kept coming; beside it the share of all requests that "
        "were admitted. *Late client*: the latest that a request was sent after it was due. 95% "
        "Wilson intervals.\n",
        "## `Retry-After`\n",
        truth_lines(result["truth"]),
        "## Memory\n",
        f"Resident memory before the load {memory['before_mb']:.0f} MB, at most "
        f"{memory['peak_mb']:.0f} MB under it, {memory['after_mb']:.0f} MB "
        f"{memory['settled_seconds']:g} s after it; open files {memory['files_before']:.0f} "
        f"before, {memory['files_after']:.0f} after.\n",
        "## Held\n",
        "".join(f"- {'yes' if held else '**no**'}: {what}\n" for what, held in _held(result)),
    ]
    return "\n".join(parts)


def level_table(levels: Sequence[Mapping[str, Any]]) -> str:
    """One row a level of load."""
    header = [
        "load", "offered /s", "requests", "answered", "refused", "other", "answers /s",
        "latency s: median", "p95", "max", "refusal s: p95", "admitted, %", "retried, %",
        "n", "late client s",
    ]  # fmt: skip
    rows = []
    for level in levels:
        ends, latency = level["ends"], level["latency_seconds"]
        other = sum(count for end, count in ends.items() if end not in ("answered", "refused"))
        rows.append(
            [
                f"{level['factor']:g}x",
                f"{level['offered_per_second']:.2f}",
                str(level["requests"]),
                str(ends["answered"]),
                str(ends["refused"]),
                str(other),
                f"{level['answered_per_second']:.2f}",
                *(_seconds(latency[name]) for name in ("median", "p95", "max")),
                _seconds(level["refusal_seconds"]["p95"]),
                percent(level["admitted"]),
                percent(level["retried"]),
                str(level["retried"]["n"]),
                _seconds(level["late_seconds"]),
            ]
        )
    return markdown_table(header, rows)


def truth_lines(truth: Mapping[str, Any]) -> str:
    """What was promised, and what came of it."""
    if not truth["promises"]:
        return "Not measured.\n"
    early, kept = truth["promised_minus_free_seconds"], truth["admitted"]
    return (
        f"The queue of an idle server is filled; who is refused then waits as long as it says and "
        f"asks again, nobody else asking: {percent(kept)}% of {kept['n']} "
        f"are admitted. A place was free {_seconds(truth['free_after']['median'])} s after the "
        f"refusal (median; {_seconds(truth['free_after']['low'])} to "
        f"{_seconds(truth['free_after']['high'])}); promised was {_seconds(early['median'])} s "
        f"more ({_seconds(early['low'])} to {_seconds(early['high'])}), in whole seconds and at "
        "least one.\n"
    )


def _held(result: Mapping[str, Any]) -> list[tuple[str, bool]]:
    return list(result["held"].items())


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
