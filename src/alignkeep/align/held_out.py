"""How often the model's answers beat the references of prompts that are not learned from, before, during and after.

Paper
    Wang et al., Learning to Align, Aligning to Learn, arXiv:2508.07750, section 4: the relative adversarial score
    RAS = mean 1[R(o, y) > 0] and the normalised alignment gain NAG.

Departures from the paper
    1. NAG = mean sign(R_after - R_before); the indicator that is printed cannot give the negative values of its table.
    2. Answers are greedy, one per prompt.
    3. A win is R(o) > R(y): for a reward that compares, R(y) is 0; for one that does not, the reference is scored too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkeep.align.advantage import EQUAL
from alignkeep.align.reward import Reward
from alignkeep.checkpoint.files import write_json
from alignkeep.errors import MachineError, RecipeError
from alignkeep.models.chat import taken_turns
from alignkeep.models.config import GenerationConfig
from alignkeep.models.generation import generate_answers
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import untouched
from alignkeep.trainers.processes import by_first
from alignkeep.trainers.watch import file_in_checkpoint, kept_file
from alignkeep.types import Checkpoint, Prompt, Reference

WINS, TIES = "held_out/ras", "held_out/ras_or_tie"
_NAME = "held_out.json"  # in a checkpoint


class Look(NamedTuple):
    """At one step, for every held-out prompt: the answer, its reward minus the reference's (NaN: unscored), and whether
    it was cut at the limit of new tokens."""

    step: int
    answers: list[str]
    gaps: list[float]
    cut: list[bool]

    @property
    def wins(self) -> tuple[int, int, int]:
        """Answers better than their reference, as good as it, and scored at all."""
        scored = [gap for gap in self.gaps if not math.isnan(gap)]
        return sum(gap > 0 for gap in scored), sum(gap == 0 for gap in scored), len(scored)


class HeldOut(TrainerCallback):
    """Looks before the first step, every `every` steps and at the end; the first process works, all know. `template`
    are TRL's arguments to the chat template."""

    def __init__(
        self,
        rows: Sequence[Reference],
        reward: Reward,
        generation: GenerationConfig,
        *,
        every: int,
        tokenizer: Any,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        self.every, self.looks = every, list[Look]()
        self._rows, self._reward, self._generation, self._tokenizer = list(rows), reward, generation, tokenizer
        self._template = template
        self._prompts = [
            [{"role": m.role, "content": m.content} for m in taken_turns(tokenizer, row.messages)] for row in self._rows
        ]
        columns = {name for row in self._rows for name in row.columns}
        self._columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row in self._rows] for name in columns}
        self._columns["reference"] = [row.answer for row in self._rows]
        self._of_references: list[float] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        if any(hasattr(one, "full_tensor") or hasattr(one, "ds_id") for one in model.parameters()):
            raise RecipeError(
                "align.held_out", seen="a model in shards", expected="a model that a process has whole",
                remedy="leave held_out out and evaluate the result",
            )  # fmt: skip
        if state.global_step:
            kept = json.loads(kept_file(args, state, _NAME, "leave held_out out").read_text(encoding="utf-8"))
            self.looks = [Look(step, answers, [_number(gap) for gap in gaps], cut) for step, answers, gaps, cut in kept]
            return
        self.looks = []
        self._look(model, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._look(kwargs["model"], state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_local_process_zero:
            write_json(file_in_checkpoint(args, state, _NAME), [list(look) for look in self.looks])

    def write(self, file: Path) -> None:
        """The answers before and after, with their rewards, a line for every prompt."""
        first, last = self.looks[0], self.looks[-1]
        with file.open("w", encoding="utf-8") as lines:
            for at, row in enumerate(self._rows):
                facts = {"prompt": row.messages[-1].content, "reference": row.answer}
                for name, look in (("before", first), ("after", last)):
                    gap = look.gaps[at]
                    facts |= {name: look.answers[at], f"{name}_gap": None if math.isnan(gap) else gap}
                lines.write(json.dumps(facts, ensure_ascii=False) + "\n")

    def gains(self) -> np.ndarray:
        """sign(R_after - R_before) of every prompt that was scored both times."""
        changes = np.array([_gap(*both) for both in zip(self.looks[-1].gaps, self.looks[0].gaps, strict=True)])
        return np.sign(changes[~np.isnan(changes)])

    def best(self) -> tuple[int, np.ndarray, np.ndarray]:
        """The step of the look with the most wins (the latest of them), and whether each prompt was won then and at the
        end, of those that were scored both times."""
        best = max(self.looks, key=lambda look: (look.wins[0] / look.wins[2], look.step))
        both = np.array([best.gaps, self.looks[-1].gaps])
        then, end = (both > 0)[:, ~np.isnan(both).any(0)] * 1.0
        return best.step, then, end

    def _look(self, model: Any, state: TrainerState) -> None:
        look = by_first(lambda: self._answered(model, state))
        self.looks.append(look)
        better, equal, scored = look.wins
        if scored == 0:
            raise MachineError(
                f"align.held_out, step {look.step}",
                seen=f"{len(look.gaps)} answers of which none could be scored",
                expected="a reward for some of them",
                remedy="see to the judge or reward function; what was learned so far is kept",
            )
        state.log_history.append({"step": look.step, WINS: better / scored, TIES: (better + equal) / scored})

    def _answered(self, model: Any, state: TrainerState) -> Look:
        loaded = LoadedModel(model, self._tokenizer, Checkpoint("the trainer's model", None, False, None))
        with untouched(model):
            prompts = [Prompt(row.messages) for row in self._rows]
            given = generate_answers(loaded, prompts, self._generation, template=self._template)
        answers = [one.text for one in given]
        if self._of_references is None:
            self._of_references = self._scored([str(row.answer) for row in self._rows], state)
        gaps = [_gap(*both) for both in zip(self._scored(answers, state), self._of_references, strict=True)]
        return Look(state.global_step, answers, gaps, [one.truncated for one in given])

    def _scored(self, answers: list[str], state: TrainerState) -> list[float]:
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in answers]
        completions = [[{"role": "assistant", "content": text}] for text in answers]
        given = self._reward(
            prompts=self._prompts, completions=completions, completion_ids=ids, trainer_state=state,
            log_extra=_unheard, log_metric=_unheard, **self._columns,
        )  # fmt: skip
        return [_number(one) for one in given]


def _gap(reward: float, reference: float) -> float:
    """0 for what `group_advantage` takes for equal."""
    gap = reward - reference
    return 0.0 if abs(gap) <= EQUAL * max(abs(reward), abs(reference)) else gap


def _unheard(*told: Any) -> None:
    """What a reward function says about answers that are not learned from."""


def _number(gap: float | None) -> float:
    return math.nan if gap is None else gap
