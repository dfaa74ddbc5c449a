"""Cells in memory and the minibatches drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_DENSE_BYTES = 2**30  # counts smaller than this when dense are kept dense; larger ones a minibatch at a time


@dataclass(frozen=True)
class Cells:
    """Everything the model needs of the cells.

    Parameters
    ----------
    x
        Values, shape (N, d), dense or CSR.
    context
        Context code of each cell, -1 where the context was not measured in training, shape (N,).
    covariates
        Covariate design, shape (N, Q).
    log_size
        Log size factors, shape (N,).
    """

    x: NDArray | sparse.csr_matrix
    context: NDArray[np.int64]
    covariates: NDArray[np.float32]
    log_size: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.context)

    def take(self, index: NDArray[np.int64]) -> Cells:
        """Chosen cells."""
        return Cells(self.x[index], self.context[index], self.covariates[index], self.log_size[index])


class BatchLoader:
    """Minibatches of cells, shuffled anew in each epoch if asked.

    A minibatch holds values `x` (B, d), codes `context` (B,), `covariates` (B, Q) and `log_size` (B, 1).

    Parameters
    ----------
    cells
        The cells.
    batch_size
        Cells per minibatch.
    shuffle
        Draw a new order, from torch's global generator, at each pass.
    """

    def __init__(self, cells: Cells, batch_size: int, shuffle: bool):
        self.n, self.batch_size, self.shuffle = len(cells), batch_size, shuffle
        dense = cells.x.shape[0] * cells.x.shape[1] * 4 <= _DENSE_BYTES
        x = cells.x.toarray() if dense and sparse.issparse(cells.x) else cells.x  # type: ignore[union-attr]
        self.x = x if sparse.issparse(x) else torch.as_tensor(np.asarray(x, dtype=np.float32))
        self.context = torch.as_tensor(cells.context)
        self.covariates = torch.as_tensor(cells.covariates)
        self.log_size = torch.as_tensor(cells.log_size)[:, None]

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(self.n) if self.shuffle else torch.arange(self.n)
        yield from map(self.take, order.split(self.batch_size))

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Chosen cells as a minibatch."""
        return {
            "x": self._values(rows),
            "context": self.context[rows],
            "covariates": self.covariates[rows],
            "log_size": self.log_size[rows],
        }

    def _values(self, rows: Tensor) -> Tensor:
        if isinstance(self.x, Tensor):
            return self.x[rows]
        return torch.as_tensor(self.x[rows.numpy()].toarray(), dtype=torch.float32)


class CellsDataModule(pl.LightningDataModule):
    """Training and validation cells for Lightning, in place of scvi-tools' splitter, which fetches cells one by one.

    Parameters
    ----------
    adata_manager
        Unused; the signature is that of :class:`~scvi.dataloaders.DataSplitter`.
    cells
        All cells.
    external_indexing
        Indices of the training, validation and test cells.
    batch_size
        Cells per minibatch.
    **kwargs
        Further arguments of the splitter, which the given indices make void.
    """

    def __init__(self, adata_manager, *, cells: Cells, external_indexing: list, batch_size: int, **kwargs):
        super().__init__()
        self.train_idx, self.val_idx, self.test_idx = (np.asarray(i, dtype=np.int64) for i in external_indexing)
        self.cells, self.batch_size = cells, batch_size

    @property
    def n_train(self) -> int:
        return len(self.train_idx)

    @property
    def n_val(self) -> int:
        return len(self.val_idx)

    def setup(self, stage: str | None = None) -> None:
        """Nothing to prepare: the cells are in memory."""

    def train_dataloader(self) -> BatchLoader:
        return BatchLoader(self.cells.take(self.train_idx), self.batch_size, shuffle=True)

    def val_dataloader(self) -> BatchLoader | list:
        return BatchLoader(self.cells.take(self.val_idx), self.batch_size, shuffle=False) if self.n_val else []


def split_cells(
    n_cells: int, train_size: float, validation_size: float | None, shuffle: bool, seed: int
) -> list[NDArray[np.int64]]:
    """Indices of training, validation and test cells."""
    if not 0 < train_size <= 1:
        raise ValueError(f"`train_size` must lie in (0, 1], found {train_size}.")
    validation_size = 1 - train_size if validation_size is None else validation_size
    if validation_size < 0 or train_size + validation_size > 1 + 1e-9:
        raise ValueError(
            f"`train_size` {train_size} and `validation_size` {validation_size} must not exceed 1 together."
        )
    order = np.random.default_rng(seed).permutation(n_cells) if shuffle else np.arange(n_cells)
    n_train = max(1, round(train_size * n_cells))
    n_val = min(round(validation_size * n_cells), n_cells - n_train)
    return [np.sort(part) for part in np.split(order, [n_train, n_train + n_val])]
