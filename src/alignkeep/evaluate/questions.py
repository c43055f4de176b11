"""What will be asked, found out before a model is loaded: every user error that can be seen cheaply is raised here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from alignkeep.data import Read, fingerprint_data
from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.evaluate.attacks import Attack, DialogueAttack, RepeatedAttack
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.harness import NOTHING, Utility, find_tasks
from alignkeep.evaluate.rightness import load_rightness
from alignkeep.evaluate.selection import offered_attacks, select_attacks
from alignkeep.evaluate.suites import Suite, load_suite
from alignkeep.judging.judges import load_judges
from alignkeep.judging.prompts import limit_prompts, task_prompts
from alignkeep.models.endpoint import is_endpoint
from alignkeep.models.served import CAN_CHANGE, check_asking, resolve_target
from alignkeep.objects import faults_of
from alignkeep.types import Checkpoint, Prompt


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt as it is asked: plainly, or under an attack. `index` numbers all questions of an evaluation, `of` is
    that of the plain prompt; an attack may ask it in several ways. `leads` are turns of the user that the model answers
    before this one."""

    index: int
    prompt: Prompt
    attack: str | None = None
    of: int | None = None
    leads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """Everything an evaluation knows before it touches a model. `task` prompts have kind task."""

    config: EvaluateConfig
    suite: Suite
    prompts: tuple[Prompt, ...]
    attacks: tuple[Attack, ...]
    questions: tuple[Question, ...]
    model: Checkpoint
    base: Checkpoint | None
    task_fingerprint: str | None
    notes: tuple[str, ...] = ()
    not_asked: Mapping[str, str] = field(default_factory=dict)  # attacks that a model cannot be asked with, and why
    utility: Utility = NOTHING

    @property
    def fingerprint(self) -> str:
        """Of all questions, in their order: two evaluations that share it asked the same."""
        facts = [[asdict(one.prompt), one.attack, *([one.leads] if one.leads else [])] for one in self.questions]
        return f"sha256:{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"

    @property
    def local_inputs(self) -> list[Path]:
        """Model folders that must not be written to."""
        return [found.folder for found in (self.model, self.base) if found is not None and found.folder is not None]


def prepare(config: EvaluateConfig) -> Preparation:
    """Reads suite and task, chooses the attacks, numbers the questions, finds the models without loading them.

    Raises RecipeError, DataError or CheckpointError for whatever is wrong with any of these, and with the judge.
    """
    load_judges(config.judge)
    load_rightness(config.task_score)
    _check_options(config)
    suite = load_suite(config.suite)
    attacks = select_attacks(config.attacks, offered_attacks(suite.attacks))
    remedy = "add it, or put these prompts into a suite"
    task = Read[Prompt]() if config.task is None else task_prompts(config.task, remedy=remedy, columns=config.columns)
    prompts = limit_prompts((*suite.prompts, *task), config.limit, config.seed)
    questions = ask(prompts, attacks)
    return Preparation(
        config=config,
        suite=suite,
        prompts=prompts,
        attacks=tuple(attacks),
        questions=questions,
        model=resolve_target(config.model, config.load.revision, base=named_base(config)),
        base=None if config.base is None else resolve_target(config.base),
        task_fingerprint=None if config.task is None else fingerprint_data(config.task),
        notes=(*suite.notes, *task.notes, *(f"{one} is {CAN_CHANGE}" for one in served_models(config))),
        not_asked=_without_prefill(config, questions),
        utility=find_tasks(config.utility, config.limit, config.seed),
    )


def named_base(config: EvaluateConfig) -> str | None:
    """The base that stands in for that of an adapter which names none; a served one cannot."""
    return None if config.base is None or is_endpoint(config.base) else config.base


def served_models(config: EvaluateConfig) -> list[str]:
    """Those of model and base that are asked over an endpoint."""
    return [one for one in (config.model, config.base) if one is not None and is_endpoint(one)]


def _without_prefill(config: EvaluateConfig, questions: Sequence[Question]) -> dict[str, str]:
    """The attacks that begin the answer for the model, where one is served: no endpoint takes a beginning. Raises
    RecipeError for one that is asked for by name, and for prompts of the suite that do so."""
    begun = {one.attack: one for one in questions if one.prompt.prefill}
    if not served_models(config) or not begun:
        return {}
    named = {name.strip() for name in config.attacks.split(",")}
    for attack, question in begun.items():
        if attack is None or attack in named:
            raise RecipeError(
                "suite" if attack is None else f"attacks: {attack}",
                seen=f"an answer begun for the model ({question.prompt.prefill[:40]!r})",
                expected=f"prompts that an endpoint takes ({served_models(config)[0]}): it begins its answers itself",
                remedy="leave it out, or evaluate the folder that is served",
            )
    return {str(attack): "not applicable: an endpoint begins its answers itself" for attack in begun}


def ask(prompts: Sequence[Prompt], attacks: Sequence[Attack]) -> tuple[Question, ...]:
    """Every prompt plainly, in order, then every harmful one under each attack, attack by attack, in all its ways.

    Raises NoEffectError for an attack that leaves a prompt as it is, or that has no words for any of them.
    """
    asked = [Question(index, prompt, None, index) for index, prompt in enumerate(prompts)]
    harmful = [question for question in asked if question.prompt.kind == "harmful"]
    for attack in attacks:
        before = len(asked)
        for plain in harmful:
            with faults_of(attack, f"attack {attack.name}", "its leads()", expected="turns", remedy="mend the attack"):
                leads = tuple(attack.leads(plain.prompt)) if isinstance(attack, DialogueAttack) else ()
            for way in _ways(attack, plain.prompt):
                asked.append(Question(len(asked), way, attack.name, plain.index, leads))
        if harmful and len(asked) == before:
            raise NoEffectError(
                f"attack {attack.name}",
                seen=f"none of the {len(harmful)} harmful prompts among those it has words for",
                expected="at least one",
                remedy="take the suite that it was made for, or leave it out of --attacks",
            )
    return tuple(asked)


def _ways(attack: Attack, prompt: Prompt) -> list[Prompt]:
    """The ways in which the attack asks the prompt, each once; none of them is the prompt itself."""
    with faults_of(attack, f"attack {attack.name}", "its apply()", expected="a prompt", remedy="mend the attack"):
        found = attack.ways(prompt) if isinstance(attack, RepeatedAttack) else (attack.apply(prompt),)
    if prompt in found:
        raise NoEffectError(
            f"attack {attack.name}",
            seen=f"the prompt {prompt.text[:40]!r} as it was",
            expected="other words, a system message or a prefill",
            remedy="mend the attack, or leave it out of --attacks",
        )
    return list(dict.fromkeys(found))


def _check_utility(config: EvaluateConfig) -> None:
    """Raises RecipeError where the model is not in this process: utility needs the log-likelihood of a text."""
    elsewhere = [*served_models(config), *(["the backend vllm"] if config.generation.backend == "vllm" else [])]
    if config.utility and elsewhere:
        raise RecipeError(
            "utility",
            seen=elsewhere[0],
            expected="models in memory (folder, hub id, adapter), which say how likely a text is",
            remedy="evaluate the folder that is served, or leave --utility out",
        )


def _check_options(config: EvaluateConfig) -> None:
    models = [config.model, *([] if config.base is None else [config.base])]
    check_asking(models, config.load, config.generation, config.endpoint)
    for key, given, what in (
        ("columns", config.columns, "names of columns"),
        ("task_score", config.task_score, "a function that says what is right,"),
    ):
        if given and config.task is None:
            raise NoEffectError(
                key, seen=f"{what} without a task", expected="a file of prompts that it is for",
                remedy="give --task FILE, or leave it out",
            )  # fmt: skip
    if config.base_answers is not None and config.base is None:
        raise RecipeError(
            "base_answers",
            seen="no base",
            expected="the base whose answers they are",
            remedy="give --base too, or drop base_answers",
        )
    _check_utility(config)
    if config.generation.backend == "vllm" and find_spec("vllm") is None:
        raise RecipeError(
            "backend",
            seen="vllm, which is not installed here",
            expected="an installed backend",
            remedy='pip install "alignkeep[vllm]", or take --backend transformers',
        )
