"""Tokenizer and chat template of a merge: one vocabulary, and one template agreed on or chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.files import write_text
from alignkeep.errors import CheckpointError, ShapeError
from alignkeep.models.headers import load_json

TEMPLATE = "chat_template.jinja"


def check_vocabulary(base: Path, tuned: Path) -> None:
    """Both tokenizers, where the tuned model brings its own, give every word the same number. Raises ShapeError."""
    ours, theirs = _vocabulary(base), _vocabulary(tuned)
    if not ours or not theirs:
        return
    for word in sorted(ours.keys() | theirs.keys()):
        if ours.get(word) != theirs.get(word):
            raise ShapeError(
                f"{tuned / 'tokenizer.json'}: token {word!r}",
                seen="no such token" if word not in theirs else f"number {theirs[word]}",
                expected=f"number {ours[word]}, as in {base}" if word in ours else f"the tokens of {base} only",
                remedy="merge models with one vocabulary (tune without adding tokens)",
            )


def check_templates(base: Path, tuned: Path, chosen: str | None) -> None:
    """The templates are the same, or one is chosen. Raises CheckpointError."""
    ours, theirs = template_of(base), template_of(tuned)
    if theirs is None or ours == theirs or chosen is not None:
        return
    raise CheckpointError(
        f"{tuned}: chat template",
        seen="another template than the base's" if ours else "a template, where the base has none",
        expected="one template, since the merge can have only one",
        remedy="choose with --chat-template base or --chat-template tuned (with --set chat_template=... in a recipe)",
    )


def take_template(chosen: Path, work: Path) -> None:
    """Give the merge the template of this model."""
    template = _template(chosen)
    if not isinstance(template, str):
        raise CheckpointError(
            f"{chosen}: chat template",
            seen="none" if template is None else "several, by name",
            expected="one to take over",
            remedy="choose the other model's",
        )
    write_text(work / TEMPLATE, template)


def template_of(folder: Path) -> str | None:
    """The chat template of a folder as text to compare; None where it has none."""
    template = _template(folder)
    return template if isinstance(template, str) or template is None else json.dumps(template, sort_keys=True)


def _template(folder: Path) -> Any:
    """As text, or as old tokenizers store several by name."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    return load_json(folder / "tokenizer_config.json").get("chat_template")


def _vocabulary(folder: Path) -> dict[str, int]:
    """Words and their numbers; empty where there is no tokenizer.json to read them from."""
    if not (folder / "tokenizer.json").is_file():
        return {}
    content: Any = load_json(folder / "tokenizer.json")
    vocabulary = content.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # unigram: (word, score) in order
        vocabulary = {word: index for index, (word, _) in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in content.get("added_tokens") or ()}}
