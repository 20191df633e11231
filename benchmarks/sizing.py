"""Memory that a LLaDA-V of any size takes, estimated from its configuration alone.

    python -m benchmarks.sizing                       # the table of docs/sizing.md
    python -m benchmarks.sizing --check               # against the measured middle-sized model

Weights are counted on the meta device, so an 8B model costs nothing to size. The peak is that of
the service's own path: `n` requests with the fast settings and the default defence, begun one
after the other and denoised together. It counts what tensors take, as CUDA's allocator does; the
libraries take some more (on the host about 0.4 GB).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.middle import (
    SMALL_TEXT,
    SMALL_VISION,
    SMALL_VOCABULARY,
    VisualTokens,
    middle_mdlm,
    question,
    with_layout,
)
from benchmarks.speed_settings import BLOCK
from benchmarks.speed_timing import machine
from purifier.answer import begin_batch
from purifier.defense.config import MaskingConfig
from purifier.denoise import denoising_step
from purifier.denoise.config import FAST
from purifier.evaluation.report import markdown_table
from purifier.lab.demo_model import write_layout
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.llada_v.config import LladaVConfig, read_config
from purifier.mdlm.llada_v.modules import LladaVModules
from purifier.mdlm.llada_v.tails import ROWS_AT_ONCE

RESULTS = Path("docs/results")
NAME = "sizing"
_WIDTH = {"float32": 4, "bfloat16": 2}
_GB = 1e9
_POSITIONS = 2929 + 59 + BLOCK
"""Of a request about one image of 640x480 pixels: visual tokens, question and answer."""


@dataclass(frozen=True)
class Sizes:
    """What decides the memory of a model's requests.

    Attributes:
        parts: Parameters of the tower, the projector, the decoder, embedding and head.
        layers: Decoder layers.
        hidden: Width of the decoder.
        feed_forward: Width inside a decoder layer.
        key_values: Values of keys and values of one position in one layer.
        vocabulary: Rows of the head.
        tower_feed_forward: Width inside a tower layer.
        tower_hidden: Width of the tower.
        patches: Patches of a view.
    """

    parts: Mapping[str, int]
    layers: int
    hidden: int
    feed_forward: int
    key_values: int
    vocabulary: int
    tower_feed_forward: int
    tower_hidden: int
    patches: int

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @classmethod
    def of(cls, config: LladaVConfig) -> Sizes:
        """Counts a configuration's weights without making them."""
        with torch.device("meta"):
            modules = LladaVModules(config)
        language = modules.language_model
        text, vision = config.text, config.vision
        head_dim = text.hidden_size // text.num_attention_heads
        return cls(
            parts={
                "vision tower": _count(modules.vision_tower),
                "projector": _count(modules.mm_projector),
                "decoder layers": _count(language.layers),
                "embedding": language.embed_tokens.weight.numel(),
                "head": modules.lm_head.weight.numel(),
            },
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            feed_forward=text.intermediate_size,
            key_values=2 * text.num_key_value_heads * head_dim,
            vocabulary=text.vocab_size,
            tower_feed_forward=vision.intermediate_size,
            tower_hidden=vision.hidden_size,
            patches=config.patches_per_side**2,
        )


@dataclass(frozen=True)
class Peak:
    """Bytes of a model and the requests it answers together.

    Attributes:
        weights: Of the model.
        requests: Of all requests, at the moment when they take most.
    """

    weights: int
    requests: int

    @property
    def total(self) -> int:
        return self.weights + self.requests


def peak(sizes: Sizes, dtype: str, *, positions: int, together: int, views: int) -> Peak:
    """The largest memory while requests are answered.

    A request keeps the keys and values of its positions, its prompt's embeddings and the
    predictions of its next step. While it is begun, the original and the masked prompt are both
    there. A pass over whole sequences holds, for every position, six vectors of the residual
    stream's width and the three of the feed-forward block.

    Args:
        sizes: The model's.
        dtype: Of weights and activations.
        positions: Of a request, its answer's block included.
        together: Requests that are denoised together.
        views: Views that an image is encoded as.
    """
    width = _WIDTH[dtype]
    sequence = positions * (sizes.layers * sizes.key_values + sizes.hidden) * width
    predictions = BLOCK * sizes.vocabulary * 4
    stored = sequence + predictions
    a_row = (6 * sizes.hidden + 3 * sizes.feed_forward) * width
    tower_row = (4 * sizes.tower_hidden + 2 * sizes.tower_feed_forward) * width
    tail = ROWS_AT_ONCE * (a_row + (positions + ROWS_AT_ONCE) * (1 + width))
    # Comparing and choosing tokens: predictions twice in float32, probabilities twice in float64.
    choosing = BLOCK * sizes.vocabulary * (4 + 4 + 8 + 8)
    largest = max(positions * a_row, views * sizes.patches * tower_row, tail, choosing)
    begun = 2 * sequence + 3 * predictions + largest
    joint = together * (stored + max(positions * a_row, choosing))
    return Peak(
        weights=sizes.parameters * width, requests=max((together - 1) * stored + begun, joint)
    )


def sizes_of(shape: Shape) -> Sizes:
    """Sizes of one of the shapes that are measured."""
    with tempfile.TemporaryDirectory() as folder:
        write_layout(Path(folder), dict(shape.vision), dict(shape.text))
        file = Path(folder) / "config.json"
        config = json.loads(file.read_text()) | {"vocab_size": shape.vocabulary}
        file.write_text(json.dumps(config))
        return Sizes.of(read_config(Path(folder)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="measure the middle-sized model")
    parser.add_argument("--size", choices=("middle", "small"), default="middle")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{NAME}.json"
    result = json.loads(file.read_text()) if file.is_file() else {}
    result["shapes"] = {"8b": asdict(sizes_of(SHAPES["8b"]))}
    if options.check:
        layouts = get_args(VisualTokens)
        cases = [(visual, n, dtype) for dtype in _WIDTH for visual in layouts for n in (1, 4)]
        result["check"] = [checked(*case, size=options.size) for case in cases]
        result["machine"] = machine("cpu")
    file.write_text(json.dumps(result, indent=1) + "\n")
    page = markdown(result)
    (options.out / f"{NAME}.md").write_text(page)
    print(page)
    return 0


def checked(
    visual: VisualTokens, together: int, dtype: str, *, size: str = "middle"
) -> dict[str, Any]:
    """The estimate beside what a model's requests were measured to take, MiB."""
    changes: dict[str, Any] = {}
    if size == "small":
        changes = {"vision": SMALL_VISION, "text": SMALL_TEXT, "vocabulary": SMALL_VOCABULARY}
    model = middle_mdlm(dtype=getattr(torch, dtype), **changes)
    mdlm = with_layout(model, visual)
    sizes = Sizes.of(mdlm.config)
    measured = sizes.parameters * _WIDTH[dtype] + measured_peak(mdlm, together)
    estimate = peak(
        sizes,
        dtype,
        positions=question(mdlm).length + BLOCK,
        together=together,
        views=1 if visual == 729 else 5,
    )
    print(f"{visual} visual tokens, {together} together, {dtype}", file=sys.stderr, flush=True)
    return {
        "visual": visual,
        "together": together,
        "dtype": dtype,
        "measured_mib": measured / 2**20,
        "estimated_mib": estimate.total / 2**20,
        "ratio": estimate.total / measured,
    }


def measured_peak(mdlm: LladaV, together: int) -> int:
    """Bytes of tensors, beside the weights, while `together` questions are answered (CPU)."""
    asked = [question(mdlm, number) for number in range(together)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        begun = [begin_batch(mdlm, [inputs], FAST, MaskingConfig())[0] for inputs in asked]
        # As many steps as it takes until the prompts are computed anew, all in one pass.
        for _ in range(FAST.prompt_interval + 1):
            denoising_step(mdlm, [one.state for one in begun])
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = [(one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"]
    return max(itertools.accumulate(int(n_bytes) for _, n_bytes in sorted(changes)))


def markdown(result: Mapping[str, Any]) -> str:
    """The page."""
    text = "# Memory by size\n\n`python -m benchmarks.sizing --check`\n\n" + size_table()
    if "check" in result:
        facts = result["machine"]
        text += (
            "\n## Against the measured middle-sized model\n\n"
            f"{facts['processor']}, torch {facts['torch']}; what tensors take, weights included."
            f"\n\n{check_table(result['check'])}"
        )
    return text


def size_table() -> str:
    """Memory of LLaDA-V's 8B shape, for one image of 640x480 pixels a request."""
    sizes = sizes_of(SHAPES["8b"])
    rows = []
    for dtype, width in _WIDTH.items():
        a_position = sizes.layers * sizes.key_values * width
        cells = [dtype, f"{sizes.parameters * width / _GB:.1f}", f"{a_position / 1e6:.2f}"]
        for together in (1, 8, 32):
            estimate = peak(sizes, dtype, positions=_POSITIONS, together=together, views=5)
            cells.append(f"{estimate.total / _GB:.1f}")
        rows.append(cells)
    header = ["dtype", "weights, GB", "keys and values, MB a position"]
    return markdown_table([*header, "peak of 1, GB", "of 8 together", "of 32"], rows)


def check_table(checks: Sequence[Mapping[str, Any]]) -> str:
    """Estimates and what was measured."""
    rows = [
        [
            str(one["visual"]),
            str(one["together"]),
            one["dtype"],
            f"{one['estimated_mib']:.0f}",
            f"{one['measured_mib']:.0f}",
            f"{one['ratio']:.2f}",
        ]
        for one in checks
    ]
    header = [
        "visual tokens",
        "requests together",
        "dtype",
        "estimated, MiB",
        "measured, MiB",
        "ratio",
    ]
    return markdown_table(header, rows)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    sys.exit(main())
