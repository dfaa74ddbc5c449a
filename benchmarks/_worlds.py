"""Worlds with known answers.

Most come from the common generator, a script `make_synth.py` in the folder `--bench`; they are made once and kept in the work
folder. The rest come from :func:`scgim.data.simulate_screen`. Both become the same AnnData: cells of all contexts with
`obs["split"]`, and the truth in `varp["true_adjacency"]` and `varm["true_targets"]`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from sklearn.decomposition import PCA

import scgim

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData

# Prefix of the arrays of the generator, and the split that they hold.
_SPLITS = {"": "train", "pood_": "unseen_dose", "ood_": "unseen_drug"}
# What `--quick` makes of a world, to see that all runs.
_QUICK_GENERATOR = {
    "d": 8,
    "n_drugs": 10,
    "n_new_drugs": 3,
    "n_cells": 20,
    "n_control": 200,
    "n_test_cells": 20,
    "feat_dim": 5,
}
_QUICK_SIMULATOR = {"n_genes": 8, "n_drugs": 10, "n_cells": 20, "n_controls": 200, "n_features": 5}


class Place(NamedTuple):
    """Where benchmarks find their generator and keep their data."""

    bench: Path
    work: Path
    quick: bool = False


@dataclass(frozen=True)
class Job:
    """One fit of one world.

    Parameters
    ----------
    labels
        Columns that tell the job from others of its suite; tables are grouped by them.
    seed
        Seed of the world and of the fit.
    world
        Arguments of the generator or of the simulator.
    simulated
        The world comes from :func:`scgim.data.simulate_screen`.
    view
        Values to fit: `"count"`; `"float"` (generator), `"log1p"` or `"latent"` (simulator) for continuous ones.
    setup, model
        Further arguments of :meth:`scgim.model.GIM.setup_anndata` and of the model.
    features
        What is done to the drug features first, see :func:`change_features`.
    """

    labels: Mapping[str, str | int | float]
    seed: int
    world: Mapping[str, object]
    simulated: bool = False
    view: str = "count"
    setup: Mapping[str, object] = field(default_factory=dict)
    model: Mapping[str, object] = field(default_factory=dict)
    features: str = "as given"

    @property
    def identity(self) -> str:
        """All that defines the job, as text."""
        return json.dumps(asdict(self), sort_keys=True)


def generate(place: Place, **options: object) -> Path:
    """Data set of the common generator, made if it is not there yet."""
    name = "-".join(f"{key}={value}" for key, value in sorted(options.items()))
    path = place.work / "data" / f"{name}.npz"
    if path.exists():
        return path
    script = place.bench / "make_synth.py"
    if not script.exists():
        raise FileNotFoundError(f"No `{script.name}` in `{place.bench}`. Give its folder with --bench.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part.npz")
    arguments = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    subprocess.run(
        [sys.executable, str(script), "--out", str(unfinished), *arguments], check=True, stdout=subprocess.DEVNULL
    )
    unfinished.replace(path)
    return path


def read_generated(path: Path, view: str) -> AnnData:
    """AnnData of a data set of the generator; drugs are called d0, d1, ..., in its order."""
    z = np.load(path)
    values, frames = [], []
    for prefix, split in _SPLITS.items():
        context = z[f"{prefix}ctx"]
        values.append(z[f"{prefix}X_{view}"].astype(np.float32))
        drug = z[f"{prefix}ctx_drug"][context]
        columns = {"perturbation": drug_names(drug), "dosage": z[f"{prefix}ctx_dose"][context].astype(float)}
        frames.append(pd.DataFrame({**columns, "size_factor": z[f"{prefix}size_factor"].astype(float), "split": split}))
    obs = pd.concat(frames, ignore_index=True).astype({"perturbation": "category", "split": "category"})
    genes = pd.Index([f"g{j}" for j in range(len(z["A"]))])
    adata = ad.AnnData(np.concatenate(values), obs=obs.set_index(obs.index.astype(str)), var=pd.DataFrame(index=genes))
    adata.varp["true_adjacency"] = sparse.csr_matrix(z["A"].astype(bool))
    drugs, targets, features = [], [], []
    for prefix in ("", "ood_"):
        code, first = np.unique(z[f"{prefix}ctx_drug"], return_index=True)
        first = first[code >= 0]
        drugs.extend(drug_names(code[code >= 0]))
        targets.append(z[f"{prefix}ctx_targets"][first])
        features.append(z[f"{prefix}ctx_feat"][first].astype(float))
    adata.varm["true_targets"] = pd.DataFrame(np.concatenate(targets).T, genes, drugs)
    table = np.concatenate(features)
    adata.uns["drug_embedding"] = pd.DataFrame(table, drugs, [f"feature_{i}" for i in range(table.shape[1])])
    return adata


def drug_names(code: np.ndarray) -> np.ndarray:
    return np.where(code < 0, "control", np.char.add("d", code.astype(str)))


def simulate(view: str, **options: object) -> AnnData:
    """Screen of the package's simulator, with the values of one view in `X`."""
    adata = scgim.data.simulate_screen(**options)
    if view == "latent":
        adata.X = adata.layers["true_latent"]
    elif view == "log1p":
        adata.X = np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])
    elif options.get("likelihood") != "normal":
        sc.pp.filter_cells(adata, min_counts=1)
    return adata


def change_features(adata: AnnData, change: str, seed: int) -> None:
    """Make drug features worse.

    `"pca K"` keeps K principal components, `"noise S"` adds noise of S times their standard deviation, `"shuffled"` gives
    each drug the features of another, measured and new drugs apart.
    """
    if change == "as given":
        return
    table = adata.uns["drug_embedding"]
    measured = table.index.isin(adata.obs.loc[adata.obs["split"] == "train", "perturbation"].unique())
    rng = np.random.default_rng([seed, 1])
    kind, _, amount = change.partition(" ")
    values = table.to_numpy()
    if kind == "pca":
        n = min(int(amount), table.shape[1])
        scores = PCA(n, random_state=0).fit(values[measured]).transform(values)
        changed = pd.DataFrame(scores, table.index, [f"pc_{i}" for i in range(n)])
    elif kind == "noise":
        changed = table + float(amount) * values[measured].std() * rng.normal(size=values.shape)
    elif kind == "shuffled":
        order = np.arange(len(table))
        for part in (measured, ~measured):
            order[part] = rng.permutation(order[part])
        changed = pd.DataFrame(values[order], table.index, table.columns)
    else:
        raise ValueError(f"Unknown change of features {change!r}.")
    adata.uns["drug_embedding"] = changed


def open_world(job: Job, place: Place) -> tuple[AnnData, Path | None]:
    """Cells of a job, and the file they come from (None if simulated)."""
    if job.simulated:
        options = {**job.world, **(_QUICK_SIMULATOR if place.quick else {})}
        adata, path = simulate(job.view, seed=job.seed, **options), None
    else:
        options = {**job.world, **(_QUICK_GENERATOR if place.quick else {})}
        path = generate(place, seed=job.seed, **options)
        adata = read_generated(path, job.view)
    adata.obs["no_size_factor"] = 1.0
    change_features(adata, job.features, job.seed)
    return adata, path
