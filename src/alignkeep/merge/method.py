"""What a merge method is: one value, in one file, that holds all there is to know of it.

A `MergeMethod` is what users choose: its name, its options, what it takes and where it comes from. Asked for a weight
it gives a `TensorMerge`, the mathematics of one tensor with every number in place. Both are frozen. Ours are listed in
`methods.py`; one of yours is any object with the members below (most have a default if you subclass), and
`alignkeep.conformance.merge_method` checks it.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeVar

from jaxtyping import Float, Float32

from alignkeep.merge.pieces import Array, Pieces, Whole
from alignkeep.settings import Checked
from alignkeep.works import Citation

if TYPE_CHECKING:  # torch takes longer to import than a merge that does without it takes
    from torch import Tensor

    from alignkeep.subspace.eigenbasis import Eigenbasis

Options = TypeVar("Options", bound=Checked)
Identity = Literal["base"] | int | None


class NoOptions(Checked):
    """A method that wants to know nothing but the weight."""


class InputMap(NamedTuple):
    """scale I + reads writes^T, a map of a matrix's inputs."""

    scale: float
    reads: Float[Tensor, "d_in k"]
    writes: Float[Tensor, "d_in k"]


class Space(NamedTuple):
    """The eigenvectors of a tensor's input side, on alignment data and (None: not asked) on tuning data. Its inputs run
    along `input_axis`."""

    alignment: Eigenbasis
    tuning: Eigenbasis | None
    input_axis: int


class Spectrum(NamedTuple):
    """How much is measured of the input side of every matrix: the smallest rank that holds this `share` of the Fisher's
    trace, `most` ranks, on so many `examples` of each data at most."""

    share: float
    most: int
    examples: int


class TensorMerge(Protocol):
    """What is done to a tensor.

    `needs_finite`: an input that is no number is refused as it is read; where False, it is a sum, from which NaN and
    infinity come out as they went in, and are refused then. `through` is the map, where the merge is one of the inputs.
    """

    needs_finite: bool = True

    def merged(self, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
        """The merged tensor in order, flat, in float32; the parts need not be as long as the pieces. Raises ValueError,
        before the first part, when the number of tuned models is not the method's.
        """
        ...

    @property
    def identity(self) -> Identity:
        """Which model it gives back by construction, whatever the numbers: the base, a tuned model by its index (from
        0), or none. Law: where it says so, the merge has that model's numbers.
        """
        return None

    @property
    def through(self) -> InputMap | None:
        """What it does to the inputs of an update."""
        return None


Rule = Callable[[str], TensorMerge]


@dataclass(frozen=True)
class Asked(Generic[Options]):
    """What a method is asked for: the `weight` of the tuned `models` (so many; of all of them together), its options,
    the seed of what is random, and by tensor name what was measured (where the method has a `spectrum`)."""

    weight: float
    models: int
    options: Options
    seed: int = 0
    spaces: Mapping[str, Space] = field(default_factory=dict[str, Space])


class MergeMethod(Protocol[Options]):
    """A method that users choose by `name`; `title` is a line that says what it does.

    `options` is a group of settings with a default and a description each, `cites` the works it comes from and where
    it departs from them. It merges `models[0]` to `models[1]` (None: any number of) tuned models. `weighs` says what
    the weight is: a share in [0, 1], a scale, or nothing, where the method finds its own. `adapter` says how the merge
    of one LoRA is a LoRA again: its scale times the weight, through `TensorMerge.through`, or (None) not at all.
    A sweep whose method is `auto` tries those that say `in_auto`. `bytes_per_second` of checkpoint are merged, roughly.
    """

    name: str
    title: str
    options: type[Options]
    cites: tuple[Citation, ...] = ()
    models: tuple[int, int | None] = (1, None)
    weighs: Literal["share", "scale"] | None = "scale"
    adapter: Literal["scaled", "mapped"] | None = None
    takes_tuning_data: bool = False
    in_auto: bool = False
    bytes_per_second: float = 600e6  # chosen: measured in benchmarks/bench_merge.py on two cores, for those that add

    def check(self, options: Options) -> None:
        """Raises RecipeError for options that do not go together, NoEffectError for those that leave the base."""

    def spectrum(self, options: Options) -> Spectrum | None:
        """What is to be measured on alignment data before it can merge; None for a method that needs none."""
        return None

    def tensor(self, asked: Asked[Options]) -> TensorMerge:
        """What is done to a tensor, to each alike."""
        ...

    def rule(self, asked: Asked[Options]) -> Rule:
        """What is done to the tensor of a name."""
        one = self.tensor(asked)
        return lambda name: one


def merge_tensor(merge: TensorMerge, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
    """One tensor merged in memory: float32, in the shape of the base. Random methods draw by its name."""
    import torch

    first, *others = (tensor.detach().float().cpu().numpy() for tensor in (base, *tuned))
    parts = [torch.from_numpy(part.copy()) for part in merge.merged(Whole(name, first, others))]
    return (torch.cat(parts) if parts else torch.empty(0)).reshape(base.shape)


def only_model(weights: Sequence[float]) -> Identity:
    """The one model that weighs 1 where all others (the base first) weigh 0."""
    if weights.count(1) != 1 or weights.count(0) != len(weights) - 1:
        return None
    return weights.index(1) - 1 if weights.index(1) else "base"
