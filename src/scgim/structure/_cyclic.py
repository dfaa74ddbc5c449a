r"""Score of genes that may act on each other in a circle.

With direct effects :math:`\psi` and noise, genes settle where :math:`x = f(x) + \psi + \epsilon`. What is left of each gene given its parents
has the density that it has in an acyclic graph (:mod:`scgim.structure._score`), and as genes follow from it, that of the genes has the determinant
of the Jacobian as a factor beside, within contexts and in the mean of each:

.. math:: \log p = \sum_j \log p(x_j - f_j(x)) + \log |\det(I - \partial f / \partial x)|.

In an acyclic graph the determinant is 1. Without it, a child would explain its parent as well as the parent explains the child. The parameters of
all genes of a circle are therefore fitted together, by Newton's method without the curvature of the determinant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scgim._departures import bends

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scgim._priors import ShiftPrior
    from scgim.structure._statistics import ContextStatistics

_MIN_NOISE, _RIDGE = 1e-6, 1e-6  # as in the score of acyclic graphs
_N_STEPS, _N_HALVINGS, _SHORTER = 30, 6, 3.0  # of Newton's method: convention
_UNSTABLE = -50.0  # log determinant of what does not settle: convention
_BATCH_ELEMENTS = 2**21
_AT_REST = 0.002  # nats; steps that gain less are the last


class Part(NamedTuple):
    """Some genes of a graph: they may form circles, and all other genes are taken as they are.

    Parameters
    ----------
    genes
        The genes.
    parents
        Parents of each of them, among all genes.
    left_out
        A perturbation whose cells do not count; -1 for none.
    """

    genes: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]
    left_out: int = -1

    @classmethod
    def of(cls, adjacency: NDArray[np.bool_], genes: Sequence[int], left_out: int = -1) -> Part:
        """Genes with their parents in a graph (d, d)."""
        parents = tuple(tuple(np.flatnonzero(adjacency[:, j]).tolist()) for j in genes)
        return cls(tuple(genes), parents, left_out)

    @property
    def whole(self) -> Part:
        """The same with the cells of all perturbations."""
        return self._replace(left_out=-1)


class Fitted(NamedTuple):
    """A part that was fitted: its score, less the costs of edges, slopes between contexts (s, p), coefficients (s, b, p) and intercepts (s,)."""

    score: float
    slopes: Tensor
    theta: Tensor
    intercepts: Tensor


class CyclicScore:
    """Scores of parts of graphs that may have circles.

    Parameters
    ----------
    statistics
        Statistics of the cells.
    prior
        Prior of the direct effects.
    edge_cost
        Log evidence that each edge must bring, shape (d, d).
    """

    def __init__(self, statistics: ContextStatistics, prior: ShiftPrior, edge_cost: NDArray[np.float64]):
        s = statistics.first_basis()
        control = s.group < 0
        self.statistics, self.prior, self.edge_cost = s, prior, edge_cost
        self.group = s.group % (s.n_groups + 1)  # controls are the last
        self.n_cells, self.dof = s.n_cells, s.residual_dof
        moved = (s.means - s.means[control].mean(0)).T
        u = (moved / moved.abs().amax(1, keepdim=True).clamp_min(_RIDGE)).abs()
        functions, steepness = moved[None], torch.ones_like(moved)[None]
        if prior.departure_var:
            sd = prior.departure_var**0.5
            functions = torch.cat([functions, sd * bends(moved)])
            steepness = torch.cat([steepness, sd * torch.stack([torch.ones_like(u), 2 * u, 5 * u**4])])
        self.moved, self.functions, self.steepness = moved, functions, steepness  # (d, K), (b, d, K) twice
        self.covariance = s.gram / self.dof
        self.log_odds = prior.target_log_odds(s.n_groups, torch.arange(s.n_genes)).T  # (d, U)
        self._known: dict[Part, Fitted] = {}

    def score(self, part: Part) -> float:
        """Score of a part, from the cache where it is known."""
        return self.scores([part])[0]

    def scores(self, parts: Sequence[Part]) -> list[float]:
        """Scores of parts, from the cache where they are known."""
        wanted = dict.fromkeys(parts)
        # without some cells not much changes, so the fit to all of them comes first
        for some in (dict.fromkeys(part.whole for part in wanted), wanted):
            for batch in self._batches([part for part in some if part not in self._known]):
                self._known |= zip(batch, _Batch(self, batch).fitted(), strict=True)
        return [self._known[part].score for part in parts]

    def start_of(self, part: Part) -> Fitted | None:
        """A fit to start from; None if there is none."""
        return self._known.get(part.whole)

    def slope(self, part: Part, source: int, target: int) -> float:
        """Slope of a gene of a part on one of its parents."""
        self.score(part)
        j = part.genes.index(target)
        return float(self._known[part].slopes[j, part.parents[j].index(source)])

    def _batches(self, parts: list[Part]) -> Iterator[list[Part]]:
        """Parts of like size, few enough to work on at once."""
        parts = sorted(parts, key=lambda part: (len(part.genes), max(map(len, part.parents))))
        while parts:
            size = len(self.functions) * len(self.group)
            n = 1
            while n < len(parts):
                last = parts[n]
                if (n + 1) * len(last.genes) * max(1, *map(len, last.parents)) * size > _BATCH_ELEMENTS:
                    break
                n += 1
            yield parts[:n]
            parts = parts[n:]


class _Batch:
    """Parts (C) of up to s genes with up to p parents, b functions of each; `theta` (C, s, b p + 1) are their coefficients, the intercept last."""

    def __init__(self, of: CyclicScore, parts: list[Part]):
        n, s = len(parts), max(len(part.genes) for part in parts)
        p = max(1, *(len(parents) for part in parts for parents in part.parents))
        genes, is_gene = np.zeros((n, s), dtype=np.int64), np.zeros((n, s), dtype=bool)
        parents, is_parent = np.zeros((n, s, p), dtype=np.int64), np.zeros((n, s, p), dtype=bool)
        cost = np.zeros(n)
        for c, part in enumerate(parts):
            genes[c, : len(part.genes)], is_gene[c, : len(part.genes)] = part.genes, True
            for j, own in enumerate(part.parents):
                parents[c, j, : len(own)], is_parent[c, j, : len(own)] = own, True
                cost[c] += of.edge_cost[list(own), part.genes[j]].sum()
        self.of, self.parts, self.cost = of, parts, torch.as_tensor(cost)
        self.genes, self.is_gene = torch.as_tensor(genes), torch.as_tensor(is_gene)
        self.parents, self.is_parent = torch.as_tensor(parents), torch.as_tensor(is_parent)
        on = self.is_parent[:, :, None, :].expand(-1, -1, len(of.functions), -1).flatten(2)
        self.mask = torch.cat([on, self.is_gene[..., None]], 2).to(of.moved.dtype)  # (C, s, b p + 1)
        # which gene of the part each parent is, (C, s, p, s)
        same = self.parents[..., None] == self.genes[:, None, None, :]
        self.inside = (same & self.is_parent[..., None] & self.is_gene[:, None, None, :]).to(of.moved.dtype)
        left_out = torch.as_tensor([part.left_out for part in parts])
        self.counted = (of.group != left_out[:, None]).to(of.moved.dtype)  # (C, K)
        self.y = of.moved[self.genes]  # (C, s, K)
        # (b, C, s, p, K) to (C, s, b p, K)
        z, steep = (f[:, self.parents].permute(1, 2, 0, 3, 4) for f in (of.functions, of.steepness))
        pairs = torch.as_tensor(is_parent[..., :, None] & is_parent[..., None, :])
        self.xx = of.covariance[self.parents[..., :, None], self.parents[..., None, :]] * pairs
        self.xy = of.covariance[self.parents, self.genes[..., None]] * self.is_parent
        alone = torch.diag_embed((~self.is_parent).to(self.xx) + _RIDGE)
        # within contexts, as if there were no circle, (C, s, p)
        self.slopes = torch.linalg.solve(self.xx + alone, self.xy)
        if of.prior.proportional:
            scale = self.slopes.abs()[:, :, None, :, None]
            z, steep = (torch.cat([f[:, :, :1], f[:, :, 1:] * scale], 2) for f in (z, steep))
        z, steep = z.flatten(2, 3), steep.flatten(2, 3)
        self.z = torch.cat([z, torch.ones_like(z[:, :, :1])], 2) * self.mask[..., None]
        self.steep = steep * self.mask[..., :-1, None]
        self.yy = of.covariance[self.genes, self.genes]
        self.odds = of.log_odds[self.genes]  # (C, s, U)
        self.width = p

    def residuals(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What parents leave of the means (C, s, K), its variance if the gene is no target, and the noise within contexts (C, s)."""
        prior, s, w = self.of.prior, self.of.statistics, theta[..., : self.width]
        passed = self.passed(theta)
        noise = self.yy - 2 * (w * self.xy).sum(-1) + torch.einsum("csp,cspq,csq->cs", w, self.xx, w)
        noise = noise.clamp_min(_MIN_NOISE)
        state_var = 0.0 if s.state_var is None else s.state_var[self.genes]
        variance = (noise + state_var)[..., None] / self.of.n_cells + prior.spike_var
        variance = variance + prior.misfit**2 * passed.square().sum(2)
        return self.y - passed.sum(2) - theta[..., -1:], variance, noise

    def passed(self, theta: Tensor) -> Tensor:
        """What each parent passes on, (C, s, p, K)."""
        return (theta[..., :-1, None] * self.z[:, :, :-1]).unflatten(2, (-1, self.width)).sum(2)

    def densities(self, residuals: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of the cells of each perturbation if a gene is no target and if it is, controls last, (C, s, U + 1)."""
        out = []
        for v in (variance, variance + self.of.prior.slab_var):
            value = -0.5 * (residuals.square() / v + v.log()) * self.counted[:, None]
            out.append(value.new_zeros(*value.shape[:2], self.odds.shape[2] + 1).index_add_(2, self.of.group, value))
        return out[0], out[1]

    def objective(self, theta: Tensor) -> Tensor:
        """Log posterior of coefficients, direct effects summed out, (C,)."""
        residuals, variance, noise = self.residuals(theta)
        off, on = self.densities(residuals, variance)
        treated = torch.logaddexp(off[..., :-1], on[..., :-1] + self.odds) - torch.nn.functional.softplus(self.odds)
        by_gene = treated.sum(2) + off[..., -1] - 0.5 * self.of.dof * noise.log()
        by_gene = by_gene - 0.5 * theta[..., self.width : -1].square().sum(2)
        return (by_gene * self.is_gene).sum(1) + self.log_determinants(theta)

    def log_determinants(self, theta: Tensor) -> Tensor:
        """Log determinants of the Jacobian, within contexts for each cell and between them for each mean, summed, (C,)."""
        within = torch.einsum("csp,cspt->cts", theta[..., : self.width], self.inside)
        slopes = (theta[..., :-1, None] * self.steep).unflatten(2, (-1, self.width)).sum(2)  # (C, s, p, K)
        between = torch.einsum("cspk,cspt->ckts", slopes, self.inside)
        total = self.of.dof * _log_determinant(within)
        return total + (self.counted * _log_determinant(between)).sum(1)

    def precision(self, theta: Tensor) -> Tensor:
        """Precision of residuals, over whether the gene is a target, (C, s, K)."""
        residuals, variance, _ = self.residuals(theta)
        off, on = self.densities(residuals, variance)
        probs = torch.sigmoid((on - off)[..., :-1] + self.odds)
        probs = torch.nn.functional.pad(probs, (0, 1))[:, :, self.of.group]  # controls are never targets
        return self.counted[:, None] * ((1 - probs) / variance + probs / (variance + self.of.prior.slab_var))

    def curvature(self, theta: Tensor) -> Tensor:
        """Curvature of the log posterior without that of the determinants, (C, s, b p, b p)."""
        noise = self.residuals(theta)[2]
        out = (self.z * self.precision(theta)[:, :, None]) @ self.z.mT
        out[..., : self.width, : self.width] += self.of.dof * self.xx / noise[..., None, None]
        own = torch.ones(theta.shape[-1], dtype=theta.dtype)
        own[: self.width] = own[-1] = _RIDGE
        return out + torch.diag_embed(own * self.mask + (1 - self.mask))

    def fit(self, theta: Tensor) -> Tensor:
        """Coefficients at the top, from a start."""
        for _ in range(_N_STEPS):
            variable = theta.clone().requires_grad_(True)
            with torch.enable_grad():
                objective = self.objective(variable)
                gradient = torch.autograd.grad(objective.sum(), variable)[0] * self.mask
            step = torch.linalg.solve(self.curvature(theta), gradient[..., None])[..., 0]
            before, now, length = objective.detach(), theta, 1.0
            reached = before.clone()
            for _ in range(_N_HALVINGS):
                trial = theta + length * step
                value = self.objective(trial)
                better = (value > reached) & (reached == before)  # the longest step that helps
                now, reached = torch.where(better[:, None, None], trial, now), torch.where(better, value, reached)
                length /= _SHORTER
            theta = now
            if float((reached - before).max()) < _AT_REST:
                break
        return theta

    def start(self) -> Tensor:
        """Coefficients to start from: where nothing is known, slopes within contexts, lest departures explain what targets do."""
        theta = torch.zeros_like(self.mask[..., :-1]).unflatten(2, (-1, self.width))
        theta[:, :, 0] = self.slopes
        intercepts = torch.zeros_like(self.mask[..., -1:])
        for c, part in enumerate(self.parts):
            known = self.of.start_of(part)
            if known is not None:
                n, _, p = known.theta.shape
                theta[c, :n, :, :p], intercepts[c, :n, 0] = known.theta, known.intercepts
        return torch.cat([theta.flatten(2), intercepts], 2)

    @torch.no_grad()
    def fitted(self) -> list[Fitted]:
        """The parts at their best coefficients."""
        theta = self.fit(self.start())
        score = self.objective(theta) - self.cost
        slopes, n_own = theta[..., : self.width], theta.shape[-1] - 1 - self.width
        if n_own:
            bent = self.z[:, :, self.width : -1]
            a = (bent * self.precision(theta)[:, :, None]) @ bent.mT + torch.eye(n_own, dtype=theta.dtype)
            score = score - 0.5 * (torch.logdet(a) * self.is_gene).sum(1)  # integrating over the departures
            # a straight line that passes on as much
            passed, x = self.passed(theta), self.z[:, :, : self.width]
            slopes = (passed * x).sum(-1) / x.square().sum(-1).clamp_min(_RIDGE)
        intercepts, theta, out = theta[..., -1], theta[..., :-1].unflatten(2, (-1, self.width)), []
        for c, (value, part) in enumerate(zip(score.tolist(), self.parts, strict=True)):
            n, p = len(part.genes), max(map(len, part.parents))
            out.append(Fitted(value, slopes[c, :n, :p].clone(), theta[c, :n, :, :p].clone(), intercepts[c, :n].clone()))
        return out


def _log_determinant(slopes: Tensor) -> Tensor:
    """Log determinant of I less slopes (..., s, s); of what does not settle, a price."""
    sign, value = torch.linalg.slogdet(torch.eye(slopes.shape[-1], dtype=slopes.dtype) - slopes)
    return torch.where(sign > 0, value, torch.full_like(value, _UNSTABLE))
