"""One vector for every chat: hidden states of the model to be tuned, of the last token or the mean over some.

Texts of like length share a batch, padded on the right, the longest first. Vectors are kept on disk in parts, so that
a killed run goes on behind the last part, and several processes make different ones.

Source: SOT, arXiv:2601.07200: last token of prompt and answer, last layer after the final norm, frozen. The means over
the answer's tokens, or the prompt's, are ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from safetensors import safe_open

from alignkeep.checkpoint.files import write_tensors
from alignkeep.checkpoint.parts import is_whole, seal
from alignkeep.errors import CheckpointError, MachineError, RecipeError
from alignkeep.models.architecture import blocks_of
from alignkeep.models.chat import IGNORED, EncodedExample
from alignkeep.models.examples import encoded
from alignkeep.models.generation import context_length
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import under_adapter
from alignkeep.models.processes import Processes
from alignkeep.progress import Progress, Silent
from alignkeep.types import Example

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS = ("last", "mean", "answer", "prompt")  # and several of them, joined by +
PART = 256  # texts to a file, and to a process at a time (chosen)


class Embedded(NamedTuple):
    """Vectors (n, d) float32 on the CPU; of the `truncated` the end was cut off before it was looked at."""

    vectors: Tensor
    truncated: int


def embed(
    loaded: LoadedModel,
    examples: Sequence[Example],
    store: Path,
    *,
    layer: int | None = None,
    pooling: str = "last",
    batch_size: int = 32,
    max_length: int = 1024,
    what: str = "example",
    too_long: Literal["refuse", "cut"] = "refuse",
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """The examples' vectors, in their order. `layer` None is behind the final norm, a number before that block;
    `pooling` takes the last token's state or the mean over all, over the answers' or over all other tokens (a vector of
    zeros where none of these is left), or several, joined by +, side by side. `what` and a number name an example in
    errors.

    What `store` holds of this very work is taken from there. Raises RecipeError for a layer that the model has not,
    DataError for no examples, one that the template refuses or of which no token of the answer is left, CheckpointError
    for numbers that are not finite and a store of other work, MachineError where memory runs out.
    """
    import torch
    from safetensors.torch import load_file

    processes, progress = processes or Processes(), progress or Silent()
    _check(loaded, layer, pooling)
    length = min(max_length, context_length(loaded) or max_length)
    rows, truncated = encoded(loaded.tokenizer, examples, length, what, too_long=too_long)
    work = _fingerprint(loaded, rows, layer, pooling)
    order = sorted(range(len(rows)), key=lambda at: (-len(rows[at].input_ids), at))
    parts = [order[start : start + PART] for start in range(0, len(order), PART)]
    store.mkdir(parents=True, exist_ok=True)
    files = [store / f"part-{number:05d}.safetensors" for number in range(len(parts))]
    mine = [number for number in range(len(parts)) if number % processes.count == processes.rank]
    progress.start("embeddings", sum(len(parts[number]) for number in mine))
    for number in mine:
        if is_whole(files[number]):
            _check_part(files[number], work)
        else:
            batches = _batches([rows[at] for at in parts[number]], batch_size)
            vectors = torch.cat([_look(loaded, batch, layer, pooling) for batch in batches])
            _check_finite(vectors, parts[number], what)
            seal(write_tensors(files[number], {"vectors": vectors}, {"work": work}))
        progress.advance(len(parts[number]))
    progress.done()
    processes.wait()
    found = torch.cat([load_file(file)["vectors"] for file in files])
    return Embedded(found[torch.tensor(order).argsort()], truncated)


def embed_texts(texts: Sequence[str], encoder: str, *, batch_size: int = 32, device: str = "cpu") -> Tensor:
    """Vectors of texts by a sentence-transformers model: (n, d) float32 on the CPU. Raises RecipeError without that
    library, CheckpointError where it cannot load the model."""
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise no_encoder(encoder) from error
    try:
        model: Any = SentenceTransformer(encoder, device=device)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            encoder, seen=f"{type(error).__name__}: {str(error)[:200]}", expected="a sentence-transformers model",
            remedy="name its folder or hub id",
        ) from error  # fmt: skip
    found = model.encode(list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    return found.float().cpu()


def no_encoder(encoder: str) -> RecipeError:
    return RecipeError(
        "embed.encoder", seen=f"{encoder}, without the package sentence-transformers", expected="it installed",
        remedy="pip install sentence-transformers, or give --model",
    )  # fmt: skip


def no_such_layer(layer: int, count: int) -> RecipeError:
    return RecipeError(
        "embed.layer", seen=str(layer), expected=f"0 to {count - 1}, or none for the last state",
        remedy="choose one of these",
    )  # fmt: skip


def _fingerprint(loaded: LoadedModel, rows: Sequence[EncodedExample], layer: int | None, pooling: str) -> str:
    """Of what a part's vectors depend on; the model itself is the caller's to tell apart."""
    digest = sha256(f"{layer} {pooling} {loaded.model.dtype}".encode("ascii"))
    has_spans = {"answer", "prompt"} & set(pooling.split("+"))
    for row in rows:
        digest.update(f"\n{row.input_ids}{row.labels if has_spans else ''}".encode("ascii"))
    return digest.hexdigest()


def _check_part(file: Path, work: str) -> None:
    with safe_open(file, framework="pt") as part:
        if (part.metadata() or {}).get("work") != work:
            raise CheckpointError(
                str(file), seen="vectors of other texts or settings, or of another dtype",
                expected="those of this work", remedy="delete the folder, or name another",
            )  # fmt: skip


def _batches(rows: Sequence[EncodedExample], size: int) -> Iterator[Sequence[EncodedExample]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _look(loaded: LoadedModel, rows: Sequence[EncodedExample], layer: int | None, pooling: str) -> Tensor:
    """The vectors of one batch."""
    import torch

    model = under_adapter(loaded.model)
    ids = torch.zeros(len(rows), max(len(row.input_ids) for row in rows), dtype=torch.long)
    mask, answered = torch.zeros_like(ids), torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row.input_ids)] = torch.tensor(row.input_ids)
        mask[at, : len(row.input_ids)] = 1
        answered[at, : len(row.labels)] = (torch.tensor(row.labels) != IGNORED).long()
    seen: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        seen.append(inputs[0] if inputs else named["hidden_states"])

    handle = None
    if layer is not None:
        handle = blocks_of(loaded.model)[1][layer].register_forward_pre_hook(keep, with_kwargs=True)
    inner = model.base_model  # without the output embeddings
    options = {"use_cache": False} if "use_cache" in inspect.signature(inner.forward).parameters else {}
    try:
        with torch.inference_mode():
            output = inner(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **options)
            states = output.last_hidden_state if layer is None else seen[-1]
            return _pooled(states, mask.to(states.device), answered.to(states.device), pooling).cpu().clone()
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "embed.batch_size", seen=f"out of memory with {len(rows)} texts at once", expected="room for them",
            remedy="lower the batch size; the parts that are finished are kept",
        ) from error  # fmt: skip
    finally:
        if handle is not None:
            handle.remove()


def _pooled(states: Tensor, mask: Tensor, answered: Tensor, pooling: str) -> Tensor:
    """Of states (n, t, d), with 1 where a token is, and is of an answer: (n, d) times the number of parts."""
    import torch

    tokens = {"mean": mask, "answer": answered, "prompt": mask - answered}
    found: list[Tensor] = []
    for part in pooling.split("+"):
        if part == "last":
            last = mask.sum(1) - 1
            found.append(states[torch.arange(len(states), device=states.device), last].float())
        else:
            summed = (states.float() * tokens[part][:, :, None]).sum(1)
            found.append(summed / tokens[part].sum(1, keepdim=True).clamp(min=1))
    return torch.cat(found, 1)


def _check(loaded: LoadedModel, layer: int | None, pooling: str) -> None:
    if not set(pooling.split("+")) <= set(POOLINGS):
        raise ValueError(f"need pooling {', '.join(POOLINGS)}, or some of them joined by +, got {pooling}")
    if layer is None:
        return
    count = len(blocks_of(loaded.model)[1])
    if not 0 <= layer < count:
        raise no_such_layer(layer, count)


def _check_finite(vectors: Tensor, rows: Sequence[int], what: str) -> None:
    bad = (~vectors.isfinite().all(1)).nonzero()
    if len(bad):
        raise CheckpointError(
            f"{what} {rows[int(bad[0])] + 1}", seen="a hidden state that is not finite", expected="finite numbers",
            remedy="load the model with --dtype bfloat16 or float32",
        )  # fmt: skip
