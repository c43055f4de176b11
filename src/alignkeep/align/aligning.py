"""The alignment itself: load, build the trainer, watch it, train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.align.config import AlignConfig
from alignkeep.align.prepare import Prepared
from alignkeep.align.reward import Reward, load_reward
from alignkeep.checkpoint.folders import leads
from alignkeep.errors import RecipeError
from alignkeep.models.batching import is_right_padded
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.generation import stop_ids
from alignkeep.models.loading import load_model
from alignkeep.progress import Progress
from alignkeep.trainers.adapters import check_adapted, freeze_beside_language
from alignkeep.trainers.arguments import refused_by_trl
from alignkeep.trainers.failures import train_from
from alignkeep.trainers.processes import by_first
from alignkeep.trainers.watch import Watch, last_checkpoint

if TYPE_CHECKING:
    from alignkeep.align.held_out import HeldOut

JUDGEMENTS = "judgements.jsonl"  # what a judge said, beside the checkpoints


class Aligned(NamedTuple):
    """The trainer after its last step, and what was seen of the held-out prompts."""

    trainer: Any  # GRAOTrainer or CarefulGRPOTrainer
    held_out: HeldOut | None


def align_model(config: AlignConfig, prepared: Prepared, work: Path, progress: Progress) -> Aligned:
    """Train in `work`, from its last whole checkpoint where there is one."""
    from transformers import PrinterCallback

    from alignkeep.align.engine import CarefulGRPOTrainer
    from alignkeep.align.trainer import GRAOTrainer

    checkpoints = work / "trainer"
    prepared.arguments.output_dir = str(checkpoints)
    rank = "" if leads() else f".{prepared.arguments.process_index}"
    reward = load_reward(config.reward, config.load, work / f"{JUDGEMENTS}{rank}")
    # The trainer places the model itself, which processes of one machine must not do on one device.
    load = LoadConfig(**{**config.load.model_dump(), "device": "cpu", "dtype": prepared.dtype})
    loaded = load_model(config.model, load)
    if config.lora is None:
        freeze_beside_language(loaded.model)
    # TRL would not know the end of a turn that a template alone brings, as that of a base model: samples, references
    # and held-out answers end alike.
    loaded.model.generation_config.eos_token_id = stop_ids(loaded)
    if prepared.arguments.use_vllm:
        given: Any = prepared.arguments.generation_kwargs or {}
        prepared.arguments.generation_kwargs = {"stop_token_ids": stop_ids(loaded), **given}
    else:
        _check_samples(loaded.model)
    held_out = _held_out(config, prepared, reward, loaded.tokenizer)
    trainer_of: Any = GRAOTrainer if config.method == "grao" else CarefulGRPOTrainer
    try:
        trainer = trainer_of(
            model=loaded.model,
            reward_funcs=reward,
            args=prepared.arguments,
            train_dataset=prepared.data,
            processing_class=loaded.tokenizer,
            peft_config=prepared.adapter,
            callbacks=[] if held_out is None else [held_out],
        )
    except (ValueError, TypeError, ImportError) as error:
        raise refused_by_trl(error, "align") from error
    if held_out is not None and trainer.is_fsdp_enabled:
        raise RecipeError(
            "align.held_out", seen="a model in shards", expected="a model that a process has whole",
            remedy="leave held_out out and evaluate the result",
        )  # fmt: skip
    if config.lora is not None:
        check_adapted(config.lora, trainer.model, "align")
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to --json
    trainer.add_callback(Watch(progress, "align"))  # after all that put something into a checkpoint
    latest = by_first(lambda: last_checkpoint(checkpoints))
    train_from(latest, trainer, "align")
    return Aligned(trainer, held_out)


def _check_samples(model: Any) -> None:
    """TRL samples answers to prompts of several lengths at once."""
    if not is_right_padded(model):
        raise RecipeError(
            "align.model", seen=f"{type(model).__name__}, which answers a padded prompt otherwise than alone",
            expected="a model that samples in batches", remedy="take a model of another family",
        )  # fmt: skip


def _held_out(config: AlignConfig, prepared: Prepared, reward: Reward, tokenizer: Any) -> HeldOut | None:
    if config.held_out is None:
        return None
    from alignkeep.align.held_out import HeldOut

    generation = GenerationConfig(max_new_tokens=prepared.new_tokens)
    template: Any = prepared.arguments.chat_template_kwargs  # read from JSON by then, if it was given so
    return HeldOut(
        prepared.held_out, reward, generation, every=config.held_out.every, tokenizer=tokenizer,
        template=template,
    )  # fmt: skip
