"""Fit a very large screen whose counts are made on the device; seconds and memory of its parts go to a file."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from benchmarks.scale.measure import timed_parts

import scgim

_DOSES = (0.25, 0.5, 1.0, 2.0)
_N_DRUGS = 188  # as in sci-Plex 3: 752 contexts and the control
_SHARE_OF_REGULATORS, _PARENTS, _WEIGHT = 0.1, 2, 0.4
_EFFECT, _TARGETS, _CONTROLS = 1.2, 2, 0.05
_DISPERSION = 0.1
_CHUNK = 50_000  # cells made at once: for memory
SIZES = {"gpu": (1_000_000, 2000), "cpu": (100_000, 200)}
_FEATURES = 16
_EPOCHS = {"gpu": 10, "cpu": 9}
_BATCH = {"gpu": 8192, "cpu": 2048}  # at least 400 steps, as a fit makes, for edges without support to be cut
_SEARCH_SECONDS = 120  # the search runs on the processor, and the whole is to end within nine minutes


def make(n_cells: int, n_genes: int, device: torch.device) -> tuple[ad.AnnData, np.ndarray]:
    """Screen, and its true adjacency. Regulators come first and act on genes after them."""
    rng = torch.Generator(device).manual_seed(0)
    n_regulators = int(_SHARE_OF_REGULATORS * n_genes)
    weights = torch.zeros(n_genes, n_genes, device=device)
    for j in range(1, n_genes):
        parents = torch.randperm(min(j, n_regulators), generator=rng, device=device)[:_PARENTS]
        sign = torch.randint(0, 2, (len(parents),), generator=rng, device=device) * 2.0 - 1
        weights[parents, j] = _WEIGHT * sign
    effects = torch.zeros(_N_DRUGS + 1, n_genes, device=device)  # the control is last
    for own in effects[:-1]:
        own[torch.randperm(n_genes, generator=rng, device=device)[:_TARGETS]] = _EFFECT
    drug = torch.randint(0, _N_DRUGS, (n_cells,), generator=rng, device=device)
    drug[: int(_CONTROLS * n_cells)] = _N_DRUGS
    doses = torch.tensor(_DOSES, device=device)
    dose = doses[torch.randint(0, len(_DOSES), (n_cells,), generator=rng, device=device)]
    dose[drug == _N_DRUGS] = 0.0
    base = 1.0 + torch.rand(n_genes, generator=rng, device=device)
    x = np.empty((n_cells, n_genes), dtype=np.float32)
    torch.manual_seed(0)  # gamma and Poisson draws take no generator
    for cells in torch.arange(n_cells, device=device).split(_CHUNK):
        shift = effects[drug[cells]] * (dose[cells] / (dose[cells] + 0.5))[:, None]
        own = draw(base, weights, shift, n_regulators)
        x[cells[0].item() : cells[-1].item() + 1] = own.cpu().numpy()
    names = np.array([*(f"drug_{u}" for u in range(_N_DRUGS)), "control"])
    obs = pd.DataFrame({"perturbation": pd.Categorical(names[drug.cpu().numpy()]), "dosage": dose.cpu().numpy()})
    obs["size_factor"] = 1.0
    adata = ad.AnnData(x, obs=obs.set_index(obs.index.astype(str)))
    adata.var["regulator"] = np.arange(n_genes) < n_regulators
    features = effects[:-1] @ torch.randn(n_genes, _FEATURES, generator=rng, device=device)
    columns = [f"feature_{i}" for i in range(_FEATURES)]
    adata.uns["drug_embedding"] = pd.DataFrame(features.cpu().double().numpy(), names[:-1], columns)
    return adata, weights.cpu().numpy() != 0


def draw(base: torch.Tensor, weights: torch.Tensor, shift: torch.Tensor, n_regulators: int) -> torch.Tensor:
    """Negative binomial counts (B, d), regulators one by one and the other genes at once."""
    x, h = torch.empty_like(shift), torch.zeros(len(shift), n_regulators, device=shift.device)
    scale = (base.exp().log1p(), (base.exp() + _DISPERSION * (2 * base).exp()).sqrt() / (1 + base.exp()))
    for genes in [*([j] for j in range(n_regulators)), list(range(n_regulators, len(base)))]:
        log_mean = base[genes] + h @ weights[:n_regulators, genes] + shift[:, genes]
        shape = torch.full_like(log_mean, 1 / _DISPERSION)
        noise = torch.distributions.Gamma(shape, shape, validate_args=False).sample()
        x[:, genes] = torch.poisson(log_mean.clamp_max(7.0).exp() * noise)
        if genes[0] < n_regulators:
            h[:, genes] = (x[:, genes].log1p() - scale[0][genes]) / scale[1][genes]
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=list(SIZES), default="gpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    start = time.perf_counter()
    n_cells, n_genes = SIZES[options.device]
    adata, truth = make(n_cells, n_genes, device)
    row = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cells": n_cells,
        "genes": n_genes,
    }
    row["seconds_to_make"] = time.perf_counter() - start
    scvi.settings.seed = 0
    start = time.perf_counter()
    scgim.model.GIM.setup_anndata(adata, size_factor_key="size_factor", regulator_key="regulator")
    model = scgim.model.GIM(adata)
    with timed_parts(time.perf_counter) as parts:
        model.train(
            _EPOCHS[options.device],
            accelerator=options.device,
            batch_size=_BATCH[options.device],
            max_search_seconds=_SEARCH_SECONDS,
            enable_progress_bar=False,
        )
    row |= {"seconds": time.perf_counter() - start, **{f"seconds_of_{name}": value for name, value in parts.items()}}
    row["contexts"] = len(model.contexts)
    start = time.perf_counter()
    model.predict_mean(model.perturbations[:10], dosage=1.0)
    row["seconds_of_prediction"] = time.perf_counter() - start
    found = model.adjacency_.astype(bool)
    row |= {"edges": int(truth.sum()), "edges_found": int(found.sum()), "edges_right": int((found & truth).sum())}
    row["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        row["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    options.out.write_text(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
