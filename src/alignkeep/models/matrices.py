"""The weight matrices of a model as modules: which can be watched or adapted, and a model left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")
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


def beside_language(model: Any) -> tuple[str, ...]:
    """What a model of images and text has beside its language model, by the outermost names: vision towers,
    projectors. Text does not pass there; empty for a language model."""
    base = under_adapter(model)
    decoder = base.get_decoder() if base.config.get_text_config() is not base.config else base
    if decoder is base:
        return ()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    language = {id(part) for one in (decoder, *ends) if one is not None for part in one.modules()}
    found: list[str] = []

    def walk(module: Any, path: str) -> None:
        if id(module) in language:
            return
        if not any(id(part) in language for part in module.modules()):
            found.append(path)
            return
        found.extend(f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False))
        for name, child in module.named_children():
            walk(child, f"{path}.{name}".lstrip("."))

    walk(base, "")
    return tuple(found)


def passes(modules: Mapping[str, Any]) -> Iterator[list[str]]:
    """The names in groups whose Fisher factors fit into memory together: a pass over the data for each."""
    return grouped(modules, lambda name: sum(factor_bytes(modules[name])), _FACTOR_BYTES)


def grouped(items: Iterable[Item], size_of: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """The items in their order, in groups of at most this size; one that is larger is a group of its own."""
    group: list[Item] = []
    held = 0
    for item in items:
        size = size_of(item)
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(item)
        held += size
    if group:
        yield group


def factor_bytes(module: Any) -> tuple[int, int]:
    """What the running sums of a matrix's Fisher factors take: of its inputs, of its outputs."""
    from alignkeep.subspace.fisher import FULL_UP_TO, PROBE_COLUMNS

    inputs, outputs = (8 * width * (width if width <= FULL_UP_TO else PROBE_COLUMNS) for width in widths(module))
    return inputs, outputs


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
