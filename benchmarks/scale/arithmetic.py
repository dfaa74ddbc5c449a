"""A step of training beside the arithmetic that it cannot do without: matrix products, likelihood, gradients, update."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import scvi
import torch
from lightning.pytorch import Callback
from torch import Tensor

import scgim

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

_BATCH = 1024
_N_EPOCHS = 6  # the first of which is left out


class _EpochTimes(Callback):
    """Seconds of each epoch, validation left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def compare(adata: AnnData, seed: int, *, quick: bool = False) -> dict[str, float]:
    """Seconds of steps and epochs; medians."""
    n_epochs = 2 if quick else _N_EPOCHS
    options = {"accelerator": "cpu", "train_size": 1.0, "enable_progress_bar": False, "early_stopping": False}
    gim = _epoch(lambda times: _gim(adata.copy(), seed).train(n_epochs, callbacks=[times], **options), n_epochs)
    row = {"epoch": gim, "step": gim / int(np.ceil(adata.n_obs / _BATCH)), "floor": floor(adata)}
    row["ratio"] = row["step"] / row["floor"]
    for name, size in (("scvi_epoch", _BATCH), ("scvi_epoch_default", 128)):
        train = lambda times, size=size: _scvi(adata.copy(), seed).train(
            n_epochs, callbacks=[times], batch_size=size, **options
        )
        row[name] = _epoch(train, n_epochs)
    return row | {"ratio_scvi": row["epoch"] / row["scvi_epoch"]}


def _epoch(train: Callable[[_EpochTimes], None], n_epochs: int) -> float:
    times = _EpochTimes()
    train(times)
    return float(np.median(times.seconds[1:n_epochs]))


def _gim(adata: AnnData, seed: int) -> scgim.model.GIM:
    scvi.settings.seed = seed
    scgim.model.GIM.setup_anndata(adata, size_factor_key="size_factor")
    return scgim.model.GIM(adata)


def _scvi(adata: AnnData, seed: int) -> scvi.model.SCVI:
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata)
    return scvi.model.SCVI(adata)


def floor(adata: AnnData, n_steps: int = 30) -> float:
    """Median seconds of a step of the bare arithmetic: counts to features, features times weights, negative binomial, gradients, Adam."""
    torch.manual_seed(0)
    d = adata.n_vars
    x = torch.as_tensor(adata.X[: _BATCH * 8].toarray(), dtype=torch.float32)
    groups = adata.obs.groupby(["perturbation", "dosage"], observed=True)
    context = torch.as_tensor(groups.ngroup().to_numpy()[: len(x)].astype(np.int64))
    sizes = torch.as_tensor(adata.obs["size_factor"].to_numpy(np.float32)[: len(x), None])
    features = torch.log1p(x / sizes)
    centre, spread = features.mean(0), features.std(0) + 0.1
    mask = torch.rand(d, d).lt(2 / d).triu(1).float()
    parameters = [torch.zeros(shape, requires_grad=True) for shape in ((d, d), (d,), (groups.ngroups, d), (d,))]
    weight, intercept, shift, log_scale = parameters
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step(rows: Tensor) -> None:
        counts, log_size = x[rows], sizes[rows].log()
        h = (torch.log1p(counts * torch.exp(-log_size)) - centre) / spread
        log_mean = h @ (weight * mask) + intercept + shift[context[rows]] + log_size
        optimizer.zero_grad()
        _nb(counts, log_mean, log_scale).sum().neg().div(len(counts)).backward()
        optimizer.step()

    seconds = []
    for _ in range(n_steps):
        rows = torch.randint(len(x), (_BATCH,))
        start = time.perf_counter()
        step(rows)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _nb(x: Tensor, log_mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log density of the negative binomial, each term once."""
    r = log_scale.exp()
    log_total = torch.nn.functional.softplus(log_mean - log_scale) + log_scale  # log(mean + r)
    of_counts = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
    return of_counts + r * (log_scale - log_total) + x * (log_mean - log_total)
