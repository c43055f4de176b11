"""The weight matrices of a model as modules: which can be watched or adapted, and a model left as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

_FACTOR_BYTES = 2 << 30  # held at a time (chosen)


class Matrices(NamedTuple):
    """Modules that can be collected, by name, and names of weights of two or more axes that cannot (fused experts)."""

    modules: dict[str, Any]
    left_out: tuple[str, ...]


def matrices(model: Any) -> Matrices:
    """Linear and Conv1D modules in the model's order, without the output embeddings (as PEFT's all-linear has it).

    The names are the base's, whatever adapter is over it.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    base = under_adapter(model)
    ends = (base.get_output_embeddings(), base.get_input_embeddings())
    skipped = {id(getattr(module, "base_layer", module)) for module in ends}  # under an adapter too
    found: dict[str, Any] = {}
    left_out: list[str] = []
    for name, module in base.named_modules():
        plain = name.replace(".base_layer", "")
        if id(module) in skipped or ".lora_" in name:
            continue
        if isinstance(module, torch.nn.Linear | Conv1D):
            found[plain] = module
        elif not isinstance(module, torch.nn.Embedding):
            own = module.named_parameters(recurse=False)
            left_out.extend(f"{plain}.{key}" for key, weight in own if weight.ndim > 1)
    return Matrices(found, tuple(left_out))


def passes(modules: Mapping[str, Any]) -> Iterator[list[str]]:
    """The names in groups whose Fisher factors fit into memory together: a pass over the data for each."""
    from alignkeep.subspace.fisher import FULL_UP_TO, PROBE_COLUMNS

    group: list[str] = []
    held = 0
    for name, module in modules.items():
        size = sum(8 * width * (width if width <= FULL_UP_TO else PROBE_COLUMNS) for width in widths(module))
        if group and held + size > _FACTOR_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def widths(module: Any) -> tuple[int, int]:
    """Inputs and outputs. Conv1D says so by its weight alone, a quantised Linear by its attributes alone."""
    return (module.in_features, module.out_features) if hasattr(module, "in_features") else tuple(module.weight.shape)


def under_adapter(model: Any) -> Any:
    """The transformers model under an adapter, or the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Within the block the model is in evaluation mode and no parameter wants a gradient; then all is as it was."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
        for module, flag in modes.items():
            module.training = flag
