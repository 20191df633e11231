"""Questions about the demo's test pictures, as the bodies that a client sends."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER

LENGTHS = (8, 16, 32)
"""Answer tokens of the load test's questions."""

_MIX: tuple[dict[str, Any], ...] = (
    {},
    {"defense": {"enabled": False}},
    {"defense": {"level": "token", "ranker": "fisher", "ratio": 0.3}},
    {"defense": {"ratio": 0.3}, "cache": "none", "parallel_threshold": 1.0},
    {"defense": {"enabled": False}, "block_length": 8, "cache": "dual"},
    {"defense": {"enabled": False}, "temperature": 0.7, "seed": 11, "parallel_threshold": 1.0},
    {"defense": {"enabled": False}, "guidance_scale": 1.0},
    {"remasking": "entropy", "parallel_threshold": 1.0},
)
"""Settings of the soak's questions."""


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        name: Of its picture and settings.
        fields: The body, without `stream`.
    """

    name: str
    fields: Mapping[str, Any]

    def body(self, *, stream: bool = False) -> bytes:
        """What is sent."""
        return json.dumps({**self.fields, **({"stream": True} if stream else {})}).encode()


def load_questions(seed: int, pictures: int = 32) -> Iterator[bytes]:
    """Bodies without end: pictures and lengths at random, the server's own settings."""
    cases = read_test_set(DATA_FOLDER, limit=pictures).cases
    parts = [content_of(case.picture, case.sample.question) for case in cases]
    generator = np.random.default_rng(seed)
    while True:
        content = parts[generator.integers(len(parts))]
        length = int(generator.choice(LENGTHS))
        messages = [{"role": "user", "content": content}]
        yield json.dumps({"messages": messages, "max_tokens": length}).encode()


def soak_questions(count: int) -> list[Question]:
    """Questions of mixed lengths and settings; every other one shows the trigger."""
    test_set = read_test_set(DATA_FOLDER, limit=count)
    made = []
    for number in range(count):
        case = test_set.cases[number % len(test_set.cases)]
        triggered = number // len(_MIX) % 2 == 0
        picture = case.drawn(test_set.trigger).stamp(case.picture) if triggered else case.picture
        settings = _MIX[number % len(_MIX)]
        length = LENGTHS[number % len(LENGTHS)]
        fields = {
            "messages": [{"role": "user", "content": content_of(picture, case.sample.question)}],
            "max_tokens": length,
            **settings,
        }
        made.append(Question(f"{number}: {length} tokens, {json.dumps(settings)}", fields))
    return made


def bad_bodies() -> dict[str, bytes]:
    """Bodies that must be refused, by what is wrong with them."""
    good = _encoded(Image.new("RGB", (64, 64), (200, 30, 30)))
    urls = {
        "truncated image": _url(good[: len(good) // 2]),
        "no image": _url(b"GIF89a" + bytes(64)),
        "bytes after base64": "data:image/png;base64,@@@@",
        "address": "http://127.0.0.1:1/picture.png",
        "tiny image": _url(_encoded(Image.new("RGB", (2, 2)))),
        "long image": _url(_encoded(Image.new("L", (4000, 8)))),
        "bomb": _url(_encoded(Image.new("1", (6_000, 6_000)))),
    }
    bodies = {name: _asking(url) for name, url in urls.items()}
    bodies["no JSON"] = b'{"messages": ['
    bodies["unknown model"] = _asking(_url(good), model="nobody")
    bodies["no question"] = _asking(_url(good), text="")
    return bodies


def _asking(url: str, text: str = "What is shown?", **fields: Any) -> bytes:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return json.dumps({"messages": [{"role": "user", "content": content}], **fields}).encode()


def content_of(picture: Image.Image, question: str) -> list[dict[str, Any]]:
    """A picture and a question as the content of a message."""
    return [
        {"type": "image_url", "image_url": {"url": _url(_encoded(picture))}},
        {"type": "text", "text": question.replace("<image>", "").strip()},
    ]


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
