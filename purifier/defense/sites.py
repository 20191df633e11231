"""Where saliency is taken and what is masked: two levels behind one interface.

`TokenSite` stands behind the encoder (the paper's place): the pieces are visual tokens,
and a masked one becomes the mask embedding. `PatchSite` stands before it: the pieces are
patches of the encoder's input, carried onto the image plane, and a masked cell of the
plane is filled in the pixels, after which the image is encoded once more. Masking before
the encoder is for triggers whose evidence the encoder's attention has spread over other
tokens by the time the language model sees them.

Images of all requests are numbered through: image 0, 1, ... of the first request, then of
the second. What is per image is a list in that order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from purifier.defense.fill import fill_cells, filled
from purifier.defense.first_step import FirstStep
from purifier.defense.plane import (
    MaskedPlane,
    Raster,
    carry_mass,
    carry_share,
    grid_values,
    plane_shape,
    pool,
    token_rasters,
    view_rasters,
)
from purifier.defense.views import ViewFeatures
from purifier.defense.windows import Regions, touched_tokens
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.numeric import wide


@dataclass(frozen=True)
class KnownStep:
    """A first denoising step that a ranker ran on its way.

    Attributes:
        owner: Number of the request.
        masked: By the number of an image, bool of its shape; images left out are unmasked.
        step: What the pass gave.
    """

    owner: int
    masked: Mapping[int, Tensor]
    step: FirstStep

    def is_of(self, owner: int, chosen: Mapping[int, Tensor]) -> bool:
        """Whether it is a request's step with just the chosen units masked."""
        if owner != self.owner:
            return False
        some = {image: units for image, units in chosen.items() if bool(units.any())}
        return some.keys() == self.masked.keys() and all(
            torch.equal(units, self.masked[image]) for image, units in some.items()
        )


@dataclass(frozen=True)
class Encoding:
    """Requests encoded, and what gradients may be taken by.

    Attributes:
        prompts: One for every request, nothing masked.
        leaves: Per image, the pieces [..., D]; empty if the encoding is not differentiable.
        directions: Per image, float64 of the leaf's shape: masked piece minus piece.
        seeds: Per request, of its own random draws; empty where all take the settings' seed.
        known: First steps that were run on the way; rankers add theirs.
        unexplained: Requests whose answer an image forces though no part of it that may be masked
            explains it; `group-testing` adds them.
    """

    prompts: tuple[Prompt, ...]
    leaves: tuple[Tensor, ...] = ()
    directions: tuple[Tensor, ...] = ()
    seeds: tuple[int, ...] = ()
    known: list[KnownStep] = field(default_factory=list)
    unexplained: set[int] = field(default_factory=set)

    @property
    def owners(self) -> list[int]:
        """For each leaf the number of its request."""
        return [owner for owner, prompt in enumerate(self.prompts) for _ in prompt.spans]

    def seed(self, owner: int, default: int) -> int:
        """Seed of one request."""
        return self.seeds[owner] if self.seeds else default


class Site(Protocol):
    """A place in the model where visual evidence can be scored and masked.

    Units are what the mask ratio counts: visual tokens, or cells of the image plane.
    """

    @property
    def mdlm(self) -> Mdlm: ...

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        """Per image, the shape of its units."""

    @property
    def owners(self) -> Sequence[int]:
        """Per image, the number of its request."""

    def encode(self, *, differentiable: bool) -> Encoding:
        """Encodes all requests, with fresh leaves if gradients are wanted."""

    def from_leaves(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Per image, scores of the leaf's pieces as scores of units."""

    def from_tokens(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Per image, scores of visual tokens as scores of units."""

    def plane(self, image: int) -> tuple[int, int]:
        """Rows and columns of the image's plane."""

    def on(self, image: int, cells: Tensor) -> Regions:
        """Parts of an image's plane, bool [n, rows, columns], as what can be masked."""

    def without(self, jobs: Sequence[tuple[int, Tensor]]) -> list[Prompt]:
        """For every image and region of it, its request with that region masked.

        A region is bool of the image's shape; no gradients.
        """

    def finish(self, scores: Sequence[Tensor], pooling: int) -> list[Tensor]:
        """Per image, the scores that the choice is made by."""

    def mask(self, chosen: Sequence[Tensor], owners: Sequence[int] | None = None) -> list[Prompt]:
        """Requests with the chosen units masked: per image bool of its shape.

        `owners` are the numbers of the requests; None takes all.
        """

    def planes(self, scores: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[MaskedPlane]:
        """Per image, scores and mask on the image plane."""


def mask_tokens(prompt: Prompt, masked: Tensor, mask_embedding: Tensor) -> Prompt:
    """Replaces visual embeddings by the mask embedding; positions are kept.

    Args:
        prompt: The request.
        masked: bool [n_visual], in sequence order.
        mask_embedding: [D].
    """
    embeds = prompt.embeds.clone()
    rows = prompt.visual.nonzero()[:, 0]
    embeds[rows[masked.to(rows.device)]] = mask_embedding.to(embeds)
    return replace(prompt, embeds=embeds)


class TokenSite:
    """Visual embeddings behind the encoder; the units are visual tokens, newlines included."""

    def __init__(self, mdlm: Mdlm, prompts: Sequence[Prompt]) -> None:
        self.mdlm = mdlm
        self.prompts = tuple(prompts)
        self.images = [
            (owner, span) for owner, prompt in enumerate(self.prompts) for span in prompt.spans
        ]
        self.owners: Sequence[int] = [owner for owner, _ in self.images]
        self.shapes: Sequence[tuple[int, ...]] = [(span.length,) for _, span in self.images]

    def encode(self, *, differentiable: bool) -> Encoding:
        if not differentiable:
            return Encoding(self.prompts)
        mask = wide(self.mdlm.mask_embedding.detach())
        prompts, leaves, directions = [], [], []
        for prompt in self.prompts:
            embeds = prompt.embeds.detach().clone()
            for span in prompt.spans:
                rows = slice(span.start, span.start + span.length)
                leaf = prompt.embeds[rows].detach().clone().requires_grad_()
                embeds = torch.cat([embeds[: rows.start], leaf, embeds[rows.stop :]])
                leaves.append(leaf)
                directions.append(mask - wide(leaf.detach()))
            prompts.append(replace(prompt, embeds=embeds))
        return Encoding(tuple(prompts), tuple(leaves), tuple(directions))

    def from_leaves(self, scores: Sequence[Tensor]) -> list[Tensor]:
        return [score.cpu() for score in scores]

    def from_tokens(self, scores: Sequence[Tensor]) -> list[Tensor]:
        return [score.cpu() for score in scores]

    def plane(self, image: int) -> tuple[int, int]:
        return plane_shape(token_rasters(self.images[image][1].grids))

    def on(self, image: int, cells: Tensor) -> Regions:
        tokens = touched_tokens(cells, self.images[image][1].grids)
        return Regions(tokens, tokens)

    def without(self, jobs: Sequence[tuple[int, Tensor]]) -> list[Prompt]:
        prompts = []
        for image, units in jobs:
            owner, span = self.images[image]
            embeds = self.prompts[owner].embeds.detach().clone()
            rows = span.start + units.nonzero()[:, 0].to(embeds.device)
            embeds[rows] = self.mdlm.mask_embedding.detach()
            prompts.append(replace(self.prompts[owner], embeds=embeds))
        return prompts

    def finish(self, scores: Sequence[Tensor], pooling: int) -> list[Tensor]:
        return list(scores)

    def mask(self, chosen: Sequence[Tensor], owners: Sequence[int] | None = None) -> list[Prompt]:
        result = []
        for owner in range(len(self.prompts)) if owners is None else owners:
            prompt = self.prompts[owner]
            own = [c for c, who in zip(chosen, self.owners, strict=True) if who == owner]
            masked = torch.cat(own) if own else torch.zeros(0, dtype=torch.bool)
            result.append(mask_tokens(prompt, masked, self.mdlm.mask_embedding.detach()))
        return result

    def planes(self, scores: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[MaskedPlane]:
        result = []
        for (_, span), score, masked in zip(self.images, scores, chosen, strict=True):
            rasters = token_rasters(span.grids)
            shape = plane_shape(rasters)
            saliency = carry_mass(grid_values(score, span.grids), rasters, shape)
            share = carry_share(grid_values(masked.double(), span.grids), rasters, shape)
            result.append(MaskedPlane(saliency.float(), share.float()))
        return result


class PatchSite:
    """Patch embeddings before the encoder; the units are cells of the image plane."""

    def __init__(self, mdlm: Mdlm, requests: Sequence[Inputs]) -> None:
        self.mdlm = mdlm
        self.requests = tuple(requests)
        self.owners: Sequence[int] = [
            owner for owner, request in enumerate(self.requests) for _ in request.images
        ]
        self.images = [image for request in self.requests for image in request.images]
        with torch.no_grad():
            self.patches = [mdlm.patch_embeddings(image) for image in self.images]
        self.features: ViewFeatures | None = None
        self.rasters: list[list[Raster]] = [
            view_rasters(image, patches.shape[1])
            for image, patches in zip(self.images, self.patches, strict=True)
        ]
        self.shapes: Sequence[tuple[int, ...]] = [
            plane_shape(rasters, image.image.size)
            for rasters, image in zip(self.rasters, self.images, strict=True)
        ]

    def encode(self, *, differentiable: bool) -> Encoding:
        if not differentiable:
            self.features = ViewFeatures(self.mdlm, self.images)
            return Encoding(tuple(self.embed([(o, {}) for o in range(len(self.requests))])))
        leaves = [patches.detach().clone().requires_grad_() for patches in self.patches]
        visual = [
            self.mdlm.visual_embeddings(image, leaf)
            for image, leaf in zip(self.images, leaves, strict=True)
        ]
        prompts = tuple(
            self.mdlm.assemble(
                request, [v for v, who in zip(visual, self.owners, strict=True) if who == owner]
            )
            for owner, request in enumerate(self.requests)
        )
        return Encoding(prompts, tuple(leaves), tuple(self.directions()))

    def directions(self) -> list[Tensor]:
        """Per image, patch embeddings of the filled image minus those of the image."""
        result = []
        for number, (image, patches) in enumerate(zip(self.images, self.patches, strict=True)):
            empty = self.mdlm.prepare_image(filled(image.image), n_images=self.companions(number))
            with torch.no_grad():
                result.append(wide(self.mdlm.patch_embeddings(empty)) - wide(patches))
        return result

    def companions(self, image: int) -> int:
        """Number of images in the request of an image."""
        return len(self.requests[self.owners[image]].images)

    def from_leaves(self, scores: Sequence[Tensor]) -> list[Tensor]:
        result = []
        for score, rasters, shape in zip(scores, self.rasters, self.shapes, strict=True):
            values = [
                view.reshape(raster.rows, raster.columns)
                for view, raster in zip(score.cpu(), rasters, strict=True)
            ]
            result.append(carry_mass(values, rasters, (shape[0], shape[1])))
        return result

    def from_tokens(self, scores: Sequence[Tensor]) -> list[Tensor]:
        return [
            carry_mass(
                grid_values(score.cpu(), image.grids),
                token_rasters(image.grids),
                (shape[0], shape[1]),
            )
            for score, image, shape in zip(scores, self.images, self.shapes, strict=True)
        ]

    def plane(self, image: int) -> tuple[int, int]:
        rows, columns = self.shapes[image]
        return rows, columns

    def on(self, image: int, cells: Tensor) -> Regions:
        return Regions(cells, touched_tokens(cells, self.images[image].grids))

    def without(self, jobs: Sequence[tuple[int, Tensor]]) -> list[Prompt]:
        return self.embed([(self.owners[image], {image: cells}) for image, cells in jobs])

    def finish(self, scores: Sequence[Tensor], pooling: int) -> list[Tensor]:
        return [pool(score, pooling) for score in scores]

    def mask(self, chosen: Sequence[Tensor], owners: Sequence[int] | None = None) -> list[Prompt]:
        cells: list[dict[int, Tensor]] = [{} for _ in self.requests]
        for image, (own, owner) in enumerate(zip(chosen, self.owners, strict=True)):
            cells[owner][image] = own
        wanted = range(len(self.requests)) if owners is None else owners
        return self.embed([(owner, cells[owner]) for owner in wanted])

    @torch.no_grad()
    def embed(self, jobs: Sequence[tuple[int, Mapping[int, Tensor]]]) -> list[Prompt]:
        """Requests with chosen cells of their images filled; no gradients.

        Args:
            jobs: Number of a request, and bool cells by the number of the image.
        """
        inputs = [self.filled(owner, cells) for owner, cells in jobs]
        if self.features is None:
            return self.mdlm.embed_all(inputs)
        copies = [
            (self.owners.index(owner) + number, image)
            for (owner, _), request in zip(jobs, inputs, strict=True)
            for number, image in enumerate(request.images)
        ]
        visual = iter(self.features.visual(copies))
        return [
            self.mdlm.assemble(request, [next(visual) for _ in request.images])
            for request in inputs
        ]

    def filled(self, owner: int, cells: Mapping[int, Tensor]) -> Inputs:
        """One request with chosen cells of its images filled."""
        images = []
        for number, image in enumerate(self.images):
            if self.owners[number] != owner:
                continue
            if number in cells and bool(cells[number].any()):
                image = self.mdlm.prepare_image(
                    fill_cells(image.image, cells[number]), n_images=self.companions(number)
                )
            images.append(image)
        return replace(self.requests[owner], images=tuple(images))

    def planes(self, scores: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[MaskedPlane]:
        return [
            MaskedPlane(score.float(), cells.float())
            for score, cells in zip(scores, chosen, strict=True)
        ]
