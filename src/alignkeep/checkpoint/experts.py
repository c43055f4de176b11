"""Adapters of parameters that are no weight of a linear layer, as a rule the fused experts of a layer.

In memory the experts of a layer are two parameters, such as `experts.gate_up_proj` and `experts.down_proj`. PEFT keeps
for each of them A (r * E, in), expert after expert, and B (out, r * E), rank after rank; of two adapted parameters one
stands under `experts.base_layer`. On disk they are one tensor, or every expert is stored by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from jaxtyping import Float32

from alignkeep.checkpoint.changes import Change, Stacked
from alignkeep.checkpoint.low_rank import LowRank
from alignkeep.checkpoint.numbers import Numbers as Array
from alignkeep.models.stored import Parameter, Part


def parameter_changes(
    held: Mapping[str, Parameter],
    down: Float32[Array, "experts_ranks d_in"],
    up: Float32[Array, "d_out experts_ranks"],
    scale_of: Callable[[str, int], float],
) -> dict[str, Change] | None:
    """The changes by tensor names on disk, or None where not exactly one of the module's parameters fits.

    `held` are the parameters of the adapted module, `down` and `up` PEFT's A and B, `scale_of(parameter, rank)` their
    scale. Which parameter they belong to is told by their shapes.
    """
    fitting = [name for name, one in held.items() if _fits(one, down, up)]
    if len(fitting) != 1:
        return None
    parameter = held[fitting[0]]
    count = parameter.shape[0] if len(parameter.shape) == 3 else 1
    rank = down.shape[0] // count
    scale = scale_of(fitting[0], rank)
    downs = down.reshape(count, rank, down.shape[1])
    ups = up.reshape(up.shape[0], rank, count).transpose(2, 0, 1)
    turned = parameter.inputs_first and len(parameter.shape) == 3
    pairs = [(right.T, left.T) if turned else (left, right) for left, right in zip(ups, downs, strict=True)]
    if parameter.parts == (Part(parameter.parts[0].tensor),):
        changes = [LowRank(left, right, scale) for left, right in pairs]
        return {parameter.parts[0].tensor: Stacked(changes) if len(parameter.shape) == 3 else changes[0]}
    found: dict[str, Change] = {}
    for part in parameter.parts:
        left, right = pairs[part.expert or 0]
        left, right = left[part.rows], right[:, part.columns]
        found[part.tensor] = LowRank(right.T, left.T, scale) if part.turned else LowRank(left, right, scale)
    return found


def _fits(parameter: Parameter, down: Array, up: Array) -> bool:
    if len(parameter.shape) not in (2, 3) or prod(parameter.shape) == 0:
        return False
    *experts, rows, columns = parameter.shape
    outputs, inputs = (columns, rows) if experts and parameter.inputs_first else (rows, columns)
    return (up.shape[0], down.shape[1]) == (outputs, inputs) and down.shape[0] % prod(experts) == 0
