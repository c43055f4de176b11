"""Where a decoder writes to its residual stream, found by structure: the matrices whose outputs its blocks add to it.

No family is listed. The blocks are the modules of the longest list in the decoder; what in each of them writes is
found, and proven, by trial edits (`probing`): a family nobody has heard of works or is refused with what was seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from alignkeep.errors import CheckpointError
from alignkeep.models.matrices import under_adapter, untouched, widths
from alignkeep.models.probing import REMEDY, Call, Proven, prove_block

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 7  # that the blocks are tried on (chosen: enough for most experts of a small mixture, and quick)


@dataclass(frozen=True, eq=False)
class Writer:
    """A matrix that writes to the residual stream: `parameter` of `module`, of one `expert` where that holds many.

    `place` is the module's name in the model. `inputs_first` says that the matrix is stored (in, out); `norms` are the
    modules that its output passes before it is added, `scale` what it is multiplied by.
    """

    place: str
    block: int
    module: Any
    parameter: str = "weight"
    expert: int | None = None
    inputs_first: bool = False
    norms: tuple[Any, ...] = ()
    scale: float = 1.0

    @property
    def name(self) -> str:
        """Unique among the writers of a model."""
        own = self.place if self.parameter in ("weight", "down_proj") else f"{self.place}.{self.parameter}"
        return own if self.expert is None else f"{own}[{self.expert}]"

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


def blocks_of(model: Any) -> tuple[str, Any]:
    """Path and modules of the decoder's blocks: of the lists in the text model that stand in no other list the one with
    most numbers. Raises CheckpointError where there is none."""
    import torch

    base = under_adapter(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    paths = {id(module): name for name, module in base.named_modules()}
    lists: list[Any] = []
    within: set[int] = set()
    for module in decoder.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) and id(module) not in within:
            lists.append(module)
            within.update(map(id, module.modules()))
    if not lists:
        raise CheckpointError(
            type(base).__name__,
            seen="no list of blocks in it",
            expected="a decoder made of blocks, one after the other",
            remedy=REMEDY,
        )
    blocks = max(lists, key=lambda one: sum(parameter.numel() for parameter in one.parameters()))
    return paths[id(blocks)], blocks


def writers(model: Any) -> tuple[Writer, ...]:
    """All writers, block by block in the order in which they run, an expert each.

    Costs a forward pass of a few tokens through the model and some ten through every block. Raises CheckpointError
    naming the block, and what was seen there, where a matrix cannot be proven to write as the formula says.
    """
    path, blocks = blocks_of(model)
    found: list[Writer] = []
    owners: dict[int, str] = {}
    alone = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with untouched(model), alone, one_by_one(under_adapter(model)):
        calls = _calls(under_adapter(model), path, blocks)
        for number, (block, call) in enumerate(zip(blocks, calls, strict=True)):
            place = f"{path}.{number}"
            for proven in prove_block(block, call, place):
                made = _writer(place, number, block, proven)
                weight = getattr(made.module, made.parameter)
                owner = owners.setdefault(id(weight), made.place)
                if owner != made.place:
                    raise _refused(made.place, f"the same matrix as {owner}", "matrices of a block of its own")
                found += _experts(made) if weight.ndim == 3 else [made]
    return tuple(found)


def _writer(place: str, number: int, block: Any, proven: Proven) -> Writer:
    norms = tuple(block.get_submodule(norm) for norm in proven.norms)
    name = f"{place}.{proven.module}".rstrip(".")
    name = name.replace(".base_layer", "").replace(".original_module", "")  # under an adapter
    module = block.get_submodule(proven.module) if proven.module else block
    scale = float(f"{proven.scale:.5g}")  # what float32 can tell
    return Writer(name, number, module, proven.parameter, None, proven.inputs_first, norms, scale)


def _experts(fused: Writer) -> list[Writer]:
    count = getattr(fused.module, fused.parameter).shape[0]
    return [
        Writer(
            fused.place, fused.block, fused.module, fused.parameter, expert,
            fused.inputs_first, fused.norms, fused.scale,
        )
        for expert in range(count)
    ]  # fmt: skip


def _calls(model: Any, path: str, blocks: Sequence[Any]) -> list[Call]:
    """What every block is given when the model reads a few tokens."""
    import torch

    found: list[list[Call]] = [[] for _ in blocks]

    def keep(number: int, _: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[number].append(Call(args, dict(named)))

    with ExitStack() as stack, torch.no_grad():
        for number, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(partial(keep, number), with_kwargs=True).remove)
        model(input_ids=torch.tensor([_tokens(model)], device=model.device), use_cache=False)
    for number, calls in enumerate(found):
        if len(calls) != 1:
            raise _refused(f"{path}.{number}", f"a block that runs {len(calls)} times", "once, one after the other")
    return [calls[0] for calls in found]


def _tokens(model: Any) -> list[int]:
    """A few tokens that stand for nothing else (images, padding)."""
    rows = model.get_input_embeddings().weight.shape[0]
    config = model.config.to_dict()
    settings = {**config, **model.config.get_text_config().to_dict()}
    special: set[Any] = set()
    for key, value in settings.items():
        if key.endswith(("token_id", "token_index")):
            special.update(value if isinstance(value, list) else [value])  # Llama 3 has three ends
    plain = [token for token in range(min(rows, 10_000)) if token not in special]
    return [plain[at * len(plain) // TOKENS] for at in range(TOKENS)]


@contextmanager
def one_by_one(model: Any) -> Iterator[None]:
    """Experts are computed one after the other meanwhile, with products that can be looked at."""
    configs: dict[int, Any] = {id(one): one for one in (getattr(module, "config", None) for module in model.modules())}
    named = [one for one in configs.values() if getattr(one, "_experts_implementation_internal", None) is not None]
    before = [one._experts_implementation_internal for one in named]
    try:
        for one in named:
            one._experts_implementation_internal = "eager"
        yield
    finally:
        for one, value in zip(named, before, strict=True):
            one._experts_implementation_internal = value


def _refused(where: str, seen: str, expected: str) -> CheckpointError:
    return CheckpointError(where, seen=seen, expected=expected, remedy=REMEDY)
