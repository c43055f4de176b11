"""What a guarded tune did inside the subspace that alignment rests on, over its steps."""

from __future__ import annotations

from collections.abc import Sequence

from alignkeep.report.figures import Curve, line_chart
from alignkeep.report.panels import Figure, Table
from alignkeep.report.sources import Training
from alignkeep.report.subjects import Subject


def guards_of(trainings: Sequence[Training], subjects: Sequence[Subject]) -> tuple[Figure, ...]:
    """One figure for all guarded tunes; none where there is no such tune."""
    guarded = [training for training in trainings if any(_energy(one) for one in training.energies)]
    if not guarded:
        return ()
    colours = {subject.label: subject.series for subject in subjects}
    free = max(colours.values(), default=0)
    curves: list[Curve] = []
    for training in guarded:
        free += training.label not in colours
        points = tuple((one[0], 100 * one[1] / _energy(one)) for one in training.energies if _energy(one))
        curves.append(Curve(training.label, colours.get(training.label) or free, points))
    caption = (
        "Of the update's squared norm, the share inside the subspace that the base's refusals rest on, at every logged "
        "step of a tune with AlignGuard."
    )
    rows = tuple(
        (training.label, f"{inside:.3g}", f"{beside:.3g}", f"{100 * inside / (inside + beside):.1f} %")
        for training in guarded
        for _, inside, beside in [next(one for one in reversed(training.energies) if _energy(one))]
    )
    table = Table(("Run", "Inside, at the end", "Beside, at the end", "Share inside"), rows)
    title = "The update inside the alignment subspace"
    chart = line_chart("guard", title, caption, curves, across="step", up="share inside, %")
    return (Figure("guard", title, caption, chart, table),)


def _energy(one: tuple[float, float, float]) -> float:
    return one[1] + one[2]
