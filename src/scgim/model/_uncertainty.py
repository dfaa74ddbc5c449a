"""How sure the model is of a mean: intervals from draws of whole parameter sets."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgim._constants import REGISTRY
from scgim.model._arms import ArmsMixin
from scgim.model._prediction import _CHUNK_VALUES
from scgim.nn._doubt import estimate_doubt
from scgim.nn._draws import draw_mechanisms, without_sampling_noise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import ArrayLike
    from torch import Tensor

    from scgim.model._arms import Arms
    from scgim.module import GIMModule
    from scgim.nn._doubt import Doubt

_MIN_MEAN = 1e-6
_BLOCK = 500  # contexts whose draws are held in memory together
_N_CONTROLS = 2000  # drawn to find the means of controls


class PosteriorMeans(NamedTuple):
    """Draws of what is true of each arm; every tensor is (draws, arms, d)."""

    mean: Tensor
    """Mean over cells: counts per unit of size factor, or continuous values."""
    effect: Tensor
    """Change of the mean against control cells: natural-log fold change, or control standard deviations."""
    direct: Tensor
    """Direct effect."""


class UncertaintyMixin(ArmsMixin):
    """`predict_mean` of :class:`scgim.model.GIM`."""

    _doubt: tuple[Any, Doubt] | None = None

    def predict_mean(
        self,
        drug_embedding: Any,
        dosage: float | ArrayLike | None = None,
        *,
        level: float = 0.9,
        n_draws: int = 100,
        n_samples: int = 100,
        covariates: pd.DataFrame | Mapping | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Mean expression and log fold changes under drugs, measured or not, with intervals.

        Each draw is one world that the data allow: targets, effects and dose-response curves of the drugs, weights of
        the network and baselines of the genes. Intervals hold the given share of the draws. They say how well the mean
        is known, not how cells spread around it, and are wider for drugs whose features are far from those measured.
        The graph is the fitted one in all draws: what a wrong edge would do is not in the intervals.

        Parameters
        ----------
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`, or combinations as in :meth:`predict_combination`.
        level
            Share of the draws within the intervals.
        n_draws
            Draws.
        n_samples
            Cells that a mean is taken over in each draw. The noise that few cells bring is removed from the intervals.
        covariates
            Values of the covariates for all cells, as in :meth:`predict`; None for those of control cells.
        seed
            Seed of the draws.

        Returns
        -------
        Contexts x genes: the mean in `X`, counts per unit of size factor (for `likelihood="normal"`, in the units of the
        data), `perturbation` and `dosage` in `obs`. Layers `"log_fold_change"` (direct and propagated, against control
        cells, natural logarithm) and `"direct_effect"` (given the parents); for `"normal"` both in control standard
        deviations. Bounds of the intervals in the layers `"lower"` and `"upper"`, `"log_fold_change_lower"`, and so on.

        Raises
        ------
        ValueError
            Drugs, dosages or covariates cannot be used, or `level` does not lie between 0 and 1.

        Examples
        --------
        >>> means = model.predict_mean(new_drug_features, dosage=1.0)
        >>> means.to_df("log_fold_change_lower")
        """
        self._check_if_trained(warn=False)
        if not 0 < level < 1:
            raise ValueError(f"`level` must lie between 0 and 1, found {level}.")
        arms = self._arms(drug_embedding, dosage)
        bounds = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
        blocks = []
        for draws in self._posterior_means(arms, n_draws, n_samples, covariates, seed):
            quantiles = [torch.quantile(values, bounds, dim=0) for values in draws]
            blocks.append([(values.mean(0), *q) for values, q in zip(draws, quantiles, strict=True)])
        layers: dict[str, np.ndarray] = {}
        for i, name in enumerate(("", "log_fold_change", "direct_effect")):
            keys = (name, *(f"{name}_{side}".lstrip("_") for side in ("lower", "upper")))
            values = (torch.cat(parts).numpy() for parts in zip(*(block[i] for block in blocks), strict=True))
            layers.update(zip(keys, values, strict=True))
        names = pd.Categorical(arms.names, categories=list(dict.fromkeys(arms.names)))
        obs = pd.DataFrame({REGISTRY.PERTURBATION: names, REGISTRY.DOSAGE: arms.dosages})
        obs.index = obs.index.astype(str)
        return AnnData(layers.pop(""), obs=obs, var=pd.DataFrame(index=self.gene_names_), layers=layers)

    def _posterior_means(
        self, arms: Arms, n_draws: int, n_samples: int, covariates: Any, seed: int
    ) -> Iterator[PosteriorMeans]:
        """Means and effects in each draw of the parameters, for a block of arms at a time."""
        for name, n in (("n_draws", n_draws), ("n_samples", n_samples)):
            if n < 2:
                raise ValueError(f"`{name}` must be at least 2, found {n}.")
        generator = torch.Generator().manual_seed(seed)
        doubt = self._doubt_of_features() if arms.is_new.any() else None
        baseline_sd = self._baseline_sd(_N_CONTROLS, generator)
        for start in range(0, len(arms), _BLOCK):
            block = arms.take(range(start, min(start + _BLOCK, len(arms))))
            draws = [
                self._draw_means(block, doubt, baseline_sd, n_samples, covariates, generator) for _ in range(n_draws)
            ]
            yield self._contrasts(*(torch.stack(values) for values in zip(*draws, strict=True)))

    def _draw_means(
        self,
        arms: Arms,
        doubt: Doubt | None,
        baseline_sd: Tensor,
        n_samples: int,
        covariates: Any,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One draw: means over cells, their variances, and direct effects; in the first two, the last arm is the control."""
        module, d = copy.deepcopy(self.module), len(self.gene_names_)
        draw_mechanisms(module.mechanism, self.module.mechanism, self.module.weight_sd, generator)
        error = baseline_sd * torch.randn(d, generator=generator, dtype=torch.float64)
        module.intercept.data += error.to(module.intercept)
        effects, targets = arms.draw(generator, doubt, error)
        shift = torch.cat([effects, effects.new_zeros(1, d)])
        targets = torch.cat([targets, targets.new_zeros(1, d)])
        return (*self._means_of(module, shift, targets, n_samples, covariates, generator), effects)

    def _doubt_of_features(self) -> Doubt:
        """How far predictions from features go astray; found once for each fit."""
        generator = self._drug_generator()
        if self._doubt is None or self._doubt[0] is not generator:
            self._doubt = generator, estimate_doubt(*self._generator_inputs())
        return self._doubt[1]

    def _contrasts(self, means: Tensor, noise: Tensor, direct: Tensor) -> PosteriorMeans:
        """Means and changes against the last arm, freed of the noise of finite numbers of cells."""
        if self._likelihood == "normal":
            spread = self.module.spread.double().cpu()
            mean = without_sampling_noise(means, noise)[:, :-1]
            scaled, noise = means / spread, noise / spread.square()
        else:
            scaled, noise = (means + _MIN_MEAN).log(), noise / (means + _MIN_MEAN).square()
            mean = without_sampling_noise(scaled, noise)[:, :-1].exp()
        effect = without_sampling_noise(scaled[:, :-1] - scaled[:, -1:], noise[:, :-1] + noise[:, -1:])
        return PosteriorMeans(mean, effect, direct)

    @torch.no_grad()
    def _means_of(
        self, module: GIMModule, shift: Tensor, targets: Tensor, n: int, covariates: Any, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mean over n cells of each row of direct effects, and its variance, both (rows, d)."""
        design, log_size = self._background(n, covariates, None, generator)
        step = max(1, _CHUNK_VALUES // (n * shift.shape[1]))
        draws = torch.Generator(module.device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
        means, variances = [], []
        for rows in torch.arange(len(shift)).split(step):
            k = len(rows)
            size = log_size.repeat(k)[:, None].to(module.device)
            _, expected = module.sample_cells(
                shift[rows].repeat_interleave(n, 0).float().to(module.device),
                targets[rows].repeat_interleave(n, 0).to(module.device),
                design.repeat(k, 1).to(module.device),
                size,
                draws,
            )
            rate = (expected if self._likelihood == "normal" else expected * torch.exp(-size)).double().cpu()
            rate = rate.reshape(k, n, -1)
            means.append(rate.mean(1))
            variances.append(rate.var(1) / n)
        return torch.cat(means), torch.cat(variances)

    def _baseline_sd(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard error of the intercepts, shape (d,): by control cells, and by treated ones where genes are no targets."""
        module, d = self.module, len(self.gene_names_)
        spread = torch.exp(-module.log_scale.detach().double().cpu())  # overdispersion, or the variance itself
        noise = spread
        if self._likelihood != "normal":
            nothing = torch.zeros(1, d, dtype=torch.float64)
            mean, _ = self._means_of(module, nothing, nothing.bool(), n, None, generator)
            overdispersed = self._likelihood == "nb" or module.measurement == "latent"
            noise = 1 / mean[0].clamp_min(_MIN_MEAN) + spread * overdispersed
        n_cells = torch.full((d,), float(len(self.control_pool_["log_size"])), dtype=torch.float64)
        if module.measurement != "latent":
            n_cells += self._cells_without_effect(noise)
        return (noise / n_cells).sqrt()

    def _cells_without_effect(self, noise: Tensor) -> Tensor:
        """Number of control cells that the treated cells are worth, where genes are no targets, shape (d,)."""
        treated = torch.tensor(self.n_cells_.reindex(self.perturbations).to_numpy(dtype=np.float64))[:, None]
        n_contexts = torch.bincount(self.module.group.cpu()[self.module.treated.cpu()])[:, None]
        spike = float(self.module.prior[2])
        # the small effects that genes have without being targets do not average out within a context
        worth = treated / (1 + treated / n_contexts * spike / noise)
        return ((1 - self.module.interventions().target_probs) * worth).sum(0)
