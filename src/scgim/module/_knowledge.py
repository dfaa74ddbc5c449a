"""What is known of interventions and edges, beforehand and after the fit: what the module saves beside its parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgim._priors import ShiftPrior, usual_edge_log_odds
from scgim.interventions._curves import NO_DOSE, CurveGrid, dose_grid, on_grid
from scgim.interventions._interventions import DIRECT_FIELDS, Interventions
from scgim.interventions._levels import LEVEL_FIELDS, LevelEffects, completed
from scgim.interventions._stacking import NO_PRECISION, Responses
from scgim.interventions._transfer import Transfer

if TYPE_CHECKING:
    import numpy as np

_TINY, _NOTHING_SEEN = 1e-12, 1e6  # guard of a quotient, and the variance of what was not seen
_UNFITTED_PRIOR = (0.05, 1.0, 1e-3)  # until the search has fitted it, so that it enters nothing


class Knowledge(nn.Module):
    """Buffers for K contexts, U perturbations and d genes; what is read from them is on the CPU.

    Parameters
    ----------
    group
        Perturbation of each context, -1 for the control, shape (K,).
    log_dosage
        Log dosage of each context (-inf for the control), shape (K,); None for a screen without doses.
    n_genes
        Number of genes d.
    level
        Level of the effect modifier of each context, shape (K,); None if effects have none.
    members
        Contexts of combinations of drugs, each with the context of one of its members, shape (P, 2); None without combinations, whose
        perturbations are the last.
    """

    def __init__(
        self,
        group: Tensor,
        log_dosage: Tensor | None,
        n_genes: int,
        level: Tensor | None = None,
        members: Tensor | None = None,
    ):
        super().__init__()
        k, u, d = len(group), int(group.max()) + 1, n_genes
        self.has_dosage = log_dosage is not None
        self.register_buffer("group", group)
        self.register_buffer("log_dosage", torch.zeros(k).double() if log_dosage is None else log_dosage)
        # prior of the direct effects: probability of a target, variances of slab and spike
        self.register_buffer("prior", torch.tensor(_UNFITTED_PRIOR, dtype=torch.float64))
        # whether mechanisms are wrong between contexts in proportion to their slopes, as the search has found
        self.register_buffer("proportional", torch.tensor(False))
        # what is given beforehand: log odds of targets, where anything is known, and of edges
        self.register_buffer("target_log_odds", torch.zeros(u, d, dtype=torch.float64))
        self.register_buffer("target_is_known", torch.zeros(u, d, dtype=torch.bool))
        self.register_buffer("edge_log_odds", torch.full((d, d), usual_edge_log_odds(d), dtype=torch.float64))
        # genes that may be parents; the model sets it from its registry, also where it is loaded
        self.register_buffer("regulators", torch.ones(d, dtype=torch.bool), persistent=False)
        # what the features of the other drugs say of each (:mod:`scgim.interventions._joint`)
        self.register_buffer("informed_log_odds", torch.zeros(u, d, dtype=torch.float64))
        self.register_buffer("target_is_informed", torch.zeros(u, d, dtype=torch.bool))
        # what the fit has found of direct effects, of what drugs do beside them, and of edges
        for name in DIRECT_FIELDS:
            self.register_buffer(name, torch.zeros(u, d, dtype=torch.float64))
        self.register_buffer("grid", dose_grid(self.context_log_dosage()[self.treated]))
        self.register_buffer("background", torch.zeros(u, len(self.grid), d, dtype=torch.float64))
        self.register_buffer("background_sd", torch.zeros(u, d, dtype=torch.float64))
        # the same in each level of the effect modifier; empty without one
        self.n_levels = 0 if level is None else int(level.max()) + 1
        self.register_buffer("level", level)
        if level is not None:
            for name in LEVEL_FIELDS:
                own = (len(self.grid),) if name == "background" else ()
                self.register_buffer(f"level_{name}", torch.zeros(u, self.n_levels, *own, d, dtype=torch.float64))
            self.register_buffer("level_mean", torch.zeros(self.n_levels, d, dtype=torch.float64))
            usual = Transfer.between(self.level_mean, counts=True).settings  # until they are fitted
            self.register_buffer("transfer_settings", torch.tensor(usual, dtype=torch.float64))
        # which contexts are of several drugs; the model knows it from its registry, also where it is loaded
        pairs = torch.zeros(0, 2, dtype=torch.long) if members is None else members
        self.register_buffer("members", pairs, persistent=False)
        if len(pairs):  # what each does beside the sum of its members, and the variance of that by chance
            for name in ("interaction", "interaction_var"):
                own = torch.zeros(len(self.combined), d, dtype=torch.float64)
                self.register_buffer(name, own)
        self.register_buffer("edge_probs", torch.zeros(d, d, dtype=torch.float64))
        self.register_buffer("weight_sd", torch.zeros(d, d, dtype=torch.float64))
        # estimates of what each context does given the parents, and their precision; what the generator learns from
        self.register_buffer("response", torch.zeros(k, d, dtype=torch.float64))
        self.register_buffer("response_precision", torch.full((k, d), NO_PRECISION, dtype=torch.float64))
        # range of the values of genes, and of what their parents did to them, in the training cells (odd ones left out)
        unlimited = torch.tensor([[-math.inf], [math.inf]]).expand(2, d)
        self.register_buffer("reach", unlimited.clone())
        self.register_buffer("value_range", unlimited.clone())

    @property
    def treated(self) -> Tensor:
        """Contexts that are not the control, boolean (K,)."""
        return self.group >= 0

    @property
    def combined(self) -> Tensor:
        """Contexts of combinations of drugs, in order, (C,), on the CPU."""
        return torch.unique(self.members.cpu()[:, 0])

    @property
    def n_drugs(self) -> int:
        """Number of perturbations that are no combinations; these come first."""
        return int(self.group.cpu()[self.combined].min()) if len(self.members) else len(self.emax)

    @property
    def of_one_drug(self) -> Tensor:
        """Treated contexts that are of no combination, boolean (K,), on the CPU."""
        group = self.group.cpu()
        return (group >= 0) & (group < self.n_drugs)

    def told_regulators(self) -> np.ndarray | None:
        """Genes that may be parents of others, boolean (d,); None if all may."""
        return None if self.regulators.all() else self.regulators.cpu().numpy()

    def curve_grid(self) -> CurveGrid:
        """Dose-response curves that this screen allows."""
        return CurveGrid.over(*self.dosage_range()) if self.has_dosage else CurveGrid.flat()

    def context_log_dosage(self) -> Tensor:
        """Log dosage of each context (K,); without doses one below any that could be asked for, so that all are alike."""
        return self.log_dosage if self.has_dosage else torch.full_like(self.log_dosage, NO_DOSE)

    def transfer(self, *, counts: bool) -> Transfer:
        """How effects are carried to levels of the effect modifier in which a drug was not measured."""
        return Transfer.between(self.level_mean.cpu(), counts=counts).with_settings(self.transfer_settings.tolist())

    def transfer_to(self, mean: Tensor, told: Tensor, *, counts: bool) -> Transfer:
        """The same with one more level, the last, whose controls have a mean (d,), of which some genes are `told`, boolean (d,)."""
        means = torch.cat([self.level_mean.cpu(), mean[None]])
        with_it = Transfer.between(means, counts=counts, told=told, n_usual=self.n_levels)
        return with_it.with_settings(self.transfer_settings.tolist())

    @property
    def levels_agree(self) -> bool:
        """Whether there are levels of an effect modifier, in which direct effects were found to be the same."""
        return self.n_levels > 0 and bool((self.level_emax == self.emax[:, None]).all())

    def measured_levels(self) -> Tensor:
        """Levels in which any drug was measured, boolean (L,)."""
        return self.interventions().levels.known.any(0)  # type: ignore[union-attr]

    def context_level(self) -> Tensor | None:
        """Level of the effect modifier of each context (K,), on the CPU; None without one."""
        return None if self.level is None else self.level.cpu()

    def membership(self) -> Tensor | None:
        """The same as 0/1, (K, L)."""
        level = self.context_level()
        return None if level is None else torch.nn.functional.one_hot(level, self.n_levels).double()

    def dosage_range(self) -> tuple[float, float]:
        """Smallest and largest log dosage of the treated contexts."""
        dosages = self.log_dosage[self.treated]
        return float(dosages.min()), float(dosages.max())

    def interventions(self) -> Interventions:
        """What the measured perturbations do."""
        direct = {name: getattr(self, name).cpu() for name in DIRECT_FIELDS}
        of_levels = (getattr(self, f"level_{name}").cpu() for name in LEVEL_FIELDS) if self.n_levels else ()
        levels = LevelEffects(*of_levels) if self.n_levels else None
        background, sd = self.background.cpu(), self.background_sd.cpu()
        return Interventions(**direct, background=background, background_sd=sd, grid=self.grid.cpu(), levels=levels)

    def responses(self, carry: Tensor) -> Responses:
        """What was measured in the treated contexts that had training cells."""
        seen = self.treated.cpu() & (self.response_precision.cpu().amax(1) > NO_PRECISION)
        parts = (self.response, self.response_precision, self.group, self.context_log_dosage())
        estimates, precision, group, log_dosage = (part.cpu()[seen] for part in parts)
        level = None if self.level is None else self.level.cpu()[seen]
        return Responses(estimates, precision, group, log_dosage, self.grid.cpu(), carry, level)

    def shift_prior(self) -> ShiftPrior:
        """Prior of the direct effects, features left out."""
        target_prob, slab_var, spike_var = self.prior.tolist()
        return ShiftPrior(target_prob, slab_var, spike_var, self.given_targets(), proportional=bool(self.proportional))

    def given_targets(self) -> Tensor | None:
        """Log odds of targets that are given beforehand, NaN where nothing is, shape (U, d); None if none is."""
        known = torch.where(self.target_is_known, self.target_log_odds, torch.nan)
        return None if known.isnan().all() else known.cpu()

    def known_targets(self) -> Tensor | None:
        """As :meth:`given_targets`, of those given beforehand or told by features."""
        known = self._known_log_odds()
        return None if known.isnan().all() else known.cpu()

    def _known_log_odds(self) -> Tensor:
        informed = torch.where(self.target_is_informed, self.informed_log_odds, torch.nan)
        return torch.where(self.target_is_known, self.target_log_odds, informed)

    def prior_target_probs(self) -> Tensor:
        """Prior probability of each target, shape (U, d); part of every step, so it stays on the device."""
        known = self._known_log_odds()
        return torch.sigmoid(torch.where(known.isnan(), torch.logit(self.prior[0]), known)).float()

    @torch.no_grad()
    def note_informed(self, prior: ShiftPrior | None, perturbations: Tensor | slice = slice(None)) -> None:
        """Keep what features say of the targets of some measured drugs; None for nothing."""
        self.informed_log_odds.zero_()
        self.target_is_informed.zero_()
        if prior is not None and prior.known is not None:
            self.informed_log_odds[perturbations] = prior.known.nan_to_num(0.0).to(self.informed_log_odds)
            self.target_is_informed[perturbations] = ~prior.known.isnan().to(self.group.device)

    @torch.no_grad()
    def note_responses(self, contexts: Tensor, estimates: Tensor, precision: Tensor) -> None:
        """Keep estimates of the effects of some contexts (boolean, K); of others nothing is known."""
        contexts = contexts.to(self.group.device)
        self.response.zero_()
        self.response_precision.fill_(NO_PRECISION)
        self.response[contexts] = estimates.to(self.response)
        self.response_precision[contexts] = precision.to(self.response)

    @torch.no_grad()
    def note_interactions(self, contexts: Tensor, interaction: Tensor, variance: Tensor) -> None:
        """Keep what some combinations (contexts, (k,)) do beside the sum of their members, and its variance by chance, both (k, d)."""
        row = torch.searchsorted(self.combined, contexts)
        self.interaction.zero_()[row] = interaction.to(self.interaction)
        self.interaction_var.fill_(math.inf)[row] = variance.to(self.interaction)

    @torch.no_grad()
    def note_drift(self, drift: Tensor, error_var: Tensor | None = None, noise_var: Tensor | None = None) -> None:
        """Add what contexts need beside to what drugs do at the doses, and in the levels, in which they were measured.

        Parameters
        ----------
        drift
            What contexts need beside, shape (K, d).
        error_var
            Variance of its error, shape (K, d); None if it is not known, and `noise_var` neither.
        noise_var
            Variance of the error of the observed means of contexts, shape (K, d).

        Notes
        -----
        A drug's background is no surer than changes of its size are at such noise, as if they were normal: what was shrunk away or explained
        by programmes and by what parents pass on has errors as well. The error of what is a direct effect is that of the effect already.
        """
        seen = self.treated.cpu() & (self.response_precision.cpu().amax(1) > NO_PRECISION)
        group, log_dosage, grid = self.group.cpu()[seen], self.context_log_dosage().cpu()[seen], self.grid.cpu()
        n_drugs, level = len(self.emax), self.context_level()
        self.background += on_grid(drift[seen], group, log_dosage, grid, n_drugs).to(self.background)
        if error_var is not None and noise_var is not None:
            size = self.interventions().rows(group).background_at(log_dosage).square().mean(1, keepdim=True)
            noise = noise_var[seen].clamp_max(_NOTHING_SEEN)
            least = size * noise / (size + noise).clamp_min(_TINY)
            total = torch.zeros(n_drugs, drift.shape[1], dtype=torch.float64)
            total.index_add_(0, group, torch.maximum(error_var[seen], least))
            mean = total / torch.bincount(group, minlength=n_drugs).clamp_min(1)[:, None]
            self.background_sd.copy_((mean * (1 - self.target_probs.cpu())).sqrt())
        if level is not None:
            unit = group * self.n_levels + level[seen]
            own = on_grid(drift[seen], unit, log_dosage, grid, n_drugs * self.n_levels)
            self.level_background += own.unflatten(0, (n_drugs, self.n_levels)).to(self.background)

    @torch.no_grad()
    def add_background(self, added: Tensor, drug: Tensor, level: Tensor, log_dosage: Tensor) -> None:
        """Add what drugs need at some doses (Q, d) to what they do in levels in which they were not measured; the others are (Q,)."""
        n_drugs = len(self.emax)
        own = on_grid(added, drug * self.n_levels + level, log_dosage, self.grid.cpu(), n_drugs * self.n_levels)
        self.level_background += own.unflatten(0, (n_drugs, self.n_levels)).to(self.background)

    @torch.no_grad()
    def complete_levels(self, transfer: Transfer) -> None:
        """Write what drugs do in levels in which they were not measured, carried from what they do in others."""
        found = self.interventions()
        levels = completed(found.levels, found, transfer, found.levels.known)  # type: ignore[union-attr, arg-type]
        for name in LEVEL_FIELDS:
            getattr(self, f"level_{name}").copy_(getattr(levels, name))

    @torch.no_grad()
    def note_transfer(self, transfer: Transfer) -> None:
        """Keep how effects are carried between levels."""
        self.transfer_settings.copy_(torch.tensor(transfer.settings, dtype=torch.float64))

    @torch.no_grad()
    def note_interventions(self, perturbations: Tensor, found: Interventions) -> None:
        """Keep what some perturbations do; of others nothing is known."""
        perturbations = perturbations.to(self.group.device)
        for name in DIRECT_FIELDS:
            getattr(self, name).zero_()[perturbations] = getattr(found, name).to(self.background)
        self.background.zero_()[perturbations] = found.background.to(self.background)
        self.background_sd.zero_()
        for name in LEVEL_FIELDS if found.levels is not None else ():
            getattr(self, f"level_{name}").zero_()[perturbations] = getattr(found.levels, name).to(self.background)
