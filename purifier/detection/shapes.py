"""What kind of request the states of a detector are of."""

from __future__ import annotations

import hashlib

from purifier.mdlm.base import Inputs, Mdlm


def shape_of(mdlm: Mdlm, inputs: Inputs) -> str:
    """All of a request that is not its last question: the system message, turns before, images.

    States of a second turn, of two images or of none lie elsewhere than those of the rows that a
    detector was made of, trigger or not.

    Returns:
        Number of images, and the first 16 hexadecimal digits of the SHA-256 of the ids up to the
        last question.
    """
    ids = inputs.ids.tolist()
    last = max((place for place, token in enumerate(ids) if token == mdlm.tokens.eot), default=-1)
    start = max(
        (place for place in range(max(last, 0)) if ids[place] == mdlm.tokens.end_header), default=0
    )
    before = ",".join(map(str, ids[:start])).encode()
    return f"{len(inputs.images)}-{hashlib.sha256(before).hexdigest()[:16]}"
