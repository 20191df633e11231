"""The soak's report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purifier.evaluation.report import markdown_table


def markdown(result: Mapping[str, Any]) -> str:
    """The report beside the figures."""
    facts, settings, status = result["machine"], result["settings"], result["status"]
    before, after, course = result["before"], result["after"], result["memory"]
    counts = [[name, str(count)] for name, count in sorted(result["counts"].items())]
    counts += [[f"answered by {name}", str(n)] for name, n in sorted(result["answered_by"].items())]
    engine = [[name, str(status[name])] for name in _ENGINE]
    held = "".join(
        f"- {'yes' if ok else '**no**'}: {what}\n" for what, ok in result["held"].items()
    )
    parts = [
        "# Mixed load with swaps\n",
        f"Made by `{result['command']}` on {facts['processor']}, {facts['cores']} cores, device "
        f"{facts['device']}, Python {facts['python']}, torch {facts['torch']}, transformers "
        f"{facts['transformers']}; load average at the start {facts['load']}. Seed "
        f"{settings['seed']}. Server: `disp serve {' '.join(settings['server'])}`.\n",
        f"For {settings['seconds']:g} s {settings['askers']} clients ask, {settings['leavers']} "
        f"more leave before the end, crowds of {settings['crowd']} ask at once and half "
        "of them leave, one sends what must be refused, one swaps checkpoints, one reads the "
        "metrics. The "
        f"{settings['questions']} questions mix lengths, levels, rankers, ratios, caches, guidance "
        f"and temperature; {result['distinct']} of them are answered differently by the two "
        "checkpoints. Every answer was compared with that of the checkpoint it names, which an "
        "idle server had given before.\n",
        "## What happened\n",
        markdown_table(["clients", "count"], counts),
        markdown_table(["engine", "count"], engine),
        "## Memory and open files\n",
        f"Resident memory: {before['rss_mb']:.0f} MB before, {course['half_time_mb']:.0f} MB at "
        f"half-time, {course['end_mb']:.0f} MB at the end, {course['peak_mb']:.0f} MB at most, "
        f"{after['rss_mb']:.0f} MB afterwards; trend of the second half "
        f"{course['trend_mb_per_minute']:+.2f} MB a minute. Open files: {before['open_files']:.0f} "
        f"before, {after['open_files']:.0f} afterwards. Idle again "
        f"{_or_never(result['idle_after_seconds'])} after the last client.\n",
        "## Held\n",
        held,
    ]
    if result["faults"]:
        parts += ["## Faults\n", "".join(f"- {fault}\n" for fault in result["faults"])]
    return "\n".join(parts)


_ENGINE = (
    "admitted",
    "completed",
    "failed",
    "cancelled",
    "refused",
    "steps",
    "request_steps",
    "largest_batch",
    "shared_defences",
)


def _or_never(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.2f} s"
