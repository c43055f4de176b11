"""Gradients towards safe and away from harmful references.

Paper
    Bidirectional anchoring, He et al., What is in your safe data?, arXiv:2404.01099.

Symbols (paper -> here)
    <g_i, g_safe>, <g_i, g_harm>        safe, harmful       products with the mean gradient of the references

Departures from the paper
    1. It takes the ten first tokens of an answer and cosines; here all tokens and plain products.

Shapes: n examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.curate.method import Counts, CurationMethod, Given, NoOptions, Scores

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def bidirectional(safe: Float[Tensor, " n"], harmful: Float[Tensor, " n"]) -> Scores:
    """The products with the mean safe gradient minus those with the mean harmful one."""
    return Scores(safe - harmful, safe, harmful)


class Bidirectional(CurationMethod):
    name = "bidirectional"
    title = "Gradients towards safe and away from harmful references"
    needs = "gradients"
    works = ("he2024what",)
    departures = ("All answer tokens count, by plain products; the paper takes the first ten, and cosines.",)

    def memory(self, counts: Counts, options: NoOptions) -> int:
        return 2 * 4 * counts.parameters  # both mean gradients, in float32

    def score(self, given: Given, options: NoOptions) -> Scores:
        assert given.gradients is not None
        return bidirectional(given.gradients.safe, given.gradients.harmful)
