"""How much a judgement of an item would teach a reward model.

Under Bradley–Terry each member m of an ensemble says p_m = σ(s_i − s_j) for a pair. What one vote would tell about
the members is the mutual information

    I = H(mean_m p_m) − mean_m H(p_m)     [BALD; Houlsby et al. 2011, equation 2],

high where they disagree and each of them is sure. One reward model has nobody to disagree with: then it is H(p), high
where the model itself cannot tell. In bits; an item of K answers counts as the mean of its C(K, 2) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray


def information(scores: Sequence[Sequence[float]]) -> float:
    """Bits that a judgement would bring.

    Args:
        scores: for each member of the ensemble (one or more) the scores of the item's K ≥ 2 answers.
    """
    members = np.asarray(scores, dtype=float)
    if members.ndim != 2 or members.shape[0] < 1 or members.shape[1] < 2:
        raise ValueError(f"expected scores of two or more answers by each member; got the shape {members.shape}")
    one, other = zip(*combinations(range(members.shape[1]), 2), strict=True)
    p = 1 / (1 + np.exp(np.clip(members[:, list(other)] - members[:, list(one)], -500, 500)))
    together = _entropy(p.mean(0))
    apart = _entropy(p).mean(0) if len(members) > 1 else np.zeros_like(together)
    return float(np.maximum(together - apart, 0.0).mean())


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a coin, in bits."""
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return -(q * np.log2(q) + (1 - q) * np.log2(1 - q))
