"""What is measured, on which prompts, and who judges: `alignkeep evaluate` and the recipe's `evaluate:`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from alignkeep.formats import Columns
from alignkeep.models.config import EndpointConfig, GenerationConfig, LoadConfig
from alignkeep.settings import Checked


class EvaluateConfig(Checked):
    """One evaluation of a model, and of its base where there is one, on the same prompts. Each is a folder, a hub id
    or a served model, `https://host/v1#name`, which is asked as `endpoint` says.

    `suite` is `driftcheck`, `testbed`, a set of the field (`advbench`, or `advbench=FILE` for a copy), a FILE.yaml or
    `package.module:object`; `task` a file of prompts with one right
    answer each, in which our columns may have other names (`columns`: `prompt=question,completion=answer`), and
    `task_score` a function of yours that says what is right (`package.module:object`). `attacks`
    is `all` (the standard four), `every`, `none`, or names, `artifacts:FILE` and `package.module:object` with commas;
    only harmful prompts are attacked. Of several judges with commas between them the first one's words are counted, and
    what the others say is set beside them. `utility` are tasks of lm-evaluation-harness, by name, or FOLDER or
    FOLDER#NAME for local ones; of each, `limit` items are asked.
    `base_answers` is the folder of an earlier evaluation in which the base answered the same questions: it is not asked
    again. `limit` keeps so many prompts of each kind, drawn with `seed`. `load.revision` is that of `model`.
    """

    # Three fields more than our budget of 12: a group of settings, and what is asked and scored beside the suite.
    model: str = Field(min_length=1)
    base: str | None = None
    suite: str = "driftcheck"
    task: str | None = None
    columns: Columns = Field(default_factory=dict)
    task_score: str | None = Field(default=None, exclude_if=lambda spec: spec is None)
    utility: tuple[str, ...] = Field(default=(), exclude_if=lambda tasks: not tasks)
    judge: str = "keyword"
    attacks: str = "all"
    load: LoadConfig = LoadConfig()
    generation: GenerationConfig = GenerationConfig()
    endpoint: EndpointConfig = Field(default=EndpointConfig(), exclude_if=lambda asked: asked == EndpointConfig())
    base_answers: str | None = None
    limit: int | None = Field(default=None, gt=0, le=1_000_000_000)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("utility", mode="before")
    @classmethod
    def _with_commas(cls, tasks: Any) -> Any:
        return tuple(name.strip() for name in tasks.split(",") if name.strip()) if isinstance(tasks, str) else tasks


class JudgeConfig(Checked):
    """Which answers to score, and by which judge. `seed` is for judges that draw; the keyword judge does not."""

    answers: str
    judge: str = "keyword"
    seed: int = Field(default=0, ge=0, lt=2**32)
