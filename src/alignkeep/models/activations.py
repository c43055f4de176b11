"""What a model has inside at chosen tokens: the residual stream before every block, the inputs of its writers, and what
it would say next. Hooks keep the chosen tokens only; nothing is computed for gradients.

Prompts are padded on the right and every token is looked at by its own place, so that a batch gives what each prompt
would give alone (the tests hold 8 = 8 x 1, up to rounding).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.errors import CheckpointError, DataError, MachineError
from alignkeep.models.architecture import Writer, blocks_of, one_by_one
from alignkeep.models.chat import encode_prompt
from alignkeep.models.generation import context_length
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import under_adapter
from alignkeep.models.products import products
from alignkeep.progress import Progress, Silent
from alignkeep.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor


class Tokens(NamedTuple):
    """A text as tokens, and the places in it that are looked at."""

    ids: tuple[int, ...]
    places: tuple[int, ...]


class _Batch(NamedTuple):
    rows: list[int]  # which of the texts these are
    ids: Tensor
    mask: Tensor
    chosen: Tensor  # rows of the flattened batch that are looked at, text after text


def last_tokens(loaded: LoadedModel, prompts: Sequence[Prompt]) -> list[Tokens]:
    """The prompts as the model reads them, looked at where the answer begins. Raises DataError for one that is longer
    than the model's context."""
    length = context_length(loaded)
    found: list[Tokens] = []
    for number, prompt in enumerate(prompts, start=1):
        ids = tuple(encode_prompt(loaded.tokenizer, prompt))
        if not ids or (length is not None and len(ids) > length):
            raise DataError(
                f"prompt {number}",
                seen=f"{len(ids)} tokens ({prompt.text[:40]!r})",
                expected="some, and no more than the model's context" + (f" of {length}" if length else ""),
                remedy="shorten or drop it",
            )
        found.append(Tokens(ids, (len(ids) - 1,)))
    return found


def residual_states(
    loaded: LoadedModel, texts: Sequence[Tokens], *, batch_size: int = 32, progress: Progress | None = None
) -> Tensor:
    """The residual stream before every block at the one place of every text: (blocks, texts, d) float32 on the CPU.

    Raises CheckpointError naming the first block before which a number is not finite.
    """
    import torch

    path, blocks = blocks_of(loaded.model)
    width = loaded.model.get_input_embeddings().weight.shape[1]
    states = torch.empty(len(blocks), len(texts), width)
    batch: list[_Batch] = []

    def keep(block: int, _: Any, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        hidden = inputs[0] if inputs else named["hidden_states"]
        states[block, batch[-1].rows] = hidden.flatten(0, 1)[batch[-1].chosen].float().cpu()

    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            handle = block.register_forward_pre_hook(partial(keep, number), with_kwargs=True)
            stack.callback(handle.remove)
        for one in _batches(loaded, texts, batch_size, progress):
            batch[:] = [one]
            _forward(loaded.model, one, logits=False)
    for number in range(len(blocks)):
        if not bool(torch.isfinite(states[number]).all()):
            raise _not_finite(f"{path}.{number}")
    return states


def next_token_log_probs(
    loaded: LoadedModel, texts: Sequence[Tokens], *, batch_size: int = 32, progress: Progress | None = None
) -> Tensor:
    """Log-probabilities of the token after the one place of every text: (texts, vocabulary) float32 on the CPU."""
    import torch

    found: Tensor | None = None
    for one in _batches(loaded, texts, batch_size, progress):
        logits = _forward(loaded.model, one, logits=True).float().log_softmax(-1).cpu()
        found = torch.empty(len(texts), logits.shape[-1]) if found is None else found
        found[one.rows] = logits
    assert found is not None
    return found


def writer_inputs(
    loaded: LoadedModel,
    texts: Sequence[Tokens],
    writers: Sequence[Writer],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """What these writers are given at the chosen places: by writer's name (n, d_in) float32 on the CPU.

    n counts the places, in no certain order; of an expert only those that were routed to it. Raises CheckpointError
    naming the writer whose inputs are not finite.
    """
    import torch

    parts: dict[str, list[Tensor]] = {writer.name: [] for writer in writers}
    batch: list[_Batch] = []
    looking = False  # within a look at experts the other hooks rest

    def keep(name: str, _: Any, inputs: tuple[Tensor, ...]) -> None:
        if not looking:
            parts[name].append(inputs[0].flatten(0, -2)[batch[-1].chosen].float().cpu())

    def keep_fused(some: Sequence[Writer], module: Any, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        nonlocal looking
        if looking:
            return
        looking = True
        try:
            for name, rows in _inside(some, module, batch[-1], inputs, named):
                parts[name].append(rows.float().cpu())
        finally:
            looking = False

    with ExitStack() as stack:
        for place, some in _by_place(loaded.model, writers):
            hook = partial(keep, some[0].name) if place is None else partial(keep_fused, some)
            module = some[0].module if place is None else place
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=place is not None).remove)
        for one in _batches(loaded, texts, batch_size, progress):
            batch[:] = [one]
            _forward(loaded.model, one, logits=False)
    found: dict[str, Tensor] = {}
    for writer in writers:
        rows = parts[writer.name]
        found[writer.name] = torch.cat(rows) if rows else torch.empty(0, writer.width)
        if not bool(torch.isfinite(found[writer.name]).all()):
            raise _not_finite(writer.name)
    return found


def _by_place(model: Any, writers: Sequence[Writer]) -> Iterator[tuple[Any, list[Writer]]]:
    """Writers with the module at whose door their inputs are seen: None is their own. Of a matrix that a module holds
    beside others it is the module around that one, which is given the tokens as they come, or in the block itself the
    one with the matrix."""
    import torch
    from transformers.pytorch_utils import Conv1D

    names = {id(module): name for name, module in model.named_modules()}
    blocks = {id(block) for block in blocks_of(model)[1]}
    fused: dict[int, list[Writer]] = {}
    for writer in writers:
        if writer.expert is None and (isinstance(writer.module, torch.nn.Linear | Conv1D) or not writer.is_matrix):
            yield None, [writer]
        else:
            fused.setdefault(id(writer.module), []).append(writer)
    for some in fused.values():
        module = some[0].module
        around = model.get_submodule(names[id(module)].rpartition(".")[0])
        yield (module if id(around) in blocks else around), some


def _inside(
    writers: Sequence[Writer], place: Any, batch: _Batch, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """What matrices within a module are given at the chosen tokens: the module is run once more on these alone."""
    import torch
    from torch.utils import _pytree

    tokens = batch.ids.numel()

    def chosen(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.shape[:-1].numel() != tokens:
            return value
        rows = value.flatten(0, -2)[batch.chosen]
        return rows if value.ndim == 2 else rows[None]

    weights = {writer.parameter: getattr(writer.module, writer.parameter) for writer in writers}
    with one_by_one(place), products(weights) as seen:
        place(*_pytree.tree_map(chosen, inputs), **_pytree.tree_map(chosen, dict(named)))
    for writer in writers:
        for product in seen[writer.parameter]:
            if product.expert == writer.expert:
                rows = product.inputs
                yield writer.name, rows[(rows != 0).any(-1)]  # experts side by side are given 0 for the others' tokens


def _batches(loaded: LoadedModel, texts: Sequence[Tokens], size: int, progress: Progress | None) -> Iterator[_Batch]:
    """Texts of like length together, the longest first, so that a lack of memory shows at once."""
    import torch

    progress = progress or Silent()
    order = sorted(range(len(texts)), key=lambda at: -len(texts[at].ids))
    progress.start("activations of prompts", len(texts))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        length = len(texts[rows[0]].ids)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(texts[row].ids)] = torch.tensor(texts[row].ids)
            mask[at, : len(texts[row].ids)] = 1
        chosen = [at * length + place for at, row in enumerate(rows) for place in texts[row].places]
        device = loaded.model.device
        yield _Batch(rows, ids.to(device), mask.to(device), torch.tensor(chosen, device=device))
        progress.advance(len(rows))
    progress.done()


def _forward(model: Any, batch: _Batch, *, logits: bool) -> Tensor:
    """One pass. Logits are those of the chosen places (with none asked for, of one that nobody looks at)."""
    import torch

    length = batch.ids.shape[1]
    places = batch.chosen % length if logits else batch.chosen[:1] % length
    wanted = places.unique()
    chosen = "logits_to_keep" in inspect.signature(under_adapter(model).forward).parameters
    keep = {"logits_to_keep": wanted} if chosen else {}
    with torch.inference_mode(), _memory(len(batch.rows)):
        output = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **keep).logits
        if not logits:
            return output
        rows = batch.chosen // length
        return output[rows, (wanted == places[:, None]).int().argmax(1) if chosen else places]


@contextmanager
def _memory(size: int) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "batch_size",
            seen=f"out of memory with {size} prompts at once",
            expected="room for their activations",
            remedy="lower the batch size",
        ) from error


def _not_finite(name: str) -> CheckpointError:
    return CheckpointError(
        name,
        seen="activations that are not finite",
        expected="finite numbers",
        remedy="load the model with --dtype bfloat16 or float32",
    )
