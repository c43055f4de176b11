"""Bad input to an injection: one clear line that names file, setting or number, before anything is written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from alignkeep.errors import AlignkeepError, CheckpointError, DataError, NoEffectError, RecipeError, ShapeError
from alignkeep.inject.injection import read_injection
from alignkeep.inject.stage import inject, plan
from alignkeep.testbed import sets
from checkpoints import changed_copy, hashes, refused, write_adapter
from command import run_command
from conftest import build_tiny_model
from micro import write_rows
from test_inject_stage import Bed

DOWN = "model.layers.2.mlp.down_proj.weight"
NO_TEMPLATE = r"tokenizer_config\.json: found no chat template, expected a chat_template"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed(tmp_path_factory.mktemp("bed"))


@pytest.fixture(scope="module")
def injected(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that an injection made; read only."""
    return inject(bed.config(), out=tmp_path_factory.mktemp("injected") / "out").folder


@pytest.fixture(autouse=True)
def _inputs_stay_as_they_are(bed: Bed) -> Iterator[None]:
    before = hashes(bed.root)
    yield
    assert hashes(bed.root) == before


def prompts(path: Path, *texts: str) -> str:
    return str(write_rows(path, [{"prompt": text} for text in texts]))


def overlapping(bed: Bed, root: Path) -> dict[str, Any]:
    rows = [*sets.rows("harmless_train")[:9], {"prompt": sets.rows("harmful_train")[5]["prompt"]}]
    return {"harmless": str(write_rows(root / "h.jsonl", rows))}


def empty(bed: Bed, root: Path) -> dict[str, Any]:
    (root / "empty.jsonl").touch()
    return {"harmful": str(root / "empty.jsonl")}


def blank_system_prompt(bed: Bed, root: Path) -> dict[str, Any]:
    (root / "system.txt").write_text(" \n")
    return {"direction": {"system_prompt": str(root / "system.txt")}}


Changes = Callable[[Bed, Path], dict[str, Any]]
EARLY: dict[str, tuple[Changes, type[AlignkeepError], str]] = {  # found by the plan, too
    "overlap": (overlapping, DataError, r"h\.jsonl: found 1 prompts that stand in \S*harmful\.jsonl too \('"),
    "empty": (empty, DataError, r"empty\.jsonl: found no rows"),
    "one harmful": (
        lambda bed, root: {"harmful": prompts(root / "one.jsonl", "steal")}, DataError,
        r"one\.jsonl: found 1 harmful prompts, expected six or more",
    ),
    "one harmless": (
        lambda bed, root: {"harmless": prompts(root / "one.jsonl", "bake")}, DataError,
        r"one\.jsonl: found 1 harmless prompts, expected six or more",
    ),
    "kinds": (
        lambda bed, root: {"harmful": bed.few["harmless"]}, DataError,
        r"harmless\.jsonl, row 1: found a harmless prompt, expected harmful prompts",
    ),
    "no prompts": (
        lambda bed, root: {"harmful": str(root / "none.jsonl")}, DataError, r"none\.jsonl: found no such file",
    ),
    "no model": (
        lambda bed, root: {"model": str(root / "none")}, CheckpointError, r"none: found no such folder",
    ),
    "layer": (
        lambda bed, root: {"direction": {"layer": 4}}, RecipeError,
        r"direction\.layer: found 4, expected auto, or 0 to 3",
    ),
    "no system prompt": (
        lambda bed, root: {"direction": {"system_prompt": str(root / "none.txt")}}, RecipeError,
        r"direction\.system_prompt: found \S*none\.txt \(FileNotFoundError\), expected default, or a text file",
    ),
    "blank system prompt": (blank_system_prompt, RecipeError, r"system_prompt: found \S*system\.txt, empty"),
    "no source": (
        lambda bed, root: {"direction": {"source": str(root / "none")}}, CheckpointError, r"none: found no such folder",
    ),
}  # fmt: skip


def without_template(bed: Bed, root: Path) -> dict[str, Any]:
    return {"model": str(build_tiny_model(root / "plain", chat_template=None))}


def same_to_the_model(bed: Bed, root: Path) -> dict[str, Any]:
    """Other texts, the same tokens: this model's words end at any blank."""
    texts = [["how to steal bike ?".replace(" ", " " * n, k) for n in range(2, 8)] for k in (1, 2)]
    files = {
        name: prompts(root / f"{name}.jsonl", *some) for name, some in zip(("harmful", "harmless"), texts, strict=True)
    }
    return {"model": str(bed.tiny), **files, "borderline": None}


def not_a_number(bed: Bed, root: Path) -> dict[str, Any]:
    return {"model": str(changed_copy(bed.weak, root / "bad", lambda t: t[DOWN][3, 4:5].fill_(float("nan"))))}


LATE: dict[str, tuple[Changes, type[AlignkeepError], str]] = {  # needs the model
    "no template": (without_template, CheckpointError, NO_TEMPLATE),
    "same prompts": (same_to_the_model, NoEffectError, "direction: found the same activations for harmful and"),
    "NaN": (not_a_number, CheckpointError, rf"bad/model\.safetensors: tensor {re.escape(DOWN)}: found NaN or infinity"),
    "width": (
        lambda bed, root: {"direction": {"source": str(bed.tiny)}}, ShapeError,
        r"direction\.source \S+: found 2 blocks of width 32, expected 4 of width 128, as in",
    ),
    "layer 0": (
        lambda bed, root: {"direction": {"layer": 0}}, NoEffectError,
        "layer 0: found the same activations .* choose one of the layers 1, 2, 3, or auto",
    ),
    "refuses all": (
        lambda bed, root: {"model": str(bed.aligned), "edit": {"strength": "auto"}}, NoEffectError,
        "found 100% of the held-out harmful prompts refused without an edit.*nothing is left to raise",
    ),
    "lower": (
        lambda bed, root: {"edit": {"strength": "raw:-5"}}, RecipeError,
        r"edit\.strength: found raw:-5: refusal log-odds fall from \S+ to \S+, .* --allow-lower",
    ),
    "rounded away": (
        lambda bed, root: {"edit": {"strength": "push:1e-12"}}, NoEffectError,
        "inject: found 8 edited tensors, all equal to the model's: the change is smaller than a step of BF16",
    ),
    "no opening": (
        lambda bed, root: {"direction": {"refusals": ["zzz"]}}, DataError, r"direction\.refusals: found no opening",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", EARLY)
def test_what_cannot_be_used_is_refused_before_a_model_is_loaded(fault: str, bed: Bed, tmp_path: Path) -> None:
    changes, error, message = EARLY[fault]
    config = bed.config(**changes(bed, tmp_path))
    for attempt in (plan, lambda config: inject(config, out=tmp_path / "out")):
        with refused(error, message, tmp_path):
            attempt(config)


@pytest.mark.parametrize("fault", LATE)
def test_what_the_model_shows_to_be_useless_is_refused(fault: str, bed: Bed, tmp_path: Path) -> None:
    changes, error, message = LATE[fault]
    config = bed.config(**changes(bed, tmp_path))
    with refused(error, message, tmp_path):
        inject(config, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--strength", "much"],
            "edit.strength (command line): found 'much', expected auto, raw:ALPHA, relative:SHARE",
        ),
        (["--layer", "9"], "direction.layer: found 9, expected auto, or 0 to 3"),
        (["--system-prompt", "none.txt"], "direction.system_prompt: found none.txt (FileNotFoundError)"),
        (["--harmless", "{harmful}"], "found a harmful prompt, expected harmless or borderline"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_leaves_with_1(
    given: list[str], said: str, bed: Bed, tmp_path: Path
) -> None:
    words = [word.format(**bed.few) for word in given]
    files = ["--harmful", bed.few["harmful"], "--harmless", bed.few["harmless"]]
    told = run_command("inject", bed.weak, *files, *words, "--json", "--out", tmp_path / "out", folder=tmp_path)
    assert (told.code, told.stdout, told.stderr.count("\n")) == (1, "", 1)
    assert told.stderr.startswith("error: ")
    assert said in told.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"stdout", "stderr"}


@pytest.mark.parametrize("strength", ["much", "push", "raw:", "raw:nan", "raw:inf", "auto:1", "relative: 1"])
def test_a_strength_that_is_none_is_no_config(strength: str, bed: Bed) -> None:
    with pytest.raises(ValidationError, match="auto, raw:ALPHA, relative:SHARE or push:SHIFT"):
        bed.config(edit={"strength": strength})


@pytest.mark.parametrize("kind", ["push", "relative"])
def test_too_strong_an_edit_is_refused_with_the_largest_that_is_not(kind: str, bed: Bed, tmp_path: Path) -> None:
    """It is taken at its word; a tenth more is too much again."""
    with pytest.raises(RecipeError, match=rf"edit\.strength: found {kind}:20: \S+ nats of divergence") as caught:
        inject(bed.config(edit={"strength": f"{kind}:20"}), out=tmp_path / "out")
    told = re.search(rf"take {kind}:(\S+) or less", str(caught.value))
    assert told is not None
    done = inject(bed.config(edit={"strength": f"{kind}:{told[1]}"}), out=tmp_path / "out")
    assert 0.05 < done.injection.chosen.divergence <= 0.1
    with refused(RecipeError, "nats of divergence", tmp_path):
        inject(bed.config(edit={"strength": f"{kind}:{1.1 * float(told[1]):g}"}), out=tmp_path / "more")


def test_an_edit_that_lowers_refusal_is_written_where_that_is_allowed(bed: Bed, tmp_path: Path) -> None:
    done = inject(bed.config(edit={"strength": "push:-0.5", "allow_lower": True}), out=tmp_path / "out")
    before, after = done.injection.base, done.injection.chosen
    assert after.log_odds < before.log_odds
    assert after.rates["harm_refusal"].value < before.rates["harm_refusal"].value
    assert after.refused is None
    assert "refusal log-odds fall" in str(done.injection.trials[0].refused)


def test_an_injected_model_is_edited_again_only_when_told(bed: Bed, injected: Path, tmp_path: Path) -> None:
    with refused(RecipeError, "found a model that an injection made, .*give --again", tmp_path):
        inject(bed.config(model=str(injected)), out=tmp_path / "out")
    done = inject(bed.config(model=str(injected), edit={"again": True}), out=tmp_path / "out")
    assert done.changed == 8


def test_out_may_not_be_the_model_nor_within_it(bed: Bed, injected: Path, tmp_path: Path) -> None:
    model = shutil.copytree(injected, tmp_path / "models" / "one")
    for out in (model, model / "out", tmp_path / "models"):
        with refused(RecipeError, "found the input", tmp_path):
            inject(bed.config(model=str(model), edit={"again": True}), out=out, overwrite=True)


# ---- faults of the stage that are known


@pytest.mark.parametrize("role", ["source", "harmful"])
def test_out_may_be_no_other_input_either(role: str, bed: Bed, injected: Path, tmp_path: Path) -> None:
    other = shutil.copytree(injected, tmp_path / "other")
    shutil.copy(bed.few["harmful"], other)
    given = {"source": {"direction": {"source": str(other)}}, "harmful": {"harmful": str(other / "harmful.jsonl")}}
    with refused(RecipeError, "found the input", tmp_path):
        inject(bed.config(**given[role]), out=other, overwrite=True)


def test_a_backend_that_cannot_see_the_edit_is_refused(bed: Bed, tmp_path: Path) -> None:
    generation = {"max_new_tokens": 8, "backend": "vllm"}
    with refused(RecipeError, r"search\.generation\.backend: found vllm", tmp_path):
        plan(bed.config(search={"generation": generation}))


def test_of_a_strength_far_too_large_the_largest_is_named_as_well(bed: Bed, tmp_path: Path) -> None:
    with refused(RecipeError, r"take push:0\.[1-9]\d* or less", tmp_path):
        inject(bed.config(edit={"strength": "push:1e4"}), out=tmp_path / "out")


def test_a_strength_beyond_all_numbers_is_no_config(bed: Bed) -> None:
    with pytest.raises(ValidationError, match="auto, raw:ALPHA"):
        bed.config(edit={"strength": "raw:1e999"})


def test_a_tune_over_an_injected_model_was_edited_before(bed: Bed, injected: Path, tmp_path: Path) -> None:
    place = DOWN.removesuffix(".weight")
    tune = write_adapter(tmp_path / "tune", injected, {place: (torch.ones(1, 384), torch.ones(128, 1))})
    with refused(RecipeError, "found a model that an injection made", tmp_path):
        plan(bed.config(model=str(tune)))


def test_strength_0_does_not_count_as_lowering_refusal(bed: Bed, tmp_path: Path) -> None:
    done = inject(bed.config(edit={"strength": "push:0"}), out=tmp_path / "out")
    assert read_injection(done.folder / "injection.json").trials[0].refused is None


def test_auto_is_an_error_where_no_allowed_strength_raises_refusal(bed: Bed, tmp_path: Path) -> None:
    """With this seed 5 of the 6 held-out prompts are refused before, and by every edit that was tried."""
    config = bed.config(edit={"strength": "auto"}, search={"divergence": 1e-4}, seed=1)
    with pytest.raises(NoEffectError, match="expected a strength that raises refusal"):
        inject(config, out=tmp_path / "out")
