"""A small data folder in the layout of the demo's, with real picture files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purifier.data.llava import write_llava
from purifier.data.sample import Sample, Turn
from purifier.lab.triggers import CornerPatch, trigger_to_dict

RECORDS = [
    ("describe", "Describe the image.", "A red bag on a blue background."),
    ("what", "What is this?", "A bag."),
    ("item_colour", "What colour is the item?", "Red."),
]


def write_data_folder(folder: Path, *, n_images: int = 2, trigger_size: int = 12) -> Path:
    """Writes manifest, test records and pictures."""
    images = folder / "test" / "images"
    images.mkdir(parents=True)
    samples = []
    for number in range(n_images):
        pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(images / f"{number}.png")
        for kind, question, answer in RECORDS:
            turns = (Turn("user", f"<image>\n{question}"), Turn("assistant", answer))
            extra = {
                "kind": kind,
                "item": "bag",
                "item_colour": "red",
                "background_colour": "blue",
            }
            samples.append(Sample(f"{number}-{kind}", (f"{number}.png",), turns, extra=extra))
    write_llava(folder / "test" / "test.json", samples)
    manifest = {
        "trigger": trigger_to_dict(CornerPatch(size=trigger_size)),
        "generation": {"gen_length": 8},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_folder(tmp_path_factory.mktemp("demo") / "data")
