"""How training gets the most out of a CPU: half precision where the processor multiplies it, memory that is kept."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from torch import nn

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16: AMX, or AVX-512's (AMD since Zen 4)."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def half_precision(device: torch.device) -> torch.autocast:
    """Autocast to float16 on a GPU, to bfloat16 on a CPU that multiplies it, to nothing elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.float16)
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bfloat16())


class Float32Conv2d(nn.Conv2d):
    """A convolution that autocast leaves alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(input.dtype)


def spare_strided(network: nn.Module) -> None:
    """Keep depthwise convolutions of stride 2 in float32, in place.

    oneDNN has no fast backward pass for them in bfloat16: 29 ms instead of 1.7 for 16 maps of 144 x 48 x 48.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride != (1, 1):
            module.__class__ = Float32Conv2d  # same parameters under the same names: only forward() differs


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, instead of giving it back and being handed zeroed pages at every layer.

    A step is 1.1 to 1.2 times as fast, and the process stays at its largest size. Does nothing under another libc.
    """
    with contextlib.suppress(AttributeError, OSError):
        malloc_option = ctypes.CDLL(None).mallopt
        malloc_option(_M_MMAP_THRESHOLD, 1 << 30)
        malloc_option(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        malloc_option(_M_TOP_PAD, 1 << 28)
