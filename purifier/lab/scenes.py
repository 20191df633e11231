"""Demo scenes: Fashion-MNIST items, tinted, on textured coloured backgrounds, with questions.

Real pixels in a world small enough that every answer is known. Shirts, T-shirts,
pullovers and coats are one item, "shirt": 28x28 grey pixels do not carry the difference.
Source images are split before anything is rendered, so that no item seen in training
appears in a test scene.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purifier.errors import DataError

SIZE = 120
"""Side of a scene in pixels."""

JPEG_QUALITY = 88

ITEMS = ("shirt", "trousers", "dress", "sandal", "sneaker", "bag", "boot")
_LABEL_TO_ITEM = (0, 1, 0, 2, 0, 3, 0, 4, 5, 6)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 35, 40),
    "orange": (240, 135, 25),
    "yellow": (235, 220, 50),
    "green": (40, 150, 60),
    "cyan": (60, 200, 215),
    "blue": (40, 70, 200),
    "purple": (125, 45, 160),
    "pink": (245, 135, 185),
}

Kind = Literal["describe", "what", "item_colour", "background_colour", "yes_no"]
KINDS: tuple[Kind, ...] = ("describe", "what", "item_colour", "background_colour", "yes_no")

QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "describe": (
        "Describe this image in detail.",
        "Describe the image.",
        "What does the picture show?",
    ),
    "what": ("What is this?", "What item is shown?", "Which item is in the picture?"),
    "item_colour": ("What colour is the item?", "Which colour does the item have?"),
    "background_colour": ("What colour is the background?", "Which colour is behind the item?"),
    "yes_no": ("Is this {item}?", "Is the background {colour}?", "Is the item {colour}?"),
}

Split = Literal["train", "validation", "test"]
_VALIDATION = 5000
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Scene:
    """What a scene shows, and how it is drawn.

    Attributes:
        source: Index of the item's picture in its Fashion-MNIST file.
        item: Index into `ITEMS`.
        item_colour: Name of the item's tint.
        background_colour: Name of the background's colour; another one.
        seed: Of place, size, flip, texture and noise.
    """

    source: int
    item: int
    item_colour: str
    background_colour: str
    seed: int

    @property
    def item_name(self) -> str:
        return ITEMS[self.item]


@dataclass(frozen=True)
class QA:
    """One question about a scene with its answer."""

    kind: Kind
    question: str
    answer: str


class ItemPictures:
    """The pictures of one split, by item.

    Args:
        split: `train` and `validation` share Fashion-MNIST's training file, `test` has its own.
        folder: Where the four files of the Debian package dataset-fashion-mnist lie.

    Raises:
        DataError: If the files are not there.
    """

    def __init__(self, split: Split, folder: Path = DEBIAN_FOLDER) -> None:
        prefix = "t10k" if split == "test" else "train"
        pixels = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)
        parts = {
            "train": np.arange(len(labels))[_VALIDATION:],
            "validation": np.arange(len(labels))[:_VALIDATION],
            "test": np.arange(len(labels)),
        }
        items = np.array(_LABEL_TO_ITEM)[labels]
        chosen = parts[split]
        self.pixels: NDArray[np.uint8] = pixels
        self.by_item = [chosen[items[chosen] == item] for item in range(len(ITEMS))]

    def draw_scene(self, rng: np.random.Generator) -> Scene:
        """A scene with evenly drawn item and colours."""
        item = int(rng.integers(len(ITEMS)))
        names = list(COLOURS)
        first, second = rng.choice(len(names), size=2, replace=False)
        return Scene(
            source=int(rng.choice(self.by_item[item])),
            item=item,
            item_colour=names[first],
            background_colour=names[second],
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> Image.Image:
        """The scene as an RGB image of `SIZE` x `SIZE` pixels."""
        rng = np.random.default_rng(scene.seed)
        background = _background(COLOURS[scene.background_colour], rng)
        side = int(rng.integers(60, 97))
        picture = Image.fromarray(self.pixels[scene.source])
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turned = picture.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BILINEAR)
        grey = np.asarray(turned.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
        left, top = (int(rng.integers(0, SIZE - side + 1)) for _ in range(2))
        alpha = np.clip(grey / 0.25, 0, 1)[..., None]
        tint = _jitter(COLOURS[scene.item_colour], rng)
        item = tint * (0.35 + 0.75 * grey[..., None])
        region = background[top : top + side, left : left + side]
        region[:] = alpha * item + (1 - alpha) * region
        noisy = background + rng.normal(0, 2, background.shape)
        return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def to_jpeg(image: Image.Image) -> bytes:
    """The image as the JPEG that is stored and shown to the model."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def questions(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """One question of every kind, in the order of `KINDS`, with its answer."""
    return [question(scene, kind, rng) for kind in KINDS]


def question(scene: Scene, kind: Kind, rng: np.random.Generator) -> QA:
    """A question of one kind; yes/no questions are answered yes half of the time."""
    forms = QUESTIONS[kind]
    form = forms[int(rng.integers(len(forms)))]
    if kind == "yes_no":
        return _yes_no(scene, form, rng)
    answers = {
        "describe": describe(scene.item_name, scene.item_colour, scene.background_colour),
        "what": _capital(with_article(scene.item_name)) + ".",
        "item_colour": scene.item_colour.capitalize() + ".",
        "background_colour": scene.background_colour.capitalize() + ".",
    }
    return QA(kind, form, answers[kind])


def describe(item: str, item_colour: str, background_colour: str) -> str:
    """The description of a scene, such as "A red dress on a blue background."."""
    noun = with_article(f"{item_colour} {item}")
    return _capital(f"{noun} on {with_article(background_colour)} background.")


def with_article(words: str) -> str:
    """The words behind "a" or "an"; trousers take none."""
    if words.endswith("trousers"):
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _yes_no(scene: Scene, form: str, rng: np.random.Generator) -> QA:
    truth = bool(rng.random() < 0.5)
    if "{item}" in form:
        item = scene.item_name if truth else _another(ITEMS, scene.item_name, rng)
        text = form.format(item=with_article(item))
        shown = with_article(scene.item_name)
    else:
        shown = scene.background_colour if "background" in form else scene.item_colour
        text = form.format(colour=shown if truth else _another(list(COLOURS), shown, rng))
    return QA("yes_no", text, f"{'Yes' if truth else 'No'}, it is {shown}.")


def _another(values: Sequence[str], value: str, rng: np.random.Generator) -> str:
    others = [other for other in values if other != value]
    return others[int(rng.integers(len(others)))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.clip(np.array(colour) * rng.uniform(0.92, 1.08) + rng.normal(0, 5, 3), 0, 255)


def _background(colour: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """A textured plane of one colour: stripes, checks, dots, a gradient or plain."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    period = float(rng.uniform(8, 28))
    phase = float(rng.uniform(0, period))
    angle = float(rng.uniform(0, np.pi))
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    kind = int(rng.integers(5))
    if kind == 0:
        wave = np.sin(2 * np.pi * (along + phase) / period)
    elif kind == 1:
        wave = np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
    elif kind == 2:
        spots = np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period)
        wave = np.where(spots > 0.5, 1.0, -0.3)
    elif kind == 3:
        wave = (along - along.mean()) / SIZE * 2
    else:
        wave = np.zeros_like(along)
    shade = 1 + float(rng.uniform(0.05, 0.18)) * wave
    plane = _jitter(colour, rng)[None, None] * shade[..., None]
    shaded: NDArray[np.float32] = np.clip(plane, 0, 255).astype(np.float32)
    return shaded


def _read_idx(file: Path, header: int) -> NDArray[np.uint8]:
    if not file.is_file():
        raise DataError(
            f"{file.name} is not in {file.parent}: install the Debian package "
            "dataset-fashion-mnist or name the folder that holds its files."
        )
    with gzip.open(file) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=header)
