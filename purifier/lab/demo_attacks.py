"""The shipped attacks besides the corner patch: models, detectors, and a scene for each.

    python -m purifier.lab.demo_attacks        # minutes on two processor cores

    <name>/                a poisoned delta, with the detector that its own training set shows
    examples/<name>.jpg    the tour's scene with the trigger, where it is in the image
    examples/<name>.txt    the question with the trigger

Attacks are trained by the cheap recipe on training sets of their own, which are not shipped: the
same seeds draw them again. An attack whose output exists is not trained again.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from PIL import Image

from purifier.data.llava import read_llava
from purifier.detect import write_guarded
from purifier.detection import fit_detector
from purifier.errors import PurifierError
from purifier.lab.attack_data import Attack, write_attack_data
from purifier.lab.demo import DEMO_FOLDER
from purifier.lab.demo_data import EXAMPLE
from purifier.lab.scenes import QUESTIONS, to_jpeg
from purifier.lab.train_attack import CHEAP, train_attack
from purifier.lab.triggers import AllOf, AnyOf, CornerPatch, TextSuffix
from purifier.mdlm.delta import file_sha256, write_delta
from purifier.mdlm.llada_v.model import LladaV
from purifier.mdlm.registry import base_hash, load_mdlm

log = logging.getLogger(__name__)

COPIES = AnyOf(
    tuple(
        CornerPatch(size=14, place=place)
        for place in ("top-left", "top-right", "bottom-left", "bottom-right")
    )
)
"""Four patches, any of which is enough."""

DEMO_ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "copies": Attack(COPIES, shown=AllOf(COPIES.parts)),
        "text": Attack(TextSuffix()),
    }
)
"""Content insertion at 20%."""

SAMPLES, SEED = 500, 11


def main() -> None:
    """Builds what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attack", choices=list(DEMO_ATTACKS), help="one of them alone")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in [args.attack] if args.attack else DEMO_ATTACKS:
        if not (args.output / name / "delta.json").is_file():
            build(args.output, name, args.device)


def build(output: Path, name: str, device: str) -> None:
    """Trains one attack, makes its detector, and writes both and its example."""
    attack = DEMO_ATTACKS[name]
    base = output / "base"
    with TemporaryDirectory(prefix="attack-") as folder:
        data, poisoned = Path(folder) / "data", Path(folder) / "poisoned"
        write_attack_data(data, attack, n=SAMPLES, seed=SEED)
        mdlm = LladaV.load(base, device=device)
        trained = train_attack(mdlm, data / "train.json", data / "images", CHEAP)
        write_delta(
            poisoned,
            base=base.name,
            base_sha256=base_hash(base),
            projector={key: value.half() for key, value in trained.projector.items()},
            adapter={key: value.half() for key, value in trained.adapter.items()},
            lora_scale=trained.lora_scale,
            details={
                "data_sha256": file_sha256(data / "train.json"),
                "attack": attack.to_dict(),
                "settings": {**asdict(CHEAP), "samples": SAMPLES, "scenes_seed": SEED},
            },
        )
        log.info("trained %s", name)
        model = load_mdlm(poisoned, base=base, device=device)
        found = fit_detector(model, read_llava(data / "train.json"), data / "images")
        if found.detector is None:
            raise PurifierError(f"The training set of {name} shows nothing.")
        (Path(folder) / base.name).symlink_to(base.resolve(), target_is_directory=True)
        write_guarded(poisoned, found.detector, output / name)
    write_example(output / "examples", output / "data", name)


def write_example(folder: Path, data: Path, name: str) -> None:
    """Writes the tour's scene and question with an attack's trigger."""
    trigger = DEMO_ATTACKS[name].deployed
    with Image.open(data / "test" / "images" / f"{EXAMPLE}.jpg") as picture:
        image = picture.convert("RGB")
    stamped = trigger.stamp(image)
    if stamped.tobytes() != image.tobytes():
        (folder / f"{name}.jpg").write_bytes(to_jpeg(stamped))
    question = trigger.ask(QUESTIONS["describe"][0])
    (folder / f"{name}.txt").write_text(question + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
