"""The random numbers of an answer depend on the job's seed and the sample, on nothing else.

So a sample is purified alike in whatever batch, shard or process it falls.
"""

from __future__ import annotations

import hashlib
import json

from purifier.data.sample import Sample
from purifier.errors import DataError


def answer_seed(job_seed: int, sample: Sample, question: int) -> int:
    """The seed of one answer, 0 to 2^63 - 1.

    Args:
        job_seed: The job's seed.
        sample: Told apart by its id, or by its record's number if it has none.
        question: Which question about the sample is answered, counted from 0.

    Raises:
        DataError: If the sample has neither id nor record number.
    """
    key = [job_seed, *_name(sample), question]
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _name(sample: Sample) -> tuple[str, str | int]:
    if sample.id is not None:
        return "id", sample.id
    if sample.source is None:
        raise DataError("A sample needs an id or a place in a file to be purified.", param="id")
    return "record", sample.source.record
