"""One of two processes: a curation of which each embeds and weighs a part."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def main(path: Path) -> None:
    from alignkeep.curate.config import CurateConfig
    from alignkeep.curate.stage import curate
    from alignkeep.models import embeddings

    embeddings.PART = 64
    looked = 0
    look = embeddings._look  # pyright: ignore[reportPrivateUsage]

    def counted(loaded: Any, texts: Any, *rest: Any) -> Any:
        nonlocal looked
        looked += len(texts)
        return look(loaded, texts, *rest)

    embeddings._look = counted  # pyright: ignore[reportPrivateUsage]
    config = CurateConfig.model_validate_json(path.read_text(encoding="utf-8"))
    result = curate(config, out=path.with_suffix(".two"))
    seen = path.with_suffix(f".rank{os.environ['RANK']}.json")
    seen.write_text(json.dumps({"kept": result.kept, "looked": looked}), encoding="utf-8")
