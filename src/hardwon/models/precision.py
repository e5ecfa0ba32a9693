"""In which number format to compute, and whether a machine is any good at it."""

import time
import warnings
from functools import cache
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "auto"]
GAIN = 1.2  # bfloat16 must be faster by this much: it costs digits


def computed_in(precision: Precision, device: str) -> Literal["fp32", "bf16"]:
    """What "auto" comes to on a device; a warning where bfloat16 was asked for and is only emulated.

    A CPU without instructions for bfloat16 computes in it a hundred times more slowly than in float32 (measured on one with
    AVX2 only: 0.9 against 144 GFLOP/s), so that a training of minutes takes hours.
    """
    if precision == "fp32":
        return "fp32"
    gain = bf16_gain(device)
    if precision == "auto":
        return "bf16" if gain > GAIN else "fp32"
    if gain < 1 / GAIN:
        warnings.warn(
            f"bfloat16 is {1 / gain:.0f} times slower than float32 on this {device.upper()}: use precision='auto' or 'fp32'",
            stacklevel=2,
        )
    return "bf16"


@cache
def bf16_gain(device: str) -> float:
    """How many times faster a matrix product is in bfloat16 than in float32: measured, once a process (some 0.1 s)."""
    if device == "cuda":
        return 2.0 if torch.cuda.is_bf16_supported(including_emulation=False) else 0.5
    seconds = {dtype: _product(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _product(dtype: torch.dtype, device: str) -> float:
    one = torch.ones(384, 384, dtype=dtype, device=device)
    took = []
    for _ in range(4):
        start = time.perf_counter()
        (one @ one)[0, 0].item()
        took.append(time.perf_counter() - start)
    return min(took)
