"""A run that is killed ends as if it had not been; one that is stopped leaves a model that can be used."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import scgim
from scgim.model import GIM
from scgim.train._checkpoint import CheckpointFolder
from scgim.train._divergence import LossWatch

SCREEN = {
    "n_genes": 5,
    "n_drugs": 3,
    "doses": (0.5, 2.0),
    "n_cells": 12,
    "n_controls": 60,
    "n_features": 2,
    "n_unseen_drugs": 0,
    "unseen_doses": (),
    "seed": 1,
}
OPTIONS = {"batch_size": 48, "enable_progress_bar": False, "accelerator": "cpu"}
N_EPOCHS = 6
N_STEPS = 3 * N_EPOCHS  # of the fit; refinement takes a third of them

# trains, with edges cut after the fit so that there is a refinement, and kills itself at a given step
SCRIPT = f"""
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import lightning.pytorch as pl, numpy as np, scvi, scgim
from scgim.fit import _inference
from scgim.model import GIM
folder, result, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
_inference.edge_costs = lambda n_cells, log_odds: log_odds + 1e6
n_steps = 0
class Kill(pl.Callback):
    def on_before_optimizer_step(self, *args):
        global n_steps
        n_steps += 1
        if n_steps == at:
            os.kill(os.getpid(), signal.SIGKILL)
adata = scgim.data.simulate_screen(**{SCREEN!r})
GIM.setup_anndata(adata, size_factor_key="size_factor")
scvi.settings.seed = 7 if at else 8
model = GIM(adata)
if at:
    model.train({N_EPOCHS}, lr=0.03, checkpoint_dir=folder, callbacks=[Kill()], **{OPTIONS!r})
else:
    model.train(resume_from=folder, **{OPTIONS!r})
np.savez(result, n_epochs=len(model.history["elbo_train"]), loss=model.history["elbo_train"].to_numpy(float),
         **{{name: value.numpy() for name, value in model.module.state_dict().items()}})
"""


@pytest.fixture(scope="module")
def screen():
    return scgim.data.simulate_screen(**SCREEN)


@pytest.fixture
def make(screen):
    """A new model of the screen."""

    def make(**options) -> GIM:
        adata = screen.copy()
        GIM.setup_anndata(adata, size_factor_key="size_factor")
        scvi.settings.seed = 7
        return GIM(adata, **options)

    return make


@pytest.fixture
def edges_are_cut(monkeypatch):
    """No edge has enough support, so that all are cut and the fit is refined."""
    monkeypatch.setattr("scgim.fit._inference.edge_costs", lambda n_cells, log_odds: log_odds + 1e6)


def state(model: GIM) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.module.state_dict().items()}


def assert_usable(model: GIM) -> None:
    assert model.is_trained
    assert np.isfinite(model.predict(model.perturbations, 1.0, n_samples=3, seed=0).layers["expected"]).all()
    targets = model.get_targets().to_numpy()
    assert ((targets > 0) & (targets <= 1)).all()
    assert model.train_indices is not None


class At(pl.Callback):
    """Does something at a step, counted over all fits of a run."""

    def __init__(self, step: int, do):
        self.left, self.do = step, do

    def on_train_batch_end(self, trainer, plan, *args):
        self.left -= 1
        if self.left == 0:
            self.do()


def throw(error: BaseException):
    def do():
        raise error

    return do


@pytest.mark.parametrize("step", [9, N_STEPS + 2 + np.random.default_rng(0).integers(3)], ids=["fit", "refine"])
def test_killed_run_ends_as_if_it_had_not_been(make, edges_are_cut, tmp_path, step):
    environment = {**os.environ, "PYTHONPATH": str(Path(scgim.__file__).parents[1])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(tmp_path / "result.npz")]
    killed = subprocess.run([*command, str(step)], env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "result.npz").exists()
    names = CheckpointFolder(tmp_path / "run").names()
    assert len(names) == 2
    assert names[-1].startswith("refine" if step > N_STEPS else "fit")
    subprocess.run([*command, "0"], env=environment, capture_output=True, timeout=300, check=True)
    model = make()
    model.train(N_EPOCHS, lr=0.03, **OPTIONS)
    with np.load(tmp_path / "result.npz") as found:
        assert found["n_epochs"] == len(model.history["elbo_train"]) == N_EPOCHS + N_EPOCHS // 3
        np.testing.assert_array_equal(found["loss"], model.history["elbo_train"].to_numpy(float))
        for name, value in state(model).items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("options", [{"mechanism": "mlp"}, {"intervention": "hard"}], ids=["mlp", "hard"])
def test_other_models_resume(make, tmp_path, options):
    whole, stopped, resumed = (make(**options) for _ in range(3))
    scvi.settings.seed = 7
    whole.train(4, **OPTIONS)
    scvi.settings.seed = 7
    with pytest.raises(ZeroDivisionError):
        stopped.train(4, checkpoint_dir=tmp_path, callbacks=[At(6, throw(ZeroDivisionError()))], **OPTIONS)
    assert not stopped.is_trained
    torch.rand(3)
    resumed.train(resume_from=tmp_path, **OPTIONS)
    for name, value in state(whole).items():
        np.testing.assert_array_equal(state(resumed)[name], value, err_msg=name)


def test_checkpoints_do_not_change_the_result(make, tmp_path):
    plain, kept = make(), make()
    scvi.settings.seed = 7
    plain.train(3, **OPTIONS)
    scvi.settings.seed = 7
    kept.train(3, checkpoint_dir=tmp_path / "a" / "b", checkpoint_every_n_epochs=2, **OPTIONS)
    for name, value in state(plain).items():
        np.testing.assert_array_equal(state(kept)[name], value)
    assert [n for n in CheckpointFolder(tmp_path / "a" / "b").names() if n.startswith("fit")][-1] == "fit-00002"


def test_damaged_checkpoint_is_passed_over(make, tmp_path):
    make().train(4, checkpoint_dir=tmp_path, **OPTIONS)
    folder = CheckpointFolder(tmp_path)
    (tmp_path / folder.names()[-1] / "arrays.npz").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"arrays.npz` has 4 bytes.*Going on from the checkpoint before it"):
        assert folder.read()["epoch"] == folder.read()["epoch"]
    (tmp_path / folder.names()[-2] / "model.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match="none is intact.*Train without `resume_from`"):
        make().train(resume_from=tmp_path, **OPTIONS)


def test_folders_that_cannot_be_used(make, tmp_path, monkeypatch):
    model = make()
    with pytest.raises(ValueError, match="Cannot resume.*there is none.*Train without `resume_from`"):
        model.train(resume_from=tmp_path / "none", **OPTIONS)
    with pytest.raises(ValueError, match="`checkpoint_every_n_epochs` must be at least 1, found 0"):
        model.train(checkpoint_dir=tmp_path, checkpoint_every_n_epochs=0, **OPTIONS)
    model.train(2, checkpoint_dir=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run.*resume_from"):
        model.train(2, checkpoint_dir=tmp_path, **OPTIONS)
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(PermissionError, match="Cannot write checkpoints"):
        model.train(2, checkpoint_dir=tmp_path / "new", **OPTIONS)


def test_checkpoints_of_other_models_are_refused(make, screen, tmp_path):
    make().train(2, checkpoint_dir=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="made with other model options"):
        make(likelihood="poisson").train(resume_from=tmp_path, **OPTIONS)
    for keep, message in (
        (screen[:, :4], "other genes and cells"),
        (screen[1:], "other cells"),
        (screen[::-1], "other cells, or cells in another order"),
        (screen[screen.obs["perturbation"] != "drug_1"], "other perturbations or dosages and cells"),
    ):
        adata = keep.copy()
        adata.uns["drug_embedding"] = screen.uns["drug_embedding"]
        GIM.setup_anndata(adata, size_factor_key="size_factor")
        with pytest.raises(ValueError, match=f"{message}.*Set up the same data"):
            GIM(adata).train(resume_from=tmp_path, **OPTIONS)


def test_full_disk_does_not_end_the_training(make, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    model = make()
    with pytest.warns(UserWarning, match="Could not save the checkpoint.*No space left.*Training goes on"):
        model.train(2, checkpoint_dir=tmp_path, **OPTIONS)
    assert_usable(model)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("step", [1, 5, N_STEPS + 2], ids=["first step", "fit", "refine"])
def test_interrupted_training_keeps_the_model(make, edges_are_cut, step):
    model, handler = make(), signal.getsignal(signal.SIGINT)
    interrupt = At(step, throw(KeyboardInterrupt()))
    with pytest.warns(UserWarning, match="Training was interrupted. The model keeps what it has learned"):
        model.train(N_EPOCHS, callbacks=[interrupt], **OPTIONS)
    assert_usable(model)
    assert signal.getsignal(signal.SIGINT) is handler
    assert bool(model.history) == (step > 1)
    assert all(len(values) and values.notna().all().all() for values in model.history.values())
    model.train(1, **OPTIONS)
    assert_usable(model)


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C; processes that a shell starts in the background have none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_the_model(make, ctrl_c):
    model, handler = make(), ctrl_c
    with pytest.warns(UserWarning, match="Training was interrupted"):
        model.train(N_EPOCHS, callbacks=[At(4, lambda: os.kill(os.getpid(), signal.SIGINT))], **OPTIONS)
    assert_usable(model)
    assert signal.getsignal(signal.SIGINT) is handler


def test_interrupted_search_leaves_an_earlier_fit_alone(make, monkeypatch):
    model = make(mechanism="mlp")
    model.train(1, **OPTIONS)
    before, graph = state(model), model.get_graph()

    def interrupted(module, *args, **kwargs):
        module.centre.add_(1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("scgim.fit._fit.gather_statistics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.train(1, **OPTIONS)
    pd.testing.assert_frame_equal(model.get_graph(), graph)
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_interrupted_run_resumes(make, tmp_path):
    whole, stopped, resumed = make(), make(), make()
    scvi.settings.seed = 7
    whole.train(4, **OPTIONS)
    scvi.settings.seed = 7
    with pytest.warns(UserWarning, match="interrupted"):
        stopped.train(4, checkpoint_dir=tmp_path, callbacks=[At(7, throw(KeyboardInterrupt()))], **OPTIONS)
    resumed.train(resume_from=tmp_path, **OPTIONS)
    for name, value in state(whole).items():
        np.testing.assert_array_equal(state(resumed)[name], value)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), torch.cuda.OutOfMemoryError, "Lower `batch_size`.*'cpu'"),
        (RuntimeError("CUDA error: device lost\nmore"), RuntimeError, "GPU failed or was lost. Restart Python.*resume"),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), MemoryError, "machine ran out of memory. Lower"),
        (RuntimeError("something else"), RuntimeError, "^something else$"),
    ],
    ids=["gpu memory", "gpu lost", "memory", "other"],
)
def test_failures_of_the_machine_are_explained(make, error, kind, message, capsys):
    model = make()
    with pytest.raises(kind, match=message):
        model.train(2, callbacks=[At(2, throw(error))], **OPTIONS)
    assert not model.is_trained
    assert "Exception raised" not in capsys.readouterr().out


@pytest.mark.parametrize("lr", [30.0, 1e4, 1e30])
def test_diverged_training_keeps_the_last_good_state(make, lr):
    model = make()
    with pytest.raises(FloatingPointError, match=r"[Ll]ower `lr`.*The model is as it was after 0 epochs of this fit"):
        model.train(30, lr=lr, **OPTIONS)
    assert_usable(model)
    gentle = make()
    gentle.train(1, lr=1e-9, **OPTIONS)
    for name, value in gentle.module.named_parameters():
        found = dict(model.module.named_parameters())[name].detach()
        kept = value != 0  # edges without support are cut at the end of a fit that comes so far
        np.testing.assert_allclose(found[kept], value[kept].detach(), atol=1e-6)


def test_parameters_that_break_later_are_restored(make):
    model, epochs = make(), []

    class Break(pl.Callback):
        def on_train_epoch_start(self, trainer, plan):
            epochs.append(state(plan.module.state_dict and model))

        def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
            if trainer.current_epoch == 2:
                plan.module.log_scale.data[1] = float("nan")

    with pytest.raises(FloatingPointError, match=r"parameters \['log_scale'\] are no longer finite.*after 2 epochs"):
        model.train(6, callbacks=[Break()], **OPTIONS)
    for name, value in model.module.named_parameters():
        np.testing.assert_array_equal(value.detach(), epochs[2][name])
    assert_usable(model)


def test_last_step_is_checked(make):
    def spoil(trainer, plan, *args):
        plan.module.log_scale.data[:] = float("inf")

    callback = pl.Callback()
    callback.on_train_epoch_end = spoil
    model = make()
    with pytest.raises(FloatingPointError, match="last step made parameters infinite"):
        model.train(1, callbacks=[callback], **OPTIONS)
    assert_usable(model)


def test_watch_tells_divergence_from_outliers():
    watch = LossWatch(n_batches=8)
    assert not any(watch.diverges(loss) for loss in (5.0, 1e7, 4.9, 1e7, 4.8, *[1e7] * 7, 4.0))
    assert not watch.is_high
    assert [watch.diverges(1e3) for _ in range(8)] == [False] * 7 + [True]
    assert watch.is_high
    assert LossWatch(1).diverges(float("inf"))
    assert not any(LossWatch(1).diverges(-loss) for loss in range(50))


def test_gradients_of_ordinary_cells_are_not_cut_off(make):
    cut, whole = make(), make()
    scvi.settings.seed = 7
    cut.train(3, **OPTIONS)
    scvi.settings.seed = 7
    whole.train(3, gradient_clip_val=1e9, **OPTIONS)
    for name, value in state(cut).items():
        np.testing.assert_array_equal(state(whole)[name], value)


def _set(adata, values) -> None:
    adata.X = np.asarray(values, dtype=np.float32)


def extreme_cell(adata, random):
    adata.X[5, 0] = 1e6


def extreme_gene(adata, random):
    adata.X[:, 1] = random.poisson(1e6, adata.n_obs)


def extreme_drug(adata, random):
    adata.X[(adata.obs["perturbation"] == "drug_1").to_numpy(), 0] = 1e6


def tiny_counts(adata, random):
    _set(adata, random.random(adata.shape) < 0.01)
    adata.X[np.arange(adata.n_obs), np.arange(adata.n_obs) % adata.n_vars] = 1


def constant_gene(adata, random):
    adata.X[:, 2] = 7


def same_genes(adata, random):
    adata.X[:, 1] = adata.X[:, 0]


def absent_in_controls(adata, random):
    adata.X[(adata.obs["perturbation"] == "control").to_numpy(), 3] = 0


def one_cell_contexts(adata, random):
    contexts = adata.obs.groupby(["perturbation", "dosage"], observed=True).cumcount()
    keep = (adata.obs["perturbation"] == "control") | (contexts < 1)
    adata._inplace_subset_obs(keep.to_numpy())


EXTREMES = (
    extreme_cell,
    extreme_gene,
    extreme_drug,
    tiny_counts,
    constant_gene,
    same_genes,
    absent_in_controls,
    one_cell_contexts,
)


@pytest.mark.filterwarnings("ignore:Predicted means leave the range")  # a fit of few epochs, to odd data
@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
@pytest.mark.parametrize("spoil", EXTREMES, ids=lambda f: f.__name__)
def test_extreme_data_train_without_nan(screen, spoil, likelihood):
    adata = screen.copy()
    _set(adata, adata.X.toarray())
    spoil(adata, np.random.default_rng(0))
    GIM.setup_anndata(adata)
    scvi.settings.seed = 0
    model = GIM(adata, likelihood=likelihood)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*size factor", category=UserWarning)
        model.train(3, **OPTIONS)
    assert_usable(model)
    for name, value in model.module.state_dict().items():
        assert name == "knowledge.log_dosage" or torch.isfinite(value).all(), name
    assert np.abs(model.get_effects().to_numpy()).max() <= 15
    assert np.isfinite(model.get_total_effects(n_samples=5).to_numpy()).all()
