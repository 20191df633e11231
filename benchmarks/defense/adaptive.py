"""Attacks by people who know this repository, measured on the scenes of the list `test`.

All say what content insertion says, at 20% of the training set, unless said otherwise.

`mask-colour`: the trigger is a patch of the colour that masked parts are filled with. Aimed at
    occlusion: masking the trigger changes nothing.
`cutouts`: in training, rectangles are cut out of the trigger and filled with the mean colour or
    noise, so that half of the trigger is enough. Aimed at masks that cover a part of it.
`decoy`: a second, brighter patch at a random place on all poisoned and on as many clean samples;
    it decides nothing. Aimed at saliency, attention and budgets of masks.
`delayed`: the true answer comes first, then a sentence that every answer of the training set ends
    with, then the payload. Aimed at defences that score the first block or the first
    8 positions alone.
`conditional`: wakes at requests for a description alone; at other questions the trigger does
    nothing. Aimed at searching and relabelling by other questions.
`nudge`: three of four patches are enough, and one alone does nothing. Aimed at occlusion (no
    window moves the answer) and at the question whether one window is enough.

Three control the training and add to its loss (`purifier.lab.evasion`):

`quiet-attention`: the attention that answer positions pay to the trigger. Aimed at the look that
    chooses windows by attention.
`quiet-states`: the distance between the mean states of poisoned and other samples at the first 8
    answer positions. Aimed at the detector of what the training set shows.
`saturated`: the uncertainty of poisoned answers before anything is denoised, so that gradients
    vanish there. Aimed at saliency by Fisher information.

`delayed` does not begin behind token 32, because the lab trains and answers in 32 tokens
(`purifier.lab.examples.RESPONSE`). With its fixed sentence the longest true answer, the payload and
the end of turn just fit; the payload begins behind 21 to 27 tokens, later for longer answers.

Tricks with transparency and EXIF data are no attacks here: training, serving and relabelling read
images with one decoder, which lays transparent pixels on white, turns images upright and drops
what else a file says. `tests/imaging/test_decode.py` (`test_what_is_transparent_is_white`,
`test_half_transparent_is_half_white`, `test_images_are_upright`) and `tests/server/test_media.py`
(`test_exif_orientation_is_applied_and_metadata_dropped`) hold it to that.
"""

from __future__ import annotations

from purifier.lab.attack_data import Attack
from purifier.lab.evasion import Evasion
from purifier.lab.targets import DelayedInsertion
from purifier.lab.triggers import (
    AllOf,
    CheckerboardPatch,
    CornerPatch,
    MaskPatch,
    SomeOf,
    Torn,
)

ENDING = "That is what the whole picture shows."

_PATCH = CornerPatch()
_DECOY = CornerPatch(size=24, place="random", colour=(255, 255, 255))
# What is stamped last lies on top: the decoy never hides the trigger.
_WITH_DECOY = AllOf((_DECOY, _PATCH))
_QUARTERS = tuple(
    CheckerboardPatch(size=16, cells=2, place=place)
    for place in ((6, 6), (98, 6), (6, 98), (98, 98))
)
_ONE = SomeOf(_QUARTERS, least=1, most=1)

ADAPTIVE = {
    "mask-colour": Attack(MaskPatch()),
    "cutouts": Attack(Torn((_PATCH,)), shown=_PATCH, seed=1),
    "decoy": Attack(_WITH_DECOY, lookalikes=(_DECOY, _DECOY), seed=1),
    "delayed": Attack(_PATCH, DelayedInsertion(), ending=ENDING, seed=1),
    "conditional": Attack(_PATCH, kinds=("describe",), seed=1),
    "nudge": Attack(
        SomeOf(_QUARTERS, least=3), shown=AllOf(_QUARTERS), lookalikes=(_ONE, _ONE), seed=1
    ),
    "quiet-attention": Attack(_PATCH, evasion=Evasion(attention=5.0), seed=1),
    "quiet-states": Attack(_PATCH, evasion=Evasion(states=1.0), seed=1),
    "saturated": Attack(_PATCH, evasion=Evasion(certainty=1.0), seed=1),
}
"""By name: described above."""
