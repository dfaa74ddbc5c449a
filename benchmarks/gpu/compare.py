"""The same small fit on the CPU and on a GPU: edges, effects and likelihood side by side."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import scvi

import scgim


def fit(device: str) -> tuple[scgim.model.GIM, float]:
    """A small model, and the seconds that its training took."""
    adata = scgim.data.simulate_screen(n_genes=20, n_drugs=12, seed=0)
    scvi.settings.seed = 0
    scgim.model.GIM.setup_anndata(adata, size_factor_key="size_factor")
    model, start = scgim.model.GIM(adata), time.perf_counter()
    model.train(30, accelerator=device, enable_progress_bar=False)
    return model, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    (one, seconds), (other, other_seconds) = fit("cpu"), fit(options.device)
    difference = np.abs(one.get_effects().to_numpy() - other.get_effects().to_numpy())
    likelihood = one.score()["log_likelihood"] - other.score()["log_likelihood"]
    row = {
        "device": options.device,
        "seconds_on_cpu": seconds,
        "seconds_on_device": other_seconds,
        "edges_that_differ": int((one.adjacency_ != other.adjacency_).sum()),
        "largest_difference_of_effects": float(difference.max()),
        "largest_difference_of_log_likelihood": float(likelihood.abs().max()),
    }
    options.out.write_text(json.dumps(row, indent=2))
    if row["edges_that_differ"] or row["largest_difference_of_effects"] > 0.05:
        raise SystemExit(f"The fits differ: {row}")


if __name__ == "__main__":
    main()
