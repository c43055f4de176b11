"""All that can be said about an alignment before its weights are loaded: every fault of the user's is found here."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignkeep.align.arguments import grpo_config
from alignkeep.align.config import AlignConfig
from alignkeep.align.reference import reference_tokens
from alignkeep.align.reward import GIVEN, check_reward
from alignkeep.data import read_references
from alignkeep.errors import DataError, RecipeError
from alignkeep.models.chat import encode_prompt, taken_turns
from alignkeep.models.folders import localise
from alignkeep.models.loading import load_tokenizer
from alignkeep.trainers.adapters import lora_config
from alignkeep.trainers.arguments import training_dtype
from alignkeep.trainers.base import dtype_of, full_model, skeleton_of
from alignkeep.types import Checkpoint, Prompt, Reference

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.grpo_config import GRPOConfig


@dataclass(frozen=True)
class Prepared:
    """A checked alignment. `skeleton` is the model without numbers; of the references `cut` are longer than an answer
    may get; `new_tokens` is what is used."""

    config: AlignConfig
    base: Path
    arguments: GRPOConfig
    adapter: LoraConfig | None
    tokenizer: PreTrainedTokenizerBase
    skeleton: Any
    data: Dataset
    held_out: tuple[Reference, ...]
    new_tokens: int
    longest_prompt: int
    cut: int
    dtype: str
    base_dtype: str
    asked_tokens: int
    data_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a careful person would want to be told."""
        found = [*self.data_notes]
        if self.dtype != self.base_dtype:
            found.append(f"the base is {self.base_dtype} and is trained in {self.dtype}")
        if self.new_tokens < self.asked_tokens:
            found.append(
                f"answers have at most {self.new_tokens} tokens: the longest prompt takes {self.longest_prompt} of the "
                "model's context"
            )
        if self.cut:
            found.append(f"{self.cut} references were cut off at {self.new_tokens} tokens")
        return tuple(found)


def base_of(config: AlignConfig) -> Checkpoint:
    """The model to align. Raises as `full_model` does."""
    return full_model(config.model, config.load.revision, "align")


def prepare(config: AlignConfig) -> Prepared:
    """Check settings, data, tokenizer and target modules. Raises what each of them raises."""
    config.load.refuse_quantization("align", "leave it out; train has it for adapters")
    arguments = grpo_config(config)
    check_reward(config.reward)
    _check_engine(arguments)
    base = cast(Path, localise(base_of(config), with_code=config.load.trust_remote_code).folder)
    rows = read_references(config.data, required=config.method == "grao", columns=config.columns)
    if len(rows) < config.batch_size:
        raise DataError(
            config.data, seen=f"{len(rows)} prompts", expected=f"at least the {config.batch_size} of one step",
            remedy="lower batch_size, or give more prompts",
        )  # fmt: skip
    _check_columns(rows, config.data)
    held_out = _held_out(config, rows)
    skeleton = skeleton_of(base, config.load)
    tokenizer = load_tokenizer(config.model, config.load)
    template: Any = arguments.chat_template_kwargs
    twice = sorted(config.load.template.keys() & (template or {}).keys())
    if twice:
        raise RecipeError(
            f"trainer.chat_template_kwargs.{twice[0]}",
            seen="the same argument in load.template, which would decide",
            expected="one place for it",
            remedy="drop one of the two",
        )
    lengths = [len(encode_prompt(tokenizer, Prompt(row.messages), template)) for row in (*rows, *held_out)]
    new_tokens = _room(config, skeleton, lengths)
    arguments.max_completion_length = new_tokens
    base_dtype, dtype = dtype_of(base), training_dtype(config.load, has_adapter=config.lora is not None)
    return Prepared(
        config=config,
        base=base,
        arguments=arguments,
        adapter=None if config.lora is None else lora_config(config.lora, skeleton, "align"),
        tokenizer=tokenizer,
        skeleton=skeleton,
        data=as_dataset(rows, tokenizer, config.data),
        held_out=tuple(held_out),
        new_tokens=new_tokens,
        longest_prompt=max(lengths),
        cut=_cut(tokenizer, rows, new_tokens, template) if config.method == "grao" else 0,
        dtype=base_dtype if dtype == "auto" else dtype,
        base_dtype=base_dtype,
        asked_tokens=config.sampling.max_new_tokens,
        data_notes=rows.notes,
    )


def as_chat(tokenizer: Any, row: Reference) -> list[dict[str, str]]:
    """The turns as TRL and the template take them."""
    return [{"role": message.role, "content": message.content} for message in taken_turns(tokenizer, row.messages)]


def as_dataset(rows: Sequence[Reference], tokenizer: Any, where: str) -> Dataset:
    """TRL's data: chats, references, and what else the rows say. Raises DataError for a column of several types."""
    import datasets
    import pyarrow

    columns: dict[str, list[Any]] = {
        name: [row.columns.get(name) for row in rows] for name in sorted({name for row in rows for name in row.columns})
    }
    columns |= {"prompt": [as_chat(tokenizer, row) for row in rows]}
    if any(row.answer is not None for row in rows):
        columns["reference"] = [row.answer for row in rows]
    try:
        return datasets.Dataset.from_dict(columns)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise DataError(
            where, seen=f"a column of several types ({str(error)[:160]})", expected="one type in every column",
            remedy="mend or drop the column",
        ) from error  # fmt: skip


def _check_columns(rows: Sequence[Reference], where: str) -> None:
    """Raises DataError for a column that is TRL's own."""
    taken = sorted({name for row in rows for name in row.columns} & GIVEN)
    if taken:
        raise DataError(
            where, seen=f"a column `{taken[0]}`", expected="columns that TRL does not give to rewards itself",
            remedy="rename it",
        )  # fmt: skip


def _held_out(config: AlignConfig, rows: list[Reference]) -> list[Reference]:
    """Some of the held-out prompts, drawn with the seed. Raises DataError for a prompt that is learned from too."""
    if config.held_out is None:
        return []
    found = read_references(config.held_out.data, columns=config.columns)
    _check_columns(found, config.held_out.data)
    learned = {row.messages for row in rows}
    shared = [row for row in found if row.messages in learned]
    if shared:
        raise DataError(
            config.held_out.data,
            seen=f"{len(shared)} of {len(found)} prompts that stand in {config.data} too",
            expected="prompts that are not learned from",
            remedy="take them out of one of the two",
        )
    if len(found) <= config.held_out.limit:
        return found
    chosen = random.Random(config.seed).sample(range(len(found)), config.held_out.limit)
    return [found[at] for at in sorted(chosen)]


def _check_engine(arguments: GRPOConfig) -> None:
    if arguments.use_vllm and find_spec("vllm") is None:
        raise RecipeError(
            "align.trainer.use_vllm", seen="no vllm installed", expected="it beside alignkeep",
            remedy="install alignkeep[vllm], or leave --backend vllm out",
        )  # fmt: skip


def _room(config: AlignConfig, skeleton: Any, lengths: list[int]) -> int:
    """How many tokens an answer may have behind the longest prompt, which may not be a mere outlier."""
    context, asked = getattr(skeleton.config.get_text_config(), "max_position_embeddings", None), config.sampling
    if context is None:
        return asked.max_new_tokens
    longest, usual = max(lengths), sorted(lengths)[len(lengths) // 2]
    room, usually = (min(asked.max_new_tokens, context - length) for length in (longest, usual))
    if room < 1 or 2 * room < usually:
        raise DataError(
            config.data,
            seen=f"a prompt of {longest} tokens, where the median has {usual}",
            expected=f"one that leaves as good as all answers their room in the model's context of {context} tokens",
            remedy="shorten or drop the longest prompts, or lower sampling.max_new_tokens",
        )
    return room


def _cut(tokenizer: Any, rows: list[Reference], limit: int, template: Any) -> int:
    """References beyond the limit. Raises DataError for one that does not go on where the model begins."""
    return sum(
        len(reference_tokens(tokenizer, as_chat(tokenizer, row), row.answer, template=template)) > limit for row in rows
    )
