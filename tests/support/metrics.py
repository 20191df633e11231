"""What `/metrics` says, read by Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Reading:
    """One scrape.

    Attributes:
        families: Name -> family; counters without `_total`, as the parser has them.
    """

    families: Mapping[str, Metric]

    @classmethod
    def of(cls, text: str) -> Reading:
        families = list(text_string_to_metric_families(text))
        assert len({family.name for family in families}) == len(families)
        return cls({family.name: family for family in families})

    @classmethod
    def take(cls, client: httpx.Client) -> Reading:
        response = client.get("/metrics").raise_for_status()
        assert response.headers["content-type"].startswith("text/plain")
        return cls.of(response.text)

    def value(self, sample: str, **labels: str) -> float:
        """Sum of all samples of a name that have these labels."""
        return sum(
            found.value
            for family in self.families.values()
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )

    def labels(self, sample: str, label: str) -> set[str]:
        """The values that a label has in the samples of a name."""
        return {
            found.labels[label]
            for family in self.families.values()
            for found in family.samples
            if found.name == sample
        }
