from __future__ import annotations

import types

import clients


def test_all_names_what_is_importable() -> None:
    public = sorted(
        name
        for name, value in vars(clients).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    )
    assert clients.__all__ == public


def test_every_exception_stands_in_the_drawn_tree() -> None:
    from clients import _exceptions

    drawn = _exceptions.__doc__ or ""
    for name, value in vars(_exceptions).items():
        if isinstance(value, type) and issubclass(value, clients.DispError):
            assert f" {name} " in drawn or f" {name}\n" in drawn, name
            assert name in clients.__all__
