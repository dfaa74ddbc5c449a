"""Do simulated control cells look like the observed ones? What every training run ends with."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scvi import settings

from scgim._validation import quote_some

if TYPE_CHECKING:
    from scgim.module import GIMModule
    from scgim.train import BatchLoader

_MAX_CELLS = 20_000  # compared at most, for time
_FEW_CELLS = 100  # of fewer, largest values say nothing
# What is let pass: differences that matter little for what is predicted. Conventions.
_MAX_MEAN_RATIO, _MAX_VARIANCE_RATIO, _MAX_LARGEST_RATIO = 1.25, 3.0, 4.0
_MAX_ZEROS = 0.05  # difference of the shares of zeros
_MAX_DISTANCE = 0.25  # of means of continuous values, in standard deviations
_N_ERRORS = 4.0  # standard errors, that sampling may explain: chance exceeds them in one gene of 16,000
_TINY, _FEW_COUNTS = 1e-12, 2  # means and variances must not be zero; of so few counts, a ratio says nothing


def compare_controls(module: GIMModule, loader: BatchLoader, genes: list[str]) -> pd.DataFrame:
    """Observed and simulated control cells, gene by gene.

    Returns
    -------
    Genes as index; means, variances, shares of zeros and largest values of observed and as many simulated cells (`mean`,
    `simulated_mean`, and so on), and whether they `agree`.
    """
    rows = torch.nonzero(~module.treated.cpu()[loader.context.cpu()])[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_MAX_CELLS]]
    cells = loader.take(rows)
    observed = cells["x"].cpu().double()
    nothing = torch.zeros_like(cells["x"], device=module.device, dtype=torch.float32)
    rng = torch.Generator(module.device).manual_seed(0)
    covariates, log_size = cells["covariates"].to(module.device), cells["log_size"].to(module.device)
    simulated, _ = module.sample_cells(nothing, nothing.bool(), covariates, log_size, rng)
    table = _moments(observed, "").join(_moments(simulated.cpu().double(), "simulated_"))
    table.index = pd.Index(genes, name="gene")
    table["agree"] = _agree(table, len(rows), counts=module.likelihood != "normal")
    return table


def _moments(x: torch.Tensor, prefix: str) -> pd.DataFrame:
    values = {
        "mean": x.mean(0),
        "variance": x.var(0),
        "zeros": (x == 0).double().mean(0),
        "largest": x.amax(0),
    }
    return pd.DataFrame({prefix + name: value.numpy() for name, value in values.items()})


def _agree(table: pd.DataFrame, n: int, *, counts: bool) -> pd.Series:
    """Whether observed and simulated cells differ by no more than is let pass, or than sampling explains."""
    error = np.sqrt((table["variance"] + table["simulated_variance"]) / n)
    distance = (table["mean"] - table["simulated_mean"]).abs()
    near = distance <= _N_ERRORS * error
    spread = np.sqrt(2 / max(1, n - 1)) * _N_ERRORS
    ratio = np.log((table["simulated_variance"] + _TINY) / (table["variance"] + _TINY)).abs()
    good = ratio <= np.log(_MAX_VARIANCE_RATIO) + spread
    if not counts:
        return (near | (distance <= _MAX_DISTANCE * np.sqrt(table["variance"]))) & good
    near |= np.log((table["simulated_mean"] + _TINY) / (table["mean"] + _TINY)).abs() <= np.log(_MAX_MEAN_RATIO)
    zeros = (table["zeros"] - table["simulated_zeros"]).abs()
    good &= zeros <= _MAX_ZEROS + _N_ERRORS * np.sqrt(table["zeros"] * (1 - table["zeros"]) * 2 / n)
    if n >= _FEW_CELLS:
        largest = np.log((table["simulated_largest"] + _FEW_COUNTS) / (table["largest"] + _FEW_COUNTS)).abs()
        good &= largest <= np.log(_MAX_LARGEST_RATIO)
    return near & good


def check_controls(module: GIMModule, loader: BatchLoader, genes: list[str]) -> pd.DataFrame:
    """:func:`compare_controls`, with a warning that names the genes that do not agree."""
    table = compare_controls(module, loader, genes)
    off = table.index[~table["agree"]]
    if len(off):
        warnings.warn(
            f"Simulated control cells differ from the observed ones in {len(off)} of {len(table)} genes: {quote_some(off)}. Doubt "
            "what is predicted for these; `model.control_check_` shows means, variances, zeros and largest values. Genes that "
            "vary with a hidden state, or a covariate that was not given, are often among them.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return table
