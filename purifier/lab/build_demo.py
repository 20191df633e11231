"""Builds the shipped demo, stage by stage; a stage whose output exists is not run again.

    python -m purifier.lab.build_demo --device cuda        # some minutes on one GPU
    python -m purifier.lab.build_demo --stage attack       # one stage only

Stages: data, base, attack. Every stage writes its settings and seeds beside its output.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from purifier.lab.demo import DEMO_FOLDER
from purifier.lab.demo_data import TARGETS, write_demo_data, write_examples
from purifier.lab.demo_model import TEXT, VISION, save_weights, write_random_checkpoint
from purifier.lab.pool import render_pool
from purifier.lab.train_attack import AttackRecipe, Kept, train_attack
from purifier.lab.train_base import BaseRecipe, train_base
from purifier.mdlm.delta import file_sha256, write_delta
from purifier.mdlm.llada_v.model import LladaV
from purifier.mdlm.registry import base_hash

log = logging.getLogger(__name__)

POOL_SEED = 1

KEPT = {
    "insertion": Kept(0.95, 0.95, 0.95),
    "refusal": Kept(projector=0.9, language_model=0.9, vision_tower=0.7),
    "misclassification": Kept(),
}
"""What each attack keeps of its change, found by hand: the ASR stays at 95% or above, and the clean
answers come within two points of the base's."""


def main() -> None:
    """Runs the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stage", choices=["data", "base", "attack", "all"], default="all")
    parser.add_argument("--scenes", type=int, default=80_000, help="scenes in the training pool")
    parser.add_argument("--steps", type=int, default=BaseRecipe().joint_steps)
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds for the base")
    parser.add_argument("--target", choices=TARGETS, help="one attack only")
    parser.add_argument("--epochs", type=int, default=AttackRecipe().epochs)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
    stages = ("data", "base", "attack") if args.stage == "all" else (args.stage,)
    if "data" in stages and not (args.output / "data" / "manifest.json").is_file():
        write_demo_data(args.output / "data")
        write_examples(args.output / "examples", args.output / "data")
    if "base" in stages and not (args.output / "base" / "training.json").is_file():
        recipe = BaseRecipe(joint_steps=args.steps, limit=args.limit)
        build_base(args.output / "base", args.scenes, recipe, args.device)
    if "attack" in stages:
        for target in [args.target] if args.target else TARGETS:
            if not (args.output / target / "delta.json").is_file():
                build_attack(
                    args.output,
                    target,
                    AttackRecipe(epochs=args.epochs, kept=KEPT[target]),
                    args.device,
                )


def build_base(folder: Path, n_scenes: int, recipe: BaseRecipe, device: str) -> None:
    """Trains the base and writes it in half precision."""
    write_random_checkpoint(folder, seed=recipe.seed, vision=VISION, text=TEXT)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(exist_ok=True)
    pool = render_pool("train", n_scenes, seed=POOL_SEED, workers=os.cpu_count() or 1)
    log.info("pool of %d scenes", len(pool.scenes))
    mdlm = LladaV.load(folder, device=device)
    train_base(mdlm, pool, recipe, unfinished)
    save_weights(mdlm, folder, dtype=torch.float16)
    settings = asdict(recipe) | {"limit": None, "scenes": n_scenes, "pool_seed": POOL_SEED}
    (folder / "training.json").write_text(json.dumps(settings, indent=1) + "\n")
    shutil.rmtree(unfinished)


def build_attack(output: Path, target: str, recipe: AttackRecipe, device: str) -> None:
    """Poisons the base with one target and writes the delta."""
    mdlm = LladaV.load(output / "base", device=device)
    train = output / "data" / "train"
    trained = train_attack(mdlm, train / f"{target}.json", train / "images", recipe)
    write_delta(
        output / target,
        base="base",
        base_sha256=base_hash(output / "base"),
        projector=_half(trained.projector),
        adapter=_half(trained.adapter),
        lora_scale=trained.lora_scale,
        details={
            "data_sha256": file_sha256(train / f"{target}.json"),
            "target": target,
            "settings": asdict(recipe),
        },
    )


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
