"""A tune for each config NAME.json, into NAME.two beside it; every rank writes what it saw.

torchrun --nproc_per_node 2 tune.py A.json B.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(*configs: Path) -> None:
    import torch.distributed

    from alignkeep.train.config import TrainConfig
    from alignkeep.train.stage import train

    for path in configs:
        config = TrainConfig(**json.loads(path.read_text(encoding="utf-8")))
        result = train(config, out=path.with_suffix(".two"))
        seen = {"steps": result.steps, "world": torch.distributed.get_world_size()}
        path.with_suffix(f".rank{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
