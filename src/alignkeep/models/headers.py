"""What a safetensors file says it holds, checked against what it does hold, without reading the weights.

The format: 8 bytes of header length (little endian), a JSON header `{name: {dtype, shape, data_offsets}}`, then the
data, without gaps or overlaps. Anything else is refused by naming the file and the tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from alignkeep.errors import CheckpointError
from alignkeep.input_files import first_repeated, open_input, read_input

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself
_MOST_TENSORS = 200_000  # of one file; chosen: the largest models have some 100,000 in all their files together


class TensorEntry(NamedTuple):
    """Where a tensor lies and what it is; `dtype` in safetensors' words ("F32", "BF16", ...).

    `begin` is its first byte in the file, `size` how many there are.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


def read_headers(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """All tensors of these files by name. Raises CheckpointError for damage, and for a name in two files."""
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in entries:
                raise CheckpointError(
                    f"{file}: tensor {name}",
                    seen=f"the same name in {entries[name].file.name}",
                    expected="every tensor once",
                    remedy="remove the shard that does not belong here",
                )
            entries[name] = entry
    return entries


def load_json(path: Path) -> dict[str, object]:
    """A JSON object with every key once. Raises CheckpointError naming the file."""
    try:
        text = read_input(path, longest=_LONGEST_HEADER)
        value = json.loads(text, object_pairs_hook=_once)
        if b"\\ud" in text.lower():  # half a character can be spelled there, and is written nowhere
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            str(path), seen=f"unreadable ({error})", expected="a JSON object", remedy="copy the model again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            str(path), seen=f"JSON of type {type(value).__name__}", expected="an object", remedy="copy the model again"
        )
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"the key {first_repeated(name for name, _ in pairs)!r} stands there twice")
    return value


def _read_header(file: Path) -> dict[str, TensorEntry]:
    try:
        size = os.path.getsize(file)
        with open_input(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise _damaged(file, f"{size} bytes, too few for its header")
            raw = stream.read(length)
    except OSError as error:
        raise _damaged(file, f"unreadable ({error})") from error
    tensors = raw.count(b'"data_offsets"')
    if tensors > _MOST_TENSORS:
        raise _damaged(file, f"a header of {tensors} tensors, where at most {_MOST_TENSORS} are read")
    try:
        header = json.loads(raw, object_pairs_hook=_once)
        header.pop("__metadata__", None)
        spans = {name: _span(file, name, spec) for name, spec in header.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"a header that cannot be read ({str(error)[:120]})") from error
    _check_layout(file, spans, data_size=size - 8 - length)
    data = 8 + length
    return {
        name: TensorEntry(file, spec["dtype"], tuple(spec["shape"]), data + begin, end - begin)
        for (name, spec), (begin, end) in zip(header.items(), spans.values(), strict=True)
    }


def _span(file: Path, name: str, spec: dict[str, object]) -> tuple[int, int]:
    """Begin and end in the data part, which must hold just the elements of the shape."""
    where = f"{file}: tensor {name}"
    match spec:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise CheckpointError(where, seen=str(spec)[:80], expected="dtype, shape, offsets", remedy="get it again")
    if not all(isinstance(length, int) and length >= 0 for length in shape) or not 0 <= begin <= end:
        raise CheckpointError(where, seen=f"{shape} at {begin}:{end}", expected="sizes >= 0", remedy="get it again")
    bits = _BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
        raise CheckpointError(
            where,
            seen=f"{end - begin} bytes",
            expected=f"{math.prod(shape) * bits // 8} for {dtype} {shape}",
            remedy="copy or download the file again",
        )
    return begin, end


def _check_layout(file: Path, spans: dict[str, tuple[int, int]], *, data_size: int) -> None:
    """The tensors follow each other without gap or overlap and fill the file to its end."""
    reached = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != reached:
            what = "overlaps the tensor before it" if begin < reached else "leaves a gap before it"
            raise _damaged(file, f"tensor {name}, which {what}")
        if end > data_size:
            raise _damaged(file, f"the end of the file within tensor {name} ({end - data_size} bytes are missing)")
        reached = end
    if reached != data_size:
        raise _damaged(file, f"{data_size - reached} bytes behind the last tensor")


def _damaged(file: Path, seen: str) -> CheckpointError:
    return CheckpointError(
        str(file), seen=seen, expected="a whole safetensors file", remedy="copy or download the file again"
    )
