"""Matrices in files: rows are the right ones, and no more are read than asked for."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest
import zarr
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from scgim._backed import StoredMatrix, is_stored, readable

N, D = 60, 5


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, (N, D)).astype(np.float32)


@pytest.fixture(params=["h5 csr", "h5 dense", "zarr csr", "zarr dense"])
def matrix(request, counts, tmp_path):
    kind, form = request.param.split()
    if kind == "h5":
        group = h5py.File(tmp_path / "m.h5", "w")
    else:
        group = zarr.open_group(str(tmp_path / "m.zarr"), mode="w", zarr_format=2)
    write_elem(group, "X", sparse.csr_matrix(counts) if form == "csr" else counts)
    yield sparse_dataset(group["X"]) if form == "csr" else group["X"]
    if kind == "h5":
        group.close()


def dense(values) -> np.ndarray:
    return values.toarray() if sparse.issparse(values) else values


@pytest.mark.parametrize("rows", [[3], [50, 2, 2, 3, 49], np.arange(N), np.arange(N)[::-1], [0, 59], []])
def test_rows_are_read_in_the_order_asked_for(matrix, counts, rows, monkeypatch):
    monkeypatch.setattr("scgim._backed._MAX_GAP", 4)
    assert is_stored(matrix)
    rows = np.asarray(rows, dtype=np.int64)
    chosen = StoredMatrix(matrix)[rows]
    assert chosen.shape == (len(rows), D)
    np.testing.assert_array_equal(dense(chosen.read()), counts[rows])
    np.testing.assert_array_equal(np.asarray(chosen), counts[rows])
    np.testing.assert_array_equal(np.asarray(chosen[: len(rows) // 2]), counts[rows[: len(rows) // 2]])


def test_zarr_need_not_be_installed(counts, monkeypatch):
    monkeypatch.delitem(sys.modules, "zarr")
    assert not is_stored(counts)
    assert not is_stored(sparse.csr_matrix(counts))


def test_sums_are_those_of_the_whole_matrix(matrix, counts, monkeypatch):
    monkeypatch.setattr("scgim._backed._BLOCK_VALUES", 7 * D)
    stored = StoredMatrix(matrix)
    np.testing.assert_allclose(stored.sum(1), counts.sum(1))
    np.testing.assert_allclose(stored[np.arange(5, 9)].sum(), counts[5:9].sum())
    with pytest.raises(ValueError, match="`axis`"):
        stored.sum(0)


def test_only_what_lies_near_is_read_beside(counts):
    class Counting:
        shape, read = counts.shape, 0

        def __getitem__(self, rows):
            self.read += rows.stop - rows.start
            return counts[rows]

    matrix = Counting()
    found = StoredMatrix(matrix)[np.array([59, 1, 0])].read()
    np.testing.assert_array_equal(found, counts[[59, 1, 0]])
    assert matrix.read == 3


def test_arrays_in_memory_are_not_stored(counts):
    assert not is_stored(counts)
    assert not is_stored(sparse.csr_matrix(counts))


def test_sums_of_16_bits_do_not_overflow():
    """Float16 ends at 65,504, which the counts of a well exceed."""
    values = np.full((2, 50), 2000, dtype=np.float16)
    assert readable(values).sum() == 200_000
    assert readable(values).sum(axis=1).tolist() == [100_000, 100_000]
    with h5py.File("x", "w", driver="core", backing_store=False) as stored:
        write_elem(stored, "X", values)
        assert readable(stored["X"]).sum(axis=1).tolist() == [100_000, 100_000]
