"""The number formats that can be calculated with, as numpy sees them: widened to float32, rounded to nearest even.

The rest of what a checkpoint may hold (integers, masks, packed or scale-only formats) is only ever copied.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

# Numbers in memory are float32 or bytes; how many of them an array has is said where it matters.
Numbers = np.ndarray[Any, Any]

FORMATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
# The smallest bits of NaN or infinity without a sign, where those with one end in the same way. The 8-bit formats
# without infinities have one or two NaN: "FNUZ" has it where a negative zero would be.
_STRANGE = {"F64": 0x7FF0 << 48, "F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C}


def is_finite(raw: Numbers, kind: str) -> bool:
    """Whether there is neither NaN nor infinity among the numbers of this format, given in it or as bytes.

    Of the bits as integers, the positive strange ones are the largest with a sign, the negative ones without.
    """
    bits = FORMATS[kind].itemsize
    signed, unsigned = raw.view(f"i{bits}"), raw.view(f"u{bits}")
    if not raw.size:
        return True
    if kind not in _STRANGE:
        return bool(signed.min() > -128)
    strange = _STRANGE[kind]
    return bool(signed.max() < strange) and bool(unsigned.max() < strange + (1 << (8 * bits - 1)))


def is_zero(raw: Numbers, kind: str) -> bool:
    """Whether every number of this format, given in it or as bytes, is 0 (of either sign)."""
    bits = FORMATS[kind].itemsize
    return not bool((raw.view(f"u{bits}") & ((1 << (8 * bits - 1)) - 1)).any())


def round_into(raw: Numbers, numbers: Numbers) -> None:
    """Float32 numbers in the format of `raw`, to nearest, ties to even. What is too large becomes NaN or infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(raw, numbers, casting="unsafe")


def memory_of(array: Numbers) -> memoryview:
    """The bytes of a flat contiguous array, writable, without a copy."""
    return array.view(np.uint8).data
