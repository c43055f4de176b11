"""The check of a way to choose examples, on a few examples in vectors, texts and gradients."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from alignkeep.conformance.checks import called, expect, unfit, what_of
from alignkeep.errors import AlignkeepError

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.curate.method import CurationMethod, Given, Scores

_COUNT = 23  # examples that a curation method is tried on


def curation_method(obj: object) -> None:
    """A way to choose examples: its options documented; a finite score for every example, the same every time and
    whatever the order; equal examples alike; what it is given left as it was; the references that it `reads`, and no
    others, have a part. Masses, where it gives some, sum to 1 and are in the order of the scores. With two examples, or
    with all of them alike, it scores or raises an error of alignkeep's."""
    from alignkeep.curate.method import Counts
    from alignkeep.curate.methods import as_method

    what = what_of("method", obj)
    method = as_method(obj, type(obj).__name__)
    about = method.options.__doc__ or ""
    for name, setting in method.options.model_fields.items():
        said = bool(setting.description) or re.search(rf"`{name}\b", about) is not None
        expect(said, f"{what}.options", f"no word on {name}", "each option in the docstring, as `name`")
    options = method.options()
    expect(isinstance(method.weighs(options), bool), f"{what}.weighs", "neither true nor false", "one of them")
    expect(method.memory(Counts(2, 2, 2, 0), options) >= 0, f"{what}.memory", "less than nothing", "bytes")
    tried = all(isinstance(one, method.options) for one in method.trials(options))
    expect(tried, f"{what}.trials", "something else than options", "some of its options")
    _check_scores(method, what, options)
    _check_reads(method, what, options)
    for count in (2, 7):
        with contextlib.suppress(AlignkeepError):
            method.score(_examples(count, alike=count == 7), options)


def _check_scores(method: CurationMethod, what: str, options: Any) -> None:
    import torch

    where, given, untouched = f"{what}.score", _examples(_COUNT), _examples(_COUNT)
    found, second = (_scored(method, where, some, options) for some in (given, given))
    expect(_same(given, untouched), where, "other examples afterwards", "what is given left as it was")
    expect(found.value.equal(second.value), where, "other scores the second time", "the same every time")
    spread = float(found.value.max() - found.value.min())
    expect(spread > 0, where, "the same score for every example", "scores that tell examples apart")
    if method.needs != "nothing":
        order = torch.randperm(_COUNT, generator=torch.Generator().manual_seed(1))
        moved = _scored(method, where, _examples(_COUNT, order=order), options).value
        near = float((moved - found.value[order]).abs().max()) <= 1e-3 * spread
        expect(near, where, "other scores in another order", "the same scores whatever their order")
        alike = float((found.value[0] - found.value[1]).abs()) <= 1e-5 * spread
        expect(alike, where, "different scores of two equal examples", "the same")
    if found.weighing is not None:
        _check_weighing(found, where)


def _check_weighing(found: Scores, where: str) -> None:
    import torch

    assert found.weighing is not None
    mass, count = found.weighing.mass, len(found.value)
    total = float(mass.sum()) if mass.shape == found.value.shape else float("nan")
    one = abs(total - 1) < 1e-4 and bool((mass >= 0).all())
    expect(one, where, f"masses that sum to {total:.3g}", f"{count} masses, none below 0, with a sum of 1")
    rising = mass.double()[found.value.argsort()].diff()
    expect(bool((rising >= -1e-9).all()), where, "masses in another order", "larger masses for larger scores")
    kept = torch.zeros(count, dtype=torch.bool)
    kept[found.value.argsort(descending=True)[: count // 2]] = True
    weights = found.weighing.weights(kept)
    fair = abs(float(weights[kept].mean()) - 1) < 1e-4 and not bool(weights[~kept].any())
    expect(fair, where, "other weights of the kept", "weights of mean 1 over the kept and 0 elsewhere")


def _check_reads(method: CurationMethod, what: str, options: Any) -> None:
    """Other references in the place of one set: do the scores change?"""
    before = _scored(method, f"{what}.score", _examples(_COUNT), options).value
    for name in ("safe", "harmful"):
        after = _scored(method, f"{what}.score", _examples(_COUNT, other=name), options).value
        changed, reads = not after.equal(before), name in method.reads
        seen = f"scores that {'change' if changed else 'do not change'} with the {name} references"
        expect(changed == reads, f"{what}.reads", seen, f"{name} among `reads` if and only if it has a part")


def _scored(method: CurationMethod, where: str, given: Given, options: Any) -> Scores:
    """Its scores, if they are some."""
    from alignkeep.curate.method import Scores

    found: object = called(where, lambda: method.score(given, options), f"for {given.count} examples")
    if not isinstance(found, Scores):
        raise unfit(where, f"{found!r:.80}", "alignkeep.curate.method.Scores")
    for name, values in (("value", found.value), ("safe", found.safe), ("harmful", found.harmful)):
        if values is not None:
            expected = f"{given.count} numbers"
            expect(values.shape == (given.count,), where, f"{name} of shape {tuple(values.shape)}", expected)
            expect(bool(values.isfinite().all()), where, f"{name} with what is not a number", expected)
    return found


def _examples(count: int, *, order: Tensor | None = None, other: str = "", alike: bool = False) -> Given:
    """Vectors, texts and gradients at once, the first two examples equal; `other` names a reference that changes."""
    import torch

    from alignkeep.curate.method import Given, Products, Sets

    draw = torch.Generator().manual_seed(0)
    sizes = {"data": count, "safe": 5, "harmful": 6}
    rows = {name: torch.randn(size, 8, generator=draw) + (name == "harmful") for name, size in sizes.items()}
    words = ["sort", "bake", "the", "numbers", "steal", "bread", "how", "bike"]
    rows["data"][1] = rows["data"][0]
    if alike:
        rows["data"][:] = rows["data"][0]
    if other:
        rows[other] = torch.randn(sizes[other], 8, generator=draw)
    rows["data"] = rows["data"] if order is None else rows["data"][order]
    vectors = {name: torch.nn.functional.normalize(some, dim=1) for name, some in rows.items()}
    texts = {
        name: [" ".join(words[at] for at in row.argsort(descending=True)[:4]) for row in some]
        for name, some in rows.items()
    }
    products = (vectors["data"] @ vectors[name].mean(0) for name in ("safe", "harmful"))
    return Given(count, 0, Sets(**vectors), Sets(**texts), Products(*products))


def _same(one: Given, other: Given) -> bool:
    pairs = [
        (getattr(mine, name), getattr(theirs, name))
        for mine, theirs in ((one.vectors, other.vectors), (one.texts, other.texts))
        for name in ("data", "safe", "harmful")
    ]
    return all(mine.equal(theirs) if hasattr(mine, "equal") else mine == theirs for mine, theirs in pairs)
