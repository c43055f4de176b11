"""Run alone or by torchrun: an alignment of a config, which may kill itself after so many steps.

python alignment.py CONFIG.json OUT [STEPS]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from killed import Killer

if __name__ == "__main__":
    import torch.distributed

    from alignkeep.align.config import AlignConfig
    from alignkeep.align.stage import align

    config, out, *steps = sys.argv[1:]
    settings = AlignConfig(**json.loads(Path(config).read_text(encoding="utf-8")))
    result = align(settings, out=Path(out), progress=Killer(int(steps[0])) if steps else None)
    if torch.distributed.is_initialized():
        seen = {"steps": result.steps, "world": torch.distributed.get_world_size()}
        Path(f"{out}.rank{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
        torch.distributed.destroy_process_group()
