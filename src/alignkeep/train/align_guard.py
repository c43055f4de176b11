"""AlignGuard for any transformers or TRL trainer of a PEFT LoRA model: the loss gains penalties, nothing else moves.

    guard = AlignGuard.measure(trainer.model, trainer.processing_class, alignment_examples)
    guard.attach(trainer)
    trainer.train()

The penalties join the loss where the trainer hands it to accelerate for the backward pass, once per optimiser step and
after every scaling that accumulation or the number of processes brings. So they mean the same in SFT, DPO and GRPO, and
the trainer's logged loss stays the task's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.models.adapters import start_in_base
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import under_adapter
from alignkeep.progress import Progress
from alignkeep.train.align_guard_settings import AlignGuardSettings
from alignkeep.train.alignment import check_alignment, read_alignment
from alignkeep.train.defence import Base, Before, Defence, Measured, Outcome
from alignkeep.train.subspaces import (
    measure_subspaces,
    read_subspaces,
    subspaces_of,
    tensors_of,
    write_subspaces,
)
from alignkeep.types import Checkpoint, Example

if TYPE_CHECKING:
    from alignkeep.models.squares import RunningSquares
    from alignkeep.train.split import Subspace
    from alignkeep.train.stacked import Adapted, Penalty, Stacked

_CURVATURE = "curvature.safetensors"
_STRONGER = "raise alignguard.alignment, or set all strengths to 0 for plain LoRA"


@dataclass
class AlignGuard:
    """The subspace of every adapted matrix, by its name in the base, and how strongly it is kept."""

    subspaces: Mapping[str, Subspace]
    settings: AlignGuardSettings = field(default_factory=AlignGuardSettings)
    _stacked: Stacked | None = field(default=None, init=False, repr=False)
    _curvature: RunningSquares | None = field(default=None, init=False, repr=False)

    @classmethod
    def measure(
        cls,
        model: Any,
        tokenizer: Any,
        examples: Sequence[Example],
        settings: AlignGuardSettings | None = None,
        *,
        batch_size: int = 8,
        max_length: int = 1024,
        progress: Progress | None = None,
    ) -> AlignGuard:
        """The subspaces of a PEFT model's adapted matrices, from its base and alignment data (harmful prompts with the
        base's refusals, and harmless ones with its answers). Raises RecipeError without LoRA layers, DataError for data
        that cannot be used, NoEffectError where it touches no matrix."""
        settings = settings or AlignGuardSettings()
        loaded = LoadedModel(model, tokenizer, Checkpoint("the trainer's model", None, is_adapter=True, base=None))
        found = measure_subspaces(
            loaded,
            list(adapted(model)),
            examples,
            settings,
            batch_size=batch_size,
            max_length=max_length,
            progress=progress,
        )
        return cls(found, settings)

    @classmethod
    def load(cls, path: Path, model: Any, settings: AlignGuardSettings | None = None) -> AlignGuard:
        """Those of a file that `save` wrote. Raises CheckpointError for another model, or other settings."""
        settings = settings or AlignGuardSettings()
        return cls(read_subspaces(Path(path), list(adapted(model)), under_adapter(model), settings), settings)

    def save(self, path: Path, model: Any) -> None:
        """Write the subspaces, and what the model is known by, to a safetensors file."""
        write_subspaces(Path(path), self.subspaces, under_adapter(model), self.settings)

    def penalty(self, model: Any, curvature: RunningSquares | None = None) -> Penalty:
        """Of the model's adapters as they are; differentiable. 0 for an adapter that has not begun (B = 0).

        A running curvature is, unless given, what the trainer that the guard was last attached to has seen so far.
        """
        return self._stack().penalty(adapted(model), curvature or self._curvature)

    def energies(self, model: Any) -> dict[str, tuple[float, float]]:
        """Of every adapted matrix: the squared norms of its update inside the subspace and beside it."""
        return self._stack().energies(adapted(model))

    def trace_held(self) -> dict[str, float]:
        """Of every matrix: the share of its Fisher factor's trace that its directions hold, of two sides the smaller.
        What the cap `most` leaves out, no penalty sees. Matrices of no Fisher are left out."""
        shares = {
            name: min(float(side.held) for side in one if side is not None) for name, one in self.subspaces.items()
        }
        return {name: share for name, share in shares.items() if not math.isnan(share)}

    def _stack(self) -> Stacked:
        from alignkeep.train.stacked import Stacked

        if self._stacked is None:
            self._stacked = Stacked(self.subspaces, self.settings)
        return self._stacked

    def attach(self, trainer: Any) -> None:
        """Add the penalty to every step of this trainer. With all strengths 0 nothing is touched: it is plain LoRA.

        Logged as `alignguard/...`: every term as it enters the loss, the update's energy inside and beside the
        subspace, and the ratio of the penalty's gradient to the task's. Raises RecipeError for a model that cannot be
        guarded or trains more than its adapters; later, RecipeError naming a term that is not finite, NoEffectError
        where no penalty was added, or where the ratio stayed below 0.001 (below 0.00001 if it was looked at less than
        ten times: it is every ten steps).
        """
        modules = adapted(trainer.model)
        missing = [name for name in modules if name not in self.subspaces]
        if missing:
            raise RecipeError(
                "alignguard",
                seen=f"no subspace of {missing[0]}",
                expected=f"one of each of the {len(modules)} adapted matrices",
                remedy="measure the guard on this model with its adapter",
            )
        if self.settings.is_off:
            return
        _refuse_unguarded(trainer.model, modules)
        from alignkeep.models.squares import RunningSquares
        from alignkeep.train.loss_terms import Terms, add_to_loss, keep_in_checkpoints

        if self.settings.curvature == "running":
            if getattr(trainer.args, "n_gpu", 1) > 1:
                raise RecipeError(
                    "alignguard.curvature",
                    seen=f"running, with {trainer.args.n_gpu} GPUs in one process",
                    expected="a process for each",
                    remedy="start it with torchrun or accelerate launch, or set curvature: none",
                )
            self._curvature = RunningSquares({name: one.whole for name, one in modules.items()})
        curvature, held = self._curvature, self.trace_held().values()

        def terms(model: Any, step: int) -> Terms:
            found = self.penalty(model, curvature)._asdict()
            return Terms(found.pop("total"), found)

        def after_backward(accelerator: Any) -> None:
            if curvature is not None:
                scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
                curvature.end_step(partial(accelerator.reduce, reduction="sum"), accelerator.device, scale)

        constants = {"trace_held": sum(held) / len(held)}
        add_to_loss(trainer, "alignguard", terms, remedy=_STRONGER, constants=constants, after_backward=after_backward)
        if curvature is not None:
            keep_in_checkpoints(trainer, _CURVATURE, curvature, "set curvature: none")


def adapted(model: Any) -> dict[str, Adapted]:
    """The LoRA modules by their names in the base. Raises RecipeError for none, or a kind whose update is not B A."""
    from alignkeep.train.stacked import Adapted

    if any(parameter.is_meta for parameter in model.parameters()):
        raise CheckpointError(
            "model", seen="weights on the meta device", expected="numbers", remedy="load the model first"
        )
    _refuse_other_starts(model)
    found: dict[str, Adapted] = {}
    for name, module in under_adapter(model).named_modules():
        if not hasattr(module, "lora_A") or not hasattr(module, "base_layer"):
            continue
        _refuse_other_kind(name, module)
        for adapter in _active(module):
            down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            _refuse_partitioned(name, down, up)
            found[name] = Adapted(down, up, module.scaling[adapter], module.base_layer, module)
    if not found:
        raise RecipeError(
            "alignguard",
            seen="a model without LoRA layers",
            expected="a PEFT LoRA model",
            remedy="give the trainer a peft_config, or take method lora or full",
        )
    return found


def _refuse_partitioned(name: str, *factors: Any) -> None:
    """Under ZeRO-3 a parameter is empty until its module runs; no penalty can be read off it."""
    if any(hasattr(factor, "ds_id") and not factor.numel() for factor in factors):
        raise RecipeError(
            f"adapter of {name}",
            seen="a parameter that DeepSpeed ZeRO-3 has taken apart",
            expected="whole adapters on every process",
            remedy="use ZeRO stage 1 or 2, or FSDP2",
        )


def _refuse_unguarded(model: Any, modules: Mapping[str, Adapted]) -> None:
    """What is trained beside the adapters can change alignment at will."""
    guarded = {id(part) for one in modules.values() for part in (one.down, one.up)}
    free = [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in guarded]
    if free:
        raise RecipeError(
            "alignguard",
            seen=f"{free[0]}, which is trained and not guarded ({len(free)} such parameters)",
            expected="adapters of linear layers, and nothing else that is trained",
            remedy="leave modules_to_save, bias and unfrozen weights away",
        )


def check_kinds(model: Any) -> None:
    """Raises RecipeError for an adapter whose update is not B A; looks at no number, so that a skeleton will do."""
    for name, module in under_adapter(model).named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            _refuse_other_kind(name, module)


def _refuse_other_kind(name: str, module: Any) -> None:
    other = _other_kind(module, _active(module))
    if other is None:
        return
    fused = hasattr(module, "parameter_name")
    raise RecipeError(
        f"adapter of {name}",
        seen=other,
        expected="one LoRA of a linear layer, whose update is B A",
        remedy="name the other layers, as lora.target_modules: [q_proj, k_proj, v_proj, o_proj]"
        if fused
        else "leave use_dora, target_parameters, embeddings and other kinds of adapters away",
    )


def _active(module: Any) -> list[str]:
    return [one for one in module.active_adapters if one in module.lora_A or one in module.lora_embedding_A]


def _other_kind(module: Any, active: Sequence[str]) -> str | None:
    """What a module has that is not one plain LoRA of a linear layer; None where it has nothing else."""
    if hasattr(module, "parameter_name"):
        return "an adapter of fused experts"
    if len(active) > 1:
        return f"several active adapters ({', '.join(active)})"
    for adapter in active:
        if adapter in module.lora_embedding_A:
            return "an adapter of embeddings"
        if adapter in getattr(module, "lora_magnitude_vector", {}):
            return "DoRA"
        if not hasattr(module.lora_A[adapter], "weight"):
            return type(module).__name__
        if not math.isfinite(module.scaling[adapter]):
            return f"a scaling of {module.scaling[adapter]}"
    return None


def _refuse_other_starts(model: Any) -> None:
    """PiSSA and its like take the adapter's start out of the base: the update is then not B A, the base another one."""
    for settings in getattr(model, "peft_config", {}).values():
        start = start_in_base(vars(settings))
        if start is not None:
            raise RecipeError(
                "init_lora_weights",
                seen=start,
                expected="a LoRA that begins at no update",
                remedy="leave init_lora_weights at its default",
            )


class AlignGuardDefence(Defence[AlignGuardSettings]):
    """AlignGuard as `--method alignguard` has it."""

    name = "alignguard"
    title = "LoRA that keeps what alignment rests on"
    options = AlignGuardSettings
    strength = "alignment"
    works = ("das2025alignguard", "martens2015optimizing")
    departures = (
        "The subspace is of a matrix's inputs, as the paper's dW = A B has it; outputs and both are options.",
        "Penalties are sums over entries with the Fisher divided by its largest eigenvalue; as means they vanish.",
        "By default the alignment term alone is on; trust region and collision terms are options.",
    )

    def is_off(self, options: AlignGuardSettings) -> bool:
        return options.is_off

    def check(self, options: AlignGuardSettings, before: Before) -> None:
        if not before.has_adapter:
            raise RecipeError(
                "train.method", seen="full with alignguard", expected="lora, whose update it looks at",
                remedy="give --method alignguard, or take another defence",
            )  # fmt: skip
        read_alignment(options.data, before)
        check_kinds(before.skeleton)

    def foresee(self, options: AlignGuardSettings, before: Before) -> tuple[str, ...]:
        """What a cap below the width of a matrix may leave unguarded; which share of the trace, only data can say."""
        from alignkeep.models.matrices import matrices, widths

        widest = max(max(widths(module)) for module in matrices(before.skeleton).modules.values())
        if widest <= options.most:
            return ()
        return (
            f"alignguard keeps at most {options.most} directions of matrices up to {widest} wide: the share of the "
            f"Fisher's trace that they hold ({options.share:.0%} is asked for) is measured first, logged as "
            "alignguard/trace_held and kept in the record",
        )

    def memory(self, options: AlignGuardSettings, before: Before) -> int:
        """Of the Fisher factors that are held at a time."""
        from alignkeep.models.matrices import factor_bytes, matrices, passes

        modules = matrices(before.skeleton).modules
        sides = {"input": [0], "output": [1], "both": [0, 1]}[options.side]
        groups = passes(modules)
        return max(sum(factor_bytes(modules[name])[side] for name in group for side in sides) for group in groups)

    def measure(self, options: AlignGuardSettings, base: Base) -> Measured:
        examples = check_alignment(base, str(options.data))
        guard = AlignGuard.measure(
            base.loaded.model, base.loaded.tokenizer, examples, options, max_length=base.max_length,
            progress=base.progress,
        )  # fmt: skip
        return tensors_of(guard.subspaces)

    def attach(self, options: AlignGuardSettings, measured: Measured, trainer: Any) -> Callable[[], Outcome]:
        guard = AlignGuard(subspaces_of(measured), options)
        guard.attach(trainer)

        def outcome() -> Outcome:
            held = guard.trace_held()
            energies = guard.energies(trainer.accelerator.unwrap_model(trainer.model))
            return Outcome({"energies": energies, "trace_held": held}, _unguarded(options, held))

        return outcome


def _unguarded(options: AlignGuardSettings, held: Mapping[str, float]) -> tuple[str, ...]:
    """What the cap on the guarded directions left out."""
    short = {name: one for name, one in held.items() if one < options.share - 1e-4}
    if not short:
        return ()
    least = min(short, key=lambda name: short[name])
    return (
        f"alignguard keeps {options.most} directions of a matrix at most: in {len(short)} of {len(held)} they hold "
        f"less than {options.share:.0%} of the Fisher's trace (mean {sum(held.values()) / len(held):.1%}, least "
        f"{short[least]:.1%} in {least}); the rest is not guarded (alignguard.most)",
    )


ALIGNGUARD = AlignGuardDefence()
