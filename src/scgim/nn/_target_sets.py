"""Which genes a new drug acts on: likely sets of targets, found by beam search, and averages over them.

Features often fit several explanations: this gene or that one, not both. Coordinate ascent over genes ends in one of them. Here
sets of targets are grown gene by gene and the likeliest of each size are kept. What is said of a gene is an average over
the sets kept, each with its posterior weight, of what follows for the gene if the others of the set are targets and no more
(Bayesian model averaging, Rao-Blackwellised: where nothing is known of many genes, all keep their prior).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MAX_TARGETS = 40
_N_KEPT = 30
_NEGLIGIBLE = 12.0  # log weight below that of the best set


class TargetAverages(NamedTuple):
    """Averages over sets of targets, for g genes with q numbers an effect.

    Parameters
    ----------
    probs
        Probability that the gene is a target, shape (g,).
    effect
        Mean effect on it if it is, shape (g, q).
    cov
        Covariance of that, shape (g, q, q).
    """

    probs: Tensor
    effect: Tensor
    cov: Tensor


class _Sets(NamedTuple):
    """K sets of targets, and what follows for each gene given the other members of a set.

    Log weights (K,), log odds that the gene is a target (K, g), its effect if it is (K, g, q), and the covariance of that (K, g, q, q).
    """

    log_weight: Tensor
    log_odds: Tensor
    effect: Tensor
    cov: Tensor


def average_over_targets(
    precision: Tensor, linear: Tensor, log_odds: Tensor, slab_mean: Tensor, slab_cov: Tensor
) -> TargetAverages:
    """Average over sets of targets, given a Gaussian likelihood of the effects and a spike-and-slab prior.

    Parameters
    ----------
    precision, linear
        The log likelihood of effects e, flattened with the q numbers of a gene side by side, is linear' e - e' precision e / 2; shapes
        (g q, g q) and (g q,).
    log_odds
        Prior log odds that each gene is a target, shape (g,).
    slab_mean, slab_cov
        Mean (g, q) and covariance (q, q) of the effect on a target.
    """
    g, q = slab_mean.shape
    own = torch.linalg.inv(slab_cov).contiguous()
    total = precision + torch.kron(torch.eye(g, dtype=own.dtype), own)
    pull = linear + (slab_mean @ own).flatten()
    base = log_odds + 0.5 * torch.logdet(own) - 0.5 * torch.einsum("gq,qr,gr->g", slab_mean, own, slab_mean)
    members, log_weight = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=slab_mean.dtype)
    found: list[_Sets] = []
    for size in range(min(_MAX_TARGETS, g) + 1):
        found.append(_what_follows(members, log_weight, total, pull, base, q))
        best = max(float(sets.log_weight.max()) for sets in found)
        if size == g or log_weight.max() < best - _NEGLIGIBLE:
            break
        members, log_weight = _next_sets(members, log_weight, found[-1].log_odds)
    return _average(found)


def _what_follows(members: Tensor, log_weight: Tensor, total: Tensor, pull: Tensor, base: Tensor, q: int) -> _Sets:
    """Log odds and effect of every gene given the other members of each set, by Schur complements."""
    k, size = members.shape
    columns = (members[..., None] * q + torch.arange(q)).flatten(1)  # (K, s q)
    inverse = torch.linalg.inv(total[columns[:, :, None], columns[:, None, :]])
    solved = (inverse @ pull[columns][..., None])[..., 0]
    cross = total[columns]  # (K, s q, g q)
    message = (pull - torch.einsum("ksj,ks->kj", cross, solved)).unflatten(1, (-1, q))
    explained = torch.einsum("ksga,ksgb->kgab", cross.unflatten(2, (-1, q)), (inverse @ cross).unflatten(2, (-1, q)))
    own = total.unflatten(0, (-1, q)).unflatten(2, (-1, q)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    # of members all is explained by themselves: what follows for them is read off the inverse instead
    is_member = torch.zeros(k, len(base), dtype=torch.bool).scatter_(1, members, value=True)[..., None, None]
    cov = torch.linalg.inv(torch.where(is_member, torch.eye(q, dtype=own.dtype), own - explained))
    effect = (cov @ message[..., None])[..., 0]
    blocks = inverse.reshape(k, size, q, size, q).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    cov = cov.scatter(1, members[..., None, None].expand(-1, -1, q, q), blocks)
    effect = effect.scatter(1, members[..., None].expand(-1, -1, q), solved.reshape(k, size, q))
    square = (effect * torch.linalg.solve(cov, effect[..., None])[..., 0]).sum(-1)
    return _Sets(log_weight, base + 0.5 * square + 0.5 * torch.logdet(cov), effect, cov)


def _next_sets(members: Tensor, log_weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Likeliest sets of one gene more, and their log weights."""
    gain = gain.scatter(1, members, -torch.inf)
    weight = (log_weight[:, None] + gain).flatten()
    # a set of s genes is reached in up to s ways
    best = torch.argsort(weight, descending=True, stable=True)[: _N_KEPT * (members.shape[1] + 1)]
    best = best[weight[best].isfinite()]
    grown = torch.cat([members[best // gain.shape[1]], (best % gain.shape[1])[:, None]], 1).sort(1).values
    sets, which = torch.unique(grown, dim=0, return_inverse=True)
    log_weight = torch.full((len(sets),), -torch.inf, dtype=weight.dtype).scatter_reduce_(
        0, which, weight[best], "amax"
    )
    kept = torch.argsort(log_weight, descending=True, stable=True)[:_N_KEPT]
    return sets[kept], log_weight[kept]


def _average(found: list[_Sets]) -> TargetAverages:
    log_weight, log_odds, effect, cov = (torch.cat(part) for part in zip(*found, strict=True))
    share = torch.softmax(log_weight, 0)[:, None] * torch.sigmoid(log_odds)  # (K, g)
    probs = share.sum(0)
    share = (share / probs.clamp_min(1e-30))[..., None]
    mean = (share * effect).sum(0)
    apart = effect - mean
    spread = cov + apart[..., :, None] * apart[..., None, :]
    return TargetAverages(probs.clamp_max(1.0), mean, (share[..., None] * spread).sum(0))
