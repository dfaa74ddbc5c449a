"""What is known of targets and edges before the data are seen."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import settings

from scgim._validation import prior_log_odds
from scgim.module._gim import usual_edge_log_odds

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

_N_SHOWN = 3


class PriorsMixin:
    """Prior targets and networks of :class:`scgim.model.GIM`."""

    def _set_priors(self, genes: list[str], targets: pd.DataFrame | None, network: pd.DataFrame | None) -> None:
        """Put what is known beforehand into the module."""
        if targets is not None:
            known = prior_log_odds(targets, self.perturbations, genes, "target_prior", "perturbations")
            self.module.target_log_odds.copy_(torch.as_tensor(np.nan_to_num(known)))
            self.module.target_is_known.copy_(torch.as_tensor(~np.isnan(known)))
        if network is not None:
            known = prior_log_odds(network, genes, genes, "network_prior", "genes")
            self.module.edge_log_odds.copy_(
                torch.as_tensor(np.where(np.isnan(known), usual_edge_log_odds(len(genes)), known))
            )

    def _compare_with_priors(self) -> None:
        """Warn of what was thought likely and is not borne out by the data, so that neither overrides the other unseen."""
        known = self.module.given_targets()
        if known is not None:
            measured = torch.as_tensor(self.n_cells_.reindex(self.perturbations).to_numpy() > 0)[:, None]
            known = torch.where(measured, known, torch.nan)
            found = self.module.interventions().target_probs
            self._warn_where("target_prior", "targets", self.perturbations, known, found)
        self._warn_where(
            "network_prior", "edges", self.gene_names_, self.module.edge_log_odds.cpu(), self.module.edge_probs.cpu()
        )

    def _warn_where(self, name: str, what: str, rows: list[str], known: Tensor, found: Tensor) -> None:
        likely = known > 0
        missed = torch.argwhere(likely & (found < 0.5)).tolist()
        if not missed:
            return
        shown = ", ".join(
            f"{rows[i]} -> {self.gene_names_[j]} ({torch.sigmoid(known[i, j]):.2f}, now {found[i, j]:.2f})"
            for i, j in missed[:_N_SHOWN]
        )
        more = f" and {len(missed) - _N_SHOWN} more" if len(missed) > _N_SHOWN else ""
        warnings.warn(
            f"The data do not bear out {len(missed)} of the {int(likely.sum())} {what} that `{name}` calls likely: {shown}{more}.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
