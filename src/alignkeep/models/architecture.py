"""Where decoder families write to their residual stream: the table, the matrices of a model, their names on disk.

A block adds two things to the residual stream, the output of its attention and the output of its MLP; the matrices that
end them are its *writers*. A mixture of experts has one per expert, and one more for experts that all tokens share.

To add a family: its `model_type` (config.json) and a row, and a tiny config in `tests/families.py`, which checks the
rest. A family whose blocks normalise what a writer made before it is added names the two norms in `norms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignkeep.errors import CheckpointError
from alignkeep.models.headers import TensorEntry
from alignkeep.models.matrices import under_adapter, widths

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Family:
    """Module paths: of the list of blocks, and within a block of the writers (those that a block lacks are skipped).

    `experts` is the module of fused experts and `stored_experts` the name of one expert's writer on disk (None: fused
    there too). `norms` are those between what attention and what MLP write and the residual stream.
    """

    blocks: str = "model.layers"
    attention: tuple[str, ...] = ("self_attn.o_proj",)
    mlp: tuple[str, ...] = ("mlp.down_proj",)
    experts: str | None = None
    stored_experts: str | None = None
    norms: tuple[str, str] | None = None


_LLAMA = Family()
_MIXTURE = replace(_LLAMA, experts="mlp.experts", stored_experts="mlp.experts.{expert}.down_proj.weight")
_SHARED = replace(_MIXTURE, mlp=("mlp.down_proj", "mlp.shared_experts.down_proj"))
_NORMALISED = replace(_LLAMA, norms=("post_attention_layernorm", "post_feedforward_layernorm"))
_FALCON = Family("transformer.h", ("self_attention.dense",), ("mlp.dense_4h_to_h",))

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3", "stablelm"), _LLAMA),
    **dict.fromkeys(("granite", "cohere", "cohere2", "glm", "ernie4_5", "hunyuan_v1_dense"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4"), _NORMALISED),
    "glm4": replace(_LLAMA, norms=("post_self_attn_layernorm", "post_mlp_layernorm")),
    "starcoder2": replace(_LLAMA, mlp=("mlp.c_proj",)),
    "phi": Family(attention=("self_attn.dense",), mlp=("mlp.fc2",)),
    "gpt2": Family("transformer.h", ("attn.c_proj",), ("mlp.c_proj",)),
    "gptj": Family("transformer.h", ("attn.out_proj",), ("mlp.fc_out",)),
    "gpt_neox": Family("gpt_neox.layers", ("attention.dense",), ("mlp.dense_4h_to_h",)),
    "falcon": _FALCON,
    "bloom": _FALCON,
    "mixtral": replace(_MIXTURE, stored_experts="block_sparse_moe.experts.{expert}.w2.weight"),
    **dict.fromkeys(("qwen3_moe", "olmoe"), _MIXTURE),
    "qwen2_moe": replace(_MIXTURE, mlp=("mlp.down_proj", "mlp.shared_expert.down_proj")),
    "qwen3_next": replace(
        _MIXTURE,
        attention=("self_attn.o_proj", "linear_attn.out_proj"),
        mlp=("mlp.down_proj", "mlp.shared_expert.down_proj"),
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe"), _SHARED),
    "gpt_oss": replace(_LLAMA, experts="mlp.experts"),
}


@dataclass(frozen=True, eq=False)
class Writer:
    """A matrix that writes to the residual stream: `parameter` of `module`, of one `expert` where that holds many.

    `place` is the module's name in the model and `part` what it ends; `inputs_first` says that the matrix is stored
    (in, out); `norm` is the module that its output passes before it is added, where the family has one.
    """

    place: str
    block: int
    part: Literal["attention", "mlp"]
    module: Any
    parameter: str = "weight"
    expert: int | None = None
    inputs_first: bool = False
    norm: Any = None

    @property
    def name(self) -> str:
        """Unique among the writers of a model."""
        return self.place if self.expert is None else f"{self.place}[{self.expert}]"

    @property
    def weight(self) -> Tensor:
        """The stored matrix (out, in), a view into the model."""
        tensor = getattr(self.module, self.parameter).data
        matrix = tensor if self.expert is None else tensor[self.expert]
        return matrix.mT if self.inputs_first else matrix

    @property
    def width(self) -> int:
        """How many inputs it has, packed or not."""
        return self.weight.shape[1] if self.is_matrix else widths(self.module)[0]

    @property
    def is_matrix(self) -> bool:
        """Whether there is a matrix to look at: quantised weights are packed."""
        tensor = getattr(self.module, self.parameter, None)
        return tensor is not None and str(tensor.dtype) in _PLAIN


_PLAIN = {"torch.float64", "torch.float32", "torch.bfloat16", "torch.float16"}  # 8-bit floats have a scale beside them


class Stored(NamedTuple):
    """A writer on disk: the tensor, and its index on the first axis where the tensor holds all experts."""

    tensor: str
    expert: int | None


def family_of(model: Any) -> Family:
    """The row of a model's family. Raises CheckpointError naming the row to add."""
    kind = under_adapter(model).config.get_text_config().model_type
    if kind not in FAMILIES:
        raise CheckpointError(
            f"model_type {kind}",
            seen="a family that the table of architectures lacks",
            expected=f"one of {', '.join(sorted(FAMILIES))}",
            remedy=f'add a row "{kind}" to FAMILIES in alignkeep/models/architecture.py',
        )
    return FAMILIES[kind]


def blocks_of(model: Any) -> tuple[str, Any]:
    """Path and modules of the decoder's blocks."""
    base, path = under_adapter(model), family_of(model).blocks
    for found in (path, path.replace("model.", "model.language_model.")):
        try:
            return found, base.get_submodule(found)
        except AttributeError:
            continue
    raise CheckpointError(
        path,
        seen="no such module",
        expected="the blocks of a family by its model_type",
        remedy="correct the family's row in alignkeep/models/architecture.py",
    )


def writers(model: Any) -> tuple[Writer, ...]:
    """All writers, block by block: attention, MLP, experts. Raises CheckpointError for a family that is not in the
    table, or a block without an attention or an MLP writer."""
    family, (path, blocks) = family_of(model), blocks_of(model)
    found: list[Writer] = []
    for number, block in enumerate(blocks):
        place = f"{path}.{number}"
        after_attention, after_mlp = (None, None) if family.norms is None else map(block.get_submodule, family.norms)
        attention = _linear(place, number, "attention", block, family.attention, after_attention)
        mlp = _linear(place, number, "mlp", block, family.mlp, after_mlp)
        mlp += _experts(place, number, block, family.experts, after_mlp)
        if not attention or not mlp:
            raise CheckpointError(
                place,
                seen=f"none of {', '.join(family.mlp if attention else family.attention)}",
                expected="a matrix that writes to the residual stream",
                remedy="correct the family's row in alignkeep/models/architecture.py",
            )
        found += [*attention, *mlp]
    return tuple(found)


def residual_scale(model: Any) -> float:
    """What a writer's output is multiplied by before it is added (Granite); 1 for all others."""
    return float(getattr(under_adapter(model).config.get_text_config(), "residual_multiplier", 1.0))


def stored_as(writer: Writer, model: Any, entries: Mapping[str, TensorEntry]) -> Stored:
    """Where a writer lies in a checkpoint. Raises CheckpointError unless exactly one tensor of its shape has its name,
    whatever stands before the list of blocks in it."""
    family, (path, _) = family_of(model), blocks_of(model)
    expert = writer.expert
    if expert is not None and family.stored_experts is not None:
        within = f"{path}.{writer.block}.{family.stored_experts.format(expert=expert)}"
        shape, expert = tuple(getattr(writer.module, writer.parameter).shape[1:]), None
    else:
        within = f"{writer.place}.{writer.parameter}"
        shape = tuple(getattr(writer.module, writer.parameter).shape)
    tail = within.removeprefix(f"{path.rpartition('.')[0]}.")
    named = [name for name in entries if name == tail or name.endswith(f".{tail}")]
    fitting = [name for name in named if entries[name].shape == shape]
    if len(fitting) != 1:
        raise CheckpointError(
            f"tensor {within}",
            seen=f"{len(fitting)} stored tensors of that name and shape {list(shape)}",
            expected="one",
            remedy="correct the family's row in alignkeep/models/architecture.py",
        )
    return Stored(fitting[0], expert)


def _linear(
    place: str, number: int, part: Literal["attention", "mlp"], block: Any, paths: tuple[str, ...], norm: Any
) -> list[Writer]:
    from transformers.pytorch_utils import Conv1D

    found: list[Writer] = []
    for path in paths:
        try:
            module = block.get_submodule(path)
        except AttributeError:
            continue
        module = getattr(module, "base_layer", module)  # under an adapter
        turned = isinstance(module, Conv1D)
        found.append(Writer(f"{place}.{path}", number, part, module, inputs_first=turned, norm=norm))
    return found


def _experts(place: str, number: int, block: Any, path: str | None, norm: Any) -> list[Writer]:
    try:
        module = block.get_submodule(path or "no experts")
    except AttributeError:
        return []  # a dense block
    module = getattr(module, "base_layer", module)
    if not hasattr(module, "is_transposed") or not hasattr(module, "down_proj"):
        raise CheckpointError(
            f"{place}.{path}",
            seen=f"packed experts ({type(module).__name__})",
            expected="experts in floating point",
            remedy="load or save the model dequantised first",
        )
    return [
        Writer(f"{place}.{path}", number, "mlp", module, "down_proj", expert, bool(module.is_transposed), norm)
        for expert in range(module.down_proj.shape[0])
    ]
