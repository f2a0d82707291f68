"""Criteria that need no labels."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 25_600  # as in the RankMe paper


def rankme(features_NC: Tensor) -> float:
    """Effective rank, 1..C: exp of the entropy of the normalised singular values (Garrido et al., ICML 2023, equation 1); NaN where a feature is not finite."""
    if not torch.isfinite(features_NC).all():
        return float("nan")
    values = torch.linalg.svdvals(_sample(features_NC, _SAMPLE).double())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def uniformity(features_NC: Tensor) -> float:
    """log of the mean of exp(−2‖x − y‖²) over pairs of unit features (Wang & Isola, ICML 2020); lower is more even, 0 is collapsed."""
    return float(torch.pdist(_sample(features_NC, 4096).float()).square().mul(-2).exp().mean().log())


def alignment(query_BC: Tensor, key_BC: Tensor) -> float:
    """Mean of ‖x − y‖² over the pairs of views (Wang & Isola, ICML 2020); lower is closer, 0..4."""
    return float((query_BC - key_BC).square().sum(dim=1).mean())


def _sample(features: Tensor, count: int) -> Tensor:
    if len(features) <= count:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:count]]
