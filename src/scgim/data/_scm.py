"""Structural causal models of the simulator: genes are drawn parents first, all cells at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scgim.data._graphs import topological_order
from scgim.data._mechanisms import MechanismKind, random_mechanism

# What simulated worlds are like; each number is a convention of the simulator.
_N_CALIBRATION, _MIN_CALIBRATION = 20_000, 2000  # control cells that scales are set on, at most and at least
_CALIBRATION_SIZE = 5_000_000  # values of them, 40 MB
_N_SWEEPS = 20  # over the genes, after which cycles of weight 0.4 have settled: 0.4 ** 20 is nothing
_SIGNAL_SD = 0.6  # of what parents do to a log mean, in control cells
_FEEDBACK_WEIGHT = 0.4  # below one, so that cycles settle
_MAX_LOG_FOLD = 5.0  # of the mean of a gene, see below
_MAX_LOG_MEAN = 12.0  # 160,000 counts, so that deep graphs stay finite
_MIN_MEAN = 1e-2  # that a gene can be held at, so that it has a logarithm


class Interventions(NamedTuple):
    """What is done in each context; every array is contexts x genes."""

    shift: np.ndarray
    """Added to the log mean (to the mean, for continuous data)."""
    target: np.ndarray
    """True where the gene is a direct target; a hard intervention cuts these genes from their parents."""
    clamp: np.ndarray
    """Value the gene is held at; NaN where it is free."""


class Cells(NamedTuple):
    """The cells to draw; every array has one row a cell."""

    context: np.ndarray
    """Row of the context in :class:`Interventions`."""
    size_factor: np.ndarray
    offset: np.ndarray | None = None
    """Batch effect on the log mean, cells x genes."""


class Draw(NamedTuple):
    """Cells drawn from a model, cells x genes."""

    values: np.ndarray
    latent: np.ndarray | None = None
    """Log expression before measurement, where the model has such a layer."""


@dataclass
class Structure:
    """Everything random about a model but the genes' own parameters."""

    adjacency: np.ndarray
    feedback: np.ndarray
    """Edges that close cycles, genes x genes; they act on the previous sweep."""
    confounding: np.ndarray
    """Loadings of the hidden common causes, confounders x genes."""
    mechanism: MechanismKind = "linear"
    hard: bool = False


class StructuralModel(ABC):
    """Draws each gene given its parents.

    eta_j = b_j + f_j(h_pa(j)) + confounders + batch + shift, where h_i is gene i standardised on control cells. A hard
    intervention leaves out f_j and the confounders. Subclasses say how a value is drawn from eta and standardised.
    """

    def __init__(self, structure: Structure, rng: np.random.Generator):
        n_genes = len(structure.adjacency)
        self.hard = structure.hard
        self.order = topological_order(structure.adjacency)
        self.parents = [np.flatnonzero(column) for column in structure.adjacency.T]
        self.mechanisms = [random_mechanism(structure.mechanism, len(parents), rng) for parents in self.parents]
        self.confounding = structure.confounding.astype(float)
        self.feedback = structure.feedback * rng.choice([-_FEEDBACK_WEIGHT, _FEEDBACK_WEIGHT], (n_genes, n_genes))
        self.n_sweeps = _N_SWEEPS if structure.feedback.any() else 1
        self.intercept = np.zeros(n_genes)
        self.weights = self.feedback.copy()

    @abstractmethod
    def _fit_gene(self, gene: int, signal: np.ndarray, confounding: np.ndarray, rng: np.random.Generator) -> None:
        """Set the scale of a mechanism and the constants of its gene from control cells."""

    @abstractmethod
    def _draw(self, gene: int, eta: np.ndarray, size_factor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Values of one gene, a vector of cells."""

    def _clamp(self, gene: int, value: np.ndarray, size_factor: np.ndarray) -> np.ndarray:
        """Values of a gene that is held at `value`."""
        return value

    def _standardise(self, gene: int, values: np.ndarray, size_factor: np.ndarray) -> np.ndarray:
        """What the children see."""
        return values

    def _calibrate(self, rng: np.random.Generator) -> None:
        """Go through the genes once on control cells, so that every mechanism has a set scale."""
        n_genes = len(self.order)
        n_cells = max(_MIN_CALIBRATION, min(_N_CALIBRATION, _CALIBRATION_SIZE // n_genes))
        size_factor = np.ones(n_cells)
        H = np.zeros((n_cells, n_genes), order="F")
        hidden = rng.normal(size=(n_cells, len(self.confounding)))
        for j in self.order:
            parents = H[:, self.parents[j]]
            self._fit_gene(j, self.mechanisms[j](parents), hidden @ self.confounding[:, j], rng)
            eta = self.intercept[j] + self.mechanisms[j](parents) + hidden @ self.confounding[:, j]
            values = self._draw(j, eta, size_factor, rng)
            H[:, j] = self._standardise(j, values, size_factor)
            self.weights[self.parents[j], j] = self.mechanisms[j].slopes(parents)

    def sample(self, interventions: Interventions, cells: Cells, rng: np.random.Generator) -> Draw:
        """Draw cells, each in its context.

        Every gene has a random stream of its own, so an intervention leaves the draws of genes that are not downstream unchanged.
        """
        n_cells, n_genes = len(cells.context), len(self.order)
        values = np.zeros((n_cells, n_genes), order="F")
        H = np.zeros((n_cells, n_genes), order="F")
        hidden = rng.normal(size=(n_cells, len(self.confounding)))
        streams = rng.spawn(n_genes)
        for j in np.tile(self.order, self.n_sweeps):
            natural = self.mechanisms[j](H[:, self.parents[j]]) + hidden @ self.confounding[:, j]
            if self.feedback[:, j].any():
                natural = natural + H @ self.feedback[:, j]
            if self.hard:
                natural[interventions.target[cells.context, j]] = 0.0
            eta = self.intercept[j] + natural + interventions.shift[cells.context, j]
            if cells.offset is not None:
                eta = eta + cells.offset[:, j]
            drawn = self._draw(j, eta, cells.size_factor, streams[j])
            clamp = interventions.clamp[cells.context, j]
            values[:, j] = np.where(np.isnan(clamp), drawn, self._clamp(j, clamp, cells.size_factor))
            H[:, j] = self._standardise(j, values[:, j], cells.size_factor)
        return Draw(values)


class GaussianModel(StructuralModel):
    """x_j = eta_j + noise, rescaled so that every gene has mean 0 and variance 1 in control cells."""

    def __init__(self, structure: Structure, rng: np.random.Generator):
        super().__init__(structure, rng)
        self.noise_sd = np.ones(len(self.order))
        self._calibrate(rng)

    def _fit_gene(self, gene: int, signal: np.ndarray, confounding: np.ndarray, rng: np.random.Generator) -> None:
        scale = (signal + confounding + rng.normal(size=len(signal))).std()
        self.mechanisms[gene].rescale(1 / scale, signal.mean())
        self.confounding[:, gene] /= scale
        self.noise_sd[gene] = 1 / scale

    def _draw(self, gene: int, eta: np.ndarray, size_factor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return eta + self.noise_sd[gene] * rng.normal(size=len(eta))


class CountModel(StructuralModel):
    """x_j ~ NB(s exp(eta_j), theta_j) or Poisson(s exp(eta_j)); children see log1p(x_j / s), standardised on control cells."""

    def __init__(
        self,
        structure: Structure,
        rng: np.random.Generator,
        *,
        mean_count: np.ndarray,
        inverse_dispersion: np.ndarray | None,
    ):
        super().__init__(structure, rng)
        self.log_mean_count = np.log(mean_count)
        self.inverse_dispersion = inverse_dispersion
        self.centre = np.zeros(len(self.order))
        self.scale = np.ones(len(self.order))
        self._calibrate(rng)

    def _fit_gene(self, gene: int, signal: np.ndarray, confounding: np.ndarray, rng: np.random.Generator) -> None:
        if signal.std() > 0:
            self.mechanisms[gene].rescale(_SIGNAL_SD / signal.std(), signal.mean())
            signal = (signal - signal.mean()) * _SIGNAL_SD / signal.std()
        # The parents raise the mean of a convex function; the intercept takes that back, so that the mean is as asked.
        self.intercept[gene] = self.log_mean_count[gene] - np.log(np.exp(signal + confounding).mean())
        counts = self._draw(gene, self.intercept[gene] + signal + confounding, np.ones(len(signal)), rng)
        self.centre[gene] = np.log1p(counts).mean()
        self.scale[gene] = np.log1p(counts).std() or 1.0

    def _draw(self, gene: int, eta: np.ndarray, size_factor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # The bound keeps the counts of deep graphs finite; it lies far outside what control cells reach.
        mean = size_factor * np.exp(
            np.clip(eta - self.intercept[gene], -_MAX_LOG_FOLD, _MAX_LOG_FOLD) + self.intercept[gene]
        )
        if self.inverse_dispersion is not None:
            theta = self.inverse_dispersion[gene]
            mean = mean * rng.gamma(theta, 1 / theta, len(mean))
        return rng.poisson(mean)

    def _clamp(self, gene: int, value: np.ndarray, size_factor: np.ndarray) -> np.ndarray:
        return value * size_factor

    def _standardise(self, gene: int, values: np.ndarray, size_factor: np.ndarray) -> np.ndarray:
        return (np.log1p(values / size_factor) - self.centre[gene]) / self.scale[gene]


class LatentCountModel(GaussianModel):
    """Poisson-lognormal: the graph acts on hidden log expression z = m + latent_sd * y, y Gaussian; x ~ Poisson(s exp(z)).

    Shifts are in units of z, clamped values in units of exp(z).
    """

    def __init__(self, structure: Structure, rng: np.random.Generator, *, mean_count: np.ndarray, latent_sd: float):
        super().__init__(structure, rng)
        self.latent_sd = latent_sd
        self.log_mean = np.log(mean_count) - latent_sd**2 / 2

    def sample(self, interventions: Interventions, cells: Cells, rng: np.random.Generator) -> Draw:
        """Draw cells, each in its context, and measure them."""
        clamp = (np.log(np.maximum(interventions.clamp, _MIN_MEAN)) - self.log_mean) / self.latent_sd
        scaled = Interventions(interventions.shift / self.latent_sd, interventions.target, clamp)
        if cells.offset is not None:
            cells = cells._replace(offset=cells.offset / self.latent_sd)
        latent = self.log_mean + self.latent_sd * super().sample(scaled, cells, rng).values
        rates = cells.size_factor[:, None] * np.exp(np.minimum(latent, _MAX_LOG_MEAN))
        counts = [stream.poisson(rate) for stream, rate in zip(rng.spawn(len(rates.T)), rates.T, strict=True)]
        return Draw(np.stack(counts, axis=1).astype(float), latent)
