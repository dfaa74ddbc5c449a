"""Minibatches and splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scgim.train import BatchLoader, Cells, CellsDataModule
from scgim.train._data import split_cells

N = 23


@pytest.fixture(params=["dense", "csr"])
def cells(request) -> Cells:
    rng = np.random.default_rng(0)
    x = rng.poisson(2.0, (N, 4))
    x = sparse.csr_matrix(x) if request.param == "csr" else x
    covariates = rng.normal(size=(N, 2)).astype(np.float32)
    return Cells(x, np.arange(N) % 3, covariates, np.log(np.arange(1, N + 1)).astype(np.float32))


def dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else x


def gather(loader: BatchLoader) -> dict[str, np.ndarray]:
    batches = list(loader)
    assert len(batches) == len(loader)
    return {name: torch.cat([b[name] for b in batches]).numpy() for name in batches[0]}


@pytest.mark.parametrize("batch_size", [5, 23, 100])
@pytest.mark.parametrize("keep_dense", [True, False])
def test_all_cells_come_in_order(cells, batch_size, keep_dense, monkeypatch):
    if not keep_dense:
        monkeypatch.setattr("scgim.train._data._DENSE_BYTES", 0)
    found = gather(BatchLoader(cells, batch_size, shuffle=False))
    np.testing.assert_array_equal(found["x"], dense(cells.x))
    np.testing.assert_array_equal(found["context"], cells.context)
    np.testing.assert_array_equal(found["covariates"], cells.covariates)
    np.testing.assert_array_equal(found["log_size"][:, 0], cells.log_size)
    assert found["x"].dtype == np.float32
    assert found["context"].dtype == np.int64


def test_shuffling_keeps_rows_together_and_differs_between_epochs(cells):
    torch.manual_seed(0)
    loader = BatchLoader(cells, 6, shuffle=True)
    a, b = gather(loader), gather(loader)
    assert (a["log_size"] != b["log_size"]).any()
    for epoch in (a, b):
        order = np.rint(np.exp(epoch["log_size"][:, 0])).astype(int) - 1
        np.testing.assert_array_equal(np.sort(order), np.arange(N))
        np.testing.assert_array_equal(epoch["x"], dense(cells.x)[order])
        np.testing.assert_array_equal(epoch["context"], cells.context[order])


def test_data_module_serves_its_parts(cells):
    module = CellsDataModule(
        None, cells=cells, external_indexing=[[0, 1, 2, 5], [3, 4], [6]], batch_size=10, train_size=0.9
    )
    assert (module.n_train, module.n_val) == (4, 2)
    np.testing.assert_array_equal(gather(module.val_dataloader())["x"], dense(cells.x)[[3, 4]])
    assert len(gather(module.train_dataloader())["context"]) == 4
    without = CellsDataModule(None, cells=cells, external_indexing=[[0, 1], [], []], batch_size=10)
    assert without.val_dataloader() == []


def test_split_covers_all_cells_once():
    parts = split_cells(100, 0.7, 0.2, True, 0)
    assert [len(p) for p in parts] == [70, 20, 10]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(100))
    assert [len(p) for p in split_cells(100, 0.7, None, True, 0)] == [70, 30, 0]
    assert [len(p) for p in split_cells(100, 1.0, None, True, 0)] == [100, 0, 0]


def test_split_is_reproducible_and_can_be_in_order():
    np.testing.assert_array_equal(split_cells(50, 0.8, None, True, 1)[0], split_cells(50, 0.8, None, True, 1)[0])
    assert (split_cells(50, 0.8, None, True, 1)[0] != split_cells(50, 0.8, None, True, 2)[0]).any()
    np.testing.assert_array_equal(split_cells(50, 0.8, None, False, 1)[0], np.arange(40))


@pytest.mark.parametrize(("train", "validation"), [(0.0, None), (1.2, None), (-0.1, None), (0.9, 0.2), (0.5, -0.1)])
def test_wrong_sizes(train, validation):
    with pytest.raises(ValueError, match="`train_size`"):
        split_cells(10, train, validation, True, 0)
