"""TRL's SFTTrainer with AlignGuard attached, for scripts that would rather name a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignkeep.data import read_examples
from alignkeep.errors import RecipeError
from alignkeep.train.align_guard import AlignGuard
from alignkeep.train.config import AlignGuardSettings
from alignkeep.types import Example


@dataclass
class AlignGuardConfig(SFTConfig):
    """TRL's settings, and the fields of AlignGuardSettings under one name."""

    alignguard: dict[str, Any] = field(default_factory=dict)


class AlignGuardSFTTrainer(SFTTrainer):
    """`SFTTrainer` over a LoRA model whose alignment is kept. `alignment_data` are examples, or a file of them."""

    def __init__(self, *rest: Any, alignment_data: Sequence[Example] | str | None = None, **named: Any) -> None:
        super().__init__(*rest, **named)
        config: Any = self.args
        settings = AlignGuardSettings(**getattr(config, "alignguard", {}))
        given = alignment_data or settings.data
        if not given:
            raise RecipeError(
                "alignment_data", seen="none", expected="examples, or a file of them", remedy="give alignment_data"
            )
        examples = read_examples(given) if isinstance(given, str) else given
        self.guard = AlignGuard.measure(self.model, self.processing_class, examples, settings)
        self.guard.attach(self)
