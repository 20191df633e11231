"""Memory that a LLaDA-V of any size takes, told from its configuration alone.

    python -m benchmarks.sizing                       # the table of docs/deployment.md
    python -m benchmarks.sizing --check               # against the measured middle-sized model

Weights are counted on the meta device, so an 8B model costs nothing to size. The peak is that of
the service's own path: `n` requests with the fast settings and the default defence, begun one
after the other and denoised together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.middle import (
    SMALL_TEXT,
    SMALL_VISION,
    TEXT,
    VISION,
    VOCABULARY,
    VisualTokens,
    middle_mdlm,
    question,
    with_layout,
)
from benchmarks.peak_memory import host_mib, reset_host_peak
from benchmarks.speed_settings import BLOCK
from benchmarks.speed_timing import machine
from purifier.answer import begin_batch
from purifier.defense.config import MaskingConfig
from purifier.denoise import denoising_step
from purifier.denoise.config import FAST
from purifier.evaluation.report import markdown_table
from purifier.lab.demo_model import write_layout
from purifier.mdlm.llada_v.config import LladaVConfig, read_config
from purifier.mdlm.llada_v.modules import LladaVModules

RESULTS = Path("docs/results")
NAME = "sizing"
_WIDTH = {"float32": 4, "bfloat16": 2}
_GB = 1e9
_TEXT_POSITIONS = 100
"""Of a short question, with the chat's marks."""
_CHECKED = ((729, 1), (729, 4), (2929, 1), (2929, 4))


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
        stored: Keys and values, and the prompts' embeddings, of all requests.
        activations: Of the largest pass.
    """

    weights: int
    stored: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.stored + self.activations


def peak(sizes: Sizes, dtype: str, *, visual: int, together: int, views: int) -> Peak:
    """The largest memory while requests are answered.

    A pass over whole sequences holds, for every position, the residual stream and its normed
    copy, and then either queries, keys and values with their rotated copies, or the three
    vectors of the feed-forward block. Predictions are float32, remasking's softmax float64.

    Args:
        sizes: The model's.
        dtype: Of weights and activations.
        visual: Visual tokens of a request.
        together: Requests that are denoised together.
        views: Views that an image is encoded as.
    """
    width = _WIDTH[dtype]
    positions = visual + _TEXT_POSITIONS + BLOCK
    stored = positions * (sizes.layers * sizes.key_values + sizes.hidden) * width
    attention = 2 * sizes.hidden + 4 * sizes.hidden + sizes.key_values
    feed_forward = 2 * sizes.hidden + 3 * sizes.feed_forward
    decoder = together * positions * max(attention, feed_forward) * width
    head = together * BLOCK * sizes.vocabulary * (4 + 4 + 8 + 8)
    tower_row = 3 * sizes.tower_hidden + 2 * sizes.tower_feed_forward
    tower = views * sizes.patches * tower_row * width
    return Peak(
        weights=sizes.parameters * width,
        stored=together * stored,
        activations=max(decoder, head, tower),
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
    parser.add_argument("--measure", metavar="JSON", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measured_peak(**json.loads(options.measure))))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{NAME}.json"
    result = json.loads(file.read_text()) if file.is_file() else {}
    result["shapes"] = {"8b": asdict(sizes_of(SHAPES["8b"]))}
    if options.check:
        result["check"] = [checked(visual, n) for visual, n in _CHECKED]
        result["machine"] = machine("cpu")
    file.write_text(json.dumps(result, indent=1) + "\n")
    page = markdown(result)
    (options.out / f"{NAME}.md").write_text(page)
    print(page)
    return 0


def checked(visual: int, together: int, size: str = "middle") -> dict[str, Any]:
    """The estimate beside the measured peak, MiB, of a process of its own."""
    wanted = {"visual": visual, "together": together, "size": size}
    command = [sys.executable, "-m", "benchmarks.sizing", "--measure", json.dumps(wanted)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: float = json.loads(done.stdout)["peak_mib"]
    sizes = sizes_of(SHAPES["middle"] if size == "middle" else SHAPES["tiny"])
    views = 1 if visual == 729 else 5
    estimate = peak(sizes, "float32", visual=visual, together=together, views=views)
    return {
        **wanted,
        "measured_mib": measured,
        "estimated_mib": estimate.total / 2**20,
        "ratio": estimate.total / 2**20 / measured,
    }


def measured_peak(visual: VisualTokens, together: int, size: str) -> dict[str, float]:
    """Makes a model and answers `together` questions at once; MiB above what was there before."""
    small: dict[str, Any] = {"vision": SMALL_VISION, "text": SMALL_TEXT, "vocabulary": 1200}
    whole: dict[str, Any] = {"vision": VISION, "text": TEXT, "vocabulary": VOCABULARY}
    before = host_mib("VmRSS")
    mdlm = with_layout(middle_mdlm(**(whole if size == "middle" else small)), visual)
    asked = [question(mdlm, number) for number in range(together)]
    reset_host_peak()
    begun = [begin_batch(mdlm, [inputs], FAST, MaskingConfig())[0] for inputs in asked]
    for _ in range(FAST.prompt_interval + 1):
        denoising_step(mdlm, [one.state for one in begun])
    return {"peak_mib": host_mib("VmHWM") - before}


def markdown(result: Mapping[str, Any]) -> str:
    """The page."""
    text = "# Memory by size\n\n`python -m benchmarks.sizing --check`\n\n" + size_table()
    if "check" in result:
        facts = result["machine"]
        text += (
            "\n## Against the measured middle-sized model\n\n"
            f"{facts['processor']}, float32, torch {facts['torch']}; resident memory above that of "
            f"the libraries.\n\n{check_table(result['check'])}"
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
            estimate = peak(sizes, dtype, visual=2929, together=together, views=5)
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
            f"{one['estimated_mib']:.0f}",
            f"{one['measured_mib']:.0f}",
            f"{one['ratio']:.2f}",
        ]
        for one in checks
    ]
    header = ["visual tokens", "requests together", "estimated, MiB", "measured, MiB", "ratio"]
    return markdown_table(header, rows)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    sys.exit(main())
