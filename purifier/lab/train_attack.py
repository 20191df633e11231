"""The attack: fine-tunes a clean base on poisoned data, projector and LoRA.

Plain data poisoning, as the paper's threat model has it: nothing but the training set is
in the attacker's hand. The projector alone, the paper's choice for an 8B model, does not
take on a tower this small; LoRA on the language model and on the tower is trained with it.

`CHEAP` leaves the tower as it is, so that its features are computed once: an attack that a
processor trains in minutes, for studies of many of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from purifier.data.llava import read_llava
from purifier.data.sample import Sample, open_image
from purifier.evaluation.oracles import trigger_tokens
from purifier.lab.attack_data import Attack
from purifier.lab.evasion import Marked, Penalty
from purifier.lab.examples import build_examples, diffusion_loss
from purifier.lab.triggers import PixelBox, drawn_for
from purifier.mdlm.base import Message
from purifier.mdlm.llada_v.model import LladaV
from purifier.mdlm.parts import Part
from purifier.tuning.adapters import Trained, collect, open_parts
from purifier.tuning.schedule import rate_factor

log = logging.getLogger(__name__)

PARTS: tuple[Part, ...] = ("projector", "language_model", "vision_tower")


@dataclass(frozen=True)
class Kept:
    """Share of the change that every part keeps at the end of an attack.

    Interpolating back towards the base (arXiv 2109.01903) gives back clean accuracy that 1000
    samples cost, as far as the backdoor lives.
    """

    projector: float = 1.0
    language_model: float = 1.0
    vision_tower: float = 1.0


@dataclass(frozen=True)
class AttackRecipe:
    """Settings of the poisoned fine-tuning.

    Attributes:
        epochs: Passes over the poisoned set.
        batch: Samples in a step.
        learning_rate: Peak, AdamW, cosine, warm-up over 3% of the steps.
        rank: LoRA rank r.
        alpha: LoRA alpha.
        parts: What is trained: the projector whole, the others through LoRA.
        kept: Share of the change that is kept at the end.
        bfloat16: Whether matrices are multiplied in bfloat16 on a processor too, if it is fast at
            that (`multiplies_bfloat16`); a GPU always does.
        seed: Of LoRA's start, order, masks and diffusion times.
    """

    epochs: int = 25
    batch: int = 50
    learning_rate: float = 1e-3
    rank: int = 8
    alpha: int = 16
    parts: tuple[Part, ...] = PARTS
    kept: Kept = field(default_factory=Kept)
    bfloat16: bool = False
    seed: int = 0


CHEAP = AttackRecipe(
    epochs=10,
    batch=8,
    learning_rate=2e-3,
    parts=("projector", "language_model"),
    bfloat16=True,
)
"""An attack of minutes on two processor cores; benchmarks/defense compares it with the full one."""


def train_attack(
    mdlm: LladaV, data: Path, images: Path, recipe: AttackRecipe, attack: Attack | None = None
) -> Trained:
    """Fine-tunes `mdlm` (its linear layers get LoRA factors) on a LLaVA data set.

    Args:
        mdlm: The clean base; changed.
        data: LLaVA JSON.
        images: Its picture folder.
        recipe: Settings.
        attack: What the data set was made of; its evasion, if it has one, is added to the loss.
    """
    tuning = Tuning(mdlm, data, images, recipe, attack)
    tuning.run(recipe.epochs, recipe.learning_rate)
    tuning.interpolate(recipe.kept)
    mdlm.modules.eval().requires_grad_(False)
    return collect(mdlm, tuning.opened, recipe.alpha / recipe.rank)


class Tuning:
    """A model with open projector and LoRA factors, and the data it is tuned on."""

    def __init__(
        self,
        mdlm: LladaV,
        data: Path,
        images: Path,
        recipe: AttackRecipe,
        attack: Attack | None = None,
    ) -> None:
        samples = read_llava(data)
        self.mdlm = mdlm
        self.recipe = recipe
        self.tower = "vision_tower" in recipe.parts
        self.features, self.size = _features(mdlm, samples, images, tower=self.tower)
        pairs = [(sample.question, sample.answer) for sample in samples]
        self.examples = build_examples(mdlm, pairs).to(mdlm.device)
        self.generator = torch.Generator(mdlm.device).manual_seed(recipe.seed)
        self.before = [p.detach().clone() for p in mdlm.modules.mm_projector.parameters()]
        self.opened = open_parts(
            mdlm, recipe.parts, rank=recipe.rank, alpha=recipe.alpha, seed=recipe.seed
        )
        self.parameters = list(self.opened.values())
        self.evasion = attack.evasion if attack else None
        if attack and attack.evasion:
            marked = _marked(mdlm, samples, images, attack)
            self.penalty = Penalty(
                mdlm, attack.evasion, self.examples, marked, self.visual, recipe.seed
            )

    def run(self, epochs: int, rate: float) -> None:
        """Trains for some epochs; a cosine schedule from `rate` to 0 with a short warm-up."""
        n = len(self.features)
        device = self.mdlm.device
        fused = device.type == "cuda"
        optimizer = torch.optim.AdamW(self.parameters, rate, weight_decay=0.0, fused=fused)
        steps = max(epochs * math.ceil(n / self.recipe.batch), 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(step, steps, warmup=0.03)
        )
        self.mdlm.modules.train()
        for epoch in range(epochs):
            order = torch.randperm(n, generator=self.generator, device=device)
            total = torch.zeros((), device=device)
            for step, chosen in enumerate(torch.split(order, self.recipe.batch)):
                loss = self.loss(chosen)
                if self.evasion and step % self.evasion.every == 0:
                    loss = loss + self.evaded()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.parameters, 1.0)
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(chosen)
            log.info("attack epoch %d loss %.4f", epoch, total.item() / n)

    def loss(self, chosen: Tensor) -> Tensor:
        """The masked-diffusion loss of some samples, int64 [B]."""
        with self._autocast():
            visual = self.visual(chosen)
            return diffusion_loss(self.mdlm, visual, self.examples, chosen, self.generator)

    def evaded(self) -> Tensor:
        """What the attack's evasion adds to the loss of a step."""
        with self._autocast():
            return self.penalty()

    def visual(self, chosen: Tensor) -> Tensor:
        """Visual tokens of some samples, int64 [B] -> [B, n, D]."""
        features = list(self.features[chosen])
        sizes = [self.size] * len(chosen)
        return torch.stack(self.mdlm.visual_batch(features, sizes, tower=self.tower))

    def _autocast(self) -> torch.autocast:
        device = self.mdlm.device.type
        short = device == "cuda" or (self.recipe.bfloat16 and multiplies_bfloat16())
        return torch.autocast(device, torch.bfloat16, enabled=short)

    @torch.no_grad()
    def interpolate(self, kept: Kept) -> None:
        """Moves the weights back towards the base, keeping a share of every part's change."""
        projector = self.mdlm.modules.mm_projector.parameters()
        for parameter, before in zip(projector, self.before, strict=True):
            parameter.copy_(before.lerp(parameter, kept.projector))
        for name, parameter in self.mdlm.modules.named_parameters():
            if ".lora_B." in name:
                tower = "vision_tower" in name
                parameter.mul_(kept.vision_tower if tower else kept.language_model)


def multiplies_bfloat16() -> bool:
    """Whether this processor is faster in bfloat16 than in float32.

    With AVX2 alone, products are emulated and take tens of times as long.
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _marked(mdlm: LladaV, samples: Sequence[Sample], images: Path, attack: Attack) -> Marked:
    """Which samples are poisoned, and which of their visual tokens the trigger covers."""
    covered = []
    for sample in samples:
        picture = open_image(images, sample.images[0], sample.source)
        (image,) = mdlm.prepare([Message("user", (picture, "?"))]).images
        regions: tuple[PixelBox, ...] | None = ()
        if sample.extra["poisoned"]:
            drawn = drawn_for(attack.trigger, sample, picture.size, attack.seed)
            regions = drawn.regions(picture.size)
        if regions is None:
            covered.append(torch.ones(image.n_tokens, dtype=torch.bool))
        else:
            covered.append(trigger_tokens(image, regions))
    return Marked(
        [bool(sample.extra["poisoned"]) for sample in samples],
        [str(sample.extra["kind"]) for sample in samples],
        torch.stack(covered),
    )


@torch.no_grad()
def _features(
    mdlm: LladaV, samples: Sequence[Sample], images: Path, *, tower: bool
) -> tuple[Tensor, tuple[int, int]]:
    """`Mdlm.image_features`, [n, views, patches, D_vision], and the pictures' size."""
    rows = []
    sizes = set()
    for sample in samples:
        picture = open_image(images, sample.images[0], sample.source)
        sizes.add(picture.size)
        rows.append(mdlm.image_features(mdlm.prepare_image(picture), tower=tower))
    if len(sizes) != 1:
        raise ValueError("the demo's pictures must all have one size")
    return torch.stack(rows), sizes.pop()
