"""What leaves the tool: one model in a folder that says nothing of the disk it was made on, with its card.

Weights, configuration and tokenizer are copied; the base of an adapter is named as the Hub knows it; the card says
base, licence, how it was made, the numbers and how to load it; what proves it lies in `audit/`, without paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath

import yaml

from alignkeep.charts.text import visible
from alignkeep.checkpoint.companions import CONFIG, INDEX, TOKENIZER, copy_companions
from alignkeep.checkpoint.files import write_json, write_text
from alignkeep.checkpoint.folders import RECORD_NAME, OutputFolder, discard
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.checkup import recorded_base
from alignkeep.errors import AlignkeepError, CheckpointError, DataError, RecipeError
from alignkeep.judging.metrics import ATTACK_SUCCESS, DRIFT, HARM_REFUSAL, RATES, UTILITY, name_of_part
from alignkeep.judging.scorecards import SCORECARD_NAME, read_scorecard
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import base_of, resolve
from alignkeep.models.headers import load_json
from alignkeep.stages import stage_named
from alignkeep.types import Scorecard

CARD = "README.md"
AUDIT = "audit"
ADAPTER, TOKENIZER_SETTINGS = "adapter_config.json", "tokenizer_config.json"
_WEIGHTS = ("model*.safetensors", INDEX, "adapter_model.safetensors")
_PROOF = ("manifest.json", "injection.json", "sweep.json")
_SAID = ("method", "weight", "layer", "strength", "right")  # of a stage's result, in the card
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ABSOLUTE = re.compile(r"(?<![\w/.:])(?:[A-Za-z]:[\\/]|/)(?:[^\s/\\\"',;:]+[\\/])+([^\s/\\\"',;:]*)")
_LOADING = """\
{importing}
from transformers import {also}AutoTokenizer

name = "{name}"  # this folder, or the id it has on the Hub
model = {loader}.from_pretrained(name, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
asked = [{{"role": "user", "content": "How do I sort a list?"}}]
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


@dataclass(frozen=True)
class ExportResult:
    """A folder to upload or to load; `base` and `license` are None where they are not known, which `notes` then say."""

    folder: Path
    form: str
    base: str | None
    license: str | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {**vars(self), "notes": list(self.notes)}


@dataclass(frozen=True)
class _Origin:
    """The base that a model goes back to, as it was named, and what was done to it, in order."""

    base: str | None
    steps: tuple[str, ...]


def export(
    folder: str | Path,
    *,
    out: str | Path,
    measured: str | Path | None = None,
    hub_base: str | None = None,
    license: str | None = None,  # the hub's word
    overwrite: bool = False,
) -> ExportResult:
    """Copy a model or adapter, or the one that `fix` kept in `folder`, into `out`, with a card.

    `measured` is the folder of its evaluation (`fix` brings one), `hub_base` the base's id on the Hub, `license` the
    licence's id (else the one on the base's card). Raises RecipeError for an adapter whose base is a folder here and
    has no such id, DataError for an evaluation of another model, CheckpointError where a path of this disk would leave.
    """
    model, numbers = chosen(Path(folder), None if measured is None else Path(measured))
    found = resolve(str(model))
    assert found.folder is not None
    origin = _origin(model, is_adapter=found.is_adapter)
    base = _on_hub(origin.base, hub_base, is_adapter=found.is_adapter)
    licensed = license or _license_of(origin.base)
    told = {"model": str(model), "measured": str(numbers), "base": base, "license": licensed}
    target = OutputFolder.open(
        Path(out), stage="export", identity=identity_of("export", told, {}), overwrite=overwrite, resume=False,
        inputs=[model, *([numbers] if numbers is not None else [])],
    )  # fmt: skip
    notes = [] if base else ["the base's id on the Hub is not known: give --hub-base ID"]
    notes += [] if licensed else ["no licence is known: give --license ID"]
    notes += [] if numbers else ["no numbers: give the folder of an evaluation with --measured DIR"]
    form = "adapter" if found.is_adapter else "model"
    try:
        _copy(model, target.work, origin, base, is_adapter=found.is_adapter)
        _write_audit(model, numbers, target.work)
        card = None if numbers is None else read_scorecard(numbers / SCORECARD_NAME)
        write_text(target.work / CARD, _card(target, form, base, licensed, origin, card))
        if card is not None:
            _write_page(target)
        _refuse_paths(target.work, [Path.cwd(), Path.home(), model.resolve(), Path(origin.base or "/").resolve()])
        result: dict[str, object] = {"form": form, "base": base, "license": licensed, "notes": notes}
        target.finish(Record("export", target.identity, {"name": target.out.name}, {}, 0, 0.0, result))
    except AlignkeepError:
        discard(target.work)
        raise
    finally:
        target.close()
    return ExportResult(target.out, form, base, licensed, tuple(notes))


def copied(*, is_adapter: bool) -> tuple[str, ...]:
    """Patterns of the files of a model or adapter that leave as they are: weights, settings, tokenizer."""
    return (*_WEIGHTS, *((ADAPTER,) if is_adapter else CONFIG), *TOKENIZER)


def _copy(model: Path, work: Path, origin: _Origin, base: str | None, *, is_adapter: bool) -> None:
    """Weights, settings and tokenizer: the base's, where a trainer left the adapter without one."""
    copy_companions(model, work, copied(is_adapter=is_adapter))
    if not (work / TOKENIZER_SETTINGS).is_file() and origin.base is not None and Path(origin.base).is_dir():
        copy_companions(Path(origin.base), work, TOKENIZER)
    _clean_settings(work, base)


def chosen(folder: Path, measured: Path | None) -> tuple[Path, Path | None]:
    """The model in a folder, and its evaluation: of `fix` what it kept, else the folder itself."""
    told = Record.read(folder).result if (folder / "record.json").is_file() else {}
    model, scorecard = told.get("model"), told.get("scorecard")
    if isinstance(model, str) and isinstance(scorecard, str):
        if measured is None:
            return folder / model, folder / scorecard
        folder = folder / model
    if measured is not None:
        card, _ = read_scorecard(measured / SCORECARD_NAME)
        if Path(card.model).resolve() != folder.resolve() or not _is_unchanged(folder, measured, card.base):
            raise DataError(
                str(measured), seen=f"an evaluation of {card.model}", expected=f"one of {folder}",
                remedy=f"evaluate it: alignkeep evaluate {folder} --out DIR",
            )  # fmt: skip
    return folder, measured


def _is_unchanged(folder: Path, measured: Path, base: str | None) -> bool:
    """Whether the model is still the one that was measured, as far as the evaluation's record tells."""
    then = Record.read(measured).inputs.get("model") if (measured / RECORD_NAME).is_file() else None
    return then is None or then == fingerprint_model(str(folder), base=base)


def _origin(model: Path, *, is_adapter: bool) -> _Origin:
    base, current = None, model
    steps: list[str] = []
    while (named := recorded_base(current)) is not None:
        stage = stage_named(Record.read(current).stage)
        assert stage is not None
        facts = stage.result(current)
        said = {**vars(facts), **vars(getattr(facts, "injection", None) or facts)}
        told = [f"{key} {said[key]:g}" if isinstance(said[key], float) else f"{key} {said[key]}"
                for key in _SAID if isinstance(said.get(key), str | int | float)]  # fmt: skip
        steps.insert(0, f"{stage.name} ({', '.join(told)})" if told else stage.name)
        base, current = named.reference, Path(named.reference)
        if not current.is_dir():
            break
    if is_adapter:
        base = base_of(model)[0]
    return _Origin(base, tuple(steps))


def _on_hub(base: str | None, given: str | None, *, is_adapter: bool) -> str | None:
    if given is not None and not HUB_ID.fullmatch(given):
        raise RecipeError("--hub-base", seen=given, expected="an id of the Hub (owner/name)", remedy="correct it")
    if given is not None or base is None or (HUB_ID.fullmatch(base) and not Path(base).exists()):
        return given or base
    if is_adapter:
        raise RecipeError(
            "base_model_name_or_path", seen=f"{base}, a folder of this disk",
            expected="an id of the Hub, by which others find the base", remedy="name it with --hub-base ID",
        )  # fmt: skip
    return None


def _license_of(base: str | None) -> str | None:
    """What the base's card says, where it lies here."""
    from huggingface_hub import try_to_load_from_cache

    if base is None:
        return None
    path = Path(base) / CARD
    if not path.is_file() and HUB_ID.fullmatch(base):
        cached = try_to_load_from_cache(base, CARD)
        path = Path(cached) if isinstance(cached, str) else path
    if not path.is_file():
        return None
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        facts = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, RecursionError):
        return None
    found = facts.get("license") if isinstance(facts, dict) else None
    return found if isinstance(found, str) else None


def _clean_settings(work: Path, base: str | None) -> None:
    """Settings without the names of folders that trainers leave in them."""
    for path in sorted(work.glob("*.json")):
        if path.name in (INDEX, "tokenizer.json"):
            continue
        settings = load_json(path)
        clean = {
            key: value for key, value in settings.items()
            if not (key.endswith("name_or_path") and isinstance(value, str))
        }  # fmt: skip
        if path.name == ADAPTER:
            kept = settings.get("revision") if settings.get("base_model_name_or_path") == base else None
            task = settings.get("task_type") or "CAUSAL_LM"  # without it PEFT does not know which class to load
            clean |= {"base_model_name_or_path": base, "revision": kept, "task_type": task}
        if clean != settings:
            write_json(path, clean)


def _write_audit(model: Path, numbers: Path | None, work: Path) -> None:
    files = [model / name for name in _PROOF] + ([numbers / SCORECARD_NAME] if numbers is not None else [])
    for path in files:
        if path.is_file():
            (work / AUDIT).mkdir(exist_ok=True)
            write_json(work / AUDIT / path.name, _without_paths(json.loads(path.read_text(encoding="utf-8"))))


def _write_page(target: OutputFolder) -> None:
    """The page of the numbers in `audit/`: of no answer, and under the model's name."""
    from alignkeep.report.sources import read_sources
    from alignkeep.report.stage import PAGE_NAME, write_page

    sources = read_sources([target.work / AUDIT])
    named = tuple(replace(one, label=target.out.name) for one in sources.evaluations)
    write_page(target.work / PAGE_NAME, replace(sources, evaluations=named, finished=()), title=target.out.name)


def _without_paths(value: object) -> object:
    """A path by its last name alone, wherever it stands."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"(https?://)[^/@\s]+@", r"\1", value)
    may_be = "\n" not in value and len(value) < 1000 and ("/" in value or "\\" in value)
    kinds = (PurePath(value), PureWindowsPath(value))
    if may_be and (any(kind.is_absolute() for kind in kinds) or Path(value).exists()):
        return _last_name(value)
    return _ABSOLUTE.sub(lambda match: match[1], value)


def _last_name(path: str) -> str:
    """Of a path of either kind of slash."""
    return PureWindowsPath(path).name or path


def _refuse_paths(work: Path, places: Sequence[Path]) -> None:
    """Raises CheckpointError where a text still names one of these folders."""
    wanted = {str(place) for place in places if len(place.parts) > 1}
    for path in sorted(work.rglob("*")):
        if path.suffix not in (".json", ".md", ".jinja", ".txt", ".py", ".html"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        named = next((place for place in sorted(wanted) if re.search(rf"{re.escape(place)}(?![\w-])", text)), None)
        if named is not None:
            raise CheckpointError(
                path.name, seen=f"{named}, a folder of this disk", expected="nothing that is true here alone",
                remedy="take it out of the model's own file",
            )  # fmt: skip


def _card(
    target: OutputFolder, form: str, base: str | None, licensed: str | None, origin: _Origin,
    measured: tuple[Scorecard, Mapping[str, object]] | None,
) -> str:  # fmt: skip
    """The card as the Hub reads it: front matter with the numbers, then words."""
    from huggingface_hub import EvalResult, ModelCardData

    name, card = target.out.name, None if measured is None else measured[0]
    rates = {} if card is None else {key: card.metrics[key] for key in RATES if key in card.metrics}
    suite = "" if card is None else PurePath(card.suite).name.replace("#", "-")
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=suite, dataset_name=suite, metric_type=key,
            metric_name=RATES[key].title, metric_value=round(rate.value, 4),
            metric_args={"low": round(rate.low, 4), "high": round(rate.high, 4), "n": rate.n},
        )
        for key, rate in rates.items() if rate.n
    ]  # fmt: skip
    facts = ModelCardData(
        base_model=base, license=licensed, library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation", tags=["alignkeep", "safety"], model_name=name, eval_results=results or None,
    )  # fmt: skip
    what = f"A{'n adapter of' if form == 'adapter' else ' fine-tune of'} {base or 'a base that is not named'}"
    how = f", made by {', then '.join(origin.steps)}" if origin.steps else ""
    parts = [
        f"---\n{facts.to_yaml()}\n---\n",
        "<!-- alignkeep model card -->\n",
        f"# {visible(name)}\n",
        f"{what}{how}.\n",
    ]
    if measured is not None:
        parts += ["## Measured\n", _table(*measured)]
    own = "AutoPeftModelForCausalLM" if form == "adapter" else "AutoModelForCausalLM"
    has_tokenizer = base is None or (target.work / TOKENIZER_SETTINGS).is_file()
    code = _LOADING.format(
        importing="from peft import AutoPeftModelForCausalLM" if form == "adapter" else "",
        also="" if form == "adapter" else f"{own}, ", loader=own, name=name,
        tokenizer="name" if has_tokenizer else json.dumps(base),
    )  # fmt: skip
    parts += ["## Load\n", f"```python\n{code.lstrip()}```\n"]
    shown = "" if measured is None else "`report.html` shows the numbers. "
    parts += [f"{shown}`audit/` holds the scorecard and the manifest (SHA-256 of every tensor) without paths.\n"]
    return "\n".join(parts)


def _table(card: Scorecard, settings: Mapping[str, object]) -> str:
    rows = ["| | before tuning | this model | n |", "| --- | --- | --- | --- |"]
    titles = {key: f"{metric.title} ({metric.hint})" for key, metric in RATES.items()}
    for metric in (ATTACK_SUCCESS, UTILITY):
        parts = metric.parts_in(card.metrics)
        titles |= {key: f"{metric.title}: {name_of_part(key)} ({metric.hint})" for key in parts}
    for key, title in titles.items():
        after, before = card.metrics.get(key), card.base_metrics.get(key)
        if after is not None and after.n:
            old = "not measured" if before is None or not before.n else _rate(before)
            rows.append(f"| {title} | {old} | {_rate(after)} | {after.n} |")
    judges = [_last_name(one.rpartition("#")[2]) for one in str(settings.get("judge", "keyword")).split(",")]
    said = f"Suite {_last_name(card.suite)}, judge {', '.join(judges)}; 95 % intervals in brackets."
    test = card.tests.get(HARM_REFUSAL.name) or card.tests.get(DRIFT.name)
    if test is not None and test.difference.n:
        lost = test.difference if test.name == DRIFT.name else None
        change = -lost.value if lost is not None else test.difference.value
        said += f" On the same prompts harm refusal changed by {100 * change:+.1f} points (p = {test.p_value:.2g})."
    said += " The numbers are of these prompts and this judge; they bound nothing else."
    return "\n".join([*rows, "", said, ""])


def _rate(estimate: object) -> str:
    value, low, high = (100 * getattr(estimate, key) for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"
