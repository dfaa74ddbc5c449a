"""Rows of a matrix that are read as they are needed; the matrix may stay in its file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

_MAX_GAP = 32  # rows: reading these too costs less than to ask a second time
_BLOCK_VALUES = 2**22  # values of a matrix, counting zeros, that are read in one go: 16 MB, or up to thrice as much


def is_stored(matrix: Any) -> bool:
    """Whether a matrix lies in a file: HDF5 or zarr, dense or sparse."""
    return isinstance(matrix, (CSRDataset, CSCDataset, h5py.Dataset, *_zarr_arrays()))


def _zarr_arrays() -> tuple[type, ...]:
    """The class of zarr's arrays; anndata 0.11 works without zarr, and unless somebody imported it there are none."""
    zarr = sys.modules.get("zarr")
    return () if zarr is None else (zarr.Array,)


def readable(matrix: Any) -> Any:
    """A matrix as it is, or one in a file as :class:`StoredMatrix`; sums of float16, which ends at 65,504, are not to overflow."""
    return StoredMatrix(matrix) if is_stored(matrix) else _wide(matrix)


def _wide(values: Any) -> Any:
    return values.astype(np.float32) if getattr(values, "dtype", None) == np.float16 else values


class MatrixRows:
    """Rows of a matrix in memory, which are copied when they are read: what is made of a screen shares its values.

    Parameters
    ----------
    matrix
        The matrix.
    rows
        Those to keep, in this order; None for all.
    """

    def __init__(self, matrix: Any, rows: NDArray[np.int64] | None = None):
        self.matrix = matrix
        self.rows = np.arange(matrix.shape[0]) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.matrix.shape[1]

    def __getitem__(self, index: NDArray[np.int64] | slice) -> Self:
        """Fewer rows, not read yet."""
        return type(self)(self.matrix, self.rows[index])

    def read(self) -> Any:
        """The rows, as the matrix has them."""
        return self.matrix[self.rows]

    def blocks(self) -> Iterator[Any]:
        """All rows in order, a block at a time."""
        step = max(1, _BLOCK_VALUES // max(1, self.shape[1]))
        for start in range(0, len(self.rows), step):
            yield self[slice(start, start + step)].read()

    def sum(self, axis: int | None = None) -> Any:
        """Sum over genes (`axis=1`), shape (N,), or over all values."""
        if axis not in (None, 1):
            raise ValueError(f"`axis` must be 1 or None, found {axis!r}.")
        sums = [np.asarray(block.sum(1), dtype=np.float64).ravel() for block in self.blocks()]
        by_row = np.concatenate(sums) if sums else np.zeros(0)
        return by_row if axis == 1 else by_row.sum()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray:
        """All rows as a dense array."""
        values = self.read()
        return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=dtype)


class StoredMatrix(MatrixRows):
    """Rows of a matrix in a file.

    Parameters
    ----------
    matrix
        What :func:`anndata.io.sparse_dataset` or `AnnData.X` of a backed file returns.
    rows
        Those to keep, in this order; None for all.
    """

    def __init__(self, matrix: Any, rows: NDArray[np.int64] | None = None):
        super().__init__(_StoredCSR(matrix) if isinstance(matrix, CSRDataset) else matrix, rows)

    def read(self) -> Any:
        """The rows in memory, an array or a CSR matrix; those that lie together in the file are read together."""
        in_order = bool((np.diff(self.rows) >= 0).all())
        order = np.argsort(self.rows, kind="stable")
        parts = [self._read_run(run) for run in self._runs(self.rows[order]) if len(run)]
        if not parts:
            return np.zeros(self.shape)
        whole = parts[0]
        if len(parts) > 1:
            whole = sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else np.concatenate(parts)
        del parts  # where there were several, before they are copied again
        return _wide(whole if in_order else whole[np.argsort(order, kind="stable")])

    def _read_run(self, run: NDArray[np.int64]) -> Any:
        """Sorted rows near each other, of which there may be several copies."""
        values = self.matrix[int(run[0]) : int(run[-1]) + 1]
        return values if (np.diff(run) == 1).all() else values[run - run[0]]

    def _runs(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Sorted rows that are read in one go: near each other, and few enough to hold what lies between."""
        longest = max(1, _BLOCK_VALUES // max(1, self.shape[1]))
        for near in np.split(rows, np.flatnonzero(np.diff(rows) > _MAX_GAP) + 1):
            part = (near - near[:1]) // longest
            yield from np.split(near, np.flatnonzero(np.diff(part)) + 1)


class _StoredCSR:
    """Neighbouring rows of a CSR matrix in a file. anndata, asked for some, makes an empty matrix of all rows, whose cost grows with them."""

    def __init__(self, matrix: CSRDataset):
        self.shape, group = matrix.shape, matrix.group
        self._values, self._genes, self._ends = group["data"], group["indices"], group["indptr"][...]

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        ends = self._ends[rows.start : rows.stop + 1]
        own = slice(int(ends[0]), int(ends[-1]))
        return sparse.csr_matrix(
            (self._values[own], self._genes[own], ends - ends[0]), shape=(len(ends) - 1, self.shape[1])
        )
