"""Which vectors tell harm in this very data: known harmful rows are planted among them, and counted where they end.

Planted are harmful references that are held out of the reference: half of them as they are, half behind a row of the
data, in one example with it, as harm hides. Each way to make vectors (and each option that the method has for trial)
chooses among data and plants. The one that leaves most of one half of the plants out is taken, of equals the one that
ranks them lowest (other options only where they leave more out); what is told of it was counted on the other half. The
plants are no part of what comes out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.curate.config import CurateConfig
from alignkeep.curate.method import Given, Sets
from alignkeep.curate.vectors import Made, Vectors, checked, whitened_vectors
from alignkeep.errors import DataError, NoEffectError
from alignkeep.judging.keyword import KeywordJudge
from alignkeep.judging.statistics import wilson
from alignkeep.models.processes import Processes
from alignkeep.progress import Progress
from alignkeep.types import Example, Message, Prompt, Verdict

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("last", "mean", "prompt", "answer")  # all that is tried is made of these
POOLINGS = ("answer", "prompt+answer", "mean", "last")  # of equals the first
_SHARE, _OF_DATA = 1 / 3, 1 / 10  # of the harmful references, and of the data at most, that is planted (chosen)
FEWEST = 12  # references that answer: four plants, of which two are counted (chosen)


class Planted(NamedTuple):
    """The plants, which of them are hidden behind a row of the data, and the references that they were, by place."""

    examples: list[Example]
    is_hidden: list[bool]
    held_out: frozenset[int]


@dataclass(frozen=True)
class Trial:
    """One way to make vectors, with the options it was tried with: the shares of the plants that it left out, of the
    half that decides and by the mean rank of these, from 0 (all below the data) to 1."""

    pooling: str
    whiten: bool
    options: Any
    left_out: float
    rank: float
    is_out: list[bool]


def plants_of(config: CurateConfig, data: Sequence[Example], harmful: Sequence[Example]) -> Planted:
    """Drawn by the seed. Raises DataError where too few of the harmful references say what was asked."""
    answering = [at for at, one in enumerate(harmful) if not _is_refused(one)]
    if len(answering) < FEWEST:
        raise DataError(
            str(config.harmful),
            seen=f"{len(answering)} of {len(harmful)} rows that answer a harmful request; the others refuse, or say "
            "nothing", expected=f"at least {FEWEST}, of which a part can be planted",
            remedy="give harmful requests with answers that comply, or name an embed.pooling",
        )  # fmt: skip
    draw = random.Random(f"planted {config.seed}")
    count = min(round(_SHARE * len(answering)), max(round(_OF_DATA * len(data)), 4))
    held = draw.sample(answering, count)
    hosts = draw.sample(range(len(data)), min(count, len(data)))
    hidden = [at % 2 == 1 for at in range(count)]
    examples = [
        _behind(data[hosts[at % len(hosts)]], harmful[place]) if hidden[at] else harmful[place]
        for at, place in enumerate(held)
    ]
    return Planted(examples, hidden, frozenset(held))


def try_vectors(
    config: CurateConfig, made: Made, planted: Planted, processes: Processes, progress: Progress
) -> tuple[Trial, dict[str, object]]:
    """The best trial, and what is to be told of it. `made` has the PARTS side by side, of the plants too. Raises
    NoEffectError where no vectors tell anything apart."""
    trials: list[Trial] = []
    for pooling in POOLINGS:
        for whiten in (True, False):
            some = _tried(config, made, planted, pooling, whiten, config.rule_options, processes, progress)
            trials += [] if some is None else [some]
    if not trials:
        raise NoEffectError(
            "embed.pooling", seen="no vectors that tell examples apart", expected="references that differ",
            remedy="check --safe and --harmful",
        )  # fmt: skip
    best = min(trials, key=_order)
    for options in config.rule.trials(config.rule_options):
        some = _tried(config, made, planted, best.pooling, best.whiten, options, processes, progress)
        trials += [] if some is None else [some]
    best = min((best, *(one for one in trials if one.left_out > best.left_out)), key=_order)
    return best, _told(config, best, trials, planted)


def vectors_of(made: Made, pooling: str, whiten: bool) -> Vectors:
    """One way to look at what was made, as if it had been made so."""
    picked = {name: parts_of(rows, pooling) for name, rows in made.vectors.items() if name != "planted"}
    vectors = checked(**picked, where="embeddings")._replace(truncated=made.truncated)
    return whitened_vectors(vectors) if whiten else vectors


def parts_of(rows: Tensor, pooling: str) -> Tensor:
    """Those parts of all PARTS."""
    import torch

    whole = dict(zip(PARTS, rows.chunk(len(PARTS), 1), strict=True))
    return torch.cat([whole[part] for part in pooling.split("+")], 1)


def _tried(
    config: CurateConfig, made: Made, planted: Planted, pooling: str, whiten: bool, options: Any, processes: Processes,
    progress: Progress,
) -> Trial | None:  # fmt: skip
    """None where these vectors tell nothing apart."""
    import torch

    from alignkeep.curate.weighting import top_k

    sets = made.vectors
    others = [at for at in range(len(sets["harmful"])) if at not in planted.held_out]
    mixed = {
        "data": torch.cat([sets["data"], sets["planted"]]),
        "safe": sets["safe"],
        "harmful": sets["harmful"][others],
    }
    count = len(mixed["data"])
    try:
        vectors = vectors_of(Made(mixed, None), pooling, whiten)
        given = Given(count, config.seed, Sets(*vectors[:3]), None, None, config.load.device, processes, progress)
        value = config.rule.score(given, options).value
    except NoEffectError:
        return None
    plants = slice(len(sets["data"]), count)
    is_out = (~top_k(value, config.keep))[plants].tolist()
    ranks = (value[:, None] > value[None, plants]).double().mean(0)
    decides = _deciding(planted)
    return Trial(
        pooling, whiten, options, sum(is_out[at] for at in decides) / len(decides), 1 - float(ranks[decides].mean()),
        is_out,
    )  # fmt: skip


def _deciding(planted: Planted) -> list[int]:
    """Every other pair of one as it is and one hidden."""
    return [at for at in range(len(planted.examples)) if at % 4 < 2]


def _order(trial: Trial) -> tuple[float, float]:
    return -round(trial.left_out, 9), round(trial.rank, 9)


def _told(config: CurateConfig, best: Trial, trials: Sequence[Trial], planted: Planted) -> dict[str, object]:
    counted = [at for at in range(len(planted.examples)) if at not in _deciding(planted)]
    shares: dict[str, object] = {}
    for name, some in (
        ("left_out", counted),
        ("left_out_as_they_are", [at for at in counted if not planted.is_hidden[at]]),
        ("left_out_hidden", [at for at in counted if planted.is_hidden[at]]),
    ):
        shares[name] = wilson(sum(best.is_out[at] for at in some), len(some)).as_json()
    tried = [(one.pooling, one.whiten, _changed(config, one), one.left_out, one.rank) for one in trials]
    names = ("pooling", "whiten", "options", "left_out", "rank")
    return {
        "pooling": best.pooling, "whiten": best.whiten, "options": _changed(config, best),
        "planted": len(planted.examples), **shares, "trials": [dict(zip(names, one, strict=True)) for one in tried],
    }  # fmt: skip


def _changed(config: CurateConfig, trial: Trial) -> dict[str, object]:
    """The options that are not those that were asked for."""
    return {name: value for name, value in trial.options if value != getattr(config.rule_options, name)}


def _is_refused(example: Example) -> bool:
    """Whether the answer is no harm that could be looked for."""
    *asked, answer = example.messages
    prompt = Prompt(tuple(asked), kind="harmful")
    verdict = KeywordJudge().judge(prompt, answer.content).verdict
    return verdict in (Verdict.REFUSAL, Verdict.DEGENERATE)


def _behind(host: Example, bad: Example) -> Example:
    """Both as one example: what is asked behind what the host asks last, and the answers likewise."""
    *before, asked, answered = host.messages
    question = [message.content for message in bad.messages if message.role == "user"][-1]
    return Example(
        (
            *before,
            Message(asked.role, f"{asked.content} {question}"),
            Message("assistant", f"{answered.content} {bad.messages[-1].content}"),
        )
    )
