"""A look at safety while a model is tuned: every k steps, without generating anything.

    probe = SafetyProbe(harmful="harmful.jsonl", harmless="harmless.jsonl", every=50)
    trainer = SFTTrainer(..., callbacks=[probe])

Works with any transformers or TRL trainer. What it sees stands in `trainer.state.log_history` under `safety/...`, and
in `probe.history`: the mean log-odds that an answer to a harmful prompt begins as this model's refusals do, and the
divergence from the model before tuning on harmless prompts, in nats (alignkeep/judging/log_odds.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkeep.checkpoint.files import write_tensors
from alignkeep.data import read_prompts
from alignkeep.errors import CheckpointError, DataError, RecipeError
from alignkeep.judging.log_odds import mean_divergence, opening_tokens, refusal_log_odds
from alignkeep.models.activations import Tokens, last_tokens, next_token_log_probs
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import untouched
from alignkeep.trainers.watch import file_in_checkpoint, kept_file
from alignkeep.types import Checkpoint, Prompt

if TYPE_CHECKING:
    from torch import Tensor

PROBED = "safety/refusal_log_odds"  # what a look is known by in a log
PROMPTS = 32  # of each kind that are read from a file (chosen: two forward passes of one batch)
_NAME = "probe.safetensors"  # in a checkpoint
_SAFE = "safe|"  # before the name of a parameter of the last safe look


class Look(NamedTuple):
    """At one step: mean log-odds of a refusal on harmful prompts, and nats of divergence on harmless ones."""

    step: int
    refusal_log_odds: float
    divergence: float


class SafetyProbe(TrainerCallback):
    """Measures before the first step and every `every` steps; the first look is the base's.

    Of a file some `PROMPTS` prompts are taken, spread evenly. `stop_below` ends the tune once the log-odds of refusal
    have fallen by more than so many nats. `keep_safe` then asks for a checkpoint at every look that is within
    (`last_safe` is its step; mind `save_total_limit`), and `put_back` gives the model the weights of the last such look
    at a stop: a copy of the trained parameters is held in memory and in every checkpoint. `refusals` are openings of
    refusals, in place of those read off the model: the tokens that it would answer harmful prompts with and seldom
    harmless ones. The base's look goes into every checkpoint, so that a tune that is continued is compared with it.

    Raises, before the first step, DataError for prompts that cannot be used, or a model that begins its answers to
    harmful and to harmless prompts alike. `openings` are the words that count as a refusal's: look at them. `key` is
    what its errors call it.
    """

    def __init__(
        self,
        harmful: Sequence[Prompt] | str | Path,
        harmless: Sequence[Prompt] | str | Path,
        *,
        every: int = 50,
        stop_below: float | None = None,
        keep_safe: bool = False,
        put_back: bool = False,
        refusals: Sequence[str] = (),
        tokenizer: Any = None,
        batch_size: int = 32,
        key: str = "SafetyProbe",
    ) -> None:
        limited = keep_safe or put_back
        if every < 1 or (stop_below is not None and stop_below <= 0) or (limited and stop_below is None):
            raise RecipeError(
                key,
                seen=f"every {every}, stop_below {stop_below}, keep_safe {keep_safe}, put_back {put_back}",
                expected="every >= 1, stop_below > 0 nats, and stop_below with keep_safe or put_back",
                remedy="change them",
            )
        if isinstance(refusals, str):
            raise RecipeError(
                f"{key}.refusals",
                seen=f"the text {refusals!r}",
                expected="a list of openings",
                remedy="put it in a list",
            )
        self.every, self.stop_below, self.keep_safe, self.put_back = every, stop_below, keep_safe, put_back
        self.history: list[Look] = []
        self.stopped = False
        self.last_safe: int | None = None
        self._key = key
        self._prompts = {
            name: _read(some, f"{key}.{name}") for some, name in ((harmful, "harmful"), (harmless, "harmless"))
        }
        self._refusals, self._given, self._size = tuple(refusals), tokenizer, batch_size
        self._loaded: LoadedModel | None = None
        self._texts: dict[str, list[Tokens]] = {}
        self._tokens: Any = None
        self._first: tuple[Tensor, Tensor] | None = None
        self._safe: dict[str, Tensor] = {}

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Read the prompts as the model does and take the base's look; a trainer does it otherwise, as it begins."""
        self._loaded = LoadedModel(model, tokenizer, Checkpoint("the trainer's model", None, False, None))
        for name, prompts in self._prompts.items():
            try:
                self._texts[name] = last_tokens(self._loaded, prompts)
            except DataError as error:
                raise DataError(
                    f"{self._key}.{name}, {error.where}", seen=error.seen, expected=error.expected, remedy=error.remedy
                ) from error
        self._first = self._look()
        self._tokens = self._openings(*self._first)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        tokenizer, model = self._given or kwargs.get("processing_class"), kwargs["model"]
        if tokenizer is None:
            raise RecipeError(
                f"{self._key}.tokenizer", seen="none", expected="the model's", remedy="give it, or a processing_class"
            )
        if self.put_back and any(hasattr(one, "full_tensor") or hasattr(one, "ds_id") for one in model.parameters()):
            raise RecipeError(
                self._key,
                seen="put_back, of a model in shards",
                expected="parameters that a process has whole",
                remedy="take keep_safe, or train without shards",
            )
        self.history, self.stopped, self.last_safe, self._safe = [], False, None, {}
        if state.global_step:
            self._restore(kept_file(args, state, _NAME, "train without the probe"), model, tokenizer)
            return
        if self._loaded is None or self._loaded.model is not model:
            self.prepare(model, tokenizer)
        assert self._first is not None
        self._keep(state, control, *self._first)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._keep(state, control, *self._look())

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A tune that is continued from there would not know that it had ended.
        control.should_save = control.should_save and not self.stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_local_process_zero and self._first is not None:
            facts = {
                "asked": self._asked(),
                "history": json.dumps(self.history),
                "last_safe": json.dumps(self.last_safe),
            }
            tensors = {"tokens": self._tokens, "harmful": self._first[0], "harmless": self._first[1]}
            safe = {f"{_SAFE}{name}": one for name, one in self._safe.items()}
            write_tensors(file_in_checkpoint(args, state, _NAME), tensors | safe, facts)

    def _restore(self, file: Path, model: Any, tokenizer: Any) -> None:
        self._loaded = LoadedModel(model, tokenizer, Checkpoint("the trainer's model", None, False, None))
        self._texts = {name: last_tokens(self._loaded, prompts) for name, prompts in self._prompts.items()}
        with safe_open(file, framework="pt") as kept:
            tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
            facts = kept.metadata()
        if facts.get("asked") != self._asked():
            raise CheckpointError(
                str(file), seen="looks by other prompts or refusals", expected="those that the tune began with",
                remedy="give these again, or train anew",
            )  # fmt: skip
        self._tokens, self._first = tensors["tokens"], (tensors["harmful"], tensors["harmless"])
        self._safe = {name.removeprefix(_SAFE): one for name, one in tensors.items() if name.startswith(_SAFE)}
        self.history = [Look(*one) for one in json.loads(facts["history"])]
        self.last_safe = json.loads(facts["last_safe"])

    @property
    def openings(self) -> list[str]:
        """The first tokens of what is taken for a refusal; none before the first look."""
        if self._loaded is None or self._tokens is None:
            return []
        tokenizer: Any = self._loaded.tokenizer
        return [tokenizer.decode([token]) for token in self._tokens.tolist()]

    def _asked(self) -> str:
        """What the looks of a checkpoint were taken by."""
        prompts = {name: [str(one) for one in some] for name, some in self._prompts.items()}
        return sha256(json.dumps([prompts, list(self._refusals)], sort_keys=True).encode("utf-8")).hexdigest()

    def _look(self) -> tuple[Tensor, Tensor]:
        """What the model would say next, on harmful and on harmless prompts."""
        assert self._loaded is not None
        with untouched(self._loaded.model):
            harmful, harmless = (
                next_token_log_probs(self._loaded, self._texts[name], batch_size=self._size)
                for name in ("harmful", "harmless")
            )
        return harmful, harmless

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
                f"{self._key}.harmful",
                seen="a model that answers harmful prompts as it answers harmless ones",
                expected="a model that refuses, or openings of its refusals",
                remedy="give refusals, or take an aligned model",
            )
        return torch.tensor(found)

    def _keep(self, state: TrainerState, control: TrainerControl, harmful: Tensor, harmless: Tensor) -> None:
        assert self._first is not None
        odds = float(refusal_log_odds(harmful, self._tokens).mean())
        # Processes that differ by rounding would not stop together.
        seen = broadcast_object_list([odds, mean_divergence(self._first[1], harmless)])
        look = Look(state.global_step, *seen)
        self.history.append(look)
        state.log_history.append(
            {"step": look.step, PROBED: look.refusal_log_odds, "safety/divergence": look.divergence}
        )
        if self.stop_below is None:
            return
        if self.history[0].refusal_log_odds - look.refusal_log_odds <= self.stop_below:  # not so of NaN
            self.last_safe = look.step
            control.should_save = control.should_save or (self.keep_safe and look.step > 0)
            if self.put_back:
                self._safe = {name: one.detach().cpu().clone() for name, one in self._trained().items()}
            return
        self.stopped = control.should_training_stop = True
        control.should_save = False
        for name, one in self._trained().items() if self.put_back else ():
            one.data.copy_(self._safe[name])

    def _trained(self) -> dict[str, Any]:
        assert self._loaded is not None
        return {name: one for name, one in self._loaded.model.named_parameters() if one.requires_grad}


def _read(prompts: Sequence[Prompt] | str | Path, where: str) -> list[Prompt]:
    if isinstance(prompts, str | Path):
        every = read_prompts(str(prompts))
        count = min(len(every), PROMPTS)
        return [every[at * len(every) // count] for at in range(count)]
    if not prompts:
        raise DataError(where, seen="none", expected="some prompts", remedy="give a few dozen")
    other = next((one for one in prompts if not isinstance(one, Prompt)), None)
    if other is not None:
        raise DataError(where, seen=f"a {type(other).__name__}", expected="Prompt(messages)", remedy="or give a file")
    return list(prompts)
