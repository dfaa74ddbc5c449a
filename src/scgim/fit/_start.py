"""Where the descent starts: the linear Gaussian fit of the search, on the scale of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgim.nn._mechanism import linear_part
from scgim.structure._search import regressions

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.module import GIMModule
    from scgim.structure._search import StructureResult
    from scgim.structure._states import HiddenStates
    from scgim.structure._statistics import ContextStatistics

# Of weights from log1p to the log mean, for means from a quarter up: weights of rarer genes start smaller.
_MAX_STRETCH = 5.0
_MIN_MEAN, _TINY = 1e-3, 1e-12  # guards of quotients
_LEAST_LEFT, _MAX_LOG_FOLD = 0.05, 10.0  # of the mean that an effect leaves, and the largest effect, to start from
_SURE = 1e-3  # probabilities of targets to start from must not be 0 or 1, which have no slope


@torch.no_grad()
def start_from(
    module: GIMModule, statistics: ContextStatistics, result: StructureResult, states: HiddenStates | None = None
) -> None:
    """Weights, direct effects and hidden states of the linear Gaussian fit, carried to the scale of the log mean."""
    module.mechanism.set_graph(result.adjacency)
    observed = statistics
    if states is not None:
        statistics = states.taken_out(statistics)
    d, device = statistics.n_genes, module.device
    fit = regressions(statistics, result, module.intervention)
    if module.likelihood == "normal":
        stretch = torch.ones(d, dtype=torch.float64)
        module.log_scale.copy_(-fit.noise_var.log())
    else:
        # log1p(x) moves by less than log(mean) does where counts are small
        mean = module.intercept_loc.double().exp().cpu()
        stretch = module.spread.double().cpu() * ((1 + mean) / mean.clamp_min(_MIN_MEAN)).clamp_max(_MAX_STRETCH)
    module.states.write(states, observed, stretch)
    linear = linear_part(module.mechanism)
    weight = torch.zeros(d, d, dtype=torch.float64)
    n = statistics.n_basis
    for j in range(d):
        parents = np.flatnonzero(result.adjacency[:, j])
        by_function = fit.weights[j, : len(parents) * n].reshape(len(parents), n)
        weight[parents, j] = by_function[:, :2].sum(1) * stretch[j]  # the slope at zero
    linear.weight.copy_(linear.of_sources(weight.to(linear.weight)))
    group = statistics.group
    probs = torch.zeros(d, len(group), dtype=torch.float64)
    probs[:, group >= 0] = fit.target_probs[:, group[group >= 0]]
    module.shift[statistics.observed] = _log_fold(module, (probs * fit.residuals).T).to(module.shift)
    if module.intervention == "hard":
        module.target_logits.copy_(torch.logit(fit.target_probs.T.clamp(_SURE, 1 - _SURE)))
    scale = float(stretch.median()) ** 2
    prior = result.prior
    module.knowledge.prior.copy_(torch.tensor([prior.target_prob, prior.slab_var * scale, prior.spike_var * scale]))
    module.knowledge.proportional.fill_(prior.proportional)
    module.to(device)


def _log_fold(module: GIMModule, moved: Tensor) -> Tensor:
    """Log fold changes that move the features of genes by so many spreads, (K, d); of continuous values, the moves themselves."""
    if module.likelihood == "normal":
        return moved
    mean = module.intercept_loc.double().exp().cpu()
    treated = torch.expm1(torch.log1p(mean) + moved * module.spread.double().cpu())
    # log1p has no smaller values, and effects that are fitted to it can go beyond
    return (treated.clamp_min(_LEAST_LEFT * mean) / mean.clamp_min(_TINY)).log().clamp_max(_MAX_LOG_FOLD)
