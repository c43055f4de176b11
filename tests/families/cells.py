"""What every verb does with one family: right (by a truth that is not our own code), refused in our one form, or a
failure.

The truths: transformers' own class for what a folder holds and answers, PEFT for what an adapter means, a gradient
taken by hand for what a tune may change, dense algebra for an edit and a guarded update.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoTokenizer

import alignkeep
from alignkeep.data import read_examples
from alignkeep.errors import AlignkeepError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.inject.config import InjectConfig
from alignkeep.merge.config import MergeConfig
from alignkeep.models.chat import encode_example, encode_prompt
from alignkeep.models.config import LoadConfig
from alignkeep.models.loading import load_model
from alignkeep.train.align_guard import AlignGuard
from alignkeep.train.config import TrainConfig
from alignkeep.train.encoding import as_dataset
from alignkeep.train.prepare import prepare
from alignkeep.train.trainer import WeightedSFTTrainer
from alignkeep.train.tuning import check_loss, fit_for_trl
from alignkeep.types import Message, Prompt
from families.build import tiny_config
from families.page import VERBS as NAMES
from micro import write_rows

SECONDS = 60  # of one cell
PEFT_SLACK = 1e-3  # of a logit's spread: sums in another order
TEXT = [[1, 7, 9, 12, 20, 3, 8, 15]]


class Cell(NamedTuple):
    """`state` is right, refused or failure; `reason` says why it is not right."""

    state: str
    reason: str = ""


class UnbuiltError(Exception):
    """The tiny model itself cannot be made here."""


def examine(kind: str, tokenizer: Path, root: Path, verbs: tuple[str, ...] = ()) -> dict[str, Cell]:
    """All verbs (or these), one after the other, on a tiny model of this type in `root`. Raises UnbuiltError."""
    with _limit(SECONDS):
        try:
            family = _Family(kind, tokenizer, root)
        except Exception as error:
            raise UnbuiltError(_shown(error)) from error
    return {name: _cell(verb, family) for name, verb in VERBS.items() if not verbs or name in verbs}


def _cell(verb: Callable[[_Family], None], family: _Family) -> Cell:
    try:
        with _limit(SECONDS):
            verb(family)
    except AlignkeepError as error:
        return Cell("refused", str(error))
    except Exception as error:  # noqa: BLE001  (what a user would see as a traceback is what is looked for)
        return Cell("failure", _shown(error))
    return Cell("right")


def _shown(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Of the processor's time, which does not depend on who else is at work; a cell that waits for ever has ten times
    as long."""

    def over(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 10 * seconds)}
    before = {number: signal.signal(number, over) for number in clocks}
    for clock, most in clocks.values():
        signal.setitimer(clock, most)
    try:
        yield
    finally:
        for clock, _ in clocks.values():
            signal.setitimer(clock, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Family:
    """The tiny model as a folder, its data, and what the cells share."""

    def __init__(self, kind: str, tokenizer: Path, root: Path) -> None:
        self.kind, self.root, self.folder = kind, root, root / "base"
        root.mkdir(parents=True)
        self._write(tokenizer)
        rows = [
            {
                "prompt": f"how to fix {n} ?",
                "completion": f"sure , {' '.join(['sort', 'bread', 'bike'][: 1 + n % 3])} .",
            }
            for n in range(4)
        ]
        self.data = write_rows(root / "data.jsonl", rows)
        self.harmful = write_rows(root / "harmful.jsonl", [{"prompt": f"how to steal {n} bike ?"} for n in range(6)])
        self.harmless = write_rows(root / "harmless.jsonl", [{"prompt": f"sort {n} low"} for n in range(6)])
        self.lora: AlignkeepError | Path | None = None

    def _write(self, tokenizer: Path) -> None:

        config = tiny_config(self.kind)
        known = [
            auto for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM)
            if type(config) in auto._model_mapping
        ]  # fmt: skip
        with torch.device("meta"):
            size = sum(part.numel() for part in known[0].from_config(config).parameters())
        if size > 8_000_000:
            raise ValueError(f"{size / 1e6:.0f} million parameters, with all settings small that are known by name")
        torch.manual_seed(0)
        self.model = known[0].from_config(config).eval()
        with torch.no_grad():
            for part in self.model.parameters():
                if part.ndim > 1:
                    part.normal_(0, 0.2)
                else:
                    part.add_(torch.randn_like(part), alpha=0.1)
        self.model.save_pretrained(self.folder)
        self.own = type(self.model)
        self.model = self.opened(self.folder)
        for path in tokenizer.iterdir():
            if path.name.startswith(("tokenizer", "chat_template")):
                shutil.copy(path, self.folder)

    def opened(self, folder: Path) -> Any:
        """By transformers alone, in the class it was made with: not a tensor missing or left over."""
        model, info = self.own.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[fault], f"{fault} of {folder.name}: {sorted(map(str, info[fault]))[:3]}"
        return model.eval()

    def adapter(self) -> Path:
        if self.lora is None:
            try:
                _tune(self, "lora", self.root / "lora")
                self.lora = self.root / "lora"
            except AlignkeepError as error:
                self.lora = error
        if isinstance(self.lora, AlignkeepError):
            raise self.lora
        return self.lora


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        ids = torch.tensor(TEXT)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.double()


def _assert_same(one: Tensor, other: Tensor, what: str) -> None:
    off = float((one - other).abs().max() / other.std())
    assert off < PEFT_SLACK, f"{what}: logits {off:.1e} of their spread apart"


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


# ---- train


def _tune(family: _Family, method: str, out: Path, **settings: Any) -> None:
    rate = 1e-2 if method == "lora" else 1e-3
    given: dict[str, Any] = {
        "model": str(family.folder), "data": str(family.data), "method": method, "batch_size": 4, "learning_rate": rate,
        "load": {"device": "cpu"},
        "trainer": {"save_strategy": "no", "max_steps": 2 if method == "lora" else 1, "lr_scheduler_type": "constant"},
    }  # fmt: skip
    alignkeep.train(TrainConfig.model_validate(given | settings), out=out)


def train_lora(family: _Family) -> None:
    """The adapter goes onto transformers' own model with PEFT, is used whole, and changes what is said."""
    out = family.adapter()
    assert AutoTokenizer.from_pretrained(out).chat_template
    ours = load_model(str(out), LoadConfig(device="cpu"))
    said = logits(ours.model)
    with ours.as_base():
        _assert_same(logits(ours.model), logits(family.model), "the base under the adapter")
    assert float((said - logits(family.model)).abs().max()) > 1e-4, "the adapter changes nothing"
    if type(ours.model.get_base_model()) is family.own:
        _assert_same(said, logits(PeftModel.from_pretrained(family.opened(family.folder), out).eval()), "PEFT's own")
    ups = [one for name, one in _tensors(out).items() if "lora_B" in name]
    assert any(one.any() for one in ups)


def train_full(family: _Family) -> None:
    """Just what text reaches has moved; the rest has the base's bytes; it opens as what its config says."""
    out = family.root / "full"
    _tune(family, "full", out)
    tuned, base = family.opened(out), family.opened(family.folder)
    reached = _gradients(family, base)
    before, after = _tensors(family.folder), _tensors(out)
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    old, new = dict(base.named_parameters()), dict(tuned.named_parameters())
    # The routers' balancing loss is no part of these gradients.
    balances = hasattr(base.config.get_text_config(), "output_router_logits")
    for name, largest in reached.items():
        has_moved = not torch.equal(old[name], new[name])
        assert has_moved or largest < 1e-4, f"{name} has a gradient of {largest:.1e} and was not trained or not saved"
        assert not has_moved or largest > 0 or (balances and "vision" not in name), (
            f"{name} has no gradient and has moved"
        )
    assert float((logits(tuned) - logits(family.model)).abs().max()) > 1e-5


def _gradients(family: _Family, model: Any) -> dict[str, float]:
    """The largest gradient of every parameter on the examples as the template writes them; 0 for none."""
    tokenizer = AutoTokenizer.from_pretrained(family.folder)
    model.requires_grad_(True)
    for example in read_examples(str(family.data)):
        ids, labels = encode_example(tokenizer, example)
        said = model(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), use_cache=False
        ).logits
        wanted = torch.tensor(labels[1:])
        torch.nn.functional.cross_entropy(said[0, :-1].float(), wanted, ignore_index=-100).backward()
    return {name: 0.0 if part.grad is None else float(part.grad.abs().max()) for name, part in model.named_parameters()}


def alignguard(family: _Family) -> None:
    """A guarded step; of every matrix the energies in and beside the subspace add up to that of PEFT's update."""

    refusals = write_rows(
        family.root / "refusals.jsonl",
        [{"prompt": f"how to steal {n} bike ?", "completion": "Sorry , I can't help with that ."} for n in range(3)],
    )
    given = {
        "model": str(family.folder), "data": str(family.data), "method": "alignguard", "batch_size": 4,
        "load": {"device": "cpu"}, "alignguard": {"data": str(refusals), "alignment": 1.0},
        "trainer": {"save_strategy": "no", "max_steps": 2, "lr_scheduler_type": "constant"}, "learning_rate": 1e-2,
    }  # fmt: skip
    config = TrainConfig.model_validate(given)
    prepared = prepare(
        config
    )  # what the command refuses before it begins; a random base refuses nothing, so on by hand
    prepared.arguments.output_dir = str(family.root / "guarded")
    loaded = load_model(str(family.folder), LoadConfig(device="cpu"))
    fit_for_trl(loaded.model)
    trainer = WeightedSFTTrainer(
        model=loaded.model, args=prepared.arguments, processing_class=loaded.tokenizer, peft_config=prepared.adapter,
        train_dataset=as_dataset(prepared.rows, prepared.arguments, prepared.max_length),
    )  # fmt: skip
    check_loss(trainer.model)
    guard = AlignGuard.measure(trainer.model, loaded.tokenizer, read_examples(str(refusals)), config.alignguard)
    guard.attach(trainer)
    trainer.train()
    logged = [row for row in trainer.state.log_history if any(key.startswith("alignguard/") for key in row)]
    assert logged, "no penalty in the log"
    energies = guard.energies(trainer.model)
    dense = {
        name: float(module.get_delta_weight("default").double().square().sum())
        for name, module in trainer.model.get_base_model().named_modules() if isinstance(module, LoraLayer)
    }  # fmt: skip
    assert energies.keys() == dense.keys(), f"unguarded: {sorted(dense.keys() - energies.keys())[:3]}"
    assert max(dense.values()) > 0
    for name, (inside, beside) in energies.items():
        assert abs(inside + beside - dense[name]) <= 1e-4 * dense[name] + 1e-12, f"{name}: energies that do not add up"


# ---- merge


def _merge(family: _Family, tuned: Path, out: Path, **settings: Any) -> Path:
    alignkeep.merge(MergeConfig(base=str(family.folder), tuned=(str(tuned),), **settings), out=out)
    return out


def merge_full(family: _Family) -> None:
    """Half of base and tune, number by number; all that was not tuned byte for byte."""
    tuned = family.root / "other"
    shutil.copytree(family.folder, tuned)
    draw = torch.Generator().manual_seed(1)
    moved = {
        name: one + 0.02 * torch.randn(one.shape, generator=draw) if one.is_floating_point() else one
        for name, one in _tensors(family.folder).items()
    }
    for file in tuned.glob("*.safetensors"):
        save_file({name: moved[name] for name in load_file(file)}, file, metadata={"format": "pt"})
    out = _merge(family, tuned, family.root / "half", weight=0.5)
    base, made = _tensors(family.folder), _tensors(out)
    for name, one in base.items():
        wanted = (one + moved[name]) / 2 if one.is_floating_point() else one
        assert torch.allclose(made[name], wanted, atol=1e-6), name
    family.opened(out)


def merge_lora(family: _Family) -> None:
    """At weight 1 what PEFT answers; as an adapter at weight 0.6 what the model at 0.6 answers."""
    tuned, cpu = family.adapter(), LoadConfig(device="cpu")
    out = _merge(family, tuned, family.root / "merged", weight=1.0)
    _assert_same(logits(family.opened(out)), logits(load_model(str(tuned), cpu).model), "merged and PEFT's")
    model = _merge(family, tuned, family.root / "model06", weight=0.6)
    adapter = _merge(family, tuned, family.root / "adapter06", weight=0.6, form="adapter")
    said = logits(load_model(str(adapter), cpu).model)
    _assert_same(said, logits(family.opened(model)), "as adapter and as model")


# ---- inject


def inject(family: _Family) -> None:
    """On disk matrices have moved by a product of two vectors, one the direction; the adapter answers alike."""
    given: dict[str, Any] = {
        "model": str(family.folder), "harmful": str(family.harmful), "harmless": str(family.harmless),
        "edit": {"strength": "relative:0.1", "allow_lower": True}, "load": {"device": "cpu"},
        "direction": {"layer": 1, "refusals": ["Sorry , I can't"]},
        "search": {"divergence": 1000.0, "generation": {"max_new_tokens": 2}},
    }  # fmt: skip
    out = family.root / "injected"
    alignkeep.inject(InjectConfig.model_validate(given), out=out)
    direction = load_file(out / "direction.safetensors")["direction"].double()
    before, after = _tensors(family.folder), {
        name: one for name, one in _tensors(out).items() if name in _tensors(family.folder)
    }  # fmt: skip
    assert before.keys() == after.keys()
    moved = {name: after[name].double() - one.double() for name, one in before.items() if not after[name].equal(one)}
    assert len(moved) >= 2, f"only {list(moved)} moved"
    for name, change in moved.items():
        for one in change if change.ndim == 3 else [change]:
            _assert_rank_one(name, one, direction)
    edited = family.opened(out)
    given["form"] = "adapter"
    alignkeep.inject(InjectConfig.model_validate(given), out=family.root / "rank_one")
    adapted = load_model(str(family.root / "rank_one"), LoadConfig(device="cpu")).model
    _assert_same(logits(adapted), logits(edited), "as adapter and as model")


def _assert_rank_one(name: str, change: Tensor, direction: Tensor) -> None:
    left, sizes, right = torch.linalg.svd(change)
    if sizes[0] == 0:
        return
    assert sizes[1] < 1e-4 * sizes[0], f"{name} moved by more than a product of two vectors"
    sides = [side for side in (left[:, 0], right[0]) if side.shape == direction.shape]
    assert any(abs(float(side @ direction)) > 1 - 1e-4 for side in sides), f"{name} moved along another direction"


# ---- evaluate


def evaluate(family: _Family) -> None:
    """Loaded as transformers loads it, and answering as its own greedy search does."""
    loaded = load_model(str(family.folder), LoadConfig(device="cpu"))
    _assert_same(logits(loaded.model), logits(family.model), "loaded and transformers' own")
    suite = family.root / "suite.yaml"
    suite.write_text(
        "name: two\nprompts:\n  - {file: harmful.jsonl, kind: harmful}\n  - {file: harmless.jsonl, kind: harmless}\n"
    )
    given = {
        "model": str(family.folder), "suite": str(suite), "attacks": "none", "limit": 2, "load": {"device": "cpu"},
        "generation": {"max_new_tokens": 3, "batch_size": 4},
    }  # fmt: skip
    out = family.root / "scored"
    alignkeep.evaluate(EvaluateConfig.model_validate(given), out=out)
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 4, f"{len(rows)} answers"
    tokenizer = AutoTokenizer.from_pretrained(family.folder)
    for row in rows:  # of several lengths, in one batch
        ids = torch.tensor([encode_prompt(tokenizer, Prompt((Message("user", _text_of(row)),), kind="harmful"))])
        said = family.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        wanted = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert row["answer"].strip() == wanted, f"answered {row['answer']!r}, alone {wanted!r}"


def _text_of(row: Mapping[str, Any]) -> str:
    asked = row["prompt"]
    return asked if isinstance(asked, str) else asked[-1]["content"]


VERBS: dict[str, Callable[[_Family], None]] = dict(
    zip(NAMES, (evaluate, train_lora, train_full, alignguard, merge_full, merge_lora, inject), strict=True)
)
