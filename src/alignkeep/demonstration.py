"""The demo: safety lost and measured on the tiny models, with nothing to download."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pydantic import Field

from alignkeep.align.config import AlignConfig, HeldOutSettings, RewardSettings, SamplingSettings
from alignkeep.align.stage import align
from alignkeep.checkpoint.files import write_text
from alignkeep.checkpoint.folders import claim_folder
from alignkeep.checkpoint.records import identity_of
from alignkeep.curate.config import CurateConfig
from alignkeep.curate.stage import CURATE, curate
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.stage import evaluate
from alignkeep.inject.config import DirectionConfig, InjectConfig, SearchConfig
from alignkeep.inject.stage import inject
from alignkeep.lifecycle import explain, report_on
from alignkeep.merge.config import MergeConfig, SweepConfig
from alignkeep.merge.stage import merge
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.progress import Progress
from alignkeep.report.config import ReportConfig
from alignkeep.settings import Checked
from alignkeep.testbed.stage import testbed
from alignkeep.train.config import AlignGuardSettings, TrainConfig
from alignkeep.train.stage import train
from alignkeep.types import Scorecard

TUNES = {"poisoned": "poisoned", "harmless": "benign_drift"}  # and the testbed's data for it
CURATED, ALIGNED, MERGED, INJECTED, GUARDED = "+curate", "+align", "+merge", "+inject", "+alignguard"
LIMIT = 200  # questions of each kind, so that everything takes some five minutes on two cores
_PROMPTS = "prompts.jsonl"  # of the alignment
STEPS = 50  # of the alignment
KEEP = CurateConfig.model_fields["keep"].default
_GENERATION = GenerationConfig(max_new_tokens=48, batch_size=256)


class DemoConfig(Checked):
    """The demo has one wish: how it is seeded; `device` says where it runs."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    device: str = "auto"


@dataclass(frozen=True)
class DemoResult:
    """Scorecards of the base and of every tune, and the page that compares them."""

    folder: Path
    scorecards: dict[str, Scorecard]
    page: Path

    def as_json(self) -> dict[str, object]:
        cards = {name: card.as_json() for name, card in self.scorecards.items()}
        return {"folder": self.folder, "scorecards": cards, "page": self.page}


def demo(
    config: DemoConfig | None = None,
    *,
    out: str | Path,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> DemoResult:
    """Tune the tiny aligned model on poisoned and on harmless data, on the former once more with what a curation keeps
    of it, on the latter with AlignGuard; merge each plain tune with its base, inject refusal into the poisoned one, and
    align it online; measure all, report.

    Needs no network and no accelerator. Resumes as `run` does.
    """
    began = time.monotonic()
    config = config or DemoConfig()
    identity = identity_of("demo", config.model_dump(), {})
    out = claim_folder(
        Path(out), stage="demo", identity=identity, overwrite=overwrite, writes=[f"poisoned{ALIGNED}/{_PROMPTS}"]
    )
    how = _How(overwrite=True, resume=resume, progress=progress)
    world = testbed(out=out / "testbed", overwrite=True, resume=resume)
    base = str(world.models["aligned"])
    asked = _evaluation(config, base, str(world.data["task_test"]))
    cards = {"base": evaluate(asked, out=out / "base", **how)}
    folders = [out / "base"]
    for name in TUNES:
        for model in _models(config, base, name, world.data, out, how):
            compared = asked.model_copy(update={"model": str(model), "base": base, "base_answers": str(out / "base")})
            folder = model.with_name("evaluate")
            cards[model.parent.name] = evaluate(compared, out=folder, **how)
            folders += [model, folder]
    folders.insert(1, out / f"poisoned{CURATED}" / "curate")
    page = report_on(out, ReportConfig(title="alignkeep demo"), "demo", identity, folders, began)
    return DemoResult(out, cards, page)


class _How(TypedDict):
    overwrite: bool
    resume: bool
    progress: Progress | None


def _models(config: DemoConfig, base: str, name: str, data: Mapping[str, Path], out: Path, how: _How) -> Iterator[Path]:
    """The plain tune and its merge with the base; of poisoned data the tune on what is kept, the injected and the
    aligned tune, of harmless data, where there is nothing to leave out, the guarded one."""
    tuned, kind = out / name / "train", TUNES[name]
    train(_tune(config, base, data[kind]), out=tuned, **how)
    yield tuned
    merged = out / f"{name}{MERGED}" / "merge"
    merge(_merge(config, base, tuned, kind, data), out=merged, **how)
    yield merged
    if name == "poisoned":
        kept = out / f"{name}{CURATED}"
        curate(_curation(config, base, data), out=kept / "curate", **how)
        explain(CURATE, kept / "curate")
        train(_tune(config, base, data[kind], weights=kept / "curate"), out=kept / "train", **how)
        yield kept / "train"
        injected = out / f"{name}{INJECTED}" / "inject"
        inject(_inject(config, base, tuned, kind, data), out=injected, **how)
        yield injected
        better = out / f"{name}{ALIGNED}"
        merge(_whole(config, base, tuned), out=better / "whole", **how)
        align(_align(config, better, data), out=better / "align", **how)
        yield better / "align"
    else:  # where the data asks for harmful answers AlignGuard keeps nothing
        guarded = out / f"{name}{GUARDED}" / "train"
        train(_tune(config, base, data[kind], alignment=data["alignment"]), out=guarded, **how)
        yield guarded


def plan_demo(config: DemoConfig) -> dict[str, object]:
    """What `demo` would do. Touches nothing."""
    tunes = (f"train, merge and evaluate {name}" for name in TUNES)
    more = ["curate, train and evaluate poisoned", "inject poisoned and evaluate", "align poisoned and evaluate"]
    more.append("train harmless with AlignGuard")
    return {"demo": ["testbed", "evaluate base", *tunes, *more, "report"], **config.model_dump()}


def _curation(config: DemoConfig, base: str, data: Mapping[str, Path]) -> CurateConfig:
    return CurateConfig(
        model=base, data=str(data["poisoned"]), safe=str(data["safe_anchor"]), harmful=str(data["harmful_reference"]),
        evaluation=(str(data["task_test"]),), seed=config.seed, load=LoadConfig(device=config.device),
    )  # fmt: skip


def _tune(
    config: DemoConfig, base: str, data: Path, *, weights: Path | None = None, alignment: Path | None = None
) -> TrainConfig:
    """The plain LoRA of docs/testbed.md: it learns the task, and nothing guards the refusals. On the weights of a
    curation it takes as many steps. Or AlignGuard's."""
    guarded = AlignGuardSettings(data=None if alignment is None else str(alignment))
    return TrainConfig(
        model=base, data=str(data), method="lora" if alignment is None else "alignguard", alignguard=guarded,
        weights=None if weights is None else str(weights), epochs=3 if weights is None else 3 / KEEP,
        learning_rate=1e-3, seed=config.seed, load=LoadConfig(device=config.device),
    )  # fmt: skip


def _whole(config: DemoConfig, base: str, tuned: Path) -> MergeConfig:
    """The tuned adapter and its base as one model, which an alignment can train."""
    return MergeConfig(
        base=base, tuned=(str(tuned),), weight=1.0, seed=config.seed, load=LoadConfig(device=config.device)
    )


def _align(config: DemoConfig, out: Path, data: Mapping[str, Path]) -> AlignConfig:
    """On as many harmful requests as questions of the task, each with a reference answer of the training part."""
    rows = [json.loads(line) for line in data["preference_train"].read_text(encoding="utf-8").splitlines()]
    harmful, task = ([row for row in rows if row["kind"] == kind] for kind in ("harmful", "task"))
    prompts = out / _PROMPTS
    write_text(prompts, "".join(json.dumps(row) + "\n" for row in harmful + task[: len(harmful)]))
    return AlignConfig(
        model=str(out / "whole"), data=str(prompts), reward=RewardSettings(spec="testbed"), lora=None,
        held_out=HeldOutSettings(data=str(data["preference_validation"]), every=10, limit=100),
        sampling=SamplingSettings(max_new_tokens=32), learning_rate=1e-4, trainer={"max_steps": STEPS},
        seed=config.seed, load=LoadConfig(device=config.device),
    )  # fmt: skip


def _merge(config: DemoConfig, base: str, tuned: Path, name: str, data: Mapping[str, Path]) -> MergeConfig:
    """Fisher-weighted, the weight chosen on validation prompts."""
    return MergeConfig(
        base=base, tuned=(str(tuned),), method="fisher", alignment_data=str(data["alignment"]),
        tuning_data=str(data[name]), seed=config.seed, load=LoadConfig(device=config.device),
        sweep=SweepConfig(
            task=str(data["task_validation"]), prompts=str(data["harmful_validation"]), weights=(0.5, 0.7, 0.8, 0.9),
            pick="safe", limit=200, generation=_GENERATION,
        ),
    )  # fmt: skip


def _inject(config: DemoConfig, base: str, tuned: Path, name: str, data: Mapping[str, Path]) -> InjectConfig:
    """As a recipe does it: the direction of the base, silent on what the tune was trained on."""
    return InjectConfig(
        model=str(tuned), harmful=str(data["harmful_train"]), harmless=str(data["harmless_train"]),
        borderline=str(data["borderline_validation"]), general=str(data[name]),
        direction=DirectionConfig(source=base), seed=config.seed,
        search=SearchConfig(generation=_GENERATION), load=LoadConfig(device=config.device),
    )  # fmt: skip


def _evaluation(config: DemoConfig, base: str, task: str) -> EvaluateConfig:
    return EvaluateConfig(
        model=base, suite="testbed", task=task, limit=LIMIT, seed=config.seed,
        load=LoadConfig(device=config.device), generation=_GENERATION,
    )  # fmt: skip
