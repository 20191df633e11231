"""What a multimodal diffusion language model is to the rest of the package.

The sampler, the saliency and the masking see a model only through `Mdlm`, and a
request only through `Inputs` (what the host prepared: ids and pixels) and `Prompt`
(what the model made of it: embeddings). A family fulfils the protocol in a folder of
its own and registers itself in `purifier.mdlm.registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from purifier.mdlm.detector import Detector
from purifier.mdlm.parts import Part
from purifier.mdlm.segments import FeatureCache, FeaturePass, KeyValues, Segment
from purifier.mdlm.tails import TailPass

IMAGE_PLACEHOLDER = -200
"""Id that stands for one whole image in `Inputs.ids` (LLaVA's constant)."""

IGNORE_LABEL = -100
"""Label of positions that are neither masked nor trained on."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue: text and images in the order they were given."""

    role: Role
    content: tuple[str | Image.Image, ...]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a meaning of their own.

    `suppressed` are never produced by generation (LLaDA-V: end of text, start of text
    and the two header marks; the end-of-turn token is the terminator and stays allowed).
    """

    mask: int
    bos: int
    eos: int
    pad: int
    start_header: int
    end_header: int
    eot: int

    @property
    def suppressed(self) -> tuple[int, ...]:
        return (self.eos, self.bos, self.start_header, self.end_header)


@dataclass(frozen=True)
class Box:
    """A rectangle on the image plane, in fractions of the image's width and height.

    Parts outside [0, 1] lie on padding.
    """

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class TokenGrid:
    """A row-major grid of visual tokens inside the token sequence of one image.

    Attributes:
        offset: Index of its first token, counted from the image's first visual token.
        rows: Grid height in tokens.
        columns: Grid width in tokens, newline tokens not counted.
        newline: Whether every row is followed by one newline token.
        box: The part of the image plane that the grid covers.
    """

    offset: int
    rows: int
    columns: int
    newline: bool
    box: Box

    @property
    def length(self) -> int:
        return self.rows * (self.columns + int(self.newline))


@dataclass(frozen=True)
class ImageInput:
    """One image, processed for the vision tower, and where everything lies on it.

    Attributes:
        image: The RGB image the pixels were made from.
        pixels: float32 [views, 3, size, size], normalised.
        views: The part of the image plane each view covers, `views[i]` for `pixels[i]`.
        grids: Where the visual tokens lie on the image plane.
        n_tokens: Number of visual tokens, newline tokens included.
    """

    image: Image.Image
    pixels: Tensor
    views: tuple[Box, ...]
    grids: tuple[TokenGrid, ...]
    n_tokens: int


@dataclass(frozen=True)
class Inputs:
    """A request as the host prepares it; no model weights have been used.

    Attributes:
        ids: int64 [n], with `IMAGE_PLACEHOLDER` once for every image.
        images: The images in the order of their placeholders.
    """

    ids: Tensor
    images: tuple[ImageInput, ...]

    @property
    def length(self) -> int:
        """Prompt length in positions, images expanded."""
        return len(self.ids) - len(self.images) + sum(image.n_tokens for image in self.images)


@dataclass(frozen=True)
class Dialogue:
    """A whole dialogue, answers included, as the host prepares it for training.

    Attributes:
        inputs: Ids and images; the ids end with the last answer's end of turn.
        answers: bool [n], true at the ids of answers and of the end of turn behind them.
        marks: bool [n], true at the chat marks between texts, and at the assistant's role name.
        turns: int64 [n], the round of question and answer an id belongs to, counted from 0.
    """

    inputs: Inputs
    answers: Tensor
    marks: Tensor
    turns: Tensor


@dataclass(frozen=True)
class VisualSpan:
    """The visual tokens of one image inside a prompt: `[start, start + length)`."""

    start: int
    length: int
    grids: tuple[TokenGrid, ...]


@dataclass(frozen=True)
class Prompt:
    """A request as the language model sees it.

    Attributes:
        embeds: [L, D] in the model's dtype, visual tokens in place.
        visual: bool [L], true at visual tokens (newline tokens included).
        spans: One span for every image, in order.
    """

    embeds: Tensor
    visual: Tensor
    spans: tuple[VisualSpan, ...]

    @property
    def n_visual(self) -> int:
        return sum(span.length for span in self.spans)

    def detached(self) -> Prompt:
        """The same without a history of gradients."""
        return replace(self, embeds=self.embeds.detach())


class Mdlm(Protocol):
    """A multimodal diffusion language model.

    Implementations hold their modules on one device in one dtype. No method changes the
    model except through gradients of parameters that `trainable` has opened.
    """

    family: str
    tokens: SpecialTokens
    vocab_size: int
    """Ids that can be produced: rows of the output head that belong to the tokenizer."""
    max_length: int
    """Longest sequence, prompt and response together."""
    detector: Detector | None
    """What the model's training set showed of its backdoor, where that was asked."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def modules(self) -> torch.nn.Module:
        """The weights, for adapters and optimizers; everybody else uses the methods."""

    @property
    def mask_embedding(self) -> Tensor:
        """Embedding of the mask token, [D]."""

    def prepare(self, messages: Sequence[Message]) -> Inputs:
        """Tokenises a dialogue and processes its images; uses no weights.

        Raises:
            InvalidPrompt: If a turn other than an answer is empty, an image is unusable or the
                result is longer than `max_length`.
        """

    def prepare_dialogue(self, messages: Sequence[Message]) -> Dialogue:
        """Tokenises a dialogue that ends with an answer, for training on its answers.

        Questions and the headers of answers are tokenised as `prepare` does.

        Raises:
            InvalidPrompt: As `prepare`, or if an answer is empty.
        """

    def question_text(self, inputs: Inputs) -> Tensor:
        """Which ids of a request are text of its last user turn, bool [n]."""

    def prepare_image(self, image: Image.Image, *, n_images: int = 1) -> ImageInput:
        """Processes one image as it is done in a prompt with `n_images` images."""

    def patch_embeddings(self, image: ImageInput) -> Tensor:
        """Patch embeddings before the encoder, positions added, [views, patches, D_vision]."""

    def visual_embeddings(self, image: ImageInput, patches: Tensor | None = None) -> Tensor:
        """Encoder, projector and packing: [n_tokens, D].

        Args:
            image: The processed image.
            patches: Patch embeddings to start from; `patch_embeddings(image)` by default.
                Gradients flow through them.
        """

    def image_features(self, image: ImageInput, *, tower: bool) -> Tensor:
        """What training computes once for an image, [views, patches, D_vision]; no gradients.

        Args:
            image: The processed image.
            tower: Whether the tower is trained: then its input is given, else its output.
        """

    def visual_batch(
        self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, tower: bool
    ) -> list[Tensor]:
        """Visual embeddings of several images from `image_features`, with gradients.

        Args:
            features: For every image [views, patches, D_vision].
            sizes: The images' widths and heights.
            tower: As given to `image_features`.

        Returns:
            For every image [n_tokens, D].
        """

    def assemble(self, inputs: Inputs, visual: Sequence[Tensor]) -> Prompt:
        """Puts text embeddings and the images' visual embeddings together."""

    def embed(self, inputs: Inputs) -> Prompt:
        """`assemble` over `visual_embeddings` of every image."""

    def embed_all(self, requests: Sequence[Inputs]) -> list[Prompt]:
        """`embed` of several requests, their images encoded together; no gradients."""

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """Rows of the embedding table, [..., D]."""

    def logits(
        self,
        embeds: Tensor,
        positions: Tensor,
        lengths: Tensor | None = None,
        *,
        attends: Tensor | None = None,
    ) -> Tensor:
        """One full forward pass.

        Args:
            embeds: [B, N, D], right-padded.
            positions: int64 [B, P]; only these positions go through the output head.
            lengths: int64 [B], real lengths where rows are padded; None if none is.
            attends: bool [B, N, N], which position (row) sees which (column); None: all see all.

        Returns:
            float32 [B, P, vocab_size]; row p predicts the token at `positions[:, p]`.
        """

    def key_values(self, length: int) -> KeyValues:
        """Room for the keys and values of a sequence of `length` positions, not yet written."""

    def segment_logits(self, segments: Sequence[Segment]) -> list[Tensor]:
        """One pass over segments of several sequences; no gradients.

        Writes the segments' keys and values into their caches.

        Returns:
            For every segment float32 [wanted, vocab_size].
        """

    def scored_logits(
        self, embeds: Tensor, positions: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """`logits`, computing in the last layer what `positions` need and no more.

        Args, shapes and result as in `logits`, but for rounding; gradients flow to `embeds`.
        """

    def scored_states(
        self, embeds: Tensor, positions: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """Output of the last layer at `positions`, before its final norm, [B, P, D].

        Args as in `logits`.
        """

    def tail_logits(self, run: TailPass) -> Tensor:
        """The end of a sequence, run again without sight of some of what lies before it.

        Returns:
            float32 [W, wanted, vocab_size]; no gradients.
        """

    def tail_attention(self, run: TailPass) -> Tensor:
        """Largest attention of any head of any layer at the wanted positions of a single run.

        Returns:
            float32 [N - R], for every position before the tail; no gradients.
        """

    def feature_cache(self, prompt: int, length: int) -> FeatureCache:
        """Room for the features of a sequence of `length` positions, not yet written."""

    def feature_logits(self, run: FeaturePass) -> Tensor:
        """One pass over a sequence whose features are stored; no gradients.

        Returns:
            float32 [wanted, vocab_size].
        """

    def attention(self, embeds: Tensor, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Attention of `positions` to all positions, without gradients.

        Args and shapes as in `logits`.

        Returns:
            float32 [B, N], the mean over layers, heads and `positions`; rows sum to 1.
        """

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; marks of special tokens inside it are text, not marks."""

    def encode_stop(self, text: str) -> list[int]:
        """Ids of a stop sequence; here special tokens are recognised."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""

    def published_weights(self) -> dict[str, Tensor]:
        """The weights themselves (no copies) by their names in a published checkpoint."""

    def with_modules(self, modules: torch.nn.Module) -> Mdlm:
        """The same model around other modules of the same kind; tokenizer and settings shared."""

    def trainable(self, parts: Sequence[Part]) -> list[torch.nn.Parameter]:
        """Opens the named parts for gradients, closes all others, returns the open ones."""

    def linear_layers(self, part: Part) -> list[str]:
        """Names in `modules` of the layers of a part that LoRA adapts."""

    def published_name(self, name: str) -> str:
        """The published name of a parameter of `modules`."""
