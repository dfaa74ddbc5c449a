"""Everything scGIM does, on a simulated drug screen: fit, predict what was held out, compare with the truth, draw, save.

Run by `make demo`. Nothing is downloaded; it takes one to three minutes on two processor cores.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import scvi
from rich.console import Console
from rich.progress import track
from rich.table import Table

import scgim

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

BASELINES = {
    "control": "control cells",
    "dosemean": "mean of drugs",
    "nearest_dose": "nearest dose",
    "ridge": "ridge regression",
}
SPLITS = {"unseen_dose": "Doses held out", "unseen_drug": "Drugs held out"}
FILES = {
    "*.png": "network, spread of a drug, targets, effects, dose response, training, predictions, calibration",
    "screen.h5ad": "the screen with all results: `anndata.read_h5ad`, then any of `scgim.pl`",
    "predicted.h5ad": "simulated cells of the held-out contexts",
    "comparison.csv": "the tables of section 3, with all metrics",
    "model/": "the fitted model: `scgim.model.GIM.load(folder, adata=False)`",
}

console = Console(highlight=False)


def fit(adata: AnnData) -> scgim.model.GIM:
    """Fit a model to the cells marked for training."""
    train = adata[adata.obs["split"] == "train"].copy()
    scgim.model.GIM.setup_anndata(train, size_factor_key="size_factor")
    model = scgim.model.GIM(train)
    model.train()
    return model


def predict_held_out(model: scgim.model.GIM, adata: AnnData, seed: int) -> AnnData:
    """Cells under each drug and dose that the fit has not seen."""
    held_out = adata.obs.loc[adata.obs["split"] != "train", ["perturbation", "dosage"]].drop_duplicates()
    features = adata.uns["drug_embedding"].loc[held_out["perturbation"]]
    return model.predict(features, held_out["dosage"].to_numpy(), n_samples=500, seed=seed)


def compare(adata: AnnData, predicted: AnnData, seed: int) -> pd.DataFrame:
    """Baselines and the model on all held-out contexts."""
    return scgim.metrics.compare_baselines(
        adata,
        predicted={"scGIM": predicted},
        methods=list(BASELINES),
        size_factor_key="size_factor",
        seed=seed,
    )


def prediction_table(results: pd.DataFrame, split: str) -> Table:
    """Scores on one kind of held-out contexts, the best of each column in bold."""
    rows = results.loc[split]
    columns = {
        "centred_correlation": ("centred correlation", max),
        "discrimination": ("discrimination", max),
        "energy_distance": ("energy distance", min),
        "mean_shift_error": ("error", min),
    }
    table = Table(title=f"{SPLITS[split]}: {int(rows['n_contexts'].iloc[0])} contexts", title_justify="left")
    table.add_column("method", no_wrap=True)
    for label, better in columns.values():
        table.add_column(f"{label} {'↓' if better is min else '↑'}", justify="right")
    for method, row in rows.iterrows():
        cells = []
        for column, (_, better) in columns.items():
            text = "-" if np.isnan(row[column]) else f"{row[column]:.3f}"
            cells.append(f"[bold]{text}[/]" if row[column] == better(rows[column].dropna()) else text)
        table.add_row(BASELINES.get(str(method), str(method)), *cells)
    return table


def recovery_table(model: scgim.model.GIM, adata: AnnData) -> Table:
    """Edges and direct targets against the truth of the simulation."""
    edges = scgim.metrics.edge_metrics(adata.varp["true_adjacency"], model.get_adjacency())
    targets = scgim.metrics.target_metrics(adata.varm["true_targets"][model.perturbations], adata.varm["gim_targets"])
    table = Table(title="Recovery of the truth", title_justify="left")
    table.add_column("")
    for column in ("true", "called", "AUPRC ↑", "precision ↑", "recall ↑", "SHD ↓"):
        table.add_column(column, justify="right")

    def row(name: str, true: int, called: float, scores: dict[str, float], shd: str) -> None:
        rates = [f"{scores[name]:.3f}" for name in ("auprc", "precision", "recall")]
        table.add_row(name, str(true), f"{called:.0f}", *rates, shd)

    n_targets = int(adata.varm["true_targets"][model.perturbations].to_numpy().sum())
    row("edges", adata.varp["true_adjacency"].nnz, edges["n_edges"], edges, f"{edges['shd']:.0f}")
    row("direct targets", n_targets, targets["n_targets"], targets, "-")
    return table


def draw(model: scgim.model.GIM, adata: AnnData, predicted: AnnData, output: Path) -> None:
    """Draw and save all figures."""
    pl, drug = scgim.pl, adata.varm["gim_total_effects"].abs().sum().idxmax()
    new_drug = next(name for name in predicted.obs["perturbation"].cat.categories if name not in model.perturbations)
    plots = {
        "network": lambda: pl.network(adata, title="Learned network", show=False),
        f"network_{drug}": lambda: pl.network(adata, drug, title=f"How {drug} spreads", show=False),
        "targets": lambda: pl.targets(adata, kind="dot", title="Direct targets", show=False),
        "effects": lambda: pl.effects(adata, drug, show=False),
        "dose_response": lambda: pl.dose_response(adata, drug, title=f"Dose response of {drug}", show=False),
        "history": lambda: pl.history(model, show=False),
        "predicted_vs_observed": lambda: pl.predicted_vs_observed(
            adata, predicted, new_drug, title=f"{new_drug}, never measured", show=False
        ),
        "calibration": lambda: pl.calibration(adata, title="Probabilities against the truth", show=False),
    }
    for name, plot in track(plots.items(), "Drawing figures", console=console):
        plot()
        plt.savefig(output / f"{name}.png", dpi=150, bbox_inches="tight")
        plt.close()


def quiet() -> None:
    """Leave the console to the results: no messages about hardware and loggers."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def main(output: Path, seed: int) -> None:
    start = time.perf_counter()
    quiet()
    scvi.settings.seed = seed
    output.mkdir(parents=True, exist_ok=True)

    console.rule("[bold]1  A simulated screen", align="left")
    with console.status("Simulating"):
        adata = scgim.datasets.load_demo(seed=seed)
    counts = adata.obs.groupby("split", observed=True).size()
    console.print(
        f"{adata.n_vars} genes, {adata.obs['perturbation'].nunique() - 1} drugs; cells to fit {counts['train']:,}, "
        f"held out at new doses {counts['unseen_dose']:,}, under new drugs {counts['unseen_drug']:,}\n"
    )

    console.rule("[bold]2  Fit", align="left")
    model = fit(adata)
    model.annotate(adata)

    console.rule("[bold]3  Held-out doses and drugs, beside simple baselines", align="left")
    with console.status("Predicting"):
        predicted = predict_held_out(model, adata, seed)
    with console.status("Fitting the baselines"):
        results = compare(adata, predicted, seed)
    for split in SPLITS:
        console.print(prediction_table(results, split))
    console.print(
        "Centred correlation: of mean shifts less the mean shift of the training data. Discrimination: is the right "
        "prediction the nearest one? What all drugs have in common earns 0 and 0.5. Energy distance between cells and "
        "squared error of mean shifts: in standard deviations of control cells, log1p counts. Best in bold.\n"
    )

    console.rule("[bold]4  Network and targets", align="left")
    console.print(recovery_table(model, adata))
    console.print("An edge or a target is called where its probability is above 0.5.\n")

    console.rule("[bold]5  Files", align="left")
    draw(model, adata, predicted, output)
    with console.status("Writing"):
        adata.write_h5ad(output / "screen.h5ad", compression="gzip")
        predicted.write_h5ad(output / "predicted.h5ad", compression="gzip")
        results.to_csv(output / "comparison.csv")
        model.save(output / "model", overwrite=True, save_anndata=False)
    files = Table(box=None, show_header=False, padding=(0, 2))
    for name, what in FILES.items():
        files.add_row(name, what)
    console.print(f"In {output}:", files, sep="\n")
    console.print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for figures and files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world, the fit and the predictions")
    arguments = parser.parse_args()
    main(arguments.output, arguments.seed)
