"""Effects carried to levels of the effect modifier in which drugs were not measured, at the end of the fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from scgim.fit._baselines import HALF_A_COUNT
from scgim.fit._contexts import cells_each
from scgim.fit._statistics import to_device
from scgim.interventions._levels import completed
from scgim.module._matching import match_means

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.fit._contexts import Drift
    from scgim.interventions._interventions import Interventions
    from scgim.interventions._transfer import Transfer
    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_MAX_JUDGED = 50  # drugs and doses by which it is chosen how effects are carried: for time


@torch.no_grad()
def carry_to_levels(module: GIMModule, loader: BatchLoader, drift: Drift | None) -> None:
    """Choose how effects are carried between levels, and write what drugs do where they were not measured to the module.

    With `drift`, that of means of counts, changes of means are carried, so that drawn cells have them; else direct effects alone.
    """
    known = module.knowledge
    if not known.n_levels:
        return
    transfer = known.transfer(counts=module.likelihood != "normal")
    if drift is None:
        found = known.interventions()
        heights, information = found.levels.at_top(found)  # type: ignore[union-attr]
        transfer = transfer.chosen(heights, information, found.target_probs)
        known.note_transfer(transfer)
        known.complete_levels(transfer)
        return
    context, heights, information = _changes(module, drift)
    some = torch.randperm(len(context), generator=torch.Generator().manual_seed(0))[:_MAX_JUDGED].sort().values
    through = _through_network(module, loader, context[some], transfer)
    transfer = transfer.chosen(heights[some], information[some], through=through)
    known.note_transfer(transfer)
    known.complete_levels(transfer)
    measured = context >= 0
    carried = transfer.carried(heights, measured)
    n = cells_each(heights.shape[2], int((~measured).sum()))
    found, asked = known.interventions(), torch.nonzero(~measured)
    arms = known.group.cpu()[context.amax(1)], known.context_log_dosage().cpu()[context.amax(1)]
    added = []
    for q, level in asked.tolist():
        cells = _Controls.of(module, loader, level, n)
        effects = cells.effects(found.rows(arms[0][q : q + 1]), arms[1][q])
        change = carried[q, level]
        if transfer.network:
            through = cells.log_means(module, effects) - cells.log_means(module)
            change = transfer.mixed(change[None], through[None], heights[q : q + 1], measured[q : q + 1])[0]
        added.append(_match_carried(module, cells, effects, change))
    if added:
        q, level = asked.T
        known.add_background(torch.stack(added), arms[0][q], level, arms[1][q])


class _Controls(NamedTuple):
    """Covariates and size factors of control cells of a level, what is added to their means, (1, 1), and a generator for what is drawn."""

    level: int
    cells: dict[str, Tensor]
    enough: Tensor
    rng: torch.Generator

    @staticmethod
    def of(module: GIMModule, loader: BatchLoader, level: int, n: int) -> _Controls:
        """Some n of them, drawn anew."""
        context = loader.context.cpu()
        controls = torch.nonzero((~module.treated & (module.knowledge.level == level)).cpu()[context])[:, 0]
        rng = torch.Generator().manual_seed(0)
        rows = controls[torch.randint(len(controls), (n,), generator=rng)]
        enough = torch.tensor([[HALF_A_COUNT / len(controls)]], dtype=torch.float64)
        return _Controls(level, to_device(loader.take(rows), module.device), enough, rng)

    @property
    def context(self) -> Tensor:
        """Which context each cell is of: there is one."""
        return torch.zeros(len(self.cells["log_size"]), dtype=torch.long)

    def effects(self, drug: Interventions, log_dosage: Tensor) -> tuple[Tensor, Tensor]:
        """Effects and targets of a drug at a dose in each cell, both (n, d)."""
        shift, targets = drug.at_level(self.level).sample(log_dosage[None], len(self.context), self.rng)
        return shift[0].float(), targets[0]

    def log_means(self, module: GIMModule, effects: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Log means of drawn cells that have effects, None for controls, (d,)."""
        if effects is None:
            nothing = torch.zeros(len(self.context), len(module.centre))
            effects = nothing, nothing.bool()
        return match_means(module, self.cells, self.context, effects, lambda drawn, _, __: drawn, self.enough)[1][0]


def _through_network(module: GIMModule, loader: BatchLoader, context: Tensor, transfer: Transfer) -> Tensor:
    """What the network makes of each drug and dose (Q, L) in each level of the mean effects of the others: change of log means, (Q, L, d)."""
    known, found = module.knowledge, module.knowledge.interventions()
    group, log_dosage = known.group.cpu()[context.amax(1)], known.context_log_dosage().cpu()[context.amax(1)]
    of_drugs: Tensor = found.levels.known  # type: ignore[union-attr]
    mean = replace(transfer, power=0.0, share=0.0)
    n, n_levels = cells_each(len(module.centre), context.numel()), context.shape[1]
    out = torch.zeros(*context.shape, len(module.centre), dtype=torch.float64)
    for level in range(n_levels):
        others = of_drugs & (torch.arange(n_levels) != level)
        own = replace(found, levels=completed(found.levels, found, mean, others))  # type: ignore[arg-type]
        cells = _Controls.of(module, loader, level, n)
        control = cells.log_means(module)
        for q in torch.nonzero(context[:, level] >= 0)[:, 0].tolist():
            effects = cells.effects(own.rows(group[q : q + 1]), log_dosage[q])
            out[q, level] = cells.log_means(module, effects) - control
    return out


def _changes(module: GIMModule, drift: Drift) -> tuple[Tensor, Tensor, Tensor]:
    """For each drug and dose, its context in each level (-1 for none), (Q, L), and log fold changes and their precision, (Q, L, d)."""
    known = module.knowledge
    level, treated = (
        known.level.cpu(),
        torch.nonzero(module.treated.cpu() & (drift.means.error.amin(1) < torch.inf))[:, 0],
    )
    where = torch.stack([known.group.cpu().double(), known.context_log_dosage().cpu()], 1)[treated]
    pairs, pair = torch.unique(where, dim=0, return_inverse=True)
    context = torch.full((len(pairs), known.n_levels), -1)
    context[pair, level[treated]] = treated
    control = known.level_mean.cpu().log()
    heights = drift.means.log_mean[context] - control
    information = drift.means.error[context].square().reciprocal() * (context >= 0)[..., None]
    return context, torch.where((context >= 0)[..., None], heights, 0.0), information


def _match_carried(module: GIMModule, controls: _Controls, effects: tuple[Tensor, Tensor], change: Tensor) -> Tensor:
    """What cells with effects need beside, so that means change as they should by `change` (d,); shape (d,)."""
    goal = torch.log(module.knowledge.level_mean[controls.level].cpu() * change.exp() + controls.enough)  # (1, d)
    wanted = lambda _, genes, __: goal[:, genes]
    return match_means(module, controls.cells, controls.context, effects, wanted, controls.enough)[0][0]
