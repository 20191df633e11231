"""LLaDA-V: a SigLIP tower, a two-layer projector and LLaDA, a Llama without causal mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from purifier.errors import CheckpointError, InvalidPrompt, PromptTooLong
from purifier.mdlm.base import (
    IMAGE_PLACEHOLDER,
    Dialogue,
    ImageInput,
    Inputs,
    Message,
    Prompt,
    SpecialTokens,
    VisualSpan,
)
from purifier.mdlm.detector import StateDetector
from purifier.mdlm.llada_v.attention import mean_attention
from purifier.mdlm.llada_v.config import LladaVConfig, read_config
from purifier.mdlm.llada_v.decoder import decode_segments, head_logits, new_key_values
from purifier.mdlm.llada_v.features import decode_features, new_features
from purifier.mdlm.llada_v.images import image_layout, process_image
from purifier.mdlm.llada_v.modules import LladaVModules, fill_buffers
from purifier.mdlm.llada_v.packing import pack
from purifier.mdlm.llada_v.prompt import ChatTokenizer
from purifier.mdlm.llada_v.scored import scored_hidden
from purifier.mdlm.llada_v.tails import decode_tail, peak_attention
from purifier.mdlm.llada_v.tower_layers import check_tower_layers
from purifier.mdlm.llada_v.weights import check_weights, load_weights, published_name
from purifier.mdlm.parts import Part
from purifier.mdlm.segments import FeatureCache, FeaturePass, KeyValues, Segment
from purifier.mdlm.shards import stored_tensors
from purifier.mdlm.tails import TailPass

_MIN_SIDE = 4
_MAX_ASPECT = 64.0

_LANGUAGE_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TOWER_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

_VIEWS_AT_ONCE = 64
"""Views that `embed_all` sends through the tower together, which bounds its memory."""


class LladaV:
    """LLaDA-V behind the `Mdlm` protocol.

    Args:
        config: The checkpoint's configuration.
        modules: The weights.
        tokenizer: None for a model that is only fed ids (reference vectors).
        tokens: Special tokens; the tokenizer's by default.
    """

    family = "llada_v"
    detector: StateDetector | None = None

    def __init__(
        self,
        config: LladaVConfig,
        modules: LladaVModules,
        tokenizer: ChatTokenizer | None,
        tokens: SpecialTokens | None = None,
    ) -> None:
        if tokenizer is None and tokens is None:
            raise CheckpointError("A model without tokenizer needs its special tokens by id.")
        self.config = config
        self.modules = modules
        self._tokenizer = tokenizer
        self.tokens = tokens or self.tokenizer.tokens
        self.max_length = config.max_length
        rows = config.text.vocab_size
        # The published loader cuts the embedding rows down to the tokenizer's vocabulary.
        self.vocab_size = rows if tokenizer is None else min(rows, len(tokenizer))
        if tokenizer is not None and len(tokenizer) > rows:
            raise CheckpointError("tokenizer.json has more tokens than the model has rows.")

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokens: SpecialTokens | None = None,
        drop_first_token_after_image: bool = True,
    ) -> LladaV:
        """Loads a checkpoint folder in the published layout.

        Args:
            path: The folder, already checked by `purifier.mdlm.registry`.
            device: Where the weights go; on `meta` they are checked and not read.
            dtype: Of weights and activations.
            tokens: Special tokens by id; then no tokenizer is needed.
            drop_first_token_after_image: See `ChatTokenizer`.

        Raises:
            CheckpointError: If configuration, tokenizer and tensors do not fit together.
        """
        config = read_config(path)
        tokenizer = None
        if tokens is None:
            tokenizer = ChatTokenizer(
                path / "tokenizer.json", drop_first_token_after_image=drop_first_token_after_image
            )
        with torch.device("meta"):
            modules = LladaVModules(config)
        check_tower_layers(config, stored_tensors(path))
        target = torch.device(device)
        if target.type == "meta":
            check_weights(modules, path)
        else:
            load_weights(modules, path, device=target, dtype=dtype)
            fill_buffers(modules, config)
        modules.to(target).eval().requires_grad_(False)  # the buffers; the weights are there
        return cls(config, modules, tokenizer, tokens)

    @classmethod
    def wrap(cls, path: Path, modules: LladaVModules) -> LladaV:
        """A model of a folder's configuration and tokenizer around modules made elsewhere."""
        return cls(read_config(path), modules, ChatTokenizer(path / "tokenizer.json"))

    @property
    def tokenizer(self) -> ChatTokenizer:
        if self._tokenizer is None:
            raise CheckpointError("This model was loaded without a tokenizer.")
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        return self.modules.image_newline.device

    @property
    def dtype(self) -> torch.dtype:
        return self.modules.image_newline.dtype

    @property
    def mask_embedding(self) -> Tensor:
        weight: Tensor = self.modules.language_model.embed_tokens.weight
        return weight[self.tokens.mask]

    def prepare(self, messages: Sequence[Message]) -> Inputs:
        ids, images = self.tokenizer.render(messages)
        inputs = Inputs(
            ids=torch.tensor(ids),
            images=tuple(self.prepare_image(image, n_images=len(images)) for image in images),
        )
        if inputs.length >= self.max_length:
            raise PromptTooLong(
                f"The prompt has {inputs.length} positions, images included; this model takes "
                f"{self.max_length - 1} at most. Shorten the text or send fewer images.",
                param="messages",
            )
        return inputs

    def prepare_dialogue(self, messages: Sequence[Message]) -> Dialogue:
        rendered = self.tokenizer.render_dialogue(messages)
        n_images = len(rendered.images)
        images = tuple(self.prepare_image(image, n_images=n_images) for image in rendered.images)
        inputs = Inputs(torch.tensor(rendered.ids), images)
        if inputs.length > self.max_length:
            raise PromptTooLong(
                f"The dialogue has {inputs.length} positions, images included; this model takes "
                f"{self.max_length} at most. Shorten the text or use fewer images.",
                param="messages",
            )
        return Dialogue(
            inputs,
            torch.tensor(rendered.answers),
            torch.tensor(rendered.marks),
            torch.tensor(rendered.turns),
        )

    def question_text(self, inputs: Inputs) -> Tensor:
        return torch.tensor(self.tokenizer.question_text(inputs.ids.tolist()))

    def prepare_image(self, image: Image.Image, *, n_images: int = 1) -> ImageInput:
        width, height = image.size
        if min(width, height) < _MIN_SIDE:
            raise InvalidPrompt(
                f"The image is {width}x{height} pixels; each side must have {_MIN_SIDE} at least."
            )
        if max(width, height) > _MAX_ASPECT * min(width, height):
            raise InvalidPrompt(
                f"The image is {width}x{height} pixels; the longer side may be {_MAX_ASPECT:.0f} "
                "times the shorter one at most."
            )
        return process_image(image, self.config, n_images=n_images)

    def patch_embeddings(self, image: ImageInput) -> Tensor:
        pixels = image.pixels.to(self.device, self.dtype)
        embeddings: Tensor = self.modules.vision_tower.embeddings(pixels)
        return embeddings

    def encode_views(self, patches: Tensor) -> Tensor:
        """Encoder and projector: [views, patches, D_vision] -> [views, patches, D]."""
        projected: Tensor = self.modules.mm_projector(self._encode(patches))
        return projected

    def _encode(self, patches: Tensor) -> Tensor:
        """The tower's encoder, [views, patches, D_vision]."""
        encoded = self.modules.vision_tower.encoder(inputs_embeds=patches)
        features: Tensor = encoded.last_hidden_state
        return features

    def visual_embeddings(self, image: ImageInput, patches: Tensor | None = None) -> Tensor:
        features = self.encode_views(self.patch_embeddings(image) if patches is None else patches)
        layout = image_layout(image.image.size, len(image.views), self.config)
        return pack(features[None], layout, self.modules.image_newline)[0]

    @torch.no_grad()
    def image_features(self, image: ImageInput, *, tower: bool) -> Tensor:
        patches = self.patch_embeddings(image)
        return patches if tower else self._encode(patches)

    def visual_batch(
        self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, tower: bool
    ) -> list[Tensor]:
        if not features:
            return []
        views = torch.cat(list(features))
        projected: Tensor = self.modules.mm_projector(self._encode(views) if tower else views)
        visual = []
        for views, size in zip(projected.split([len(f) for f in features]), sizes, strict=True):  # type: ignore[no-untyped-call]
            layout = image_layout(size, len(views), self.config)
            visual.append(pack(views[None], layout, self.modules.image_newline)[0])
        return visual

    def assemble(self, inputs: Inputs, visual: Sequence[Tensor]) -> Prompt:
        pieces: list[Tensor] = []
        spans: list[VisualSpan] = []
        start = end = 0
        ids = inputs.ids.to(self.device)
        places = (inputs.ids == IMAGE_PLACEHOLDER).nonzero().flatten().tolist()
        for place, image, embeds in zip(places, inputs.images, visual, strict=True):
            pieces += [self.token_embeddings(ids[start:place]), embeds]
            end += place - start
            spans.append(VisualSpan(end, len(embeds), image.grids))
            end += len(embeds)
            start = place + 1
        pieces.append(self.token_embeddings(ids[start:]))
        sequence = torch.cat(pieces)
        is_visual = torch.zeros(len(sequence), dtype=torch.bool, device=self.device)
        for span in spans:
            is_visual[span.start : span.start + span.length] = True
        return Prompt(sequence, is_visual, tuple(spans))

    def embed(self, inputs: Inputs) -> Prompt:
        return self.assemble(inputs, [self.visual_embeddings(image) for image in inputs.images])

    @torch.no_grad()
    def embed_all(self, requests: Sequence[Inputs]) -> list[Prompt]:
        images = [image for request in requests for image in request.images]
        features = iter(self._encode_all(images))
        prompts = []
        for request in requests:
            visual = []
            for image in request.images:
                layout = image_layout(image.image.size, len(image.views), self.config)
                packed = pack(next(features)[None], layout, self.modules.image_newline)
                visual.append(packed[0])
            prompts.append(self.assemble(request, visual))
        return prompts

    def _encode_all(self, images: Sequence[ImageInput]) -> list[Tensor]:
        """Per image its projected features, [views, patches, D]."""
        if not images:
            return []
        pixels = torch.cat([image.pixels for image in images]).to(self.device, self.dtype)
        patches = self.modules.vision_tower.embeddings
        features = [self.encode_views(patches(part)) for part in pixels.split(_VIEWS_AT_ONCE)]  # type: ignore[no-untyped-call]
        return list(torch.cat(features).split([len(image.views) for image in images]))  # type: ignore[no-untyped-call]

    def token_embeddings(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self.modules.language_model.embed_tokens(ids)
        return embeddings

    def logits(
        self,
        embeds: Tensor,
        positions: Tensor,
        lengths: Tensor | None = None,
        *,
        attends: Tensor | None = None,
    ) -> Tensor:
        mask = _padding_mask(embeds, lengths)
        if attends is not None:
            mask = attends[:, None] if mask is None else attends[:, None] & mask[:, None, None]
        hidden = self.modules.language_model(
            inputs_embeds=embeds, attention_mask=mask, use_cache=False
        ).last_hidden_state
        index = positions.to(hidden.device)[:, :, None].expand(-1, -1, hidden.shape[-1])
        return head_logits(hidden.gather(1, index), self.modules.lm_head, self.vocab_size)

    def key_values(self, length: int) -> KeyValues:
        return new_key_values(self.modules.language_model, length)

    @torch.no_grad()
    def segment_logits(self, segments: Sequence[Segment]) -> list[Tensor]:
        hidden = decode_segments(self.modules.language_model, segments)
        logits = head_logits(hidden, self.modules.lm_head, self.vocab_size)
        return list(logits.split([len(segment.wanted) for segment in segments]))  # type: ignore[no-untyped-call]

    def scored_logits(
        self, embeds: Tensor, positions: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        states = self.modules.language_model.norm(self.scored_states(embeds, positions, lengths))
        return head_logits(states, self.modules.lm_head, self.vocab_size)

    def scored_states(
        self, embeds: Tensor, positions: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        model, places = self.modules.language_model, positions.to(embeds.device)
        return scored_hidden(model, embeds, places, _padding_mask(embeds, lengths))

    @torch.no_grad()
    def tail_logits(self, run: TailPass) -> Tensor:
        hidden = decode_tail(self.modules.language_model, run)
        return head_logits(hidden, self.modules.lm_head, self.vocab_size)

    def tail_attention(self, run: TailPass) -> Tensor:
        return peak_attention(self.modules.language_model, run)

    def feature_cache(self, prompt: int, length: int) -> FeatureCache:
        return new_features(self.modules.language_model, prompt, length)

    @torch.no_grad()
    def feature_logits(self, run: FeaturePass) -> Tensor:
        hidden = decode_features(self.modules.language_model, run)
        return head_logits(hidden, self.modules.lm_head, self.vocab_size)

    def attention(self, embeds: Tensor, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        places, mask = positions.to(embeds.device), _padding_mask(embeds, lengths)
        return mean_attention(self.modules.language_model, embeds, places, mask)

    def encode_text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def encode_stop(self, text: str) -> list[int]:
        return self.tokenizer.encode_with_marks(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def published_weights(self) -> dict[str, Tensor]:
        return {published_name(name): tensor for name, tensor in self.modules.state_dict().items()}

    def linear_layers(self, part: Part) -> list[str]:
        prefix, names = {
            "projector": ("mm_projector", ("0", "2")),
            "language_model": ("language_model.layers", _LANGUAGE_LAYERS),
            "vision_tower": ("vision_tower.encoder.layers", _TOWER_LAYERS),
        }[part]
        return [
            name
            for name, module in self.modules.named_modules()
            if name.startswith(f"{prefix}.")
            and name.rpartition(".")[2] in names
            and hasattr(module, "weight")
        ]

    def published_name(self, name: str) -> str:
        return published_name(name)

    def with_modules(self, modules: nn.Module) -> LladaV:
        if not isinstance(modules, LladaVModules):
            raise TypeError("LLaDA-V needs its own kind of modules.")
        return LladaV(self.config, modules, self._tokenizer, self.tokens)

    def trainable(self, parts: Sequence[Part]) -> list[nn.Parameter]:
        modules = self.modules
        groups: dict[Part, list[nn.Parameter]] = {
            "projector": list(modules.mm_projector.parameters()),
            "vision_tower": list(modules.vision_tower.parameters()),
            # As in the published code: everything that is neither tower nor projector.
            "language_model": [
                *modules.language_model.parameters(),
                *modules.lm_head.parameters(),
                modules.image_newline,
            ],
        }
        modules.requires_grad_(False)
        opened = [parameter for part in parts for parameter in groups[part]]
        for parameter in opened:
            parameter.requires_grad_(True)
        return opened


def _padding_mask(embeds: Tensor, lengths: Tensor | None) -> Tensor | None:
    """False behind each row's length, [B, N]; None if no row is padded."""
    if lengths is None:
        return None
    steps = torch.arange(embeds.shape[1], device=embeds.device)
    return steps[None] < lengths.to(embeds.device)[:, None]
