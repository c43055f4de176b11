"""Chance: what any choice has to beat."""

from __future__ import annotations

from alignkeep.curate.method import CurationMethod, Given, NoOptions, Scores


def by_chance(count: int, seed: int) -> Scores:
    """An order that depends on the seed alone."""
    import torch

    return Scores(torch.randperm(count, generator=torch.Generator().manual_seed(seed)).double())


class Chance(CurationMethod):
    name = "random"
    title = "Chance"
    needs = "nothing"
    reads = ()

    def score(self, given: Given, options: NoOptions) -> Scores:
        return by_chance(given.count, given.seed)
