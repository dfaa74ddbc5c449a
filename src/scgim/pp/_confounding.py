"""What a design can tell apart: association of two columns, and effects mixed up with those of covariates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from scgim._validation import quote_some
from scgim.pp._plate import find_position
from scgim.pp._report import FAIL, Row, Screen, row

if TYPE_CHECKING:
    from collections.abc import Iterator

_HIGH = 0.5  # Cramer's V that is called large: Cohen's convention
_TOLERANCE = 1e-6  # of eigenvalues, relative to the largest, and of what they move: rounding


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


def association(a: pd.Series | np.ndarray, b: pd.Series | np.ndarray) -> float:
    """Cramer's V of two columns of labels."""
    return cramers_v(pd.crosstab(np.asarray(a, dtype=object), np.asarray(b, dtype=object)).to_numpy())


def inseparable(groups: np.ndarray, control: str, covariates: pd.DataFrame) -> list[str]:
    """Groups of cells whose effects relative to `control` cannot be told from additive effects of categorical covariates.

    Effects of covariates show within groups. A sum of them that is constant within every group could be anything, and the
    effects of groups where it differs from that of the controls could be anything with it.
    """
    cells = pd.DataFrame({"group": groups})
    for i, key in enumerate(covariates):
        cells[f"covariate_{i}"] = covariates[key].astype(str).to_numpy()
    cells = cells.drop_duplicates()
    design = pd.get_dummies(cells.drop(columns="group"), dtype=np.float64).to_numpy()
    code, names = pd.factorize(cells["group"])
    means = pd.DataFrame(design).groupby(code).mean().to_numpy()
    within = design - means[code]
    values, vectors = np.linalg.eigh(within.T @ within)
    free = vectors[:, values < _TOLERANCE * max(1.0, values[-1])]
    moved = np.abs((means - means[list(names).index(control)]) @ free).max(axis=1, initial=0.0) > _TOLERANCE
    return sorted(str(name) for name in names[moved])


def batches(screen: Screen) -> Iterator[Row]:
    """How batches go with perturbations, if there are any."""
    if screen.batch_key is None:
        return
    missing = int(screen.adata.obs[screen.batch_key].isna().sum())
    if missing:
        advice = f"{missing} {screen.unit}s have no batch (NaN). Name it, remove them, or leave the batch out."
        yield row("batch", f"{missing} missing", advice, verdict=FAIL)
    batch = screen.adata.obs[[screen.batch_key]].astype(str)
    labels = np.asarray(screen.labels, dtype=object)
    table = pd.crosstab(batch[screen.batch_key].to_numpy(), labels)
    v = cramers_v(table.to_numpy())
    advice = "Batch and perturbation go together. Give `batch_key` to the model, and keep controls in each batch."
    yield row("batch confounding", f"Cramer's V {v:.2f}", advice if v > _HIGH else "")
    bare = table.index[table[screen.control] == 0]
    advice = f"No controls in {quote_some(bare)}: there, effects of the batch and of the drugs are told apart only by "
    advice += "drugs shared with other batches."
    yield row("controls per batch", int(table[screen.control].min()), advice if len(bare) else "")
    lost = inseparable(labels, screen.control, batch)
    advice = f"Effects of {quote_some(lost)} cannot be told from those of their batches, which share neither controls "
    advice += "nor drugs with the rest. Leave them out, or read their effects as effects of the batch."
    yield row("separable from batch", f"{len(lost)} not", advice if lost else "", verdict=FAIL)


def positions(screen: Screen) -> Iterator[Row]:
    """How rows and columns of a plate go with doses and drugs."""
    if not screen.is_plate:
        return
    found = find_position(screen.adata.obs)
    if not found:
        yield row("plate position", "not in `adata.obs`")
    controls, contexts = screen.is_control, screen.contexts
    for axis, (key, place) in found.items():
        with_dose = 0.0 if screen.dosage is None else association(place[~controls], screen.dosage[~controls])
        with_drug = association(place[~controls], screen.labels[~controls])
        value = f"controls in {place[controls].nunique()} of {place.nunique()}, "
        value += f"Cramer's V {with_dose:.2f} with dose and {with_drug:.2f} with drug"
        along = [name for name, v in (("doses", with_dose), ("drugs", with_drug)) if v > _HIGH]
        advice = ""
        if along:
            what = " and ".join(along)
            lost = inseparable(contexts, screen.control, place.to_frame())
            advice = f"{what.capitalize()} go along with the {axis} (`{key}`): what it does to its wells, as edges of the plate "
            advice += f"do, looks like an effect of {what}. "
            if lost:
                advice += f"As a covariate it could not be told from {len(lost)} of {_n_treated(contexts)} contexts. "
            advice += f"Lay wells out at random; until then doubt what the wells of one {axis} share."
        yield row(f"plate {axis}s", value, advice)


def covariates(screen: Screen) -> Iterator[Row]:
    """Whether effects of covariates can be told from those of drugs."""
    if not screen.covariate_keys:
        return
    obs, contexts = screen.adata.obs, screen.contexts
    keys = list(dict.fromkeys([*([screen.batch_key] if screen.batch_key else []), *screen.covariate_keys]))
    mixed = {}
    for key in keys:
        if lost := inseparable(contexts, screen.control, obs[[key]]):
            mixed[key] = lost
        if key in screen.covariate_keys:
            yield _levels(screen, key)
    lost = inseparable(contexts, screen.control, obs[keys])
    which = ", ".join(f"`{key}` ({len(names)})" for key, names in mixed.items()) or "the covariates taken together"
    advice = (
        f"Effects of {quote_some(lost)} cannot be told from those of {which}: no control lies in the same levels, and "
    )
    advice += (
        "no context joins these to levels with controls. Leave the covariate out, and read these effects as effects "
    )
    advice += "of both."
    value = f"{len(lost)} of {_n_treated(contexts)} contexts not"
    yield row("separable from covariates", value, advice if lost else "", verdict=FAIL)


def _levels(screen: Screen, key: str) -> Row:
    """Row of a covariate: its levels and the controls in them."""
    column, name = screen.adata.obs[key], f"covariate {key}"
    if column.isna().any():
        missing = (
            f"{int(column.isna().sum())} {screen.unit}s have no value. Impute it, or leave them or the covariate out."
        )
        return row(name, "", missing, verdict=FAIL)
    values = column.astype(str).to_numpy()
    controls = pd.Series(values[screen.is_control]).value_counts().reindex(pd.unique(values), fill_value=0)
    bare = sorted(controls.index[controls == 0], key=lambda level: (len(level), level))
    advice = (
        f"No controls in {quote_some(bare)}: there, its effects are told from those of drugs only by drugs at the same "
    )
    advice += "dose in other levels."
    value = f"{len(controls)} levels with {controls.min()} to {controls.max()} controls"
    return row(name, value, advice if bare else "")


def _n_treated(contexts: np.ndarray) -> int:
    return len(np.unique(contexts.astype(str))) - 1
