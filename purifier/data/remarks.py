"""What the reader of a data set had to assume about rows that it did not refuse."""

from __future__ import annotations

from collections.abc import Mapping

MARK_ADDED = "mark_added"
NULL_IMAGE = "null_image"

REMARKS = {
    MARK_ADDED: "Rows with one image and no <image> mark: {:,}. The mark was put in front of "
    "their first question; set mark_images to false to refuse such rows.",
    NULL_IMAGE: "Rows whose image field is null: {:,}. They are read as text alone.",
}
"""Sentences by code, with a place for the number of rows."""


def sentences(counts: Mapping[str, int]) -> list[str]:
    """One sentence for every remark that was made.

    Args:
        counts: Number of rows by code.
    """
    return [text.format(counts[code]) for code, text in REMARKS.items() if counts.get(code)]
