"""The check of a merge method, on small tensors of every shape."""

from __future__ import annotations

from itertools import product
from typing import Any

from alignkeep.conformance.checks import called, expect


def merge_method(obj: object) -> None:
    """A merge method: its members are there and its options documented; whatever the weight, the shape and the numbers,
    it gives as many finite numbers in float32 as the tensor has, the same every time and for every size of pieces; what
    it says to be a model is that model; and it changes something where it does not say that it is the base."""
    from alignkeep.merge.method import Asked
    from alignkeep.merge.methods import check_members

    what = f"merge_method {getattr(obj, 'name', type(obj).__name__)}"
    check_members(what, obj)
    method: Any = obj
    for name, field in method.options.model_fields.items():
        expect(not field.is_required(), f"{what}.options.{name}", "no default", "one")
        expect(bool((field.description or "").strip()), f"{what}.options.{name}", "no description", "what it means")
    options = called(f"{what}.options", method.options, "made without arguments")
    called(f"{what}.check", lambda: method.check(options), "for the defaults")
    spectrum = called(f"{what}.spectrum", lambda: method.spectrum(options), "for the defaults")
    weights = {"share": (0.0, 0.3, 1.0), "scale": (0.0, 0.3, 1.0, 2.0), None: (0.3,)}[method.weighs]
    least, most = method.models
    for weight, models in product(weights, sorted({least, min(least + 2, most or least + 2)})):
        for spaces in ({}, _spaces()) if spectrum is not None else ({},):
            asked = Asked(weight, models, options, 3, spaces)
            given = f"at weight {weight:g} of {models}"
            rule = called(f"{what}.rule", lambda: method.rule(asked), given)  # noqa: B023
            for (name, shape), scale in product(_SHAPES.items(), (1.0, 0.0, 1e30)):
                _check_tensor(what, rule(name), name, _tensors(shape, models, scale), f"{given}, {name}", weight, scale)
            if method.adapter == "mapped" and spaces:
                where = f"{what}.adapter"
                expect(rule("matrix").through is not None, where, "mapped, and no through", "a map of the inputs")


_SHAPES = {"scalar": (), "empty": (0,), "one": (1,), "vector": (7,), "matrix": (6, 8), "no rows": (0, 4),
           "stacked": (2, 3, 4), "large": (131, 1030)}  # fmt: skip


def _tensors(shape: tuple[int, ...], models: int, scale: float) -> list[Any]:
    """A base, and models tuned from it; all equal where the scale is 0."""
    import numpy as np

    draws = np.random.default_rng(0)
    base = draws.standard_normal(shape).astype(np.float32)
    tuned = [base + np.float32(0.1) * draws.standard_normal(shape).astype(np.float32) for _ in range(models)]
    return [base] * (1 + models) if scale == 0 else [np.asarray(one * np.float32(scale)) for one in (base, *tuned)]


def _spaces() -> dict[str, Any]:
    """Three directions of the matrix's inputs, on both kinds of data."""
    import torch

    from alignkeep.merge.method import Space
    from alignkeep.subspace.eigenbasis import Eigenbasis

    generator = torch.Generator().manual_seed(0)
    bases = [
        Eigenbasis(torch.linalg.qr(torch.randn(8, 3, generator=generator))[0],
                   torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64), 1.0, 2.0, 0.85, False)
        for _ in range(2)
    ]  # fmt: skip
    return {"matrix": Space(bases[0], bases[1], -1)}


def _check_tensor(what: str, merge: Any, name: str, models: list[Any], given: str, weight: float, scale: float) -> None:
    import numpy as np

    from alignkeep.merge.pieces import BLOCK, Whole

    base, *tuned = models
    where = f"{what}.merged"

    def merged(size: int) -> Any:
        parts = [np.array(part) for part in merge.merged(Whole(name, base, tuned, size=size))]
        wrong = next((part.dtype for part in parts if part.dtype != np.float32), None)
        expect(wrong is None, where, f"{wrong} {given}", "float32")
        return np.concatenate([*parts, np.empty(0, np.float32)])

    found, second, cut = (called(where, lambda: merged(size), given) for size in (base.size + 1, base.size + 1, BLOCK))  # noqa: B023
    expect(found.shape == (base.size,), where, f"{found.shape} numbers {given}", f"{base.size}, flat")
    expect(bool(np.isfinite(found).all()), where, f"a number that is none {given}", "finite numbers of finite ones")
    expect(np.array_equal(found, second), where, f"other numbers the second time {given}", "the same every time")
    expect(np.array_equal(found, cut), where, f"other numbers in other pieces {given}", "the same for every size")
    same, flat = merge.identity, base.reshape(-1)
    where = f"{what}.identity"
    known = same is None or same == "base" or (isinstance(same, int) and same in range(len(tuned)))
    expect(known, where, f"{same!r} {given}", "'base', the index of a tuned model, or None")
    if same is not None:
        model = flat if same == "base" else tuned[same].reshape(-1)
        rounding = 1e-6 * max((float(np.abs(one).max(initial=0)) for one in models), default=0.0)
        near = bool((np.abs(found.astype(np.float64) - model) <= rounding).all())
        expect(near, where, f"{same!r} {given}, with other numbers", "that model's numbers, to a rounding")
    if name == "large" and scale == 1 and np.array_equal(found, flat) and same != "base":
        expected = "'base' there" if weight == 0 else "a merge that differs from the base"
        expect(False, where if weight == 0 else f"{what}.merged", f"the base's numbers {given}", expected)
    if name == "large" and scale == 1 and same == "base" and weight not in (0, 1):
        expect(False, where, f"'base' {given}", "a merge that differs from the base")
