r"""In which levels of the effect modifier drugs act, as their features say: drugs of a class may act in one cell line only.

What a drug does in level l is its activity there, :math:`a_l`, times what it does where it acts. The activities of measured drugs are
regressed on their features, which is a matter of a few numbers a drug, where effects are thousands; what a new drug does where it acts is
then learned from measured drugs where these act. Features are trusted as far as they predict the activities of drugs left out; else
activities are the mean of the measured drugs. Where effects do not differ between levels they are 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from scgim.interventions._generator import DrugKernel, fit_kernel
from scgim.interventions._trust import trust

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.interventions._generator import KernelFit
    from scgim.interventions._interventions import Interventions
    from scgim.interventions._levels import LevelEffects

_HAS_TARGETS = 0.5  # expected number of targets of a drug that says where it acts: convention
_MIN_DRUGS = 4  # fewer say nothing of others: convention
_LEAST = 0.1  # that what drugs do where they act can be told from what they do where they hardly do: convention
_TINY = 1e-12  # guard of quotients


class LevelActivity:
    """Activity of drugs in each of L levels.

    Parameters
    ----------
    features
        Features of the measured drugs, shape (U, p).
    levels
        What these do in each level.
    """

    def __init__(self, features: Tensor, levels: LevelEffects):
        self.levels, known = levels, levels.known
        effect = levels.target_probs * levels.emax * known[..., None]
        size = effect.square().sum(2)  # (U, L)
        self.effect = torch.einsum("ul,uld->ud", size / size.sum(1, keepdim=True).clamp_min(_TINY), effect)
        power = self.effect.square().sum(1)
        activity = torch.einsum("uld,ud->ul", effect, self.effect) / power.clamp_min(_TINY)[:, None]
        measured = known.any(0)
        chosen = (levels.target_probs.amax(1).sum(1) > _HAS_TARGETS) & (known | ~measured).all(1)
        rows = torch.nonzero(chosen)[:, 0]
        activity = torch.where(measured, activity, 1.0)
        self.mean = activity[rows].mean(0) if len(rows) else torch.ones_like(activity[0])
        # of drugs that do not act in a level nothing else is known, but for which they are
        self.measured = torch.where(chosen[:, None], activity, self.mean).clamp(_LEAST, 1.0)
        self.share = 0.0
        self.fit: KernelFit | None = None
        self.left_out = self.mean.expand_as(activity).clone()
        if len(rows) >= _MIN_DRUGS and (activity[rows] - 1).abs().max() > _TINY:
            self._learn(features, activity, rows, power)

    def _learn(self, features: Tensor, activity: Tensor, rows: Tensor, power: Tensor) -> None:
        """Regress the activities of some drugs on their features, and find how far these are trusted."""
        self.kernel = DrugKernel(features[rows].double())
        own = activity[rows]
        self.fit = fit = fit_kernel(self.kernel, own - self.mean)
        told = fit.left_out()[0] + self.mean
        gain = ((own - self.mean).square() - (own - told).square()).sum(1) * power[rows]
        self.share = trust(gain, torch.arange(len(rows)))
        self.left_out = self(features).clone()
        self.left_out[rows] = (self.mean + self.share * (told - self.mean)).clamp(0.0, 1.0)

    def __call__(self, features: Tensor) -> Tensor:
        """Activity of drugs with the given features (Q, p), between 0 and 1, (Q, L)."""
        mean = self.mean.expand(len(features), -1)
        if self.fit is None or not self.share:
            return mean.clamp(0.0, 1.0)
        told = self.fit.predict(self.kernel, self.kernel.standardise(features.double()))[0]
        return (mean + self.share * told).clamp(0.0, 1.0)

    def where_active(self, found: Interventions) -> Interventions:
        """What the measured drugs do where they act."""
        probs = (self.levels.target_probs * self.levels.known[..., None]).amax(1)
        emax = torch.where(probs > _TINY, self.effect / probs.clamp_min(_TINY), found.emax)
        return replace(found, target_probs=probs, emax=emax)
