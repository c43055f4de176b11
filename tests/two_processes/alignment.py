"""An alignment of a config, alone or as one of two processes, which may kill itself after so many steps."""

from __future__ import annotations

import json
from pathlib import Path

from killed import Killer


def main(config: Path, out: Path, steps: int | None = None) -> None:
    import torch.distributed

    from alignkeep.align.config import AlignConfig
    from alignkeep.align.stage import align

    settings = AlignConfig(**json.loads(config.read_text(encoding="utf-8")))
    result = align(settings, out=out, progress=None if steps is None else Killer(steps))
    if torch.distributed.is_initialized():
        seen = {"steps": result.steps, "world": torch.distributed.get_world_size()}
        Path(f"{out}.rank{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
        torch.distributed.destroy_process_group()
