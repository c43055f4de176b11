"""Every error a user can cause, in one form: what was found, what was expected, what to do.

The command line prints `str(error)` as one line on stderr and leaves with `error.exit_code`. What other people wrote
(names, values, messages of libraries) stands in that line shortened, with its control characters spelled out.
"""

from __future__ import annotations

LONGEST_MESSAGE = 380  # characters; with what the command line puts before it a line stays under 400


class AlignkeepError(Exception):
    """Base of all errors raised on purpose.

    `where` names the place (recipe key, option, file, file:line, tensor), `seen` what stood there, `expected` what
    should have, `remedy` the next thing to do.
    """

    exit_code = 1

    def __init__(self, where: str, *, seen: str, expected: str, remedy: str) -> None:
        self.where, self.seen, self.expected, self.remedy = where, seen, expected, remedy
        room = LONGEST_MESSAGE - len(": found , expected ; ")
        where, seen, expected, remedy = _fitted([plain(part) for part in (where, seen, expected, remedy)], room)
        super().__init__(f"{where}: found {seen}, expected {expected}; {remedy}")


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


def plain(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """`text` as one line of at most `longest` characters that a terminal shows and does not obey.

    White space becomes single spaces; control and format characters, and halves of characters, are spelled as Python
    would (`\\x1b`, `\\u202e`); of what is too long the middle is left out.
    """
    if len(text) > 4 * longest:  # a megabyte is not worth reading
        text = f"{text[: 2 * longest]} {text[-2 * longest :]}"
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return _shortened(text, longest)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    behind = longest // 2
    return f"{text[: longest - behind - 3]}...{text[len(text) - behind :]}"


def _fitted(parts: list[str], room: int) -> list[str]:
    """The parts in `room` characters: the longest give way first."""
    most = max(map(len, parts))
    while sum(min(len(part), most) for part in parts) > room:
        most -= 1
    return [_shortened(part, most) for part in parts]
