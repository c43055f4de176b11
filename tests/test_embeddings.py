"""One vector for a chat: transformers as a twin, batches, parts on disk, processes, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from alignkeep.errors import CheckpointError, DataError, RecipeError
from alignkeep.models import embeddings
from alignkeep.models.chat import encode_example
from alignkeep.models.embeddings import embed, embed_texts
from alignkeep.models.examples import encoded
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.models.processes import Processes
from alignkeep.types import Example, Message
from test_collectors import EXAMPLES, around, tiny_gpt2


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


def alone(loaded: LoadedModel, example: Example, layer: int | None) -> torch.Tensor:
    """One chat by itself, from all hidden states: the last of them is behind the final norm."""
    ids = torch.tensor([encode_example(loaded.tokenizer, example).input_ids])
    with torch.inference_mode():
        states = loaded.model(input_ids=ids, output_hidden_states=True).hidden_states
    return states[-1 if layer is None else layer][0, -1]


@pytest.mark.parametrize("layer", [None, 0, 1])
@pytest.mark.parametrize("size", [1, 8])
def test_a_vector_is_the_state_of_the_last_token_whatever_the_batch(
    layer: int | None, size: int, llama: LoadedModel, tmp_path: Path
) -> None:
    found = embed(llama, EXAMPLES, tmp_path, layer=layer, batch_size=size)
    expected = torch.stack([alone(llama, one, layer) for one in EXAMPLES])
    assert_close(found.vectors, expected, rtol=1e-4, atol=1e-5)
    assert found.truncated == 0


@pytest.mark.parametrize("size", [1, 8])
def test_a_mean_is_over_the_chats_own_tokens(size: int, llama: LoadedModel, tmp_path: Path) -> None:
    found = embed(llama, EXAMPLES, tmp_path, pooling="mean", batch_size=size).vectors
    for vector, one in zip(found, EXAMPLES, strict=True):
        ids = torch.tensor([encode_example(llama.tokenizer, one).input_ids])
        with torch.inference_mode():
            states = llama.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        assert_close(vector, states.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 8])
def test_parts_are_means_over_their_own_tokens_side_by_side(size: int, llama: LoadedModel, tmp_path: Path) -> None:
    found = embed(llama, EXAMPLES, tmp_path, pooling="prompt+answer+last", batch_size=size).vectors
    for vector, one in zip(found, EXAMPLES, strict=True):
        row = encode_example(llama.tokenizer, one)
        with torch.inference_mode():
            ids = torch.tensor([row.input_ids])
            states = llama.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        answered = [state for state, label in zip(states, row.labels, strict=True) if label != -100]
        asked = [state for state, label in zip(states, row.labels, strict=True) if label == -100]
        expected = torch.cat([torch.stack(asked).mean(0), torch.stack(answered).mean(0), states[-1]])
        assert_close(vector, expected, rtol=1e-4, atol=1e-5)


def test_a_part_of_which_nothing_is_left_is_zero(llama: LoadedModel, tmp_path: Path) -> None:
    """Cut to its last tokens, an answer is all there is."""
    long = Example((Message("user", "help " * 30), Message("assistant", "yes " * 30)))
    found = embed(llama, [long], tmp_path, pooling="prompt+answer", max_length=20, too_long="cut").vectors
    prompt, answer = found.chunk(2, 1)
    assert float(prompt.abs().max()) == 0
    assert float(answer.norm()) > 0


def test_another_family_has_its_last_state_too(tiny_model: Path, tmp_path: Path) -> None:
    gpt2 = tiny_gpt2(tiny_model)
    found = embed(gpt2, EXAMPLES, tmp_path, batch_size=4).vectors
    assert_close(found, torch.stack([alone(gpt2, one, None) for one in EXAMPLES]), rtol=1e-4, atol=1e-5)


def test_an_adapter_counts(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_model))
    tuned = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    found = embed(around(tuned, tiny_model), EXAMPLES, tmp_path / "tuned").vectors
    with tuned.disable_adapter():
        base = embed(around(tuned, tiny_model), EXAMPLES, tmp_path / "base").vectors
    assert float((found - base).abs().max()) > 1e-3


def test_parts_on_disk_are_not_made_again(llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PART", 4)
    whole = embed(llama, EXAMPLES, tmp_path).vectors
    parts = sorted(tmp_path.glob("part-*"))
    assert [part.name for part in parts] == [f"part-0000{n}.safetensors" for n in range(3)]
    parts[1].unlink()
    looked: list[int] = []
    look = embeddings._look  # pyright: ignore[reportPrivateUsage]

    def counted(loaded: LoadedModel, texts: Any, *rest: Any) -> torch.Tensor:
        looked.append(len(texts))
        return look(loaded, texts, *rest)

    monkeypatch.setattr(embeddings, "_look", counted)
    assert embed(llama, EXAMPLES, tmp_path).vectors.equal(whole)
    assert looked == [4]
    data = bytearray(parts[2].read_bytes())
    data[-1] ^= 1
    parts[2].write_bytes(data)
    parts[0].write_bytes(parts[0].read_bytes()[:-100])
    assert embed(llama, EXAMPLES, tmp_path).vectors.equal(whole)
    assert looked == [4, 4, len(EXAMPLES) - 8]


def test_two_processes_make_different_parts_and_see_the_same(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "PART", 4)
    whole = embed(llama, EXAMPLES, tmp_path / "one").vectors

    class Second(Processes):
        def wait(self) -> None:
            """The first process comes only now: it makes the parts that are its own."""
            made = sorted(path.name for path in (tmp_path / "two").glob("part-*"))
            assert made == ["part-00001.safetensors"]
            embed(llama, EXAMPLES, tmp_path / "two", processes=Fellow(0, 2))

    class Fellow(Processes):
        def wait(self) -> None:
            """The second one is waiting."""

    assert embed(llama, EXAMPLES, tmp_path / "two", processes=Second(1, 2)).vectors.equal(whole)


def test_a_text_that_is_too_long_is_cut_and_counted(llama: LoadedModel, tmp_path: Path) -> None:
    long = Example((Message("user", "help"), Message("assistant", "yes " * 30)))
    found = embed(llama, [EXAMPLES[0], long], tmp_path, max_length=20)
    assert found.truncated == 1
    ids = torch.tensor([encode_example(llama.tokenizer, long).input_ids[:20]])
    with torch.inference_mode():
        expected = llama.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
    assert_close(found.vectors[1], expected, rtol=1e-4, atol=1e-5)


def test_a_store_of_other_work_is_not_taken_for_this_one(llama: LoadedModel, tmp_path: Path) -> None:
    embed(llama, EXAMPLES, tmp_path)
    for options in ({"layer": 1}, {"pooling": "mean"}, {"pooling": "answer"}):
        with pytest.raises(CheckpointError, match="vectors of other texts or settings"):
            embed(llama, EXAMPLES, tmp_path, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match="vectors of other texts or settings"):
        embed(llama, EXAMPLES[::-1], tmp_path)


def test_a_store_of_other_spans_is_not_taken_for_this_one(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(llama, EXAMPLES, tmp_path, pooling="answer")

    def shorter(*given: Any, **options: Any) -> Any:
        found = encoded(*given, **options)
        rows = [row._replace(labels=[-100, *row.labels[1:-1], -100]) for row in found.rows]
        return found._replace(rows=rows)

    monkeypatch.setattr(embeddings, "encoded", shorter)
    with pytest.raises(CheckpointError, match="vectors of other texts or settings"):
        embed(llama, EXAMPLES, tmp_path, pooling="answer")


def test_what_cannot_be_embedded_is_refused(tiny_model: Path, llama: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"embed.layer: found 2, expected 0 to 1"):
        embed(llama, EXAMPLES, tmp_path, layer=2)
    with pytest.raises(DataError, match="examples: found none"):
        embed(llama, [], tmp_path)
    late = Example((Message("user", "help " * 30), Message("assistant", "yes")))
    with pytest.raises(DataError, match=r"d\.jsonl, example 2: found no token of the answer among the first 20"):
        embed(llama, [EXAMPLES[0], late], tmp_path / "late", max_length=20, what="d.jsonl, example")
    with pytest.raises(ValueError, match="need pooling last, mean, answer, prompt"):
        embed(llama, EXAMPLES, tmp_path / "max", pooling="mean+max")
    broken = load_model(str(tiny_model))
    with torch.no_grad():
        broken.model.model.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match="a hidden state that is not finite"):
        embed(broken, EXAMPLES, tmp_path / "nan")
    assert not list((tmp_path / "nan").iterdir())


def test_a_sentence_encoder_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(RecipeError, match="pip install sentence-transformers"):
        embed_texts(["a"], "some/encoder")


def test_processes_share_all_rows_once() -> None:
    for count in (1, 2, 3, 7):
        rows = [row for rank in range(count) for row in range(100)[Processes(rank, count).share(100)]]
        assert rows == list(range(100))
