"""Mean cosine to safe minus mean cosine to harmful references.

Source
    The limit of push and pull (methods/sot.py) for a large epsilon, where no plan matters; LARF scores alike.

Symbols
    z               data, safe, harmful         vectors of length 1, whose products are cosines

Shapes: n examples, m safe and h harmful references, d wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.curate.method import CurationMethod, Given, NoOptions, Scores

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def mean_cosine(data: Float[Tensor, "n d"], safe: Float[Tensor, "m d"], harmful: Float[Tensor, "h d"]) -> Scores:
    """The difference of the mean cosines, in [-2, 2]."""
    near, far = data @ safe.mean(0), data @ harmful.mean(0)
    return Scores(near - far, near, far)


class MeanCosine(CurationMethod):
    name = "mean_cosine"
    title = "Mean cosine to safe minus mean cosine to harmful references"
    needs = "vectors"
    works = ("wang2026safeguarding",)

    def score(self, given: Given, options: NoOptions) -> Scores:
        assert given.vectors is not None
        return mean_cosine(given.vectors.data, given.vectors.safe, given.vectors.harmful)
