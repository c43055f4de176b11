"""Whether an object of yours is what its Protocol says, before a model is spent on it. Ours pass the same checks.

Each function takes one object and returns nothing; a RecipeError of one line names the object, the member, what was
expected and what was found. What an object must do is written at its Protocol: `judging.judges.Judge`,
`evaluate.attacks.Attack`, `curate.method.CurationMethod`, `train.defence.Defence`, `merge.method.MergeMethod`; a suite
is what `--suite` takes and a reward what `align --reward` takes.
"""

from __future__ import annotations

from alignkeep.conformance.curation import curation_method
from alignkeep.conformance.defence import defence
from alignkeep.conformance.evaluation import attack, judge, reward, suite
from alignkeep.conformance.merge import merge_method

__all__ = ["attack", "curation_method", "defence", "judge", "merge_method", "reward", "suite"]
