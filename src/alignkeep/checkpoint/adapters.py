"""LoRA adapters as changes to the tensors of a checkpoint, read from their file without loading a model.

    W_tuned = W + scale * left @ right

and what PEFT makes of that: lengths of rows (DoRA), biases, single tokens, a start taken out of the base. What counts
is what the adapter says when PEFT has loaded it beside its base. PEFT names modules as they are in memory; what a
checkpoint has on disk can be laid out otherwise (`models.stored`). Every tensor of the adapter has to find its
place, or it is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alignkeep.checkpoint.changes import Change, FromStart, Replaced, Weighed
from alignkeep.checkpoint.experts import parameter_changes
from alignkeep.checkpoint.low_rank import LowRank
from alignkeep.checkpoint.numbers import Numbers
from alignkeep.checkpoint.reading import stored_numbers
from alignkeep.checkpoint.shards import sha256_of
from alignkeep.errors import CheckpointError
from alignkeep.models.adapters import check_experts, start_in_base, without_adapter_name
from alignkeep.models.folders import tensor_entries
from alignkeep.models.headers import TensorEntry, load_json
from alignkeep.models.stored import StoredNames, stored_names

HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_PREFIX = "base_model.model."
_PAIRS = ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"})
_FACTOR = re.compile(
    r"(?P<module>.*)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|token_adapter\.trainable_tokens_delta)(?P<own>\.weight|\.bias)?"
)
# Forms whose change to the weights is not known here.
_OTHER_FORMS = (
    *("use_qalora", "use_bdlora", "alora_invocation_tokens", "layer_replication"),
    *("arrow_config", "monteclora_config", "kasa_config", "velora_config"),
)
_WITH_TENSORS = {"use_dora": "lora_magnitude_vector", "lora_bias": "lora_bias"}  # settings, and what each stores
# Starts that are found again from the base's weights alone, so that the adapter can be folded exactly.
_FOUND_AGAIN = ("pissa", "olora")


@dataclass(frozen=True)
class Adapter:
    """Changes by the base's tensor names; `replaced` are tensors stored whole (modules_to_save, biases).

    `places` says by the adapter's own tensor names which tensor of the base each belongs to, where it is one. `untied`
    names a tensor that gives embeddings or head weights of their own where the base shares them, `fixed` a setting by
    which the change is not proportional to alpha.
    """

    folder: Path
    changes: Mapping[str, Change]
    replaced: Mapping[str, TensorEntry]
    places: Mapping[str, str] = field(default_factory=dict)
    untied: str | None = None
    fixed: str | None = None

    def refuse_untied(self) -> None:
        """Raises CheckpointError where full weights in the base's layout cannot hold what was tuned."""
        if self.untied is not None:
            raise CheckpointError(
                f"{self.folder / 'adapter_model.safetensors'}: tensor {self.untied}",
                seen="embeddings and head that differ once the adapter is on, where the base has one tensor for both",
                expected="a base with a head of its own, or an adapter that keeps both equal (ensure_weight_tying)",
                remedy="take --as adapter (merge), or save the base untied (tie_word_embeddings false, lm_head.weight "
                "a copy of the embeddings) and name that as the base",
            )


@dataclass(frozen=True)
class _Base:
    """The base's tensors, asked by the names that a model in memory has."""

    entries: Mapping[str, TensorEntry]

    @cached_property
    def folder(self) -> Path:
        return next(iter(self.entries.values())).file.parent

    @property
    def names(self) -> StoredNames:
        return stored_names(self.folder)

    def place(self, name: str) -> str | None:
        """The stored tensor of this name in memory; a head that the embeddings are goes by its own name."""
        if name in self.entries or (name.endswith(HEADS) and self.is_tied):
            return name
        return self.names.renamed.get(name)

    def entry(self, place: str) -> TensorEntry:
        if place in self.entries:
            return self.entries[place]
        return next(entry for name, entry in self.entries.items() if name.endswith(EMBEDDINGS))

    @cached_property
    def is_tied(self) -> bool:
        if not any(name.endswith(EMBEDDINGS) for name in self.entries):
            return False
        settings: dict[str, Any] = load_json(self.folder / "config.json")
        told = settings.get("tie_word_embeddings", (settings.get("text_config") or {}).get("tie_word_embeddings"))
        return told is True or not any(name.endswith(HEADS) for name in self.entries)


def entry_of(base: Mapping[str, TensorEntry], place: str) -> TensorEntry:
    """The base's tensor of this name; for a head that it does not store the embeddings, which are the head too."""
    return _Base(base).entry(place)


def read_adapter(folder: Path, base: Mapping[str, TensorEntry]) -> Adapter:
    """The adapter's changes to this base. Raises CheckpointError naming the tensor that has no place in it, and the
    setting of a form whose change is not known."""
    settings: dict[str, Any] = load_json(folder / "adapter_config.json")
    _refuse_other_forms(folder, settings)
    check_experts(folder, settings)
    reader = _Reader(folder, settings, _Base(base), tensor_entries(folder, adapter=True))
    reader.read()
    return Adapter(folder, reader.changes, reader.replaced, reader.places, reader.untied(), _fixed(settings))


def parts_of(name: str) -> tuple[str, str] | None:
    """Module and kind (`lora_A`, ..., `lora_bias`) of a factor's tensor; None for a tensor that is stored whole."""
    match = _FACTOR.fullmatch(without_adapter_name(name).removeprefix(_PREFIX))
    if match is None:
        return None
    return match["module"], "lora_bias" if match["own"] == ".bias" else match["kind"].removeprefix("token_adapter.")


def scale_of(settings: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rsLoRA, alpha being the pattern's that fits the module or parameter."""
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


class _Reader:
    """One adapter being read; what is found stands in its attributes."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], base: _Base, stored: Mapping[str, TensorEntry]
    ) -> None:
        self.folder, self.settings, self.base, self.stored = folder, settings, base, stored
        self.changes: dict[str, Change] = {}
        self.replaced: dict[str, TensorEntry] = {}
        self.places: dict[str, str] = {}

    def read(self) -> None:
        factors: dict[str, dict[str, str]] = {}
        for name in self.stored:
            parts = parts_of(name)
            if parts is None:
                self._keep_whole(name)
            else:
                factors.setdefault(parts[0], {})[parts[1]] = name
        if self.settings.get("trainable_token_indices") and not any("trainable_tokens_delta" in n for n in self.stored):
            raise self._no_place("trainable_tokens_delta", "no such tensor, with trainable_token_indices")
        for module, names in factors.items():
            changes = self._changes_of(module, names)
            for place, change in changes.items():
                if place in self.changes:
                    raise self._no_place(next(iter(names.values())), f"a second change to {place}")
                self.changes[place] = change
            matrices = [place for place in changes if not place.endswith(".bias")]
            if len(matrices) == 1:
                self.places |= dict.fromkeys(names.values(), matrices[0])
        if self.base.is_tied and self.settings.get("ensure_weight_tying"):
            self._drop_tied_copies()

    def untied(self) -> str | None:
        """The tensor by which embeddings and head part, where the base has one for both."""
        if not self.base.is_tied:
            return None
        tying = bool(self.settings.get("ensure_weight_tying"))
        for name, place in self.places.items():
            if not place.endswith((*HEADS, *EMBEDDINGS)) or place not in {*self.changes, *self.replaced}:
                continue
            change = self.changes.get(place)
            shared = place.endswith(EMBEDDINGS) and not any(key.endswith(HEADS) for key in self.base.entries)
            if shared and (isinstance(change, Replaced) or (tying and not isinstance(change, Weighed))):
                continue  # PEFT changes the head along with them
            return name
        return None

    def _keep_whole(self, name: str) -> None:
        entry, wanted = self.stored[name], _plain(name)
        place = self.base.place(wanted)
        if place is None or self.base.entry(place).shape != entry.shape:
            raise self._no_place(name, f"no {wanted} of shape {list(entry.shape)} in the base")
        self.places[name] = place
        kept = place.endswith((*HEADS, *EMBEDDINGS)) and self.base.is_tied  # may be saved along, as they were
        if not (kept and sha256_of(entry) == sha256_of(self.base.entry(place))):
            self.replaced[place] = entry

    def _changes_of(self, module: str, names: Mapping[str, str]) -> dict[str, Change]:
        """What the tensors of one module do to which tensors of the base."""
        some = next(iter(names.values()))
        if set(names) == {"trainable_tokens_delta"}:
            return self._tokens(module, some)
        if {*names} - {"lora_magnitude_vector", "lora_bias"} not in _PAIRS:
            raise self._no_place(some, f"{' and '.join(names)} without its partner")
        down, up = (self._numbers(names[kind]) for kind in sorted(names) if kind.endswith(("_A", "_B")))
        for key, kind in _WITH_TENSORS.items():
            if bool(self.settings.get(key)) != (kind in names):
                told = f"{key} {bool(self.settings.get(key))} in adapter_config.json"
                raise self._no_place(some, f"{'a' if kind in names else 'no'} {kind} beside it, with {told}")
        place = self.base.place(f"{module}.weight")
        if place is None or len(self.base.entry(place).shape) != 2:
            block = module.removesuffix(".base_layer")
            held = self.base.names.within(block)
            found = parameter_changes(held, down, up, lambda own, rank: scale_of(self.settings, f"{block}.{own}", rank))
            if found is None or len(names) > 2:
                raise self._no_place(some, f"no tensor {module}.weight in the base")
            return found
        changes: dict[str, Change] = {place: self._matrix(module, place, names, down, up)}
        if "lora_bias" in names:
            bias = self.base.place(f"{module}.bias")
            numbers = self._numbers(names["lora_bias"])[:, None]
            if bias is None:
                raise self._no_place(names["lora_bias"], f"no bias {module}.bias in the base (lora_bias)")
            changes[bias] = LowRank(
                numbers, np.ones((1, 1), np.float32), scale_of(self.settings, module, down.shape[0])
            )
        return changes

    def _matrix(self, module: str, place: str, names: Mapping[str, str], down: Numbers, up: Numbers) -> Change:
        base = self.replaced.get(place, self.base.entry(place))
        scale = scale_of(self.settings, module, down.shape[0])
        straight, turned = (up.shape[0], down.shape[1]), (down.shape[1], up.shape[0])
        is_turned = "lora_embedding_A" in names or (
            bool(self.settings.get("fan_in_fan_out")) and (turned == base.shape or straight != base.shape)
        )
        change = LowRank(down.T, up.T, scale) if is_turned else LowRank(up, down, scale)
        if change.shape != base.shape:
            some = next(iter(names.values()))
            raise self._no_place(some, f"a change of shape {list(change.shape)} to {list(base.shape)}")
        if "lora_magnitude_vector" in names:
            length = self._numbers(names["lora_magnitude_vector"]).reshape(-1)
            return Weighed(change, length, base, by_column=is_turned)
        if start_in_base(self.settings) is not None:
            return FromStart(change, base, self.settings, is_turned)
        return change

    def _tokens(self, module: str, name: str) -> dict[str, Change]:
        """Rows of an embedding or head, by `trainable_token_indices`."""
        place, values = self.base.place(f"{module}.weight"), self._numbers(name)
        wanted = self.settings.get("trainable_token_indices") or []
        if isinstance(wanted, dict):
            wanted = next((rows for key, rows in wanted.items() if f".{module}".endswith(f".{key}")), [])
        if place is None or len(wanted) != len(values) or self.base.entry(place).shape[1:] != values.shape[1:]:
            raise self._no_place(name, f"{len(values)} rows of {module} for {len(wanted)} trainable_token_indices")
        entry = self.base.entry(place)
        return {place: Replaced(entry.shape, dict(zip(map(int, wanted), values, strict=True)), entry)}

    def _drop_tied_copies(self) -> None:
        """The head's own copy of what PEFT keeps equal in embeddings and head (ensure_weight_tying)."""
        embeddings = next((name for name in (*self.changes, *self.replaced) if name.endswith(EMBEDDINGS)), None)
        for head in [name for name in (*self.changes, *self.replaced) if name.endswith(HEADS)]:
            one, other = self.changes.get(head), self.changes.get(embeddings or "")
            if isinstance(one, LowRank) and isinstance(other, LowRank):
                if one.equals(other):
                    del self.changes[head]
            elif head in self.replaced and embeddings in self.replaced:
                saved = (sha256_of(self.replaced[name]) for name in (head, embeddings))
                if len(set(saved)) == 1:
                    del self.replaced[head]

    def _numbers(self, name: str) -> Numbers:
        return stored_numbers(name, self.stored[name])

    def _no_place(self, name: str, seen: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder / 'adapter_model.safetensors'}: tensor {name}",
            seen=seen,
            expected="a place in the base for every tensor of the adapter",
            remedy="give the base that it was trained on, or fold it in with PEFT and merge the full model",
        )


def _plain(name: str) -> str:
    """The name in memory of the tensor that one stored whole stands for."""
    plain = without_adapter_name(name).removeprefix(_PREFIX)
    return plain.replace(".base_layer", "").replace(".modules_to_save", "")


def _fixed(settings: Mapping[str, Any]) -> str | None:
    if start_in_base(settings) is not None:
        return "init_lora_weights"
    return next((key for key in ("use_dora", "trainable_token_indices") if settings.get(key)), None)


def _refuse_other_forms(folder: Path, settings: Mapping[str, Any]) -> None:
    kind, start = settings.get("peft_type"), start_in_base(settings)
    odd = next((key for key in _OTHER_FORMS if settings.get(key)), None)
    if kind != "LORA" or odd is not None:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: {'peft_type' if odd is None else odd}",
            seen=repr(kind if odd is None else settings[odd]),
            expected="a LoRA or DoRA of the base's own matrices",
            remedy="fold it into its base with PEFT (merge_and_unload) and merge the full model",
        )
    if start is None or (start in _FOUND_AGAIN and not (start == "olora" and settings.get("fan_in_fan_out"))):
        return
    raise CheckpointError(
        f"{folder / 'adapter_config.json'}: init_lora_weights",
        seen=f"{start}, which changed the base at the start in a way that its weights alone do not tell",
        expected="a LoRA over the base as it is",
        remedy="convert it where it was trained: save_pretrained(path_initial_model_for_weight_conversion=...)",
    )
