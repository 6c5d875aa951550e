"""Which versions a cluster must have: those of the deepsweep and the Ray that launch it."""

from __future__ import annotations

from importlib import metadata


def deepsweep_version() -> str:
    return metadata.version("deepsweep")


def ray_version() -> str:
    return metadata.version("ray")
