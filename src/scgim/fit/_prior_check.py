"""Are targets and edges that were thought likely borne out by the data? Neither is to override the other unseen."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from scvi import settings

if TYPE_CHECKING:
    from torch import Tensor

    from scgim.fit._fit import Names
    from scgim.module._knowledge import Knowledge

_N_SHOWN = 3  # in a message
_USUAL_SHARE = 0.5  # of the perturbations; a target of more is likelier what all do alike, or a wrong mechanism
_MIN_PERTURBATIONS = 20  # of fewer, half may well share a target


def warn_of_prior(known: Knowledge, measured: Tensor, names: Names) -> None:
    """Warn of what was thought likely and is not found; of perturbations without training cells nothing is."""
    given = known.given_targets()
    if given is not None:
        given = torch.where(measured[:, None], given, torch.nan)
        found = known.interventions().target_probs
        _warn_where("target_prior", "targets", (names.perturbations, names.genes), given, found)
    edges = known.edge_log_odds.cpu(), known.edge_probs.cpu()
    _warn_where("network_prior", "edges", (names.genes, names.genes), *edges)


def warn_of_usual_targets(known: Knowledge, measured: Tensor, names: Names) -> None:
    """Warn of genes that are called targets of half of the perturbations."""
    called = known.interventions().target_probs[measured.cpu()] > 0.5
    share = called.double().mean(0)
    usual = torch.nonzero(share >= _USUAL_SHARE)[:, 0].tolist()
    if len(called) < _MIN_PERTURBATIONS or not usual:
        return
    usual.sort(key=lambda j: -float(share[j]))
    shown = ", ".join(f"{names.genes[j]} ({int(called[:, j].sum())})" for j in usual[:_N_SHOWN])
    more = f" and {len(usual) - _N_SHOWN} more" if len(usual) > _N_SHOWN else ""
    warnings.warn(
        f"Called direct targets of at least half of the {len(called)} perturbations: {shown}{more}. What so many share is rarely direct: a "
        "regulator that is not among the genes, or stress. `get_targets(min_effect=...)` asks for effects of a size.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )


def _warn_where(argument: str, what: str, names: tuple[list[str], list[str]], given: Tensor, found: Tensor) -> None:
    likely = given > 0
    missed = torch.argwhere(likely & (found < 0.5)).tolist()
    if not missed:
        return
    shown = ", ".join(
        f"{names[0][i]} -> {names[1][j]} ({torch.sigmoid(given[i, j]):.2f}, now {found[i, j]:.2f})"
        for i, j in missed[:_N_SHOWN]
    )
    more = f" and {len(missed) - _N_SHOWN} more" if len(missed) > _N_SHOWN else ""
    warnings.warn(
        f"The data do not bear out {len(missed)} of the {int(likely.sum())} {what} that `{argument}` calls likely: {shown}{more}.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
