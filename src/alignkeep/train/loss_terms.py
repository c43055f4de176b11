"""Terms added to the loss of a trainer: its own backward pass carries them, its own log reports them.

The terms join the loss where the trainer hands it to accelerate for the backward pass, once per optimiser step and
after every scaling that accumulation or the number of processes brings. So they mean the same in SFT, DPO and GRPO, and
the trainer's logged loss stays the task's. Every process adds the same terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import DistributedType
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkeep.checkpoint.files import write_tensors
from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.objects import faults_of
from alignkeep.trainers.watch import file_in_checkpoint, kept_file

EVERY = 10  # steps between two looks at the size of the terms' gradient (chosen: it costs a backward pass of its own)
NO_FORCE = 1e-3  # terms whose gradient is never more than this share of the task's do nothing (chosen)
LOOKS = 10
_GUARDED = "_is_guarded_by_alignkeep"


class Terms(NamedTuple):
    """What is added to the loss, and the numbers that are logged of it."""

    total: Tensor
    logged: Mapping[str, Tensor]


class Remembered(Protocol):
    """What terms depend on beside the step and the parameters: it begins and ends with the tune."""

    def begin(self) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor], device: Any) -> None: ...
    def end(self) -> None: ...


def add_to_loss(
    trainer: Any,
    name: str,
    terms: Callable[[Any, int], Terms],
    *,
    remedy: str,
    constants: Mapping[str, float] | None = None,
    after_backward: Callable[[Any], None] | None = None,
) -> None:
    """Add `terms(model, step)` to the loss of every step, `step` counting from 0; `model` is the trainer's, unwrapped.

    Logged as `name/...`, with `constants` beside them, and as `name/ratio` the norm of the terms' gradient over that of
    the task's, every ten steps. `after_backward(accelerator)` is called once a step. Raises RecipeError for a trainer
    that carries terms already; later, RecipeError naming one that is not finite, NoEffectError (with the `remedy`)
    where none was added, or where the ratio stayed below 0.001 (below 0.00001 if it was looked at less than ten times).
    """
    if getattr(trainer, _GUARDED, False):
        raise RecipeError(name, seen="a trainer that is guarded already", expected="one guard", remedy="attach it once")
    setattr(trainer, _GUARDED, True)
    accelerator, backward, log = trainer.accelerator, trainer.accelerator.backward, trainer.log
    seen = _Seen(name, constants or {})

    def with_terms(loss: Tensor, **named: Any) -> None:
        if not accelerator.sync_gradients:
            backward(loss, **named)
            return
        step = trainer.state.global_step
        model = accelerator.unwrap_model(trainer.model)
        where = f"{name}, step {step + 1}"
        with faults_of(terms, where, "its terms", expected="Terms(total, logged)", remedy="mend the defence"):
            found = terms(model, step)
        seen.add(found, step)
        looks = step % EVERY == 1 or step + 1 == trainer.state.max_steps
        # A term of nothing yet weighs nothing: there is no gradient, which is a ratio of 0.
        forces = _forces(found.total, model) if looks and found.total.requires_grad else []
        # DeepSpeed's engine steps within backward and leaves no gradient to look at.
        hidden = accelerator.distributed_type == DistributedType.DEEPSPEED
        task = _task_before(loss, forces, trainer) if hidden and forces else None
        backward(loss + found.total.to(loss), **named)
        if after_backward is not None:
            after_backward(accelerator)
        if looks:
            seen.add_ratio(forces, _task_after(name, forces, accelerator.scaler) if task is None else task)

    def with_means(logs: dict[str, Any], *rest: Any, **named: Any) -> None:
        log({**logs, **seen.means()} if "loss" in logs else logs, *rest, **named)

    accelerator.backward, trainer.log = with_terms, with_means
    trainer.add_callback(_AtEnd(seen, remedy))


def keep_in_checkpoints(trainer: Any, file: str, remembered: Remembered, without: str) -> None:
    """Put it into every checkpoint of the trainer, as `file`, and take it from the one that the tune goes on from.
    Raises CheckpointError for a checkpoint without it; `without` is the setting that does without."""
    trainer.add_callback(_Keeper(file, remembered, without))


def check_force(name: str, ratios: Sequence[float], remedy: str) -> None:
    """Raises NoEffectError where the terms never pulled. Over few looks they have little to pull at: the update is
    small."""
    least = NO_FORCE if len(ratios) >= LOOKS else NO_FORCE / 100
    if ratios and max(ratios) < least:
        raise NoEffectError(
            name,
            seen=f"penalties whose gradient was at most {max(ratios):.1e} of the task's",
            expected=f"a share above {least:g} at some step",
            remedy=remedy,
        )


class _Seen:
    """The terms since the last log, and the ratios since this process began."""

    def __init__(self, name: str, constants: Mapping[str, float]) -> None:
        self.name, self.ratio = name, f"{name}/ratio"
        self._constants, self._names = constants, list[str]()
        self._terms: list[Tensor] = []
        self.ratios: list[float] = []
        self.steps = 0
        self._new_ratio: float | None = None

    def add(self, found: Terms, step: int) -> None:
        if not isinstance(found, Terms):
            raise RecipeError(
                f"{self.name}, step {step + 1}", seen=f"a {type(found).__name__}", expected="Terms(total, logged)",
                remedy="mend the defence",
            )  # fmt: skip
        self.steps += 1
        self._names = list(found.logged)
        terms = torch.stack([part.detach().float() for part in (*found.logged.values(), found.total)])
        if not bool(terms.isfinite().all()):
            name = next((name for name, part in found.logged.items() if not bool(part.isfinite())), "total")
            raise RecipeError(
                f"{self.name}, step {step + 1}",
                seen=f"a {name} term that is not finite",
                expected="a number",
                remedy="lower learning_rate or the term's strength; nothing was written",
            )
        self._terms.append(terms[:-1])

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
        found = {f"{self.name}/{name}": value for name, value in zip(self._names, values, strict=True)}
        found |= {f"{self.name}/{name}": value for name, value in self._constants.items()}
        if self._new_ratio is not None:
            found[self.ratio], self._new_ratio = self._new_ratio, None
        return found


class _AtEnd(TrainerCallback):
    """Whether terms were added at all, and ever pulled; a tune that is continued knows its ratios by its log."""

    def __init__(self, seen: _Seen, remedy: str) -> None:
        self._seen, self._remedy = seen, remedy

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._seen.steps = 0
        name = self._seen.ratio
        self._seen.ratios = [row[name] for row in state.log_history if name in row] if state.global_step else []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._seen.steps:
            raise NoEffectError(
                self._seen.name,
                seen="a step whose loss did not pass through the trainer's accelerator",
                expected="a trainer that calls accelerator.backward(loss), where terms are added",
                remedy="do so in training_step",
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_force(self._seen.name, self._seen.ratios, self._remedy)


class _Keeper(TrainerCallback):
    def __init__(self, file: str, remembered: Remembered, without: str) -> None:
        self._file, self._remembered, self._without = file, remembered, without

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_local_process_zero:
            write_tensors(file_in_checkpoint(args, state, self._file), self._remembered.state(), {})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._remembered.begin()
        if state.global_step:
            kept = kept_file(args, state, self._file, self._without)
            self._remembered.restore(load_file(kept), args.device)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._remembered.end()


def _whole(one: Any) -> Any:
    """Of a parameter in shards the whole, so that every process sees the same."""
    return one.full_tensor() if hasattr(one, "full_tensor") else one


def _forces(total: Tensor, model: Any) -> list[tuple[Any, Tensor]]:
    """The penalty's own gradient, parameter by parameter."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
    return [(parameter, force) for parameter, force in zip(wanted, found, strict=True) if force is not None]


def _task_after(name: str, forces: list[tuple[Any, Tensor]], scaler: Any) -> float:
    """The squared norm of the task's gradient: what is left of the sum's. Raises RecipeError where there is none."""
    scale = scaler.get_scale() if scaler is not None else 1.0
    found = 0.0
    for parameter, force in forces:
        if parameter.grad is None:
            raise RecipeError(
                name,
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
