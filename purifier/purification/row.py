"""What became of one sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from purifier.errors import DataError

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class PurifiedRow:
    """The outcome for one sample.

    Attributes:
        record: Number of its record in the data set, counted from 0.
        id: The record's own id; None if it had none.
        answers: Texts of all its assistant turns, new ones in place of old ones; None keeps
            the sample as it is.
        flagged: Whether one of its labels disagrees with what the masked model sees; None if
            that was not asked (policy `relabel_all`, a sample without images or answers).
        dropped: Whether the sample is left out of the purified set; also where the model's
            detector answers to it until most of its images are masked, or where the masked answer
            would teach the payload again.
        problem: Code of why it could not be purified: a reason of `purifier.data.dataset`,
            `prompt_too_long`, or `empty_answer` where the masked model said nothing. Such a
            sample is dropped, for its label may be the attacker's. None if it could.
        further: Pairs of a further prompt and its answer.
        side: What the side table tells about it: mean `mask_ratio` of its questions, the
            largest and the mean saliency (`saliency_max`, `saliency_mean`), `flag_nats`,
            the largest score of the model's detector (`detected`),
            under policy `certified` the least `agreement` of the masks over its answers,
            whether a new answer ended by its length (`truncated`), `seconds`. Only `seconds`
            differs between runs.
    """

    record: int
    id: str | int | None
    answers: tuple[str, ...] | None = None
    flagged: bool | None = None
    dropped: bool = False
    problem: str | None = None
    further: tuple[tuple[str, str], ...] = ()
    side: Mapping[str, Scalar] = field(default_factory=dict)

    def to_json(self) -> str:
        """The row as one line of JSON, without its end."""
        values = {
            "record": self.record,
            "id": self.id,
            "answers": self.answers,
            "flagged": self.flagged,
            "dropped": self.dropped,
            "problem": self.problem,
            "further": self.further,
            "side": dict(self.side),
        }
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> PurifiedRow:
        """A row from `to_json`.

        Raises:
            DataError: If the line is not such a row.
        """
        try:
            values: dict[str, Any] = json.loads(line)
            answers = values["answers"]
            return cls(
                record=values["record"],
                id=values["id"],
                answers=None if answers is None else tuple(answers),
                flagged=values["flagged"],
                dropped=values["dropped"],
                problem=values["problem"],
                further=tuple((prompt, answer) for prompt, answer in values["further"]),
                side=values["side"],
            )
        except (ValueError, TypeError, KeyError):
            raise DataError("A line is not a purified row; its file is damaged.") from None
