"""Are all outputs what they were? Fits small screens of every kind and compares what the public methods give, number by number.

For changes that should change nothing: write with the code as it was, compare with the code as it is.

    python benchmarks/unchanged.py write outputs.npz
    python benchmarks/unchanged.py compare outputs.npz
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scvi

import scgim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

DRAWS = {"n_draws": 8, "n_samples": 20, "seed": 1}


def cases() -> Iterator[tuple[str, AnnData, dict, dict]]:
    """Name, screen, and arguments of the set-up and of the model."""
    yield "demo", scgim.datasets.load_demo(), {"size_factor_key": "size_factor"}, {}
    linear, mlp = small_screen("linear", seed=3), small_screen("mlp", seed=4)
    yield "linear", linear, {}, {}
    yield "mlp", mlp, {"size_factor_key": "size_factor"}, {"mechanism": "mlp"}
    yield "hard", linear, {"size_factor_key": "size_factor"}, {"intervention": "hard"}
    yield "latent", linear, {"size_factor_key": "size_factor"}, {"measurement": "latent"}
    yield "plain", linear, {"drug_embedding_key": None, "dosage_key": None}, {"likelihood": "poisson"}
    yield "priors", linear, {"size_factor_key": "size_factor"}, priors(linear)
    yield "covariates", *with_covariates(mlp), {}
    values = mlp.copy()
    values.X = np.log1p(values.X.toarray() if hasattr(values.X, "toarray") else values.X).astype(np.float32)
    yield "normal", values, {}, {"likelihood": "normal"}


def small_screen(mechanism: str, seed: int) -> AnnData:
    adata = scgim.data.simulate_screen(
        n_genes=12, n_drugs=10, n_unseen_drugs=2, mechanism=mechanism, n_cells=60, n_controls=400, seed=seed
    )
    return adata[adata.obs["split"] == "train"].copy()


def priors(adata: AnnData) -> dict:
    genes = adata.var_names
    drugs = sorted(set(adata.obs["perturbation"]) - {"control"})
    targets = pd.DataFrame([[0.9, 0.1]], index=drugs[:1], columns=genes[:2])
    network = pd.DataFrame([[0.8, 0.01]], index=genes[:1], columns=genes[1:3])
    return {"target_prior": targets, "network_prior": network}


def with_covariates(adata: AnnData) -> tuple[AnnData, dict]:
    adata = adata.copy()
    rng = np.random.default_rng(0)
    adata.obs["plate"] = rng.choice(["a", "b"], adata.n_obs)
    adata.obs["line"] = rng.choice(["x", "y", "z"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    keys = {"batch_key": "plate", "categorical_covariate_keys": ["line"], "continuous_covariate_keys": ["age"]}
    return adata, {"size_factor_key": "size_factor", **keys}


def outputs(adata: AnnData, setup: dict, options: dict) -> dict[str, np.ndarray]:
    """All that the public methods give."""
    scvi.settings.seed = 0
    adata = adata.copy()
    scgim.model.GIM.setup_anndata(adata, **setup)
    model = scgim.model.GIM(adata, **options)
    model.train(max_epochs=12, accelerator="cpu", enable_progress_bar=False)
    found: dict[str, Any] = {
        "adjacency": model.get_adjacency(),
        "graph": model.get_graph().sort_values(["source", "target"]),
        "targets": model.get_targets(),
        "effects": pd.concat(model.get_effects(return_sd=True)),
        "total effects": model.get_total_effects(),
        "controls": model.control_check_,
        "history": pd.concat(model.history.values(), axis=1),
    }
    drugs, (one, other) = model.perturbations, model.perturbations[:2]
    queries: dict[str, Any] = {"measured": drugs[:3]}
    if model.drug_embedding is not None:
        queries["new"] = -model.drug_embedding.iloc[:3].rename(index="new_{}".format)
        found["importance"] = model.get_feature_importance()
    for name, query in queries.items():
        predicted = model.predict(query, dosage=1.0, n_samples=20, seed=1)
        found[f"{name} drawn"], found[f"{name} expected"] = predicted.to_df(), predicted.to_df("expected")
        means = model.predict_mean(query, dosage=1.0, **DRAWS)
        found.update(
            {f"{name} {layer}": means.to_df(layer) for layer in means.layers}, **{f"{name} mean": means.to_df()}
        )
        ranked = model.rank_drugs(query, [adata.var_names[0]], metric="distance", **DRAWS)
        found[f"{name} ranked"] = ranked[["score", "lower", "upper"]]
    found["curve"] = model.get_dose_response(one, adata.var_names[:3].tolist())
    found["together"] = model.predict_combination({one: 1.0, other: 0.5}, n_samples=20, seed=2).to_df()
    found["cells"] = model.predict_cells(adata[:20].copy(), [one], dosage=1.0, seed=3).to_df()
    found["held"] = model.intervene({adata.var_names[0]: 1.0}, n_samples=20, seed=4).to_df()
    found["pushed"] = model.intervene({adata.var_names[1]: 0.5}, kind="shift", perturbation=other, seed=4).to_df()
    if options.get("measurement") != "latent":
        found["score"] = model.score(adata, n_samples=3)
    model.annotate(adata, n_samples=100)
    found.update({f"annotated {key}": table for key, table in adata.varm.items() if isinstance(table, pd.DataFrame)})
    return {name: table.select_dtypes(["number", "bool"]).to_numpy(dtype=float) for name, table in found.items()}


def all_outputs() -> dict[str, np.ndarray]:
    found = {}
    for name, adata, setup, options in cases():
        print(f"fitting {name}", flush=True)
        found.update({f"{name}: {what}": values for what, values in outputs(adata, setup, options).items()})
    return found


def compare(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> list[str]:
    """What differs, in words; empty where nothing does."""
    found = [f"{name}: only {'before' if name in before else 'after'}" for name in sorted(set(before) ^ set(after))]
    for name in before.keys() & after.keys():
        a, b = before[name], after[name]
        if a.shape != b.shape:
            found.append(f"{name}: shape {a.shape}, now {b.shape}")
        elif not np.array_equal(a, b, equal_nan=True):
            found.append(f"{name}: by up to {np.nanmax(np.abs(a - b)):.2g}, of {np.nanmax(np.abs(a)):.2g}")
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("file")
    arguments = parser.parse_args()
    logging.getLogger("scvi").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    if arguments.what == "write":
        np.savez_compressed(arguments.file, **all_outputs())
        return
    with np.load(arguments.file) as stored:
        before = dict(stored)
    different = compare(before, all_outputs())
    print("\n".join(different) if different else f"All {len(before)} outputs are equal, bit for bit.")
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
