"""Minibatches and splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from scgim._backed import StoredMatrix
from scgim.train import BatchLoader, Cells, CellsDataModule
from scgim.train._data import Shard, keep_contexts, split_cells

N = 23


@pytest.fixture(params=["dense", "csr", "file"])
def cells(request) -> Cells:
    rng = np.random.default_rng(0)
    x = rng.poisson(2.0, (N, 4))
    if request.param == "csr":
        x = sparse.csr_matrix(x)
    elif request.param == "file":
        group = zarr.group(zarr_format=2)
        write_elem(group, "X", sparse.csr_matrix(x))
        x = StoredMatrix(sparse_dataset(group["X"]))
    covariates = rng.normal(size=(N, 2)).astype(np.float32)
    return Cells(x, np.arange(N) % 3, covariates, np.log(np.arange(1, N + 1)).astype(np.float32))


def dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def gather(loader: BatchLoader) -> dict[str, np.ndarray]:
    batches = list(loader)
    assert len(batches) == len(loader)
    return {name: torch.cat([b[name] for b in batches]).numpy() for name in batches[0]}


@pytest.mark.parametrize("batch_size", [5, 23, 100])
@pytest.mark.parametrize("keep_dense", [True, False])
def test_all_cells_come_in_order(cells, batch_size, keep_dense, monkeypatch):
    if not keep_dense:
        monkeypatch.setattr("scgim.train._data._DENSE_BYTES", 0)
        monkeypatch.setattr("scgim.train._data._DENSE_BYTES_OF_FILE", 0)
    found = gather(BatchLoader(cells, batch_size, shuffle=False))
    np.testing.assert_array_equal(found["x"], dense(cells.x))
    np.testing.assert_array_equal(found["context"], cells.context)
    np.testing.assert_array_equal(found["covariates"], cells.covariates)
    np.testing.assert_array_equal(found["log_size"][:, 0], cells.log_size)
    assert found["x"].dtype == np.float32
    assert found["context"].dtype == np.int64


@pytest.fixture
def _warn_every_time():
    """Warnings of torch that it otherwise gives once in a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.usefixtures("_warn_every_time")
def test_arrays_may_be_read_only():
    """As those of data frames are, from pandas 3 on."""
    x, rest = np.ones((N, 4), np.float32), (np.zeros(N, np.int64), np.ones((N, 2), np.float32), np.ones(N, np.float32))
    for array in (x, *rest):
        array.flags.writeable = False
    loader = BatchLoader(Cells(x, *rest), 5, shuffle=False)
    gather(loader)
    for values in (next(iter(loader))["x"], loader.context, loader.covariates, loader.log_size):
        values.zero_()
    assert all(array.all() for array in (x, *rest[1:]))


@pytest.mark.parametrize("keep_dense", [True, False])
def test_shuffling_keeps_rows_together_and_differs_between_epochs(cells, keep_dense, monkeypatch):
    if not keep_dense:
        monkeypatch.setattr("scgim.train._data._DENSE_BYTES", 0)
        monkeypatch.setattr("scgim.train._data._DENSE_BYTES_OF_FILE", 0)
        monkeypatch.setattr("scgim.train._data._AHEAD", 2)
        monkeypatch.setattr("scgim.train._data._BLOCK", 3)
    torch.manual_seed(0)
    loader = BatchLoader(cells, 6, shuffle=True)
    a, b = gather(loader), gather(loader)
    assert (a["log_size"] != b["log_size"]).any()
    for epoch in (a, b):
        order = np.rint(np.exp(epoch["log_size"][:, 0])).astype(int) - 1
        np.testing.assert_array_equal(np.sort(order), np.arange(N))
        np.testing.assert_array_equal(epoch["x"], dense(cells.x)[order])
        np.testing.assert_array_equal(epoch["context"], cells.context[order])


def test_cells_of_a_file_are_read_a_few_minibatches_at_a_time(monkeypatch):
    monkeypatch.setattr("scgim.train._data._DENSE_BYTES", 0)
    monkeypatch.setattr("scgim.train._data._DENSE_BYTES_OF_FILE", 0)
    read = []

    class Recording(StoredMatrix):
        def __getitem__(self, index):
            return Recording(self.matrix, self.rows[index])

        def read(self):
            read.append(len(self.rows))
            return super().read()

    x = np.arange(400.0).reshape(200, 2)
    nothing = np.zeros((200, 0), dtype=np.float32)
    cells = Cells(Recording(x), np.zeros(200, dtype=np.int64), nothing, np.zeros(200, dtype=np.float32))
    batches = iter(BatchLoader(cells, 4, shuffle=True))
    first = next(batches)["x"]
    assert len(first) == 4
    rest = torch.cat([batch["x"] for batch in batches])
    np.testing.assert_array_equal(np.sort(torch.cat([first, rest])[:, 0]), x[:, 0])
    assert read == [64, 64, 64, 8]
    assert not np.array_equal(rest[:, 0], x[4:, 0])


@pytest.mark.parametrize("keep_dense", [True, False])
@pytest.mark.parametrize("batch_size", [4, 7, 22])
def test_processes_share_every_minibatch(cells, batch_size, keep_dense, monkeypatch):
    if not keep_dense:
        monkeypatch.setattr("scgim.train._data._DENSE_BYTES", 0)
        monkeypatch.setattr("scgim.train._data._DENSE_BYTES_OF_FILE", 0)
    whole = [b["x"] for b in BatchLoader(cells, batch_size, shuffle=False)]
    parts = [list(BatchLoader(cells, batch_size, False, Shard(k, 2))) for k in range(2)]
    loader = BatchLoader(cells, batch_size, False, Shard(0, 2))
    assert len(loader) == len(parts[0]) == len(parts[1])
    assert len(whole) - len(loader) == (len(whole[-1]) < 2)  # a last one that does not go round is left out
    for all_cells, first, second in zip(whole, *parts, strict=False):
        np.testing.assert_array_equal(all_cells[::2], first["x"])
        np.testing.assert_array_equal(all_cells[1::2], second["x"])


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


def test_a_split_that_leaves_every_context_cells_is_untouched():
    parts = split_cells(200, 0.7, 0.2, True, 0)
    for kept, part in zip(keep_contexts(parts, np.arange(200) % 4), parts, strict=True):
        np.testing.assert_array_equal(kept, part)


def test_a_context_never_loses_all_its_training_cells():
    """Contexts 0 and 1 have ten cells, context 2 has two, both held out, and context 3 one, to be left alone."""
    context = np.array([0] * 10 + [1] * 10 + [2, 2, 3])
    parts = [np.r_[0:7, 10:17], np.array([7, 8, 17, 18, 20, 21]), np.array([9, 19, 22])]
    train, validation, test = keep_contexts(parts, context)
    np.testing.assert_array_equal(train, [*range(7), *range(10, 17), 20, 21, 22])
    np.testing.assert_array_equal(validation, [7, 8, 17, 18])
    np.testing.assert_array_equal(test, [9, 19])


def test_a_plate_with_one_well_a_context_is_trained_on_whole():
    context = np.r_[np.zeros(20, dtype=int), 1:181]
    train, validation, test = keep_contexts(split_cells(200, 0.9, None, True, 0), context)
    np.testing.assert_array_equal(train, np.arange(200))
    assert len(validation) == len(test) == 0


@pytest.mark.parametrize(("train", "validation"), [(0.0, None), (1.2, None), (-0.1, None), (0.9, 0.2), (0.5, -0.1)])
def test_wrong_sizes(train, validation):
    with pytest.raises(ValueError, match="`train_size`"):
        split_cells(10, train, validation, True, 0)


def test_fewer_cells_than_processes_in_a_minibatch_are_an_error(cells):
    with pytest.raises(ValueError, match="`batch_size` 2 is less than the number of processes, 4"):
        BatchLoader(cells, 2, True, Shard(0, 4))


def test_each_process_reads_its_own_part_of_a_file(monkeypatch):
    monkeypatch.setattr("scgim.train._data._DENSE_BYTES", 0)
    monkeypatch.setattr("scgim.train._data._DENSE_BYTES_OF_FILE", 0)
    monkeypatch.setattr("scgim.train._data._common_generator", lambda: torch.Generator().manual_seed(0))
    monkeypatch.setattr("scgim.train._data._BLOCK", 10)
    n = 400
    group = zarr.group(zarr_format=2)
    write_elem(group, "X", sparse.csr_matrix(np.arange(2.0 * n).reshape(n, 2)))
    nothing = np.zeros((n, 0), dtype=np.float32)
    x = StoredMatrix(sparse_dataset(group["X"]))
    cells = Cells(x, np.zeros(n, dtype=np.int64), nothing, np.zeros(n, dtype=np.float32))
    seen = [torch.cat([b["x"][:, 0] for b in BatchLoader(cells, 8, True, Shard(k, 2))]) for k in range(2)]
    np.testing.assert_array_equal(np.sort(torch.cat(seen)), np.arange(0.0, 2.0 * n, 2))
    window = seen[0][: 16 * 4].numpy() / 2  # what the first process has of the first 16 minibatches
    assert len(np.unique(window // 10)) <= 8  # whole blocks, but for one that is shared


def test_loaders_forget_the_cells_when_a_fit_ends(cells):
    module = CellsDataModule(None, cells=cells, external_indexing=[np.arange(20), np.arange(20, N), []], batch_size=4)
    loaders = [module.train_dataloader(), module.val_dataloader()]
    assert all(loader.x.shape[0] for loader in loaders)
    module.release()
    assert not any(loader.x.shape[0] for loader in loaders)
    assert not len(module.cells)
