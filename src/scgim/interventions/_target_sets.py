"""Which genes new drugs act on: likely sets of targets, found by beam search, and averages over them.

Features often fit several explanations: this gene or that one, not both. Coordinate ascent over genes ends in one of them. Here
sets of targets are grown gene by gene and the likeliest of each size are kept. What is said of a gene is an average over
the sets kept, each with its posterior weight, of what follows for the gene if the others of the set are targets and no more
(Bayesian model averaging, Rao-Blackwellised: where nothing is known of many genes, all keep their prior).

All drugs of a call are searched side by side; one that is done drops out, so that what is said of a drug does not depend
on which others are asked about with it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MAX_TARGETS = 40  # of a drug; sets as large are not sparse; the search ends sooner where larger sets weigh nothing
_N_KEPT = 30  # sets of each size: convention, for time
_NEGLIGIBLE = 8.0  # log weight below that of the best set, 0.0003 of it
_NO_WEIGHT = -1e9  # of a set that is there twice; finite, so that none of its genes is taken for a further one
_HASHES = 2**62  # numbers of 64 bits whose sums tell sets apart
_TINY = 1e-300  # of a gene that is in no set, whose effect is zero over zero


class TargetAverages(NamedTuple):
    """Averages over sets of targets, for n drugs and g genes with q numbers an effect.

    Parameters
    ----------
    probs
        Probability that the gene is a target, shape (n, g).
    effect
        Mean effect on it if it is, shape (n, g, q).
    cov
        Covariance of that, shape (n, g, q, q).
    """

    probs: Tensor
    effect: Tensor
    cov: Tensor


class _Problem(NamedTuple):
    """Likelihood times prior of effects if all genes were targets, and what it takes for a gene to be one.

    Precision (n, q, g, q, g), its product with the mean (n, q, g), and log odds without the share of the effects (n, g). Genes come last,
    here and below, so that arithmetic runs over long rows.
    """

    total: Tensor
    pull: Tensor
    base: Tensor

    def rows(self, drugs: Tensor, genes: Tensor) -> Tensor:
        """Precision of effects on some genes (n, K, ...) with those on all, (n, K, ..., q, q, g)."""
        return self.total[_before(drugs, genes[..., None]), torch.arange(self.total.shape[1]), genes[..., None]]

    def pulls(self, drugs: Tensor, genes: Tensor) -> Tensor:
        """Product of precision and mean for some genes (n, K, ...), (n, K, ..., q)."""
        return self.pull[_before(drugs, genes[..., None]), torch.arange(self.total.shape[1]), genes[..., None]]


class _Sets(NamedTuple):
    """K sets of s targets for each drug, and the effect of each further gene if it were the only one more.

    Members (n, K, s), log weights (n, K), and of the effects the precisions (n, K, q, q, g) and their products with the means (n, K, q, g).
    """

    members: Tensor
    log_weight: Tensor
    precision: Tensor
    message: Tensor

    def of(self, which: Tensor | tuple[Tensor, Tensor]) -> _Sets:
        return _Sets(*(part[which] for part in self))


class _Follows(NamedTuple):
    """What follows for each gene given the other members of K sets a drug.

    Log odds that the gene is a target (n, K, g), its effect if it is (n, K, q, g), and the covariance of that (n, K, q, q, g).
    """

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
        The log likelihood of effects e of a drug is linear' e - e' precision e / 2; shapes (n, q, g, q, g) and (n, q, g).
    log_odds
        Prior log odds that each gene is a target, shape (g,), or (n, g) where they differ between drugs.
    slab_mean, slab_cov
        Mean (g, q), or (n, g, q), and covariance (q, q) of the effect on a target.
    """
    n, q, g = linear.shape
    log_odds, slab_mean = log_odds.expand(n, g), slab_mean.expand(n, g, q)
    own = torch.linalg.inv(slab_cov)
    base = log_odds + 0.5 * torch.logdet(own) - 0.5 * torch.einsum("ngq,qr,ngr->ng", slab_mean, own, slab_mean)
    total = precision + own[:, None, :, None] * torch.eye(g, dtype=own.dtype)[:, None]
    problem = _Problem(total, linear + own @ slab_mean.mT, base)
    drugs = torch.arange(n)
    empty = torch.zeros(n, 1, 0, dtype=torch.long)
    sets = _Sets(empty, linear.new_zeros(n, 1), total.diagonal(dim1=2, dim2=4)[:, None], problem.pull[:, None])
    sums = _Sums(n, q, g)
    for size in range(min(_MAX_TARGETS, g) + 1):
        inverse = _inverse_of_members(problem, drugs, sets.members)
        follows = _what_follows(problem, drugs, sets, inverse)
        sums.add(drugs, sets.log_weight, follows)
        if size == g:
            break
        # a gene more than these, since two may explain together what neither does
        further = follows.log_odds.scatter(2, sets.members, -torch.inf).amax(2).clamp_min(0.0)
        going_on = (sets.log_weight + further).amax(1) >= sums.top[drugs] - _NEGLIGIBLE
        if not going_on.any():
            break
        drugs = drugs[going_on]
        sets = _larger(problem, drugs, sets.of(going_on), inverse[going_on], follows.log_odds[going_on])
    return sums.averages()


def _before(drugs: Tensor, genes: Tensor) -> Tensor:
    """Drugs (n,) in as many dimensions as genes (n, ...)."""
    return drugs.reshape(-1, *[1] * (genes.ndim - 1))


def _inverse_of_members(problem: _Problem, drugs: Tensor, members: Tensor) -> Tensor:
    """Covariance of the effects on the members of each set, (n, K, s q, s q) with the q numbers of a member side by side."""
    n, k, size = members.shape
    q = problem.pull.shape[1]
    rows, columns = members[:, :, :, None, None, None], members[:, :, None, None, :, None]
    part = torch.arange(q)
    block = problem.total[_before(drugs, rows), part[:, None, None], rows, part, columns]  # (n, K, s, q, s, q)
    return torch.linalg.inv(block.reshape(n, k, size * q, size * q))


def _what_follows(problem: _Problem, drugs: Tensor, sets: _Sets, inverse: Tensor) -> _Follows:
    """Log odds and effect of every gene given the other members of each set."""
    members, _, own, message = sets
    n, k, size = members.shape
    q, g = message.shape[2:]
    # for members it is read off the inverse: given the members, nothing is left of their own precision
    is_member = torch.zeros(n, k, g, dtype=torch.bool).scatter_(2, members, value=True)[:, :, None, None]
    cov, log_det = _small_inverses(torch.where(is_member, torch.eye(q, dtype=own.dtype)[..., None], own))
    effect = (cov * message[:, :, None]).sum(3)
    twice = (effect * message).sum(2) - log_det
    solved = (inverse @ problem.pulls(drugs, members).flatten(2)[..., None]).reshape(n, k, size, q).transpose(2, 3)
    blocks = inverse.reshape(n, k, size, q, size, q).diagonal(dim1=2, dim2=4)
    precision, log_det = _small_inverses(blocks)
    square = (solved[:, :, :, None] * precision * solved[:, :, None]).sum((2, 3))
    twice = twice.scatter(2, members, square + log_det)
    cov = cov.scatter(4, members[:, :, None, None].expand(-1, -1, q, q, -1), blocks)
    effect = effect.scatter(3, members[:, :, None].expand(-1, -1, q, -1), solved)
    return _Follows(problem.base[drugs][:, None] + 0.5 * twice, effect, cov)


def _small_inverses(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses and log determinants of positive definite (..., q, q, g), by sweeping; LAPACK takes small ones one by one."""
    swept, log_det = matrices.clone(), torch.zeros_like(matrices[..., 0, 0, :])
    for i in range(matrices.shape[-2]):
        pivot = swept[..., i, i, :].clone()
        column, row = swept[..., :, i, :].clone(), swept[..., i, :, :] / pivot[..., None, :]
        swept -= column[..., :, None, :] * row[..., None, :, :]
        swept[..., i, :, :] = row
        swept[..., :, i, :] = column / pivot[..., None, :]
        swept[..., i, i, :] = -1 / pivot
        log_det += pivot.log()
    return -swept, log_det


def _larger(problem: _Problem, drugs: Tensor, sets: _Sets, inverse: Tensor, gain: Tensor) -> _Sets:
    """Likeliest sets of one gene more."""
    grown, gene, log_weight = _likeliest(sets.members, sets.log_weight, gain)
    n, _, size = sets.members.shape
    q, g = problem.pull.shape[1:]
    members, _, before, message = sets.of((torch.arange(n)[:, None], grown))
    inverse = inverse[torch.arange(n)[:, None], grown]
    rows, others = problem.rows(drugs, gene), problem.rows(drugs, members).flatten(2, 3)  # (n, K, s q, q, g)
    at_gene = gene[:, :, None, None].expand(-1, -1, q, -1)
    cross = others.gather(4, at_gene[:, :, None].expand(-1, -1, size * q, -1, -1))[..., 0]  # (n, K, s q, q)
    weights = (inverse @ cross).transpose(2, 3)
    rows = rows - (weights @ others.flatten(3)).unflatten(3, (q, g))  # what the gene shares with others, given the set
    cov = torch.linalg.inv(before.gather(4, at_gene[:, :, None].expand(-1, -1, q, -1, -1))[..., 0])
    told = (cov @ rows.flatten(3)).unflatten(3, (q, g))
    own = message.gather(3, at_gene)  # (n, K, q, 1)
    precision = before - (rows[:, :, :, :, None] * told[:, :, :, None]).sum(2)
    return _Sets(
        torch.cat([members, gene[..., None]], 2), log_weight, precision, message - (told * own[..., None]).sum(2)
    )


def _likeliest(members: Tensor, log_weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which sets to add which gene to, and the log weights of what becomes of them, each (n, K); some may weigh nothing."""
    _, k, size = members.shape
    g = gain.shape[2]
    weight = (log_weight[..., None] + gain.scatter(2, members, -torch.inf)).flatten(1)
    # a set of s genes is reached in up to s ways, each time with the same weight
    weight, best = weight.topk(min(_N_KEPT * (size + 1), k * (g - size)))
    grown, gene = best // g, best % g
    after = torch.cat([members.gather(1, grown[..., None].expand(-1, -1, size)), gene[..., None]], 2)
    label, order = _set_labels(after, g).sort(dim=1, stable=True)
    again = torch.zeros_like(label, dtype=torch.bool)
    again[:, 1:] = label[:, 1:] == label[:, :-1]
    weight, kept = weight.gather(1, order).masked_fill(again, _NO_WEIGHT).topk(min(_N_KEPT, weight.shape[1]))
    chosen = order.gather(1, kept)
    return grown.gather(1, chosen), gene.gather(1, chosen), weight


def _set_labels(members: Tensor, g: int) -> Tensor:
    """A number for each set that does not depend on the order of its members: a sum of random 64-bit numbers of the genes."""
    numbers = torch.randint(-_HASHES, _HASHES, (g,), generator=torch.Generator().manual_seed(0))
    return numbers[members].sum(-1)


class _Sums:
    """Weighted sums over sets of n drugs, in units of the largest weight of each."""

    def __init__(self, n: int, q: int, g: int):
        new = lambda *shape: torch.zeros(n, *shape, dtype=torch.float64)
        self.top = new() - torch.inf
        self.weight, self.probs, self.effect, self.square = new(), new(g), new(q, g), new(q, q, g)

    def add(self, drugs: Tensor, log_weight: Tensor, follows: _Follows) -> None:
        """Add sets of some of the drugs, with log weights (n, K)."""
        before = self.top[drugs]
        self.top[drugs] = top = torch.maximum(before, log_weight.amax(1))
        weight = torch.exp(log_weight - top[:, None])
        share = weight[..., None] * torch.sigmoid(follows.log_odds)  # (n, K, g)
        first = share[:, :, None] * follows.effect
        square = share[:, :, None, None] * follows.cov + first[:, :, :, None] * follows.effect[:, :, None]
        for name, value in {"weight": weight, "probs": share, "effect": first, "square": square}.items():
            sums = getattr(self, name)
            shrink = torch.exp(before - top).reshape(-1, *[1] * (value.ndim - 2))
            sums[drugs] = shrink * sums[drugs] + value.sum(1)

    def averages(self) -> TargetAverages:
        share = self.probs.clamp_min(_TINY)
        effect = self.effect / share[:, None]
        cov = self.square / share[:, None, None] - effect[:, :, None] * effect[:, None]
        probs = (self.probs / self.weight[:, None]).clamp_max(1.0)
        return TargetAverages(probs, effect.movedim(1, 2), cov.movedim(3, 1))
