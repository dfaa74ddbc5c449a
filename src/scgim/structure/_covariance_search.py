"""Search for a graph of hidden expression by the whole covariance of what is measured (:mod:`scgim.structure._covariance_model`).

It goes on from a graph that was found by regressions of one gene at a time, in which genes that are measured well stand in for the regulators
that they follow. Single edges are chosen by score tests. Larger moves let two genes change places, hand the children of a gene over to another
one, let another one share them, and turn edges round; they are tried among the genes concerned and all that these descend from, whose covariance
does not depend on the others, and kept if the score of the whole graph rises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgim.structure._covariance_model import CovarianceModel
from scgim.structure._graph import descendants, out_degrees, reachability
from scgim.structure._out_degree import OutDegreePrior

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scgim.structure._covariance_model import Array, CovarianceFit, Graph, MeasuredCovariance

_MIN_GAIN = 0.5  # nats, by tests; a little more than these are off
_TOLERANCE = 0.2  # nats, by fits, which end within about as much
_N_ITERATIONS = 20  # of a fit that begins with weights of a graph alike: for time
_N_CLIMBS, _N_CLIMBS_AFTER = 60, 8  # rounds of single edges, many of which are added or left out at once: for time
# Genes that would help the children of a gene most, and children that it leaves least of, are tried in its place: for time
_N_BEST, _N_CLOSEST = 3, 6
_N_TRIED = 2  # of the larger moves about a gene, those that help most nearby, are tried in the whole graph: for time
# Nats: by how much what is nearby may tell otherwise than the whole, of many edges or of one
_MARGIN, _SMALL_MARGIN = 200.0, 3.0
_CLOSE = (
    40.0  # nats that a larger move may cost at first in the whole graph, before single edges are chosen anew: for time
)
_MIN_HELP = 0.5  # nats, that a gene which may share the children of another one brings for each
_MAX_FACTORS = 3  # convention
_MIN_FACTOR = 10.0  # nats that a factor must bring: covariances are not quite those of normal values
_TINY = 1e-12
_MAX_WEIGHT, _MIN_WEIGHT = 5.0, 0.2  # of first weights that are found from quotients


class Trial(NamedTuple):
    """A graph to try, with weights and log variances to begin with."""

    graph: Graph
    weights: Array
    log_var: Array


class CovarianceSearch:
    """Search from a graph, by the likelihood of the covariance and a price of edges.

    Parameters
    ----------
    model
        The model of what is measured.
    fit
        Fit of the graph to begin with.
    edge_cost
        Price of each edge in nats, (d, d).
    allowed
        Which edges there may be, boolean (d, d).
    bonus
        What the prior of out-degrees adds for a gene by its number of children, (m,).
    n_elsewhere
        Children of each gene that are not among these genes, (d,); None for none.
    tried
        Larger moves that were tried before, to which others are added; None for none.
    """

    def __init__(
        self,
        model: CovarianceModel,
        fit: CovarianceFit,
        edge_cost: Array,
        allowed: Graph,
        bonus: Array,
        n_elsewhere: NDArray[np.int_] | None = None,
        tried: set[tuple] | None = None,
    ):
        self.model, self.fit = model, fit
        self.edge_cost, self.allowed, self.bonus = edge_cost, allowed, bonus
        self.tried = set() if tried is None else tried
        self.n_elsewhere = np.zeros(model.n_genes, dtype=np.int64) if n_elsewhere is None else n_elsewhere

    @property
    def adjacency(self) -> Graph:
        """The graph of genes, (d, d)."""
        return self.fit.graph[: self.model.n_genes, : self.model.n_genes]

    @property
    def loadings(self) -> Array:
        """What factors do to genes, (q, d)."""
        return self.fit.weights[self.model.n_genes :, : self.model.n_genes]

    def hidden_scatter(self) -> tuple[Array, float]:
        """Correlation of hidden expression in the network (d, d), and cells without noise by which its weights would be as certain."""
        covariance = self.model.hidden_covariance(self.fit)
        spread = np.sqrt(covariance.diagonal())
        correlation = covariance / np.outer(spread, spread)
        rows, columns = np.nonzero(self.adjacency)
        if not len(rows):
            return correlation, self.model.measured.n_cells
        # half of the squared weight by its variance is what a Wald test tells
        tests = np.maximum(self.model.losses(self.fit)[rows, columns], _TINY)
        variance = np.maximum(0.5 * self.fit.weights[rows, columns] ** 2 / tests, _TINY)
        ends = zip(rows.tolist(), columns.tolist(), strict=True)
        free = np.array([_free_variance(covariance, i, self.adjacency[:, j]) for i, j in ends])
        return correlation, float(np.median(np.exp(self.fit.log_var[columns]) / variance / free))

    def n_children(self, adjacency: Graph) -> NDArray[np.int_]:
        return out_degrees(adjacency) + self.n_elsewhere

    def score_of(self, fit: CovarianceFit) -> float:
        adjacency = fit.graph[: self.model.n_genes, : self.model.n_genes]
        return fit.log_likelihood - self.price_of(adjacency) + float(self.bonus[self.n_children(adjacency)].sum())

    @property
    def score(self) -> float:
        return self.score_of(self.fit)

    @property
    def evidence(self) -> float:
        """Score less what factors cost."""
        return self.score - self.model.price_of_factors(self.fit)

    def tests(self) -> tuple[Array, Array]:
        """What each edge would add to the score, and what each one there is would if it were left out, -inf where it cannot, (d, d)."""
        adding, removing = self.model.gains(self.fit), self.model.losses(self.fit)
        adjacency, n = self.adjacency, self.n_children(self.adjacency)
        steps = np.diff(self.bonus, append=-np.inf)
        cyclic = adjacency | reachability(adjacency).T | ~self.allowed
        more = np.where(cyclic, -np.inf, adding - self.edge_cost + steps[n][:, None])
        less = np.where(adjacency, self.edge_cost - removing - steps[n - 1][:, None], -np.inf)
        return more, less

    def climb(self, n_rounds: int = _N_CLIMBS) -> None:
        """Add and leave out edges until tests find none that raises the score."""
        for _ in range(n_rounds):
            more, less = self.tests()
            gain = np.maximum(more, less)
            order = np.argsort(-gain.max(0))
            moves = [(int(gain[:, j].argmax()), int(j)) for j in order if gain[:, j].max() > _MIN_GAIN]
            if not moves or not self._make(moves):
                return

    def _make(self, moves: list[tuple[int, int]]) -> bool:
        """Toggle as many of these edges, the best first, as together raise the score."""
        n_moves = len(moves)
        while True:
            graph = self.adjacency.copy()
            for i, j in moves[:n_moves]:
                graph[i, j] = not graph[i, j] and not descendants(graph, j)[i]
            if self.keep(self.refit(Trial(graph, self.first_weights(graph), self.fit.log_var))):
                return True
            if n_moves == 1:
                return False
            n_moves = max(1, n_moves // 4)

    def first_weights(self, graph: Graph) -> Array:
        """Weights of a graph, of genes with new parents by their covariances in the graph as it is."""
        weights = self.fit.weights.copy()
        for j in np.flatnonzero((graph & ~self.adjacency).any(0)):
            parents = np.flatnonzero(graph[:, j])
            among = self.fit.hidden[np.ix_(parents, parents)]
            with_child = (self.fit.hidden[parents, j] + self.model.unexplained[parents, j]) / 2
            weights[parents, j] = np.linalg.solve(among + 1e-3 * np.eye(len(parents)), with_child)
        return weights

    def refit(self, trial: Trial, slack: float = 0.0) -> CovarianceFit:
        weights = np.clip(trial.weights, -_MAX_WEIGHT, _MAX_WEIGHT)
        n = self.n_children(trial.graph)
        price = self.price_of(trial.graph) - float(self.bonus[n].sum())
        return self.model.fit(
            self.model.whole(trial.graph),
            weights,
            trial.log_var,
            n_iterations=_N_ITERATIONS,
            tolerance=_TOLERANCE,
            needed=self.score - slack + price,
        )

    def keep(self, fit: CovarianceFit) -> bool:
        """Keep a fit if its score is higher."""
        better = self.score_of(fit) > self.score + _TOLERANCE
        if better:
            self.fit = fit
        return better

    def nearby(self, genes: NDArray[np.int_]) -> tuple[CovarianceSearch, NDArray[np.int_]]:
        """The same search among some genes and all that they descend from, and which nodes these are, factors last."""
        chosen = np.zeros(self.model.n_nodes, dtype=bool)
        for gene in genes:
            chosen |= descendants(self.fit.graph.T, int(gene))
        own = np.flatnonzero(chosen[: self.model.n_genes])
        nodes = np.concatenate([own, np.arange(self.model.n_genes, self.model.n_nodes)])
        model, inside = self.model.of_genes(own), np.ix_(own, own)
        fit = model.fit(
            self.fit.graph[np.ix_(nodes, nodes)], self.fit.weights[np.ix_(nodes, nodes)], self.fit.log_var[nodes]
        )
        elsewhere = self.n_children(self.adjacency)[own] - out_degrees(self.adjacency[inside])
        return CovarianceSearch(model, fit, self.edge_cost[inside], self.allowed[inside], self.bonus, elsewhere), nodes

    def successors(self, gene: int, adding: Array) -> list[int]:
        """Genes that may regulate in place of one: those that would help its children most, its parents and its closest children."""
        children = np.flatnonzero(self.adjacency[gene])
        best = np.argsort(-adding[:, children].sum(1), kind="stable")[:_N_BEST]
        left = (
            np.exp(self.fit.log_var[children]) / self.fit.hidden.diagonal()[children]
        )  # of those that follow it closely
        closest = children[np.argsort(left, kind="stable")[:_N_CLOSEST]]
        others = np.concatenate([best, np.flatnonzero(self.adjacency[:, gene]), closest]).tolist()
        return [c for c in dict.fromkeys(others) if c != gene and self.allowed[c].any()]

    def move_about(self, gene: int, adding: Array) -> bool:
        """Try larger moves about a gene that regulates; whether one was kept."""
        successors = self.successors(gene, adding)
        children = np.flatnonzero(self.adjacency[gene])
        near, nodes = self.nearby(np.array([gene, *children, *successors]))
        if self._was_tried(("about", gene), near, nodes):
            return False
        place = {int(node): k for k, node in enumerate(nodes)}
        own = nodes[: near.model.n_genes]
        helps = adding[np.ix_(own, own)] > _MIN_HELP
        places, sharing = [], []
        for other in successors:
            for with_parents in (True, False) if self.adjacency[:, gene].any() else (False,):
                trial = in_place(near, place[gene], place[other], with_parents=with_parents)
                places.append(near.refit(trial, _MARGIN) if trial else near.fit)
            trial = shared(near, place[gene], place[other], helps)
            sharing.append(near.refit(trial, _MARGIN) if trial else near.fit)
        tried = [*near.best_of(places, _N_TRIED), *near.best_of(sharing, _N_TRIED)]
        return any(self._keep_nearby(nodes, fit) for fit in tried)

    def _was_tried(self, move: tuple[str | int, ...], near: CovarianceSearch, nodes: NDArray[np.int_]) -> bool:
        """Whether a larger move was tried before where the graph was the same, and note that it is."""
        key = (*move, nodes.tobytes(), near.adjacency.tobytes())
        known = key in self.tried
        self.tried.add(key)
        return known

    def best_of(self, fits: list[CovarianceFit], n: int) -> list[CovarianceFit]:
        """The best of fits of other graphs."""
        others = [fit for fit in fits if fit is not self.fit and self.score_of(fit) > self.score - _MARGIN]
        return sorted(others, key=self.score_of, reverse=True)[:n]

    def price_of(self, graph: Graph) -> float:
        return float(self.edge_cost[graph].sum())

    def _keep_nearby(self, nodes: NDArray[np.int_], near: CovarianceFit) -> bool:
        """Make what was found among some nodes part of the whole graph and climb from there; kept if the score rises."""
        before, score = self.fit, self.score
        graph, weights, log_var = before.graph.copy(), before.weights.copy(), before.log_var.copy()
        graph[np.ix_(nodes, nodes)], weights[np.ix_(nodes, nodes)], log_var[nodes] = (
            near.graph,
            near.weights,
            near.log_var,
        )
        adjacency = graph[: self.model.n_genes, : self.model.n_genes]
        self.fit = self.refit(Trial(adjacency, weights, log_var), _CLOSE)
        if self.score > score - _CLOSE:
            self.climb(_N_CLIMBS_AFTER)
        better = self.score > score + _TOLERANCE
        if not better:
            self.fit = before
        return better

    def turn_round(self, i: int, j: int) -> bool:
        """Turn an edge round; whether that was kept."""
        if not self.adjacency[i, j] or not self.allowed[j, i]:
            return False
        near, nodes = self.nearby(np.array([i, j]))
        if self._was_tried(("turn", i, j), near, nodes):
            return False
        place = {int(node): k for k, node in enumerate(nodes)}
        graph = near.adjacency.copy()
        graph[place[i], place[j]] = False
        if descendants(graph, place[i])[place[j]]:
            return False
        graph[place[j], place[i]] = True
        fit = near.refit(Trial(graph, near.first_weights(graph), near.fit.log_var), _SMALL_MARGIN)
        return near.score_of(fit) > near.score - _SMALL_MARGIN and self._keep_nearby(nodes, fit)

    def larger_moves(self, on_move: Callable[[float], None]) -> bool:
        """One round of larger moves; whether any was kept."""
        moved = False
        for gene in np.argsort(self.adjacency.sum(1), kind="stable").tolist():
            if self.adjacency[gene].sum() > 1:
                moved |= self.move_about(gene, self.model.gains(self.fit))
                on_move(self.score)
        for i, j in np.argwhere(self.adjacency).tolist():
            moved |= self.turn_round(i, j)
            on_move(self.score)
        self.climb()
        return moved


def _free_variance(covariance: Array, parent: int, parents: NDArray[np.bool_]) -> float:
    """Variance of a parent that the other parents of the same gene leave."""
    own = np.flatnonzero(parents)
    return float(1.0 / np.linalg.inv(covariance[np.ix_(own, own)])[own == parent, own == parent].item())


def _ratio(search: CovarianceSearch, gene: int, other: int) -> float:
    """What the other gene moves by where one moves by 1, if both follow each other closely."""
    weights, hidden = search.fit.weights, search.fit.hidden
    if search.adjacency[gene, other]:
        ratio = float(weights[gene, other])
    elif search.adjacency[other, gene]:
        ratio = 1.0 / float(weights[other, gene] or _MIN_WEIGHT)
    else:
        ratio = float(np.sign(hidden[gene, other]) * np.sqrt(hidden[other, other] / hidden[gene, gene]))
    return float(np.copysign(np.clip(abs(ratio), _MIN_WEIGHT, _MAX_WEIGHT), ratio))


def in_place(search: CovarianceSearch, gene: int, other: int, *, with_parents: bool) -> Trial | None:
    """The children of a gene, and its parents as well, as those of another one, and the gene as one of its children."""
    graph, weights = search.adjacency.copy(), search.fit.weights.copy()
    children, parents = np.flatnonzero(graph[gene]), np.flatnonzero(graph[:, gene])
    ratio = _ratio(search, gene, other)
    graph[gene] = False
    if with_parents:
        graph[:, gene] = False
    above = descendants(graph.T, other)
    if above[gene]:
        return None
    for child in [*children[~above[children]].tolist(), gene]:
        graph[other, child] = True
        weights[other, child] += 1.0 / ratio if child == gene else weights[gene, child] / ratio
    if with_parents:
        below = descendants(graph, other)
        for parent in parents[~below[parents]]:
            graph[parent, other] = True
            weights[parent, other] += weights[parent, gene] * ratio
    log_var, stretch = search.fit.log_var.copy(), 2 * np.log(abs(ratio))
    log_var[gene] = search.fit.log_var[other] - stretch
    log_var[other] = search.fit.log_var[gene] + stretch
    return None if (graph & ~search.allowed).any() else Trial(graph, weights, log_var)


def shared(search: CovarianceSearch, gene: int, other: int, helps: Graph) -> Trial | None:
    """The other gene as a further parent of those children of a gene that it helps, which `helps` (d, d) tells."""
    graph = search.adjacency.copy()
    above = descendants(graph.T, other)
    new = graph[gene] & ~above & ~graph[other] & search.allowed[other] & helps[other]
    if not new.any():
        return None
    graph[other, new] = True
    return Trial(graph, search.first_weights(graph), search.fit.log_var)


class CovarianceSettings(NamedTuple):
    """What is measured and what edges there may be.

    Parameters
    ----------
    measured
        Covariance of what is measured.
    edge_log_odds
        Log prior odds of edges, (d, d).
    allowed
        Which edges there may be, boolean (d, d).
    """

    measured: MeasuredCovariance
    edge_log_odds: Array
    allowed: Graph

    def start(self, adjacency: Graph, loadings: Array, tried: set[tuple] | None = None) -> CovarianceSearch:
        """Search that begins with a graph (d, d) and with factors of these loadings (q, d); `tried` are larger moves of earlier ones."""
        model = CovarianceModel(self.measured, len(loadings))
        edge_cost = 0.5 * np.log(self.measured.n_cells) - self.edge_log_odds
        d = len(adjacency)
        prior = OutDegreePrior.fitted(adjacency.sum(1), d - 1)  # of those that are allowed to, few may regulate too
        bonus = prior.bonus(d - 1, float(np.median(self.edge_log_odds)))
        fit = model.first_fit(adjacency, loadings)
        search = CovarianceSearch(model, fit, edge_cost, self.allowed, bonus, tried=tried)
        search.climb()
        return search

    def settle(self, adjacency: Graph, first: CovarianceSearch, on_move: Callable[[float], None]) -> CovarianceSearch:
        """Search from a graph, which `first` has begun with, with larger moves and as many factors as the evidence is for."""
        best = first
        best.larger_moves(on_move)
        for _ in range(_MAX_FACTORS):
            loadings = best.model.further_loadings(best.fit)
            # also from the graph that was given: what a factor explains may have become edges
            further, again = self.start(best.adjacency, loadings), self.start(adjacency, loadings)
            if again.evidence > best.evidence:  # else larger moves do not make up for it, and take most of the time
                again.larger_moves(on_move)
            further = max(further, again, key=lambda search: search.evidence)
            if further.evidence <= best.evidence + _MIN_FACTOR:
                break
            best = further
        return best
