"""A defence: what keeps a tune safe beside what it learns, as one object.

Whoever adds one subclasses `Defence` in a file of its own, as `kl_anchor.py` does, and is used as `--method
package.module:object`; ours stand in `defences.py`. Its options, its checks, its measurement on the base (kept, so that
a tune that was killed goes on), its place in the loss and in the log follow from what it answers here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel

from alignkeep.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.models.loading import LoadedModel
    from alignkeep.works import Work

Options = TypeVar("Options", bound=BaseModel)
Measured = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Before:
    """What is known before a weight is loaded: `skeleton` is the model with its adapter and without numbers, `key`
    the group of settings that the options stand in."""

    key: str
    tokenizer: Any
    skeleton: Any
    max_length: int
    has_adapter: bool


@dataclass(frozen=True)
class Base:
    """The model before its first step, with the adapter that is to be trained, and the tokenizer. `once` calls a
    function in the first of several processes alone, and raises in all of them what it raised."""

    loaded: LoadedModel
    max_length: int
    progress: Progress
    once: Callable[[Callable[[], object]], object]

    @contextmanager
    def as_base(self) -> Iterator[LoadedModel]:
        """The model without the adapter, where it has one, its mode and its gradients untouched."""
        from alignkeep.models.matrices import untouched

        with untouched(self.loaded.model):
            if not self.loaded.checkpoint.is_adapter:
                yield self.loaded
                return
            with self.loaded.as_base() as loaded:
                yield loaded


class Outcome(NamedTuple):
    """What a defence says of the tune when it has ended: facts for its record, and notes for its user."""

    facts: Mapping[str, object]
    notes: tuple[str, ...] = ()


class Defence(Protocol[Options]):
    """One defence. It has no state: what it knows of one tune are the options and what it measured.

    It is a word, `name`, under which its terms are logged, and a `title`. `options` are settings whose defaults do for
    all but data; each field is described in the class's docstring, or by its `description`. One of them, `strength`,
    says how strongly it acts, from 0. `works` are those it is from, ours by their key, and `departures` where it leaves
    them.
    """

    name: str
    title: str
    options: type[Options]
    strength: str
    works: tuple[Work | str, ...] = ()
    departures: tuple[str, ...] = ()

    def is_off(self, options: Options) -> bool:
        """Whether the options ask for no defence: the tune is then the plain one, bit for bit."""
        return getattr(options, self.strength) == 0

    def files(self, options: Options) -> dict[str, str]:
        """What it reads, by option: fingerprinted, never written to."""
        data = getattr(options, "data", None)
        return {} if data is None else {"data": data}

    def check(self, options: Options, before: Before) -> None:
        """Raise every error that the user can cause."""

    def foresee(self, options: Options, before: Before) -> tuple[str, ...]:
        """Notes for the plan."""
        return ()

    def memory(self, options: Options, before: Before) -> int:
        """Bytes that measuring takes beside the model, roughly."""
        return 0

    def examples_beside(self, options: Options) -> int:
        """Examples that it takes through the model in each step, beside the step's own."""
        return 0

    def measure(self, options: Options, base: Base) -> Measured:
        """What it needs to know of the base, as tensors; asked once, and kept until the tune has ended."""
        return {}

    def attach(self, options: Options, measured: Measured, trainer: Any) -> Callable[[], Outcome] | None:
        """Take part in every step of a transformers or TRL trainer (`loss_terms.add_to_loss`): in a given step the
        same, whatever came before, unless it keeps what it needs in the trainer's checkpoints. Returns what is to be
        asked for the outcome after the last step. Later, NoEffectError where it did nothing."""
        ...
