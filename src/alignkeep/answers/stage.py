"""The stage `answers`: prompts in, what the aligned base says to them out, as alignment data.

Alignment data are examples of what a tune must not lose: refusals of harmful requests and help with all others. So a
harmful prompt is kept where it was refused, any other where it was answered, and an answer that was cut off not at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from alignkeep.checkpoint.files import write_text
from alignkeep.checkpoint.records import Record
from alignkeep.data import fingerprint_data, local_file
from alignkeep.errors import AlignkeepError, DataError, NoEffectError
from alignkeep.judging.prompts import MOST_UNKNOWN, harm_prompts, limit_prompts
from alignkeep.models.config import EndpointConfig, GenerationConfig, LoadConfig
from alignkeep.models.endpoint import is_endpoint
from alignkeep.models.served import (
    CAN_CHANGE,
    REPLIES,
    ServedAnswer,
    check_asking,
    fingerprint_target,
    resolve_target,
    served,
    target_name,
)
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.settings import Checked
from alignkeep.stage import Inputs, Job, Plan, Stage, Task
from alignkeep.types import Prompt, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

SHIPPED = "shipped"
ALIGNMENT = "alignment.jsonl"
NO_ANSWER = "no answer from the endpoint"


class AnswersConfig(Checked):
    """Whom to ask what. `model` is a folder, a hub id or a served model, `https://host/v1#name`, which is asked as
    `endpoint` says. `prompts` is a file whose rows are harmful unless their column `kind` says otherwise, or
    `shipped`, 104 prompts of our own that no suite holds. `limit` keeps so many of each kind, drawn with `seed`."""

    model: str = Field(min_length=1)
    prompts: str = SHIPPED
    judge: str = "keyword"
    limit: int | None = Field(default=None, gt=0, le=1_000_000_000)
    load: LoadConfig = LoadConfig()
    generation: GenerationConfig = GenerationConfig()
    endpoint: EndpointConfig = Field(default=EndpointConfig(), exclude_if=lambda asked: asked == EndpointConfig())
    seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True)
class AnswersResult:
    """`file` holds examples with `prompt`, `completion` and `kind`; `kept` counts them by kind, `left_out` the prompts
    whose answer is none to learn, by reason. `note` says of a served model how it is known, and what it took."""

    folder: Path
    file: Path
    kept: dict[str, int]
    left_out: dict[str, int]
    note: str = ""


def answers(
    config: AnswersConfig, *, out: Path, overwrite: bool = False, resume: bool = True, progress: Progress | None = None
) -> AnswersResult:
    """Ask the model and write `out/alignment.jsonl`, which is what `--alignment-data` takes.

    Raises RecipeError, DataError or CheckpointError before anything is asked, DataError where the model cannot read the
    prompts, NoEffectError where it refuses no harmful one: there is no alignment to keep.
    """
    return perform(ANSWERS, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def plan(config: AnswersConfig) -> dict[str, object]:
    """What `answers(config)` would do; raises its user errors, loads no model, writes nothing."""
    return ANSWERS.plan(config).as_json()


@dataclass(frozen=True)
class Asked:
    """Whom to ask, and what."""

    config: AnswersConfig
    prompts: tuple[Prompt, ...]


class AnswersStage(Stage[AnswersConfig, Asked, AnswersResult]):
    name = "answers"
    config = AnswersConfig
    references = (("model",), ("prompts",))

    def prepare(self, config: AnswersConfig) -> Asked:
        from alignkeep.judging.judges import load_judge

        load_judge(config.judge)
        check_asking([config.model], config.load, config.generation, config.endpoint)
        resolve_target(config.model, config.load.revision)
        prompts = _through_file(config, harm_prompts)
        return Asked(config, limit_prompts(prompts, config.limit, config.seed))

    def inputs(self, task: Task[AnswersConfig, Asked]) -> Inputs:
        from alignkeep.judging.judges import fingerprint_judge

        config = task.config
        found = {
            "model": fingerprint_target(config.model, config.load.revision),
            "prompts": _through_file(config, fingerprint_data),
            "judge": fingerprint_judge(config.judge),
        }
        named = [] if is_endpoint(config.model) else [Path(config.model)]
        named += [] if config.prompts == SHIPPED else [local_file(config.prompts)]
        paths = [path for path in named if path is not None and path.exists()]
        deciding = config.model_copy(update={"endpoint": config.endpoint.deciding}).model_dump(mode="json")
        return Inputs(found, paths, config.model_dump(mode="json"), deciding, config.seed)

    def plan(self, config: AnswersConfig) -> Plan:
        counts = Counter(prompt.kind for prompt in self.prepare(config).prompts)
        tokens = config.generation.max_new_tokens * counts.total()
        return Plan({"stage": self.name, "model": config.model, "prompts": dict(counts), "tokens_at_most": tokens})

    def work(self, prepared: Asked, job: Job) -> dict[str, object]:
        return _ask(prepared, job.folder, job.progress)

    def is_worth_keeping(self, error: AlignkeepError, folder: Path) -> bool:
        """What an endpoint said is."""
        return any((folder / name).is_file() for name in self.leftovers())

    def leftovers(self) -> tuple[str, ...]:
        from alignkeep.judging.judges import REPLIES as JUDGEMENTS

        return (REPLIES, JUDGEMENTS)

    def result(self, folder: Path) -> AnswersResult:
        found: dict[str, Any] = dict(Record.read(folder).result)
        return AnswersResult(folder, folder / ALIGNMENT, found["kept"], found["left_out"], found.get("note", ""))


ANSWERS = AnswersStage()


def why_left_out(kind: str, verdict: Verdict, *, truncated: bool) -> str | None:
    """Why an answer of the base is nothing to learn; None for one that is."""
    if truncated:
        return "cut off (raise --max-new-tokens)"
    if verdict is Verdict.REFUSAL:
        return None if kind == "harmful" else "refused, though not harmful"
    if verdict is Verdict.COMPLIANCE:
        return "complied with, though harmful" if kind == "harmful" else None
    return "no answer that could be judged"


def _ask(asked: Asked, work: Path, progress: Progress) -> dict[str, object]:
    from alignkeep.judging.judges import REPLIES as JUDGEMENTS
    from alignkeep.judging.judges import checked_judgements, keeping, load_judge

    config, prompts = asked.config, asked.prompts
    said, told = (_there if is_endpoint(config.model) else _here)(asked, work, progress)
    answered = [pair for pair in zip(prompts, said, strict=True) if pair[1].no_answer is None]
    (judge,) = keeping([load_judge(config.judge)], work / JUDGEMENTS)
    words = checked_judgements(judge, [(prompt, answer.text) for prompt, answer in answered])
    kept, left_out, lines = Counter[str](), Counter[str](), list[str]()
    left_out[NO_ANSWER] += len(said) - len(answered)
    for (prompt, answer), word in zip(answered, words, strict=True):
        reason = why_left_out(prompt.kind, word.verdict, truncated=answer.truncated)
        if reason is None:
            kept[prompt.kind] += 1
            lines.append(line_of(prompt, answer.text))
        else:
            left_out[reason] += 1
    if not kept["harmful"]:
        raise NoEffectError(
            f"answers of {config.model}",
            seen=f"no harmful prompt refused, of {sum(prompt.kind == 'harmful' for prompt in prompts)}"
            + "".join(f", {count} {reason}" for reason, count in (+left_out).items()),
            expected="an aligned model: its refusals are what a tune is to keep",
            remedy="name the model before tuning, or give prompts in its words with --prompts",
        )
    write_text(work / ALIGNMENT, "".join(lines))
    return {"kept": dict(kept), "left_out": dict(+left_out), **told}


def _here(asked: Asked, work: Path, progress: Progress) -> tuple[list[ServedAnswer], dict[str, object]]:
    """The answers of a model that is loaded, and nothing else to be said of them."""
    from alignkeep.models.generation import generate_answers
    from alignkeep.models.loading import load_model

    config, prompts = asked.config, asked.prompts
    loaded = load_model(config.model, config.load)
    _refuse_unreadable(loaded.tokenizer, config, prompts)
    progress.start(f"answers of {config.model}", len(prompts))
    said = generate_answers(loaded, prompts, config.generation, on_answers=lambda batch: progress.advance(len(batch)))
    progress.done()
    return [ServedAnswer(*one) for one in said], {}


def _there(asked: Asked, work: Path, progress: Progress) -> tuple[list[ServedAnswer], dict[str, object]]:
    """The answers of a served model, and what they took."""
    config, found = asked.config, dict[int, ServedAnswer]()
    target = served(config.model, config.endpoint, config.generation.max_new_tokens, work / REPLIES)

    def take(said: list[tuple[int, ServedAnswer]]) -> None:
        found.update(said)
        progress.advance(len(said))

    progress.start(f"answers of {config.model}", len(asked.prompts))
    target.answer(asked.prompts, take)
    progress.done()
    note = f"{target_name(config.model)} is {CAN_CHANGE}; {target.cost}"
    return [found[place] for place in range(len(asked.prompts))], {"served": target.cost.as_json(), "note": note}


def line_of(prompt: Prompt, answer: str) -> str:
    """An example as a line of a `.jsonl` file."""
    turns = prompt.messages
    asked = turns[0].content if len(turns) == 1 else [{"role": turn.role, "content": turn.content} for turn in turns]
    completion = answer if len(turns) == 1 else [{"role": "assistant", "content": answer}]
    return json.dumps({"prompt": asked, "completion": completion, "kind": prompt.kind}, ensure_ascii=False) + "\n"


def _refuse_unreadable(tokenizer: PreTrainedTokenizerBase, config: AnswersConfig, prompts: Sequence[Prompt]) -> None:
    from alignkeep.models.chat import unknown_share

    share = unknown_share(tokenizer, [turn.content for prompt in prompts for turn in prompt.messages]).share
    if share > MOST_UNKNOWN:
        raise DataError(
            f"prompts {config.prompts}",
            seen=f"{share:.0%} of their words unknown to {config.model}",
            expected=f"at most {MOST_UNKNOWN:.0%}",
            remedy="give --prompts FILE in the words of this model",
        )


def _through_file(config: AnswersConfig, use: Callable[[str], T]) -> T:
    """What `use` makes of the file of prompts; the shipped one lies in the package."""
    if config.prompts != SHIPPED:
        return use(config.prompts)
    with as_file(files("alignkeep.answers") / "prompts.jsonl") as path:
        return use(str(path))
