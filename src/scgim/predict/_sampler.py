"""The one place where cells are drawn: predictions, what-if, means and total effects all go through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from scgim.nn._likelihood import CommonNoise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

    from scgim.module import GIMModule
    from scgim.predict._arms import Arms
    from scgim.predict._covariates import ScaledDesign

_CHUNK_VALUES = 8_000_000  # values drawn at a time: with all that is drawn for them, some 300 MB
_N_VALUES = 3e7  # drawn where no number of cells is asked for: half a minute
_SEEDS = 2**31  # seeds that generators draw for each other


def random_generator(seed: int | None) -> torch.Generator:
    """Generator of a seed, or one seeded by torch's global one, so that `scvi.settings.seed` makes it reproducible."""
    return torch.Generator().manual_seed(some_seed(seed))


def some_seed(seed: int | None) -> int:
    """A seed, or a new one from torch's global generator where it is None."""
    return int(torch.randint(_SEEDS, ())) if seed is None else seed


def _positive(size_factor: Any, n: int) -> np.ndarray:
    """Size factors of n cells, one or one each; ValueError where they cannot be."""
    try:
        values = np.asarray(size_factor, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if len(values) not in (1, n):
        raise ValueError(f"`size_factor` must be one or {n} positive numbers, found {len(values)} values.")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"`size_factor` must be one or {n} positive numbers, found {size_factor!r}.")
    return values


def enough_samples(n_values: int, least: int, most: int) -> int:
    """Cells drawn of each row where no number is asked for; `n_values` are those of one cell of every row."""
    return int(np.clip(_N_VALUES / max(1, n_values), least, most))


@dataclass(frozen=True)
class Backdrop:
    """What cells have beside their drug: covariates (n, Q) and log size factors (n,)."""

    covariates: Tensor
    log_size: Tensor

    def __len__(self) -> int:
        return len(self.log_size)

    def rows(self, index: slice) -> Backdrop:
        """Some of the cells."""
        return Backdrop(self.covariates[index], self.log_size[index])

    def repeat(self, k: int) -> Backdrop:
        """All cells, k times one after the other."""
        return Backdrop(self.covariates.repeat(k, 1), self.log_size.repeat(k))


@dataclass(frozen=True)
class Sampler:
    """Draws cells of a fitted module.

    Parameters
    ----------
    module
        The module.
    genes
        Names of its genes.
    pool
        `covariates` and `log_size` of control cells.
    design
        Encoding of covariates.
    of_pool
        Whether baselines are those of the pool alone, and not of the training cells.
    """

    module: GIMModule
    genes: list[str]
    pool: Mapping[str, NDArray]
    design: ScaledDesign
    of_pool: bool = False

    @property
    def is_continuous(self) -> bool:
        """Whether values are continuous, so that size factors have no meaning."""
        return self.module.likelihood == "normal"

    def backdrop(
        self,
        n: int,
        rng: torch.Generator,
        covariates: pd.DataFrame | Mapping | None = None,
        size_factor: float | ArrayLike | None = None,
    ) -> Backdrop:
        """Covariates and size factors of n cells: those of control cells (of the level that `covariates` name), where they are not given."""
        rows = np.arange(len(self.pool["log_size"]))
        chosen = self.design.level_named(covariates)
        if chosen is not None:
            rows = np.flatnonzero(self.design.level(self.pool["covariates"]) == chosen)
        pick = rows[torch.randint(len(rows), (n,), generator=rng).numpy()]
        design, log_size = self.pool["covariates"][pick], self.pool["log_size"][pick]
        if covariates is not None:
            design = self.design.with_covariates(design, covariates)
        if size_factor is not None:
            log_size = np.broadcast_to(np.log(_positive(size_factor, n)), n).astype(np.float32)
        return Backdrop(torch.as_tensor(design), torch.as_tensor(np.ascontiguousarray(log_size)))

    def cells(
        self,
        arms: Arms,
        n_samples: int,
        backdrop: Backdrop,
        rng: torch.Generator,
        *,
        shift: Mapping[int, float] | None = None,
        fixed: Mapping[int, float] | None = None,
    ) -> AnnData:
        """Draw `n_samples` cells of each arm, with `shift` added to effects and genes held at `fixed` (counts: per unit of size factor).

        Returns
        -------
        Cells x genes: values in `X` (CSR for counts), their means given the parents in `layers["expected"]`; `perturbation`, `dosage`,
        for combinations `dosages`, `size_factor`, and the level of the effect modifier, if there is one, in `obs`.
        """
        drawn = list(self._blocks(arms, n_samples, backdrop, rng, shift or {}, fixed or {}))
        values, expected = ([part.numpy() for part in parts] for parts in zip(*drawn, strict=True))
        x = np.concatenate(values) if self.is_continuous else sparse.vstack([*map(sparse.csr_matrix, values)], "csr")
        obs = arms.table(n_samples)
        obs["size_factor"] = np.exp(backdrop.log_size.numpy())
        if self.design.modifier is not None:
            names = np.asarray(self.design.levels)[self._level(backdrop).numpy()]
            obs[self.design.modifier] = pd.Categorical(names, categories=self.design.levels)
        return AnnData(x, obs=obs, var=pd.DataFrame(index=self.genes), layers={"expected": np.concatenate(expected)})

    def _blocks(
        self,
        arms: Arms,
        n: int,
        backdrop: Backdrop,
        rng: torch.Generator,
        shift: Mapping[int, float],
        fixed: Mapping[int, float],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Values and means of the cells of a few arms at a time."""
        step = self._rows_at_once(n)
        for start in range(0, len(arms), step):
            block = arms.take(range(start, min(start + step, len(arms))))
            cells = backdrop.rows(slice(start * n, (start + len(block)) * n))
            effects, targets = (t.flatten(0, 1) for t in block.sample(n, rng, self._level(cells).reshape(-1, n)))
            for gene, value in shift.items():
                effects[:, gene] += value
            unit = torch.ones_like(cells.log_size) if self.is_continuous else cells.log_size.exp()
            held = {gene: (value * unit).to(self.module.device) for gene, value in fixed.items()}
            x, expected = self._draw(effects, targets, cells, self._on_device(rng), held)
            if held and not self.is_continuous:
                x[:, list(held)] = x[:, list(held)].round()
            yield x, expected

    @torch.no_grad()
    def means(
        self,
        shift: Tensor,
        targets: Tensor,
        n: int,
        rng: torch.Generator,
        covariates: pd.DataFrame | Mapping | None = None,
        once: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean per unit of size factor over n cells of each row of direct effects, and its variance, both (rows, d).

        Effects and targets are (rows, L, d), of each level of the effect modifier, or one for all; `once` is :meth:`of_means`, where that is
        at hand.
        """
        cells = self.backdrop(n, rng, covariates)
        draws = torch.Generator(self.module.device).manual_seed(int(torch.randint(_SEEDS, (), generator=rng)))
        level = self._level(cells).clamp_max(shift.shape[1] - 1)
        once = once or self.of_means()
        means, variances = [], []
        for rows in torch.arange(len(shift)).split(self._rows_at_once(n)):
            effects, on = (values[rows][:, level].flatten(0, 1) for values in (shift, targets))
            _, expected = self._draw(effects, on, cells.repeat(len(rows)), draws, **once)
            rate = self._per_unit(expected, cells.repeat(len(rows))).double().reshape(len(rows), n, -1)
            means.append(rate.mean(1))
            variances.append(rate.var(1) / n)
        return torch.cat(means), torch.cat(variances)

    @torch.no_grad()
    def coupled_means(self, n: int, seed: int, covariates: Mapping | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """From direct effects and targets of n cells to the mean of each per unit of size factor, given its parents, all (n, d).

        Cells and draws are the same at each call (common random numbers), so that a difference of two means is one of effects.
        """
        module = self.module
        cells = self._coupled_cells(n, seed, covariates)
        noise = CommonNoise(torch.Generator(module.device).manual_seed(seed))
        once = self.of_means()

        def means(shift: Tensor, targets: Tensor) -> Tensor:
            _, expected = self._draw(shift, targets, cells, noise.again(), **once)
            return self._per_unit(expected, cells).double()

        return means

    def levels_of(self, n: int, seed: int, covariates: Mapping | None = None) -> Tensor:
        """Level of the effect modifier of each cell of :meth:`coupled_means`, 0 without one, (n,)."""
        return self._level(self._coupled_cells(n, seed, covariates))

    def _coupled_cells(self, n: int, seed: int, covariates: Mapping | None) -> Backdrop:
        return self.backdrop(n, torch.Generator().manual_seed(seed), covariates)

    def of_means(self) -> dict[str, Any]:
        """What cells whose means are asked for are drawn with: nothing but their means is needed of genes without children."""
        return {"layers": self.module.layers(), "drawn": self.module.adjacency.bool().any(1)}

    def _draw(
        self,
        shift: Tensor,
        targets: Tensor,
        cells: Backdrop,
        draws: torch.Generator | CommonNoise,
        fixed: dict | None = None,
        **once: Any,
    ) -> tuple[Tensor, Tensor]:
        """Values and means of cells with given effects and targets, both (n, d)."""
        device = self.module.device
        x, expected = self.module.sample_cells(
            shift.float().to(device),
            targets.to(device),
            cells.covariates.to(device),
            cells.log_size[:, None].to(device),
            draws,
            fixed,
            **once,
        )
        return x.cpu(), expected.cpu()

    def _level(self, cells: Backdrop) -> Tensor:
        """Level of the effect modifier of each cell, 0 without one."""
        return torch.as_tensor(self.design.level(cells.covariates.numpy()))

    def level_shares(self, covariates: pd.DataFrame | Mapping | None = None) -> Tensor:
        """Share of each level of the effect modifier among control cells, or 1 for that which covariates name, (L,)."""
        n_levels = max(1, len(self.design.levels))
        chosen = self.design.level_named(covariates)
        level = self.design.level(self.pool["covariates"]) if chosen is None else np.array([chosen])
        return torch.as_tensor(np.bincount(level, minlength=n_levels) / len(level))

    def _per_unit(self, expected: Tensor, cells: Backdrop) -> Tensor:
        return expected if self.is_continuous else expected * torch.exp(-cells.log_size[:, None])

    def _on_device(self, rng: torch.Generator) -> torch.Generator:
        """A generator on the device of the module that goes on from `rng`."""
        if self.module.device.type == "cpu":
            return rng
        return torch.Generator(self.module.device).manual_seed(int(torch.randint(_SEEDS, (), generator=rng)))

    def _rows_at_once(self, n: int) -> int:
        return max(1, _CHUNK_VALUES // (n * len(self.genes)))
