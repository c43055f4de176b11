"""A stage of a tune as one value: what it takes from a recipe, what it does and what it leaves.

Whoever adds a stage subclasses `Stage` in the room's `stage.py` and puts the value into `stages.py`. Its place in a
recipe, its folder, its record, resuming, its plan and its citation follow from what it answers here. All that is heavy
is imported within the methods: a recipe is read, planned and cited without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel

from alignkeep.errors import AlignkeepError, MachineError
from alignkeep.progress import Progress

if TYPE_CHECKING:
    from alignkeep.charts.figures import Figure, Series
    from alignkeep.checkpoint.manifest import MadeAgain, Manifest
    from alignkeep.citations import Cited
    from alignkeep.settings import Key

Config = TypeVar("Config", bound=BaseModel)
Prepared = TypeVar("Prepared")
Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True)
class Made:
    """What a recipe has in hand when a stage's turn comes.

    `start` is the recipe's model and `revision` that of it which is tuned or merged. `folder` holds the model that the
    stages before made, None where none makes one; in a plan it `is_to_come`. It comes in a `form`, decided by the
    setting and value in `formed_by`. `weights` is the folder of example weights, of the examples `chosen_from`; `data`
    is what a tune of the recipe learns from, `asked` the prompts that will measure it, and `columns` and
    `asked_columns` are what our columns are called in them.
    """

    start: str
    revision: str | None = None
    folder: str | None = None
    is_to_come: bool = False
    form: Literal["model", "adapter"] = "model"
    formed_by: tuple[Key, str] = ((), "")
    weights: str | None = None
    is_weighted: bool = False
    chosen_from: str | None = None
    data: str | None = None
    asked: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    asked_columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_model(self) -> bool:
        return self.is_to_come or self.folder is not None

    @property
    def model(self) -> str | None:
        """What the stages before made; the base stands in for what is to come."""
        return self.base if self.is_to_come else self.folder

    @cached_property
    def base(self) -> str:
        """The recipe's model; of a hub model's revision the folder, which is what was tuned."""
        if self.revision is None:
            return self.start
        from alignkeep.models.folders import localise, resolve

        return str(localise(resolve(self.start, self.revision)).folder)

    def with_model(self, folder: Path | None, *, form: str, formed_by: tuple[Key, str]) -> Made:
        """With the model that a stage made in `folder`, or is to make."""
        return replace(
            self, folder=None if folder is None else str(folder), is_to_come=folder is None,
            form="adapter" if form == "adapter" else "model", formed_by=formed_by,
        )  # fmt: skip


class Misfit(NamedTuple):
    """A setting that does not fit to the stages before; `key` begins with the stage that is to be changed."""

    key: Key
    seen: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class Inputs:
    """What decides on a stage's output.

    `fingerprints` are those of everything it reads, by setting; `paths` lie on this disk and are never written to.
    `recorded` are the settings as the record shows them, `deciding` those of them that change what comes out (None: all
    of them).
    """

    fingerprints: dict[str, str]
    paths: Sequence[Path]
    recorded: dict[str, object]
    deciding: dict[str, object] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """What a stage would do, and its estimates: None where there is none."""

    facts: Mapping[str, Any]

    @property
    def memory_bytes(self) -> int | None:
        return self.facts.get("memory_bytes")

    @property
    def disk_bytes(self) -> int | None:
        return self.facts.get("disk_bytes")

    @property
    def seconds(self) -> float | None:
        return self.facts.get("seconds")

    def as_json(self) -> dict[str, Any]:
        return dict(self.facts)


@dataclass
class Task(Generic[Config, Prepared]):
    """A config, and what is to be known of it before work is spent, prepared when it is first asked for."""

    stage: Stage[Config, Prepared, Any]
    config: Config

    @cached_property
    def prepared(self) -> Prepared:
        """Raises every error that the user can cause."""
        return self.stage.prepare(self.config)


@dataclass(frozen=True)
class Job:
    """Where a stage works, on inputs with which fingerprints, and whom it tells of it."""

    folder: Path
    fingerprints: Mapping[str, str]
    progress: Progress = field(repr=False)


@dataclass(frozen=True)
class Finished:
    """A finished folder, as the page meets it: the `label` of the model that it belongs to, the `names` of its files,
    and the `facts` of its record (none without a record)."""

    label: str
    folder: Path
    names: frozenset[str]
    facts: Mapping[str, object] = field(default_factory=dict)


class Stage(Protocol[Config, Prepared, Result]):
    """One stage.

    `references` are the settings that point to something, `filled` those that the top of a recipe or an earlier
    stage gives, the model's first. A stage `makes_model`s, or `measures` one: its result is a Scorecard. Of several
    processes all take part in one that runs `together`, else the first alone. The figures of one that `shows_alone` are
    worth a page where no model was evaluated. `less_memory` is what to do where memory runs out, `extra` that of the
    package which it needs (`extras.py`).
    """

    name: str
    config: type[Config]
    references: tuple[Key, ...] = ()
    filled: tuple[str, ...] = ("model",)
    makes_model: bool = False
    measures: bool = False
    together: bool = False
    shows_alone: bool = False
    less_memory: str | None = None
    extra: str | None = None

    # In a recipe.

    def fill(self, settings: Mapping[str, object], recipe: Mapping[str, Any]) -> dict[str, object]:
        """The settings in a recipe with what stands at its top; what is given stays."""
        return {self.filled[0]: recipe.get("model", ""), "seed": recipe.get("seed", 0), **settings}

    def misfit(self, config: Config, made: Made) -> Misfit | None:
        """What does not go together with the stages before."""
        return None

    def revision_of(self, config: Config) -> str | None:
        """The revision of the base that it works on."""
        return None

    def announce(self, config: Config, made: Made) -> Made:
        """What the other stages may know of it before anything is made."""
        return made

    def feed(self, config: Config, made: Made) -> Config:
        """The config on what the stages before made."""
        return config

    def hand_on(self, config: Config, made: Made, folder: Path | None) -> Made:
        """What the next stages have in hand; `folder` is its own, None where it is to come."""
        return made

    def foresee(self, config: Config, made: Made) -> Plan:
        """The plan in a recipe, before the stages before have done anything. Raises as `plan` does."""
        return self.plan(self.feed(config, made))

    # At work.

    def prepare(self, config: Config) -> Prepared:
        """All that can be known before work is spent: every error that the user can cause is raised here."""
        ...

    def inputs(self, task: Task[Config, Prepared]) -> Inputs:
        """What decides on the output. Leaves `task.prepared` alone where the settings are enough."""
        ...

    def plan(self, config: Config) -> Plan:
        """What it would do, with estimates; raises what `prepare` raises, loads no model, writes nothing."""
        ...

    def work(self, prepared: Prepared, job: Job) -> dict[str, object]:
        """Do it in `job.folder`; returns what the record shows as the result."""
        ...

    def result(self, folder: Path) -> Result:
        """The result that a finished folder holds."""
        ...

    def is_worth_keeping(self, error: AlignkeepError, folder: Path) -> bool:
        """Whether the work before this error is gone on with. A fault that would come again is not worth it."""
        return isinstance(error, MachineError)

    def evidence(self, error: AlignkeepError) -> tuple[str, ...]:
        """Files that stay, with a record, where the work ended in this error: what was measured before it."""
        return ()

    def leftovers(self) -> tuple[str, ...]:
        """Files in its folder that only a resumed run needs."""
        return ()

    # Afterwards.

    def methods(self, settings: Mapping[str, Any], metrics: Iterable[str] | None = None) -> tuple[Cited, ...]:
        """The methods that these settings use: names that `citations` knows, or the citation of a stranger's.
        `metrics` are the names that were measured, None where nothing was yet."""
        return ()

    def figures(self, finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
        """What the page shows of those folders that are this stage's, by the files in them; `series` gives every label
        its colour. Raises DataError for a broken file."""
        return ()

    def explain(self, folder: Path) -> Path | None:
        """Write the page of its own that a finished folder is worth, beside its files; None where there is none."""
        return None

    def verify(self, folder: Path, manifest: Manifest) -> MadeAgain | None:
        """Make what is in a finished folder again, and compare; None where there is no such proof."""
        return None
