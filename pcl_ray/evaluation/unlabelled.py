"""Criteria of the features that need no labels."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 25_600  # as in the RankMe paper
_EXPLAINED = 0.99  # share of the variance in the eigenvalues that a power law is fitted to
_FEWEST = 5  # eigenvalues: a line through fewer says nothing
_RIDGE = 1e-4  # δ of the LiDAR paper


def rankme(features_NC: Tensor) -> float:
    """Effective rank, 1..C: exp of the entropy of the normalised singular values (Garrido et al., ICML 2023,
    equation 1); NaN where a feature is not finite.
    """
    if not torch.isfinite(features_NC).all():
        return float("nan")
    values = torch.linalg.svdvals(_sample(features_NC, _SAMPLE).double())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def areq(features_NC: Tensor) -> float:
    """α of the power law λ_j ∝ j^−α of the covariance's eigenvalues (α-ReQ: Agrawal et al., NeurIPS 2022);
    near 1 is good, below is flat, above steep.

    Least squares of log λ_j against log j, weighted by 1/j (as the authors do, after Stringer et al., Nature
    2019): every octave counts alike. The paper takes all eigenvalues, its code those from 4 to 100. Where
    features use few dimensions both run into the noise floor, and rank 3 (flat from 4 on) looks better than
    rank 40 (a cliff within the window). So the fit ends with the eigenvalue at which 99 % of the variance are
    reached: the rounding of float16 and bfloat16, about a millionth of it, lies beyond, and so does noise of
    a few per cent of the features. NaN where that leaves fewer than 5 eigenvalues, or a feature is not
    finite.

    It fails under collapse: equal eigenvalues that break off look flat however few they are. Only features of
    like `rankme` can be compared.
    """
    rows = _sample(features_NC, _SAMPLE).double()
    if len(rows) < 2 or not torch.isfinite(rows).all():
        return float("nan")
    covariance = torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1)
    values = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
    explained = values.cumsum(0)
    count = int((explained < _EXPLAINED * explained[-1]).sum()) + 1
    if count < _FEWEST:
        return float("nan")
    index = torch.arange(1, count + 1, dtype=torch.float64)
    weights = 1 / (index * (1 / index).sum())
    log_index = index.log()
    log_index = log_index - weights @ log_index
    return -float((weights * log_index) @ values[:count].log() / ((weights * log_index) @ log_index))


def lidar(features_NQC: Tensor, *, piece: int = 2**22) -> float:
    """Effective rank, 1..min(C, N − 1): exp of the entropy of the normalised eigenvalues of Σ_w^−½ Σ_b Σ_w^−½
    of N images with Q views each.

    Σ_b: covariance of the images' means; Σ_w: mean covariance of the views around them, plus δI with δ = 1e-4
    (LiDAR: Thilak et al., ICLR 2024, equations 1 to 4, without their ε in the entropy). Higher is better:
    many directions tell images apart that views do not change. In float64, `piece` numbers at a time: its
    memory stays bounded. NaN where a feature is not finite or there are fewer than 2 images or views.
    """
    images, views, dim = features_NQC.shape
    if images < 2 or views < 2 or not torch.isfinite(features_NQC).all():
        return float("nan")
    within_cov = torch.zeros(dim, dim, dtype=torch.float64, device=features_NQC.device)
    means: list[Tensor] = []
    for some in features_NQC.split(max(1, piece // (views * dim))):
        mean = some.double().mean(dim=1, keepdim=True)
        apart = (some - mean).flatten(0, 1)
        within_cov += apart.T @ apart / (images * views)
        means.append(mean[:, 0])
    between_cov = torch.cov(torch.cat(means).T, correction=0).reshape(dim, dim)
    ridge = _RIDGE * torch.eye(dim, dtype=torch.float64, device=within_cov.device)
    root = torch.linalg.cholesky(within_cov + ridge)
    # With L Lᵀ = Σ_w, L^−1 Σ_b L^−ᵀ has the same eigenvalues.
    half = torch.linalg.solve_triangular(root, between_cov, upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.T, upper=False)).clamp(min=0)
    share = values / values.sum().clamp(min=1e-300)
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def uniformity(features_NC: Tensor) -> float:
    """log mean exp(−2‖x − y‖²) over pairs of unit features (Wang & Isola, ICML 2020); 0 is collapsed."""
    return float(torch.pdist(_sample(features_NC, 4096).float()).square().mul(-2).exp().mean().log())


def alignment(query_BC: Tensor, key_BC: Tensor) -> float:
    """The mean of ‖x − y‖² over the pairs of views (Wang & Isola, ICML 2020); lower is closer, 0..4."""
    return float((query_BC - key_BC).square().sum(dim=1).mean())


def _sample(features: Tensor, count: int) -> Tensor:
    """A sample of `count` rows or fewer, the same ones each time."""
    if len(features) <= count:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:count]]
