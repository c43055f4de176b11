"""Which attacks `--attacks` means: names, groups of them, stored artifacts, and objects of a stranger's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignkeep.errors import RecipeError
from alignkeep.evaluate.artifacts import read_artifacts
from alignkeep.evaluate.attacks import ATTACKS, Attack, is_attack_name
from alignkeep.evaluate.jailbreaks import JAILBREAKS
from alignkeep.objects import is_spec, load_object
from alignkeep.settings import nearest

ARTIFACTS = "artifacts:"


def offered_attacks(own: Sequence[Attack] | None) -> tuple[Attack, ...]:
    """The four, in the suite's wording where it brings one (same name), followed by the suite's further attacks."""
    mine = {attack.name: attack for attack in own or ()}
    return (*(mine.pop(attack.name, attack) for attack in ATTACKS), *mine.values())


def select_attacks(names: str, offered: Sequence[Attack] = ATTACKS) -> list[Attack]:
    """The attacks that names with commas between them mean, each once: those offered in the order offered, the further
    ones in theirs, then `artifacts:FILE` and `package.module:object`. RecipeError for anything else, and for a
    stranger's under a name that is taken.

    `none` alone is none; `all` is what is offered (the standard four and the suite's), `every` the further ones too.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if wanted == ["none"]:
        return []
    if not wanted:
        raise RecipeError("attacks", seen=repr(names), expected="all, none or names", remedy="write none for none")
    standard = {attack.name: attack for attack in offered}
    known = {**{attack.name: attack for attack in JAILBREAKS}, **standard}
    known = {name: known[name] for name in (*standard, *(name for name in known if name not in standard))}
    elsewhere = [name for name in wanted if is_spec(name) or name.startswith(ARTIFACTS)]
    for name in wanted:
        if name not in known and name not in ("all", "every") and name not in elsewhere:
            near = nearest(name, known)
            raise RecipeError(
                "attacks",
                seen=repr(name),
                expected=f"all, every, none, or some of {', '.join(known)}, {ARTIFACTS}FILE or package.module:object",
                remedy=f"did you mean {near}?" if near else "choose from these",
            )
    chosen = [
        attack
        for name, attack in known.items()
        if name in wanted or "every" in wanted or ("all" in wanted and name in standard)
    ]
    for spec in elsewhere:
        attack = read_artifacts(Path(spec.removeprefix(ARTIFACTS))) if spec.startswith(ARTIFACTS) else load_attack(spec)
        if attack.name in known or attack.name in {other.name for other in chosen}:
            raise RecipeError(
                f"attack {spec}",
                seen=f"the name {attack.name}, which another attack has",
                expected="a name of its own",
                remedy="rename it",
            )
        chosen.append(attack)
    return chosen


def listing(more: str | None = None) -> Iterator[str]:
    """Every attack, and those that `more` names, with its title: lines for a reader."""
    own = [name.strip() for name in (more or "").split(",") if is_spec(name.strip())]
    yield from (f"{attack.name}: {attack.title}" for attack in (*ATTACKS, *JAILBREAKS))
    yield from (f"{spec}: {load_attack(spec).title}" for spec in own)


def load_attack(spec: str) -> Attack:
    """The Attack that `package.module:object` names, of a class an object. RecipeError where there is none."""
    expected = "an object with name, title, template_text and apply(prompt)"
    found = load_object("attacks", spec, expected=expected)
    if not isinstance(found, Attack):
        lacks = next(name for name in ("name", "title", "template_text", "apply") if not hasattr(found, name))
        seen = f"a {type(found).__name__} without {lacks}"
        raise RecipeError(f"attack {spec}", seen=seen, expected=expected, remedy=f"give it {lacks}")
    if not is_attack_name(found.name):
        seen = f"the name {found.name!r}"
        raise RecipeError(f"attack {spec}", seen=seen, expected="letters, digits, _ and -", remedy="rename it")
    return found
