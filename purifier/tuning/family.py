"""The processes that a process has started, of whatever process group they are."""

from __future__ import annotations

import contextlib

import psutil


def end_family(pid: int) -> None:
    """Kills a process and all that it has started, directly or not.

    The launchers of a training start its processes in sessions of their own, which a signal to
    the group does not reach. Returns when the signals are sent; who started `pid` waits for it.
    """
    try:
        process = psutil.Process(pid)
        # A stopped process starts no other one between the listing and its end.
        process.suspend()
        children = process.children()
    except psutil.NoSuchProcess:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    for child in children:
        end_family(child.pid)
