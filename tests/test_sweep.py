"""Sweeps over real tiny models: the model at every weight is the written merge, the picks are known by hand, a killed
sweep goes on, and nothing that cannot be swept loads a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkeep.checkpoint.parts import append_rows
from alignkeep.errors import DataError, NoEffectError, RecipeError
from alignkeep.judging.measure import PromptMeasure
from alignkeep.merge.config import MergeConfig, SweepConfig
from alignkeep.merge.input_maps import Subspace
from alignkeep.merge.inputs import read_models
from alignkeep.merge.interpolation import Interpolation, is_scaling, merged_tensors
from alignkeep.merge.linear import Linear
from alignkeep.merge.method import TensorMerge
from alignkeep.merge.prepare import candidates, check_auto, rule_of
from alignkeep.merge.stage import merge
from alignkeep.merge.sweep import check_sweep, sweep
from alignkeep.merge.swept import PARTIAL_NAME, SWEEP_NAME, read_sweep
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.loading import LoadedModel, load_model, load_tokenizer
from alignkeep.types import Measurement, Message, Prompt, Verdict
from conftest import build_tiny_model
from micro import write_rows

QUESTIONS = 20


def build_tuned(base: Path, folder: Path, *, seed: int, step: float = 0.02) -> Path:
    """The base with noise on every matrix, in the base's types."""
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=draw) * step
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def build_adapter(base: Path, folder: Path, **targets: list[str]) -> Path:
    """A LoRA over the base whose factors are both random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, **targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base stored in bfloat16, two full tunes and an adapter of it, and a mixture of experts with a tune."""
    root = tmp_path_factory.mktemp("sweep")
    base = build_tiny_model(root / "base")
    halved = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(halved, base / "model.safetensors", metadata={"format": "pt"})
    (base / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    with as_file(files("alignkeep.testbed") / "models" / "moe") as packaged:
        experts = build_tuned(packaged, root / "moe", seed=9, step=0.0)
    return {
        "base": base,
        "tuned": build_tuned(base, root / "tuned", seed=1),
        "other": build_tuned(base, root / "other", seed=2),
        "adapter": build_adapter(base, root / "adapter", target_modules=["q_proj", "up_proj"]),
        "moe": experts,
        "moe tuned": build_tuned(experts, root / "moe-tuned", seed=3),
        "moe adapter": build_adapter(
            experts, root / "moe-adapter", target_modules=["o_proj"], target_parameters=["mlp.experts.down_proj"]
        ),
    }


def config_of(models: dict[str, Path], *tuned: str, base: str = "base", **more) -> MergeConfig:
    more.setdefault("method", "linear")
    return MergeConfig(base=str(models[base]), tuned=tuple(str(models[name]) for name in tuned), **more)


class HowFar:
    """A stranger's measure: how far along base -> tuned the model's weights lie, in 20 questions of each kind.

    At a distance of t it has round(20 * task(t)) tasks right and refuses round(20 * refusal(t)) harmful prompts.
    """

    def __init__(
        self, models: dict[str, Path], tuned: str, task: Callable[[float], float], refusal: Callable[[float], float]
    ) -> None:
        harmful = [Prompt((Message("user", f"steal {i}"),), kind="harmful") for i in range(QUESTIONS)]
        tasks = [Prompt((Message("user", f"sort {i}"),), kind="task", expected="1") for i in range(QUESTIONS)]
        self._inner = PromptMeasure([*harmful, *tasks])
        self.prompts = self._inner.prompts
        self.compare = self._inner.compare
        self.asked: list[float] = []
        self._base, self._end = (effective(load_model(str(models[name]))) for name in ("base", tuned))
        self._task, self._refusal = task, refusal

    def __call__(self, loaded: LoadedModel, progress=None) -> Measurement:
        step = self._end - self._base
        distance = round(float((effective(loaded) - self._base) @ step / (step @ step)), 2)
        self.asked.append(distance)
        refused, right = (round(QUESTIONS * rate(distance)) for rate in (self._refusal, self._task))
        verdicts = [Verdict.REFUSAL] * refused + [Verdict.COMPLIANCE] * (2 * QUESTIONS - refused)
        correct = [None] * QUESTIONS + [i < right for i in range(QUESTIONS)]
        return self._counted(verdicts, correct)

    def _counted(self, verdicts: Sequence[Verdict], correct: Sequence[bool | None]) -> Measurement:
        from alignkeep.judging.drift import Outcome, metrics
        from alignkeep.types import Judgement

        outcomes = [
            Outcome(prompt.kind, None, None, Judgement(verdict), right)
            for prompt, verdict, right in zip(self.prompts, verdicts, correct, strict=True)
        ]
        return Measurement(metrics(outcomes), tuple(verdicts), tuple(correct))


def effective(loaded: LoadedModel) -> Tensor:
    """A matrix of the model as it computes with it: its own numbers, and what an adapter that is on adds."""
    layer = (loaded.model.get_base_model() if loaded.checkpoint.is_adapter else loaded.model).model.layers[0]
    projection = layer.self_attn.q_proj
    numbers = projection.weight.detach().clone()
    if loaded.adapter_on:
        numbers += projection.get_delta_weight("default")
    return numbers.detach().flatten().double()


def swept(config: MergeConfig, work: Path, measure: HowFar, **more):
    work.mkdir(exist_ok=True)
    return sweep(config, work=work, method_at=partial(rule_of, config), measure=measure, **more)


def settings(pick: str, **more) -> SweepConfig:
    """A sweep that takes what its rule picks, however little of the tune that keeps, unless told otherwise."""
    given = {"task": "unread.jsonl", "prompts": "unread.jsonl", "pick": pick, "gain": 0.0, **more}
    return SweepConfig.model_validate(given)


def rising(t: float) -> float:
    return t


def falling(t: float) -> float:
    return 1 - t


# The model at a weight


def state_of(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


@pytest.mark.parametrize(
    ("base", "tuned", "method"),
    [
        ("base", ("tuned",), "linear"),
        ("base", ("tuned",), "slerp"),
        ("base", ("tuned",), "dare"),
        ("base", ("tuned", "other"), "linear"),
        ("base", ("tuned", "other"), "ties"),
        ("base", ("adapter",), "slerp"),
        ("base", ("adapter", "tuned"), "linear"),
        ("moe", ("moe tuned",), "slerp"),
        ("moe", ("moe tuned",), "dare"),
    ],
)
def test_the_model_at_a_weight_is_the_written_merge_loaded(
    models: dict[str, Path], tmp_path: Path, base: str, tuned: tuple[str, ...], method: str
):
    config = config_of(models, *tuned, base=base, method=method, weight=0.3)
    found = read_models(config.base, config.tuned)
    written = merge(config, out=tmp_path / "out").folder
    stored = load_file(written / "model.safetensors")
    made = merged_tensors(found, rule_of(config, 0.3))
    assert made.keys() == stored.keys()
    assert all(torch.equal(made[name], stored[name]) for name in stored)
    with Interpolation(config, found, partial(rule_of, config)).at(0.3) as shown:
        there, ends, training = state_of(shown), shown.model.generation_config.eos_token_id, shown.model.training
    expected = load_model(str(written))
    loaded = state_of(expected)
    assert there.keys() == loaded.keys()
    assert all(torch.equal(there[name], loaded[name]) for name in loaded)
    assert (ends, training) == (expected.model.generation_config.eos_token_id, False)


@pytest.mark.parametrize("tuned", ["tuned", "adapter"])
def test_whatever_was_shown_before_the_ends_are_the_models_themselves(models: dict[str, Path], tuned: str):
    config = config_of(models, tuned)
    shown = Interpolation(config, read_models(config.base, config.tuned), partial(rule_of, config))
    ids = torch.tensor([[5, 9, 11, 30]])
    said = []
    with torch.inference_mode():
        for at in (lambda: shown.at(0.3), shown.base, lambda: shown.at(0.7), shown.tuned, lambda: shown.at(0.0)):
            with at() as loaded:
                said.append(loaded.model(input_ids=ids).logits)
        base, end = (load_model(str(models[name])).model(input_ids=ids).logits for name in ("base", tuned))
    assert torch.equal(said[1], base)
    assert torch.equal(said[3], end)
    assert torch.equal(said[4], base)
    assert not torch.equal(said[0], said[2])


@pytest.mark.parametrize(("base", "tuned"), [("base", "adapter"), ("moe", "moe adapter")])
@pytest.mark.parametrize(("form", "method"), [("model", "linear"), ("adapter", "linear"), ("model", "slerp")])
def test_a_merge_of_one_adapter_says_what_the_written_one_says(
    models: dict[str, Path], tmp_path: Path, base: str, tuned: str, form: str, method: str
):
    """Whole weights are rounded to bfloat16, an adapter is not, and a small change is lost in the rounding."""
    config = config_of(models, tuned, base=base, weight=0.5).model_copy(update={"form": form, "method": method})
    found = read_models(config.base, config.tuned)
    assert is_scaling(config, found) is (form == "adapter" and method == "linear")
    written = merge(config, out=tmp_path / "written").folder
    ids = torch.tensor([[5, 9, 11, 30]])
    with torch.inference_mode():
        wanted = load_model(str(written)).model(input_ids=ids).logits
        with Interpolation(config, found, partial(rule_of, config)).at(0.5) as loaded:
            said = loaded.model(input_ids=ids).logits
    assert torch.allclose(said, wanted, atol=1e-5)


def test_a_merge_that_is_written_as_an_adapter_is_shown_unrounded_whatever_the_network_is_loaded_in(
    models: dict[str, Path], tmp_path: Path
):
    """A rule that scales nothing but knows the tune, in a network asked for in half precision: at weight 0.05 bfloat16
    would lose a tenth of the entries. The written adapter, over a base in float32, is what it has to say."""
    linear = config_of(models, "adapter", weight=0.05).model_copy(update={"form": "adapter"})
    written = merge(linear, out=tmp_path / "written").folder
    load = LoadConfig(dtype="bfloat16")
    mapped = config_of(models, "adapter", method="fisher", alignment_data="some.jsonl", form="adapter", load=load)
    found = read_models(mapped.base, mapped.tuned)
    assert not is_scaling(mapped, found)
    ids = torch.tensor([[5, 9, 11, 30]])
    with torch.inference_mode():
        base, wanted = (load_model(str(path)).model(input_ids=ids).logits for path in (models["base"], written))
        with Interpolation(mapped, found, lambda weight: lambda name: Linear((1 - weight, weight))).at(0.05) as loaded:
            said = loaded.model(input_ids=ids).logits
    assert said.dtype == torch.float32
    assert (said - wanted).norm() < 0.01 * (wanted - base).norm()


def test_an_adapter_of_a_base_in_float32_is_scaled_whatever_is_written(models: dict[str, Path], tmp_path: Path):
    base, adapter = tmp_path / "float32", tmp_path / "adapter"
    load_model(str(models["base"])).model.float().save_pretrained(base)
    load_tokenizer(str(models["base"])).save_pretrained(base)
    shutil.copytree(models["adapter"], adapter)
    named = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**named, "base_model_name_or_path": str(base)}))
    config = config_of(models, "adapter", weight=0.5)
    config = config.model_copy(update={"base": str(base), "tuned": (str(adapter),)})
    assert is_scaling(config, read_models(config.base, config.tuned))


def test_the_tokenizer_is_the_bases_and_the_template_the_chosen_one(models: dict[str, Path], tmp_path: Path):
    tuned = build_tuned(models["base"], tmp_path / "templated", seed=4)
    (tuned / "chat_template.jinja").write_text("{{ messages[0]['content'] }} <|assistant|> ")
    config = MergeConfig(base=str(models["base"]), tuned=(str(tuned),), chat_template="tuned")
    found = read_models(config.base, config.tuned)
    for chosen, start in (("tuned", "how"), ("base", "<|user|>")):
        chosen_config = config.model_copy(update={"chat_template": chosen})
        with Interpolation(chosen_config, found, partial(rule_of, config)).base() as loaded:
            text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "how"}], tokenize=False)
        assert str(text).startswith(start)


# Picks


@pytest.mark.parametrize("tuned", ["tuned", "adapter"])
@pytest.mark.parametrize(
    ("pick", "margin", "picked"), [("task", 0.05, 1.0), ("safe", 0.3, 0.3), ("safe", 0.05, 0.05), ("safe", 1.0, 1.0)]
)
def test_the_weight_follows_from_where_the_model_lies(
    models: dict[str, Path], tmp_path: Path, tuned: str, pick: str, margin: float, picked: float
):
    """Task t and refusal 1 - t: the best task is at 1, and refusal is within the margin up to that weight."""
    measure = HowFar(models, tuned, rising, falling)
    weights = (0.05, 0.3, 0.7, 1.0)
    result = swept(config_of(models, tuned, sweep=settings(pick, margin=margin, weights=weights)), tmp_path, measure)
    assert result.picked == picked
    # The adapter itself is one point, whole weights of weight 1, which round it, another.
    assert measure.asked == [0.0, 1.0, 0.05, 0.3, 0.7, *([1.0] if tuned == "adapter" else [])]
    assert [trade.weight for trade in result.trades] == [0.0, 0.05, 0.3, 0.7, 1.0]
    assert result.front == (0.0, 0.05, 0.3, 0.7, 1.0)
    assert dict(result.prompts) == {"harmful": 20, "task": 20}


def test_the_file_holds_rates_tests_and_reason_and_is_read_back_without_a_model(
    models: dict[str, Path], tmp_path: Path
):
    config = config_of(models, "tuned", sweep=settings("safe", weights=(0.5, 0.9), margin=0.5))
    result = swept(config, tmp_path, HowFar(models, "tuned", rising, falling))
    facts = json.loads((tmp_path / SWEEP_NAME).read_text())
    assert (facts["picked"], facts["rule"], facts["margin"]) == (0.5, "safe", 0.5)
    assert facts["weights"][1]["metrics"]["harm_refusal"]["value"] == 0.5
    assert facts["weights"][1]["tests"]["harm_refusal"]["difference"]["value"] == -0.5
    assert facts["weights"][1]["tests"]["harm_refusal"]["only_base"] == 10
    assert facts["weights"][0]["tests"] == {}
    assert facts["base"]["harm_refusal"]["value"] == 1.0
    assert facts["tuned"]["task_accuracy"]["value"] == 1.0
    assert (facts["weight_0_is_base"], facts["weight_1_is_tuned"]) == (True, True)
    assert facts["why"] == (
        "weight 0.5 is the largest whose harm refusal, 50.0 %, is at most 50 points below the base's, 100.0 % "
        "(0.9 refuses 10.0 %); its task score is 50.0 % (the base has 0.0 %, the tuned model has 100.0 %)"
    )
    assert not (tmp_path / PARTIAL_NAME).exists()
    gone = config.model_copy(update={"base": "nowhere"})
    again = sweep(gone, work=tmp_path, method_at=partial(rule_of, gone))
    assert again.as_json() == result.as_json()


def test_weight_one_is_measured_but_picked_only_where_it_was_asked_for(models: dict[str, Path], tmp_path: Path):
    config = config_of(models, "tuned", sweep=settings("task", weights=(0.25, 0.5)))
    result = swept(config, tmp_path, HowFar(models, "tuned", rising, falling))
    assert result.picked == 0.5
    assert result.at(1.0).metrics["task_accuracy"].value == 1.0


def test_a_tie_goes_to_the_smaller_weight_and_is_told(models: dict[str, Path], tmp_path: Path):
    config = config_of(models, "tuned", sweep=settings("task", weights=(0.25, 0.5, 0.75)))
    result = swept(config, tmp_path, HowFar(models, "tuned", lambda t: 0.5 * (t >= 0.5), falling))
    assert result.picked == 0.5
    assert result.why.endswith("; as good are 0.75, the smallest is taken")


def test_a_picked_tuned_model_is_called_so(models: dict[str, Path], tmp_path: Path):
    config = config_of(models, "tuned", sweep=settings("task", weights=(0.5, 1.0)))
    result = swept(config, tmp_path, HowFar(models, "tuned", rising, falling))
    assert result.why.endswith("it is the tuned model itself, no merge does better on the task")


def test_a_method_whose_last_weight_is_not_the_tuned_model_measures_that_too(models: dict[str, Path], tmp_path: Path):
    """DARE drops half of the tune, whatever the weight: the tuned model stands beside the weights."""
    config = config_of(models, "tuned", method="dare", sweep=settings("safe", weights=(0.4, 0.6), margin=0.5))
    measure = HowFar(models, "tuned", rising, falling)
    result = swept(config, tmp_path, measure)
    assert measure.asked[:2] == [0.0, 1.0]
    assert len(measure.asked) == 5
    assert result.tuned["task_accuracy"].value == 1.0
    assert result.settings["weight_1_is_tuned"] is False


def test_where_weight_zero_is_not_the_base_the_base_stands_beside_it_and_zero_may_be_picked(
    models: dict[str, Path], tmp_path: Path
):
    """A subspace merge of weight 0 keeps the tune outside of the subspace: here half of the axes of every matrix, so
    about half of the way, and weight 1 all of it."""
    config = config_of(models, "tuned", sweep=settings("safe", weights=(0.0, 1.0), margin=0.6))

    def method_at(weight: float) -> Callable[[str], TensorMerge]:
        half = torch.eye(32)[:, :16]
        return lambda name: Subspace(weight, half) if "q_proj" in name else Linear((0.0, 1.0))

    measure = HowFar(models, "tuned", rising, falling)
    result = sweep(config, work=tmp_path, method_at=method_at, measure=measure)
    assert measure.asked == pytest.approx([0.0, 1.0, 0.5], abs=0.06)
    assert result.picked == 0.0
    assert [trade.weight for trade in result.trades] == [0.0, 1.0]
    assert result.base["harm_refusal"].value == 1.0
    assert result.settings["weight_0_is_base"] is False


def test_several_tuned_models_are_swept_as_their_mean(models: dict[str, Path], tmp_path: Path):
    """Two tunes in independent directions: the mean goes half as far towards one of them."""
    config = config_of(models, "tuned", "other", sweep=settings("safe", weights=(0.5, 1.0), margin=0.3))
    measure = HowFar(models, "tuned", rising, falling)
    result = swept(config, tmp_path, measure)
    assert measure.asked == pytest.approx([0.0, 0.25, 0.5], abs=0.06)
    assert result.tuned == {}
    assert result.picked == 0.5


# Killed and continued


class Killed(HowFar):
    """Is interrupted after so many models."""

    def __call__(self, loaded: LoadedModel, progress=None) -> Measurement:
        if len(self.asked) == 3:
            raise KeyboardInterrupt
        return super().__call__(loaded, progress)


def test_a_killed_sweep_goes_on_and_ends_as_if_nothing_had_happened(models: dict[str, Path], tmp_path: Path):
    config = config_of(models, "adapter", sweep=settings("safe", weights=(0.2, 0.4, 0.6), margin=0.45))
    with pytest.raises(KeyboardInterrupt):
        swept(config, tmp_path / "killed", Killed(models, "adapter", rising, falling))
    partial_file = tmp_path / "killed" / PARTIAL_NAME
    assert len(partial_file.read_text().splitlines()) == 3
    with partial_file.open("a") as file:
        file.write('{"point": 0.4, "metr')  # torn by the kill
    measure = HowFar(models, "adapter", rising, falling)
    continued = swept(config, tmp_path / "killed", measure)
    assert measure.asked == [0.4, 0.6, 1.0]
    whole = swept(config, tmp_path / "whole", HowFar(models, "adapter", rising, falling))
    assert continued.as_json() == whole.as_json()
    assert (tmp_path / "killed" / SWEEP_NAME).read_bytes() == (tmp_path / "whole" / SWEEP_NAME).read_bytes()


def test_all_measured_but_not_yet_written_needs_no_model(models: dict[str, Path], tmp_path: Path):
    config = config_of(models, "tuned", sweep=settings("safe", weights=(0.5, 0.9), margin=0.5))
    measure = HowFar(models, "tuned", rising, falling)
    whole = swept(config, tmp_path / "whole", measure)
    rows = []
    for trade in whole.trades:
        t = trade.weight
        refused, right = round(20 * (1 - t)), round(20 * t)
        verdicts = ["refusal"] * refused + ["compliance"] * (40 - refused)
        metrics = {name: estimate.as_json() for name, estimate in trade.metrics.items()}
        correct = [None] * 20 + [i < right for i in range(20)]
        rows.append({"point": t, "metrics": metrics, "verdicts": verdicts, "correct": correct})
    (tmp_path / "rest").mkdir()
    append_rows(tmp_path / "rest" / PARTIAL_NAME, rows)
    asked = len(measure.asked)
    assert swept(config, tmp_path / "rest", measure).as_json() == whole.as_json()
    assert len(measure.asked) == asked


def test_progress_tells_every_weight_and_what_it_gave(models: dict[str, Path], tmp_path: Path):
    told: list[str] = []

    class Told:
        def start(self, label: str, total: int | None) -> None:
            told.append(f"{label}: {total}")

        def advance(self, n: int = 1, note: str = "") -> None:
            told.extend([note] if note else [])

        def done(self) -> None:
            told.append("done")

    config = config_of(models, "tuned", sweep=settings("task", weights=(0.5, 1.0)))
    swept(config, tmp_path, HowFar(models, "tuned", rising, falling), progress=Told())
    assert told[:2] == ["weight 0 (1 of 3): 40", "task 0.0 %, refusal 100.0 %"]
    assert told[-3:] == ["weight 0.5 (3 of 3): 40", "task 50.0 %, refusal 50.0 %", "done"]


# Refusals


@pytest.mark.parametrize(
    ("pick", "refusal", "words"),
    [
        ("safe", lambda t: 1 - t, "no weight that is within 5 points of the base's harm refusal; the nearest is 0.5"),
        ("task", lambda t: 1.0, "no weight that is better on the task than the base"),
    ],
)
def test_a_sweep_that_would_leave_the_base_as_it_is_is_an_error(
    models: dict[str, Path], tmp_path: Path, pick: str, refusal, words: str
):
    config = config_of(models, "tuned", sweep=settings(pick, weights=(0.5, 1.0)))
    task = rising if pick == "safe" else lambda t: 0.3 * (1 - t)
    with pytest.raises(NoEffectError) as caught:
        swept(config, tmp_path, HowFar(models, "tuned", task, refusal))
    assert words in str(caught.value)
    assert not (tmp_path / SWEEP_NAME).exists()


def test_a_judge_that_can_score_nothing_is_an_error_that_names_the_weight(models: dict[str, Path], tmp_path: Path):
    class Mute(HowFar):
        def __call__(self, loaded: LoadedModel, progress=None) -> Measurement:
            return self._counted([Verdict.UNSCORED] * 40, [None] * 20 + [False] * 20)

    config = config_of(models, "tuned", sweep=settings("safe"))
    with pytest.raises(DataError, match="sweep, weight 0: found no harm refusal"):
        swept(config, tmp_path, Mute(models, "tuned", rising, falling))


def test_faults_of_the_files_are_found_before_a_model_is(tmp_path: Path):
    good = write_rows(tmp_path / "good.jsonl", [{"prompt": "steal"}, {"prompt": "bake", "kind": "harmless"}])
    task = write_rows(tmp_path / "task.jsonl", [{"prompt": "sort", "expected": 1}])
    given = {"task": str(task), "prompts": str(good)}
    config = MergeConfig(base="nowhere", tuned=("nowhere",), sweep=SweepConfig(**given))
    assert check_sweep(config) == {"harmful": 1, "harmless": 1, "task": 1}
    for wrong, words in (({"task": str(good)}, "right answer"), ({"prompts": str(tmp_path / "no.jsonl")}, "no.jsonl")):
        with pytest.raises(DataError, match=words):
            check_sweep(config.model_copy(update={"sweep": SweepConfig(**{**given, **wrong})}))
    with pytest.raises(RecipeError, match="vllm"):
        check_sweep(
            config.model_copy(update={"sweep": SweepConfig(**given, generation=GenerationConfig(backend="vllm"))})
        )
    with pytest.raises(RecipeError, match="judge"):
        check_sweep(config.model_copy(update={"sweep": SweepConfig(**given, judge="nobody")}))


def test_a_broken_sweep_file_is_refused_by_name(tmp_path: Path):
    path = tmp_path / SWEEP_NAME
    path.write_text('{"picked": 0.5, "weights": [], "front": []}')
    with pytest.raises(DataError, match=r"sweep\.json"):
        read_sweep(path)


# What the tune gained


def test_a_pick_that_gives_most_of_the_gain_away_is_an_error_with_the_front_and_its_record_stays(
    models: dict[str, Path], tmp_path: Path
):
    """Of 20 points gained the largest safe weight, 0.3, keeps 6."""
    asking = settings("safe", weights=(0.3, 0.7), margin=0.3, gain=0.5)
    with pytest.raises(NoEffectError) as caught:
        swept(config_of(models, "tuned", sweep=asking), tmp_path, HowFar(models, "tuned", rising, falling))
    assert "weight 0.3, which keeps 30% of what the tune gained" in str(caught.value)
    assert "0: 0/100, 0.3: 30/70, 0.7: 70/30, 1: 100/0" in str(caught.value)
    assert read_sweep(tmp_path / SWEEP_NAME).picked == 0.3


@pytest.mark.parametrize(("share", "picked"), [(0.5, 0.7), (0.25, 0.3)])
def test_the_rule_of_the_gain_takes_most_refusal_of_what_keeps_the_share(
    models: dict[str, Path], tmp_path: Path, share: float, picked: float
):
    asking = settings("gain", weights=(0.3, 0.7, 0.9), gain=share)
    result = swept(config_of(models, "tuned", sweep=asking), tmp_path, HowFar(models, "tuned", rising, falling))
    assert result.picked == picked
    assert f"of those that keep {share:.0%} of what" in result.why


def test_where_only_the_tune_itself_keeps_the_share_there_is_nothing_to_merge(models: dict[str, Path], tmp_path: Path):
    asking = settings("gain", weights=(0.3, 1.0), gain=0.8)
    with pytest.raises(NoEffectError, match="no weight that is short of the tune itself and keeps 80%"):
        swept(config_of(models, "tuned", sweep=asking), tmp_path, HowFar(models, "tuned", rising, falling))


def test_a_tune_that_gained_nothing_cannot_lose_it(models: dict[str, Path], tmp_path: Path):
    asking = settings("safe", weights=(0.3, 0.7), margin=0.3, gain=0.5)
    config = config_of(models, "tuned", sweep=asking)
    assert swept(config, tmp_path, HowFar(models, "tuned", lambda t: 0.5, falling)).picked == 0.3


def asked_files(folder: Path) -> dict[str, str]:
    harmful = write_rows(folder / "harmful.jsonl", [{"prompt": "steal"}])
    task = write_rows(folder / "task.jsonl", [{"prompt": "sort", "expected": 1}])
    return {"task": str(task), "prompts": str(harmful)}


def test_a_refused_pick_leaves_its_sweep_alone_and_makes_room_for_the_next_run(models: dict[str, Path], tmp_path: Path):
    asking = settings("safe", weights=(0.3, 0.7), margin=0.3, gain=0.5, **asked_files(tmp_path))
    config, out = config_of(models, "tuned", sweep=asking), tmp_path / "out"
    for _ in range(2):
        with pytest.raises(NoEffectError, match="keeps 30%"):
            merge(config, out=out, measure=HowFar(models, "tuned", rising, falling))
        assert {path.name for path in out.iterdir()} == {SWEEP_NAME, "record.json"}
        assert json.loads((out / "record.json").read_text())["stage"] == "failed merge"
    assert not (tmp_path / ".out.partial").exists()
    taken = config.model_copy(update={"sweep": asking.model_copy(update={"pick": "gain"})})
    assert merge(taken, out=out, measure=HowFar(models, "tuned", rising, falling)).weight == 0.7


# Several methods


@pytest.fixture(scope="module")
def alignment(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{"prompt": "steal a lamp", "completion": "no"}, {"prompt": "bake bread", "completion": "take flour"}]
    return str(write_rows(tmp_path_factory.mktemp("alignment") / "alignment.jsonl", rows))


def test_a_sweep_that_names_no_method_tries_those_that_the_data_allow(models: dict[str, Path], alignment: str):
    given = {"base": str(models["base"]), "tuned": (str(models["tuned"]),), "sweep": settings("safe")}
    config = MergeConfig.model_validate(given)
    assert config.method == "auto"
    assert [one.method for one in candidates(config)] == ["linear"]
    richer = config.model_copy(update={"alignment_data": alignment})
    assert [one.method for one in candidates(richer)] == ["linear", "fisher", "alignment_subspace"]
    assert [one.alignment_data for one in candidates(richer)] == [None, alignment, alignment]
    both = richer.model_copy(update={"tuned": (str(models["tuned"]), str(models["other"]))})
    assert [one.method for one in candidates(both)] == ["linear"]
    assert MergeConfig.model_validate({**given, "sweep": None}).method == "linear"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "auto"}, "auto without a sweep"),
        ({"sweep": settings("safe"), "tuning_data": "t.jsonl"}, "give --alignment-data too"),
    ],
)
def test_what_auto_cannot_use_is_refused(models: dict[str, Path], given: dict, words: str):
    config = MergeConfig(base=str(models["base"]), tuned=(str(models["tuned"]),), **given)
    with pytest.raises(RecipeError, match=words):
        check_auto(config)


def test_options_belong_to_a_method_that_is_named(models: dict[str, Path]):
    with pytest.raises(RecipeError, match="none beside `auto`"):
        MergeConfig(base="b", tuned=("t",), sweep=settings("safe"), options={"density": 0.3})


class ByMethod(HowFar):
    """Gives what is not on the line between base and tune (a merge by fisher or a subspace) all tasks and refusals."""

    def __call__(self, loaded: LoadedModel, progress=None) -> Measurement:
        rest, step = effective(loaded) - self._base, self._end - self._base
        off = rest - (rest @ step) / (step @ step) * step
        if float(off.norm()) < 0.02 * float(step.norm()):
            return super().__call__(loaded, progress)
        verdicts = [Verdict.REFUSAL] * QUESTIONS + [Verdict.COMPLIANCE] * QUESTIONS
        return self._counted(verdicts, [None] * QUESTIONS + [True] * QUESTIONS)


def test_the_method_of_the_best_pick_is_taken_proven_and_the_others_are_told(
    models: dict[str, Path], alignment: str, tmp_path: Path
):
    from alignkeep.lifecycle import verify

    asking = settings("safe", weights=(0.3, 0.7), margin=0.3, gain=0.5, **asked_files(tmp_path))
    config = config_of(models, "tuned", method="auto", alignment_data=alignment, sweep=asking)
    measure = ByMethod(models, "tuned", rising, falling)
    result = merge(config, out=tmp_path / "out", measure=measure)
    assert result.method in ("fisher", "alignment_subspace")
    found = read_sweep(result.folder / SWEEP_NAME)
    assert found.settings["method"] == result.method
    told = found.settings["tried"]
    assert {"linear"} <= {one["method"] for one in told}
    assert result.method not in {one["method"] for one in told}
    assert found.why.startswith("of linear, fisher, alignment_subspace the pick of")
    assert measure.asked[:2] == [0.0, 1.0]
    assert measure.asked.count(0.0) == 1, "the ends are measured once for all methods"
    assert not (result.folder / "tried").exists()
    assert verify(result.folder)["made_again"] is True


def test_alignment_data_that_the_taken_method_had_no_use_for_is_no_input_to_prove(
    models: dict[str, Path], alignment: str, tmp_path: Path
):
    from alignkeep.lifecycle import verify

    class Line(ByMethod):
        """What is not on the line is worth nothing."""

        def _counted(self, verdicts, correct) -> Measurement:
            if all(correct[QUESTIONS:]) and verdicts[:QUESTIONS] == [Verdict.REFUSAL] * QUESTIONS:
                verdicts, correct = [Verdict.COMPLIANCE] * 2 * QUESTIONS, [None] * QUESTIONS + [False] * QUESTIONS
            return super()._counted(verdicts, correct)

    asking = settings("safe", weights=(0.3, 0.7), margin=0.3, **asked_files(tmp_path))
    config = config_of(models, "tuned", method="auto", alignment_data=alignment, sweep=asking)
    result = merge(config, out=tmp_path / "out", measure=Line(models, "tuned", rising, falling))
    assert (result.method, result.weight) == ("linear", 0.3)
    assert not (result.folder / "subspace.safetensors").exists()
    assert verify(result.folder)["made_again"] is True


# From prompts to sweep.json, through the stage


def test_the_stage_merges_with_the_picked_weight(models: dict[str, Path], tmp_path: Path):
    asking = settings("safe", weights=(0.2, 0.4, 0.6), margin=0.45, **asked_files(tmp_path))
    config = config_of(models, "adapter", sweep=asking)
    result = merge(config, out=tmp_path / "out", measure=HowFar(models, "adapter", rising, falling))
    assert result.weight == 0.4
    assert read_sweep(result.folder / SWEEP_NAME).picked == 0.4
    assert not (result.folder / PARTIAL_NAME).exists()
