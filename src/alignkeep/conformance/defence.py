"""The check of a defence of tunes, in short tunes of a shipped model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignkeep.conformance.checks import expect, unfit
from alignkeep.errors import NoEffectError
from alignkeep.progress import Silent


def defence(obj: object, options: Mapping[str, object] | None = None, *, any_batches: bool = True) -> None:
    """A defence that a module has under a name, or `package.module:object`, tried in tunes of a shipped model.

    Its options are described; at strength 0 the tune is the plain one, bit for bit; at 1e-12 it is a NoEffectError;
    otherwise it is another tune whose log has its terms, and one that was interrupted ends in the same bytes. With
    `any_batches` two half batches are one whole. `options` are those that it is tried with; `data` is given.
    """
    from alignkeep.train.defences import described, find_defence

    spec = obj if isinstance(obj, str) else _spec_of(obj)
    found = find_defence("defence", spec)
    what = f"defence {found.name}"
    for name, text in described(found.options).items():
        expect(bool(text), f"{what}.options.{name}", "no description", "one, in the docstring or the field")
    with TemporaryDirectory() as folder:
        tunes = _Tunes(Path(folder), spec, found.options.model_fields.keys(), options or {})
        plain, whole = tunes.made("plain", method="lora"), tunes.made("whole")
        off = tunes.made("off", **{found.strength: 0})  # pyright: ignore[reportArgumentType]
        expect(off.adapter == plain.adapter, what, f"another tune at {found.strength} 0", "plain LoRA, bit for bit")
        expect(whole.adapter != plain.adapter, what, "plain LoRA's weights", "another tune")
        expect(f'"{found.name}/' in whole.log, what, "a log without its terms", f"{found.name}/... in every row")
        try:
            tunes.made("idle", **{found.strength: 1e-12})  # pyright: ignore[reportArgumentType]
        except NoEffectError:
            pass
        else:
            raise unfit(what, f"{found.strength} 1e-12, accepted", "a NoEffectError, where it does nothing")
        resumed = tunes.resumed("resumed")
        expect(resumed == whole, what, "other bytes after an interruption", "those of a tune that had none")
        if any_batches:
            halves = tunes.made("halves", batch_size=2, accumulate=2)
            one, two = (made.terms(found.name) for made in (whole, halves))
            close = all(abs(a - b) <= 1e-2 * max(abs(a), abs(b)) + 1e-6 for a, b in zip(one, two, strict=True))
            expect(close, what, f"{one} of whole batches, {two} of halves, accumulated", "the same terms")


@dataclass(frozen=True)
class _Made:
    adapter: bytes
    log: str

    def terms(self, name: str) -> list[float]:
        """All that was logged of a defence."""
        rows = map(json.loads, self.log.splitlines())
        return [value for row in rows for key, value in sorted(row.items()) if key.startswith(f"{name}/")]


class _Interrupting(Silent):
    """Stops the tune as one would by hand, after its third step."""

    def __init__(self) -> None:
        self._label, self._steps = "", 0

    def start(self, label: str, total: int | None) -> None:
        self._label = label

    def advance(self, n: int = 1, note: str = "") -> None:
        self._steps += n if self._label == "train" else 0
        if self._steps == 3:
            raise KeyboardInterrupt


class _Tunes:
    """Short tunes of the testbed's aligned model with one defence, below one folder."""

    def __init__(self, root: Path, spec: str, fields: Any, options: Mapping[str, object]) -> None:
        from alignkeep.testbed import sets
        from alignkeep.testbed.stage import materialise

        def write(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
            file = root / name
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            return str(file)

        self._root, self._spec = root, spec
        self._options: dict[str, object] = (
            {"data": write("alignment.jsonl", sets.rows("alignment")[:8])} if "data" in fields else {}
        )
        self._options |= options
        self._settings = {
            "model": str(materialise("models/aligned", root / "T")),
            "data": write("data.jsonl", sets.rows("task_train")[:16]), "load": {"device": "cpu"},
            "group_by_length": False, "batch_size": 4,
            "learning_rate": 0.1, "trainer": {"max_steps": 4, "save_steps": 2, "optim": "sgd"},
        }  # fmt: skip

    def made(self, name: str, method: str | None = None, progress: Any = None, **options: Any) -> _Made:
        from alignkeep.train.stage import train

        config = self._config(method, options)
        folder = train(config, out=self._root / name, progress=progress).folder
        log = (folder / "training_log.jsonl").read_text(encoding="utf-8")
        return _Made((folder / "adapter_model.safetensors").read_bytes(), log)

    def resumed(self, name: str) -> _Made:
        try:
            self.made(name, progress=_Interrupting())
        except KeyboardInterrupt:
            return self.made(name)
        raise AssertionError("the tune was not interrupted")

    def _config(self, method: str | None, changes: dict[str, Any]) -> Any:
        from alignkeep.train.config import TrainConfig

        settings = {name: changes.pop(name) for name in [*changes] if name in TrainConfig.model_fields}
        defence = {} if method else {"defence": {**self._options, **changes}}
        return TrainConfig.model_validate({**self._settings, "method": method or self._spec, **defence, **settings})


def _spec_of(obj: object) -> str:
    """By what name a stage finds it."""
    from alignkeep.train.defences import DEFENCES

    if any(obj is one for one in DEFENCES):
        return str(getattr(obj, "name"))  # noqa: B009  of an object of any type
    module = getattr(obj, "__module__", type(obj).__module__)
    name = next((name for name, value in vars(sys.modules[module]).items() if value is obj), None)
    if name is None:
        raise unfit(f"defence {type(obj).__name__}", "an object that is no attribute of its module",
                     "one that has a name there, or `package.module:object`")  # fmt: skip
    return f"{module}:{name}"
