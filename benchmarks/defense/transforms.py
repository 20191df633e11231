"""What people try first: changes of the whole image before the model sees it. All are seeded."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]

NOISE = 25.0
"""Standard deviation of the noise, of 255 levels."""


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian, radius 1% of the longer side."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 100))


def jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Compressed again with quality 30."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part of 85% of each side, stretched to the old size."""
    width, height = image.size
    inner = round(0.85 * width), round(0.85 * height)
    left = int(rng.integers(0, width - inner[0] + 1))
    top = int(rng.integers(0, height - inner[1] + 1))
    part = image.crop((left, top, left + inner[0], top + inner[1]))
    return part.resize(image.size, Image.Resampling.BICUBIC)


def colour_jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each by up to a quarter up or down."""
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(float(rng.uniform(0.75, 1.25)))
    return image


def noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise."""
    pixels = np.asarray(image, np.float64) + rng.normal(0, NOISE, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def noise_and_denoise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Noise, then a median filter: the idea of DiffCAP (arXiv 2506.03933), a plain denoiser."""
    return noise(image, rng).filter(ImageFilter.MedianFilter(5))


TRANSFORMS: Mapping[str, Transform] = {
    "blur": blur,
    "jpeg": jpeg,
    "crop": crop,
    "colour jitter": colour_jitter,
    "noise": noise,
    "noise and denoise": noise_and_denoise,
}
