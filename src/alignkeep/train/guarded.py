"""A trainer whose steps carry the penalties: its own backward pass, and its own log."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import DistributedType
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkeep.checkpoint.files import write_tensors
from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.train.align_guard import EVERY, AlignGuard, Penalty, check_force
from alignkeep.trainers.kept import file_in_checkpoint, kept_file

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.models.squares import RunningSquares

_CURVATURE = "curvature.safetensors"
_RATIO = "alignguard/ratio"


def guard(trainer: Any, guard: AlignGuard, curvature: RunningSquares | None = None) -> None:
    """Wrap the two calls by which the trainer trains and logs."""
    accelerator, backward, log = trainer.accelerator, trainer.accelerator.backward, trainer.log
    held = guard.trace_held().values()
    seen = _Seen(sum(held) / len(held))

    def with_penalty(loss: Tensor, **named: Any) -> None:
        if not accelerator.sync_gradients:
            backward(loss, **named)
            return
        step = trainer.state.global_step
        model = accelerator.unwrap_model(trainer.model)
        found = guard.penalty(model, curvature)
        seen.add(found, step)
        looks = step % EVERY == 1 or step + 1 == trainer.state.max_steps
        # A curvature of nothing yet weighs nothing: there is no gradient, which is a ratio of 0.
        forces = _forces(found.total, model) if looks and found.total.requires_grad else []
        # DeepSpeed's engine steps within backward and leaves no gradient to look at.
        hidden = accelerator.distributed_type == DistributedType.DEEPSPEED
        task = _task_before(loss, forces, trainer) if hidden and forces else None
        backward(loss + found.total.to(loss), **named)
        if curvature is not None:
            scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
            curvature.end_step(partial(accelerator.reduce, reduction="sum"), accelerator.device, scale)
        if looks:
            seen.add_ratio(forces, _task_after(forces, accelerator.scaler) if task is None else task)

    def with_terms(logs: dict[str, Any], *rest: Any, **named: Any) -> None:
        log({**logs, **seen.means()} if "loss" in logs else logs, *rest, **named)

    accelerator.backward, trainer.log = with_penalty, with_terms
    trainer.add_callback(_AtEnd(seen))
    if curvature is not None:
        trainer.add_callback(_Kept(curvature))


class _Seen:
    """The terms since the last log, and the ratios since this process began."""

    def __init__(self, trace_held: float) -> None:
        self._trace_held = trace_held
        self._terms: list[Tensor] = []
        self.ratios: list[float] = []
        self.steps = 0
        self._new_ratio: float | None = None

    def add(self, found: Penalty, step: int) -> None:
        self.steps += 1
        terms = torch.stack([part.detach().float() for part in found[1:]])
        if not bool(terms.isfinite().all()):
            name = next(name for name, part in found._asdict().items() if not bool(part.isfinite()) and name != "total")
            raise RecipeError(
                f"alignguard, step {step + 1}",
                seen=f"a {name} term that is not finite",
                expected="a number",
                remedy="lower learning_rate or the term's strength; nothing was written",
            )
        self._terms.append(terms)

    def add_ratio(self, forces: list[tuple[Any, Tensor]], task: float) -> None:
        """The norm of the penalty's gradient over that of the task's, whose square is given; 0 of no force."""
        if not forces:
            self._keep(0.0)
        elif task > 0:
            self._keep(math.sqrt(sum(_square(force) for _, force in forces) / task))

    def _keep(self, ratio: float) -> None:
        self.ratios.append(ratio)
        self._new_ratio = max(ratio, self._new_ratio or 0.0)

    def means(self) -> dict[str, float]:
        """Named for the log, and forgotten."""
        if not self._terms:
            return {}
        values = torch.stack(self._terms).mean(0).tolist()
        self._terms.clear()
        found = {f"alignguard/{name}": value for name, value in zip(Penalty._fields[1:], values, strict=True)}
        found["alignguard/trace_held"] = self._trace_held
        if self._new_ratio is not None:
            found[_RATIO], self._new_ratio = self._new_ratio, None
        return found


class _AtEnd(TrainerCallback):
    """Whether penalties were added at all, and ever pulled; a tune that is continued knows its ratios by its log."""

    def __init__(self, seen: _Seen) -> None:
        self._seen = seen

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._seen.steps = 0
        self._seen.ratios = [row[_RATIO] for row in state.log_history if _RATIO in row] if state.global_step else []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._seen.steps:
            raise NoEffectError(
                "alignguard",
                seen="a step whose loss did not pass through the trainer's accelerator",
                expected="a trainer that calls accelerator.backward(loss), where penalties are added",
                remedy="do so in training_step, or add guard.penalty(model).total to the loss yourself",
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_force(self._seen.ratios)


class _Kept(TrainerCallback):
    """The running curvature begins and ends with the tune; it goes into every checkpoint and comes back from it."""

    def __init__(self, curvature: RunningSquares) -> None:
        self._curvature = curvature

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_local_process_zero:
            write_tensors(file_in_checkpoint(args, state, _CURVATURE), self._curvature.state(), {})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._curvature.begin()
        if not state.global_step:
            return
        kept = kept_file(args, state, _CURVATURE, "set curvature: none")
        self._curvature.restore(load_file(kept), args.device)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._curvature.end()


def _whole(one: Any) -> Any:
    """Of a parameter in shards the whole, so that every process sees the same."""
    return one.full_tensor() if hasattr(one, "full_tensor") else one


def _forces(total: Tensor, model: Any) -> list[tuple[Any, Tensor]]:
    """The penalty's own gradient, parameter by parameter."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
    return [(parameter, force) for parameter, force in zip(wanted, found, strict=True) if force is not None]


def _task_after(forces: list[tuple[Any, Tensor]], scaler: Any) -> float:
    """The squared norm of the task's gradient: what is left of the sum's. Raises RecipeError where there is none."""
    scale = scaler.get_scale() if scaler is not None else 1.0
    found = 0.0
    for parameter, force in forces:
        if parameter.grad is None:
            raise RecipeError(
                "alignguard",
                seen="no gradient left behind the backward pass, so that the penalty's force cannot be told",
                expected="an optimizer that steps when the trainer says so",
                remedy="take another trainer.optim (adamw_torch)",
            )
        found += _square(_whole(parameter.grad) / scale - _whole(force))
    return found


def _task_before(loss: Tensor, forces: list[tuple[Any, Tensor]], trainer: Any) -> float:
    """The same by a backward pass of its own over this process's last batch, standing for all of a step's."""
    wanted = [parameter for parameter, _ in forces]
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    square = torch.tensor(sum(_square(one) for one in found if one is not None), device=loss.device)
    batches = getattr(trainer, "current_gradient_accumulation_steps", 1) or 1
    return float(trainer.accelerator.reduce(square, reduction="mean")) * batches**2


def _square(one: Tensor) -> float:
    return float(_whole(one).float().square().sum())
