"""Purification jobs, as the database has them: whoever works on them, on whichever machine."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.store.database import DatabaseError
from server.store.job_counts import JobCounter
from server.store.jobs import JobStatus

_log = logging.getLogger("disp.server")


class JobCollector(Collector):
    """Asks the database when it is asked.

    A database that cannot be read shows as `disp_database_up` 0; all else is still told.

    Args:
        counter: Counts jobs and rows.
    """

    def __init__(self, counter: JobCounter) -> None:
        self._counter = counter

    def collect(self) -> Iterable[Metric]:
        """Jobs by status, rows by outcome."""
        up = GaugeMetricFamily("disp_database_up", "Whether the database could be read just now.")
        try:
            counts = self._counter.read()
        except DatabaseError:
            _log.warning("The database could not be read for /metrics.")
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        jobs = GaugeMetricFamily("disp_jobs", "Jobs, by status.", labels=["status"])
        for status in get_args(JobStatus):
            jobs.add_metric([status], counts.jobs.get(status, 0))
        yield jobs
        rows = CounterMetricFamily("disp_job_rows", "Rows, by outcome.", labels=["outcome"])
        for outcome, count in counts.rows.items():
            rows.add_metric([outcome], count)
        yield rows
        yield CounterMetricFamily(
            "disp_job_rows_flagged", "Rows whose label was found to disagree.", counts.flagged
        )
