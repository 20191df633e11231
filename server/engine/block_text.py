"""The text of a response as its blocks are finished."""

from __future__ import annotations

from purifier.denoise import DenoisingState
from purifier.denoise.state import stop_ids
from purifier.mdlm.base import Mdlm

_CUT_CHARACTER = "\ufffd"
"""What a character decodes to whose bytes are not all there."""


class BlockText:
    """Text of a response that will not change any more, piece by piece.

    The pieces make up the beginning of the answer's text. Held back is what a later token may
    still take away or alter: tokens that may begin a stop sequence, a character whose bytes
    are not all there, and white space, which the end of an answer loses.

    Args:
        mdlm: Decodes.
        state: The response.
    """

    def __init__(self, mdlm: Mdlm, state: DenoisingState) -> None:
        self._mdlm = mdlm
        self._state = state
        self._stops = stop_ids(mdlm, state.config)
        self._mask = mdlm.tokens.mask
        self._blocks = 0
        self._sent = ""

    def advance(self) -> str:
        """The text that has become certain since the last call, often none."""
        if self._state.block == self._blocks:
            return ""
        self._blocks = self._state.block
        text = self._mdlm.decode(self._certain_ids()).strip().rstrip(_CUT_CHARACTER).rstrip()
        if not text.startswith(self._sent):
            return ""
        piece = text[len(self._sent) :]
        self._sent = text
        return piece

    def _certain_ids(self) -> list[int]:
        """Ids of the finished blocks, without an end that may turn out to begin a stop sequence."""
        ids = self._state.ids[: self._state.block * self._state.config.block]
        if self._state.stop_at is not None:
            ids = ids[: self._state.stop_at]
        if self._mask in ids:
            return ids[: ids.index(self._mask)]
        for length in range(max(map(len, self._stops), default=1) - 1, 0, -1):
            if any(len(stop) > length and ids[-length:] == stop[:length] for stop in self._stops):
                return ids[:-length]
        return ids
