"""Effects carried to levels of the effect modifier in which drugs were not measured, at the end of the fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgim.fit._baselines import HALF_A_COUNT
from scgim.fit._contexts import cells_each
from scgim.fit._statistics import to_device
from scgim.module._matching import match_means

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.fit._contexts import Drift
    from scgim.interventions._interventions import Interventions
    from scgim.module import GIMModule
    from scgim.train import BatchLoader


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
    transfer = transfer.chosen(heights, information)
    known.note_transfer(transfer)
    known.complete_levels(transfer)
    measured = context >= 0
    carried = transfer.carried(heights, measured)
    n = cells_each(heights.shape[2], int((~measured).sum()))
    found, asked = known.interventions(), torch.nonzero(~measured)
    arms = known.group.cpu()[context.amax(1)], known.context_log_dosage().cpu()[context.amax(1)]
    added = [
        _match_carried(module, loader, n, found.rows(arms[0][q : q + 1]), arms[1][q], int(level), carried[q, level])
        for q, level in asked
    ]
    if added:
        q, level = asked.T
        known.add_background(torch.stack(added), arms[0][q], level, arms[1][q])


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


def _match_carried(
    module: GIMModule,
    loader: BatchLoader,
    n: int,
    drug: Interventions,
    log_dosage: Tensor,
    level: int,
    change: Tensor,
) -> Tensor:
    """What a drug needs at a dose in a level, beside its effects, so that means change as they should by `change` (d,); shape (d,)."""
    known = module.knowledge
    context = loader.context.cpu()
    controls = torch.nonzero((~module.treated & (known.level == level)).cpu()[context])[:, 0]
    rng = torch.Generator().manual_seed(0)
    rows = controls[torch.randint(len(controls), (n,), generator=rng)]
    cells = to_device(loader.take(rows), module.device)
    shift, targets = drug.at_level(level).sample(log_dosage[None], n, rng)
    enough = torch.tensor([[HALF_A_COUNT / len(controls)]], dtype=torch.float64)
    goal = torch.log(known.level_mean[level].cpu() * change.exp() + enough)  # (1, d)
    effects, context = (shift[0].float(), targets[0]), torch.zeros(n, dtype=torch.long)
    return match_means(module, cells, context, effects, lambda _, genes, __: goal[:, genes], enough)[0][0]
