"""How often intervals hold the truth: `python benchmarks/prediction/intervals.py`.

Screens are simulated and fitted, and what `GIM.predict_mean` says is held against the simulator's own answers: for measured
contexts, for doses and for drugs that were never measured. Effects are counted twice, over all genes and over those whose
true effect is above 0.1: the other genes make it easy. Drugs far from the training features are there to see that intervals
widen.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: CPU seconds are then those of one core
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import scvi  # noqa: E402
from benchmarks import _report  # noqa: E402

import scgim  # noqa: E402

DOSES, UNSEEN_DOSE = (0.5, 1.0, 1.5, 2.0), 0.75
QUANTITIES = {"mean": "", "log fold change": "log_fold_change", "direct effect": "direct_effect"}
CLEAR = 0.1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Coverage of the intervals of predicted means.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--genes", type=int, default=20)
    parser.add_argument("--drugs", type=int, default=40)
    parser.add_argument("--cells", type=int, default=50, help="cells a context")
    parser.add_argument("--controls", type=int, default=800)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--unseen", type=int, default=20, help="drugs that are left out")
    parser.add_argument("--level", type=float, default=0.9)
    parser.add_argument("--draws", type=int, default=100, help="draws of the parameters")
    parser.add_argument("--truth-cells", type=int, default=20000, help="cells that give the true mean of a context")
    parser.add_argument("--docs", action="store_true", help="write the table to docs/benchmarks.md as well")
    return parser.parse_args(arguments)


def fit(world: scgim.data.ScreenSimulator, seed: int) -> scgim.model.GIM:
    screen = world.screen()
    train = screen[screen.obs["split"] == "train"].copy()
    scgim.model.GIM.setup_anndata(train, size_factor_key="size_factor")
    scvi.settings.seed = seed
    model = scgim.model.GIM(train)
    model.train(enable_progress_bar=False)
    return model


def truth(world: scgim.data.ScreenSimulator, obs: pd.DataFrame, control: pd.Series, n: int, seed: int) -> dict:
    """Mean, log fold change and direct effect of each context, contexts x genes."""
    mean = np.stack(
        [
            world.sample({u: c}, n_cells=n, seed=seed).mean()
            for u, c in zip(obs["perturbation"], obs["dosage"], strict=True)
        ]
    )
    drug = world.drug_names.get_indexer(obs["perturbation"])
    direct = world.drugs.shift(drug, obs["dosage"].to_numpy())
    return {"mean": mean, "log fold change": np.log(mean / control.to_numpy()), "direct effect": direct}


def rows_of(means, true: dict) -> list[dict]:
    """Coverage, width and error of each quantity."""
    out = []
    for quantity, layer in QUANTITIES.items():
        prefix = f"{layer}_" if layer else ""
        lower, upper = means.layers[f"{prefix}lower"], means.layers[f"{prefix}upper"]
        value = means.layers[layer] if layer else means.X
        inside = (lower - 1e-6 <= true[quantity]) & (true[quantity] <= upper + 1e-6)
        clear = np.abs(true["direct effect" if quantity == "direct effect" else "log fold change"]) > CLEAR
        row = {"quantity": quantity, "coverage": inside.mean(), "where there is an effect": inside[clear].mean()}
        error = np.sqrt(((value - true[quantity]) ** 2).mean())
        out.append({**row, "mean width": (upper - lower).mean(), "error (RMS)": error})
    return out


def one_world(options: argparse.Namespace, seed: int) -> pd.DataFrame:
    world = scgim.data.ScreenSimulator(
        n_genes=options.genes,
        n_drugs=options.drugs,
        doses=DOSES,
        n_cells=options.cells,
        n_controls=options.controls,
        n_features=options.features,
        n_unseen_drugs=options.unseen,
        n_unseen_cells=2,
        seed=seed,
    )
    start = time.process_time()
    model = fit(world, seed)
    print(f"seed {seed}: fitted in {time.process_time() - start:.0f} CPU s", file=sys.stderr, flush=True)
    control = world.sample(n_cells=options.truth_cells, seed=seed).mean()
    new = world.drug_embedding.drop(index=model.perturbations)
    asked = {
        "measured": (model.perturbations, 2.0),
        "unseen dose": (model.perturbations, UNSEEN_DOSE),
        "unseen drug": (pd.concat([new, new]), np.repeat([0.75, 2.0], len(new))),
    }
    rows = []
    for split, (drugs, dosage) in asked.items():
        means = model.predict_mean(drugs, dosage, level=options.level, n_draws=options.draws, seed=seed)
        true = truth(world, means.obs, control, options.truth_cells, seed)
        rows += [{"seed": seed, "contexts": split, **row} for row in rows_of(means, true)]
    far = new.mean() + 5 * (new - new.mean())
    widths = [
        model.predict_mean(d, 2.0, n_draws=options.draws, seed=seed) for d in (new, far.add_prefix("far_", axis=0))
    ]
    near, far = (np.mean(m.layers["log_fold_change_upper"] - m.layers["log_fold_change_lower"]) for m in widths)
    print(f"seed {seed}: width at five times the distance over width: {far / near:.2f}", file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, and the smallest and largest coverage."""
    groups = frame.drop(columns="seed").groupby(["contexts", "quantity"], sort=False)
    out, coverage = groups.mean(), groups["coverage"]
    out.insert(1, "of seeds", [f"{a:.2f} to {b:.2f}" for a, b in zip(coverage.min(), coverage.max(), strict=True)])
    return out.reset_index()


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    found = table(pd.concat([one_world(options, seed) for seed in options.seeds]))
    print(_report.to_markdown(found))
    if options.docs:
        command = "python benchmarks/prediction/intervals.py --docs"
        _report.write_table("prediction-coverage", found, _report.Provenance(command, options.seeds))
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    raise SystemExit(main())
