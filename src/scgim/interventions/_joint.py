r"""Joint estimation of interventions and generator (GIM paper, section 4): features inform the measured drugs too.

What the features of the *other* drugs say of a drug is the prior of its targets,

.. math:: \pi_{uj} = (1 - \epsilon)\,\Pr(j \in I_u \mid \gamma_u, \text{drugs other than } u) + \epsilon\,\pi

so that the cells of a drug are not counted twice, but for settings of the generator that all drugs share. Estimates and generator
are fitted in turn as long as the evidence of the data rises, at most three times. Since a drug does not enter its own prior, evidence
does not rise for features that tell nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgim._priors import MAX_TARGET_PROB
from scgim.interventions._effects import Estimate, Form, estimate_interventions
from scgim.interventions._generator import FeatureGenerator

if TYPE_CHECKING:
    from scgim._priors import ShiftPrior
    from scgim.interventions._curves import CurveGrid
    from scgim.interventions._passage import Passage

_MIN_DRUGS = 8  # fewer have too little to say of each other: convention
_MAX_ROUNDS = 3  # each costs a fit of the generator: convention, for time
# A drug; of more, sets are too many to go through, and effects are dense rather than sparse: convention.
_MAX_TARGETS = 12.0
_SURPRISE = 0.1  # share of the prior that features do not touch: a drug may be unlike all others: convention
_MIN_GAIN = 2.0  # nats that features must bring: a factor of seven; convention
_USUAL_LIMITS = (1e-4, MAX_TARGET_PROB)  # of the mean probability of a target, as of the fitted prior
_LIMITS = (1e-5, 1 - 1e-2)  # of what features may say beforehand: cells can overrule them either way


@dataclass(frozen=True)
class Screen:
    """What is known of each treated context, for :func:`estimate_jointly`.

    Parameters
    ----------
    shift, information
        Estimates of direct effects and their precision, both (K, d).
    group, log_dosage
        Perturbation and log dosage of each context, both (K,).
    features
        Features of the perturbations (U, p); None if there are none.
    curves
        Dose-response curves to choose from.
    log_dosages
        Smallest and largest log dosage of the screen.
    passage
        What reaches genes through their parents; None if mechanisms say it all.
    member
        Level of the effect modifier of each context as 0/1 (K, L); None if effects are the same in all.
    """

    shift: Tensor
    information: Tensor
    group: Tensor
    log_dosage: Tensor
    features: Tensor | None
    curves: CurveGrid
    log_dosages: tuple[float, float]
    passage: Passage | None = None
    member: Tensor | None = None

    def estimate(self, prior: ShiftPrior, form: Form | None = None) -> Estimate:
        """Interventions under a prior, and of a form, or of that which the evidence is for."""
        of_contexts = self.shift, self.information, self.group, self.log_dosage
        return estimate_interventions(*of_contexts, self.curves, prior, self.passage, self.member, form)


def estimate_jointly(screen: Screen, prior: ShiftPrior) -> Estimate:
    """Interventions of the measured drugs and the prior that their features give, as long as the evidence rises.

    What there is beside direct effects is chosen without the features, unless they leave a programme with too few genes.
    """
    best = screen.estimate(prior)
    if screen.features is None or len(screen.features) < _MIN_DRUGS:
        return best
    if float(best.interventions.target_probs.sum(1).mean()) > _MAX_TARGETS:
        return best
    for _ in range(_MAX_ROUNDS):
        informed = informed_prior(screen, best, prior)
        trial = screen.estimate(informed, best.form)
        if trial.evidence < best.evidence + _MIN_GAIN:
            break
        best = trial
    return best


def informed_prior(screen: Screen, found: Estimate, given: ShiftPrior) -> ShiftPrior:
    """Prior of each drug's targets from the features of the others; what is known beforehand stays."""
    generator = FeatureGenerator(screen.features, found.interventions, screen.curves, screen.log_dosages)
    usual = float(found.interventions.target_probs.mean().clamp(*_USUAL_LIMITS))
    probs = (1 - _SURPRISE) * generator.left_out().target_probs + _SURPRISE * usual
    odds = torch.logit(probs.clamp(*_LIMITS))
    if given.known is not None:
        odds = torch.where(given.known.isnan(), odds, given.known)
    return replace(found.prior, known=odds)
