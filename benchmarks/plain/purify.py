"""The published relabelling: one row after another, every row from the image file on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.plain.answer import plain_answer
from purifier.data.sample import Sample, open_image
from purifier.mdlm.llada_v import LladaV
from purifier.purification.config import PRESETS, PurifyConfig
from purifier.purification.dialogue import answer_prompt
from purifier.purification.seeds import answer_seed


def plain_purify(
    mdlm: LladaV,
    samples: Sequence[Sample],
    images: Path,
    config: PurifyConfig | None = None,
) -> Iterator[str]:
    """New first answers of samples, one at a time.

    Args:
        mdlm: The compromised model.
        samples: With one image each.
        images: Folder of the image files.
        config: Prompt, generation and masking settings and the job's seed; by default the preset
            `paper`. Without a prompt every sample's own question is asked. The published code
            seeds every row alike; here a row has the seed that the product gives it, so that both
            give the same answers.
    """
    config = config or PRESETS["paper"]
    for sample in samples:
        picture = open_image(images, sample.images[0], sample.source)
        inputs = mdlm.prepare(answer_prompt(sample, [picture], 0, (), config.prompt))
        masking = replace(config.masking, seed=answer_seed(config.seed, sample, 0))
        yield plain_answer(mdlm, inputs, config.generation, masking).text
