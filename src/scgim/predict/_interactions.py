"""What combinations of drugs do beside the sum of their members, by a test of each gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgim.module._knowledge import Knowledge


def interaction_table(known: Knowledge, names: Sequence[str], genes: list[str]) -> pd.DataFrame:
    """One row a measured combination and gene, the surest first; `names` are those of the perturbations."""
    combined = known.combined
    measured = (known.interaction_var < np.inf).all(1).cpu()
    interaction, variance = known.interaction.cpu()[measured].numpy(), known.interaction_var.cpu()[measured].numpy()
    observed = known.response.cpu()[combined[measured]].numpy()
    labels = [names[u] for u in known.group.cpu()[combined[measured]].tolist()]
    error = np.sqrt(variance)
    table = pd.DataFrame(
        {
            "perturbation": np.repeat(labels, len(genes)),
            "gene": np.tile(genes, len(labels)),
            "observed": observed.ravel(),
            "expected": (observed - interaction).ravel(),
            "interaction": interaction.ravel(),
            "error": error.ravel(),
            "z": (interaction / error).ravel(),
        }
    )
    table["p_value"] = 2 * norm.sf(table["z"].abs())
    table["p_adjusted"] = false_discovery_control(table["p_value"]) if len(table) else table["p_value"]
    return table.sort_values("p_value", kind="stable", ignore_index=True)
