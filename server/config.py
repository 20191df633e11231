"""Settings of the service and the limits of what it accepts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from purifier.defense.config import Effort, MaskingConfig
from purifier.defense.first_step import scored_positions
from purifier.denoise.config import FAST, GenerationConfig

DEFAULT_EFFORT: Effort = "balanced"
"""The level of effort of a request that names none."""

MEGABYTE = 1_000_000
_LONGEST = 86_400


@dataclass(frozen=True)
class MediaLimits:
    """What an image from outside may be.

    Attributes:
        images: Images of one request.
        image_bytes: Bytes of one encoded image.
        image_pixels: Pixels of one image, told by its header before it is decoded.
        request_pixels: Pixels of all images of one request.
        min_side: Shorter side in pixels.
        max_side: Longer side in pixels.
        max_aspect: Longer side over shorter side.
    """

    images: int = 8
    image_bytes: int = 10 * MEGABYTE
    image_pixels: int = 25_000_000
    request_pixels: int = 50_000_000
    min_side: int = 8
    max_side: int = 16_384
    max_aspect: float = 50.0


@dataclass(frozen=True)
class UploadLimits:
    """What an uploaded data set may be.

    Attributes:
        file_bytes: Bytes of the request that carries the file.
        members: Members of an archive, folders included.
        total_bytes: Bytes that an archive unpacks to.
        ratio: Bytes that an archive unpacks to over its own.
        ratio_free_bytes: Bytes that an archive may unpack to whatever the ratio.
        name_bytes: UTF-8 bytes of a member's path.
        depth: Parts of a member's path.
    """

    file_bytes: int = 4_000 * MEGABYTE
    members: int = 200_000
    total_bytes: int = 20_000 * MEGABYTE
    ratio: int = 100
    ratio_free_bytes: int = 10 * MEGABYTE
    name_bytes: int = 1_024
    depth: int = 16


@dataclass(frozen=True)
class ServerConfig:
    """How the service behaves.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        queue_size: Requests that may wait for the engine, besides those it works on.
        max_batch: Requests that are denoised together.
        max_positions: Sequence positions of requests that are denoised together, with guidance
            twice, with the cache `dllm` twice; bounds memory. A request that is longer runs alone.
        passes_per_step: Passes that requests which join may make between two steps of those that
            run: more of them make larger batches and longer waits.
        shared_bytes: Bytes of defences that are kept for identical requests; 0 keeps none.
        preparing: Requests whose images are decoded at the same time; bounds memory.
        max_body: Bytes of a request body; uploads have their own limit.
        max_text: Characters of all turns of a request; bounds the tokenizer's work.
        deadline: Seconds from a request's admission to its answer.
        drain: Seconds that running requests are given at shutdown.
        max_probes: Probes of the saliency that a request may ask for; bounds time.
        max_fisher_values: Entries of the Fisher matrices that a request may ask for, which are
            `top_k` x `top_k` at every scored position; bounds memory. They are held
            several times over, 8 bytes each.
        max_masked_answers: Masked images that are answered for one certified answer at most;
            bounds time.
        media: Limits of images.
        upload: Limits of uploaded data sets.
        generation: Denoising settings a request starts from.
        masking: The defence a request starts from.
        swap: Whether two models may be in memory at once where they fit, or never.
        worker: Start a worker beside the server while there are jobs to do.
        public_metrics: Tell the metrics without a key; only on a loopback address.
        public_docs: Show the description of the API (`/docs`, `/openapi.json`) without a key.
        insecure_no_auth: Serve without keys; only on a loopback address.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    queue_size: int = 32
    max_batch: int = 8
    max_positions: int = 32_768
    passes_per_step: int = 1
    shared_bytes: int = 256 * MEGABYTE
    preparing: int = 2
    max_body: int = 20 * MEGABYTE
    max_text: int = 200_000
    deadline: float = 600.0
    drain: float = 30.0
    max_probes: int = 64
    max_fisher_values: int = 8_000_000
    max_masked_answers: int = 256
    media: MediaLimits = field(default_factory=MediaLimits)
    upload: UploadLimits = field(default_factory=UploadLimits)
    generation: GenerationConfig = FAST
    masking: MaskingConfig = field(
        default_factory=lambda: MaskingConfig().adjusted(effort=DEFAULT_EFFORT)
    )
    swap: Literal["auto", "in_place"] = "auto"
    worker: bool = True
    public_metrics: bool = False
    public_docs: bool = False
    insecure_no_auth: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise StartError("port must be between 0 and 65535.")
        if self.queue_size < 1:
            raise StartError("queue size must be at least 1.")
        if not 1 <= self.max_batch <= 1024:
            raise StartError("max batch must be between 1 and 1024.")
        if self.max_positions < 1:
            raise StartError("max positions must be at least 1.")
        if not 1 <= self.passes_per_step <= 1024:
            raise StartError("passes per step must be between 1 and 1024.")
        if self.shared_bytes < 0:
            raise StartError("the bytes of shared defences must not be negative.")
        if not 0 < self.deadline <= _LONGEST:
            raise StartError(f"deadline must be above 0 and at most {_LONGEST} seconds.")
        if not 0 <= self.drain <= _LONGEST:
            raise StartError(f"drain must be between 0 and {_LONGEST} seconds.")
        if self.upload.file_bytes < 1:
            raise StartError("the limit of uploads must be at least 1 byte.")
        if self.masking.probes > self.max_probes:
            raise StartError(f"probes must be at most {self.max_probes}.")
        scored = scored_positions(self.generation, self.masking.scored_length)
        if scored * self.masking.top_k**2 > self.max_fisher_values:
            raise StartError(
                f"top_k squared times {scored} tokens must be at most "
                f"{self.max_fisher_values:,}: lower top_k."
            )
        if self.public_metrics and not is_loopback(self.host):
            raise StartError(
                "Metrics without a key may only be told on a loopback address: use "
                "--host 127.0.0.1, or give the reader a key with the scope metrics:read."
            )
        if self.insecure_no_auth and not is_loopback(self.host):
            raise StartError(
                "A server without keys may only listen on a loopback address: "
                "use --host 127.0.0.1, or give it keys."
            )


@dataclass(frozen=True)
class ModelSource:
    """Which checkpoint is served, where and in which precision."""

    path: Path
    device: str
    dtype: str


class StartError(Exception):
    """The service cannot start; the message says what to change."""


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
