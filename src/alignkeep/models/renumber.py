"""A model in memory given other weights, as if it had been loaded from files that hold them."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignkeep.errors import CheckpointError
from alignkeep.models.loading import LoadedModel, quiet

if TYPE_CHECKING:
    from torch import Tensor


def renumber(loaded: LoadedModel, tensors: Mapping[str, Tensor]) -> None:
    """Replace the weights of a full model by `tensors`, named, shaped and laid out as a checkpoint stores them.
    Network, settings and tokenizer stay. The old weights are let go of first: two models are never on the device.

    transformers itself puts the tensors in place (fused experts, tied heads, dtypes), so that the model is the one that
    loading the written files would give. Raises CheckpointError for a tensor that is missing or of another shape.
    """
    kind, settings, generation = type(loaded.model), loaded.model.config, loaded.model.generation_config
    dtype, device = loaded.model.dtype, loaded.model.device
    weight = weakref.ref(next(loaded.model.parameters()))
    loaded.model = None
    _free(weight)
    with quiet():
        model, info = kind.from_pretrained(
            None,
            config=copy.deepcopy(settings),
            state_dict=dict(tensors),
            dtype=dtype,
            device_map=None if device.type == "cpu" else {"": device},
            output_loading_info=True,
            # Left to itself transformers raises without naming the tensor.
            ignore_mismatched_sizes=True,
        )
    wrong: list[Any] = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
    if wrong:
        raise CheckpointError(
            f"tensor {min(wrong)}",
            seen="no such tensor, or one of another shape",
            expected="every tensor of the network",
            remedy="give all tensors of the checkpoint",
        )
    model.generation_config = generation
    loaded.model = model.eval()


def _free(weight: weakref.ref[Any]) -> None:
    """See that the old model is gone; some (mixtures of experts) hold on to themselves."""
    import torch

    if weight() is not None:
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
