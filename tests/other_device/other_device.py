"""A device that is not the CPU, on any machine: what a GPU refuses, it refuses too.

Its tensors hold their numbers in ordinary memory, so everything is computed and comes out as on the
CPU. But they say that they lie on another device, and an operation on tensors of both devices fails
as it does with CUDA. So a tensor that is made without naming the model's device is found without a
GPU. Results of kernels, speed and memory are not those of a GPU.

PyTorch cannot forget a device again, so this belongs into a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "other"
_aten: Any = torch.ops.aten

_BETWEEN_DEVICES = {_aten._to_copy.default, _aten.copy_.default}
"""Operations that move numbers from one device to the other."""

_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
"""Operations whose indices may lie on the CPU, with CUDA as well."""


@cache
def other_device() -> torch.device:
    """The device; registers it when it is first asked for."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    _library.impl("empty.memory_format", _empty, "PrivateUse1")
    _library.impl("empty_strided", _empty_strided, "PrivateUse1")
    _library.impl("_copy_from", _copy_from, "PrivateUse1")
    return torch.device(NAME, 0)


class _Backend(_DummyBackendModule):
    """What PyTorch asks of a device; its random numbers are those of the CPU."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_library = torch.library.Library("aten", "IMPL")


def _empty(size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return OtherTensor(torch.empty(tuple(size), dtype=dtype))


def _empty_strided(
    size: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return OtherTensor(torch.empty_strided(tuple(size), tuple(stride), dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    raw = target.raw if isinstance(target, OtherTensor) else target
    raw.copy_(source.raw if isinstance(source, OtherTensor) else source)
    return target


class OtherTensor(Tensor):
    """A tensor of the other device around the ordinary one that has its numbers."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> OtherTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=other_device(),
        )
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OtherTensor({self.raw!r})"

    def tolist(self) -> Any:
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class OtherDevice(TorchDispatchMode):
    """While it is active, tensors can be made on the other device."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def moved(modules: nn.Module) -> nn.Module:
    """Puts a module's parameters and buffers onto the other device; returns it."""
    other_device()
    for module in modules.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            wrapped = nn.Parameter(OtherTensor(parameter.data), requires_grad=False)
            setattr(module, name, wrapped)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, OtherTensor(buffer))
    return modules


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    inside = any(isinstance(value, OtherTensor) for value in tensors)
    _refuse_mixture(func, args, tensors)
    target = kwargs.get("device")
    here = inside
    if target is not None:
        here = torch.device(target).type == NAME
        kwargs["device"] = torch.device("cpu") if here else target
    unwrap: Callable[[Any], Any] = lambda x: x.raw if isinstance(x, OtherTensor) else x  # noqa: E731
    result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if func is _aten.copy_.default:
        return args[0]
    if not here:
        return result
    wrapped = tree_map(
        lambda x: OtherTensor(x) if isinstance(x, Tensor) and not isinstance(x, OtherTensor) else x,
        result,
    )
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if inside else wrapped


def _refuse_mixture(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Fails where tensors of both devices meet; numbers without dimensions go anywhere."""
    if func in _BETWEEN_DEVICES:
        return
    if func in _INDEXING:
        first = args[0]
        values = [first, *(args[2:3] if "put" in str(func) else ())]
        tensors = [value for value in values if isinstance(value, Tensor)]
    on_other = [isinstance(value, OtherTensor) for value in tensors if value.dim() > 0]
    on_other += [True for value in tensors if value.dim() == 0 and isinstance(value, OtherTensor)]
    if any(on_other) and not all(on_other):
        raise RuntimeError(f"{func}: expected all tensors on one device, found {NAME} and cpu.")
