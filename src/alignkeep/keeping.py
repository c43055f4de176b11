"""The whole life cycle as one wish: tune a model on data, as safe as it was and as good at the task as a plain tune.

    plain -> curated -> defended (-> both) -> merged -> injected

A plain tune is what all else is held against. Then each step is tried on what stands so far, on one half of suite and
task, and taken only where it lessens what is missing; where nothing is missing, no further step is tried. The other
half, which chose nothing, reports. Every step is a stage of its own; this is their order and the choice between them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from alignkeep.checkpoint.folders import CLAIM_NAME, claim_folder, release_folder
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.curate.config import CurateConfig
from alignkeep.curate.stage import CURATE, curate
from alignkeep.data import fingerprint_data
from alignkeep.errors import AlignkeepError, DataError, NoEffectError, RecipeError, plain
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.questions import prepare
from alignkeep.evaluate.stage import EVALUATE, evaluate
from alignkeep.evaluate.suites import CHOOSE, REPORT, load_suite
from alignkeep.formats import Columns
from alignkeep.gate.output import points
from alignkeep.gate.stage import GateResult, gate
from alignkeep.halves import (
    WRITTEN,
    check_kinds,
    of_half,
    rates_line,
    refuse_inputs,
    task_change,
    write_prompts,
    write_task,
    write_tuning,
)
from alignkeep.judging.judges import fingerprint_judges
from alignkeep.judging.metrics import (
    TASK_ACCURACY,
)
from alignkeep.judging.missing import missing, missing_words
from alignkeep.merge.select import gain_kept
from alignkeep.merge.stage import merge
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.policy.bounds import read_policy
from alignkeep.progress import Named, Progress
from alignkeep.repair import FixConfig, How, injected, merging
from alignkeep.report import stage as reporting
from alignkeep.settings import Checked
from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import TRAIN, train
from alignkeep.trainers.arguments import world_size
from alignkeep.types import Estimate, Scorecard

PLAIN, CURATED = "plain", "curated"
_LEAST_GAIN = 0.5  # chosen: a model without most of its task is no tune
_FILLED = ("model", "data", "columns", "weights", "load", "seed")  # of a tune: given by the run


class KeepConfig(Checked):
    """What is tuned on what, and what it must not lose.

    `data` are the examples, `task` a file of prompts with one right answer each: half of it, and of the suite, chooses,
    the other half reports. `safe` (clean examples of the task) and `harmful` (harmful requests, answered) are the
    anchors of a curation; without them none is tried. `alignment_data` are the base's refusals and its help, for
    `defence`; without them no defence is tried, and merges take the base's refusals of the choosing half.
    `train` holds any other setting of a tune. `within` is how much of the task may be lost against the plain tune, as a
    share (0.01 is a point). `columns` are those of `data`, `task_columns` those of `task`. `limit` keeps so many
    prompts of each kind in each half. `form` says what a merge or an injection writes: whole weights, or a LoRA.
    """

    also: ClassVar[Mapping[str, str]] = {"as": "form"}

    # More fields than our budget of 12: each is a word of the command line.
    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    task: str = Field(min_length=1)
    safe: str | None = None
    harmful: str | None = None
    alignment_data: str | None = None
    defence: str = "replay"
    train: dict[str, Any] = Field(default_factory=dict)
    within: float = Field(default=0.01, ge=0, le=1)
    suite: str = "driftcheck"
    columns: Columns = Field(default_factory=dict)
    task_columns: Columns = Field(default_factory=dict)
    judge: str = "keyword"
    attacks: str = "all"
    limit: int | None = Field(default=None, gt=0, le=1_000_000_000)
    form: Literal["model", "adapter"] = "model"
    load: LoadConfig = LoadConfig()
    generation: GenerationConfig = GenerationConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _fits(self) -> KeepConfig:
        if (self.safe is None) != (self.harmful is None):
            raise RecipeError(
                "keep.safe" if self.safe is None else "keep.harmful", seen="one anchor of a curation without the other",
                expected="both, or neither", remedy="give --safe and --harmful, or leave both out",
            )  # fmt: skip
        for key in _FILLED:
            if key in self.train:
                raise RecipeError(
                    f"keep.train.{key}", seen="a setting that the run fills in", expected="other settings of a tune",
                    remedy=f"give it as `{key}` of keep" if key != "weights" else "leave it out: curation gives them",
                )  # fmt: skip
        if self.train.get("method", "lora") not in ("lora", "full"):
            raise RecipeError(
                "keep.train.method", seen=repr(self.train["method"]), expected="lora or full, without a defence",
                remedy="give it as --defence, with --alignment-data",
            )  # fmt: skip
        self._refuse_what_repairs_cannot()
        self._refuse_idle_defence()
        if self.tune().method == "full" and self.form == "adapter":
            raise RecipeError(
                "keep.form", seen="adapter, with a full tune", expected="a tune that is a LoRA",
                remedy="leave one of the two out",
            )  # fmt: skip
        return self

    def _refuse_idle_defence(self) -> None:
        """Raises NoEffectError for a defence that is asked for and would not be tried, RecipeError for one that is none
        or would take another step's folder."""
        if self.alignment_data is None and ("defence" in self.model_fields_set or self.train.get("defence")):
            raise NoEffectError(
                "keep.defence", seen="a defence without alignment data", expected="examples that it holds on to",
                remedy="give --alignment-data (alignkeep answers collects them), or leave the defence out",
            )  # fmt: skip
        if self.alignment_data is not None:
            self.tune(defended=True)
        if self.name_of_defence in (PLAIN, CURATED):
            raise RecipeError(
                "keep.defence", seen=f"an object named {self.name_of_defence}", expected="a name of its own",
                remedy="give the object another name",
            )  # fmt: skip

    @property
    def name_of_defence(self) -> str:
        """By which its folder is called."""
        return self.defence.rpartition(":")[2]

    @property
    def not_tried(self) -> tuple[str, ...]:
        """The steps that are left out for want of data, a line each."""
        curation = () if self.safe is not None else ("not tried: curation, for want of --safe and --harmful",)
        defence = () if self.alignment_data is not None else ("not tried: a defence, for want of --alignment-data",)
        return (*curation, *defence)

    def _refuse_what_repairs_cannot(self) -> None:
        """What would end a merge or an injection, after the tunes. Raises RecipeError."""
        self.load.refuse_quantization("keep, whose merges and injections write weights")
        if self.generation.backend != "transformers":
            raise RecipeError(
                "keep.generation.backend", seen=self.generation.backend,
                expected="transformers: a sweep stores no model that another engine could load", remedy="drop it",
            )  # fmt: skip
        if self.load.revision is not None:
            raise RecipeError(
                "keep.load.revision", seen=self.load.revision, expected="the model itself: tunes of it lie here",
                remedy="download that revision (hf download ID --revision NAME --local-dir DIR) and give DIR",
            )  # fmt: skip

    def tune(self, *, weights: Path | None = None, defended: bool = False, share: float = 1.0) -> TrainConfig:
        """A tune on the data. Of a share of them it takes as many steps as on all."""
        given = dict(self.train)
        if defended:
            options = given.get("defence") or {}
            given["defence"] = {"name": self.defence, "data": self.alignment_data, **options}
        else:
            given.pop("defence", None)
        tune = TrainConfig.model_validate({
            **given, "model": self.model, "data": self.data, "columns": self.columns, "load": self.load,
            "weights": None if weights is None else str(weights), "seed": self.seed,
        })  # fmt: skip
        return tune if share == 1 else tune.model_copy(update={"epochs": tune.epochs / share})


@dataclass(frozen=True)
class KeepResult:
    """The model to ship, and plain tune and kept model on the half that chose nothing. `name` is made of the steps that
    were taken; `tried` says in a line each what was tried; `task_change` is their paired difference on the task."""

    folder: Path
    model: Path
    name: str
    plain: Scorecard
    kept: Scorecard
    task_change: Estimate
    tried: tuple[str, ...]
    verdict: GateResult
    page: Path

    def as_json(self) -> dict[str, object]:
        cards = {"plain": self.plain.as_json(), "kept": self.kept.as_json(), "task_change": self.task_change.as_json()}
        verdict = {"tried": list(self.tried), "verdict": self.verdict.as_json(), "page": self.page}
        return {"folder": self.folder, "model": self.model, "name": self.name, **cards, **verdict}


class Standing(NamedTuple):
    """What stands so far: the steps taken, its model, the tune within it, its rates on the choosing half."""

    name: str
    model: Path
    tune: Path
    card: Scorecard
    made_from: tuple[Path, ...]  # its tune, and each step on the way to it
    weights: Path | None = None


def keep(
    config: KeepConfig,
    *,
    out: str | Path,
    policy: str = "default",
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> KeepResult:
    """Tune into `out` and keep it safe: `out/NAME` holds the model, `out/report.html` the page, `out/model_card.md` the
    card. Interrupted and called again it goes on.

    Raises RecipeError, DataError and CheckpointError before anything is trained. Where no step helps, the plain tune is
    what is kept, and the verdict says what it lacks.
    """
    began = time.monotonic()
    if world_size() > 1:
        raise RecipeError(
            "keep", seen=f"{world_size()} processes", expected="one: it measures and merges between its tunes",
            remedy="run it without torchrun or accelerate launch; train alone takes several processes",
        )  # fmt: skip
    _check_policy(policy, config)
    inputs = _inputs(config)
    recorded = config.model_dump(mode="json")
    identity = identity_of("keep", recorded, inputs)
    data = (config.data, config.task, config.safe, config.harmful, config.alignment_data)
    refuse_inputs(Path(out), (config.model, *data))
    out = claim_folder(Path(out), stage="keep", identity=identity, overwrite=overwrite, writes=WRITTEN)
    try:
        if resume and (out / "record.json").exists():
            return _read(out, policy)
        run = _checked_run(config, out, How(overwrite=True, resume=resume, progress=progress))
        (out / "record.json").unlink(missing_ok=True)  # of what is done anew
        kept, tried = run.choose()
        run.report(kept)
        _finish(out, config, kept, tried, identity, inputs, began, policy)
        run.drop(kept)
        return _read(out, policy)
    finally:
        release_folder(out)


class _Run:
    """One run: its folder, its halves, and what it has made so far."""

    def __init__(self, config: KeepConfig, out: Path, how: How) -> None:
        self.config, self.out, self.how = config, out, how
        self.files = write_task(config.task, config.task_columns, out)
        self.asked = EvaluateConfig(
            model=config.model, suite=config.suite, task=config.task, judge=config.judge, attacks=config.attacks,
            load=config.load, generation=config.generation, limit=config.limit, seed=config.seed,
        )  # fmt: skip
        self.tuning = str(write_tuning(config.data, config.columns, out)) if config.columns else config.data
        self.made: set[Path] = set()
        self.weights: Path | None = None  # of a curation that was made, taken or not

    def check(self) -> None:
        """Raises what could be known to go wrong, before a tune."""
        prepare(of_half(self.asked, self.files, REPORT))
        check_kinds(self.asked.suite, prepare(of_half(self.asked, self.files, CHOOSE)).prompts)
        TRAIN.prepare(self.config.tune())
        if self.config.safe is not None:
            CURATE.prepare(self._curation())
        if self.config.alignment_data is not None:
            TRAIN.prepare(self.config.tune(defended=True))

    def choose(self) -> tuple[Standing, list[str]]:
        """The plain tune and the steps that pay; a line for each that was tried."""
        tune = self._train(PLAIN, self.config.tune())
        stands = self._stands(PLAIN, tune, tune, ())
        write_prompts(of_half(self.asked, self.files, CHOOSE), self.out, self.files, self.out / "choice" / PLAIN)
        self.plain = stands.card
        lines = [f"{rates_line(PLAIN, stands.card)}: {missing_words(self._missing(stands.card))}"]
        lines += self.config.not_tried
        for step in self._steps():
            lacks = self._missing(stands.card)
            if step == self.curated_and_defended and stands.weights is not None:
                continue  # what stands is of both already
            if not lacks:
                lines.append("nothing is missing on the half that chooses: no further step was tried")
                break
            try:
                found = step(stands)
            except (NoEffectError, DataError) as error:
                lines.append(f"{stands.name}+{step.__name__}: {plain(f'{error.where}: {error.seen}', 120)}")
                continue
            left = self._missing(found.card)
            pays = sum(left.values()) < sum(lacks.values()) and self._keeps_task(found.card)
            lines.append(
                f"{rates_line(found.name, found.card)}: {'taken' if pays else 'not taken'}, {missing_words(left)}"
            )
            stands = found if pays else stands
        if stands.name != PLAIN:
            change = task_change(self.out / "choice" / stands.name, self.out / "choice" / PLAIN)
            lines.append(f"task against the plain tune, on these {change.n} prompts: {points(change)}")
        return stands, lines

    def _keeps_task(self, card: Scorecard) -> bool:
        """Whether at least half of what the plain tune gained on the task is there: no safety makes up for less."""
        gain = gain_kept(card.metrics, card.base_metrics, self.plain.metrics)
        return gain is None or gain >= _LEAST_GAIN

    def _missing(self, card: Scorecard) -> dict[str, float]:
        return missing(card, self.plain, self.config.within)

    def _steps(self) -> Iterator[Callable[[Standing], Standing]]:
        """Those that the given data allow."""
        if self.config.safe is not None:
            yield self.curated
        if self.config.alignment_data is not None:
            yield self.defended
            if self.weights is not None:
                yield self.curated_and_defended
        yield self.merged
        yield self.injected

    def curated(self, stands: Standing) -> Standing:
        name = CURATED
        weights = self.out / name / "curate"
        chosen = curate(self._curation(), out=weights, **self._named(name))
        self.weights = weights
        config = self.config.tune(weights=weights, share=chosen.kept / chosen.n)
        tune = self._train(name, config)
        return self._stands(name, tune, tune, (), weights)

    def defended(self, stands: Standing) -> Standing:
        """The tune again, on the same rows, with a defence."""
        return self._defended(stands.weights)

    def curated_and_defended(self, stands: Standing) -> Standing:
        """Both at once, where curation alone did not pay: on harmless data that refuse nothing it may need the
        defence."""
        return self._defended(self.weights)

    def _defended(self, weights: Path | None) -> Standing:
        defence = self.config.name_of_defence
        name = defence if weights is None else f"{CURATED}+{defence}"
        chosen = None if weights is None else CURATE.result(weights)
        share = 1.0 if chosen is None else chosen.kept / chosen.n
        tune = self._train(name, self.config.tune(weights=weights, defended=True, share=share))
        return self._stands(name, tune, tune, (), weights)

    def merged(self, stands: Standing) -> Standing:
        name = f"{stands.name}+merged"
        settings = merging(self._repairing(stands), self._alignment())
        model = merge(settings, out=self.out / name / "merge", **self._named(name)).folder
        return self._stands(name, model, stands.tune, stands.made_from, stands.weights)

    def injected(self, stands: Standing) -> Standing:
        name = f"{stands.name}+injected"
        model = injected(self._repairing(stands), str(stands.model), self.files, self.out / name, self._named(name))
        return self._stands(name, model, stands.tune, stands.made_from, stands.weights)

    def report(self, kept: Standing) -> None:
        """Plain tune and kept model on the half that chose nothing."""
        final = of_half(self.asked, self.files, REPORT).model_copy(update={"base": self.config.model})
        first = self.out / PLAIN / "evaluate"
        plainly = final.model_copy(update={"model": str(self.out / PLAIN / "train")})
        evaluate(plainly, out=first, **self._named(PLAIN))
        if kept.name != PLAIN:
            again = final.model_copy(update={"model": str(kept.model), "base_answers": str(first)})
            evaluate(again, out=self.out / kept.name / "evaluate", **self._named(kept.name))

    def drop(self, kept: Standing) -> None:
        """Remove the weights of what was not taken; the plain tune, and what the kept model was made from, stay."""
        for model in self.made - set(kept.made_from):
            if model.parent.name != PLAIN:
                shutil.rmtree(model, ignore_errors=True)

    def _stands(
        self, name: str, model: Path, tune: Path, made_from: tuple[Path, ...], weights: Path | None = None
    ) -> Standing:
        self.made.add(model)
        return Standing(name, model, tune, self._measured(name, model), (*made_from, model), weights)

    def _named(self, name: str) -> How:
        return How(overwrite=True, resume=self.how["resume"], progress=Named(name, self.how["progress"]))

    def _train(self, name: str, config: TrainConfig) -> Path:
        return train(config, out=self.out / name / "train", **self._named(name)).folder

    def _measured(self, name: str, model: Path) -> Scorecard:
        before = {} if name == PLAIN else {"base_answers": str(self.out / "choice" / PLAIN)}
        asked = of_half(self.asked, self.files, CHOOSE)
        asked = asked.model_copy(update={"model": str(model), "base": self.config.model, **before})
        return evaluate(asked, out=self.out / "choice" / name, **self._named(name))

    def _curation(self) -> CurateConfig:
        given = self.config
        return CurateConfig(
            model=given.model, data=given.data, safe=given.safe, harmful=given.harmful, columns=given.columns,
            evaluation=(str(self.files["task"]), str(self.files["task_report"])), load=given.load, seed=given.seed,
        )  # fmt: skip

    def _alignment(self) -> dict[str, Path]:
        given = self.config.alignment_data
        return self.files if given is None else {**self.files, "alignment": Path(given)}

    def _repairing(self, stands: Standing) -> FixConfig:
        """What a repair of the tune would be; its merge keeps so much of the gain that the task is within the plain
        tune's."""
        given, task = self.config, TASK_ACCURACY.name
        before, now = stands.card.base_metrics[task].value, stands.card.metrics[task].value
        wanted = self.plain.metrics[task].value - given.within - before
        gain = min(1.0, max(0.5, wanted / (now - before))) if now > before else 0.5
        return FixConfig(
            model=str(stands.tune), base=given.model, task=str(self.files["task"]), suite=given.suite,
            judge=given.judge, tuning_data=self.tuning, gain=gain, limit=given.limit, form=given.form,
            load=given.load, generation=given.generation, seed=given.seed,
        )  # fmt: skip


def _checked_run(config: KeepConfig, out: Path, how: How) -> _Run:
    """A run that may begin. What was written before a mistake was found is taken away again, so that the corrected
    command finds the folder free."""
    is_new = not any(one.name != CLAIM_NAME for one in out.iterdir())
    try:
        run = _Run(config, out, how)
        run.check()
    except AlignkeepError:
        if is_new:
            shutil.rmtree(out / "data", ignore_errors=True)
        raise
    return run


def _check_policy(policy: str, config: KeepConfig) -> None:
    """Raises RecipeError for a policy that was set for another suite or judge."""
    rules = read_policy(policy)
    for key, wanted, seen in (("suite", rules.suite, config.suite), ("judge", rules.judge, config.judge)):
        if wanted not in (None, seen):
            raise RecipeError(
                f"policy.{key}", seen=f"{wanted}, which the policy {rules.name!r} was set for", expected=seen,
                remedy=f"give --{key} {wanted}, or another --policy",
            )  # fmt: skip


def _inputs(config: KeepConfig) -> dict[str, str]:
    data = {name: getattr(config, name) for name in ("data", "task", "safe", "harmful", "alignment_data")}
    files = {name: fingerprint_data(path) for name, path in data.items() if path is not None}
    files |= {"suite": load_suite(config.suite).fingerprint, "judge": fingerprint_judges(config.judge)}
    probe = config.tune().probe
    if probe is not None:
        files |= {f"probe.{name}": fingerprint_data(getattr(probe, name)) for name in ("harmful", "harmless")}
    return {"model": fingerprint_model(config.model), **files}


def _finish(
    out: Path, config: KeepConfig, kept: Standing, lines: list[str], identity: str, inputs: dict[str, str],
    began: float, policy: str,
) -> None:  # fmt: skip
    """Page and card of plain tune and kept model, and last the record."""
    folders = list(dict.fromkeys([out / PLAIN / "evaluate", kept.model, out / kept.name / "evaluate"]))
    reporting.report(folders, out=out, card=True, title=f"Tuned and kept safe: {kept.name}", policy=policy)
    result: dict[str, object] = {
        "name": kept.name, "model": kept.model.relative_to(out).as_posix(), "tried": lines,
        "scorecard": f"{kept.name}/evaluate", "page": reporting.PAGE_NAME,
    }  # fmt: skip
    Record(
        stage="keep", identity=identity, config=config.model_dump(mode="json"), inputs=inputs, seed=config.seed,
        seconds=time.monotonic() - began, result=result,
    ).write(out)  # fmt: skip


def _read(out: Path, policy: str) -> KeepResult:
    """What a finished folder holds."""
    told = Record.read(out).result
    name, tried = str(told["name"]), told["tried"]
    first, last = out / PLAIN / "evaluate", out / name / "evaluate"
    return KeepResult(
        folder=out, model=out / str(told["model"]), name=name, plain=EVALUATE.result(first), kept=EVALUATE.result(last),
        task_change=task_change(last, first), tried=tuple(map(str, tried)) if isinstance(tried, list) else (),
        verdict=gate(out, policy=policy), page=out / str(told["page"]),
    )  # fmt: skip
