"""Defences shared by requests that are the same in everything the mask depends on.

The key is the checkpoint and the content of the request: ids, images, and all settings of
the defence and of the generation, seeds included. A request never gets a mask that it would
not have got alone, so nobody's settings can weaken somebody else's defence.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import asdict, replace

import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import PARTS, Defended
from purifier.denoise import GenerationConfig
from purifier.mdlm.base import Inputs
from server.engine.job import Job, Serving


def content_of(inputs: Inputs, generation: GenerationConfig, masking: MaskingConfig) -> bytes:
    """Digest of all that decides the mask on a given model.

    Reads every pixel, so it is not for the engine's thread.
    """
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)

    add(repr((sorted(asdict(masking).items()), sorted(asdict(generation).items()))).encode())
    add(_bytes(inputs.ids))
    for image in inputs.images:
        add(repr((image.image.mode, image.image.size, image.views, image.grids)).encode())
        add(image.image.tobytes())
        add(_bytes(image.pixels))
    return digest.digest()


class SharedDefences:
    """The defences used last; for the engine's thread alone.

    Args:
        max_bytes: Bytes of all tensors that are kept; 0 shares nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, bytes], Defended] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, serving: Serving, job: Job) -> Defended | None:
        """The defence of an identical request, at no cost: its timings are 0."""
        key = _key(serving, job)
        if key is None or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return replace(self._kept[key], timings=dict.fromkeys(PARTS, 0.0))

    def takes(self, job: Job) -> bool:
        """Whether the defence of this job may be shared."""
        return self._max_bytes > 0 and job.content is not None and job.masking is not None

    def put(self, serving: Serving, job: Job, defended: Defended) -> None:
        """Keeps a defence as long as there is room.

        Its first denoising step is left out: who denoises from it writes into its memory.
        """
        kept = replace(defended, first=None)
        key, size = _key(serving, job), size_of(kept)
        if key is None or not self.takes(job) or size > self._max_bytes or key in self._kept:
            return
        self._kept[key] = kept
        self.nbytes += size
        while self.nbytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= size_of(oldest)

    def clear(self) -> None:
        """Forgets all of them."""
        self._kept.clear()
        self.nbytes = 0


def size_of(defended: Defended) -> int:
    """Bytes of a defence's tensors."""
    tensors = [defended.prompt.embeds, defended.prompt.visual, defended.saliency, defended.masked]
    for plane in defended.planes:
        tensors += [plane.saliency, plane.masked]
    return sum(tensor.nbytes for tensor in tensors)


def _key(serving: Serving, job: Job) -> tuple[str, bytes] | None:
    if job.content is None or job.masking is None:
        return None
    return serving.checkpoint, job.content


def _bytes(tensor: Tensor) -> bytes:
    whole = tensor.detach().cpu().contiguous()
    header = repr((whole.dtype, tuple(whole.shape))).encode()
    return header + whole.flatten().view(torch.uint8).numpy().tobytes()
