"""An edit shown in memory: the weights themselves, rounded as they would be written, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from alignkeep.inject.rank_one import RankOne, applied
from alignkeep.models.architecture import Writer

ROWS = 4096  # of a matrix at a time, so that its float32 copy stays small


@contextmanager
def edited(writers: Sequence[Writer], edits: Mapping[str, RankOne]) -> Iterator[None]:
    """Within the block the model has the edits, by writer's name; then it has its own weights again, bit for bit.

    Packed weights stay as they are: there the edit is added to what the matrix gives, as an adapter does it.
    """
    import torch

    with torch.inference_mode(), ExitStack() as stack:
        for writer in writers:
            edit = edits.get(writer.name)
            if edit is None:
                continue
            if not writer.is_matrix:
                stack.callback(writer.module.register_forward_hook(partial(_beside, edit)).remove)
                continue
            weight = writer.weight
            stack.callback(weight.copy_, weight.clone())
            left, right = edit.left.to(weight.device), edit.right.to(weight.device)
            for start in range(0, len(weight), ROWS):
                rows = weight[start : start + ROWS]
                rows.copy_(applied(rows, RankOne(left[start : start + ROWS], right)))
        yield


def _beside(edit: RankOne, _: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    (x, *_) = inputs
    return output + ((x.float() @ edit.right.to(x.device))[..., None] * edit.left.to(x.device)).to(output.dtype)
