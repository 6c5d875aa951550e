"""Loaded by every Python process of a scan that has this folder on PYTHONPATH: makes videos of certain
names misbehave in the real child process, as hostile ones do."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys


class _Patch(importlib.abc.MetaPathFinder):
    """Finds scanner.decode as usual, then puts a trap into its `read_frames`."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "scanner.decode":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _set_trap(module)

        spec.loader.exec_module = exec_module
        return spec


def _set_trap(decode) -> None:
    read_frames = decode.read_frames

    def trapped(path, info, t_start, t_end, fps, decoder, reading):
        from tests.scanner import misbehave

        name = path.name
        if name.startswith("hang"):
            misbehave.hang_holding_gil()
        if name.startswith("crash"):
            misbehave.segfault()
        if name.startswith("hungry"):
            misbehave.eat_memory()
        if name.startswith("pyav_spins") and decoder == "pyav":
            misbehave.hang_holding_gil()
        return read_frames(path, info, t_start, t_end, fps, decoder, reading)

    decode.read_frames = trapped


sys.meta_path.insert(0, _Patch())
