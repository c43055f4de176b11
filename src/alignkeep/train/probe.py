"""A look at safety while a model is tuned: every k steps, without generating anything.

    probe = SafetyProbe(harmful="harmful.jsonl", harmless="harmless.jsonl", every=50)
    trainer = SFTTrainer(..., callbacks=[probe])

Works with any transformers or TRL trainer. What it sees stands in `trainer.state.log_history` under `safety/...`, and
in `probe.history`: the mean log-odds that an answer to a harmful prompt begins as this model's refusals do, and the
divergence from the model before tuning on harmless prompts, in nats (alignkeep/refusal.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkeep.checkpoint.files import write_tensors
from alignkeep.data import read_prompts
from alignkeep.errors import CheckpointError, DataError, RecipeError
from alignkeep.models.activations import Tokens, last_tokens, next_token_log_probs
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import untouched
from alignkeep.refusal import mean_divergence, opening_tokens, refusal_log_odds
from alignkeep.types import Checkpoint, Prompt

if TYPE_CHECKING:
    from torch import Tensor

PROBED = "safety/refusal_log_odds"  # what a look is known by in a log
PROMPTS = 32  # of each kind that are read from a file (chosen: two forward passes of one batch)


class Look(NamedTuple):
    """At one step: mean log-odds of a refusal on harmful prompts, and nats of divergence on harmless ones."""

    step: int
    refusal_log_odds: float
    divergence: float


class SafetyProbe(TrainerCallback):
    """Measures before the first step and every `every` steps; the first look is the base's.

    `stop_below` ends the tune once the log-odds of refusal have fallen by more than so many nats; `keep_safe` asks the
    trainer for a checkpoint at every look that is within it, so that the last safe one is on disk (`last_safe` is its
    step; mind `save_total_limit`). `refusals` are openings of refusals, in place of those read off the model: the
    tokens that it would answer harmful prompts with and seldom harmless ones. The base's look goes into every
    checkpoint, so that a tune that is continued is still compared with it.

    Raises, before the first step, DataError for prompts that cannot be used or a model that does not refuse.
    """

    def __init__(
        self,
        harmful: Sequence[Prompt] | str,
        harmless: Sequence[Prompt] | str,
        *,
        every: int = 50,
        stop_below: float | None = None,
        keep_safe: bool = False,
        refusals: Sequence[str] = (),
        tokenizer: Any = None,
        batch_size: int = 32,
    ) -> None:
        if every < 1 or (stop_below is not None and stop_below <= 0) or (keep_safe and stop_below is None):
            raise RecipeError(
                "SafetyProbe",
                seen=f"every {every}, stop_below {stop_below}, keep_safe {keep_safe}",
                expected="every >= 1, stop_below > 0 nats, and stop_below with keep_safe",
                remedy="change them",
            )
        self.every, self.stop_below, self.keep_safe = every, stop_below, keep_safe
        self.history: list[Look] = []
        self.stopped = False
        self.last_safe: int | None = None
        self._prompts = tuple(_read(some, name) for some, name in ((harmful, "harmful"), (harmless, "harmless")))
        self._refusals, self._given, self._size = tuple(refusals), tokenizer, batch_size
        self._loaded: LoadedModel | None = None
        self._texts: tuple[list[Tokens], ...] = ()
        self._tokens: Any = None
        self._base: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        tokenizer = self._given or kwargs.get("processing_class")
        if tokenizer is None:
            raise RecipeError(
                "SafetyProbe.tokenizer", seen="none", expected="the model's", remedy="give it, or a processing_class"
            )
        self._loaded = LoadedModel(kwargs["model"], tokenizer, Checkpoint("the trainer's model", None, False, None))
        self._texts = tuple(last_tokens(self._loaded, some) for some in self._prompts)
        if state.global_step:
            self._restore(_file(args, state))
            return
        harmful, harmless = (self._look(texts) for texts in self._texts)
        self._tokens, self._base = self._openings(harmful, harmless), harmless
        self._keep(state, control, harmful, harmless)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._keep(state, control, *(self._look(texts) for texts in self._texts))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            facts = {"history": json.dumps(self.history), "last_safe": json.dumps(self.last_safe)}
            tensors = {"tokens": self._tokens.cpu(), "base": self._base.cpu().contiguous()}
            write_tensors(_file(args, state), tensors, facts)

    def _restore(self, file: Path) -> None:
        if not file.is_file():
            raise CheckpointError(
                str(file.parent),
                seen="a checkpoint without the probe's first look",
                expected=f"{file.name}, which a trainer with a probe writes into it",
                remedy="continue from a checkpoint in output_dir, or train without the probe",
            )
        with safe_open(file, framework="pt") as kept:
            self._tokens, self._base = kept.get_tensor("tokens"), kept.get_tensor("base")
            facts = kept.metadata()
        self.history = [Look(*one) for one in json.loads(facts["history"])]
        self.last_safe = json.loads(facts["last_safe"])

    def _look(self, texts: list[Tokens]) -> Tensor:
        assert self._loaded is not None
        with untouched(self._loaded.model):
            return next_token_log_probs(self._loaded, texts, batch_size=self._size)

    def _openings(self, harmful: Tensor, harmless: Tensor) -> Tensor:
        import torch

        assert self._loaded is not None
        tokenizer: Any = self._loaded.tokenizer
        if self._refusals:
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:1] for text in self._refusals]
            found = sorted({first[0] for first in ids if first and first[0] != tokenizer.unk_token_id})
        else:
            found = opening_tokens(harmful.argmax(-1).tolist(), harmless.argmax(-1).tolist())
        if not found:
            raise DataError(
                "SafetyProbe.harmful",
                seen="a model that answers harmful prompts as it answers harmless ones",
                expected="a model that refuses, or openings of its refusals",
                remedy="give refusals=[...], or take an aligned model",
            )
        return torch.tensor(found)

    def _keep(self, state: TrainerState, control: TrainerControl, harmful: Tensor, harmless: Tensor) -> None:
        odds = float(refusal_log_odds(harmful, self._tokens).mean())
        look = Look(state.global_step, odds, mean_divergence(self._base, harmless))
        self.history.append(look)
        state.log_history.append({"step": look.step, PROBED: odds, "safety/divergence": look.divergence})
        if self.stop_below is None:
            return
        if self.history[0].refusal_log_odds - odds > self.stop_below:
            self.stopped = control.should_training_stop = True
        else:
            self.last_safe = look.step
            control.should_save = control.should_save or (self.keep_safe and look.step > 0)


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / "probe.safetensors"


def _read(prompts: Sequence[Prompt] | str, name: str) -> list[Prompt]:
    found = list(read_prompts(prompts)[:PROMPTS] if isinstance(prompts, str) else prompts)
    if not found:
        raise DataError(f"SafetyProbe.{name}", seen="none", expected="some prompts", remedy="give a few dozen")
    return found
