"""Why these and not those: the examples of least mass with what they are near to, all masses in bins, and a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from alignkeep.curate.explanation import Explanation, Neighbour, Point, Shown
from alignkeep.curate.prepare import Prepared
from alignkeep.curate.scoring import Choice
from alignkeep.curate.text import answered, asked, whole
from alignkeep.types import Example

if TYPE_CHECKING:
    from torch import Tensor

MOST = 50  # examples shown
_BINS = 40
_POINTS = 250  # of each set in the plane, evenly spread


def explain(prepared: Prepared, choice: Choice, rows: Mapping[str, Sequence[int]]) -> Explanation:
    """`rows` are the places of the examples in their files. Texts are left empty where none were given. Where a method
    has no vectors there are no neighbours."""
    import torch

    count = len(choice.mass)
    ratio = choice.mass.double() * count
    order = ratio.sort(stable=True).indices[:MOST].tolist() if choice.weighing is not None else _lowest(choice)
    edges = torch.linspace(0, max(float(ratio.max()), 1.0), _BINS + 1, dtype=torch.float64)
    edges[-1] = max(float(ratio.max()), 1.0)
    counts = [torch.histogram(ratio[mask].cpu(), edges).hist.int().tolist() for mask in (choice.kept, ~choice.kept)]
    near = [_neighbours(prepared, choice, order, rows, harmful=harmful) for harmful in (False, True)]
    data = prepared.data
    return Explanation(
        method=prepared.config.method,
        title=prepared.config.rule.title,
        weighed=choice.weighing is not None,
        n=count,
        kept=int(choice.kept.sum()),
        dropped=tuple(
            Shown(
                index=rows["data"][at], asked=asked(data[at]) if data else "",
                answered=answered(data[at]) if data else "",
                mass=float(ratio[at]), kept=bool(choice.kept[at]), safe=near[0][row], harmful=near[1][row],
            )
            for row, at in enumerate(order)
        ),
        edges=tuple(edges.tolist()),
        kept_counts=tuple(counts[0]),
        dropped_counts=tuple(counts[1]),
        points=_plane(choice),
    )  # fmt: skip


def _lowest(choice: Choice) -> list[int]:
    """The dropped, in their order: a method that scores gives all of them the same mass, 0."""
    return (~choice.kept).nonzero()[:MOST, 0].tolist()


def _neighbours(
    prepared: Prepared, choice: Choice, order: Sequence[int], rows: Mapping[str, Sequence[int]], *, harmful: bool
) -> list[Neighbour | None]:
    if choice.vectors is None or not order:
        return [None] * len(order)
    references = choice.vectors.harmful if harmful else choice.vectors.safe
    texts = prepared.harmful if harmful else prepared.safe
    places = rows["harmful" if harmful else "safe"] or range(len(references))
    cosines = choice.vectors.data[list(order)] @ references.mT
    plan: Tensor | None = None
    if choice.weighing is not None and choice.weighing.share is not None:
        plan = choice.weighing.share(1 - cosines, "harmful" if harmful else "safe")
    return [
        Neighbour(places[at], _text(texts, at), float(row[at]), None if plan is None else float(plan[place, at]))
        for place, (row, at) in enumerate(zip(cosines, cosines.argmax(1).tolist(), strict=True))
    ]


def _text(examples: Sequence[Example], at: int) -> str:
    return whole(examples[at]) if examples else ""


def _plane(choice: Choice) -> dict[str, tuple[Point, ...]]:
    """The two directions in which the three sets together spread most. Signs are made certain: the mean of the harmful
    references lies to the right and above."""
    import torch

    if choice.vectors is None:
        return {}
    data, safe, harmful, _ = choice.vectors
    sets = {"kept": data[choice.kept], "dropped": data[~choice.kept], "safe": safe, "harmful": harmful}
    some = {name: rows[:: max(1, -(-len(rows) // _POINTS))].double() for name, rows in sets.items()}
    together = torch.cat(list(some.values()))
    middle = together.mean(0)
    axes = torch.linalg.svd(together - middle, full_matrices=False).Vh[:2]
    sign = torch.sign(axes @ (some["harmful"].mean(0) - middle))
    axes = axes * torch.where(sign == 0, torch.ones_like(sign), sign)[:, None]
    placed = {name: ((rows - middle) @ axes.mT).tolist() for name, rows in some.items()}
    return {
        name: tuple((round(one[0], 3), round(one[1] if len(one) > 1 else 0.0, 3)) for one in rows)
        for name, rows in placed.items()
    }
