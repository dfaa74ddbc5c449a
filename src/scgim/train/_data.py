"""Cells in memory and the minibatches drawn from them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scgim._backed import MatrixRows, StoredMatrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

# Counts smaller than this when dense are kept dense, for time; larger ones a minibatch at a time, for memory. Who leaves them in a file has little.
_DENSE_BYTES, _DENSE_BYTES_OF_FILE = 2**30, 2**27
_BYTES_OF_VALUE = 4  # float32
_COPIED_VALUES = 2**22  # at a time, so that there is no second copy
_AHEAD = 16  # minibatches that are read from a file in one go: for time
_AHEAD_VALUES = 2**26  # most values, counting zeros, that they hold: 256 MB
_BLOCK = 64  # neighbouring cells that stay together when a file is read in random order, until those read are shuffled
_SEEDS, _ROUNDING = 2**31, 1e-9  # seeds to draw from, and what shares may add up to beyond 1


@dataclass(frozen=True)
class Cells:
    """Everything the model needs of the cells.

    Parameters
    ----------
    x
        Values, shape (N, d), dense, CSR or in a file, or rows of these.
    context
        Context code of each cell, -1 where the context was not measured in training, shape (N,).
    covariates
        Covariate design, shape (N, Q).
    log_size
        Log size factors, shape (N,).
    """

    x: NDArray | sparse.csr_matrix | MatrixRows
    context: NDArray[np.int64]
    covariates: NDArray[np.float32]
    log_size: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.context)

    def take(self, index: NDArray[np.int64]) -> Cells:
        """Chosen cells."""
        return Cells(self.x[index], self.context[index], self.covariates[index], self.log_size[index])


class Shard(NamedTuple):
    """The part of each minibatch that one of several processes works on."""

    rank: int = 0
    n: int = 1


class BatchLoader:
    """Minibatches of cells, shuffled anew in each epoch if asked.

    A minibatch holds values `x` (B, d), codes `context` (B,), `covariates` (B, Q) and `log_size` (B, 1).

    Values are those of :func:`shared_values`, on the GPU where they fit; cells of which they were made already share them. A file is read some
    minibatches ahead, and shuffled by blocks of neighbouring cells first.

    Parameters
    ----------
    cells
        The cells.
    batch_size
        Cells per minibatch, over all processes.
    shuffle
        Draw a new order, from torch's global generator, at each pass.
    shard
        Which of several processes this is.
    device
        Where the cells go if they fit.
    """

    def __init__(
        self,
        cells: Cells,
        batch_size: int,
        shuffle: bool,
        shard: Shard = Shard(),
        device: torch.device | None = None,
    ):
        if batch_size < shard.n:
            raise ValueError(f"`batch_size` {batch_size} is less than the number of processes, {shard.n}. Raise it.")
        self.n, self.batch_size, self.shuffle, self.shard = len(cells), batch_size, shuffle, shard
        self.ahead = min(_AHEAD, max(1, _AHEAD_VALUES // (batch_size * cells.x.shape[1])))
        self.device = device if device is not None and _has_room(device, cells.x.shape) else torch.device("cpu")
        x = shared_values(cells.x)
        self.x = x if self.device.type == "cpu" else MatrixRows(_filled(torch.empty(x.shape, device=self.device), x))
        # copies: arrays of pandas 3 are read-only, which tensors cannot be
        self.context = torch.tensor(cells.context, device=self.device)
        self.covariates = torch.tensor(cells.covariates, device=self.device)
        self.log_size = torch.tensor(cells.log_size, device=self.device)[:, None]

    def __len__(self) -> int:
        whole, rest = divmod(self.n, self.batch_size)
        return whole + (rest >= self.shard.n)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # a generator, so that the order is drawn when the first minibatch is asked for: a checkpoint may be restored before
        batches = self._order().split(self.batch_size)
        mine = [rows[self.shard.rank :: self.shard.n] for rows in batches if len(rows) >= self.shard.n]
        yield from self._read_ahead(mine) if isinstance(self.x, StoredMatrix) else map(self.take, mine)

    def _order(self) -> Tensor:
        """Order of the cells in one pass, the same in all processes."""
        if not self.shuffle:
            return torch.arange(self.n)
        rng = _common_generator() if self.shard.n > 1 else None
        if not isinstance(self.x, StoredMatrix):
            return torch.randperm(self.n, generator=rng)
        blocks = torch.arange(self.n).split(_BLOCK)
        order = torch.cat([blocks[k] for k in torch.randperm(len(blocks), generator=rng).tolist()])
        parts = order.split(self.ahead * self.batch_size)
        return torch.cat([self._shuffled(part, rng) for part in parts])

    def _shuffled(self, rows: Tensor, rng: torch.Generator | None) -> Tensor:
        """Rows in random order, such that each process reads neighbours: its own are every n-th."""
        n = self.shard.n
        whole = len(rows) // n * n
        mixed = [part[torch.randperm(len(part), generator=rng)] for part in rows[:whole].view(n, -1)]
        return torch.cat([torch.stack(mixed, 1).flatten(), rows[whole:]])

    def release(self) -> None:
        """Forget the cells: Lightning keeps loaders, and so the memory of the GPU, as long as the model lives."""
        self.x = MatrixRows(np.zeros((0, 0), np.float32))
        self.context = self.covariates = self.log_size = torch.empty(0)

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Chosen cells as a minibatch."""
        return self._batch(_tensor(self.x[rows.cpu().numpy()].read()), rows)

    def _batch(self, x: Tensor, rows: Tensor) -> dict[str, Tensor]:
        rows = rows.to(self.device)
        return {
            "x": x,
            "context": self.context[rows],
            "covariates": self.covariates[rows],
            "log_size": self.log_size[rows],
        }

    def _read_ahead(self, batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Minibatches from a file; while some are worked on, the next are read."""
        groups = [batches[i : i + self.ahead] for i in range(0, len(batches), self.ahead)]
        if not groups:
            return

        def read(group: Sequence[Tensor]) -> Any:
            return self.x[torch.cat(tuple(group)).numpy()].read()

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(read, groups[0])
            for group, following in zip_longest(groups, groups[1:]):
                values = coming.result()
                if following is not None:
                    coming = pool.submit(read, following)
                start = 0
                for rows in group:
                    yield self._batch(_tensor(values[start : start + len(rows)]), rows)
                    start += len(rows)


def shared_values(x: NDArray | sparse.csr_matrix | MatrixRows) -> MatrixRows:
    """Values that all loaders of some cells share: dense in memory where they are few, else in the sparse matrix or the file that has them."""
    in_file = isinstance(x, StoredMatrix)
    if isinstance(x, MatrixRows) and not in_file:
        return x
    if isinstance(x, np.ndarray):
        return MatrixRows(np.asarray(x, dtype=np.float32))
    if _dense_bytes(x.shape) <= (_DENSE_BYTES_OF_FILE if in_file else _DENSE_BYTES):
        return MatrixRows(_filled(np.empty(x.shape, np.float32), x))
    return x if isinstance(x, StoredMatrix) else MatrixRows(x)


def _tensor(values: Any) -> Tensor:
    """Values that were read as a dense tensor of single precision."""
    if isinstance(values, Tensor):
        return values
    return torch.as_tensor(np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32))


def _filled(out: Any, x: Any) -> Any:
    """A dense array or tensor with all rows of a matrix, some at a time so that there is no second copy."""
    step = max(1, _COPIED_VALUES // x.shape[1])
    for start in range(0, len(out), step):
        part = x[start : start + step]
        out[start : start + step] = _tensor(part.read() if isinstance(part, MatrixRows) else part)
    return out


def _dense_bytes(shape: tuple[int, int]) -> int:
    return _BYTES_OF_VALUE * shape[0] * shape[1]


def _has_room(device: torch.device, shape: tuple[int, int]) -> bool:
    """Whether the cells take less than half of what is free on a GPU."""
    return device.type == "cuda" and 2 * _dense_bytes(shape) <= torch.cuda.mem_get_info(device)[0]


def _common_generator() -> torch.Generator:
    """Random numbers that are the same in all processes, seeded by those of the first."""
    seed = [int(torch.randint(_SEEDS, ()))]
    torch.distributed.broadcast_object_list(seed, src=0)
    return torch.Generator().manual_seed(seed[0])


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
        self._loaders: list[BatchLoader] = []

    @property
    def n_train(self) -> int:
        return len(self.train_idx)

    @property
    def n_val(self) -> int:
        return len(self.val_idx)

    def setup(self, stage: str | None = None) -> None:
        """Nothing to prepare: the cells are at hand."""

    def train_dataloader(self) -> BatchLoader:
        shard = Shard() if self.trainer is None else Shard(self.trainer.global_rank, self.trainer.world_size)
        return self._keep(BatchLoader(self.cells.take(self.train_idx), self.batch_size, True, shard, self._device))

    def val_dataloader(self) -> BatchLoader | list:
        """All processes see all validation cells, and so stop together."""
        if not self.n_val:
            return []
        cells = self.cells.take(self.val_idx)
        return self._keep(BatchLoader(cells, self.batch_size, shuffle=False, device=self._device))

    def _keep(self, loader: BatchLoader) -> BatchLoader:
        self._loaders.append(loader)
        return loader

    def release(self) -> None:
        """Forget the cells, here and in all loaders."""
        self.cells = self.cells.take(np.zeros(0, dtype=np.int64))
        for loader in self._loaders:
            loader.release()

    @property
    def _device(self) -> torch.device | None:
        return None if self.trainer is None else self.trainer.strategy.root_device


def split_cells(
    n_cells: int, train_size: float, validation_size: float | None, shuffle: bool, seed: int
) -> list[NDArray[np.int64]]:
    """Indices of training, validation and test cells."""
    if not 0 < train_size <= 1:
        raise ValueError(f"`train_size` must lie in (0, 1], found {train_size}.")
    validation_size = 1 - train_size if validation_size is None else validation_size
    if validation_size < 0 or train_size + validation_size > 1 + _ROUNDING:
        raise ValueError(
            f"`train_size` {train_size} and `validation_size` {validation_size} must not exceed 1 together."
        )
    order = np.random.default_rng(seed).permutation(n_cells) if shuffle else np.arange(n_cells)
    n_train = max(1, round(train_size * n_cells))
    n_val = min(round(validation_size * n_cells), n_cells - n_train)
    return [np.sort(part) for part in np.split(order, [n_train, n_train + n_val])]


def keep_contexts(parts: Sequence[NDArray[np.int64]], context: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split in which no context loses all its training cells: those that would are trained on whole.

    Where that takes most treated cells (`context` above 0) out of validation, as on a plate with one well a context, those
    that stay say little about drugs: they are trained on as well.
    """
    train, validation, test = parts
    lost = ~np.isin(context, context[train])
    if not lost.any():
        return [train, validation, test]
    held = validation[~lost[validation]]
    if 2 * (context[held] > 0).sum() < (context[validation] > 0).sum():
        held = held[:0]
    spared = np.setdiff1d(test, np.flatnonzero(lost))
    return [np.setdiff1d(np.arange(len(context)), np.concatenate([held, spared])), held, spared]
