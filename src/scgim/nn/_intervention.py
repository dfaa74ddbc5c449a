r"""Direct effects of perturbations: Hill curves in dose, and their spike-and-slab prior.

.. math:: \psi_j(u, c) = E_{uj} \frac{c^{n_{uj}}}{EC_{50,uj}^{n_{uj}} + c^{n_{uj}}}

for perturbation u, gene j and dosage c; zero in controls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def hill_curve(log_dosage: Tensor | float, log_ec50: Tensor, exponent: Tensor) -> Tensor:
    """c^n / (EC50^n + c^n), between 0 and 1; 0 where `log_dosage` is -inf."""
    return torch.sigmoid(exponent * (log_dosage - log_ec50))


def shift_log_prior(shift: Tensor, group: Tensor, target_prob: Tensor, spike_sd: Tensor, slab_sd: Tensor) -> Tensor:
    """Log prior of the direct effects, the target indicators summed out.

    Parameters
    ----------
    shift
        Direct effect in each context, shape (K, d).
    group
        Perturbation of each context, shape (K,).
    target_prob
        Prior probability that a gene is a target, scalar or shape (U, d).
    spike_sd, slab_sd
        Spread of the effects on other genes and on targets.

    Returns
    -------
    Sum over perturbations and genes of the log of both cases; the doses of a perturbation share their indicator.
    """
    n_groups = int(group.max()) + 1
    off, on = (-0.5 * (shift / sd).square() - sd.log() for sd in (spike_sd, slab_sd))
    off, on = (shift.new_zeros(n_groups, shift.shape[1]).index_add(0, group, value) for value in (off, on))
    return torch.logaddexp(off + torch.log1p(-target_prob), on + target_prob.log()).sum()


@dataclass(frozen=True)
class Interventions:
    """Distribution over direct targets and effects, for Q drugs and d genes; every tensor is (Q, d).

    Parameters
    ----------
    target_probs
        Probability that the drug acts on the gene directly.
    emax
        Mean of the largest effect (log fold change given the parents) if it does.
    emax_sd
        Standard deviation of that effect.
    log_ec50
        Log of the dosage of half the effect.
    log_ec50_sd
        Standard deviation of that.
    exponent
        Hill exponent.
    background
        What perturbations share because they act through unmeasured regulators (:mod:`scgim.nn._programmes`), at full
        height; None for nothing.
    background_log_ec50, background_exponent
        Its dose-response curve; None for that of the direct effect.
    """

    target_probs: Tensor
    emax: Tensor
    emax_sd: Tensor
    log_ec50: Tensor
    log_ec50_sd: Tensor
    exponent: Tensor
    background: Tensor = None  # type: ignore[assignment]  # these are set below
    background_log_ec50: Tensor = None  # type: ignore[assignment]
    background_exponent: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.background is None:
            object.__setattr__(self, "background", torch.zeros_like(self.emax))
        if self.background_log_ec50 is None:
            object.__setattr__(self, "background_log_ec50", self.log_ec50)
            object.__setattr__(self, "background_exponent", self.exponent)

    def rows(self, index: Tensor) -> Interventions:
        """Chosen drugs."""
        return Interventions(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @staticmethod
    def stack(parts: list[Interventions]) -> Interventions:
        """Drugs of several distributions, one after the other."""
        names = Interventions.__dataclass_fields__
        return Interventions(*(torch.cat([getattr(part, name).double() for part in parts]) for name in names))

    def curve(self, log_dosage: Tensor) -> Tensor:
        """Share of the largest effect at each drug's log dosage (Q,), shape (Q, d)."""
        return hill_curve(log_dosage.reshape(-1, 1), self.log_ec50, self.exponent)

    def direct(self, log_dosage: Tensor) -> Tensor:
        """Expected effect on targets, whether target or not summed out, (Q, d)."""
        return self.target_probs * self.emax * self.curve(log_dosage)

    def shared(self, log_dosage: Tensor) -> Tensor:
        """What perturbations share at each drug's log dosage, (Q, d)."""
        curve = hill_curve(log_dosage.reshape(-1, 1), self.background_log_ec50, self.background_exponent)
        return self.background * curve

    def mean(self, log_dosage: Tensor) -> Tensor:
        """Expected effect given the parents, direct and shared, (Q, d)."""
        return self.direct(log_dosage) + self.shared(log_dosage)

    def sd(self, log_dosage: Tensor) -> Tensor:
        """Standard deviation of the direct effect, whether target or not summed out, (Q, d)."""
        second = self.target_probs * (self.emax.square() + self.emax_sd.square())
        variance = second - (self.target_probs * self.emax).square()
        return variance.clamp_min(0.0).sqrt() * self.curve(log_dosage)

    def sample(self, log_dosage: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw targets and effects anew for each of n cells: effects and 0/1 targets, both (Q, n, d)."""
        shape = (len(self.emax), n, self.emax.shape[1])
        targets = torch.rand(shape, generator=generator, dtype=self.emax.dtype) < self.target_probs[:, None]
        noise = torch.randn(shape, generator=generator, dtype=self.emax.dtype)
        effects = targets * (self.emax[:, None] + self.emax_sd[:, None] * noise) * self.curve(log_dosage)[:, None]
        return effects + self.shared(log_dosage)[:, None], targets
