"""Functions for a guarded child that do what hostile videos do to decoders."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time


def answer(value):
    return value


def answer_after(seconds: float, value):
    time.sleep(seconds)
    return value


def leave(*_):
    os._exit(7)


def import_module(name: str):
    importlib.import_module(name)


def pid() -> int:
    return os.getpid()


def fail(message: str):
    raise ValueError(message)


def hang_holding_gil():
    """Block for good inside C without releasing the GIL, as decord's spin does."""
    ctypes.PyDLL(None).pause()


def hang_deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def segfault():
    ctypes.string_at(0)


def abort():
    os.abort()


def eat_memory(step: int = 64 << 20):
    hoard = []
    while True:
        hoard.append(b"x" * step)


def eat_memory_holding_gil(total: int):
    """Grow inside C in one call, where no Python thread can look on."""
    libc = ctypes.PyDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    if not libc.malloc(total):
        raise MemoryError


def imported(name: str) -> bool:
    return name in sys.modules
