"""Examples of the base's alignment in every step of the tune.

Source
    Bianchi et al., Safety-Tuned LLaMAs, arXiv:2309.07875 (SafeInstruct): safety examples mixed into the tuning data.

    L = L_task + w * mean_t -log p(y_t | x, y_<t),   t over the answers of k alignment examples

Departures
    1. Every step has the same number of them, in turns, where the paper shuffles them into the data: as a term of their
       own in the loss, so that it means the same in SFT, DPO and GRPO, for any accumulation and number of processes.
    2. The term weighs as much as the task's own mean loss unless `weight` says otherwise; in a mixed batch it would
       have its share of the tokens, which keeps less (docs/alignguard.md).
    3. The answers are the base's own; the paper's were written by another model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from alignkeep.models.chat import IGNORED
from alignkeep.models.collectors import Batch, padded
from alignkeep.models.examples import encoded
from alignkeep.settings import Checked
from alignkeep.train.alignment import check_alignment, in_turns, read_alignment, rows_of, tensors_of_rows
from alignkeep.train.defence import Base, Before, Defence, Measured, Outcome

if TYPE_CHECKING:
    from torch import Tensor


class ReplaySettings(Checked):
    """`data` are examples of the base's alignment: harmful prompts with its own refusals, and harmless ones with its
    answers; `examples` of them are learned from in each step. `weight` is that of their mean loss beside the task's.
    """

    data: str | None = None
    examples: int = Field(default=4, ge=0, le=1_000_000)
    weight: float = Field(default=1.0, ge=0, le=1e6)


class Replay(Defence[ReplaySettings]):
    """Replay as `--method replay` has it."""

    name = "replay"
    title = "Alignment examples in every step"
    options = ReplaySettings
    strength = "weight"
    works = ("bianchi2024safety",)
    departures = (
        "They are a term of their own in every step, as heavy as the task's; the paper shuffles them into the data.",
        "The answers are the base's own; the paper's were written by another model.",
    )

    def examples_beside(self, options: ReplaySettings) -> int:
        return options.examples

    def is_off(self, options: ReplaySettings) -> bool:
        return options.examples == 0 or options.weight == 0

    def check(self, options: ReplaySettings, before: Before) -> None:
        read_alignment(options.data, before)

    def measure(self, options: ReplaySettings, base: Base) -> Measured:
        examples = check_alignment(base, str(options.data))
        return tensors_of_rows(encoded(base.loaded.tokenizer, examples, base.max_length, f"{options.data}, example")[0])

    def attach(self, options: ReplaySettings, measured: Measured, trainer: Any) -> Callable[[], Outcome]:
        from alignkeep.train.loss_terms import Terms, add_to_loss

        rows = rows_of(measured)
        turns = in_turns(len(rows), options.examples, trainer.args.seed)

        def terms(model: Any, step: int) -> Terms:
            found = answer_loss(model, padded([rows[at] for at in turns(step)], trainer.accelerator.device))
            return Terms(options.weight * found, {"loss": found})

        remedy = "raise defence.weight, or set it to 0 for a tune without"
        add_to_loss(trainer, self.name, terms, remedy=remedy)
        return lambda: Outcome({"replayed": trainer.state.global_step * options.examples})


def answer_loss(model: Any, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, in nats; every token counts the same."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.mask.long(), use_cache=False).logits
    chosen = batch.labels[:, 1:] != IGNORED
    log_probs = logits[:, :-1][chosen].float().log_softmax(-1)
    return -log_probs.gather(-1, batch.labels[:, 1:][chosen][:, None]).mean()


REPLAY = Replay()
