"""Encoding of images that differ from known ones in a few views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from purifier.mdlm.base import ImageInput, Mdlm

VIEWS_AT_ONCE = 64
"""Views that go through the encoder together, which bounds its memory."""


class ViewFeatures:
    """What the encoder made of the views of some images.

    Args:
        mdlm: The model.
        images: The images; each is encoded here, once.
    """

    @torch.no_grad()
    def __init__(self, mdlm: Mdlm, images: Sequence[ImageInput]) -> None:
        self.mdlm = mdlm
        self.images = images
        self.features = self._encoded([image.pixels for image in images])

    @torch.no_grad()
    def visual(self, copies: Sequence[tuple[int, ImageInput]]) -> list[Tensor]:
        """Visual embeddings of altered images; only views whose pixels changed are encoded.

        Args:
            copies: Number of a known image, and that image with some pixels altered.

        Returns:
            For every copy [n_tokens, D].
        """
        changed = [
            (image.pixels != self.images[number].pixels).flatten(1).any(1)
            for number, image in copies
        ]
        fresh = self._encoded(
            [image.pixels[views] for (_, image), views in zip(copies, changed, strict=True)]
        )
        features = []
        for (number, _), views, renewed in zip(copies, changed, fresh, strict=True):
            known = self.features[number]
            if len(renewed):
                known = known.clone()
                known[views.to(known.device)] = renewed
            features.append(known)
        sizes = [image.image.size for _, image in copies]
        return self.mdlm.visual_batch(features, sizes, tower=False)

    def _encoded(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Features of several stacks of views, the stacks encoded together."""
        if not sum(map(len, pixels)):
            return list(pixels)
        image = self.images[0]
        features = [
            self.mdlm.image_features(
                replace(image, pixels=part, views=image.views[:1] * len(part)), tower=False
            )
            for part in torch.cat(list(pixels)).split(VIEWS_AT_ONCE)  # type: ignore[no-untyped-call]
        ]
        return list(torch.cat(features).split([len(part) for part in pixels]))  # type: ignore[no-untyped-call]
