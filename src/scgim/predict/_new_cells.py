"""Cells that were not in the training data and of which there are controls alone: a new cell line, cell type or patient.

The network and its mechanisms are those of the fit. Baselines are moved so that drawn control cells have the means of those given, and
effects are carried there as they are to a level of the effect modifier in which nothing was measured (:mod:`scgim.interventions._transfer`).
Without a modifier they are the same in all cells, and so they are here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from scgim.interventions._levels import LEVEL_FIELDS, OF_ONE_LEVEL, LevelEffects, completed
from scgim.module._matching import CellsToDraw, down_the_network
from scgim.predict._means import MIN_MEAN
from scgim.predict._sampler import enough_samples

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.interventions._interventions import Interventions
    from scgim.interventions._transfer import Transfer
    from scgim.module import GIMModule
    from scgim.predict._arms import Arms
    from scgim.predict._sampler import Backdrop, Sampler

_N_CELLS = (100, 2000)  # drawn to find means, at least and at most: with the most, to 2 % of a standard deviation
_N_ROUNDS, _NEAR = 10, 0.005  # of correction a layer, each exact but for what parents add; in log means, which ends it
_HALF_A_COUNT = 0.5  # so that a gene without counts has a log mean
_IS_TARGET, _MATTERS = 0.5, 0.2  # probability of a target, and change of a log mean, that count: conventions


@dataclass(frozen=True)
class Controls:
    """Control cells of the new kind.

    Parameters
    ----------
    sampler
        Sampler of the fit, with covariates and depth of these cells as its pool.
    mean
        Mean of each gene: counts per unit of size factor, or standard deviations of continuous values, (d,). Of genes that were not
        measured, that of the training controls.
    told
        Genes that were measured, boolean (d,).
    """

    sampler: Sampler
    mean: Tensor
    told: Tensor

    @staticmethod
    def of(sampler: Sampler, x: Tensor, told: Tensor) -> Controls:
        """From values of cells (n, d), in the order of the pool of the sampler."""
        module = sampler.module
        centre, spread, usual = (t.double().cpu() for t in (module.centre, module.spread, module.intercept_loc))
        if sampler.is_continuous:
            mean, usual = (x.double().mean(0) - centre) / spread, torch.zeros_like(centre)
        else:
            depth = torch.as_tensor(sampler.pool["log_size"]).double().exp().sum()
            mean, usual = (x.double().sum(0) + _HALF_A_COUNT) / depth, usual.exp()
        return Controls(sampler, torch.where(told, mean, usual), told)

    @property
    def level(self) -> Tensor:
        """The means on the scale of predictors: logarithms of counts, (d,)."""
        return self.mean if self.sampler.is_continuous else self.mean.clamp_min(MIN_MEAN).log()

    def settled(self) -> Sampler:
        """Sampler whose control cells have these means."""
        cells = self.sampler.backdrop(_N_CELLS[1], torch.Generator().manual_seed(0))
        nothing = torch.zeros(len(cells), len(self.mean))
        module = copy.deepcopy(self.sampler.module, {id(self.sampler.module.knowledge): self.sampler.module.knowledge})
        module.baseline_offset += match(module, cells, nothing, nothing.bool(), self.level).to(module.baseline_offset)
        return replace(self.sampler, module=module)


@torch.no_grad()
def match(module: GIMModule, cells: Backdrop, shift: Tensor, targets: Tensor, goal: Tensor) -> Tensor:
    """What predictors need beside, (d,), so that cells with effects and targets (n, d) have means `goal` (d,), as in :class:`Controls`."""
    device, counts = module.device, module.likelihood != "normal"
    covariates, log_size, shift, targets = (
        t.to(device) for t in (cells.covariates, cells.log_size[:, None], shift.float(), targets)
    )
    depth = log_size.exp().double().mean()
    goal, offset = goal.to(device), torch.zeros(len(goal), dtype=torch.float64, device=device)

    def move(_: int, genes: Tensor, mean: Tensor, __: Tensor) -> bool:
        if counts:
            drawn = (mean.double().mean(0) / depth).clamp_min(MIN_MEAN).log()
        else:
            drawn = ((mean - module.centre[genes]) / module.spread[genes]).double().mean(0)
        step = goal[genes] - drawn
        if step.abs().max() < _NEAR:
            return False
        offset[genes] += step
        return True

    cells_to_draw = CellsToDraw(covariates, log_size, shift, targets)
    down_the_network(
        module, cells_to_draw, lambda genes: module.baseline_offset[genes] + offset[genes], move, _N_ROUNDS
    )
    return offset.cpu()


def changes(sampler: Sampler, arms: Arms) -> Tensor:
    """Change of the log mean of each gene that each arm brings about in cells of each level, (arms, L, d); in standard deviations if continuous."""
    names: list[str | None] = list(sampler.design.levels) or [None]
    d = len(sampler.genes)
    n = enough_samples(len(arms) * len(names) * d, *_N_CELLS)
    nothing, known = torch.zeros(n, d), sampler.module.knowledge
    out = torch.zeros(len(arms), len(names), d, dtype=torch.float64)
    for k, name in enumerate(names):
        means = sampler.coupled_means(n, 0, None if name is None else {sampler.design.modifier: name})
        if known.n_levels and not sampler.is_continuous:
            reference = known.level_mean[k].cpu().log()  # means of treated cells are matched to observed ones
        else:
            reference = _level(sampler, means(nothing, nothing.bool()))
        for a in range(len(arms)):
            shift, targets = arms.take(range(a, a + 1)).sample(
                n, torch.Generator().manual_seed(1), torch.full((1, n), k)
            )
            out[a, k] = _level(sampler, means(shift[0], targets[0])) - reference
    return out


def _level(sampler: Sampler, means: Tensor) -> Tensor:
    """Mean over cells of their means (n, d), on the scale of predictors, (d,)."""
    mean = means.mean(0)
    if sampler.is_continuous:
        return (mean - sampler.module.centre.double().cpu()) / sampler.module.spread.double().cpu()
    return mean.clamp_min(MIN_MEAN).log()


def measured_levels(module: GIMModule, arms: Arms) -> Tensor:
    """Levels in which the drugs of each arm were measured, or any drug where they were not, boolean (drugs, L)."""
    any_drug = module.knowledge.measured_levels()
    known = arms.interventions.levels.known  # type: ignore[union-attr]
    return torch.where(known.any(1, keepdim=True), known, any_drug)


def together(arms: Arms, known: Tensor, any_drug: Tensor) -> Tensor:
    """Levels in which all drugs of each arm were measured, boolean (arms, L), from those of each drug; `any_drug` (L,) where there is none."""
    out = torch.ones(len(arms), known.shape[1], dtype=torch.bool)
    for arm, drug in zip(arms.arm.tolist(), arms.drug.tolist(), strict=True):
        out[arm] &= known[drug]
    return torch.where(out.any(1, keepdim=True), out, any_drug)


def carried(controls: Controls, settled: Sampler, arms: Arms, change: Tensor) -> Arms:
    """Arms with the effects that they have in the new cells.

    Parameters
    ----------
    controls
        The new cells.
    settled
        Draws them (:meth:`Controls.settled`).
    arms
        What is asked for, with effects in each level of the effect modifier.
    change
        Changes in each of these, as :func:`changes` finds them.
    """
    if not len(arms.drug):
        return replace(arms, interventions=replace(arms.interventions, levels=None))
    known, counts = settled.module.knowledge, not settled.is_continuous
    transfer = known.transfer_to(controls.mean, controls.told, counts=counts)
    of_drugs = measured_levels(settled.module, arms)
    own = replace(arms, interventions=_in_last(arms, transfer, _with_last(of_drugs)))
    # one row a drug given, so that each arm can have what it needs beside
    own = replace(
        own,
        interventions=own.interventions.rows(own.drug),
        log_top=own.log_top[own.drug],
        is_new=own.is_new[own.drug],
        drug=torch.arange(len(own.drug)),
    )
    if not counts:  # sums of effects along the network are linear, so that nothing is missing
        return own
    of_arms = together(arms, of_drugs, known.measured_levels())
    wanted = transfer.carried(_with_last(change), _with_last(of_arms))[:, -1]
    background = own.interventions.background.clone()
    n = enough_samples(len(own) * background.shape[2], *_N_CELLS)
    cells, means = settled.backdrop(n, torch.Generator().manual_seed(0)), settled.coupled_means(n, 0)
    for a in range(len(own)):
        rows = torch.nonzero(own.arm == a)[:, 0]
        if not len(rows):
            continue
        arm = own.take(range(a, a + 1))
        shift, targets = arm.sample(n, torch.Generator().manual_seed(1), torch.zeros(1, n, dtype=torch.long))
        goal = wanted[a]
        if transfer.network:
            through = _level(settled, means(shift[0], targets[0])) - controls.level
            goal = transfer.mixed(goal[None], through[None], change[a : a + 1], of_arms[a : a + 1])[0]
        background[rows[0]] += match(settled.module, cells, shift[0], targets[0], controls.level + goal)
    return replace(own, interventions=replace(own.interventions, background=background))


def _with_last(values: Tensor) -> Tensor:
    """Values of levels (Q, L, ...) and zeros for one more."""
    return torch.cat([values, torch.zeros_like(values[:, :1])], 1)


def _in_last(arms: Arms, transfer: Transfer, known: Tensor) -> Interventions:
    """What drugs do in the last level, in which they are not `known` (Q, L)."""
    found = arms.interventions
    levels = LevelEffects(*(_with_last(getattr(found.levels, name)) for name in LEVEL_FIELDS))
    levels = completed(levels, found, transfer, known)
    return replace(found, **{name: getattr(levels, name)[:, -1] for name in OF_ONE_LEVEL}, levels=None)


def needed(arms: Arms, change: Tensor, told: Tensor) -> list[int]:
    """Genes that were not `told` (d,) and matter: direct targets of the drugs, and those that change in any level, (arms, L, d)."""
    n_levels = change.shape[1]
    probs = (
        torch.stack([arms.expected(k)[1] for k in range(n_levels)]).amax((0, 1))
        if len(arms.drug)
        else change.new_zeros(len(told))
    )
    matter = (probs > _IS_TARGET) | (change.abs().amax((0, 1)) > _MATTERS)
    return torch.nonzero(matter & ~told)[:, 0].tolist()
