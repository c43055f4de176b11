"""TRL's SFTTrainer with AlignGuard attached, for scripts that would rather name a class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignkeep.data import example_of, read_examples
from alignkeep.errors import RecipeError
from alignkeep.train.align_guard import AlignGuard
from alignkeep.train.align_guard_settings import AlignGuardSettings
from alignkeep.types import Example


@dataclass
class AlignGuardConfig(SFTConfig):
    """TRL's settings, and the fields of AlignGuardSettings under one name."""

    alignguard: dict[str, Any] = field(default_factory=dict)


class AlignGuardSFTTrainer(SFTTrainer):
    """`SFTTrainer` over a LoRA model whose alignment is kept. `alignment_data` are examples (or rows of `prompt` and
    `completion`, or of `messages`), or a file of them.

    Raises RecipeError or DataError for settings and alignment data that cannot be used before the model is loaded.
    """

    def __init__(
        self, model: Any, args: Any = None, *rest: Any, alignment_data: Iterable[Any] | Path | str | None = None,
        **named: Any,
    ) -> None:  # fmt: skip
        given = getattr(args, "alignguard", {})
        settings = given if isinstance(given, AlignGuardSettings) else AlignGuardSettings(**given)
        examples = [] if settings.is_off else _examples(settings.data if alignment_data is None else alignment_data)
        if "weight" in (getattr(named.get("train_dataset"), "column_names", None) or ()):
            raise RecipeError(
                "train_dataset", seen="a column `weight`, which SFTTrainer does not read", expected="none",
                remedy="drop it, or attach an AlignGuard to a WeightedSFTTrainer",
            )  # fmt: skip
        super().__init__(model, args, *rest, **named)
        self.guard = None
        if examples:
            self.guard = AlignGuard.measure(self.model, self.processing_class, examples, settings)
            self.guard.attach(self)


def _examples(given: Iterable[Any] | Path | str | None) -> list[Example]:
    if isinstance(given, str | Path):
        return read_examples(str(given))
    found = [one if isinstance(one, Example) else example_of(one, f"alignment_data, row {n}")
             for n, one in enumerate(given or (), start=1)]  # fmt: skip
    if not found:
        raise RecipeError(
            "alignment_data", seen="none", expected="examples, or a file of them", remedy="give alignment_data"
        )
    return found
