"""Prior of the direct effects as a Pyro distribution."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from scgim._priors import shift_log_prior


class SpikeAndSlab(TorchDistribution):
    """Direct effects of all contexts: shared target indicators, summed out (:func:`shift_log_prior`).

    Parameters
    ----------
    group
        Perturbation of each context, -1 for controls, which have no effects, shape (K,).
    n_genes
        Number of genes d.
    target_prob, spike_sd, slab_sd
        See :func:`shift_log_prior`.
    """

    arg_constraints: dict = {}
    support = dist.constraints.independent(dist.constraints.real, 2)

    def __init__(self, group: Tensor, n_genes: int, target_prob: Tensor, spike_sd: Tensor, slab_sd: Tensor):
        self.group, self.target_prob, self.spike_sd, self.slab_sd = group, target_prob, spike_sd, slab_sd
        super().__init__(event_shape=torch.Size([len(group), n_genes]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        treated = self.group >= 0
        return shift_log_prior(value[treated], self.group[treated], self.target_prob, self.spike_sd, self.slab_sd)

    def sample(self, sample_shape: torch.Size | tuple = ()) -> Tensor:
        n_groups, d = int(self.group.max()) + 1, self.event_shape[1]
        on = torch.rand(*sample_shape, n_groups, d, device=self.group.device) < self.target_prob
        sd = torch.where(on, self.slab_sd, self.spike_sd)[..., self.group, :] * (self.group >= 0)[:, None]
        return sd * torch.randn_like(sd)
