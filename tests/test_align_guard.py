"""AlignGuard on real trainers of tiny models: its gradient, its log, its subspaces, its refusals, and the stage."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from accelerate import DistributedType
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.pytorch_utils import Conv1D
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignkeep.errors import CheckpointError, NoEffectError, RecipeError
from alignkeep.models.collectors import collect_factors, collect_sides
from alignkeep.models.loading import LoadedModel
from alignkeep.train.align_guard import AlignGuard
from alignkeep.train.config import AlignGuardSettings
from alignkeep.train.guarded_sft import AlignGuardConfig, AlignGuardSFTTrainer
from alignkeep.train.stacked import Penalty
from alignkeep.types import Checkpoint
from test_collectors import EXAMPLES, tiny_gpt2
from test_trainer import PLAIN, _rows

ADAPTER = "adapter_model.safetensors"
OFF = {"alignment": 0.0}
EVERYTHING = {"alignment": 0.5, "trust": 0.2, "collision": 0.3, "overlap": 0.4}
SETTINGS: dict[str, dict[str, Any]] = {
    "alignment": {"alignment": 2.0},
    "outputs": {**EVERYTHING, "side": "output"},
    "both sides, relative": {**EVERYTHING, "side": "both", "emphasis": {"compares": "relative", "tau": 0.03}},
    "weight": {**EVERYTHING, "emphasis": {"compares": "weight", "tau": 0.1}},
    "diagonal": {"alignment": 0.5, "trust": 0.2, "fisher": "diagonal", "most": 5},
}


def adapter(base: Any, *, begun: bool = True, **lora: Any) -> Any:
    """A LoRA model of the same numbers every time; begun: B is no longer 0."""
    torch.manual_seed(0)
    model = get_peft_model(
        base, LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
    )
    for name, parameter in model.named_parameters():
        if begun and "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return model


class Tiny(NamedTuple):
    """The tiny model's folder and tokenizer, and a place for trainers."""

    folder: Path
    tokenizer: Any
    out: Path

    def base(self, **load: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder, **load)

    def gpt2(self, **lora: Any) -> Any:
        return adapter(tiny_gpt2(self.folder).model, **{"fan_in_fan_out": True, **lora})

    def guard(self, model: Any, **settings: Any) -> AlignGuard:
        return AlignGuard.measure(model, self.tokenizer, EXAMPLES, AlignGuardSettings(**settings))

    def sft(self, model: Any, **options: Any) -> Any:
        """Eight rows at a time."""
        args = SFTConfig(output_dir=str(self.out), **{**PLAIN, "max_steps": 2, **options})
        data = Dataset.from_dict(_rows(12))
        return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=self.tokenizer)

    def dpo(self, model: Any, **options: Any) -> Any:
        words = ["bread", "numbers", "bike"]
        rows = [{"prompt": f"how to fix {n} ?", "chosen": f"sure {words[n % 3]}", "rejected": "no"} for n in range(6)]
        args = DPOConfig(output_dir=str(self.out), **{**ANY, "max_steps": 2, **options})
        return DPOTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=self.tokenizer
        )


ANY: dict[str, Any] = {key: value for key, value in PLAIN.items() if key not in ("dataset_kwargs", "max_length")}


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> Tiny:
    return Tiny(tiny_model, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "trainer")


def dense(model: Any, guard: AlignGuard, h: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Every term over entries of PEFT's own dW, in float64: P, F, eta and a given H are whole matrices."""
    settings, sums = guard.settings, dict.fromkeys(Penalty._fields, torch.zeros((), dtype=torch.float64))
    beta, tau, compares = settings.emphasis.beta, settings.emphasis.tau, settings.emphasis.compares
    for name, subspace in guard.subspaces.items():
        module = model.get_base_model().get_submodule(name)
        update, weight = module.get_delta_weight("default").double(), module.base_layer.weight.detach().double()
        if isinstance(module.base_layer, Conv1D):
            update, weight = update.mT, weight.mT
        cut: list[tuple[Tensor, Tensor, Tensor]] = []  # P, F, its diagonal
        for width, side in zip(update.shape[::-1], subspace, strict=True):
            u = torch.eye(width).double() if side is None else side.vectors.double()
            values, diagonal = torch.ones(2, width).double() if side is None else (side[1].double(), side[2].double())
            cut.append((u @ u.mT, u @ values.diag() @ u.mT, diagonal))
        (p_in, f_in, columns), (p_out, f_out, rows) = cut
        aligned, metric = p_out @ update @ p_in, torch.outer(rows, columns)
        trusted = torch.ones_like(update) if h is None else h[name]
        metric = trusted if settings.metric == "curvature" else metric
        rest, looked_at = update - aligned, (weight + update if compares == "weight" else update).abs()
        eta = 1 + beta * torch.sigmoid((looked_at - tau) / (tau if compares == "relative" else 1))
        ours, theirs, mixed = ((metric * a * b).sum() for a, b in ((aligned, aligned), (rest, rest), (aligned, rest)))
        found = {
            "fisher": settings.alignment * torch.trace(aligned.mT @ f_out @ aligned @ f_in),
            "trust": settings.trust * (trusted * rest.square()).sum(),
            "collision": settings.collision * settings.overlap * (eta * (aligned * rest).abs()).sum(),
            "coherence": settings.collision * (1 - settings.overlap) * mixed.square() / (ours * theirs),
        }
        norms = {"inside": aligned.square().sum(), "beside": rest.square().sum()}
        for term, value in {**found, **norms, "total": sum(found.values())}.items():
            sums[term] = sums[term] + value
    return sums


def trained(model: Any) -> dict[str, Tensor]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def forces(total: Tensor, model: Any) -> dict[str, Tensor]:
    parts = trained(model)
    return dict(zip(parts, grad(total, list(parts.values()), retain_graph=True), strict=True))


def numbers(model: Any) -> list[Tensor]:
    return [one.detach().clone() for one in model.parameters()]


def norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.stack([one.double().square().sum() for one in gradients.values()]).sum().sqrt())


def is_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To float32 rounding of the largest entry."""
    for name, one in expected.items():
        assert_close(found[name], one, rtol=1e-5, atol=3e-6 * float(one.abs().max()))


def learned(trainer: Any, guard: AlignGuard | None = None) -> tuple[list[dict[str, Tensor]], list[dict[str, Any]]]:
    """The gradient of every optimiser step, as the optimiser gets it, and the rows of the log."""
    seen: list[dict[str, Tensor]] = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *rest: Any, **named: Any) -> None:
            seen.append(
                {name: one.grad.clone() for name, one in trained(trainer.model).items() if one.grad is not None}
            )

    if guard is not None:
        guard.attach(trainer)
    trainer.add_callback(Gradients())
    trainer.train()
    return seen, [row for row in trainer.state.log_history if "loss" in row]


# Equivalence: plain LoRA


def test_with_all_strengths_0_nothing_is_touched_and_the_tune_is_plain_lora(tiny: Tiny) -> None:
    found = []
    for guarded in (False, True):
        trainer = tiny.sft(adapter(tiny.base(), begun=False))
        before = {**vars(trainer)}, {**vars(trainer.accelerator)}, list(trainer.callback_handler.callbacks)
        if guarded:
            tiny.guard(trainer.model, **OFF).attach(trainer)
        assert (vars(trainer), vars(trainer.accelerator), trainer.callback_handler.callbacks) == before
        found.append(([row["loss"] for row in learned(trainer)[1]], numbers(trainer.model)))
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_the_trainer_class_is_attach_by_another_name_bit_for_bit(tiny: Tiny) -> None:
    options = {**PLAIN, "output_dir": str(tiny.out), "max_steps": 3}
    named = AlignGuardSFTTrainer(
        model=adapter(tiny.base()), args=AlignGuardConfig(**options, alignguard=EVERYTHING), alignment_data=EXAMPLES,
        train_dataset=Dataset.from_dict(_rows(12)), processing_class=tiny.tokenizer,
    )  # fmt: skip
    attached = tiny.sft(adapter(tiny.base()), max_steps=3)
    rows = learned(named)[1], learned(attached, tiny.guard(attached.model, **EVERYTHING))[1]
    ours, theirs = (
        [{k: v for k, v in row.items() if "alignguard" in k or k == "loss"} for row in some] for some in rows
    )
    assert ours == theirs
    assert all(map(torch.equal, numbers(named.model), numbers(attached.model)))
    plain = tiny.sft(adapter(tiny.base()), max_steps=3)
    plain.train()
    assert not all(map(torch.equal, numbers(named.model), numbers(plain.model)))


# Independent twin: the penalty over entries


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True, "lora_alpha": 5},
        {"rank_pattern": {"q_proj": 2, "down_proj": 6}, "alpha_pattern": {"k_proj": 3, "v_proj": 40}},
        {"target_modules": ["v_proj", "up_proj"]},
        {"target_modules": ["c_attn", "c_fc", "mlp.c_proj"]},  # GPT-2
        {"target_modules": ["attn.c_proj"]},
    ],
    ids=["rslora", "patterns", "subset", "conv1d", "square conv1d"],
)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_penalty_and_its_gradient_are_those_of_whole_matrices(
    lora: dict[str, Any], settings: str, tiny: Tiny
) -> None:
    is_gpt2 = "c_" in str(lora.get("target_modules"))
    model = tiny.gpt2(**lora) if is_gpt2 else adapter(tiny.base(), **lora)
    guard = tiny.guard(model, **SETTINGS[settings])
    found, expected = guard.penalty(model), dense(model, guard)
    for name, value in expected.items():
        assert_close(getattr(found, name).double(), value, rtol=2e-5, atol=1e-7)
    is_near(forces(found.total, model), forces(expected["total"], model))


# One step of a trainer. At learning rate 0 both steps begin at the same numbers; 12 rows in batches of 4 by two are
# an accumulation of two and one of one.

STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "sft accumulated": ("sft", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
    "sft checkpointed": ("sft", {"gradient_checkpointing": True}),
    "dpo": ("dpo", {"per_device_train_batch_size": 4}),
    "dpo accumulated": ("dpo", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_has_the_tasks_gradient_and_once_the_penaltys(case: str, tiny: Tiny) -> None:
    kind, options = STEPS[case]
    make = getattr(tiny, kind)
    plain, guarded = (make(adapter(tiny.base()), **options, learning_rate=0.0, max_grad_norm=0.0) for _ in range(2))
    guard = tiny.guard(guarded.model, **EVERYTHING)
    (task, told), (both, rows) = learned(plain), learned(guarded, guard)
    expected = dense(guarded.model, guard)
    force = forces(expected["total"], guarded.model)
    assert len(both) == 2
    for ours, theirs in zip(both, task, strict=True):
        is_near(ours, {name: one + force[name] for name, one in theirs.items()})
    for row, plain_row in zip(rows, told, strict=True):
        assert row["loss"] == plain_row["loss"]
        terms = {name: row[f"alignguard/{name}"] for name in Penalty._fields[1:]}
        assert terms == pytest.approx({name: expected[name].item() for name in terms}, rel=1e-4)
    assert "alignguard/ratio" not in rows[0]
    assert rows[1]["alignguard/ratio"] == pytest.approx(norm(force) / norm(task[1]), rel=1e-4)


class Engine(TrainerCallback):
    """Does as DeepSpeed's does under accelerate: backward also steps and leaves no gradient behind. (The real one needs
    its own package and an accelerator.)"""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.optimizer = given["optimizer"].optimizer
        self.accelerator.deepspeed_engine_wrapped = self
        self.accelerator.state.distributed_type = DistributedType.DEEPSPEED

    def backward(self, loss: Tensor, sync_gradients: bool = True, **named: Any) -> None:
        loss.backward()
        if sync_gradients:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> float:
        return 0.0

    def on_train_end(self, *given: Any, **named: Any) -> None:
        self.accelerator.state.distributed_type = DistributedType.NO


def test_under_an_engine_that_keeps_gradients_to_itself_the_penaltys_force_is_still_looked_at(tiny: Tiny) -> None:
    ratios: list[float] = []
    for has_engine in (False, True):
        trainer = tiny.sft(adapter(tiny.base()), learning_rate=0.0, max_grad_norm=0.0)
        if has_engine:
            trainer.add_callback(Engine(trainer.accelerator))
        tiny.guard(trainer.model, **EVERYTHING).attach(trainer)
        trainer.train()
        ratios += [row["alignguard/ratio"] for row in trainer.state.log_history if "alignguard/ratio" in row]
    assert ratios[1] == pytest.approx(ratios[0], rel=1e-4)
    weak = tiny.sft(adapter(tiny.base()), learning_rate=0.0)
    weak.add_callback(Engine(weak.accelerator))
    tiny.guard(weak.model, alignment=1e-12).attach(weak)
    with pytest.raises(NoEffectError, match=r"raise alignguard\.alignment"):
        weak.train()


def test_adapters_that_zero_3_has_taken_apart_are_refused(tiny: Tiny) -> None:
    model = adapter(tiny.base())
    factor = next(one for name, one in model.named_parameters() if "lora_B" in name)
    factor.data, factor.ds_id = torch.empty(0), 1  # as deepspeed.zero.Init leaves a parameter
    with pytest.raises(RecipeError, match="ZeRO-3 has taken apart"):
        tiny.guard(model)


class SquaredGradients:
    """H by another way: the whole loss of each step's batch, and its derivative by every matrix's output."""

    def __init__(self, trainer: Any) -> None:
        self.of_steps: list[dict[str, tuple[Tensor, Tensor]]] = []
        compute = trainer.compute_loss

        def watched(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            calls: dict[str, tuple[Tensor, Tensor]] = {}
            handles = [
                module.register_forward_hook(lambda _, i, o, at=at: calls.__setitem__(at, (i[0], o)))
                for at, module in model.get_base_model().named_modules()
                if hasattr(module, "lora_A")
            ]
            loss = compute(model, inputs, *rest, **named)
            for handle in handles:
                handle.remove()
            found = grad(loss, [output for _, output in calls.values()], retain_graph=True)
            real = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
            self.of_steps.append({})
            for (at, (x, _)), g in zip(calls.items(), found, strict=True):
                alive = g.abs().sum(-1) > 0
                assert real is None or not (alive & ~real).any()
                self.of_steps[-1][at] = g.double()[alive].square().mean(0), x.double()[alive].square().mean(0)
            return loss

        trainer.compute_loss = watched

    def h(self) -> dict[str, Tensor]:
        """After the first step."""
        return {at: torch.outer(r / r.max(), c / c.max()) for at, (r, c) in self.of_steps[0].items()}


def test_a_running_curvature_weighs_the_trust_region_and_the_coherence(tiny: Tiny) -> None:
    """At learning rate 0: nothing before the first step has been seen, then H of the first batch."""
    plain, guarded = (tiny.sft(adapter(tiny.base()), learning_rate=0.0, max_grad_norm=0.0) for _ in range(2))
    guard = tiny.guard(guarded.model, **EVERYTHING, curvature="running", metric="curvature")
    squares = SquaredGradients(plain)
    (task, _), (both, rows) = learned(plain), learned(guarded, guard)
    expected = dense(guarded.model, guard, squares.h())
    force = forces(expected["total"], guarded.model)
    is_near(both[1], {name: one + force[name] for name, one in task[1].items()})
    for term in ("trust", "coherence"):
        assert rows[0][f"alignguard/{term}"] == 0
        assert rows[1][f"alignguard/{term}"] == pytest.approx(expected[term].item(), rel=1e-4)


@pytest.mark.parametrize("side", ["input", "output", "both"])
@pytest.mark.parametrize("fisher", ["full", "diagonal"])
def test_one_unit_for_the_model_divides_every_factor_by_the_largest_eigenvalue_of_any(
    side: str, fisher: str, tiny: Tiny
) -> None:
    """Against the factors themselves, of which the tiny model's matrices have very different ones."""
    model = adapter(tiny.base())
    own, one = (tiny.guard(model, side=side, fisher=fisher, unit=unit, most=6) for unit in ("matrix", "model"))
    loaded = guard_base(tiny)
    sides = ("input", "output") if side == "both" else (side,)
    factors = collect_sides(loaded, EXAMPLES, sides, modules=list(own.subspaces))
    for at in sides:
        largest = {name: float(_top(factor.matrix, fisher)) for name, factor in factors[at].items()}
        unit = max(largest.values())
        assert unit > 3 * min(largest.values())
        for name, factor in factors[at].items():
            before, after = (getattr(guard.subspaces[name], f"{at}s") for guard in (own, one))
            assert_close(after.vectors, before.vectors)
            assert_close(after.eigenvalues, before.eigenvalues * largest[name] / unit, rtol=1e-4, atol=1e-9)
            assert_close(after.diagonal, (factor.diagonal / unit).float(), rtol=1e-4, atol=1e-9)
    kept = tiny.out.with_suffix(".safetensors")
    own.save(kept, model)
    with pytest.raises(CheckpointError, match='"unit": "matrix"'):
        AlignGuard.load(kept, model, one.settings)


def guard_base(tiny: Tiny) -> LoadedModel:
    return LoadedModel(tiny.base(), tiny.tokenizer, Checkpoint("m", None, is_adapter=False, base=None))


def _top(matrix: Tensor, fisher: str) -> Tensor:
    return matrix.diagonal().max() if fisher == "diagonal" else torch.linalg.eigvalsh(matrix)[-1]


def test_the_share_of_the_trace_that_the_cap_leaves_is_logged(tiny: Tiny) -> None:
    trainer = tiny.sft(adapter(tiny.base()))
    guard = tiny.guard(trainer.model, most=2)
    held = guard.trace_held()
    for name, factor in collect_factors(guard_base(tiny), EXAMPLES, modules=list(held)).items():
        values = torch.linalg.eigvalsh(factor.matrix)
        assert held[name] == pytest.approx(float(values[-2:].sum() / values.sum()), rel=1e-4)
    assert min(held.values()) < 0.9
    rows = learned(trainer, guard)[1]
    assert [row["alignguard/trace_held"] for row in rows] == pytest.approx([sum(held.values()) / len(held)] * 2)


def test_the_gradient_is_clipped_with_the_penalty_in_it(tiny: Tiny) -> None:
    free, clipped = (tiny.sft(adapter(tiny.base()), learning_rate=0.0, max_grad_norm=limit) for limit in (0.0, 0.05))
    guards = [tiny.guard(trainer.model, alignment=5.0) for trainer in (free, clipped)]
    whole, (cut, rows) = learned(free, guards[0])[0][0], learned(clipped, guards[1])
    assert rows[0]["grad_norm"] == pytest.approx(norm(whole), rel=1e-5)
    assert norm(cut[0]) == pytest.approx(0.05, rel=1e-3)
    is_near(cut[0], {name: one * 0.05 / norm(whole) for name, one in whole.items()})


def test_under_bf16_the_penalty_is_still_computed_in_float32(tiny: Tiny) -> None:
    rows = []
    for bf16 in (False, True):
        trainer = tiny.sft(adapter(tiny.base()), bf16=bf16, learning_rate=1e-3)
        rows.append(learned(trainer, tiny.guard(trainer.model, **EVERYTHING))[1])
    for term in Penalty._fields[1:]:
        assert rows[1][0][f"alignguard/{term}"] == rows[0][0][f"alignguard/{term}"]
        assert rows[1][1][f"alignguard/{term}"] == pytest.approx(rows[0][1][f"alignguard/{term}"], rel=0.05)
    assert rows[1][1]["loss"] == pytest.approx(rows[0][1]["loss"], rel=0.01)


def test_a_log_of_several_steps_holds_the_means_of_their_terms(tiny: Tiny) -> None:
    every, seldom = (tiny.sft(adapter(tiny.base()), max_steps=4, logging_steps=steps) for steps in (1, 2))
    rows = [learned(trainer, tiny.guard(trainer.model))[1] for trainer in (every, seldom)]
    terms = [[row["alignguard/fisher"] for row in some] for some in rows]
    assert terms[1] == pytest.approx([(terms[0][0] + terms[0][1]) / 2, (terms[0][2] + terms[0][3]) / 2], rel=1e-5)


def test_grpo_is_guarded_and_learns(tiny: Tiny) -> None:
    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [float(len(set(words.split()))) for words in completions]

    args = GRPOConfig(
        output_dir=str(tiny.out), **{**ANY, "max_steps": 2, "num_generations": 4, "max_completion_length": 4}
    )
    trainer = GRPOTrainer(
        model=adapter(tiny.base()), args=args, reward_funcs=reward, processing_class=tiny.tokenizer,
        train_dataset=Dataset.from_list([{"prompt": f"how to fix {n} ?"} for n in range(4)]),
    )  # fmt: skip
    guard, before = tiny.guard(trainer.model), numbers(trainer.model)
    first = dense(trainer.model, guard)["fisher"].item()
    rows = learned(trainer, guard)[1]
    assert rows[0]["alignguard/fisher"] == pytest.approx(first, rel=1e-4)
    assert rows[1]["alignguard/ratio"] > 0
    assert not all(map(torch.equal, before, numbers(trainer.model)))


def test_the_stronger_the_less_of_the_update_is_inside(tiny: Tiny) -> None:
    inside = []
    for strength in (0.01, 1.0, 100.0):
        trainer = tiny.sft(adapter(tiny.base(), begun=False), max_steps=8)
        guard = tiny.guard(trainer.model, alignment=strength)
        learned(trainer, guard)
        inside.append(dense(trainer.model, guard)["inside"].item())
    assert inside[0] > inside[1] > inside[2]
    assert inside[0] > 2 * inside[2]


# What is measured, and kept


def fishers(guard: AlignGuard) -> dict[str, Tensor]:
    """U Lambda U^T: vectors alone have no sign."""
    return {
        f"{name} {at}": side.vectors.double() @ side.eigenvalues.double().diag() @ side.vectors.double().mT
        for name, one in guard.subspaces.items()
        for at, side in zip(("in", "out"), one, strict=True)
        if side is not None
    }


def test_subspaces_are_the_bases_whatever_the_batch_and_the_adapter_and_the_model_stays_as_it_was(tiny: Tiny) -> None:
    trainer, settings = tiny.sft(adapter(tiny.base(), begun=False)), AlignGuardSettings(side="both", share=1.0)
    model = trainer.model

    def measured(size: int) -> dict[str, Tensor]:
        return fishers(AlignGuard.measure(model, tiny.tokenizer, EXAMPLES, settings, batch_size=size))

    fresh = measured(4)
    is_near_to(measured(1), fresh, 1e-4)
    trainer.train()
    model.get_base_model().model.layers[0].eval()  # a mixture of modes, to be found again
    before = [one.training for one in model.modules()], [one.requires_grad for one in model.parameters()]
    drawn, values = (torch.get_rng_state(), _numpys(), random.getstate()), numbers(model)
    is_near_to(measured(4), fresh, 1e-6)
    assert ([one.training for one in model.modules()], [one.requires_grad for one in model.parameters()]) == before
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (_numpys(), random.getstate()) == drawn[1:]
    assert all(map(torch.equal, numbers(model), values))
    assert all(one.grad is None for one in model.parameters())
    assert any(float(one.abs().max()) > 0 for name, one in model.named_parameters() if "lora_B" in name)


def _numpys() -> str:
    return str(numpy.random.get_state())


def is_near_to(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= tolerance
