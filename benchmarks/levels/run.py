"""A screen of three cell lines in which a third of the drugs act in one line only: `python benchmarks/levels/run.py --seeds 0 1 2`.

Negative binomial counts of mean 4, a network of 30 genes with two parents each, linear in standardised log1p of counts; baselines of lines
differ by up to a factor of four. 36 drugs at 3 doses, 25 cells of each in each line; six of the drugs are held out. A drug acts on two
genes on average, those for which a linear function of its ten features is beyond a threshold. Drugs of one class, which is a feature, act in
one line. In the world `more drugs` there are 108, and 18 are held out: a gene is then a target of six of the drugs that are measured, not of two.
In the world `alike` all drugs act in all lines. The worlds share no code with `scgim.data`.

Asked: are targets found line by line; are drugs that were not measured predicted in each line, beside a ridge regression whose features are
those of the drug, each also times each line; and is nothing lost where lines agree, beside a fit that has the line as a covariate alone.

Errors are squared errors of mean shifts of log1p of counts over size factors against the controls of the line, which are those of the world
(20,000 cells), not of the 25 cells.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: CPU seconds are then those of one core
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import scvi  # noqa: E402
from anndata import AnnData  # noqa: E402
from benchmarks import _report  # noqa: E402
from scipy import sparse  # noqa: E402
from sklearn.linear_model import RidgeCV  # noqa: E402
from sklearn.metrics import average_precision_score  # noqa: E402

import scgim  # noqa: E402

LINES, GENES = ["a549", "k562", "mcf7"], 30
DOSES = np.array([0.3, 1.0, 3.0])
LEVELS, SHARED, RIDGE = "scGIM", "scGIM, lines alike", "ridge, drug x line"
# drugs, how many of them are held out, and whether all act in all lines
WORLDS = {"one line": (36, 6, False), "one line, more drugs": (108, 18, False), "alike": (36, 6, True)}
_MEAN, _DISPERSION, _CELLS, _CONTROLS, _MANY = 4.0, 5.0, 25, 300, 20_000


class World:
    """Network, lines and drugs of one seed; the last drugs are held out."""

    def __init__(self, seed: int, n_drugs: int, n_new: int, *, alike: bool):
        self.n_drugs, self.n_measured = n_drugs, n_drugs - n_new
        rng = np.random.default_rng(seed)
        self.weights = np.zeros((GENES, GENES))
        for j in range(2, GENES):
            self.weights[rng.choice(j, 2, replace=False), j] = rng.choice([-1, 1], 2) * rng.uniform(0.3, 0.6, 2)
        self.baseline = np.log(_MEAN) + rng.uniform(-0.7, 0.7, (len(LINES), GENES))
        self.features = rng.normal(size=(n_drugs, 10))
        score = self.features @ rng.normal(size=(10, GENES)) / 10**0.5
        on = np.abs(score) >= np.quantile(np.abs(score), 1 - 2 / GENES)
        self.emax = on * np.sign(score) * (0.7 + np.abs(score) / 2)
        self.class_ = (
            np.full(n_drugs, -1) if alike else np.where(np.arange(n_drugs) % 3 == 0, np.arange(n_drugs) // 3 % 3, -1)
        )
        classes = np.stack([self.class_ == k for k in range(len(LINES))], 1).astype(float)
        self.features = np.hstack([self.features, 2 * classes])
        self.rng = rng

    def acts(self, drug: int, line: int) -> bool:
        """Whether a drug acts in a line."""
        return self.class_[drug] in (-1, line)

    def effect(self, drug: int, line: int, dose: float) -> np.ndarray:
        """Direct effects, changes of log means."""
        return self.emax[drug] * dose / (1 + dose) * self.acts(drug, line)

    def cells(self, line: int, effect: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts (n, genes) and size factors."""
        size = self.rng.lognormal(0, 0.3, n)
        x, h = np.zeros((n, GENES)), np.zeros((n, GENES))
        for j in range(GENES):
            mean = size * np.exp(self.baseline[line, j] + effect[j] + h @ self.weights[:, j])
            x[:, j] = self.rng.poisson(mean * self.rng.gamma(_DISPERSION, 1 / _DISPERSION, n))
            h[:, j] = (np.log1p(x[:, j] / size) - np.log1p(_MEAN)) / 0.6
        return x, size

    def screen(self) -> AnnData:
        """All lines, drugs and doses; the last drugs are held out."""
        parts, obs = [], []
        for k, line in enumerate(LINES):
            arms = [("control", 0.0, np.zeros(GENES), _CONTROLS)]
            arms += [(f"drug_{u:03d}", c, self.effect(u, k, c), _CELLS) for u in range(self.n_measured) for c in DOSES]
            for name, dose, effect, n in arms:
                x, size = self.cells(k, effect, n)
                parts.append(x)
                cells = {"perturbation": name, "dosage": dose, "line": line, "size_factor": size}
                obs.append(pd.DataFrame(cells))
        frame = pd.concat(obs, ignore_index=True).rename(index=str)
        adata = AnnData(sparse.csr_matrix(np.concatenate(parts).astype(np.float32)), obs=frame)
        adata.uns["drug_embedding"] = self.table().iloc[: self.n_measured]
        return adata

    def table(self) -> pd.DataFrame:
        """Features of all drugs."""
        return pd.DataFrame(self.features, [f"drug_{u:03d}" for u in range(self.n_drugs)])

    def shift(self, drug: int, line: int, dose: float) -> np.ndarray:
        """Mean shift of log1p in very many cells."""
        both = [self.cells(line, effect, _MANY) for effect in (self.effect(drug, line, dose), np.zeros(GENES))]
        treated, control = (np.log1p(x / size[:, None]).mean(0) for x, size in both)
        return treated - control


def log_mean(adata: AnnData) -> np.ndarray:
    """Mean of log1p of counts over size factors."""
    return np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None]).mean(0)


def fit(adata: AnnData, method: str, seed: int, max_epochs: int | None) -> tuple[scgim.model.GIM, float]:
    """A model and the CPU seconds of its training."""
    scvi.settings.seed = seed
    key = {"effect_modifier_key": "line"} if method == LEVELS else {"categorical_covariate_keys": ["line"]}
    scgim.model.GIM.setup_anndata(adata, size_factor_key="size_factor", **key)
    model = scgim.model.GIM(adata)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model, time.process_time() - start


def target_scores(model: scgim.model.GIM, world: World, method: str) -> dict[str, float]:
    """Average precision of targets in all lines together, and of those that act in one line only."""
    probs, truth, selective = [], [], []
    for u in range(world.n_measured):
        name = f"drug_{u:03d}"
        for k, line in enumerate(LINES):
            asked = {"level": line} if method == LEVELS else {}
            probs.append(model.get_targets([name], 1.0, **asked).to_numpy()[0])
            truth.append((world.emax[u] != 0) & world.acts(u, k))
            selective.append(np.full(GENES, world.class_[u] >= 0))
    probs, truth, selective = map(np.concatenate, (probs, truth, selective))
    out = {"targets": average_precision_score(truth, probs)}
    if selective.any():
        out["targets, one line"] = average_precision_score(truth[selective], probs[selective])
    return out


def predicted(model: scgim.model.GIM, world: World, drugs: list[int], seed: int) -> np.ndarray:
    """Mean shifts at the largest dose, (lines, drugs, genes)."""
    out, table = [], world.table().iloc[drugs]
    for line in LINES:
        options = {"n_samples": 2000, "covariates": {"line": line}, "seed": seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            control = log_mean(model.predict_combination({}, **options))
            out.append([log_mean(model.predict(table.loc[[u]], DOSES[-1], **options)) - control for u in table.index])
    return np.array(out)


def ridge(adata: AnnData, world: World, drugs: list[int]) -> np.ndarray:
    """The same by a ridge regression on features of the drug, also times each line, times the effect of a middling curve."""
    log = np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])
    rows, shifts = [], []

    def design(drug: int, line: int, dose: float) -> np.ndarray:
        f = np.append(world.features[drug], 1.0) * dose / (1 + dose)
        return np.concatenate([f, *(f * (k == line) for k in range(len(LINES)))])

    groups = adata.obs.groupby(["line", "perturbation", "dosage"], observed=True).indices
    for (line, name, dose), cells in groups.items():
        if name != "control":
            k, u = LINES.index(line), int(name.split("_")[1])
            rows.append(design(u, k, dose))
            shifts.append(log[cells].mean(0) - log[groups[line, "control", 0.0]].mean(0))
    model = RidgeCV(np.logspace(-2, 3, 11), fit_intercept=False).fit(np.array(rows), np.array(shifts))
    return np.array([[model.predict(design(u, k, DOSES[-1])[None])[0] for u in drugs] for k in range(len(LINES))])


def evaluate(seed: int, name_of_world: str, max_epochs: int | None) -> list[dict]:
    """A row for each method."""
    n_drugs, n_new, alike = WORLDS[name_of_world]
    world = World(seed, n_drugs, n_new, alike=alike)
    adata = world.screen()
    old, new = list(range(0, world.n_measured, 3)), list(range(world.n_measured, world.n_drugs))
    truth = {
        name: np.array([[world.shift(u, k, DOSES[-1]) for u in drugs] for k in range(len(LINES))])
        for name, drugs in (("measured", old), ("new", new))
    }
    rows = []
    for method in (SHARED, LEVELS):
        model, seconds = fit(adata.copy(), method, seed, max_epochs)
        rows.append({"method": method, **target_scores(model, world, method), "CPU seconds": seconds})
        for name, drugs in (("measured", old), ("new", new)):
            rows[-1][f"{name} drugs"] = ((predicted(model, world, drugs, seed) - truth[name]) ** 2).mean()
    rows.append({"method": RIDGE, "new drugs": ((ridge(adata, world, new) - truth["new"]) ** 2).mean()})
    rows.append({"method": "no change", **{f"{name} drugs": (truth[name] ** 2).mean() for name in truth}})
    return [{"world": name_of_world, "seed": seed, **row} for row in rows]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Screens of three lines, in which drugs act in one line or in all.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="two epochs, to see that all runs; docs are left alone")
    options = parser.parse_args(arguments)
    epochs = 2 if options.quick else None
    rows = [row for seed in options.seeds for name in WORLDS for row in evaluate(seed, name, epochs)]
    columns = ["targets", "targets, one line", "measured drugs", "new drugs", "CPU seconds"]
    table = pd.DataFrame(rows).groupby(["world", "method"], sort=False)[columns].mean().reset_index()
    print(_report.to_markdown(table))
    if not options.quick:
        seeds = " ".join(map(str, options.seeds))
        _report.write_tables(
            {"levels-lines": table},
            _report.Provenance(f"python benchmarks/levels/run.py --seeds {seeds}", options.seeds),
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
