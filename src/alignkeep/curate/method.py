"""A way to choose examples as one value: what it looks at, its options, its score of every example, where it is from.

Whoever adds one writes a file in `methods/` and a line in its tuple, or names an object of his own as
`package.module:object`. It gets what it asks for, already read, checked and made, and never sees a model or a file.

Shapes: n examples, m safe and h harmful references, d wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel

from alignkeep.models.processes import Processes
from alignkeep.progress import Progress, Silent
from alignkeep.settings import Checked

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.works import Work

Of = TypeVar("Of")
Needs = Literal["vectors", "texts", "gradients", "nothing"]
Reference = Literal["safe", "harmful"]


@dataclass(frozen=True, eq=False)
class Sets(Generic[Of]):
    """The examples and both references, all of one kind."""

    data: Of
    safe: Of
    harmful: Of


class Products(NamedTuple):
    """Of every example's gradient with the mean gradient of the safe and of the harmful references: (n,) each."""

    safe: Tensor
    harmful: Tensor


@dataclass(frozen=True, eq=False)
class Given:
    """What a method looks at: of vectors, texts and gradients the one that it needs, the others are None. `vectors` are
    rows of length 1, float32 on the CPU; references that a method does not read may be empty. `seed` is all the chance
    there is. A method that takes long may divide rows among `processes`, and computes on `device`."""

    count: int
    seed: int = 0
    vectors: Sets[Tensor] | None = None
    texts: Sets[Sequence[str]] | None = None
    gradients: Products | None = None
    device: str = "cpu"
    processes: Processes = field(default=Processes(), repr=False)
    progress: Progress = field(default_factory=Silent, repr=False)


@dataclass(frozen=True, eq=False)
class Weighing:
    """Masses (n,) that sum to 1, larger for larger scores; `weights` makes of the kept (n,), bool, training weights of
    mean 1 over them and 0 elsewhere. `share` says which part of an example's mass goes to which reference, (rows, m),
    from the rows' costs (1 - cosine) to that set."""

    mass: Tensor
    weights: Callable[[Tensor], Tensor]
    share: Callable[[Tensor, Reference], Tensor] | None = None


class Scores(NamedTuple):
    """`value` (n,): the largest are kept, of equal ones the first, and weigh alike unless there is a `weighing`. `safe`
    and `harmful` (n,) say how near an example is to those references, larger being nearer; None where a method does
    not ask. `facts` go into the summary."""

    value: Tensor
    safe: Tensor | None = None
    harmful: Tensor | None = None
    weighing: Weighing | None = None
    facts: Mapping[str, object] = {}


class Counts(NamedTuple):
    """What is to be estimated for: rows of each set, and the parameters of the model."""

    data: int
    safe: int
    harmful: int
    parameters: int


class NoOptions(Checked):
    """A method without options."""


class CurationMethod(Protocol):
    """One way to choose. `needs` is what it looks at and `reads` the references that have a part; `options` are its
    settings, all with defaults and each described in the docstring. `works` are those it is from, ours by their key,
    and `departures` where it leaves them. Equal examples get equal scores, but for what is drawn by chance."""

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[Needs]
    reads: ClassVar[tuple[Reference, ...]] = ("safe", "harmful")
    options: ClassVar[type[BaseModel]] = NoOptions
    works: ClassVar[tuple[Work | str, ...]] = ()
    departures: ClassVar[tuple[str, ...]] = ()

    def weighs(self, options: Any) -> bool:
        """Whether the kept may differ in weight."""
        return False

    def trials(self, options: Any) -> tuple[Any, ...]:
        """Other options that are worth a try where vectors are chosen by planted rows."""
        return ()

    def memory(self, counts: Counts, options: Any) -> int:
        """Bytes that it takes beside what it is given, roughly."""
        return 0

    def score(self, given: Given, options: Any) -> Scores:
        """The scores; `options` is an `options` of this method. Raises NoEffectError where nothing tells the examples
        apart, MachineError where memory runs out or no answer is found."""
        ...
