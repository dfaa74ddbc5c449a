"""Two models of half the cells each: what is found in both does not hang on the choice of cells."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from scgim._constants import REGISTRY
from scgim._report import about
from scgim._validation import quote_some

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgim.model._gim import GIM

_CALLED = 0.5  # probability from which a target is called
_MIN_CELLS = 4  # of each label, two in each half: a screen has no label of a single cell


class _Found(NamedTuple):
    """What a model has found: which entries it calls, and their size."""

    called: NDArray[np.bool_]
    size: NDArray[np.float64]


def halves_of(
    drug: NDArray[np.int64], context: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of two random halves of cells, in which the cells of each drug, and of its contexts, are as many as can be."""
    order = np.lexsort((rng.random(len(drug)), context, drug))
    return np.sort(order[::2]), np.sort(order[1::2])


def refit_halves(model: GIM, seed: int) -> list[GIM]:
    """Models of two halves of the training cells, with the settings of the model."""
    settings = model.train_settings_
    if settings is None:
        raise ValueError("The model holds no settings of its fit, by which to fit halves of the cells. Train it again.")
    adata = model._validate_screen(None)
    rows = np.asarray(model.train_indices, dtype=np.int64)
    if settings["train_size"] < 1:  # the halves are divided anew into cells to train on and to validate on
        rows = np.append(rows, np.asarray(model.validation_indices, dtype=np.int64))
    manager = model.get_anndata_manager(adata, required=True)
    context = np.asarray(manager.get_from_registry(REGISTRY.CONTEXT), dtype=np.int64).ravel()[rows]
    drug = model.module.group.cpu().numpy()[context]
    codes, counts = np.unique(drug, return_counts=True)
    few = [model.perturbations[u] if u >= 0 else model._setup_args["control"] for u in codes[counts < _MIN_CELLS]]
    if few:
        raise ValueError(
            f"Each half needs two cells of every perturbation and two controls. There are fewer than four of {quote_some(few)}."
        )
    halves = halves_of(drug, context, np.random.default_rng(seed))
    return [_refit(model, np.sort(rows[half]), settings, seed) for half in halves]


def _refit(model: GIM, rows: NDArray[np.int64], settings: dict[str, Any], seed: int) -> GIM:
    """A model of some of the cells."""
    part = model._own_data()[rows]
    part = part.to_memory() if part.isbacked else part.copy()
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of half the cells; those of all cells were given by the fit itself
        type(model).setup_anndata(part, **model._setup_args)
        half = type(model)(part, **model.init_params_["non_kwargs"])
        accelerator = "cpu" if model.module.device.type == "cpu" else "gpu"
        half.train(**settings, plan_kwargs=model._plan_kwargs, accelerator=accelerator, enable_progress_bar=False)
    return half


def _edges(model: GIM) -> _Found:
    return _Found(model.adjacency_, np.where(model.adjacency_, model.module.mean_slopes().numpy(), 0.0))


def _targets(model: GIM, perturbations: list[str]) -> _Found:
    """Targets of some perturbations, and effects on them at the largest dosage."""
    rows = torch.as_tensor(pd.Index(model.perturbations).get_indexer(perturbations))
    known = model.module.knowledge.interventions().rows(rows)
    top = torch.full((len(rows),), model.module.knowledge.context_log_dosage().max(), dtype=torch.float64)
    return _Found(known.target_probs.numpy() > _CALLED, known.direct(top).numpy())


def agreement_of_halves(model: GIM, halves: list[GIM]) -> dict[str, pd.DataFrame]:
    """Tables of how far two halves agree, and of which edges and targets of the model each was found."""
    perturbations = halves[0].perturbations
    edges = [_edges(m) for m in (model, *halves)]
    targets = [_targets(m, perturbations) for m in (model, *halves)]
    undirected = [_Found(e.called | e.called.T, e.size + e.size.T) for e in edges]
    upper = np.triu_indices(len(undirected[0].called))
    undirected = [_Found(e.called[upper], e.size[upper]) for e in undirected]
    rows = {"edges": edges, "edges, whatever their direction": undirected, "targets": targets}
    table = pd.DataFrame({name: _agreement(*found) for name, found in rows.items()}).T.astype(
        dict.fromkeys(["all_cells", "first", "second", "both"], int)
    )
    genes = np.asarray(model.gene_names_)
    names = {
        "edges": (("source", "target"), genes, genes, edges, "weight"),
        "targets": (("perturbation", "gene"), np.asarray(perturbations), genes, targets, "effect"),
    }
    out = {
        "halves": about(
            table,
            "called with all cells and in each half; agreement: both over either; correlation of sizes over either",
        )
    }
    for name, (columns, first, second, found, size) in names.items():
        i, j = np.nonzero(found[0].called)
        frame = pd.DataFrame({columns[0]: first[i], columns[1]: second[j], size: found[0].size[i, j]})
        frame["halves"] = sum(half.called[i, j].astype(int) for half in found[1:])
        frame = frame.sort_values(["halves", size], key=np.abs, ascending=[True, False], ignore_index=True)
        out[name] = about(frame, f"{name} of the model, those found in fewest halves first")
    return out


def _agreement(whole: _Found, first: _Found, second: _Found) -> dict[str, float]:
    either, both = first.called | second.called, first.called & second.called
    varies = min(part.size[either].std() if either.any() else 0.0 for part in (first, second)) > 0
    return {
        "all_cells": whole.called.sum(),
        "first": first.called.sum(),
        "second": second.called.sum(),
        "both": both.sum(),
        "agreement": both.sum() / either.sum() if either.any() else np.nan,
        "correlation": np.corrcoef(first.size[either], second.size[either])[0, 1] if varies else np.nan,
    }
