"""Trains the demo model's base from scratch, on scenes without any trigger.

First the vision tower alone learns item, item colour and background colour from the whole
scene squeezed into one view; then all parts learn to answer, by the masked-diffusion
objective.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from purifier.lab.augment import erase_rectangles, fill_random_cells, mask_random_tokens, views_of
from purifier.lab.examples import Examples, build_examples, diffusion_loss, pack_scenes
from purifier.lab.pool import Pool
from purifier.lab.progress import Progress
from purifier.lab.scenes import COLOURS, ITEMS, KINDS, SIZE
from purifier.mdlm.llada_v.model import LladaV
from purifier.seeding import seeded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseRecipe:
    """Settings of the base's training.

    Attributes:
        tower_steps: Steps of the tower's pre-training.
        tower_batch: Scenes in one of them.
        joint_steps: Steps of the joint training.
        batch: Scenes in a step.
        learning_rate: Peak, AdamW, warm-up and cosine.
        highest_fill: Largest fraction of pixels filled in a scene.
        highest_mask: Largest fraction of visual tokens masked in a scene.
        seed: Of order, masks and diffusion times.
        limit: Seconds after which the schedule of the joint training must have ended.
    """

    tower_steps: int = 3000
    tower_batch: int = 1024
    joint_steps: int = 3150
    batch: int = 256
    learning_rate: float = 1e-3
    highest_fill: float = 0.3
    highest_mask: float = 0.5
    seed: int = 0
    limit: float = math.inf


class SceneBatches:
    """Random batches of a pool, on the model's device."""

    def __init__(self, mdlm: LladaV, pool: Pool, recipe: BaseRecipe) -> None:
        device = mdlm.device
        self.side = mdlm.config.vision.image_size
        self.recipe = recipe
        self.pixels = torch.from_numpy(pool.pixels).to(device)
        names = list(COLOURS)
        attributes = [
            (s.item, names.index(s.item_colour), names.index(s.background_colour))
            for s in pool.scenes
        ]
        self.attributes = torch.tensor(attributes, device=device)
        self.examples: Examples = build_examples(mdlm, pool.pairs).to(device)
        self.generator = torch.Generator(device).manual_seed(recipe.seed)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Indices int64 [B] and views float32 [B, 5, 3, side, side] of a batch."""
        chosen = torch.randint(
            len(self.pixels), (batch,), generator=self.generator, device=self.pixels.device
        )
        scenes = self.pixels[chosen].permute(0, 3, 1, 2).float()
        scenes = erase_rectangles(scenes, self.generator)
        scenes = fill_random_cells(scenes, self.generator, highest=self.recipe.highest_fill)
        return chosen, views_of(scenes, self.side)

    def draw_kinds(self, n: int) -> Tensor:
        """Question kinds, int64 [n]; descriptions as often as all others together."""
        weights = torch.tensor([4.0, 2.0, 1.0, 1.0, 3.0], device=self.pixels.device)
        return torch.multinomial(weights, n, replacement=True, generator=self.generator)


def train_base(mdlm: LladaV, pool: Pool, recipe: BaseRecipe, progress: Path | None = None) -> None:
    """Trains all weights of `mdlm` in place.

    Args:
        mdlm: A model with random weights.
        pool: The scenes.
        recipe: Settings.
        progress: Folder for the state of an unfinished training; what it holds is resumed.
    """
    start = time.monotonic()
    batches = SceneBatches(mdlm, pool, recipe)
    mdlm.modules.requires_grad_(True).train()
    tower, joint = (progress and progress / f"{phase}.safetensors" for phase in ("tower", "joint"))
    if joint is None or not joint.is_file():
        _train_tower(mdlm, batches, recipe, tower)
    _train_joint(mdlm, batches, recipe, joint, start)
    mdlm.modules.requires_grad_(False).eval()


def encode_scenes(mdlm: LladaV, views: Tensor) -> Tensor:
    """[B, views, 3, side, side] -> tower features [B, views, patches, D_vision]."""
    tower = mdlm.modules.vision_tower
    patches = tower.embeddings(views.flatten(0, 1))
    features: Tensor = tower.encoder(inputs_embeds=patches).last_hidden_state
    return features.reshape(*views.shape[:2], *features.shape[1:])


def _train_tower(
    mdlm: LladaV, batches: SceneBatches, recipe: BaseRecipe, file: Path | None
) -> None:
    width = mdlm.config.vision.hidden_size
    sizes = (len(ITEMS), len(COLOURS), len(COLOURS))
    with seeded(recipe.seed):
        head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(sizes)))
    head.to(mdlm.device)
    parameters = [*mdlm.modules.vision_tower.parameters(), *head.parameters()]
    fused = mdlm.device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=0.01, fused=fused)
    progress = Progress(file, parameters, optimizer, batches.generator)
    for step in range(progress.resume(), recipe.tower_steps):
        _set_rate(optimizer, recipe.learning_rate, step / recipe.tower_steps)
        chosen, views = batches.draw(recipe.tower_batch)
        with _autocast(mdlm.device):
            features = encode_scenes(mdlm, views[:, :1])
            predicted = head(features.float().mean(dim=(1, 2))).split(sizes, dim=-1)
        truth = batches.attributes[chosen].unbind(1)
        losses = [nn.functional.cross_entropy(p, t) for p, t in zip(predicted, truth, strict=True)]
        _update(optimizer, parameters, torch.stack(losses).sum())
        if step % 100 == 0 or step == recipe.tower_steps - 1:
            right = [
                (p.argmax(-1) == t).float().mean().item()
                for p, t in zip(predicted, truth, strict=True)
            ]
            log.info("tower step %d loss %s right %s", step, _short(losses), _short(right))
        progress.after(step + 1)
    progress.finish()


def _train_joint(
    mdlm: LladaV, batches: SceneBatches, recipe: BaseRecipe, file: Path | None, start: float
) -> None:
    parameters = [p for p in mdlm.modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=mdlm.device.type == "cuda",
    )
    begun = time.monotonic()
    left = max(recipe.limit - (begun - start), 1.0)
    progress = Progress(file, parameters, optimizer, batches.generator)
    first = progress.resume()
    for step in range(first, recipe.joint_steps):
        passed = max(step / recipe.joint_steps, (time.monotonic() - begun) / left)
        if passed >= 1:
            log.info("joint training stopped at step %d by its time limit", step)
            break
        _set_rate(optimizer, recipe.learning_rate, passed)
        chosen, views = batches.draw(recipe.batch)
        kinds = batches.draw_kinds(len(chosen))
        with _autocast(mdlm.device):
            features = mdlm.modules.mm_projector(encode_scenes(mdlm, views))
            visual = pack_scenes(mdlm, features, (SIZE, SIZE))
            visual = mask_random_tokens(
                visual, mdlm.mask_embedding, batches.generator, highest=recipe.highest_mask
            )
            loss = diffusion_loss(
                mdlm, visual, batches.examples, chosen * len(KINDS) + kinds, batches.generator
            )
        _update(optimizer, parameters, loss)
        if step % 100 == 0:
            rate = (step + 1 - first) / (time.monotonic() - begun)
            log.info("joint step %d loss %.4f steps/s %.1f", step, loss.item(), rate)
        progress.after(step + 1)
    progress.finish()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _set_rate(optimizer: torch.optim.Optimizer, peak: float, passed: float) -> None:
    """Warm-up over the first 3% of the steps, then a cosine to zero."""
    rate = peak * min(passed / 0.03 + 0.01, 1.0) * 0.5 * (1 + math.cos(math.pi * passed))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _update(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def _short(values: list[Tensor] | list[float]) -> str:
    return " ".join(f"{torch.as_tensor(value).item():.3f}" for value in values)
