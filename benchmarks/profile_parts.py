"""Seconds and arithmetic of an answer by part of the model, one torch call at a time.

Every torch call is timed on its way, and belongs to the part whose weights it multiplies, whose
module it runs in, or whose tensors it takes: predictions over the vocabulary are remasking's.
What no call accounts for is Python. Timing call by call waits for the device at each, so on a
GPU the sum is longer than the unobserved time, which is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from purifier.mdlm.llada_v import LladaV
from purifier.numeric import seconds

PARTS = (
    "tower",
    "projector",
    "decoder linear",
    "attention",
    "decoder elementwise",
    "head",
    "softmax and remasking",
    "backward",
    "python",
)
"""Parts of an answer's time; what runs inside the tower is the tower's, attention included."""

_PRODUCTS = (functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.addmm)


@dataclass
class Profile:
    """Where the time of one run went.

    Attributes:
        seconds: By part.
        flops: Floating-point operations of matrix products and attention, by part.
        wall: Seconds of the run under observation.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    flops: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    wall: float = 0.0

    def to_dict(self, peak: float) -> dict[str, Any]:
        """Per part seconds, share, GFLOP and the share of the machine's peak it reaches.

        Args:
            peak: GFLOP/s of a large matrix product.
        """
        result = {}
        for part, spent in self.seconds.items():
            gigaflops = self.flops[part] / 1e9
            result[part] = {
                "seconds": spent,
                "share": spent / self.wall,
                "gflop": gigaflops,
                "of_peak": gigaflops / spent / peak if spent and gigaflops else None,
            }
        return result


def observed(mdlm: LladaV, run: Callable[[], object]) -> Profile:
    """Runs something of a model and tells where its time went."""
    clock = _Clock(mdlm)
    with clock.inside_modules(), clock:
        start = seconds(mdlm.device)
        run()
        clock.profile.wall = seconds(mdlm.device) - start
    known = sum(clock.profile.seconds.values())
    clock.profile.seconds["python"] = max(0.0, clock.profile.wall - known)
    return clock.profile


class _Clock(TorchFunctionMode):
    """Times every torch call outside of others."""

    def __init__(self, mdlm: LladaV) -> None:
        super().__init__()
        self.profile = Profile()
        self._mdlm = mdlm
        self._module: list[str] = []
        language = mdlm.modules.language_model
        self._weights = {
            module.weight.data_ptr(): "decoder linear"
            for module in language.modules()
            if isinstance(module, nn.Linear)
        }
        self._weights[mdlm.modules.lm_head.weight.data_ptr()] = "head"

    @contextmanager
    def inside_modules(self) -> Iterator[None]:
        """Notes which of the image's modules run."""
        modules = self._mdlm.modules
        tower = modules.vision_tower
        named = [(part, "tower") for part in (tower, tower.embeddings, tower.encoder)]
        named.append((modules.mm_projector, "projector"))
        handles = []
        for module, name in named:
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: self._enter(n)))
            handles.append(module.register_forward_hook(lambda *_: self._leave()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> None:
        self._module.append(name)

    def _leave(self) -> None:
        self._module.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        start = perf_counter()
        result = func(*args, **kwargs)
        if self._mdlm.device.type != "cpu":
            seconds(self._mdlm.device)
        spent = perf_counter() - start
        part = self._part(func, args, result)
        self.profile.seconds[part] += spent
        self.profile.flops[part] += _flops(func, args, kwargs)
        return result

    def _part(self, func: Callable[..., Any], args: Sequence[Any], result: Any) -> str:
        if self._module:
            return self._module[-1]
        if func is torch.autograd.grad:
            return "backward"
        if func is functional.scaled_dot_product_attention:
            return "attention"
        if func in _PRODUCTS:
            known = [self._weights.get(t.data_ptr()) for t in args if isinstance(t, Tensor)]
            return next((part for part in known if part), "decoder elementwise")
        tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
        if any(tensor.ndim and tensor.shape[-1] == self._mdlm.vocab_size for tensor in tensors):
            return "softmax and remasking"
        return "decoder elementwise"


def _flops(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    if func is functional.scaled_dot_product_attention:
        queries, keys = args[0], args[1]
        return float(4 * queries.numel() * keys.shape[-2])
    if func is functional.linear:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        return float(2 * args[0].numel() * weight.shape[0])
    if func in _PRODUCTS and func is not torch.addmm:
        return float(2 * args[0].numel() * args[1].shape[-1])
    return 0.0
