"""What vLLM is given of a LoRA model between two steps of training; the model is only read.

    trainer = GRPOTrainer(..., args=GRPOConfig(use_vllm=True), peft_config=LoraConfig())
    keep_base_exact(trainer)

Before every sync TRL adds the adapter's change to the base, in the base's own dtype, and afterwards takes it off again.
In bfloat16 the two do not cancel: each sync leaves a rounding error in the base, which is also the reference model and
what the saved adapter is loaded onto. Here each merged matrix is made beside the base, one at a time:

    weight = round(float32(base) + scaling * float32(B) float32(A))        rounded once, to the base's dtype

Departures from TRL's loop, whose names and order these are
    1. Nothing has to be taken off again, so a receiver that stops early or fails leaves no merged base behind.
    2. Of `modules_to_save` only the copy in use is given: TRL also sends the frozen copy of its adapter "ref".
    3. What B A does not describe, or tied weights cannot express, is refused.

A float32 product has the precision that torch is set to: full, unless TF32 was switched on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from peft.tuners.lora.layer import Embedding, Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from trl.generation.vllm_generation import VLLMGeneration

from alignkeep.errors import RecipeError

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer

_PREFIX = "base_model.model."
_SAVED = re.compile(r"(?P<module>.+)\.(?:original_module|modules_to_save\.(?P<adapter>[^.]+))\.(?P<rest>.+)")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_WITHOUT_VLLM = "sample with transformers (use_vllm=False)"


class _Change(NamedTuple):
    """`scale * left @ right`, in the layout of the weight."""

    left: Tensor
    right: Tensor
    scale: float


class ExactSync(VLLMGeneration):
    """TRL's generation with vLLM, whose syncs leave the base of a LoRA model as it is, bit for bit.

    Full models, and what FSDP or DeepSpeed ZeRO-3 has sharded, go the parent's way.
    """

    def _iter_named_params(self) -> Generator[tuple[str, Tensor]]:
        if _is_sharded(self) or not is_peft_model(self.model):
            yield from super()._iter_named_params()
            return
        for name, weight in merged_parameters(self.model):
            yield self._fix_param_name_to_vllm(name), weight


def keep_base_exact(trainer: GRPOTrainer) -> None:
    """Makes the trainer's syncs with vLLM exact. Does nothing where it samples without vLLM or trains no adapter.

    Raises RecipeError for what `merged_parameters` refuses, and for adapters over a sharded base: TRL would merge them.
    """
    if not trainer.use_vllm or not is_peft_model(trainer.model):
        return
    generation = trainer.vllm_generation
    if type(generation) is not VLLMGeneration and not isinstance(generation, ExactSync):
        raise RecipeError(
            "vllm_generation",
            seen=type(generation).__name__,
            expected="TRL's VLLMGeneration",
            remedy="let it inherit from alignkeep.align.sync.ExactSync",
        )
    if _is_sharded(generation):
        raise RecipeError(
            "FSDP or DeepSpeed ZeRO-3",
            seen="a LoRA over a sharded base, with vLLM",
            expected="whole weights on every process: TRL merges into sharded ones",
            remedy=f"use DDP or ZeRO stage 1 or 2, or {_WITHOUT_VLLM}",
        )
    merged_parameters(generation.model)
    if not isinstance(generation, ExactSync):
        # Its class alone is changed: the engine or connection that its constructor made stays, there is room for one.
        generation.__class__ = ExactSync


def _is_sharded(generation: VLLMGeneration) -> bool:
    return generation._dist.is_fsdp or generation._dist.is_zero3


def merged_parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of a PEFT LoRA model under its name in the base, adapted ones merged, in the base's dtypes.

    Laws: the model is not written to; one merged matrix is held at a time; B = 0 gives the base. What is not adapted is
    the model's own memory, as in TRL. Several active adapters are added up before the one rounding.
    Raises RecipeError, before the first is asked for, where the adapter is disabled or merged, or is not B A alone.
    """
    layers = _lora_layers(model)
    in_use = _in_use(model, layers)
    return ((name, _merged(parameter, layers.get(id(parameter)))) for name, parameter in in_use.items())


@torch.no_grad()
def _merged(parameter: Tensor, layer: Linear | Embedding | None) -> Tensor:
    if layer is None:
        return parameter.detach()
    weight = parameter.to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
    for change in _changes(layer):
        # In place: no second matrix of float32, and under autocast no product of bfloat16.
        weight.addmm_(change.left.to(weight.dtype), change.right.to(weight.dtype), alpha=change.scale)
    return weight.to(parameter.dtype)


def _changes(layer: Any) -> Iterator[_Change]:
    for adapter in _active(layer):
        if isinstance(layer, Embedding):
            up, down, turned = layer.lora_embedding_B[adapter], layer.lora_embedding_A[adapter], True
        else:
            up, down, turned = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight, layer.fan_in_fan_out
        scale = layer.scaling[adapter]
        yield _Change(down.T, up.T, scale) if turned else _Change(up, down, scale)


def _active(layer: Any) -> list[str]:
    """The active adapters that have factors here."""
    return [adapter for adapter in layer.active_adapters if adapter in layer.r]


def _lora_layers(model: Any) -> dict[int, Linear | Embedding]:
    """The adapted layers, by the identity of the weight that they stand over."""
    found: dict[int, Linear | Embedding] = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            _check(path.removeprefix(_PREFIX), module)
        if isinstance(module, Linear | Embedding) and _active(module):
            found[id(module.get_base_layer().weight)] = module
    if not found:
        raise RecipeError(
            "adapter",
            seen="no LoRA layer with an active adapter",
            expected="a change to the base for vLLM to sample with",
            remedy="make an adapter active (set_adapter), or train the full model",
        )
    return found


def _check(path: str, module: Any) -> None:
    if module.disable_adapters:
        raise _unfit(path, "disabled", "the adapter in use", "sync outside of disable_adapter()")
    if module.merged_adapters:
        remedy = "load base and adapter again (unmerge_adapter leaves the roundings of the merge)"
        raise _unfit(path, f"{module.merged_adapters} merged already", "a base without its adapter", remedy)
    if isinstance(module, AuxiliaryTrainingWrapper):
        return
    if type(module) not in (Linear, Embedding):
        raise _unfit(
            path,
            f"a layer of the kind {type(module).__module__}.{type(module).__name__}",
            "LoRA of a linear layer or an embedding that is not quantised",
            "leave the layer out of the adapter (target_modules, target_parameters, trainable_token_indices), load the "
            f"base unquantised, or {_WITHOUT_VLLM}",
        )
    weight = getattr(module.get_base_layer(), "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dtype not in _DTYPES:
        seen = f"a weight of {getattr(weight, 'dtype', None)} in a {type(weight).__name__}"
        raise _unfit(path, seen, "a parameter of 16 to 64 bits", f"load the base unquantised, or {_WITHOUT_VLLM}")
    for adapter in _active(module):
        if adapter in module.lora_variant:
            variant = type(module.lora_variant[adapter]).__name__
            raise _unfit(path, variant, "a change of B A alone", f"leave use_dora and its like out, or {_WITHOUT_VLLM}")
        if module.lora_bias[adapter]:
            raise _unfit(path, "lora_bias=True", "a change of B A alone", f"set lora_bias=False, or {_WITHOUT_VLLM}")


def _in_use(model: Any, adapted: Collection[int]) -> dict[str, Tensor]:
    """What a forward pass reads, by its name in the base; what several names share stands under the first."""
    copies = {
        path: next((adapter for adapter in module.active_adapters if adapter in module.modules_to_save), None)
        for path, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
    base: dict[str, Tensor] = {}
    in_use: dict[str, Tensor] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if model.prefix in key:  # the adapter's own
            continue
        saved = _SAVED.fullmatch(key)
        plain = key if saved is None else f"{saved['module']}.{saved['rest']}"
        name = plain.removeprefix(_PREFIX).replace(".base_layer", "")
        if saved is None or saved["adapter"] is None:
            base[name] = parameter
        if saved is None or saved["adapter"] == copies[saved["module"]]:
            in_use[name] = parameter
    _refuse_untied(base, in_use, adapted)
    first: dict[int, str] = {}
    for name, parameter in in_use.items():
        first.setdefault(id(parameter), name)
    return {name: in_use[name] for name in first.values()}


def _refuse_untied(base: Mapping[str, Tensor], in_use: Mapping[str, Tensor], adapted: Collection[int]) -> None:
    """vLLM holds what the base ties once: an adapter that changes one of the tied and not the other cannot be sent."""
    tied: dict[int, list[str]] = {}
    for name, parameter in base.items():
        tied.setdefault(id(parameter), []).append(name)
    for names in tied.values():
        now = {id(in_use.get(name)) for name in names}
        if len(names) > 1 and (len(now) > 1 or not now.isdisjoint(adapted)):
            raise _unfit(
                " and ".join(names),
                "weights that the base ties, adapted apart from each other",
                "one weight: vLLM has one for them",
                "leave them out of target_modules, name them in modules_to_save with ensure_weight_tying=True, or "
                + _WITHOUT_VLLM,
            )


def _unfit(path: str, seen: str, expected: str, remedy: str) -> RecipeError:
    return RecipeError(f"adapter of {path}", seen=seen, expected=expected, remedy=remedy)
