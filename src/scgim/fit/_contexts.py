"""What measured contexts need beside, so that cells drawn for them have the means of the observed ones.

Effects are estimated given the observed values of a gene's parents. Drawn cells have drawn parents, and where mechanisms are not quite
right, or hold for controls but not for treated cells, the means of drawn cells drift along the network. For contexts that were measured
it is known by how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgim.fit._baselines import HALF_A_COUNT, MAX_STEP, N_ERRORS, N_ROUNDS, draw_effects
from scgim.nn._likelihood import parent_features

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_N_VALUES, _BLOCK_VALUES = (
    40_000_000,
    8_000_000,
)  # drawn in all, unless contexts are many, and at a time: for time and memory
_N_CELLS = (20, 400)  # of a context, at least and at most: conventions
_NEAR = 0.02  # in log means, which ends it: convention
_MAX_DRIFT = 5.0  # e-folds; what would need more is no drift


@torch.no_grad()
def match_contexts(module: GIMModule, loader: BatchLoader) -> Tensor:
    """Change of the log mean of each gene in each treated context by which drawn cells get the means of observed ones, (K, d).

    Differences are shrunk by what chance explains, to none within two standard errors (James and Stein's positive part). Zero for the contexts of controls, and for likelihoods
    whose means do not drift.
    """
    drift = torch.zeros(len(module.group), len(module.centre), dtype=torch.float64)
    if module.likelihood == "normal" or module.measurement == "latent":
        return drift
    context = loader.context.cpu()
    treated = torch.nonzero(module.treated.cpu())[:, 0]
    n = int(min(max(_N_VALUES / (drift.shape[1] * max(1, len(treated))), _N_CELLS[0]), _N_CELLS[1]))
    order = torch.randperm(len(context), generator=torch.Generator().manual_seed(0))
    rows = [order[context[order] == k][:n] for k in treated.tolist()]
    known = [(k, own) for k, own in zip(treated.tolist(), rows, strict=True) if len(own)]
    step = max(1, _BLOCK_VALUES // (n * drift.shape[1]))
    for start in range(0, len(known), step):
        codes, cells = zip(*known[start : start + step], strict=True)
        drift[list(codes)] = _drift(module, loader, list(cells))
    return drift


def _drift(module: GIMModule, loader: BatchLoader, rows: list[Tensor]) -> Tensor:
    """The same for contexts of which some cells are given, (G, d)."""
    # of few cells each is drawn several times
    n_own = torch.tensor([len(own) for own in rows], dtype=torch.float64)
    rows = [own.repeat(-(-_N_CELLS[0] // len(own))) for own in rows]
    context = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(own) for own in rows]))
    n = torch.bincount(context).double()[:, None]
    cells = {name: value.to(module.device) for name, value in loader.take(torch.cat(rows)).items()}
    log_size = cells["log_size"]

    def mean_of(values: Tensor) -> Tensor:
        return n.new_zeros(len(n), values.shape[1]).index_add_(0, context, values.double().cpu()) / n

    depth, mean = mean_of(log_size.exp()), mean_of(cells["x"])
    variance = (mean_of(cells["x"].square()) - mean.square()).clamp_min(0.0)
    enough = HALF_A_COUNT / n_own[:, None]
    observed = torch.log(mean / depth + enough)
    # of the observed cells, and of those that are drawn
    error = ((variance + enough) * (1 / n_own[:, None] + 1 / n)).sqrt()
    tolerance = N_ERRORS * error / (mean + enough)
    shift, targets = draw_effects(module, cells["context"].cpu())
    base = module.intercept + cells["covariates"] @ module.covariate_effect + module.baseline_offset + shift
    drift, h = torch.zeros_like(mean), torch.zeros_like(shift)
    rng = torch.Generator(module.device).manual_seed(0)
    for layer in module.layers():
        genes = torch.tensor(layer)
        wanted = None
        for _ in range(N_ROUNDS):
            own = base[:, genes] + drift[:, genes].to(base)[context]
            values, expected, _ = module.draw_genes(genes.to(module.device), own, h, targets, log_size, rng)
            features = parent_features(values, log_size, module.likelihood)
            h[:, genes] = (features - module.centre[genes]) / module.spread[genes]
            drawn = torch.log(mean_of(expected) / depth + enough)
            if wanted is None:
                off = observed[:, genes] - drawn
                wanted = drawn + off * (1 - (tolerance[:, genes] / off).square()).clamp_min(0.0).nan_to_num(0.0)
            step = wanted - drawn
            if step.abs().max() < _NEAR:
                break
            drift[:, genes] = (drift[:, genes] + step.clamp(-MAX_STEP, MAX_STEP)).clamp(-_MAX_DRIFT, _MAX_DRIFT)
    return drift
