"""Adapters of fused experts, taken apart into the experts' own tensors as a checkpoint stores them.

In memory the experts of a layer are two parameters, `experts.gate_up_proj` and `experts.down_proj`. PEFT keeps for each
of them A (r * E, in), expert after expert, and B (out, r * E), rank after rank; of two adapted parameters one stands
under `experts.base_layer`. On disk most families store every expert by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Float32

from alignkeep.checkpoint.low_rank import LowRank
from alignkeep.checkpoint.numbers import Numbers as Array
from alignkeep.models.headers import TensorEntry

# Names of gate, up and down projection of one expert on disk: (block in memory, block on disk, the three names).
_LAYOUTS = (
    ("mlp.experts", "mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    ("mlp.experts", "block_sparse_moe.experts", ("w1", "w3", "w2")),
)


def expert_changes(
    module: str,
    down: Float32[Array, "experts_ranks d_in"],
    up: Float32[Array, "d_out experts_ranks"],
    base: Mapping[str, TensorEntry],
    scale_of: Callable[[str, int], float],
) -> dict[str, LowRank] | None:
    """The changes by tensor names on disk, or None where the module is no block of experts that is known.

    `down` and `up` are PEFT's A and B; `scale_of(parameter, rank)` gives their scale. Which of the two parameters they
    belong to is told by their shapes.
    """
    block = module.removesuffix(".base_layer")
    for in_memory, on_disk, (gate, raised, lowered) in _LAYOUTS:
        if not block.endswith(in_memory):
            continue
        prefix = block.removesuffix(in_memory) + on_disk
        count = sum(f"{prefix}.{index}.{lowered}.weight" in base for index in range(down.shape[0] + 1))
        if count == 0 or down.shape[0] % count:
            continue
        wide, narrow = base[f"{prefix}.0.{gate}.weight"].shape, base[f"{prefix}.0.{lowered}.weight"].shape
        rank = down.shape[0] // count
        downs = down.reshape(count, rank, down.shape[1])
        ups = up.reshape(up.shape[0], rank, count).transpose(2, 0, 1)
        shape = (up.shape[0], down.shape[1])
        if shape == (2 * wide[0], wide[1]):
            scale = scale_of(f"{block}.gate_up_proj", rank)
            halves = {gate: slice(0, wide[0]), raised: slice(wide[0], None)}
        elif shape == narrow:
            scale = scale_of(f"{block}.down_proj", rank)
            halves = {lowered: slice(None)}
        else:
            return None
        return {
            f"{prefix}.{index}.{name}.weight": LowRank(ups[index, rows], downs[index], scale)
            for index in range(count)
            for name, rows in halves.items()
        }
    return None
