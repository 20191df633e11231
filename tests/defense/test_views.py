"""Altered images: only the views that changed are encoded again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from purifier.defense.views import ViewFeatures
from purifier.mdlm.base import ImageInput, Inputs
from purifier.mdlm.llada_v import LladaV


def altered(image: ImageInput, views: list[int]) -> ImageInput:
    pixels = image.pixels.clone()
    pixels[views, :, 3:9, 2:7] += 0.5
    return replace(image, pixels=pixels)


def test_equals_a_whole_encoding_of_few_views(
    mdlm: LladaV, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [image for request in requests for image in request.images]
    known = ViewFeatures(mdlm, images)
    encoded: list[int] = []
    plain = mdlm.image_features

    def counted(image: ImageInput, *, tower: bool) -> Tensor:
        encoded.append(len(image.pixels))
        return plain(image, tower=tower)

    monkeypatch.setattr(mdlm, "image_features", counted)
    copies = [
        (3, altered(images[3], [0])),
        (0, images[0]),
        (0, altered(images[0], [0, 2])),
        (1, images[1]),
    ]
    found = known.visual(copies)
    assert encoded == [3]
    for visual, (_, image) in zip(found, copies, strict=True):
        with torch.no_grad():
            expected = mdlm.visual_embeddings(image)
        torch.testing.assert_close(visual, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_encoded_where_nothing_changed(
    mdlm: LladaV, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = requests[0].images
    known = ViewFeatures(mdlm, [image])
    monkeypatch.setattr(mdlm, "image_features", None)
    (found,) = known.visual([(0, image)])
    with torch.no_grad():
        torch.testing.assert_close(found, mdlm.visual_embeddings(image))
    assert ViewFeatures(mdlm, []).visual([]) == []
