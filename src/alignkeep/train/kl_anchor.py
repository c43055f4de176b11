"""The base's own distribution on alignment answers as an anchor: the tune pays for leaving it.

Sources
    Li and Hoiem, Learning without Forgetting, arXiv:1606.09282: what a model said before it was tuned, as
    a second loss.
    Ziegler et al., Fine-Tuning Language Models from Human Preferences, arXiv:1909.08593, section 2.2: a weight that
    follows a target for the divergence.

    L = L_task + w * mean_t KL(p_base(. | x, y_<t) || p_tuned(. | x, y_<t)),   t over the answers' tokens
    w <- w (1 + 0.1 clip(KL / target - 1, -0.2, 0.2))     where a target is given

Symbols (paper -> here)
    beta, K_beta    weight, RATE
    e_t             error, cut to LIMIT

Departures
    1. The anchor are the base's answers to alignment prompts, a few in turns in forward passes of their own; the
       papers take the task's own inputs, and samples.
    2. Of the base's distribution the `keep` most likely tokens are kept, all others as one: a lower bound of the
       divergence, and the divergence itself where `keep` is the vocabulary.
    3. The weight does not fall below FLOOR, from where it could not come back within a tune.

Shapes: n answer tokens, V tokens of the vocabulary, k of them kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, model_validator

from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.models.chat import IGNORED
from alignkeep.models.collectors import Batch, padded
from alignkeep.models.examples import encoded
from alignkeep.settings import Checked
from alignkeep.train.alignment import answer_tokens, check_alignment, in_turns, read_alignment, rows_of, tensors_of_rows
from alignkeep.train.defence import Base, Before, Defence, Measured, Outcome

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

RATE, LIMIT = 0.1, 0.2  # of the weight's change in a step (the paper's K_beta, and where it cuts the error)
FLOOR = 1e-3  # (chosen: 1 is reached from there in 350 steps)
SLACK = 2.0  # a mean divergence of so many targets in the last quarter of a tune has missed it (chosen)
_BATCH = 8  # examples of a forward pass over the base (chosen)
_FILE = "kl_anchor.safetensors"  # in a checkpoint


class Anchor(NamedTuple):
    """A distribution per token: the log-probabilities of those kept, and of all others together (-inf for none)."""

    tokens: Int[Tensor, "n k"]
    log_probs: Float[Tensor, "n k"]
    rest: Float[Tensor, " n"]


def anchor(log_probs: Float[Tensor, "n V"], keep: int) -> Anchor:
    """The `keep` most likely tokens of each distribution. Law: they and the rest add up to 1."""
    found = log_probs.topk(min(keep, log_probs.shape[-1]), -1)
    return Anchor(found.indices, found.values, log_probs.scatter(-1, found.indices, float("-inf")).logsumexp(-1))


def divergence(base: Anchor, tuned: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """KL(base || tuned) in nats, from the tuned model's log-probabilities, all tokens that are not kept counted as one.
    Laws: at least 0 up to rounding; 0 where they are equal; at most the divergence over all tokens."""
    inside = _nats(base.log_probs, tuned.gather(-1, base.tokens)).sum(-1)
    if base.tokens.shape[-1] == tuned.shape[-1]:
        return inside
    return inside + _nats(base.rest, tuned.scatter(-1, base.tokens, float("-inf")).logsumexp(-1))


def _nats(base: Tensor, tuned: Tensor) -> Tensor:
    return (base.exp() * (base - tuned)).masked_fill(base == float("-inf"), 0.0)  # 0 log 0 is 0


def next_weight(weight: float, found: float, target: float) -> float:
    """The weight after a step whose divergence was `found`. Laws: it stays at the target, grows above, falls below."""
    error = min(max(found / target - 1, -LIMIT), LIMIT)
    return max(weight * (1 + RATE * error), FLOOR)


class KLAnchorSettings(Checked):
    """`data` are examples of the base's alignment: harmful prompts with its own refusals, and harmless ones with its
    answers; `examples` of them are looked at in each step. `weight` is that of their mean divergence in nats per answer
    token. With a `target` for it the weight begins there and is turned up and down until the target is met. `keep` is
    the number of the base's most likely tokens whose log-probabilities are kept.
    """

    data: str | None = None
    weight: float = Field(default=1.0, ge=0, le=1e6)
    target: float | None = Field(default=None, gt=0, le=1e3)
    examples: int = Field(default=4, gt=0, le=1_000_000)
    keep: int = Field(default=64, gt=0, le=1_000_000_000)

    @model_validator(mode="after")
    def _acts(self) -> KLAnchorSettings:
        if self.target is not None and not self.weight:
            raise NoEffectError(
                "defence.target", seen=f"{self.target:g} with weight 0", expected="a weight that can be turned up",
                remedy="set weight above 0, or leave target out",
            )  # fmt: skip
        return self


class KLAnchor(Defence[KLAnchorSettings]):
    """The anchor as `--method kl_anchor` has it."""

    name = "kl_anchor"
    title = "The base's own distribution on alignment answers as an anchor"
    options = KLAnchorSettings
    strength = "weight"
    works = ("li2018learning", "ziegler2019fine")
    departures = (
        "The anchor are the base's answers to alignment prompts; the papers take the task's own inputs, and samples.",
        "Of the base's distribution the most likely tokens are kept, all others as one: the divergence's lower bound.",
        "The weight that follows a target does not fall below a floor.",
    )

    def examples_beside(self, options: KLAnchorSettings) -> int:
        return options.examples

    def check(self, options: KLAnchorSettings, before: Before) -> None:
        read_alignment(options.data, before)

    def measure(self, options: KLAnchorSettings, base: Base) -> Measured:
        import torch

        examples = check_alignment(base, str(options.data))
        rows, _ = encoded(base.loaded.tokenizer, examples, base.max_length, f"{options.data}, example")
        found: list[Anchor] = []
        base.progress.start("the base on alignment answers", len(rows))
        with base.as_base() as loaded, torch.no_grad():
            for start in range(0, len(rows), _BATCH):
                batch = padded(rows[start : start + _BATCH], loaded.model.device)
                found.append(anchor(answer_log_probs(loaded.model, batch), options.keep))
                base.progress.advance(len(batch.labels))
        base.progress.done()
        kept = Anchor(*(torch.cat(parts).cpu().contiguous() for parts in zip(*found, strict=True)))
        return {**tensors_of_rows(rows), **kept._asdict()}

    def attach(self, options: KLAnchorSettings, measured: Measured, trainer: Any) -> Callable[[], Outcome]:
        import torch

        from alignkeep.train.loss_terms import Terms, add_to_loss, keep_in_checkpoints

        rows = rows_of(measured)
        lengths = list(map(answer_tokens, rows))
        anchors = list(zip(*(measured[name].split(lengths) for name in Anchor._fields), strict=True))
        turns = in_turns(len(rows), options.examples, trainer.args.seed)
        weight = Weight(options)

        def terms(model: Any, step: int) -> Terms:
            places = turns(step)
            batch = padded([rows[at] for at in places], trainer.accelerator.device)
            parts = zip(*(anchors[at] for at in places), strict=True)
            base = Anchor(*(torch.cat(some).to(batch.labels.device) for some in parts))
            with _evaluated(model):
                found = divergence(base, answer_log_probs(model, batch)).mean()
            weight.seen = found.detach()
            return Terms(weight.value * found, {"divergence": found, "weight": torch.full_like(found, weight.value)})

        remedy = "raise defence.weight, or set it to 0 for a tune without"
        add_to_loss(trainer, self.name, terms, remedy=remedy, after_backward=lambda _: weight.turn())
        if options.target is not None:
            keep_in_checkpoints(trainer, _FILE, weight, "leave defence.target out")
        return lambda: Outcome({"kl_anchor_weight": weight.value})


class Weight:
    """The anchor's weight: given, or turned until the divergence is that of the target."""

    def __init__(self, options: KLAnchorSettings) -> None:
        self._options = options
        self.seen: Tensor | None = None
        self.begin()

    def begin(self) -> None:
        self.value, self._history = self._options.weight, list[float]()

    def turn(self) -> None:
        """After a step's backward pass."""
        if self._options.target is not None and self.seen is not None:
            self._history.append(float(self.seen))
            self.value = next_weight(self.value, self._history[-1], self._options.target)

    def state(self) -> dict[str, Tensor]:
        import torch

        return {
            "weight": torch.tensor([self.value], dtype=torch.float64),
            "history": torch.tensor(self._history, dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Tensor], device: Any) -> None:
        self.value, self._history = float(state["weight"]), state["history"].tolist()

    def end(self) -> None:
        """Raises RecipeError for a target that was missed."""
        target, last = self._options.target, self._history[-max(len(self._history) // 4, 1) :]
        if target is None or not last:
            return
        mean = sum(last) / len(last)
        if mean > SLACK * target:
            raise RecipeError(
                "defence.target",
                seen=f"a mean divergence of {mean:.2g} nats over the last {len(last)} steps, with a weight of "
                f"{self.value:.2g} in the end",
                expected=f"about {target:g}",
                remedy="begin with a larger weight, lower learning_rate, or take a target that can be reached",
            )


def answer_log_probs(model: Any, batch: Batch) -> Float[Tensor, "n V"]:
    """Log-probabilities in float32 of every answer token of a batch, row by row."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.mask.long(), use_cache=False).logits
    return logits[:, :-1][batch.labels[:, 1:] != IGNORED].float().log_softmax(-1)


@contextmanager
def _evaluated(model: Any) -> Iterator[None]:
    """Without dropout, as the base was looked at."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


KL_ANCHOR = KLAnchor()
