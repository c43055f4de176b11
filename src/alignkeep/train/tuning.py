"""The tune itself: load, build the trainer, guard and watch it, train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.checkpoint.files import write_tensors
from alignkeep.checkpoint.parts import is_whole, seal
from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.models.config import LoadConfig
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.models.matrices import untouched
from alignkeep.progress import Progress
from alignkeep.train.config import TrainConfig
from alignkeep.train.defence import Base, Outcome
from alignkeep.train.encoding import as_dataset
from alignkeep.train.prepare import Prepared, base_of
from alignkeep.trainers.adapters import check_adapted, freeze_beside_language
from alignkeep.trainers.arguments import refused_by_trl
from alignkeep.trainers.failures import train_from
from alignkeep.trainers.processes import by_first

if TYPE_CHECKING:
    from alignkeep.train.trainer import WeightedSFTTrainer

_EXPERTS = ("num_local_experts", "n_routed_experts", "moe_num_experts")  # what configs call how many there are
MEASURED_NAME = "measured.safetensors"  # of the base, by a defence: beside the checkpoints while the tune runs


class Tuned(NamedTuple):
    """The trainer after its last step, and what its defence says of the tune."""

    trainer: WeightedSFTTrainer
    outcome: Outcome


def tune(config: TrainConfig, prepared: Prepared, work: Path, progress: Progress) -> Tuned:
    """Train in `work`, from its last whole checkpoint where there is one."""
    from transformers import PrinterCallback

    from alignkeep.train.trainer import WeightedSFTTrainer
    from alignkeep.trainers.watch import Watch, last_checkpoint

    checkpoints = work / "trainer"
    prepared.arguments.output_dir = str(checkpoints)
    # The trainer places the model itself, which processes of one machine must not do on one device; packed weights stay
    # where they are made.
    device = str(prepared.arguments.device) if config.load.quantization else "cpu"
    load = LoadConfig(**{**config.load.model_dump(), "device": device, "dtype": prepared.dtype})
    loaded = load_model(config.model, load)
    if not config.has_adapter:
        freeze_beside_language(loaded.model)
    fit_for_trl(loaded.model, config.trainer.get("router_aux_loss_coef"))
    try:
        trainer = WeightedSFTTrainer(
            model=loaded.model,
            args=prepared.arguments,
            train_dataset=as_dataset(prepared.rows, prepared.arguments, prepared.max_length),
            processing_class=loaded.tokenizer,
            peft_config=prepared.adapter,
            callbacks=[prepared.probe] if prepared.probe is not None else [],
        )
    except (ValueError, TypeError, ImportError) as error:
        raise refused_by_trl(error, "train") from error
    if config.has_adapter:
        check_adapted(config.lora, trainer.model, "train")
    check_loss(trainer.model)
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to --json
    latest = by_first(lambda: last_checkpoint(checkpoints))
    if prepared.probe is not None and latest is None:
        prepared.probe.prepare(trainer.model, loaded.tokenizer)
    outcome = _defend(config, prepared, trainer, work, progress)
    trainer.add_callback(Watch(progress, "train"))  # after all that put something into a checkpoint
    train_from(latest, trainer, "train")
    _refuse_base(prepared)
    return Tuned(trainer, outcome())


def fit_for_trl(model: Any, coefficient: float | None = None) -> None:
    """What TRL's loss looks up in a model and does not find in some: the model under the head, and how many experts
    there are. Raises RecipeError where it will not find them, after a trial of three tokens; `coefficient` is that of
    the routers' balancing loss, None being the model's own."""
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"
    text = model.config.get_text_config()
    used = getattr(text, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
    balances = bool(hasattr(text, "output_router_logits") and used)
    if balances and not hasattr(text, "num_experts"):
        text.num_experts = next((getattr(text, name) for name in _EXPERTS if getattr(text, name, None)), None)
    tokens = torch.tensor([[1, 2, 3]], device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        given = model.base_model(
            input_ids=tokens, use_cache=False, **({"output_router_logits": True} if balances else {})
        )
    if not hasattr(given, "last_hidden_state"):
        raise RecipeError(
            "train.model",
            seen=f"{type(model).__name__}, whose parts give no last_hidden_state",
            expected="a head over a model that gives one, from which TRL computes the loss",
            remedy="take a model of another family",
        )
    if not balances:
        return
    try:
        load_balancing_loss_func(given.router_logits, text.num_experts, text.num_experts_per_tok)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise RecipeError(
            "train.trainer.router_aux_loss_coef",
            seen=f"{used:g}, for routers that show no such logits ({type(error).__name__}: {str(error)[:120]})",
            expected="routers whose balancing loss TRL can compute",
            remedy="give --set train.trainer.router_aux_loss_coef=0",
        ) from error


def check_loss(model: Any) -> None:
    """TRL computes log-probabilities from the model under the head and the head's matrix. Raises RecipeError where a
    trial of four tokens shows that they are not the model's own (a head of several layers), or where it fails, in
    training mode too (Reformer takes texts of one length only there)."""
    import torch

    tokens = torch.tensor([[1, 2, 3, 1]], device=model.get_input_embeddings().weight.device)
    try:
        with untouched(model), torch.no_grad():
            own = model(input_ids=tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            fused = model(input_ids=tokens, labels=tokens, fused_lm_head=True).log_probs.float()
            with torch.random.fork_rng([tokens.device] if tokens.is_cuda else []):  # of dropout
                model.train()(input_ids=tokens, use_cache=False)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise _no_loss(f"{type(error).__name__}: {str(error)[:200]}") from error
    off = (own.gather(-1, tokens[:, 1:, None])[..., 0] - fused).abs().max()
    if not off <= (1e-3 if model.dtype == torch.float32 else 0.1):
        raise _no_loss(f"log-probabilities that are {float(off):.2g} from the model's own")


def _no_loss(seen: str) -> RecipeError:
    return RecipeError(
        "train.model", seen=f"under TRL's loss {seen}",
        expected="a head of one matrix over a model that trains on text",
        remedy="take a model of another family",
    )  # fmt: skip


def _refuse_base(prepared: Prepared) -> None:
    """A tune that no look after the first was within has nothing to give."""
    if prepared.probe is not None and prepared.probe.stopped and prepared.probe.last_safe == 0:
        fallen = prepared.probe.history[0].refusal_log_odds - prepared.probe.history[-1].refusal_log_odds
        raise NoEffectError(
            "train.probe.stop_below",
            seen=f"log-odds of refusal that fell by {fallen:.1f} nats before the look at step "
            f"{prepared.probe.history[-1].step}",
            expected=f"a look within {prepared.probe.stop_below:g} nats after the first step",
            remedy="set probe.every lower, lower learning_rate, or tune with method alignguard",
        )


def _defend(
    config: TrainConfig, prepared: Prepared, trainer: WeightedSFTTrainer, work: Path, progress: Progress
) -> Callable[[], Outcome]:
    """Measure the base for the tune's defence, or read what a run that was killed has measured, and attach it."""
    from safetensors.torch import load_file

    defence, kept = prepared.defence, work / MEASURED_NAME
    if defence is None:
        return lambda: Outcome({})
    if by_first(lambda: is_whole(kept)):
        return defence.attach(load_file(kept), trainer)
    checkpoint = replace(base_of(config), is_adapter=config.has_adapter)
    loaded = LoadedModel(trainer.model, prepared.tokenizer, checkpoint)
    measured = defence.measure(Base(loaded, prepared.max_length, progress, by_first))
    if measured:
        by_first(lambda: (write_tensors(kept, measured, {}), seal(kept)))
    return defence.attach(measured, trainer)
