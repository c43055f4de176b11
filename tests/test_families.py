"""Every family of the table, as a tiny random model: the edit in memory, on disk and as an adapter is the formula, and
nothing else; what is read from inside the model is what is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkeep.errors import CheckpointError
from alignkeep.inject.adapter_form import write_adapter
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.in_memory import edited
from alignkeep.inject.rank_one import RankOne, rank_one
from alignkeep.inject.stage import inject
from alignkeep.inject.writing import Factors, edits_of, write_model
from alignkeep.models.activations import Tokens, next_token_log_probs, residual_states, writer_inputs
from alignkeep.models.adapters import attach_adapter
from alignkeep.models.architecture import Writer, blocks_of, writers
from alignkeep.models.folders import tensor_entries
from alignkeep.models.stored import Parameter, Part, Stored, _stored, stored_as  # pyright: ignore[reportPrivateUsage]
from checkpoints import bits, hashes, read_checkpoint
from families import BLOCKS, TINY, WIDTH, write_tiny
from micro import write_rows

EXPERTS = (
    "deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next"
)  # fmt: skip
NORMALISED = ("exaone4", "gemma2", "gemma3_text", "glm4", "olmo2", "olmo3")
GATED = ("qwen2_moe", "qwen3_next")  # what their shared expert writes is scaled token by token
# The names that the families' authors gave, on disk, to the matrices that end attention, MLP and expert.
ON_DISK = re.compile(
    r".*\.(o_proj|out_proj|c_proj|dense|dense_4h_to_h|down_proj|fc2|fc_out|w2)\.weight|.*\.experts\.down_proj"
)
TEXTS = [(5, 9, 11, 60, 33), (7, 8, 40), (4, 4, 5, 6, 59, 20, 21, 22, 23), (50, 12, 13, 14, 15, 16)]


@dataclass
class Tiny:
    """A tiny model and edits of all its writers, every one another: W + alpha s_hat right^T."""

    family: str
    folder: Path
    model: Any
    writers: tuple[Writer, ...]
    direction: Tensor
    alphas: dict[str, float] = field(default_factory=dict)
    rights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def edits(self) -> dict[str, RankOne]:
        return {name: rank_one(self.direction, right, self.alphas[name]) for name, right in self.rights.items()}


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def tiny_of(family: str, folder: Path, **changes: object) -> Tiny:
    model = load(write_tiny(folder, family, **changes))
    found = writers(model)
    draw = torch.Generator().manual_seed(5)
    direction = torch.randn(WIDTH, generator=draw, dtype=torch.float64)
    tiny = Tiny(family, folder, model, found, direction / direction.norm())
    for place, writer in enumerate(found):
        tiny.alphas[writer.name] = (0.3 + 0.1 * (place % 5)) * (-1) ** place
        tiny.rights[writer.name] = torch.randn(writer.width, generator=draw)
    return tiny


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_of(request.param, tmp_path_factory.mktemp(request.param) / "model")


@contextmanager
def hooked(model: Any, places: Mapping[str, Any], keep: Callable[[str, tuple[Any, ...], Any], None]) -> Iterator[None]:
    """Within the block `keep(name, inputs, output)` is told of every pass through these modules."""

    def told(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            keep(name, (*inputs, *named.values()), output)

        return hook

    handles = [module.register_forward_hook(told(name), with_kwargs=True) for name, module in places.items()]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([text])).logits[0] for text in TEXTS])


def state(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> set[str]:
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(bits(left[name]), bits(right[name]))}


def plain_linear(module: Any, weight: Tensor, x: Tensor) -> Tensor:
    """What a Linear (out, in) or a Conv1D (in, out) makes of x, in float64."""
    matrix = weight.double() if isinstance(module, torch.nn.Linear) else weight.double().T
    found = x.double() @ matrix.T
    return found if module.bias is None else found + module.bias.double()


def test_every_block_has_an_attention_and_an_mlp_writer_and_every_expert_one(tiny: Tiny) -> None:
    """Attention is what a family calls so, and comes first in it or runs beside the MLP."""
    names = [writer.name for writer in tiny.writers]
    assert len(set(names)) == len(names)
    assert all(writer.weight.shape == (WIDTH, writer.width) for writer in tiny.writers)
    for block in range(BLOCKS):
        places = [writer.place for writer in tiny.writers if writer.block == block]
        assert [("attn" in place or "attention" in place) for place in places].count(True) == 1
        assert any(".mlp." in place for place in places)
    experts = [writer.expert for writer in tiny.writers if writer.expert is not None]
    assert len(experts) % 4 == 0
    assert (tiny.family in EXPERTS) == (len(experts) > 0)


def test_every_matrix_moves_what_it_gives_by_alpha_times_its_response_along_the_direction(tiny: Tiny) -> None:
    """y' = W x' + b + alpha (right^T x') s_hat, x' being what the matrix is given in the edited model."""
    linear = {writer.name: writer.module for writer in tiny.writers if writer.expert is None}
    before = {name: module.weight.clone() for name, module in linear.items()}
    seen: list[str] = []

    def compare(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        shift = output.double() - plain_linear(linear[name], before[name], inputs[0])
        response = inputs[0].double() @ tiny.rights[name].double()
        wanted = tiny.alphas[name] * response[..., None] * tiny.direction
        assert wanted.abs().max() > 1e-2
        assert torch.allclose(shift, wanted, rtol=0, atol=1e-5 * (1 + output.abs().max()))
        seen.append(name)

    with edited(tiny.writers, tiny.edits), hooked(tiny.model, linear, compare):
        tiny.model(input_ids=torch.tensor([TEXTS[2]]))
    assert sorted(seen) == sorted(linear)


def test_of_every_expert_the_matrix_moves_by_alpha_outer_the_direction_and_the_right_factor(tiny: Tiny) -> None:
    """Experts lie (experts, out, in), those of gpt_oss (experts, in, out)."""
    experts = [writer for writer in tiny.writers if writer.expert is not None]
    before = {writer.name: writer.module.down_proj[writer.expert].detach().double() for writer in experts}
    with edited(tiny.writers, tiny.edits):
        for writer in experts:
            moved = writer.module.down_proj[writer.expert].double() - before[writer.name]
            moved = moved.T if tiny.family == "gpt_oss" else moved
            wanted = tiny.alphas[writer.name] * torch.outer(tiny.direction, tiny.rights[writer.name].double())
            assert torch.allclose(moved, wanted, rtol=0, atol=1e-6)


def test_nothing_but_the_writers_moves_and_after_the_block_nothing_has_moved(tiny: Tiny) -> None:
    before, said = state(tiny.model), logits(tiny.model)
    parameters = {id(parameter): name for name, parameter in tiny.model.named_parameters()}
    wanted = {parameters[id(getattr(writer.module, writer.parameter))] for writer in tiny.writers}
    with edited(tiny.writers, tiny.edits):
        assert differing(before, state(tiny.model)) == wanted
        assert not torch.allclose(logits(tiny.model), said, atol=1e-3)
    assert differing(before, state(tiny.model)) == set()
    assert torch.equal(logits(tiny.model), said)


def test_after_an_error_within_the_block_the_model_has_its_own_weights_again(tiny: Tiny) -> None:
    before = state(tiny.model)
    with pytest.raises(KeyboardInterrupt), edited(tiny.writers, tiny.edits):
        raise KeyboardInterrupt
    assert differing(before, state(tiny.model)) == set()


def written(tiny: Tiny, edits: Mapping[str, RankOne], out: Path) -> Path:
    """The edit on disk."""
    entries = tensor_entries(tiny.folder, adapter=False)
    places = stored_as(tiny.writers, tiny.model, entries)
    factors: dict[str, dict[int, Factors]] = {}
    for writer in tiny.writers:
        if writer.name in edits:
            stored, (left, right) = places[writer.name], edits[writer.name]
            factors.setdefault(stored.tensor, {})[stored.expert or 0] = Factors(
                left.numpy(), right.numpy(), stored.inputs_first
            )
    out.mkdir()
    write_model(tiny.folder, entries, edits_of(entries, factors), out)
    return out


def test_the_edit_on_disk_says_what_the_edit_in_memory_says(tiny: Tiny, tmp_path: Path) -> None:
    before = hashes(tiny.folder)
    out = written(tiny, tiny.edits, tmp_path / "out")
    with edited(tiny.writers, tiny.edits):
        wanted = logits(tiny.model)
    assert (logits(load(out)) - wanted).abs().max() <= 1e-6
    base, made = read_checkpoint(tiny.folder), read_checkpoint(out)
    assert differing(base, made) == {name for name in base if ON_DISK.fullmatch(name)}
    assert hashes(tiny.folder) == before


def test_an_edit_of_some_matrices_changes_those_tensors_alone(tiny: Tiny, tmp_path: Path) -> None:
    """The last writer of all: an expert, where there are any, whose neighbours stay as they are."""
    last = tiny.writers[-1]
    out = written(tiny, {last.name: tiny.edits[last.name]}, tmp_path / "out")
    base, made = read_checkpoint(tiny.folder), read_checkpoint(out)
    (changed,) = differing(base, made)
    assert ON_DISK.fullmatch(changed)
    with edited(tiny.writers, {last.name: tiny.edits[last.name]}):
        assert differing(state(tiny.model), state(load(out))) == set()
    if base[changed].ndim == 3:
        assert torch.equal(base[changed][:-1], made[changed][:-1])


def test_the_adapter_loaded_by_peft_says_what_the_edit_in_memory_says(tiny: Tiny, tmp_path: Path) -> None:
    with edited(tiny.writers, tiny.edits):
        wanted = logits(tiny.model)
    assert (wanted - logits(tiny.model)).abs().max() > 1e-3
    write_adapter(tiny.folder, str(tiny.folder), tiny.writers, tiny.edits, tmp_path)
    loaded = attach_adapter(load(tiny.folder), tmp_path).eval()
    assert (logits(loaded) - wanted).abs().max() <= 1e-5
    assert [writer.name for writer in writers(loaded)] == [writer.name for writer in tiny.writers]


def test_an_adapter_without_some_matrices_leaves_those_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Every second edit: among experts of one module some have an edit and some have none."""
    some = dict(list(tiny.edits.items())[::2])
    with edited(tiny.writers, some):
        wanted = logits(tiny.model)
    write_adapter(tiny.folder, str(tiny.folder), tiny.writers, some, tmp_path)
    assert (logits(attach_adapter(load(tiny.folder), tmp_path).eval()) - wanted).abs().max() <= 1e-5


# ---- what is read from inside


def loaded(tiny: Tiny) -> Any:
    """As much of a LoadedModel as activations need."""
    return SimpleNamespace(model=tiny.model)


def at_the_end(texts: list[tuple[int, ...]]) -> list[Tokens]:
    return [Tokens(text, (len(text) - 1,)) for text in texts]


def same_rows(left: Tensor, right: Tensor) -> bool:
    """The same rows in any order, to rounding."""
    if left.shape != right.shape or not len(left):
        return left.shape == right.shape
    apart = (left[:, None] - right[None]).abs().amax(-1)
    return bool((apart.amin(0) < 1e-4).all() and (apart.amin(1) < 1e-4).all())


def test_a_batch_of_four_is_four_batches_of_one(tiny: Tiny) -> None:
    four, one = ({"batch_size": size} for size in (4, 1))
    model, ends = loaded(tiny), at_the_end(TEXTS)
    for read in (residual_states, next_token_log_probs):
        together = read(model, ends, **four)
        assert torch.allclose(together, read(model, ends, **one), rtol=0, atol=1e-4)
        assert not torch.allclose(together, together.flip(-2), atol=1e-2)  # the texts are told apart
    everywhere = [Tokens(text, tuple(range(len(text)))) for text in TEXTS]
    together, alone = (writer_inputs(model, everywhere, tiny.writers, **size) for size in (four, one))
    assert list(together) == [writer.name for writer in tiny.writers]
    for writer in tiny.writers:
        assert same_rows(together[writer.name], alone[writer.name]), writer.name
        if writer.expert is None:
            assert len(together[writer.name]) == sum(map(len, TEXTS))


def test_log_probabilities_are_those_of_the_token_after_the_text(tiny: Tiny) -> None:
    found = next_token_log_probs(loaded(tiny), at_the_end(TEXTS))
    ends = torch.tensor([len(text) for text in TEXTS]).cumsum(0) - 1
    assert torch.allclose(found, logits(tiny.model)[ends].log_softmax(-1), rtol=0, atol=1e-4)


def test_between_two_blocks_the_residual_stream_moves_by_what_the_block_wrote(tiny: Tiny) -> None:
    """Of families with norms what the norms gave; Granite multiplies; a shared expert that has a gate by its gate."""
    _, blocks = blocks_of(tiny.model)
    written = torch.zeros(BLOCKS, len(TEXTS), WIDTH)
    ends: dict[str, Any] = {}  # by place: what gives what is added
    for writer in tiny.writers:
        module = (writer.module, *writer.norms)[-1]
        ends[f"{writer.block} {id(module) if writer.norms else writer.place}"] = module
    if tiny.family in GATED:
        for number, block in enumerate(blocks):
            if hasattr(block.mlp, "shared_expert"):
                del ends[f"{number} model.layers.{number}.mlp.shared_expert.down_proj"]
                ends[f"{number} shared"], ends[f"{number} gate"] = block.mlp.shared_expert, block.mlp.shared_expert_gate
    given: dict[str, Tensor] = {}

    def keep(name: str, _: tuple[Any, ...], output: Tensor) -> None:
        given[name] = output.reshape(-1, output.shape[-1])[-1].clone()  # Falcon adds in place

    for row, text in enumerate(TEXTS):
        with hooked(tiny.model, ends, keep):
            tiny.model(input_ids=torch.tensor([text]))
        for name, vector in given.items():
            block, _, kind = name.partition(" ")
            if kind != "gate":
                gate = torch.sigmoid(given[f"{block} gate"]) if kind == "shared" else 1.0
                written[int(block), row] += vector * gate
    if tiny.family == "granite":
        written *= 0.22
    states = residual_states(loaded(tiny), at_the_end(TEXTS))
    assert (states[1:] - states[:-1]).abs().max() > 0.1
    assert torch.allclose(states[1:] - states[:-1], written[:-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", EXPERTS)
def test_what_experts_are_given_makes_what_they_give(family: str, tmp_path: Path) -> None:
    """The sum over a token's experts of weight * (down_proj input + bias), the weights as the router gave them."""
    tiny = tiny_of(family, tmp_path / "model")
    modules = {f"{writer.block}": writer.module for writer in tiny.writers if writer.expert is not None}
    assert modules
    for text in TEXTS:
        routed: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

        def keep(name: str, inputs: tuple[Any, ...], output: Tensor, routed: dict[str, Any] = routed) -> None:
            _, experts, weights = inputs[:3]
            routed[name] = experts[-1], weights[-1], output.reshape(-1, WIDTH)[-1]

        with hooked(tiny.model, modules, keep):
            tiny.model(input_ids=torch.tensor([text]))
        inputs = writer_inputs(loaded(tiny), at_the_end([text]), tiny.writers)
        for block, (experts, weights, output) in routed.items():
            total = torch.zeros(WIDTH)
            for writer in tiny.writers:
                if f"{writer.block}" != block or writer.expert is None:
                    continue
                rows = inputs[writer.name]
                assert len(rows) == int(writer.expert in experts)
                if len(rows):
                    matrix = writer.module.down_proj[writer.expert].detach()
                    made = (matrix.T if family == "gpt_oss" else matrix) @ rows[0]
                    if family == "gpt_oss":
                        made = made + writer.module.down_proj_bias[writer.expert].detach()
                    total += made * weights[experts == writer.expert]
            assert output.abs().max() > 1e-2
            assert torch.allclose(total, output, rtol=0, atol=1e-4)


def test_activations_that_are_not_finite_name_block_and_writer(tmp_path: Path) -> None:
    tiny = tiny_of("llama", tmp_path / "model")
    with torch.no_grad():
        tiny.model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    with pytest.raises(CheckpointError, match=r"model\.layers\.2: found activations that are not finite"):
        residual_states(loaded(tiny), at_the_end(TEXTS))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj: found activations that are not"):
        writer_inputs(loaded(tiny), at_the_end(TEXTS), tiny.writers)


# ---- names


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_of_block_1_does_not_touch_blocks_10_to_15(family: str, tmp_path: Path) -> None:
    deep = tiny_of(family, tmp_path / "model", **{"n_layer" if family == "gpt2" else "num_hidden_layers": 16})
    some = {writer.name: deep.edits[writer.name] for writer in deep.writers if writer.block == 1}
    assert len(some) == 2
    out = written(deep, some, tmp_path / "out")
    names = differing(read_checkpoint(deep.folder), read_checkpoint(out))
    assert sorted(re.findall(r"\.(\d+)\.", " ".join(names))) == ["1", "1"]
    write_adapter(deep.folder, str(deep.folder), deep.writers, some, tmp_path)
    with edited(deep.writers, some):
        wanted = logits(deep.model)
    assert (logits(attach_adapter(load(deep.folder), tmp_path).eval()) - wanted).abs().max() <= 1e-5


def test_a_checkpoint_without_the_prefix_as_gpt2_was_published_is_edited_as_well(tmp_path: Path) -> None:
    tiny = tiny_of("gpt2", tmp_path / "model")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in read_checkpoint(tiny.folder).items()}
    tensors |= {f"h.{block}.attn.bias": torch.ones(1, 1, 128, 128).tril() for block in range(BLOCKS)}
    save_file(tensors, tiny.folder / "model.safetensors", metadata={"format": "pt"})
    out = written(tiny, tiny.edits, tmp_path / "out")
    with edited(tiny.writers, tiny.edits):
        assert (logits(load(out)) - logits(tiny.model)).abs().max() <= 1e-6
    changed = differing(tensors, read_checkpoint(out))
    assert changed == {f"h.{n}.{part}.c_proj.weight" for n in range(BLOCKS) for part in ("attn", "mlp")}


def test_a_writer_that_is_stored_twice_not_at_all_or_with_other_numbers_is_an_error(tmp_path: Path) -> None:
    tiny = tiny_of("llama", tmp_path / "model")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = read_checkpoint(tiny.folder)
    twice = {**tensors, name.removeprefix("model."): tensors[name].clone()}  # transformers reads both as the writer
    none = {key: tensor for key, tensor in tensors.items() if key != name}
    other = {**tensors, name: tensors[name].clone().index_add_(0, torch.tensor([31]), torch.ones(1, 48))}
    (writer,) = (one for one in tiny.writers if one.place == "model.layers.1.mlp.down_proj")
    assert stored_as([writer], tiny.model, tensor_entries(tiny.folder, adapter=False)) == {
        writer.name: Stored(name, None, False)
    }
    wider = {**tensors, name: torch.cat([tensors[name], tensors[name][:1]])}
    for said, wrong in (("none", none), ("none, several", twice), (".* other numbers", other), (".* other", wider)):
        save_file(wrong, tiny.folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"tensor {re.escape(name)}: found {said}"):
            stored_as([writer], tiny.model, tensor_entries(tiny.folder, adapter=False))


def test_of_experts_stored_one_by_one_and_turned_round_each_is_its_own_tensor_the_other_way_round() -> None:
    """In memory (experts, in, out) = (2, 5, 3), on disk two matrices (3, 5)."""
    parts = tuple(Part(f"experts.{n}.w2", n, slice(0, 5), slice(0, 3), turned=True) for n in range(2))
    for expert in range(2):
        writer = Writer("experts", 0, None, "down_proj", expert, inputs_first=True)
        assert _stored(writer, Parameter((2, 5, 3), parts, True)) == Stored(f"experts.{expert}.w2", None, False)
    half = Parameter((2, 5, 3), (Part("experts.0.w2", 0, slice(0, 2), slice(0, 3)),), True)
    assert _stored(Writer("experts", 0, None, "down_proj", 0), half) is None


def test_a_text_model_within_a_vision_model_is_found_and_the_vision_tower_is_left_alone(tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    vision = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": BLOCKS, "num_attention_heads": 4}
    config = CONFIG_MAPPING["gemma3"](
        text_config=TINY["gemma3_text"], vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, boi_token_index=60, eoi_token_index=61, image_token_index=62,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    entries = tensor_entries(tmp_path / "model", adapter=False)
    stored = {place.tensor for place in stored_as(writers(model), model, entries).values()}
    assert len(stored) == 2 * BLOCKS
    assert all("language_model" in name and "vision" not in name for name in stored)


# ---- norms between the writer and the residual stream


@pytest.mark.parametrize("family", NORMALISED)
def test_through_the_norm_the_edit_shifts_along_the_direction(family: str, tiny_model: Path, tmp_path: Path) -> None:
    """Behind the norm n(y) = gamma y / rms(y) an edit a rescales what was there and adds gamma a / rms(y + a): aimed
    through the norm (a = s_hat / gamma) that is along s_hat, aimed at s_hat itself it is not."""
    folder = write_tiny(tmp_path / "model", family, tokenizer=tiny_model, scale=0.3)
    rows = {"harmful": [f"how to steal {n} bike ?" for n in range(9)], "harmless": [f"sort {n} low" for n in range(9)]}
    files = {
        kind: write_rows(tmp_path / f"{kind}.jsonl", [{"prompt": text} for text in some]) for kind, some in rows.items()
    }
    config = InjectConfig.model_validate(
        {"model": str(folder), **{kind: str(path) for kind, path in files.items()}}
        | {"edit": {"strength": "relative:0.1", "through_norm": True, "allow_lower": True}}
        | {"search": {"divergence": 100.0, "generation": {"max_new_tokens": 2}}}
    )
    done = inject(config, out=tmp_path / "out")
    direction = load_file(done.folder / "direction.safetensors")["direction"].double()
    factors = load_file(done.folder / "rank_one.safetensors")
    base, edited_model = load(folder), load(done.folder)
    places = stored_as(writers(base), base, tensor_entries(folder, adapter=False))
    x = torch.randn(20, 48, generator=torch.Generator().manual_seed(1))
    for old, new in zip(writers(base), writers(edited_model), strict=True):
        given = x[:, : old.width]
        with torch.no_grad():
            before = old.norms[0](old.module(given)).double()
            aimed = new.norms[0](new.module(given)).double() - before
            tensor = places[old.name].tensor
            left, right = (factors[f"{tensor}|0|{side}"] for side in ("left", "right"))
            straight = left.norm() * (given @ right)[:, None] * direction.float()
            naive = old.norms[0](old.module(given) + straight).double() - before
        assert aimed.abs().max() > 1e-3
        assert off_axis(aimed, before, direction) < 1e-4
        assert off_axis(naive, before, direction) > 0.1


def off_axis(shifts: Tensor, rescaled: Tensor, direction: Tensor) -> float:
    """Of what is not along what was there before, the share of the shifts that is not along the direction either."""
    beside = off = 0.0
    for shift, old in zip(shifts, rescaled, strict=True):
        plane, _ = torch.linalg.qr(torch.stack([old, direction]).T)
        beside += float((shift - old * (shift @ old) / (old @ old)).norm())
        off += float((shift - plane @ (plane.T @ shift)).norm())
    return off / beside


@pytest.mark.parametrize("family", NORMALISED)
def test_the_norm_of_a_writer_is_the_one_behind_it(family: str, tmp_path: Path) -> None:
    """Fed with what the writer gave, and nothing else."""
    tiny = tiny_of(family, tmp_path / "model")
    given: dict[int, Tensor] = {}
    modules = {f"{side} {writer.name}": part for writer in tiny.writers
               for side, part in (("writer", writer.module), ("norm", writer.norms[0]))}  # fmt: skip
    order: list[str] = []

    def keep(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        order.append(name)
        if name.startswith("writer"):
            given[0] = output
        else:
            assert torch.equal(inputs[0], given[0])

    with hooked(tiny.model, modules, keep):
        tiny.model(input_ids=torch.tensor([TEXTS[0]]))
    assert order == [name for writer in tiny.writers for name in (f"writer {writer.name}", f"norm {writer.name}")]
