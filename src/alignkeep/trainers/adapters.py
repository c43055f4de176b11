"""The adapter in PEFT's words, and whether PEFT put it where it was wanted."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from alignkeep.errors import RecipeError, ShapeError
from alignkeep.models.matrices import beside_language

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

    from alignkeep.trainers.config import LoraSettings


def lora_config(settings: LoraSettings, model: nn.Module, stage: str) -> LoraConfig:
    """PEFT's settings of the adapter. Raises RecipeError where a target module matches nothing in `model`.

    PEFT by itself is content with a list of which one name matches, and leaves the others untrained in silence.
    """
    from peft import LoraConfig

    targets: str | list[str] = settings.target_modules
    if isinstance(targets, list):
        _check_targets(targets, model, stage)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  (PEFT divides it; any number works)
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=_excluded(model, targets),
        task_type="CAUSAL_LM",
    )


def put_on(skeleton: Any, adapter: LoraConfig, stage: str) -> Any:
    """A copy of the skeleton with the adapter, as the tune will have it. Raises RecipeError where PEFT refuses."""
    from peft import get_peft_model

    try:
        return get_peft_model(deepcopy(skeleton), adapter)
    except (ValueError, TypeError, AttributeError, ImportError, NotImplementedError) as error:
        raise RecipeError(
            f"{stage}.lora", seen=f"PEFT's {type(error).__name__}: {' '.join(str(error).split())[:240]}",
            expected="layers that it can adapt", remedy="name others in lora.target_modules",
        ) from error  # fmt: skip


def freeze_beside_language(model: Any) -> None:
    """What text does not pass through is not trained, and costs an optimizer nothing."""
    for name in beside_language(model):
        module = model.get_submodule(name) if name in dict(model.named_modules()) else None
        for part in [model.get_parameter(name)] if module is None else module.parameters():
            part.requires_grad_(False)


def _excluded(model: Any, targets: str | list[str]) -> str | None:
    """A pattern of the linear layers that get no adapter: where text does not pass, it would learn nothing; layers with
    a forward of their own (routers) do not give x W; and of all-linear those of Mamba that PEFT will not adapt, since
    fused kernels read their weights past the layer."""
    linear = linear_names(model)
    parts = [re.escape(name) for name in beside_language(model) if any(_is_within(one, name) for one in linear)]
    parts += sorted({re.sub(r"\d+", r"\\d+", re.escape(name)) for name in _of_other_forward(model)})
    refused = [] if isinstance(targets, list) else sorted(filter(_refuses(model), {_last(name) for name in linear}))
    patterns = [rf"({'|'.join(parts)})(\..*)?"] * bool(parts) + [rf"(.*\.)?({'|'.join(refused)})"] * bool(refused)
    return "|".join(patterns) or None


def _of_other_forward(model: nn.Module) -> list[str]:
    from torch import nn

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
    ]


def _refuses(model: Any) -> Callable[[str], bool]:
    """Whether PEFT refuses a LoRA on modules of this name in such a model."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    def refuses(name: str) -> bool:
        try:
            _check_lora_target_modules_mamba(LoraConfig(), model, name)
        except ValueError:
            return True
        return False

    return refuses


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def parameter_counts(skeleton: Any, adapter: LoraConfig | None) -> tuple[int, int]:
    """All parameters of the base, and those that are trained."""
    total = sum(part.numel() for part in skeleton.parameters())
    if adapter is None:
        return total, total
    model = put_on(skeleton, adapter, "train")
    return total, sum(part.numel() for part in model.parameters() if part.requires_grad)


def check_adapted(settings: LoraSettings, model: Any, stage: str) -> None:
    """Every linear layer that was named has an adapter now; raises ShapeError naming those PEFT passed over."""
    if not isinstance(settings.target_modules, list):
        return
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    base = model.get_base_model()
    beside = beside_language(base)
    missed = [
        name
        for name in linear_names(base)
        if not any(_is_within(name, part) for part in beside)
        and _matches(name.replace(".base_layer", ""), settings.target_modules)
        and not any(done.endswith(name.replace(".base_layer", "")) for done in adapted)
    ]
    if missed:
        raise ShapeError(
            f"{stage}.lora.target_modules",
            seen=f"no adapter on {', '.join(missed[:5])} ({len(missed)} in all)",
            expected="an adapter on every linear layer that was named",
            remedy="PEFT moves these names to the fused experts of this architecture; name other modules",
        )


def linear_names(model: nn.Module) -> list[str]:
    """Full names of the linear layers, in the model's order."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _check_targets(targets: list[str], model: nn.Module, stage: str) -> None:
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    odd = next((name for name in _of_other_forward(model) if _matches(name, targets)), None)
    if odd is not None:
        raise RecipeError(
            f"{stage}.lora.target_modules",
            seen=f"{odd}, a {type(model.get_submodule(odd)).__name__} with a forward of its own",
            expected="linear layers, to whose output an adapter adds its product",
            remedy="leave it out",
        )
    missing = [target for target in targets if not any(_matches(name, [target]) for name in names)]
    if missing or not targets:
        parts = dict.fromkeys(name.rpartition(".")[2] for name in linear_names(model))
        raise RecipeError(
            f"{stage}.lora.target_modules",
            seen=", ".join(missing) or "an empty list",
            expected=f"names of linear layers: {', '.join(parts)}",
            remedy="name some of these, or all-linear",
        )


def _matches(name: str, targets: list[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)
