r"""Likelihood of a graph of hidden expression by the whole covariance of what is measured of it.

Within contexts, hidden expression z follows the network, and what is measured of each gene has noise of its own on top, whose variance is known
from counting. With edge weights W, variances v that parents leave, and noise D

.. math:: S = (I - W)^{-\top} \mathrm{diag}(v) (I - W)^{-1} + \mathrm{diag}(D)

is the covariance that a graph implies. Regressions of one gene at a time see each parent through its own measurements alone, so that a gene of many
counts is a better parent than the regulator of few counts that it follows. Here a regulator is measured by all of its children, and one that is only
a child leaves the covariance of its siblings unexplained. The fit is by Fisher scoring; score tests and Wald tests tell what an edge more or less
brings without another fit ("modification indices" of structural equation models). Factors that are measured nowhere, such as what scales all
production in a cell, are further parents of all genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Graph = NDArray[np.bool_]

_MIN_VARIANCE = 0.005  # of log expression that parents leave: less cannot be told from none
_WEIGHT_PRECISION = 1.0  # of the prior of weights and loadings, which are of order one on the scale of logarithms
# Of a step of Fisher scoring: how far it may go, how often it is shortened, and damping
_MAX_STEP, _MAX_LOG_STEP, _N_SHORTER = 1.0, 1.5, 8
_DAMPING, _MIN_DAMPING = 1e-3, 1e-4
_N_FIRST = 60  # iterations of a fit that begins with a guess
_PARTS = (1.0, 0.5, 0.2)  # of the first loadings of a further factor, which noise makes too large
_CLOSE = 1e-6  # nats
# A fit is given up if so many times what the last step brought would not do, after so many steps: for time
_HOPE, _N_BEFORE_HOPELESS = 4.0, 3
_ATTENUATION = 0.2  # of the variance of parents, added where weights are first guessed from noisy covariances
_LEFT = 0.5  # of its variance, that parents are first taken to leave of a gene
_TINY = 1e-12


@dataclass(frozen=True)
class MeasuredCovariance:
    """Covariance of what is measured, within contexts.

    Parameters
    ----------
    total
        Covariance with noise, (d, d).
    noise
        Variance that measuring adds to each gene, (d,).
    n_cells
        Cells that it is worth.
    """

    total: Array
    noise: Array
    n_cells: float

    def of_genes(self, genes: NDArray[np.int_]) -> MeasuredCovariance:
        return MeasuredCovariance(self.total[np.ix_(genes, genes)], self.noise[genes], self.n_cells)


class CovarianceFit(NamedTuple):
    """A graph of genes, and factors after them, with its parameters and what they imply.

    Parameters
    ----------
    graph
        Edges, (d + q, d + q); factors are parents of all genes.
    weights
        Weights of the edges, (d + q, d + q).
    log_var
        Log variances that parents leave, (d + q,); 0 for factors.
    carried
        What reaches each gene of a change of another one, (d + q, d + q).
    hidden
        Covariance of hidden expression, (d + q, d + q).
    precision
        Inverse of the covariance of what is measured, and zeros for factors, (d + q, d + q).
    log_likelihood
        Of the covariance, without constants.
    """

    graph: Graph
    weights: Array
    log_var: Array
    carried: Array
    hidden: Array
    precision: Array
    log_likelihood: float


class CovarianceModel:
    """Linear network of hidden expression that is measured with noise of known variance.

    Parameters
    ----------
    measured
        What is measured of d genes.
    n_factors
        Number q of factors that act on all genes and are measured nowhere.
    fixed_loadings
        Whether what factors do to genes stays as it is in fits.
    """

    def __init__(self, measured: MeasuredCovariance, n_factors: int = 0, *, fixed_loadings: bool = False):
        self.measured, self.n_factors = measured, n_factors
        self.n_genes = d = len(measured.noise)
        self.n_nodes = d + n_factors
        self.total = np.zeros((self.n_nodes, self.n_nodes))
        self.total[:d, :d] = measured.total
        self.unexplained = measured.total - np.diag(measured.noise)  # of hidden expression
        self.loadings = np.zeros((self.n_nodes, self.n_nodes), dtype=bool)
        self.loadings[d:, :d] = True
        self.fixed_loadings = fixed_loadings

    def of_genes(self, genes: NDArray[np.int_]) -> CovarianceModel:
        """The model of some genes, which are no children of the others, with factors as they are: of few genes, others would explain more."""
        return CovarianceModel(self.measured.of_genes(genes), self.n_factors, fixed_loadings=True)

    def free_edges(self, graph: Graph) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        """Ends of the edges whose weights are fitted."""
        rows, columns = np.nonzero(graph & ~self.loadings if self.fixed_loadings else graph)
        return rows, columns

    def whole(self, adjacency: Graph) -> Graph:
        """A graph of genes (d, d) with the loadings of factors."""
        graph = self.loadings.copy()
        graph[: self.n_genes, : self.n_genes] = adjacency
        return graph

    def first_fit(self, adjacency: Graph, loadings: Array) -> CovarianceFit:
        """Fit a graph of genes (d, d) from weights that are guessed from covariances less the noise; `loadings` (q, d) are the first of factors."""
        d, c = self.n_genes, self.unexplained
        weights = np.zeros((self.n_nodes, self.n_nodes))
        variance = np.maximum(c.diagonal(), 2 * _MIN_VARIANCE)
        for j in range(d):
            parents = np.flatnonzero(adjacency[:, j])
            if len(parents):
                among = c[np.ix_(parents, parents)] + np.diag(_ATTENUATION * variance[parents])
                weights[parents, j] = np.linalg.solve(among, c[parents, j])
        log_var = np.zeros(self.n_nodes)
        log_var[:d] = np.log(_LEFT * variance)
        # without factors first, as the guess is far off
        without = CovarianceModel(self.measured)
        fit = without.fit(adjacency, weights[:d, :d], log_var[:d], n_iterations=_N_FIRST)
        if not self.n_factors:
            return fit
        weights[:d, :d], log_var[:d] = fit.weights, fit.log_var
        graph = self.whole(adjacency)
        starts = []
        for part in _PARTS:
            weights[d:, :d] = loadings
            weights[-1, :d] *= part
            starts.append(self._implied(graph, weights.copy(), log_var))
        best = max(starts, key=lambda start: start.log_likelihood)
        return self.fit(graph, best.weights, log_var, n_iterations=_N_FIRST)

    def fit(
        self,
        graph: Graph,
        weights: Array,
        log_var: Array,
        *,
        n_iterations: int = 40,
        tolerance: float = 0.05,
        needed: float = -np.inf,
    ) -> CovarianceFit:
        """Fit parameters of a graph (d + q, d + q) by Fisher scoring from those given.

        It ends when a step brings less than `tolerance` nats, or when the log-likelihood is not going to be what is needed.
        """
        d, damping, longest = self.n_genes, _DAMPING, 0.0
        rows, columns = self.free_edges(graph)
        n_weights = len(rows)
        fit = self._implied(graph, weights * graph, log_var)
        for k in range(n_iterations):
            gradient, information = self._gradient(rows, columns, fit), self._information(rows, columns, fit)
            gradient[:n_weights] -= _WEIGHT_PRECISION * fit.weights[rows, columns]
            diagonal = np.arange(len(gradient))
            information[diagonal[:n_weights], diagonal[:n_weights]] += _WEIGHT_PRECISION
            usual = information[diagonal, diagonal].copy()
            for _ in range(_N_SHORTER):
                information[diagonal, diagonal] = usual * (1 + damping) + _TINY
                try:
                    step = np.linalg.solve(information, gradient)
                except np.linalg.LinAlgError:  # of numbers too large, at the end of a fit that leads nowhere
                    return fit
                longest = max(
                    np.abs(step[:n_weights]).max(initial=0.0) / _MAX_STEP,
                    np.abs(step[n_weights:]).max() / _MAX_LOG_STEP,
                )
                step /= max(1.0, longest)
                weights, log_var = fit.weights.copy(), fit.log_var.copy()
                weights[rows, columns] += step[:n_weights]
                log_var[:d] = np.maximum(log_var[:d] + step[n_weights:], np.log(_MIN_VARIANCE))
                trial = self._implied(graph, weights, log_var)
                if trial.log_likelihood > fit.log_likelihood - _CLOSE:
                    break
                damping = max(10 * damping, 1e-2)
            else:
                break
            gain, fit, damping = trial.log_likelihood - fit.log_likelihood, trial, max(damping / 5, _MIN_DAMPING)
            hopeless = k >= _N_BEFORE_HOPELESS and longest < 1 and fit.log_likelihood + _HOPE * gain < needed
            if gain < tolerance or hopeless:
                break
        return fit

    def _implied(self, graph: Graph, weights: Array, log_var: Array) -> CovarianceFit:
        d, eye = self.n_genes, np.eye(self.n_nodes)
        carried = np.asarray(np.linalg.inv(eye - weights), dtype=float)
        hidden = carried.T @ (np.exp(log_var)[:, None] * carried)
        implied = hidden[:d, :d] + np.diag(self.measured.noise)
        precision = np.zeros_like(hidden)
        try:
            root = np.linalg.cholesky(implied)
        except np.linalg.LinAlgError:  # a step too far
            return CovarianceFit(graph, weights, log_var, carried, hidden, precision, -np.inf)
        log_det = 2 * float(np.log(root.diagonal()).sum())
        inverse = np.linalg.inv(implied)
        precision[:d, :d] = (inverse + inverse.T) / 2
        log_likelihood = -0.5 * self.measured.n_cells * (log_det + float((precision * self.total).sum()))
        return CovarianceFit(graph, weights, log_var, carried, hidden, precision, log_likelihood)

    def _misfit(self, fit: CovarianceFit) -> Array:
        return fit.precision @ self.total @ fit.precision - fit.precision

    def _gradient(self, rows: NDArray[np.int_], columns: NDArray[np.int_], fit: CovarianceFit) -> Array:
        """Gradient of the log-likelihood by the weights of these edges and by log variances of genes."""
        d, from_misfit = self.n_genes, fit.carried @ self._misfit(fit)
        of_variances = 0.5 * np.exp(fit.log_var[:d]) * (from_misfit * fit.carried).sum(1)[:d]
        return np.concatenate([self._slopes(fit)[rows, columns], self.measured.n_cells * of_variances])

    def _slopes(self, fit: CovarianceFit) -> Array:
        """Gradient of the log-likelihood by the weights of all edges, also those that there are not, (d + q, d + q)."""
        return self.measured.n_cells * (fit.carried @ self._misfit(fit) @ fit.hidden).T

    def _parts(self, fit: CovarianceFit) -> tuple[Array, Array, Array]:
        """Products that the information is made of: of parents with parents, children with children, and children with parents."""
        to_measured = fit.carried @ fit.precision
        return fit.hidden @ fit.precision @ fit.hidden, to_measured @ fit.carried.T, to_measured @ fit.hidden

    def _information(self, rows: NDArray[np.int_], columns: NDArray[np.int_], fit: CovarianceFit) -> Array:
        """Expected information of these weights and of log variances of genes."""
        d, variance = self.n_genes, np.exp(fit.log_var[: self.n_genes])
        parents, children, across = self._parts(fit)
        crossed = across[np.ix_(columns, rows)]
        of_weights = parents[np.ix_(rows, rows)] * children[np.ix_(columns, columns)] + crossed * crossed.T
        mixed = variance * children[columns, :d] * across[:d, rows].T
        of_variances = 0.5 * np.outer(variance, variance) * children[:d, :d] ** 2
        return self.measured.n_cells * np.block([[of_weights, mixed], [mixed.T, of_variances]])

    def gains(self, fit: CovarianceFit) -> Array:
        """Log-likelihood that each edge would bring, by score tests, (d, d)."""
        n, d, variance = self.measured.n_cells, self.n_genes, np.exp(fit.log_var[: self.n_genes])
        rows, columns = self.free_edges(fit.graph)
        information = self._information(rows, columns, fit)
        information[np.diag_indices(len(rows))] += _WEIGHT_PRECISION
        parents, children, across = self._parts(fit)
        slope = self._slopes(fit)[:d, :d]
        adding = np.zeros((d, d))
        diagonal = parents.diagonal()[:d]
        for j in range(d):
            own = n * (diagonal * children[j, j] + across[j, :d] ** 2)
            edges = np.flatnonzero(columns == j)  # what other parameters of the child can make up for
            among = np.append(edges, len(rows) + j)
            with_edges = parents[:d][:, rows[edges]] * children[j, j] + across[j, rows[edges]] * across[j, :d, None]
            with_variance = variance[j] * children[j, j] * across[j, :d, None]
            shared = n * np.concatenate([with_edges, with_variance], 1)
            free = own - (np.linalg.solve(information[np.ix_(among, among)], shared.T).T * shared).sum(1)
            adding[:, j] = 0.5 * slope[:, j] ** 2 / np.maximum(free, 1e-2 * own + _TINY)
        return adding

    def losses(self, fit: CovarianceFit) -> Array:
        """Log-likelihood that each edge would cost if it were left out, by Wald tests, and 0 where there is none, (d, d)."""
        d, (rows, columns) = self.n_genes, self.free_edges(fit.graph)
        information = self._information(rows, columns, fit)
        information[np.diag_indices(len(rows))] += _WEIGHT_PRECISION
        wald = 0.5 * fit.weights[rows, columns] ** 2 / np.linalg.inv(information).diagonal()[: len(rows)]
        costs = np.zeros((self.n_nodes, self.n_nodes))
        costs[rows, columns] = wald
        return costs[:d, :d]

    def further_loadings(self, fit: CovarianceFit) -> Array:
        """Loadings of the factors that there are, and of one more that would raise the likelihood most to begin with, (q + 1, d)."""
        d = self.n_genes
        values, vectors = np.linalg.eigh((fit.carried @ fit.precision @ fit.carried.T)[:d, :d])
        whiten = (vectors / np.sqrt(np.maximum(values, _TINY))) @ vectors.T
        values, vectors = np.linalg.eigh(whiten @ (fit.carried @ self._misfit(fit) @ fit.carried.T)[:d, :d] @ whiten)
        return np.vstack([fit.weights[d:, :d], whiten @ vectors[:, -1] * np.sqrt(max(values[-1], _TINY))])

    def price_of_factors(self, fit: CovarianceFit) -> float:
        """Log evidence that loadings of factors cost, by Laplace's method, under a normal prior as wide as they are."""
        rows, columns = self.free_edges(fit.graph)
        loadings = np.flatnonzero(rows >= self.n_genes)
        if not len(loadings):
            return 0.0
        scale = np.sqrt(np.square(fit.weights[self.n_genes :]).sum(1) / self.n_genes)[rows[loadings] - self.n_genes]
        information = self._information(rows, columns, fit)[np.ix_(loadings, loadings)]
        volume = 0.5 * float(np.linalg.slogdet(np.eye(len(loadings)) + np.outer(scale, scale) * information)[1])
        return volume + 0.5 * len(loadings)

    def hidden_covariance(self, fit: CovarianceFit) -> Array:
        """Covariance of hidden expression by the network, without what factors add, (d, d)."""
        carried = fit.carried[: self.n_genes, : self.n_genes]
        return carried.T @ (np.exp(fit.log_var[: self.n_genes])[:, None] * carried)
