"""Check of a screen's design before fitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse, stats
from scipy.sparse.csgraph import connected_components

from scgim._stored import readable
from scgim._validation import (
    check_counts,
    check_dosage,
    check_key,
    check_matrix_type,
    check_nonempty,
    check_perturbations,
    matrix_name,
    quote_some,
    resolve_embedding,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

OK, WARN, FAIL = "ok", "warn", "fail"
_ROW = tuple[str, Any, str, str]  # name of the check, what was found, verdict, advice


@dataclass
class _Screen:
    """The screen and its keys, with labels, doses and features once they have passed their checks."""

    adata: AnnData
    perturbation_key: str
    control: str
    dosage_key: str | None
    drug_embedding_key: str | None
    batch_key: str | None
    layer: str | None
    labels: pd.Categorical
    dosage: np.ndarray | None = None

    @property
    def is_control(self) -> np.ndarray:
        return np.asarray(self.labels == self.control)

    @property
    def counts(self) -> Any:
        return self.adata.X if self.layer is None else self.adata.layers[self.layer]


def check_screen(
    adata: AnnData,
    *,
    perturbation_key: str = "perturbation",
    control: str = "control",
    dosage_key: str | None = "dosage",
    drug_embedding_key: str | None = "drug_embedding",
    batch_key: str | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Table of what in a screen's design helps or hinders a fit, with advice.

    Parameters
    ----------
    adata
        Raw counts with the columns below.
    perturbation_key
        Column of `adata.obs` with the perturbations.
    control
        Label of the controls.
    dosage_key
        Column of `adata.obs` with the doses; None for one dose.
    drug_embedding_key
        Entry of `adata.uns` or `adata.obsm` with the drug features; None for none.
    batch_key
        Column of `adata.obs` with the batch or plate.
    layer
        Layer with the counts, in place of `adata.X`.

    Returns
    -------
    Data frame, one row a check (index), with columns `value` (what was found), `verdict` ("ok", "warn" or "fail") and
    `advice` (empty when ok). `setup_anndata` raises on what fails here, except confounding, which no check of the data
    can forbid.

    Raises
    ------
    KeyError
        There is no column `perturbation_key` or `batch_key`.
    ValueError
        There are no labels or no control cells, so that nothing else can be checked.

    Notes
    -----
    Thresholds for a warning are rules of thumb: 20 cells a context, 100 controls, 3 doses a drug, 10 drugs with
    features, half the controls' counts a cell, Cramer's V of 0.5 between batch and perturbation. Cramer's V is
    corrected for chance (Bergsma 2013): 0 is a balanced design and 1 a batch for each perturbation.
    """
    labels = _labels(adata, perturbation_key, control)
    if batch_key is not None:
        check_key(batch_key, adata.obs.columns, where="adata.obs", argument="batch_key")
    screen = _Screen(adata, perturbation_key, control, dosage_key, drug_embedding_key, batch_key, layer, labels)
    rows: list[_ROW] = []
    checks: list[Callable[[_Screen], Iterator[_ROW]]] = [_counts, _cells, _doses, _features, _batches]
    for check in checks:
        rows.extend(check(screen))
    return pd.DataFrame(rows, columns=["check", "value", "verdict", "advice"]).set_index("check")


def _labels(adata: AnnData, perturbation_key: str, control: str) -> pd.Categorical:
    """Labels of all cells; perturbations with a single cell are let through, since the table reports them."""
    check_key(perturbation_key, adata.obs.columns, where="adata.obs", argument="perturbation_key")
    column = adata.obs[perturbation_key]
    several = column.map(column.value_counts()).astype(float) != 1
    check_perturbations(adata.obs[several | (column == control)], perturbation_key, control)
    return pd.Categorical(column.astype(str))


def _attempt(name: str, check: Callable[[], Any], value: Any = "") -> tuple[_ROW, Any]:
    """Row of a check that raises when it fails, and what the check returned."""
    try:
        result = check()
    except (ValueError, TypeError, KeyError) as error:
        return (name, "", FAIL, str(error.args[0])), None
    return (name, value, OK, ""), result


def _counts(screen: _Screen) -> Iterator[_ROW]:
    adata, where = screen.adata, matrix_name(screen.layer)
    kind, _ = _attempt("matrix", lambda: check_matrix_type(adata, screen.layer, allow_stored=True))
    yield kind if kind[2] == FAIL else ("matrix", f"{adata.n_obs} cells x {adata.n_vars} genes", OK, "")
    if kind[2] == FAIL:
        return
    X = screen.counts
    yield _attempt("counts", lambda: check_counts(X, where=where), "raw counts")[0]
    yield _attempt("empty", lambda: check_nonempty(X, adata.var_names, adata.obs_names, where=where), "none")[0]
    totals = pd.Series(np.asarray(readable(X).sum(axis=1)).ravel()).groupby(screen.labels, observed=True).median()
    ratio = totals / totals[screen.control]
    poor = ratio.index[ratio < 0.5]
    advice = f"{quote_some(poor)} have less than half: dying cells or few reads. Look at them before trusting effects."
    yield ("depth", f"{ratio.min():.2f} x control at least", WARN if len(poor) else OK, advice if len(poor) else "")


def _cells(screen: _Screen) -> Iterator[_ROW]:
    n_controls = int(screen.is_control.sum())
    few = "Effects are differences to controls: 100 control cells or more make them stable." if n_controls < 100 else ""
    yield ("control cells", n_controls, WARN if few else OK, few)
    counts = pd.Series(screen.labels[~screen.is_control]).value_counts()
    counts = counts[counts > 0]
    single = sorted(counts.index[counts == 1])
    yield (
        "perturbations",
        len(counts),
        FAIL if single else OK,
        f"{quote_some(single)} have a single cell. Leave them out." if single else "",
    )


def _doses(screen: _Screen) -> Iterator[_ROW]:
    obs = screen.adata.obs
    row, dosage = _attempt(
        "doses", lambda: check_dosage(obs, screen.dosage_key, screen.perturbation_key, screen.control)
    )
    if dosage is None:
        yield row
        return
    screen.dosage = dosage
    treated = pd.DataFrame({"drug": screen.labels.astype(object), "dose": dosage})[~screen.is_control]
    n_doses = treated.groupby("drug")["dose"].nunique()
    value = (
        f"{n_doses.min()} to {n_doses.max()} a drug" if n_doses.min() != n_doses.max() else f"{n_doses.min()} a drug"
    )
    curve = n_doses.min() < 3 and screen.dosage_key is not None
    advice = "Fewer than three doses do not fix a dose-response curve: EC50 and slope then come from the prior."
    yield ("doses", value, WARN if curve else OK, advice if curve else "")
    sizes = treated.groupby(["drug", "dose"]).size()
    small = sizes.index[sizes < 20]
    shown = quote_some(f"{drug} at {dose:g}" for drug, dose in small)
    advice = f"{len(small)} of {len(sizes)} contexts have fewer than 20 cells ({shown}): their effects are uncertain."
    yield (
        "cells per context",
        f"median {sizes.median():g}, least {sizes.min()}",
        WARN if len(small) else OK,
        advice if len(small) else "",
    )


def _features(screen: _Screen) -> Iterator[_ROW]:
    key = screen.drug_embedding_key
    if key is None:
        yield ("features", "none", WARN, "Without drug features, drugs that were not measured cannot be predicted.")
        return
    row, frame = _attempt(
        "features",
        lambda: resolve_embedding(screen.adata, key, screen.labels, control=screen.control),
    )
    if frame is None:
        yield row
        return
    few = len(frame) < 10
    advice = "With fewer than ten drugs, features say little about drugs that were not measured."
    yield ("features", f"{frame.shape[0]} drugs x {frame.shape[1]}", WARN if few else OK, advice if few else "")
    rank = int(np.linalg.matrix_rank(frame.to_numpy() - frame.to_numpy().mean(axis=0)))
    wide = frame.shape[1] > 2 * len(frame)
    advice = f"More columns than drugs can use: `scgim.pp.pca_features(adata, {rank})` tells these drugs apart as well and is faster."
    yield (
        "feature rank",
        f"{rank} of {min(len(frame) - 1, frame.shape[1])}",
        WARN if wide else OK,
        advice if wide else "",
    )
    twins = frame.index[frame.duplicated(keep=False)]
    advice = f"{quote_some(twins)} share their features with another drug, so that only their cells tell them apart."
    yield ("equal features", len(twins), WARN if len(twins) else OK, advice if len(twins) else "")


def _batches(screen: _Screen) -> Iterator[_ROW]:
    if screen.batch_key is None:
        return
    batch = screen.adata.obs[screen.batch_key].astype(str).to_numpy()
    table = pd.crosstab(batch, np.asarray(screen.labels, dtype=object))
    v = cramers_v(table.to_numpy())
    high = v > 0.5
    advice = "Batch and perturbation go together. Give `batch_key` to the model, and keep controls in each batch."
    yield ("batch confounding", f"Cramer's V {v:.2f}", WARN if high else OK, advice if high else "")
    bare = table.index[table[screen.control] == 0]
    advice = f"No controls in {quote_some(bare)}: there, effects of the batch and of the drugs are told apart only by "
    advice += "drugs shared with other batches."
    yield (
        "controls per batch",
        int(table[screen.control].min()),
        WARN if len(bare) else OK,
        advice if len(bare) else "",
    )
    lost = _unconnected(table, screen.control)
    advice = f"Effects of {quote_some(lost)} cannot be told from those of their batches, which share neither controls "
    advice += "nor drugs with the rest. Leave them out, or read their effects as effects of the batch."
    yield ("separable from batch", f"{len(lost)} not", FAIL if lost else OK, advice if lost else "")


def cramers_v(table: np.ndarray) -> float:
    """Association of two categorical variables between 0 and 1, from their table of counts, corrected for chance."""
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    n, (rows, columns) = table.sum(), table.shape
    if min(rows, columns) < 2 or n < 2:
        return 0.0
    phi2 = stats.chi2_contingency(table, correction=False).statistic / n
    phi2 = max(0.0, phi2 - (rows - 1) * (columns - 1) / (n - 1))
    rows, columns = rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)
    return float(np.sqrt(phi2 / min(rows - 1, columns - 1)))


def _unconnected(table: pd.DataFrame, control: str) -> list[str]:
    """Perturbations whose batches share neither controls nor, through other drugs, a link to batches that have them.

    Additive effects of batch and perturbation have as many free directions as the graph that joins batches to the
    perturbations in them has further components.
    """
    links = sparse.csr_matrix(table.to_numpy() > 0)
    _, component = connected_components(sparse.bmat([[None, links], [links.T, None]]), directed=False)
    of_perturbation = pd.Series(component[len(table) :], index=table.columns)
    return sorted(of_perturbation.index[of_perturbation != of_perturbation[control]])
