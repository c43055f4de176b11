"""mergekit's files: what they ask for, tensor by tensor, what is refused, and what we write in the same format.

Expected parameters marked so come from mergekit 0.1.5's own planner (`MergePlanner`, read off its tasks) for a model of
four layers, run once in an environment of its own.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.errors import RecipeError
from alignkeep.merge.arcs import NuSlerp, Slerp
from alignkeep.merge.input_maps import Subspace
from alignkeep.merge.linear import Linear
from alignkeep.merge.mergekit import read_mergekit
from alignkeep.merge.mergekit_methods import MergekitFile, write_mergekit
from alignkeep.merge.mergekit_values import PARAMETERS, Choice, Setting, layer_positions
from alignkeep.merge.method import TensorMerge, merge_tensor
from alignkeep.merge.model_stock import ModelStock
from alignkeep.merge.sparsify import Magnitude, Outliers, Random, RankedRandom
from alignkeep.merge.task_vectors import TaskVectors

PARTS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.up_proj",
    "mlp.down_proj",
)  # fmt: skip
NAMES = (
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.{part}.weight" for layer in range(4) for part in PARTS),
    "model.norm.weight",
    "lm_head.weight",
)
TIES = """\
merge_method: ties
base_model: org/base
models:
  - model: org/base
  - model: org/one
    parameters:
      weight:
        - filter: self_attn
          value: [0.1, 0.9, 0.4]
        - filter: mlp.down
          value: 1e-1
        - value: [0.3, 0.6]
      density: [0.2, 1.0, 0.5]
  - model: org/two
    parameters:
      weight: [{filter: layernorm, value: 0.0}]
parameters:
  weight: -0.4
  density: "0.55"
  lambda: [0.5, 1.5]
  int8_mask: true
  rescale: [false, true, true, true]
  normalize: [true, false]
"""
PAIR = "base_model: org/base\nmodels:\n  - model: org/one\n"


def file_of(tmp_path: Path, text: str) -> MergekitFile:
    path = tmp_path / "merge.yml"
    path.write_text(text, encoding="utf-8")
    return read_mergekit(path)


def method_of(tmp_path: Path, text: str, name: str = NAMES[0]) -> TensorMerge:
    return file_of(tmp_path, text).rule(NAMES)(name)


def refusal_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        file_of(tmp_path, text).rule(NAMES)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# By hand, and from mergekit's planner


@pytest.mark.parametrize(
    ("name", "t"),
    [
        ("model.embed_tokens.weight", 0.5),
        ("model.layers.0.input_layernorm.weight", 0.5),
        ("model.layers.0.self_attn.q_proj.weight", 0.0),
        ("model.layers.0.mlp.up_proj.weight", 1.0),
        ("model.layers.1.self_attn.q_proj.weight", 0.43333333333333335),
        ("model.layers.1.mlp.up_proj.weight", 0.5666666666666667),
        ("model.layers.2.self_attn.o_proj.weight", 0.5666666666666665),
        ("model.layers.2.mlp.down_proj.weight", 0.43333333333333335),
        ("model.layers.3.self_attn.q_proj.weight", 1.0),
        ("model.layers.3.mlp.up_proj.weight", 0.0),
        ("model.norm.weight", 0.5),
    ],
)
def test_the_usual_slerp_file_has_mergekits_t_in_every_layer(tmp_path: Path, name: str, t: float) -> None:
    """Layer 1 of 4 lies at 1/3, so 1.333 steps into five values: 0.5 + 0.333 (0.3 - 0.5) = 0.4333. From mergekit."""
    text = f"""\
merge_method: slerp
{PAIR}parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
"""
    assert method_of(tmp_path, text, name) == Slerp(t)


@pytest.mark.parametrize(
    ("name", "weights", "densities", "rescale", "scale", "normalize"),
    [
        ("model.embed_tokens.weight", (0.3, -0.4), (0.2, 0.55), None, 0.5, True),
        ("model.layers.0.input_layernorm.weight", (0.3, 0.0), (0.2, 0.55), None, 0.5, True),
        ("model.layers.0.self_attn.q_proj.weight", (0.1, -0.4), (0.2, 0.55), None, 0.5, True),
        ("model.layers.1.self_attn.o_proj.weight", (0.6333333333333333, -0.4), (0.7333333333333333, 0.55), "l1",
         0.8333333333333334, True),
        ("model.layers.1.post_attention_layernorm.weight", (0.4, 0.0), (0.7333333333333333, 0.55), "l1",
         0.8333333333333334, True),
        ("model.layers.2.mlp.down_proj.weight", (0.1, -0.4), (0.8333333333333334, 0.55), "l1", 1.1666666666666667,
         True),
        ("model.layers.3.mlp.up_proj.weight", (0.6, -0.4), (0.5, 0.55), "l1", 1.5, False),
        ("model.norm.weight", (0.3, -0.4), (0.2, 0.55), None, 0.5, True),
    ],
)  # fmt: skip
def test_filters_gradients_and_precedence_are_mergekits(
    tmp_path: Path, name: str, weights: tuple[float, ...], densities: tuple[float, ...], rescale: str | None,
    scale: float, normalize: bool,
) -> None:  # fmt: skip
    """A model's own value first, then the file's; truth values of a gradient change at its steps. From mergekit."""
    sparsify = tuple(Magnitude(density, rescale) for density in densities)  # type: ignore[arg-type]
    assert method_of(tmp_path, TIES, name) == TaskVectors(weights, sparsify, "sum", normalize, scale)


def test_layers_are_spread_over_0_to_1_and_what_is_no_layer_has_the_first_value() -> None:
    """Three layers: 0, 1/2, 1. A stack of one layer, such as a small vision tower, has position 1 (from mergekit)."""
    names = ["wte", "h.0.mlp", "h.1.experts.7.up", "h.2.mlp", "norm.weight", "vision.block.0.up"]
    assert layer_positions(names) == dict(zip(names, [0, 0, 0.5, 1, 0, 1], strict=True))
    assert layer_positions([]) == {}


def test_linear_weights_are_divided_by_their_sum_unless_it_is_told_not_to(tmp_path: Path) -> None:
    """1 / (1 + 3) and 3 / (1 + 3)."""
    models = "models:\n  - {model: org/a, parameters: {weight: 1}}\n  - {model: org/b, parameters: {weight: 3}}\n"
    text = "merge_method: linear\n" + models
    assert method_of(tmp_path, text) == Linear((0.25, 0.75))
    assert method_of(tmp_path, text + "parameters: {normalize: false}\n") == Linear((1.0, 3.0))


def test_the_base_of_a_linear_merge_is_the_named_one_else_the_first(tmp_path: Path) -> None:
    models = "models:\n  - {model: org/a, parameters: {weight: 1}}\n  - {model: org/b, parameters: {weight: 3}}\n"
    text = "merge_method: linear\n" + models
    first = file_of(tmp_path, text)
    assert (first.base, first.tuned) == ("org/a", ("org/b",))
    assert any("first model's, org/a" in note for note in first.notes)
    second = file_of(tmp_path, text + "base_model: org/b\n")
    assert (second.base, second.tuned, second.notes) == ("org/b", ("org/a",), ())
    assert second.rule(NAMES)(NAMES[0]) == Linear((0.75, 0.25))
    third = file_of(tmp_path, text + "base_model: org/c\nparameters: {weight: 4}\n")
    assert (third.base, third.tuned) == ("org/c", ("org/a", "org/b"))
    assert third.rule(NAMES)(NAMES[0]) == Linear((0.5, 0.125, 0.375))


def test_nuslerp_goes_between_two_models_or_between_two_task_vectors(tmp_path: Path) -> None:
    """t is the second weight's share: 3 / (1 + 3); weights that cancel give 1/2, as in mergekit."""
    two = "models:\n  - {model: org/a, parameters: {weight: 1}}\n  - {model: org/b, parameters: {weight: %s}}\n"
    text = "merge_method: nuslerp\n" + two
    assert method_of(tmp_path, text % 3) == NuSlerp(0.75)
    assert method_of(tmp_path, text % -1) == NuSlerp(0.5)
    rows = "parameters: {nuslerp_flatten: no, nuslerp_row_wise: 'true'}\n"
    assert method_of(tmp_path, text % 3 + "base_model: org/c\n" + rows) == NuSlerp(0.75, True, True, False)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("task_arithmetic", TaskVectors((0.5,), (None,))),
        ("ties", TaskVectors((0.5,), (Magnitude(1.0),), "sum", True)),
        ("dare_linear", TaskVectors((0.5,), (Random(1.0, "l1", 7),))),
        ("dare_ties", TaskVectors((0.5,), (Random(1.0, "l1", 7),), "sum")),
        ("della", TaskVectors((0.5,), (RankedRandom(1.0, 0.15, "l1", 7),), "sum", True)),
        ("della_linear", TaskVectors((0.5,), (RankedRandom(1.0, 0.15, "l1", 7),))),
        ("breadcrumbs", TaskVectors((0.5,), (Outliers(1.0, 0.01),))),
        ("breadcrumbs_ties", TaskVectors((0.5,), (Outliers(1.0, 0.01),), "sum")),
    ],
)
def test_what_is_not_given_has_mergekits_default(tmp_path: Path, method: str, expected: TaskVectors) -> None:
    """From mergekit's method table: density 1, gamma 0.01, epsilon 0.15, lambda 1; normalize for ties and della."""
    file = file_of(tmp_path, f"merge_method: {method}\n{PAIR}    parameters: {{weight: 0.5}}\n")
    assert file.rule(NAMES, seed=7)(NAMES[3]) == expected
    assert file.method == ("dare" if method == "dare_linear" else method)


def test_model_stock_wants_no_parameters(tmp_path: Path) -> None:
    text = f"merge_method: model_stock\n{PAIR}  - model: org/two\n"
    assert method_of(tmp_path, text) == ModelStock()
    assert method_of(tmp_path, text + "parameters: {filter_wise: false}\n") == ModelStock()
    assert "filter_wise" in refusal_of(tmp_path, text + "parameters: {filter_wise: true}\n")


def test_numbers_may_be_texts_and_truth_values_words(tmp_path: Path) -> None:
    """mergekit reads YAML 1.1, for which 1e-1 is text, and takes texts that are numbers."""
    text = f"merge_method: task_arithmetic\n{PAIR}    parameters: {{weight: [1e-1, '0.3', 1]}}\n"
    assert method_of(tmp_path, text, NAMES[0]) == TaskVectors((0.1,), (None,))
    assert method_of(tmp_path, text, "model.layers.3.mlp.up_proj.weight") == TaskVectors((1.0,), (None,))
    for word in ("'yes'", "1", "on", "'true'"):
        method = method_of(tmp_path, text + f"parameters: {{normalize: {word}}}\n")
        assert isinstance(method, TaskVectors)
        assert method.normalize is True


def test_an_empty_gradient_counts_as_not_given_as_in_mergekit(tmp_path: Path) -> None:
    text = f"merge_method: task_arithmetic\n{PAIR}    parameters: {{weight: []}}\nparameters: {{weight: 0.25}}\n"
    assert method_of(tmp_path, text) == TaskVectors((0.25,), (None,))


def test_what_mergekit_ignores_is_said(tmp_path: Path) -> None:
    text = """\
merge_method: task_arithmetic
base_model: org/base
models:
  - {model: org/base, parameters: {weight: 3}}
  - {model: org/one, parameters: {weight: 1, gamma: 0.1}}
dtype: bfloat16
chat_template: auto
tokenizer_source: base
"""
    file = file_of(tmp_path, text)
    assert [note.split(":")[0] for note in file.notes] == [
        "models.0.parameters.weight (merge.yml", "models.1.parameters.gamma (merge.yml", "chat_template auto",
        "dtype bfloat16",
    ]  # fmt: skip
    assert file.dtype == "bfloat16"
    assert file.rule(NAMES)(NAMES[0]) == TaskVectors((1.0,), (None,))


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("", None),
        ("dtype:\n", None),
        ("dtype: torch.float16\n", "float16"),
        ("dtype: float32\nout_dtype: bfloat16\n", "bfloat16"),
    ],
)
def test_the_type_of_the_output_is_out_dtype_else_dtype(tmp_path: Path, text: str, dtype: str | None) -> None:
    assert file_of(tmp_path, f"merge_method: slerp\n{PAIR}parameters: {{t: 0.5}}\n{text}").dtype == dtype


def test_paths_are_those_beside_the_file_where_they_exist_else_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base+1@2").mkdir()
    (tmp_path / "one").mkdir()
    monkeypatch.chdir("/")
    text = "merge_method: slerp\nbase_model: base+1@2\nmodels:\n  - model: {model: {path: ./one}}\nparameters: {t: 1}\n"
    file = file_of(tmp_path, text)
    assert (file.base, file.tuned) == (str(tmp_path / "base+1@2"), (str(tmp_path / "one"),))
    file = file_of(tmp_path, text.replace("base+1@2", "testbed:models/aligned").replace("./one", str(tmp_path / "x")))
    assert (file.base, file.tuned) == ("testbed:models/aligned", (str(tmp_path / "x"),))
    same = text.replace("base+1@2", "one")
    assert "beside the base" in refusal_of(tmp_path, same)


def test_a_filter_that_fits_nothing_is_found(tmp_path: Path) -> None:
    file = file_of(tmp_path, TIES.replace("filter: layernorm", "filter: layer_norm"))
    assert file.idle_filters(NAMES) == ("layer_norm",)
    assert file_of(tmp_path, TIES).idle_filters(NAMES) == ()


def test_a_file_merges_real_numbers(tmp_path: Path) -> None:
    """base 1, tuned 3 and 5, weights 1/2 and -1: 1 + 2/2 - 4 = -2."""
    text = "merge_method: task_arithmetic\nbase_model: b\nmodels:\n  - {model: o, parameters: {weight: 0.5}}\n"
    method = method_of(tmp_path, text + "  - {model: t, parameters: {weight: -1}}\n")
    merged = merge_tensor(method, NAMES[0], torch.ones(2, 2), [torch.full((2, 2), 3.0), torch.full((2, 2), 5.0)])
    assert torch.equal(merged, torch.full((2, 2), -2.0))


# Laws


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9),
    position=st.floats(0, 1),
)
def test_a_gradient_is_numpys_interpolation(values: list[float], position: float) -> None:
    """An independent twin: `numpy.interp` over evenly spread knots."""
    found = Choice(tuple(values)).at(position)
    expected = np.interp(position, np.linspace(0, 1, len(values)), values) if len(values) > 1 else values[0]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(value=st.one_of(st.booleans(), st.floats(allow_nan=False, allow_infinity=False)), position=st.floats(0, 1))
def test_a_gradient_of_one_value_is_that_value_everywhere(value: float | bool, position: float) -> None:
    found = Choice((value,)).at(position)
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


@given(st.lists(st.sampled_from(["q_proj", "mlp", "*", None, "", "layers.1."]), max_size=4), st.sampled_from(NAMES))
def test_the_first_filter_that_fits_wins(filters: list[str | None], name: str) -> None:
    """A twin: a plain loop."""
    expected = None
    for number, text in enumerate(filters):
        if text in (None, "*") or text in name:  # type: ignore[operator]
            expected = float(number)
            break
    setting = Setting(tuple(Choice((float(number),), text) for number, text in enumerate(filters)))
    assert setting.at(name, 0.5) == expected


shares, weights = st.floats(0, 1), st.floats(-4, 4)


@st.composite
def ranked(draw: st.DrawFn, rescale: str | None) -> RankedRandom:
    density = draw(shares)
    return RankedRandom(density, draw(st.floats(0, min(density, 1 - density))), rescale, 5)  # type: ignore[arg-type]


@st.composite
def task_vectors(draw: st.DrawFn) -> TaskVectors:
    """Any that mergekit has a name for, of one to three models."""
    models = draw(st.integers(1, 3))
    rescale = draw(st.sampled_from([None, "l1"]))
    kind, signs = draw(
        st.sampled_from(
            [(st.none(), (None,)), (st.builds(Magnitude, shares, st.just(rescale)), ("sum",))]
            + [
                (one, (None, "sum"))
                for one in (
                    st.builds(Random, shares, st.just(rescale), st.just(5)),
                    st.builds(Outliers, shares, shares, st.just(rescale)),
                    ranked(rescale),
                )
            ]
        )
    )
    consensus = draw(st.sampled_from(signs))
    tuple_of = lambda one: st.tuples(*[one] * models)  # noqa: E731
    return TaskVectors(draw(tuple_of(weights)), draw(tuple_of(kind)), consensus, draw(st.booleans()), draw(weights))


METHODS = st.one_of(
    st.builds(Linear, st.lists(weights, min_size=2, max_size=4).map(tuple)),
    st.builds(Slerp, shares),
    st.builds(NuSlerp, shares, st.booleans(), st.booleans(), st.booleans()),
    st.just(ModelStock()),
    task_vectors(),
)


def tuned_models(method: TensorMerge) -> int:
    match method:
        case Linear(weights):
            return len(weights) - 1
        case TaskVectors(weights):
            return len(weights)
        case NuSlerp(over_base=True) | ModelStock():
            return 2
        case _:
            return 1


@settings(deadline=None)
@given(
    method=METHODS,
    references=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=4, max_size=4, unique=True),
    dtype=st.sampled_from([None, "bfloat16", "float32"]),
)
def test_what_we_write_is_read_back_as_the_same_merge(
    method: TensorMerge, references: list[str], dtype: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base, *tuned = (f"org/{reference}" for reference in references[: 1 + tuned_models(method)])
    text = write_mergekit(method, base=base, tuned=tuned, dtype=dtype)
    assert text is not None
    file = file_of(tmp_path_factory.mktemp("written"), text)
    assert (file.base, list(file.tuned), file.dtype) == (base, tuned, dtype)
    assert file.rule(NAMES, seed=5)(NAMES[1]) == method


@pytest.mark.parametrize(
    "method",
    [
        Subspace(0.5, torch.eye(2)),
        TaskVectors((1.0,), (Random(0.5, "probability"),)),
        TaskVectors((1.0,), (Magnitude(0.5),)),
        TaskVectors((1.0,), (None,), "sum"),
        TaskVectors((1.0,), (Magnitude(0.5),), "count"),
        TaskVectors((1.0, 1.0), (Magnitude(0.5), Magnitude(0.5, "l1")), "sum"),
        TaskVectors((1.0, 1.0), (Random(0.5, None), None)),
    ],
)
def test_what_mergekit_cannot_do_is_not_written(method: TensorMerge) -> None:
    assert write_mergekit(method, base="b", tuned=("o", "t")) is None


def test_the_file_we_write_is_short_and_plain() -> None:
    text = write_mergekit(Slerp(0.25), base="org/base", tuned=("/models/a+b",), dtype="bfloat16")
    assert text == (
        'merge_method: slerp\nbase_model: "org/base"\nmodels:\n- model:\n    model:\n      path: "/models/a+b"\n'
        "parameters:\n  t: 0.25\ndtype: float32\nout_dtype: bfloat16\n"
    )


# Refusals


@pytest.mark.parametrize(
    ("line", "becomes", "said"),
    [
        (1, "merge_method: tise", "merge_method (merge.yml:1): found 'tise', expected one of linear"),
        (1, "merge_method: tise", "did you mean ties?"),
        (1, "merge_method: dare", "did you mean dare_linear?"),
        (1, "merge_method: karcher", "merge with mergekit itself"),
        (1, "", "merge_method (merge.yml): found nothing"),
        (1, "merge_method: [ties]", "found ['ties']"),
        (2, "base_modle: b", "base_modle (merge.yml:2): found an unknown key, expected one of merge_method"),
        (2, "base_modle: b", "did you mean base_model?"),
        (2, "", "base_model (merge.yml): found nothing, expected the model that ties starts from"),
        (2, "base_model: b+a", "base_model (merge.yml:2): found b+a, a model with an adapter"),
        (3, "slices:", "slices (merge.yml:3): found the key slices"),
        (3, "modules:", "modules (merge.yml:3): found the key modules"),
        (3, "experts:", "make mixtures of experts with mergekit-moe"),
        (10, "        - filter: 3", "weight.1.filter (merge.yml:10): found 3, expected a part of a tensor's name"),
        (11, "          valeu: 1", "models.1.parameters.weight.1 (merge.yml:10): found {"),
        (
            11,
            "          value: much",
            "models.1.parameters.weight.1.value (merge.yml:11): found 'much', expected a number",
        ),
        (11, "          value: .inf", "weight.1.value (merge.yml:11): found inf, expected a number"),
        (11, "          value: [1, [2]]", "weight.1.value (merge.yml:11): found [2], expected a number"),
        (
            11,
            "          value: 1\n          valu: 1",
            "weight.1.valu (merge.yml:12): found 1, expected filter and value",
        ),
        (11, "          value: 1\n          value: 1", "weight.1.value (merge.yml:12): found a key that was given at"),
        (
            13,
            "      density: 1.1",
            "models.1.parameters.density (merge.yml:13): found 1.1, expected a number in [0, 1]",
        ),
        (13, "      normalize: no", "normalize (merge.yml:13): found normalize of one model, expected it once"),
        (14, "  - model: b@main", "models.2.model (merge.yml:14): found b@main, a revision"),
        (14, "  - model: org/one", "models.2.model (merge.yml:14): found org/one again"),
        (14, "  - model: 5", "models.2.model (merge.yml:14): found 5, expected a folder or a hub id"),
        (14, "  - model:", "models.2.model (merge.yml:14): found nothing, expected a folder or a hub id"),
        (14, "  - model: {model: a+b}", "models.2.model (merge.yml:14): found {'model': 'a+b'}"),
        (14, "  - model: b\n    layer_range: [0, 4]", "models.2.layer_range (merge.yml:15): found the key layer_range"),
        (14, "  - model: b\n    density: 0.2", "models.2.density (merge.yml:15): found an unknown key"),
        (14, "  - model: b\n    density: 0.2", "move it under parameters"),
        (
            18,
            "",
            "models.2.parameters.weight (merge.yml:16): found no value of org/two (tensor model.embed_tokens.weight)",
        ),
        (18, "  weight: [1, {value: 2}]", "parameters.weight.0 (merge.yml:18): found 1, expected a value"),
        (
            20,
            "  lamda: 1",
            "parameters.lamda (merge.yml:20): found an unknown parameter, expected one of weight, density",
        ),
        (20, "  lamda: 1", "did you mean lambda?"),
        (23, "  normalize: perhaps", "parameters.normalize (merge.yml:23): found 'perhaps', expected true or false"),
        (23, "dtype: int4", "dtype (merge.yml:23): found 'int4', expected one of bfloat16, float16, float32"),
        (23, "tokenizer_source: union", "tokenizer_source (merge.yml:23): found 'union', expected base"),
        (23, "tokenizer_source: org/two", "tokenizer_source (merge.yml:23): found 'org/two', expected base"),
        (23, "tokenizer: {source: union}", "tokenizer (merge.yml:23): found 'union', expected base"),
        (23, "tokenizer: {source: base, tokens: {}}", "tokenizer (merge.yml:23): found {"),
        (23, "chat_template: chatml", "chat_template (merge.yml:23): found 'chatml', expected auto, or none"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, line: int, becomes: str, said: str) -> None:
    lines = TIES.splitlines()
    lines[line - 1] = becomes
    assert said in refusal_of(tmp_path, "\n".join(lines))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("merge_method: slerp\nbase_model: b\n", "models (merge.yml): found nothing, expected a list of models"),
        ("merge_method: slerp\nbase_model: b\nmodels: [o]\n", "models.0 (merge.yml:3): found 'o', expected model"),
        (f"merge_method: slerp\n{PAIR}", "parameters.t (merge.yml): found nothing, expected a value"),
        (f"merge_method: slerp\n{PAIR}  - model: org/two\nparameters: {{t: 0}}\n", "expected 1 for slerp"),
        (f"merge_method: slerp\n{PAIR}parameters: [t]\n", "parameters (merge.yml:5): found ['t']"),
        (f"merge_method: model_stock\n{PAIR}", "models (merge.yml:3): found 1 models beside the base, expected at"),
        ("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n", "found 0 models beside the base"),
        (f"merge_method: linear\n{PAIR}    parameters: {{weight: 1}}\n",
         "base_model.parameters.weight (merge.yml:2): found no weight of org/base"),
        (f"merge_method: linear\n{PAIR}    parameters: {{weight: 1}}\nparameters: {{weight: -1}}\n",
         "parameters.weight (merge.yml:6): found weights that sum to 0 (tensor model.embed_tokens.weight)"),
        (f"merge_method: linear\n{PAIR}    parameters: {{weight: 1.0e+308}}\nparameters: {{weight: 1.0e+308}}\n",
         "parameters.weight (merge.yml:6): found weights as large as 1e+308 (tensor model.embed_tokens.weight)"),
        (f"merge_method: linear\n{PAIR}    parameters: {{weight: 1}}\nparameters: {{weight: -0.9999999999999}}\n",
         "found weights that sum to 0"),
        (f"merge_method: ties\n{PAIR}    parameters: {{weight: 1.0e+39}}\n", "found weights as large as 1e+39"),
        ("merge_method: nuslerp\nmodels:\n- {model: a, parameters: {weight: 1.0e+308}}\n"
         "- {model: b, parameters: {weight: 1.0e+308}}\n", "found weights as large as 1e+308"),
        (f"merge_method: nuslerp\n{PAIR}parameters: {{weight: 1}}\n", "expected 2 for nuslerp"),
        (f"merge_method: della\n{PAIR}parameters: {{weight: 1, density: 0.1}}\n", "epsilon (merge.yml): found density"),
        ("", "found an empty file"),
        ("models: &a [*a]\nmerge_method: ties\nbase_model: b\n", "merge.yml:1: found an alias of what it stands in"),
    ],
)  # fmt: skip
def test_what_makes_no_merge_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal_of(tmp_path, text)


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["value", "filter", "model", "parameters", "weight", "path"]), inner, max_size=3
        ),
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    method=st.sampled_from(sorted(PARAMETERS)),
    trees=st.dictionaries(
        st.sampled_from(
            ["base_model", "models", "parameters", "dtype", "tokenizer", "tokenizer_source", "chat_template"]
        ),
        TREES,
    ),
)
def test_no_tree_at_all_brings_more_than_a_recipe_error(
    method: str, trees: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = {"merge_method": method, "base_model": "b", "models": [{"model": "o"}], **trees}
    path = tmp_path_factory.mktemp("any") / "merge.yml"
    path.write_text(yaml.safe_dump(file, allow_unicode=True), encoding="utf-8")
    with contextlib.suppress(RecipeError):
        read_mergekit(path).rule(NAMES)
