"""Base and tuned averaged where they meet: every input direction goes to the model whose data depends on it more.

Sources
    Matena and Raffel, Merging models with Fisher-weighted averaging, arXiv:2111.09832: the mean of models under the
    Fisher information of each one's own data.
    Jin, Ren, Preotiuc-Pietro and Cheng, Dataless knowledge fusion by merging weights of language models,
    arXiv:2212.09849 (RegMean): the same with a d_in x d_in matrix per weight, in closed form.

Symbols (paper -> here)
    D             delta            tuned minus base, rows are outputs
    F_a, F_t      aligned, tuned   input-side Fisher factors, of the base on alignment data and of the tuned on its own
    w             weight           of the tuned model
    M             InputMap         the merged update is D M

`D M` minimises (1 - w) tr(E F_a E^T) / S_a + w tr((E - D) F_t (E - D)^T) / S_t over updates E, so
M = T (A + T)^-1 with A = (1 - w) F_a / S_a and T = w F_t / S_t. S is the mean trace over all matrices of the model:
which matrix matters to alignment, and which to the tune, is part of what is weighed.

Departures
    1. Matena and Raffel take a diagonal Fisher, RegMean second moments of inputs; here the Fisher's input side.
    2. A factor is seen as its leading eigenpairs with the rest of its trace spread over all other directions. That is
       not only cheaper: in the testbed it kept more of the other skills than the whole factor did.
    3. Without tuning data F_t is a multiple of the identity: then only what alignment depends on is taken back.
    4. No direction counts less than `_FLOOR` of the mean, so that M is bounded.

Shapes: d width of the input side, k at most the ranks of both bases together.
"""

# torch.linalg brings no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignkeep.subspace.eigenbasis import Eigenbasis

RANK = 32  # chosen on the testbed's validation parts: at equal task score 16 to 64 kept more skills than 8 or all
_FLOOR = 1e-3  # chosen: between 1e-6 and 1e-2 of the mean eigenvalue nothing changed in the testbed


class InputMap(NamedTuple):
    """The matrix scale * I + reads @ writes^T, to stand right of an update, or of an adapter's A."""

    scale: float
    reads: Float[Tensor, "d k"]
    writes: Float[Tensor, "d k"]

    def applied(self, rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """rows @ M, in the rows' dtype; any block of rows can be given."""
        return self.scale * rows + (rows @ self.reads.to(rows)) @ self.writes.to(rows).mT


class _Spectrum(NamedTuple):
    """columns @ columns^T + rest * I."""

    columns: Float[Tensor, "d m"]
    rest: float


def balance(
    aligned: Mapping[str, Eigenbasis], tuned: Mapping[str, Eigenbasis] | None, weight: float
) -> dict[str, InputMap]:
    """The map of every matrix by name. Weight 1 maps to the update itself and weight 0 to nothing, exactly.

    Laws: at equal factors it is the linear merge; scaling all factors of one side changes nothing. A matrix that
    neither data touches keeps its update. Raises ValueError for a weight outside [0, 1] or other names on one side.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of the tuned model lies in [0, 1], got {weight}")
    if tuned is not None and tuned.keys() != aligned.keys():
        raise ValueError(f"factors of other matrices: {sorted(tuned.keys() ^ aligned.keys())[:3]}")
    alignment_unit = _mean_trace(aligned)
    tuning_unit = _mean_trace(tuned) if tuned is not None else _mean_width(aligned)
    found: dict[str, InputMap] = {}
    for name, basis in aligned.items():
        if weight in (0, 1):
            found[name] = InputMap(float(weight), basis.vectors[:, :0], basis.vectors[:, :0])
            continue
        other = _isotropic(basis) if tuned is None else _spectrum(tuned[name])
        ours = _scaled(_spectrum(basis), (1 - weight) / alignment_unit)
        found[name] = _map(ours, _scaled(other, weight / tuning_unit))
    return found


def _map(ours: _Spectrum, theirs: _Spectrum) -> InputMap:
    """T (A + T)^-1 by the matrix inversion lemma.

    With V the columns of both, c the sum of both rests, J the choice of ours and Q = (c I + V^T V)^-1:
    (A + T)^-1 = (I - V Q V^T) / c, hence M = rest_T / c I + V (rest_A / c I - J) Q V^T.
    """
    total = ours.rest + theirs.rest
    if total == 0:
        return InputMap(1.0, ours.columns[:, :0], ours.columns[:, :0])
    columns = torch.cat([ours.columns, theirs.columns], 1)
    both = columns.shape[1]
    chosen = torch.zeros(both, dtype=columns.dtype, device=columns.device)
    chosen[: ours.columns.shape[1]] = 1.0
    eye = torch.eye(both, dtype=columns.dtype, device=columns.device)
    inverse = torch.linalg.inv(total * eye + columns.mT @ columns)
    reads = columns @ ((ours.rest / total - chosen)[:, None] * inverse)
    return InputMap(theirs.rest / total, reads, columns)


def _spectrum(basis: Eigenbasis) -> _Spectrum:
    """The leading eigenpairs, and the mean of the eigenvalues that are not among them."""
    width, rank = basis.vectors.shape
    values = basis.eigenvalues * basis.largest
    left = max(basis.trace - float(values.sum()), 0.0) / max(width - rank, 1)
    rest = max(left, _FLOOR * basis.trace / width)
    return _Spectrum(basis.vectors * (values - rest).clamp(min=0).sqrt(), rest)


def _isotropic(basis: Eigenbasis) -> _Spectrum:
    return _Spectrum(basis.vectors[:, :0], 1.0)


def _scaled(spectrum: _Spectrum, factor: float) -> _Spectrum:
    return _Spectrum(spectrum.columns * factor**0.5, spectrum.rest * factor)


def _mean_trace(bases: Mapping[str, Eigenbasis]) -> float:
    """1 where there is nothing to divide by."""
    return sum(basis.trace for basis in bases.values()) / max(len(bases), 1) or 1.0


def _mean_width(bases: Mapping[str, Eigenbasis]) -> float:
    """The mean trace of identities of these widths."""
    return sum(basis.vectors.shape[0] for basis in bases.values()) / max(len(bases), 1) or 1.0
