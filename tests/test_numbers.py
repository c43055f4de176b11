"""Number formats: widened, rounded and looked through for NaN and infinity as torch and numpy do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.checkpoint.numbers import FORMATS, is_finite, memory_of, round_into

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
NARROW = [kind for kind, dtype in TORCH.items() if dtype.itemsize < 4]


def test_every_format_is_known_to_torch_by_the_same_size():
    assert {kind: one.itemsize for kind, one in FORMATS.items()} == {kind: one.itemsize for kind, one in TORCH.items()}


@pytest.mark.parametrize("kind", NARROW)
def test_every_bit_pattern_is_widened_and_told_apart_as_torch_does(kind: str):
    """All 256 or 65536 patterns: the same float32 number, and finite where torch's float32 is."""
    size = FORMATS[kind].itemsize
    patterns = np.arange(256**size, dtype=f"u{size}")
    twin = torch.from_numpy(patterns.view(np.uint8)).view(TORCH[kind]).float()
    with np.errstate(invalid="ignore"):
        found = patterns.view(FORMATS[kind]).astype(np.float32)
    assert np.array_equal(found, twin.numpy(), equal_nan=True)
    told = [is_finite(patterns[place : place + 1], kind) for place in range(len(patterns))]
    assert told == torch.isfinite(twin).tolist()


@pytest.mark.parametrize("kind", ["F64", "F32"])
@pytest.mark.parametrize("strange", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_one_strange_number_among_many_is_found(kind: str, strange: float, place: int):
    numbers = np.array([0.0, -0.0, 1e-40, np.finfo(FORMATS[kind]).max, np.finfo(FORMATS[kind]).min, -1.0, 2.0])
    numbers = numbers.astype(FORMATS[kind])
    assert is_finite(numbers, kind)
    numbers[place] = strange
    assert not is_finite(numbers, kind)
    assert not is_finite(numbers.view(np.uint8), kind)


@pytest.mark.parametrize("kind", list(TORCH))
@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_numbers_are_rounded_to_nearest_even_as_torch_does(kind: str, numbers: list[float]):
    """Within what the format can hold; beyond, either NaN or infinity comes out, which is found."""
    wide = np.array([1.0, *numbers], np.float32)
    inside = wide[np.abs(wide) <= torch.finfo(TORCH[kind]).max]
    raw = np.empty(len(inside), FORMATS[kind])
    round_into(raw, inside)
    assert bytes(memory_of(raw)) == bytes(torch.from_numpy(inside).to(TORCH[kind]).view(torch.uint8).numpy())
    assert is_finite(raw, kind)


@pytest.mark.parametrize("kind", NARROW)
def test_what_is_too_large_is_found_after_rounding(kind: str):
    raw = np.zeros(3, FORMATS[kind])
    round_into(raw, np.array([1.0, -3.4e38, 0.5], np.float32))
    assert not is_finite(raw, kind)


@pytest.mark.parametrize("kind", list(TORCH))
def test_no_numbers_at_all_are_finite(kind: str):
    assert is_finite(np.empty(0, np.uint8), kind)
