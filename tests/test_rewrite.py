"""The streaming engine: what is not edited keeps its bytes, what is edited is rounded once, and neither pieces nor
workers nor kills change a bit."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkeep.checkpoint.low_rank import LowRank
from alignkeep.checkpoint.rewrite import Edit, digests, rewrite
from alignkeep.checkpoint.shards import JOURNAL
from alignkeep.errors import CheckpointError, ShapeError
from alignkeep.merge.arcs import NuSlerp, Slerp
from alignkeep.merge.edits import edits_of
from alignkeep.merge.input_maps import Subspace
from alignkeep.merge.inputs import Models, read_models
from alignkeep.merge.linear import Linear
from alignkeep.merge.method import TensorMerge
from alignkeep.merge.model_stock import ModelStock
from alignkeep.merge.pieces import BLOCK
from alignkeep.merge.sparsify import Magnitude, Outliers, Random, RankedRandom
from alignkeep.merge.task_vectors import TaskVectors
from alignkeep.models.headers import TensorEntry
from checkpoints import Tensors, bits, changed_copy, noise, read_checkpoint, same_bits, write_checkpoint

FLOATS = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8.e4m3": torch.float8_e4m3fn,
    "fp8.e5m2": torch.float8_e5m2,
}
WIDE = (230, 1000)  # a little more than three blocks, in rows that no block ends with


def every_kind(seed: int) -> Tensors:
    """A tensor of every type, and of every awkward shape; types that no merge calculates with differ between seeds."""
    floats = {name: noise(9, 11, seed=seed + place, dtype=dtype) for place, (name, dtype) in enumerate(FLOATS.items())}
    return {
        **floats,
        "wide": noise(*WIDE, seed=seed + 20, dtype=torch.bfloat16),
        "vector": noise(5 * BLOCK + 1, seed=seed + 21),
        "scalar": noise(seed=seed + 22).reshape(()),
        "one": noise(1, seed=seed + 23, dtype=torch.float16),
        "cube": noise(3, 4, 5, seed=seed + 24),
        "empty": torch.empty(0, 4, dtype=torch.bfloat16),
        "int64": torch.arange(5) + seed,
        "uint8": torch.full((3, 3), seed, dtype=torch.uint8),
        "bool": torch.tensor([True, False, bool(seed % 2)]),
    }


COUNTED = ["int64", "uint8", "bool"]
EVERY_METHOD: dict[str, tuple[TensorMerge, int]] = {
    "linear": (Linear((0.4, 0.6)), 1),
    "slerp": (Slerp(0.3), 1),
    "nuslerp": (NuSlerp(0.3), 1),
    "model_stock": (ModelStock(), 2),
    "task_arithmetic": (TaskVectors((1.0, 1.0), (None, None), scale=0.6), 2),
    "ties": (TaskVectors((1.0, 1.0), (Magnitude(0.2),) * 2, consensus="sum", normalize=True, scale=0.6), 2),
    "dare": (TaskVectors((1.0,), (Random(0.5, seed=3),), scale=0.6), 1),
    "della": (TaskVectors((1.0,), (RankedRandom(0.5, 0.15, seed=3),), consensus="sum", scale=0.6), 1),
    "breadcrumbs": (TaskVectors((1.0,), (Outliers(0.9, 0.01),), scale=0.6), 1),
    "alignment_subspace": (Subspace(0.3, torch.linalg.qr(noise(WIDE[1], 7).double())[0].float()), 1),
}


def rule_for(method: TensorMerge) -> Callable[[str], TensorMerge]:
    """A subspace is one of the wide matrix; the rest is merged linearly."""
    if isinstance(method, Subspace):
        return lambda name: method if name == "wide" else Linear((0.7, 0.3))
    return lambda name: method


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A base in three shards and two tuned models, one of them in a single file."""
    root = tmp_path_factory.mktemp("every kind")
    base = write_checkpoint(root / "base", every_kind(0), shards=3)
    tuned = [write_checkpoint(root / f"tuned{n}", every_kind(50 * n), shards=3 - 2 * (n == 1)) for n in (1, 2)]
    return read_models(str(base), [str(path) for path in tuned])


def first(models: Models, count: int) -> Models:
    return Models(models.base, models.entries, models.tuned[:count], ())


def written(
    models: Models, rule: Callable[[str], TensorMerge], work: Path, *, size: int = 1 << 18, workers: int = 1
) -> Path:
    work.mkdir(exist_ok=True)
    rewrite(models.entries, edits_of(models, rule, size=size), work, workers=workers)
    return work


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_without_edits_every_shard_is_the_bases_byte_for_byte(models: Models, tmp_path: Path) -> None:
    told = rewrite(models.entries, {}, tmp_path)
    assert shard_bytes(tmp_path) == shard_bytes(models.base)
    assert {one.change for one in told} == {"copied"}
    assert [one.name for one in told] == list(models.entries)


@pytest.mark.parametrize("method", [Linear((0.0, 1.0)), Slerp(1.0), NuSlerp(1.0)])
def test_at_weight_1_floats_are_the_tuned_models_bits_and_the_rest_the_bases(
    method: TensorMerge, models: Models, tmp_path: Path
) -> None:
    found = read_checkpoint(written(first(models, 1), rule_for(method), tmp_path))
    expected = every_kind(50) | {name: every_kind(0)[name] for name in COUNTED}
    assert same_bits(found, expected)


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_neither_pieces_nor_workers_change_a_bit(name: str, models: Models, tmp_path: Path) -> None:
    method, count = EVERY_METHOD[name]
    some, rule = first(models, count), rule_for(method)
    expected = written(some, rule, tmp_path / "whole", size=1 << 20)
    for size, workers in ((1, 2), (2 * BLOCK, 4)):
        again = written(some, rule, tmp_path / f"{size}", size=size, workers=workers)
        assert shard_bytes(again) == shard_bytes(expected)
    base = read_checkpoint(models.base)
    found = read_checkpoint(expected)
    assert {key for key in base if not torch.equal(bits(base[key]), bits(found[key]))} >= {"wide", "vector", "cube"}
    assert same_bits({key: found[key] for key in COUNTED}, {key: base[key] for key in COUNTED})


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.6])
def test_linear_is_float32_arithmetic_and_one_rounding(weight: float, models: Models, tmp_path: Path) -> None:
    """The twin is torch's, of whole tensors, from the nearer end; against float64 the error is half a step of bf16."""
    found = read_checkpoint(written(first(models, 1), rule_for(Linear((1 - weight, weight))), tmp_path))
    base, tuned = every_kind(0), every_kind(50)
    for name in found.keys() - set(COUNTED):
        first_end, second_end = base[name].float(), tuned[name].float()
        twin = first_end + (second_end - first_end) * weight
        if weight >= 0.5:
            twin = second_end + (first_end - second_end) * (1 - weight)
        assert torch.equal(bits(found[name]), bits(twin.to(base[name].dtype))), name
    exact = (1 - weight) * base["wide"].double() + weight * tuned["wide"].double()
    assert (found["wide"] == exact.bfloat16()).float().mean() > 0.99
    sizes = base["wide"].double().abs() + tuned["wide"].double().abs()
    assert torch.all((found["wide"].double() - exact).abs() <= exact.abs() * 2**-8 + sizes * 2**-22)


def test_names_types_shapes_and_places_are_the_bases(models: Models, tmp_path: Path) -> None:
    written(first(models, 1), rule_for(Linear((0.4, 0.6))), tmp_path)
    for name, before in shard_bytes(models.base).items():
        data = 8 + int.from_bytes(before[:8], "little")
        after = (tmp_path / name).read_bytes()
        assert (len(after), after[:data]) == (len(before), before[:data])


def test_a_digest_is_the_hash_of_what_is_written(models: Models, tmp_path: Path) -> None:
    edits = edits_of(first(models, 1), rule_for(Linear((0.4, 0.6))))
    told = {one.name: one.sha256 for one in rewrite(models.entries, edits, tmp_path)}
    assert digests(models.entries, edits, workers=3) == told


class Made:
    """A stranger's edit: these numbers in parts of three, and how many threads torch had for them."""

    def __init__(self, numbers: Tensor) -> None:
        self.made_of, self.numbers, self.threads = (), numbers.float().flatten(), 0

    def __iter__(self) -> Iterator[Tensor]:
        self.threads = torch.get_num_threads()
        yield from (part.clone() for part in self.numbers.split(3))


def test_an_edit_that_changes_nothing_is_told_from_one_that_does(models: Models, tmp_path: Path) -> None:
    edits: dict[str, Edit | TensorEntry] = {name: Made(every_kind(0)[name]) for name in ("cube", "fp16", "empty")}
    edits |= {"wide": models.entries["wide"], "vector": models.tuned[0].entries["vector"]}
    edits["fp32"] = Made(every_kind(0)["fp32"].index_fill(0, torch.tensor([0]), 7.0))  # ends as the base's does
    told = {one.name: one.change for one in rewrite(models.entries, edits, tmp_path)}
    assert [told[name] for name in ("cube", "fp16", "empty", "wide")] == ["equal"] * 4
    assert [told[name] for name in ("fp32", "vector")] == ["changed"] * 2
    assert told["int64"] == "copied"


def test_an_edit_has_one_thread_and_has_to_fill_its_tensor(models: Models, tmp_path: Path) -> None:
    before, edit, short = torch.get_num_threads(), Made(every_kind(0)["cube"]), tmp_path / "short"
    short.mkdir()
    torch.set_num_threads(2)
    try:
        rewrite(models.entries, {"cube": edit}, tmp_path)
        assert (edit.threads, torch.get_num_threads()) == (1, 2)
        with pytest.raises(ValueError, match="tensor cube: 236 bytes were made, 240 were planned"):
            rewrite(models.entries, {"cube": Made(every_kind(0)["cube"].flatten()[1:])}, short)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", EVERY_METHOD)
def test_no_method_swallows_a_number_that_is_none(name: str, number: float, models: Models, tmp_path: Path) -> None:
    method, count = EVERY_METHOD[name]

    def spoil(tensors: Tensors) -> None:
        tensors["wide"][7, 7] = number

    single = write_checkpoint(tmp_path / "base", read_checkpoint(models.base))
    spoilt = changed_copy(single, tmp_path / "spoilt", spoil)
    tuned = [str(entry.folder) for entry in models.tuned[:count]]
    for base, others in ((single, [*tuned[1:], str(spoilt)]), (spoilt, tuned)):
        some = read_models(str(base), others)
        with pytest.raises(CheckpointError, match=r"spoilt/model.safetensors: tensor wide: found NaN or infinity"):
            written(some, rule_for(method), tmp_path / "work")


def test_a_copied_tensor_is_looked_through_as_well(models: Models, tmp_path: Path) -> None:
    spoilt = changed_copy(
        write_checkpoint(tmp_path / "good", every_kind(0)),
        tmp_path / "spoilt",
        lambda tensors: tensors.update({"fp8.e4m3": torch.full((9, 11), float("nan")).to(torch.float8_e4m3fn)}),
    )
    with pytest.raises(CheckpointError, match=r"spoilt/model.safetensors: tensor fp8.e4m3: found NaN"):
        rewrite(read_models(str(spoilt), []).entries, {}, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "number"), [(torch.float16, 7e4), (torch.float16, -7e4), (torch.float8_e4m3fn, 500.0)]
)
def test_a_result_that_its_type_cannot_hold_names_the_tensor(dtype: torch.dtype, number: float, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"a": torch.zeros(2, 2, dtype=dtype)})
    tuned = write_checkpoint(tmp_path / "tuned", {"a": torch.full((2, 2), number)})
    models = read_models(str(base), [str(tuned)])
    with pytest.raises(CheckpointError, match=r"base/model.safetensors: tensor a: found a result beyond the largest"):
        written(models, rule_for(Linear((0.0, 1.0))), tmp_path / "work")
    half = read_checkpoint(written(models, rule_for(Linear((0.5, 0.5))), tmp_path / "work"))["a"]
    assert torch.equal(half.float(), torch.full((2, 2), number / 2).to(dtype).float())


def test_an_input_that_shrinks_meanwhile_is_an_error_that_names_it(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"a": noise(1000)})
    models = read_models(str(base), [])
    os.truncate(base / "model.safetensors", 2000)
    with pytest.raises(CheckpointError, match=r"model.safetensors: found a file that has become shorter"):
        rewrite(models.entries, {}, tmp_path)


def test_two_models_of_other_shapes_are_no_pair(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"a": noise(2, 3)})
    tuned = write_checkpoint(tmp_path / "tuned", {"a": noise(3, 2)})
    with pytest.raises(ShapeError, match=r"tuned/model.safetensors: tensor a: found shape \[3, 2\], expected \[2, 3\]"):
        read_models(str(base), [str(tuned)])


def test_finished_shards_are_kept_and_damaged_ones_are_made_again(models: Models, tmp_path: Path) -> None:
    """A damaged number, header or journal, a lost file: each shard is redone, and those beside it are not touched."""
    some, rule = first(models, 1), rule_for(Linear((0.4, 0.6)))
    work = written(some, rule, tmp_path / "work")
    expected, journal = shard_bytes(work), (work / JOURNAL).read_bytes()
    one, two, three = sorted(expected)

    def flip(name: str, place: int) -> None:
        data = bytearray(expected[name])
        data[place] ^= 1
        (work / name).write_bytes(data)

    damages: list[tuple[str, Callable[[], object]]] = [
        (one, lambda: flip(one, len(expected[one]) - 3)),
        (two, lambda: flip(two, expected[two].index(b'"pt"') + 1)),
        (three, lambda: (work / three).unlink()),
        (three, lambda: (work / JOURNAL).write_bytes(journal[:-40])),  # torn within its last line, shard 3's
    ]
    for damaged, damage in damages:
        damage()
        (work / f".{damaged}.123.tmp").write_bytes(b"half of it")
        before = {name: os.stat(work / name).st_ino for name in expected if name != damaged}
        told = rewrite(some.entries, edits_of(some, rule), work)
        assert [one.name for one in told] == list(some.entries)
        assert shard_bytes(work) == expected, damaged
        assert {name: os.stat(work / name).st_ino for name in before} == before
        assert not [path.name for path in work.iterdir() if path.name.endswith(".tmp")], "old halves take up the disk"
        assert {json.loads(line)["file"] for line in (work / JOURNAL).read_text().splitlines()} == set(expected)


def test_a_low_rank_change_does_not_depend_on_where_a_piece_begins() -> None:
    left, right = noise(150, 3), noise(3, 1000, seed=1)
    change = LowRank(left.numpy(), right.numpy(), 0.7)
    whole = change.dense()
    assert torch.allclose(torch.from_numpy(whole), 0.7 * left @ right, atol=1e-6)
    for size in (1, 64, 999, 64_000, 150_000):
        for start in (0, 1, 64_000 - 1, 150_000 - size):
            part = np.zeros(min(size, 150_000 - start), np.float32)
            change.add_to(part, start)
            assert np.array_equal(part, whole.reshape(-1)[start : start + len(part)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (1e-30, 1e-30)])
def test_a_tensor_that_comes_out_all_zero_of_others_that_are_not_is_never_written(
    weights: tuple[float, float], dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = {"a": noise(2, 3, dtype=dtype), "b": torch.zeros(4, dtype=dtype)}
    base = write_checkpoint(tmp_path / "base", tensors)
    models = read_models(str(base), [str(write_checkpoint(tmp_path / "tuned", tensors))])
    if weights == (1e-30, 1e-30) and dtype != torch.float8_e4m3fn:
        written(models, rule_for(Linear(weights)), tmp_path / "work")
        return
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor a: found a result that is all 0, of inputs"):
        written(models, rule_for(Linear(weights)), tmp_path / "work")
    assert not shard_bytes(tmp_path / "work")
    rewrite(models.entries, edits_of(models, rule_for(Linear(weights))), tmp_path / "work", may_vanish=["a"])
    assert not read_checkpoint(tmp_path / "work")["a"].float().any()


def test_a_disk_that_takes_a_part_of_what_it_is_given_gets_the_rest_again(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reluctant(io.FileIO):
        def write(self, data: memoryview) -> int:  # pyright: ignore
            return super().write(memoryview(data)[: max(1, len(data) // 3)])

    some, rule = first(models, 1), rule_for(Linear((0.4, 0.6)))
    expected = shard_bytes(written(some, rule, tmp_path / "whole"))
    monkeypatch.setattr("alignkeep.checkpoint.rewrite.FileIO", Reluctant)
    assert shard_bytes(written(some, rule, tmp_path / "part")) == expected
