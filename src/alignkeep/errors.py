"""Every error a user can cause, in one form: what was seen, what was expected, what to do.

The command line prints `str(error)` as one line on stderr and leaves with `error.exit_code`.
"""

from __future__ import annotations


class AlignkeepError(Exception):
    """Base of all errors raised on purpose.

    `where` names the place (recipe key, option, file, file:line, tensor), `seen` what stood there, `expected` what
    should have, `remedy` the next thing to do.
    """

    exit_code = 1

    def __init__(self, where: str, *, seen: str, expected: str, remedy: str) -> None:
        self.where, self.seen, self.expected, self.remedy = where, seen, expected, remedy
        super().__init__(_one_line(f"{where}: seen {seen}; expected {expected}; {remedy}"))


class RecipeError(AlignkeepError):
    """A recipe, an option or an output folder that cannot be used."""


class DataError(AlignkeepError):
    """Data that is missing, empty, malformed, overlapping or meaningless for its use."""


class CheckpointError(AlignkeepError):
    """A model folder, adapter or tensor file that is incomplete, unsafe or not what it says."""


class ShapeError(AlignkeepError):
    """Two things that should fit do not: tensors, vocabularies, widths."""


class NoEffectError(AlignkeepError):
    """A step that was meant to change something changed nothing."""


class MachineError(AlignkeepError):
    """The machine failed (memory, disk, endpoint); state is kept and the same command continues."""

    exit_code = 4


def _one_line(text: str) -> str:
    return " ".join(text.split())
