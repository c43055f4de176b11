"""Greedy generation with vLLM, for GPUs and many prompts. Optional: `pip install "alignkeep[vllm]"`.

vLLM loads the weights itself; the model that was loaded and checked by `load_model` moves to main memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkeep.errors import RecipeError
from alignkeep.models.adapters import start_in_base
from alignkeep.models.folders import base_of
from alignkeep.models.headers import load_json

if TYPE_CHECKING:
    from alignkeep.models.loading import LoadedModel


def answer_batches(
    loaded: LoadedModel,
    asked: Sequence[tuple[int, list[int], int]],
    ends: list[int],
    arguments: Mapping[str, Any] | None = None,
) -> Iterator[list[tuple[int, list[int]]]]:
    """Batches of (index, new tokens up to and with an end token) for prompts given as (index, tokens, most new tokens).

    `arguments` are further ones of the engine. Raises RecipeError where vLLM is not installed.
    """
    engine, params, adapters = _engine(loaded, arguments or {})
    adapter = adapters if loaded.adapter_on else None
    size = 1024  # prompts handed over at once; vLLM batches within, this is how often answers are stored
    for start in range(0, len(asked), size):
        batch = asked[start : start + size]
        outputs = engine.generate(
            [{"prompt_token_ids": ids} for _, ids, _ in batch],
            [params(temperature=0.0, max_tokens=room, stop_token_ids=ends) for _, _, room in batch],
            lora_request=adapter,
            use_tqdm=False,
        )
        answers = []
        for (index, _, _), output in zip(batch, outputs, strict=True):
            said = output.outputs[0]
            answers.append((index, _up_to_end(said, ends)))
        yield answers


def _up_to_end(said: Any, ends: list[int]) -> list[int]:
    """The tokens of an answer, and the one that ended it. vLLM says which of ours that was, and nothing where it was
    the model's own end token."""
    tokens = [token for token in said.token_ids if token not in ends]
    if said.finish_reason == "length":
        return tokens
    last = [token for token in said.token_ids if token in ends]
    return [*tokens, said.stop_reason if said.stop_reason in ends else last[-1] if last else ends[0]]


def _engine(loaded: LoadedModel, arguments: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The engine of this model (made once), the class of its sampling parameters, and its adapter's request."""
    _refuse_start(loaded)
    try:
        from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError(
            "backend",
            seen="vllm, which is not installed here",
            expected="an installed backend",
            remedy='pip install "alignkeep[vllm]", or take --backend transformers',
        ) from error
    checkpoint = loaded.checkpoint
    folder = checkpoint.folder
    if folder is None:
        raise RecipeError("backend", seen="a model without a folder", expected="a folder", remedy="load_model first")
    adapter = None
    if loaded.engine is None:
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        loaded.model.to("cpu")
        options: dict[str, Any] = {"dtype": dtype, "seed": 0, **arguments}
        source = str(folder)
        if checkpoint.is_adapter:
            source, _ = base_of(folder, checkpoint.base)
            rank = load_json(folder / "adapter_config.json").get("r", 16)
            options |= {"enable_lora": True, "max_lora_rank": rank}
        loaded.engine = LLM(model=source, **options)
    if checkpoint.is_adapter:
        adapter = LoRARequest("adapter", 1, str(folder))
    return loaded.engine, SamplingParams, adapter


def _refuse_start(loaded: LoadedModel) -> None:
    """vLLM adds an adapter to the base as it is, also one whose start was taken out of the base."""
    checkpoint = loaded.checkpoint
    if not checkpoint.is_adapter or checkpoint.folder is None:
        return
    start = start_in_base(load_json(checkpoint.folder / "adapter_config.json"))
    if start is not None:
        raise RecipeError(
            "backend",
            seen=f"vllm, for an adapter whose init_lora_weights is {start}",
            expected="transformers, which takes the adapter's start out of the base again",
            remedy="take --backend transformers, or merge it first (alignkeep merge BASE ADAPTER --weight 1)",
        )
