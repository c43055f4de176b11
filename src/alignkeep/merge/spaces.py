"""The eigenvectors a merge goes by, in a file beside it: `subspace.safetensors`, enough to make the merge again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.checkpoint.files import write_tensors

if TYPE_CHECKING:
    from alignkeep.subspace.eigenbasis import Eigenbasis

SUBSPACE = "subspace.safetensors"


class Space(NamedTuple):
    """The eigenvectors of a tensor's input side, on alignment data and (None: not asked) on tuning data. Its inputs run
    along `input_axis`."""

    alignment: Eigenbasis
    tuning: Eigenbasis | None
    input_axis: int


def read_spaces(path: Path) -> dict[str, Space]:
    """The spaces of a `subspace.safetensors`."""
    from safetensors import safe_open

    from alignkeep.subspace.eigenbasis import Eigenbasis

    with safe_open(path, framework="pt") as file:
        facts: Mapping[str, Any] = json.loads(file.metadata()["spaces"])

        def side(name: str, which: str) -> Eigenbasis | None:
            if which not in facts[name]:
                return None
            vectors, values = (file.get_tensor(f"{name} {which} {part}") for part in ("vectors", "eigenvalues"))
            return Eigenbasis(vectors, values, **facts[name][which])

        spaces = ((name, side(name, "alignment"), side(name, "tuning")) for name in facts)
        return {
            name: Space(alignment, tuning, int(facts[name]["input_axis"]))
            for name, alignment, tuning in spaces
            if alignment is not None
        }


def write_spaces(spaces: Mapping[str, Space], path: Path) -> None:
    """Put them into a file (atomically)."""
    tensors: dict[str, Any] = {}
    facts: dict[str, dict[str, object]] = {}
    for name, space in spaces.items():
        facts[name] = {"input_axis": space.input_axis}
        for which, basis in (("alignment", space.alignment), ("tuning", space.tuning)):
            if basis is not None:
                tensors[f"{name} {which} vectors"] = basis.vectors.float().cpu().contiguous()
                tensors[f"{name} {which} eigenvalues"] = basis.eigenvalues.cpu().contiguous()
                numbers = {key: getattr(basis, key) for key in ("largest", "trace", "captured", "capped")}
                facts[name][which] = numbers
    write_tensors(path, tensors, {"spaces": json.dumps(facts)})
