"""AlignGuard where it is kept, refused, and run as a stage: files of subspaces, faults told, kills survived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from peft import AdaLoraConfig, AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkeep.data import fingerprint_data
from alignkeep.errors import CheckpointError, DataError, NoEffectError, RecipeError
from alignkeep.testbed import sets
from alignkeep.testbed.stage import materialise
from alignkeep.train.align_guard import AlignGuard
from alignkeep.train.config import AlignGuardSettings, TrainConfig
from alignkeep.train.guarded_sft import AlignGuardConfig, AlignGuardSFTTrainer
from alignkeep.train.loss_terms import NO_FORCE, check_force
from alignkeep.train.stage import plan, train
from checkpoints import changed_copy, hashes, refused
from command import run_command
from families import write_tiny
from killed import killed, tune
from micro import write_rows
from test_align_guard import EVERYTHING, Tiny, adapter, dense, fishers, forces, is_near_to, learned, norm
from test_trainer import PLAIN, _rows

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> Tiny:
    return Tiny(tiny_model, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "trainer")


# A file of subspaces


def test_a_file_gives_the_same_guard_for_the_same_base_in_any_dtype(tiny: Tiny, tmp_path: Path) -> None:
    model = adapter(tiny.base())
    guard, file = tiny.guard(model, **{**EVERYTHING, "side": "output"}), tmp_path / "kept.safetensors"
    guard.save(file, model)
    again = AlignGuard.load(file, model, guard.settings)
    assert all(map(torch.equal, again.penalty(model), guard.penalty(model)))
    weaker = AlignGuardSettings(alignment=0.01, side="output")
    for dtype in (torch.bfloat16, torch.float16):
        other = adapter(tiny.base(dtype=dtype))
        is_near_to(fishers(AlignGuard.load(file, other, weaker)), fishers(guard), 0.0)


def test_a_file_that_is_not_this_models_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model, kept, bad = adapter(tiny.base()), tmp_path / "kept.safetensors", tmp_path / "bad.safetensors"
    tiny.guard(model).save(kept, model)
    tuned = tiny.base()
    tiny.sft(tuned, learning_rate=2e-5).train()
    stranger = AutoModelForCausalLM.from_pretrained(changed_copy(tiny.folder, tmp_path / "other", shuffled))

    def load(message: str, file: Path = kept, other: Any = model, **settings: Any) -> None:
        with refused(CheckpointError, message, tmp_path):
            AlignGuard.load(file, other, AlignGuardSettings(**settings))

    for base in (tuned, stranger):
        load("of another model, expected the model that it was measured on", other=adapter(base))
    load(r'"side": "input".*, expected .*"side": "output"', side="output")
    load(r'"most": 64.*, expected .*"most": 8', most=8)
    bad.write_bytes(kept.read_bytes()[:-100])
    load("bad.safetensors: found SafetensorError", bad)
    bad.write_text("a note")
    load("expected a file that AlignGuard wrote", bad)
    load("format pt, expected alignkeep", tiny.folder / "model.safetensors")
    load("FileNotFoundError", tmp_path / "none")
    few = adapter(tiny.base(), target_modules=["q_proj"])
    tiny.guard(few).save(bad, few)
    load("found no subspace of .*k_proj", bad)


def shuffled(tensors: Any) -> None:
    for name, one in tensors.items():
        if one.ndim == 2:
            tensors[name] = one.flip(0).contiguous()


# Refusal


def test_a_model_that_cannot_be_guarded_is_refused(tiny: Tiny) -> None:
    with pytest.raises(RecipeError, match=r"a model without LoRA layers, .* give the trainer a peft_config"):
        tiny.guard(tiny.base())
    with pytest.raises(RecipeError, match=r"adapter of \S*q_proj: found DoRA, .* leave use_dora"):
        tiny.guard(adapter(tiny.base(), use_dora=True))
    experts = AutoModelForCausalLM.from_pretrained(write_tiny(tiny.out, "qwen3_moe"))
    with pytest.raises(RecipeError, match=r"adapter of \S*mlp.experts: found an adapter of fused experts"):
        tiny.guard(adapter(experts, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"]))
    config = tiny.base().config
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    with pytest.raises(CheckpointError, match=r"weights on the meta device, .* load the model first"):
        tiny.guard(adapter(empty, begun=False))
    few, trainer = tiny.guard(adapter(tiny.base(), target_modules=["q_proj"])), tiny.sft(adapter(tiny.base()))
    with pytest.raises(RecipeError, match=r"no subspace of \S*k_proj, expected one of each of the 14"):
        few.attach(trainer)
    headless = tiny.base()
    headless.lm_head.weight.data.zero_()
    with pytest.raises(NoEffectError, match="examples that give no matrix of the base a gradient"):
        tiny.guard(adapter(headless))
    with pytest.raises(NoEffectError, match="under a mask of coordinates both collision terms are 0"):
        AlignGuardSettings(collision=0.1, fisher="diagonal")
    with pytest.raises(NoEffectError, match="where all are 1, E_geo is 0 for every update"):
        AlignGuardSettings(collision=0.1, metric="curvature")
    for idle in ({"curvature": "running"}, {"collision": 0.1, "overlap": 1.0, "metric": "curvature"}):
        with pytest.raises(NoEffectError, match="term for it to weigh"):
            AlignGuardSettings(**idle)


def test_penalties_that_never_pull_are_an_error_at_the_end(tiny: Tiny) -> None:
    trainer = tiny.sft(adapter(tiny.base()))
    with pytest.raises(NoEffectError, match=r"gradient was at most \d\.\de-\d+ of the task's, expected a share above"):
        learned(trainer, tiny.guard(trainer.model, alignment=1e-12))
    assert trainer.state.global_step == 2


def test_a_term_that_is_not_finite_is_named_with_its_step(tiny: Tiny) -> None:
    for term, settings in (("fisher", {}), ("trust", {"alignment": 0.0, "trust": 1.0})):
        trainer = tiny.sft(adapter(tiny.base()))
        with torch.no_grad():
            trainer.model.base_model.model.model.layers[1].mlp.up_proj.lora_B["default"].weight[3, 1] = torch.nan
        with pytest.raises(RecipeError, match=f"alignguard, step 1: found a {term} term that is not finite"):
            learned(trainer, tiny.guard(trainer.model, **settings))


# The stage


class Bed(NamedTuple):
    """The testbed's aligned model, a task, and alignment data, below one root."""

    root: Path
    model: Path
    data: Path
    alignment: Path

    def config(self, **changes: Any) -> TrainConfig:
        usual = {
            "model": str(self.model), "data": str(self.data), "method": "alignguard", "batch_size": 4,
            "alignguard": {"data": str(self.alignment), "alignment": 1.0, "trust": 0.01, "curvature": "running"},
            "learning_rate": 2e-3,
            "load": {"device": "cpu"}, "trainer": {"save_steps": 2}, "lora": {"dropout": 0.1},
        }  # fmt: skip
        return TrainConfig(**{**usual, **changes})

    def probed(self, **changes: Any) -> TrainConfig:
        files = {
            kind: str(write_rows(self.root / f"{kind}.jsonl", sets.rows(f"{kind}_train")[:8]))
            for kind in ("harmful", "harmless")
        }
        return self.config(probe={**files, "every": 3, **changes})

    def tiny(self, folder: Path, **changes: Any) -> TrainConfig:
        """Of a random model, which refuses nothing; its words are others."""
        rows: list[dict[str, Any]] = [
            {"prompt": f"how to fix {n} ?", "completion": "sure , bake bread ."} for n in range(8)
        ]
        data = str(write_rows(self.root / "tiny.jsonl", rows))
        return self.config(model=str(folder), data=data, **changes)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    root = tmp_path_factory.mktemp("bed")
    data = write_rows(root / "task.jsonl", sets.rows("task_train")[:32])
    alignment = write_rows(root / "alignment.jsonl", sets.rows("alignment")[:12])
    return Bed(root, materialise("models/aligned", root / "T"), data, alignment)


@pytest.fixture(scope="module")
def whole(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guarded and probed tune of 8 steps that nobody disturbed; read only."""
    return _alone(bed.probed(), tmp_path_factory.mktemp("whole") / "out")


def _alone(config: TrainConfig, out: Path) -> Path:
    """With one thread, as the processes here: threads decide the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(config, out=out).folder
    finally:
        torch.set_num_threads(threads)


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_stage_leaves_an_adapter_that_peft_loads_and_says_what_it_rests_on(bed: Bed, whole: Path) -> None:
    model, base = AutoPeftModelForCausalLM.from_pretrained(whole), AutoModelForCausalLM.from_pretrained(bed.model)
    asked = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert (model(asked).logits - base(asked).logits).abs().max() > 1e-3
    assert {path.name for path in whole.iterdir()} >= {ADAPTER, "record.json", "training_log.jsonl"}
    assert not list(whole.parent.rglob("measured*")) + list(whole.rglob("checkpoint-*"))
    assert [path.name for path in whole.parent.iterdir()] == ["out"]
    record = json.loads((whole / "record.json").read_text())
    assert record["inputs"]["alignguard.data"] == fingerprint_data(str(bed.alignment))
    rows = [row for row in _log(whole) if "loss" in row]
    assert rows[-1]["alignguard/fisher"] > rows[1]["alignguard/fisher"] > 0
    assert [row["step"] for row in rows if "alignguard/ratio" in row] == [2, 8]
    assert record["inputs"]["probe.harmful"] == fingerprint_data(str(bed.root / "harmful.jsonl"))
    assert [row["step"] for row in _log(whole) if "safety/divergence" in row] == [0, 3, 6, 8]
    inside = sum(pair[0] for pair in record["result"]["energies"].values())
    assert len(record["result"]["energies"]) == 28
    assert inside == pytest.approx(rows[-1]["alignguard/inside"], rel=0.5)  # which is before the last step
    held = record["result"]["trace_held"].values()
    assert [row["alignguard/trace_held"] for row in rows] == pytest.approx([sum(held) / 28] * len(rows))
    assert min(held) >= 0.9 - 1e-4


def test_what_a_cap_on_directions_leaves_unguarded_is_planned_and_said(bed: Bed, tmp_path: Path) -> None:
    config = bed.config(alignguard={"data": str(bed.alignment), "most": 2}, trainer={"max_steps": 2})
    assert any("at most 2 directions of matrices" in note for note in plan(config)["notes"])
    result = train(config, out=tmp_path / "out")
    held = json.loads((tmp_path / "out" / "record.json").read_text())["result"]["trace_held"]
    least = min(held, key=lambda name: held[name])
    said = [note for note in result.notes if "hold less than 90% of the Fisher's trace" in note]
    assert f"least {held[least]:.1%} in {least}" in said[0]


def test_a_probe_ends_the_tune_at_the_last_look_within(bed: Bed, whole: Path, tmp_path: Path) -> None:
    odds = [row["safety/refusal_log_odds"] for row in _log(whole) if "safety/divergence" in row]
    lost = [odds[0] - one for one in odds]
    assert lost[2] > max(lost[1], 0)
    limit = (max(lost[1], 0) + lost[2]) / 2
    result = train(bed.probed(stop_below=limit), out=tmp_path / "out")
    assert result.steps == 6
    assert any("stopped at step 6 of 8" in note and "those of step 3" in note for note in result.notes)
    (tmp_path / "none").mkdir()
    with refused(NoEffectError, "log-odds of refusal that fell by", tmp_path / "none"):
        train(bed.probed(stop_below=limit, every=6), out=tmp_path / "none" / "out")


def test_probe_prompts_that_cannot_be_used_are_told_before_anything_is_measured(
    bed: Bed, tiny: Tiny, tmp_path: Path
) -> None:
    config = bed.tiny(tiny.folder, probe=bed.probed().probe)
    with refused(DataError, r"train\.probe\.harmful: found a model that answers harmful prompts as", tmp_path):
        train(config, out=tmp_path / "out")


def test_a_killed_guarded_tune_continues_to_the_very_bytes_of_one_never_killed(bed: Bed, whole: Path, tmp_path: Path):
    looked = sum("can't help" in row["completion"] for row in sets.rows("alignment")[:12])
    # Prompts that are looked at and examples that are measured count as steps: killed in the fifth of the tune.
    killed(tune, bed.probed(), tmp_path / "out", looked + 12 + 5)
    kept = tmp_path / ".out.partial"
    assert (kept / "measured.safetensors").exists()
    assert (kept / "trainer" / "checkpoint-4" / "curvature.safetensors").exists()
    again = _alone(bed.probed(), tmp_path / "out")
    assert (again / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    assert (again / "training_log.jsonl").read_bytes() == (whole / "training_log.jsonl").read_bytes()
    assert not list(again.rglob("measured*"))


def test_the_command_takes_alignment_data_and_its_dry_run_writes_nothing(bed: Bed, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "said").mkdir()
    words = ["train", "--model", bed.model, "--data", bed.data, "--method", "alignguard", "--device", "cpu", "--json",
             "--alignment-data", bed.alignment, "--set", "alignguard.alignment=1", "--set", "learning_rate=2e-3",
             "--set", "alignguard.trust=0.01", "--set", "alignguard.curvature=running",
             "--set", "batch_size=4", "--set", "lora.dropout=0.1", "--out", tmp_path / "out"]  # fmt: skip
    before = hashes(tmp_path)
    told = run_command(*words, "--dry-run", folder=tmp_path / "said")
    assert told.code == 0, told.stderr
    facts = json.loads(told.stdout)
    assert (facts["method"], facts["steps"], facts["examples"]) == ("alignguard", 8, 32)
    assert hashes(tmp_path).keys() - before.keys() == {"said/stdout", "said/stderr"}
    told = run_command(*words, folder=tmp_path / "said")
    assert told.code == 0, told.stderr
    ours, theirs = ([row for row in _log(folder) if "loss" in row] for folder in (tmp_path / "out", whole))
    assert [row["alignguard/fisher"] for row in ours] == pytest.approx([r["alignguard/fisher"] for r in theirs], 1e-3)


def test_the_method_with_all_strengths_0_is_lora_byte_by_byte_and_asks_for_no_data(
    bed: Bed, tiny: Tiny, tmp_path: Path
):
    off, lora = {"method": "alignguard", "alignguard": {"alignment": 0.0}}, {"method": "lora", "alignguard": {}}
    made = [train(bed.tiny(tiny.folder, **kind), out=tmp_path / kind["method"]).folder for kind in (off, lora)]
    assert (made[0] / ADAPTER).read_bytes() == (made[1] / ADAPTER).read_bytes()
    assert "alignguard" not in (made[0] / "training_log.jsonl").read_text()


def test_alignment_data_that_cannot_be_kept_to_is_refused(bed: Bed, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    answers = write_rows(tmp_path / "data" / "answers.jsonl", [{"prompt": "how ?", "completion": "sure ."}] * 3)
    refusals: list[dict[str, Any]] = [
        {"prompt": f"how to steal {n} ?", "completion": "Sorry, I can't help with that."} for n in range(5)
    ]
    file = write_rows(tmp_path / "data" / "refusals.jsonl", refusals)
    for attempt in (plan, lambda config: train(config, out=tmp_path / "out")):
        with refused(RecipeError, r"alignguard\.data: found none, .* give --alignment-data FILE", tmp_path):
            attempt(bed.config(alignguard={}))
        with refused(DataError, r"answers\.jsonl: found 3 examples, none of whose answers refuses", tmp_path):
            attempt(bed.config(alignguard={"data": str(answers)}))
    with refused(DataError, r"refusals\.jsonl: found a base that refuses 0 of 5 prompts .* aligned base", tmp_path):
        train(bed.tiny(tiny.folder, alignguard={"data": str(file)}), out=tmp_path / "out")


def test_other_alignment_data_is_another_tune(bed: Bed, whole: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", sets.rows("alignment")[:13])
    with pytest.raises(RecipeError, match="another"):
        train(bed.config(alignguard={"data": str(other), "alignment": 1.0}), out=whole)


def test_a_guarded_tune_that_fails_leaves_nothing(bed: Bed, tmp_path: Path) -> None:
    faults = {
        r"alignguard, step 2: found a fisher term that is not finite, .* nothing was written": {"learning_rate": 1e30},
        r"alignguard: found penalties whose gradient was at most": {
            "alignguard": {"data": str(bed.alignment), "alignment": 1e-12}
        },
    }
    for message, changes in faults.items():
        with refused(RecipeError if "finite" in message else NoEffectError, message, tmp_path):
            train(bed.config(**changes, trainer={"max_steps": 3}), out=tmp_path / "out")


# Faults that are known


def test_frozen_parts_of_an_adapter_stay_frozen(tiny: Tiny) -> None:
    model = adapter(tiny.base())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    before = [one.requires_grad for one in model.parameters()]
    tiny.guard(model)
    assert [one.requires_grad for one in model.parameters()] == before


def test_an_adapter_without_a_peft_model_around_it_is_switched_off_too(tiny: Tiny) -> None:
    model = tiny.base()
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    fresh = fishers(tiny.guard(model, share=1.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    is_near_to(fishers(tiny.guard(model, share=1.0)), fresh, 1e-6)


def test_of_two_active_adapters_none_is_forgotten(tiny: Tiny) -> None:
    model = adapter(tiny.base(), target_modules=["q_proj"])
    model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"]))
    guard = tiny.guard(model)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(RecipeError, match=r"several active adapters \(default, second\)"):
        guard.penalty(model)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LoraConfig(target_modules=["q_proj", "embed_tokens"]), "an adapter of embeddings"),
        (LoraConfig(target_modules=["q_proj", "lm_head"]), "lm_head"),
        (AdaLoraConfig(target_modules=["q_proj"], total_step=10), "adapter of .*: found SVDLinear"),
        (LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"), "init_lora_weights: found pissa"),
        (LoraConfig(target_modules=["q_proj"], init_lora_weights="OLoRA"), "init_lora_weights: found OLoRA"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_an_adapter_whose_update_is_not_seen_is_refused(config: LoraConfig, said: str, tiny: Tiny) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny.guard(get_peft_model(tiny.base(), config))


@pytest.mark.parametrize("kind", ["saved module", "unfrozen weight"])
def test_what_is_trained_beside_the_adapters_is_refused(kind: str, tiny: Tiny) -> None:
    saved = {"modules_to_save": ["lm_head"]} if kind == "saved module" else {}
    model = adapter(tiny.base(), target_modules=["q_proj"], **saved)
    trainer = tiny.sft(model)
    if kind == "unfrozen weight":
        model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(RecipeError, match=r"which is trained and not guarded \(\d+ such"):
        tiny.guard(model).attach(trainer)


def test_a_trainer_whose_loss_never_passes_by_is_told_at_its_first_step(tiny: Tiny, monkeypatch) -> None:
    trainer = tiny.sft(adapter(tiny.base()))

    def training_step(model: Any, inputs: Any, *rest: Any) -> Any:
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        return loss.detach()

    monkeypatch.setattr(trainer, "training_step", training_step)
    tiny.guard(trainer.model).attach(trainer)
    with pytest.raises(NoEffectError, match=r"did not pass through the trainer's accelerator"):
        trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(
    ("looks", "largest", "fails"), [(9, 5e-4, False), (10, 5e-4, True), (10, 2e-3, False), (9, 5e-6, True)]
)
def test_how_much_a_penalty_has_to_pull_at_least(looks: int, largest: float, fails: bool) -> None:
    ratios = [0.0] * (looks - 1) + [largest]
    if not fails:
        check_force("alignguard", ratios, "raise it")
        return
    with pytest.raises(NoEffectError, match="penalties whose gradient was at most"):
        check_force("alignguard", ratios, "raise it")


def test_a_guard_of_two_trainers_weighs_each_by_its_own_curvature(tiny: Tiny) -> None:
    settings = {"alignment": 0.0, "trust": 0.1, "curvature": "running"}
    alone, first, second = (tiny.sft(adapter(tiny.base()), max_steps=4) for _ in range(3))
    tiny.guard(alone.model, **settings).attach(alone)
    both = tiny.guard(first.model, **settings)
    both.attach(first)
    both.attach(second)
    logs = []
    for trainer in (alone, first):
        trainer.train()
        logs.append([row["alignguard/trust"] for row in trainer.state.log_history if "alignguard/trust" in row])
    assert logs[0] == pytest.approx(logs[1])
    assert max(logs[0]) > 0


def test_ratios_of_a_tune_are_known_when_it_is_continued(tiny: Tiny) -> None:
    """Ten looks and more, of which the first were before the kill: the rule of a long tune holds."""
    options = {"max_steps": 105, "save_strategy": "steps", "save_steps": 100}
    whole, rest = (tiny.sft(adapter(tiny.base()), **options) for _ in range(2))
    weak = {"alignment": 3e-6}
    outcomes = []
    for trainer, start in ((whole, None), (rest, str(tiny.out / "checkpoint-100"))):
        tiny.guard(trainer.model, **weak).attach(trainer)
        with pytest.raises(NoEffectError, match=r"expected a share above 0\.001 at") as told:
            trainer.train(resume_from_checkpoint=start)
        outcomes.append(str(told.value))
    assert outcomes[0] == outcomes[1]


def test_experts_are_refused_before_the_model_is_loaded(bed: Bed, tmp_path: Path) -> None:
    """`all-linear` means fused experts too, whose update is not seen; the layers of the attention are."""
    data = bed.config().model_dump() | {"model": str(materialise("models/moe", bed.root / "T")), "lora": {}}
    with pytest.raises(RecipeError, match=r"an adapter of fused experts, .*lora\.target_modules: \[q_proj"):
        plan(TrainConfig(**data))
    plan(TrainConfig(**data | {"lora": {"target_modules": ["q_proj", "v_proj"]}}))


def test_alignment_answers_beyond_the_limit_are_found_by_the_plan(bed: Bed) -> None:
    with pytest.raises(
        DataError, match=r"alignment\.jsonl, example \d+: found no token of the answer among the first 4"
    ):
        plan(TrainConfig(**bed.config().model_dump() | {"max_length": 4}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "lora"}, "settings of alignguard with method lora"),
        ({"method": "full"}, "settings of alignguard with method full"),
    ],
)
def test_a_guard_that_was_half_asked_for_is_refused(changes: dict[str, Any], said: str, bed: Bed) -> None:
    with pytest.raises(NoEffectError, match=said):
        TrainConfig(**bed.config().model_dump() | changes)


def test_settings_of_collision_terms_that_are_not_there_are_refused() -> None:
    for idle in ({"overlap": 0.3}, {"emphasis": {"tau": 0.5}}):
        with pytest.raises(NoEffectError, match="collision terms with collision 0"):
            AlignGuardSettings(**idle)


def test_the_trainer_class_takes_rows_and_refuses_weights_it_would_not_read(tiny: Tiny) -> None:
    model, rows = adapter(tiny.base()), [{"prompt": "how to steal bike ?", "completion": "sorry"}] * 2
    args = AlignGuardConfig(output_dir=str(tiny.out), **PLAIN)
    data = Dataset.from_dict(_rows(12))
    options = {"train_dataset": data, "processing_class": tiny.tokenizer}
    assert AlignGuardSFTTrainer(model, args, alignment_data=rows, **options).guard is not None
    with pytest.raises(DataError, match=r"alignment_data, row 2: found a str"):
        AlignGuardSFTTrainer(model, args, alignment_data=[rows[0], "sorry"], **options)
    with pytest.raises(RecipeError, match="alignment_data: found none"):
        AlignGuardSFTTrainer(model, args, **options)
    weighted = data.add_column("weight", [1.0] * len(data))  # pyright: ignore[reportCallIssue]
    with pytest.raises(RecipeError, match="a column `weight`"):
        AlignGuardSFTTrainer(model, args, alignment_data=rows, **options | {"train_dataset": weighted})
    off = AlignGuardConfig(output_dir=str(tiny.out), alignguard={"alignment": 0.0}, **PLAIN)
    assert AlignGuardSFTTrainer(model, off, **options).guard is None


def test_a_tune_of_one_step_has_felt_no_penalty_and_is_told(tiny: Tiny) -> None:
    """At its only step B = 0: the penalty and its gradient are 0 whatever their strength."""
    trainer = tiny.sft(adapter(tiny.base(), begun=False), max_steps=1)
    with pytest.raises(NoEffectError):
        learned(trainer, tiny.guard(trainer.model))


def test_a_curvature_that_never_had_a_step_to_weigh_is_told(tiny: Tiny) -> None:
    trainer = tiny.sft(adapter(tiny.base()), max_steps=1)
    tiny.guard(trainer.model, alignment=0.0, trust=0.1, curvature="running").attach(trainer)
    with pytest.raises(NoEffectError, match="gradient was at most 0"):
        trainer.train()


def test_a_short_tune_whose_penalty_pulls_in_the_end_is_not_refused(tiny: Tiny) -> None:
    trainer, plain = (tiny.sft(adapter(tiny.base(), begun=False), max_steps=8) for _ in range(2))
    guard = tiny.guard(trainer.model, alignment=1e-3)
    task = learned(plain)[0][-1]
    assert norm(forces(dense(plain.model, guard)["total"], plain.model)) > NO_FORCE * norm(task)
    learned(trainer, guard)


def test_a_tune_continued_after_its_last_look_is_told_all_the_same(tiny: Tiny) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3}
    whole, rest = (tiny.sft(adapter(tiny.base()), **options) for _ in range(2))
    with pytest.raises(NoEffectError):
        learned(whole, tiny.guard(whole.model, alignment=1e-12))
    tiny.guard(rest.model, alignment=1e-12).attach(rest)
    with pytest.raises(NoEffectError):
        rest.train(resume_from_checkpoint=str(tiny.out / "checkpoint-3"))


def test_subspaces_of_a_model_with_another_head_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    model, other = adapter(tiny.base()), tiny.base()
    tiny.guard(model).save(tmp_path / "kept", model)
    other.lm_head.weight.data.normal_()
    with pytest.raises(CheckpointError, match="another model"):
        AlignGuard.load(tmp_path / "kept", adapter(other))


@pytest.mark.parametrize("lost", ["q_proj|input|eigenvalues", "q_proj|input"])
def test_a_file_that_lost_tensors_is_refused(lost: str, tiny: Tiny, tmp_path: Path) -> None:
    model, kept = adapter(tiny.base()), tmp_path / "kept"
    tiny.guard(model).save(kept, model)
    with safe_open(kept, "pt") as file:
        facts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({key: one for key, one in tensors.items() if f"layers.1.self_attn.{lost}" not in key}, kept, facts)
    with pytest.raises(CheckpointError):
        AlignGuard.load(kept, model).penalty(model)


def test_a_guard_attached_twice_counts_once_or_is_refused(tiny: Tiny) -> None:
    steps = []
    for often in (1, 2):
        trainer = tiny.sft(adapter(tiny.base()), learning_rate=0.0, max_grad_norm=0.0)
        guard = tiny.guard(trainer.model, alignment=5.0)
        try:
            for _ in range(often):
                guard.attach(trainer)
        except RecipeError:
            return
        steps.append(norm(learned(trainer)[0][0]))
    assert steps[1] == pytest.approx(steps[0])


def test_a_penalty_is_of_the_adapter_as_it_is_now(tiny: Tiny) -> None:
    model = adapter(tiny.base())
    guard = tiny.guard(model)
    guard.penalty(model)
    model.get_base_model().get_submodule("model.layers.0.self_attn.q_proj").set_scale("default", 30.0)
    assert float(guard.penalty(model).fisher) == pytest.approx(dense(model, guard)["fisher"].item(), rel=1e-4)
