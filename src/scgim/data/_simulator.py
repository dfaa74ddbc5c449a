"""A world of genes and drugs with known answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scgim.data._drugs import drug_features, random_drugs
from scgim.data._graphs import feedback_edges, random_dag
from scgim.data._scm import (
    Cells,
    CountModel,
    Draw,
    GaussianModel,
    Interventions,
    LatentCountModel,
    StructuralModel,
    Structure,
)
from scgim.data._settings import ScreenSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTROL = "control"
_BLOCK_SIZE = 10_000_000  # values drawn at a time, 80 MB
_MIN_MEAN = 1e-3  # so that genes without counts have a fold change
# Each gene has a mean, in units of that asked for, and an inverse dispersion from these ranges: conventions.
_MEANS, _INVERSE_DISPERSIONS = (1 / 3, 5 / 3), (5.0, 20.0)
_REACH = 4  # a hidden cause acts on one gene in so many
_N_STREAMS = 6  # of random numbers, so that one choice does not change the others


def _names(prefix: str, n: int) -> pd.Index:
    return pd.Index([f"{prefix}_{i:0{len(str(n - 1))}d}" for i in range(n)])


@dataclass(kw_only=True, eq=False)
class ScreenSimulator(ScreenSettings):
    """A simulated world from which screens and single experiments are drawn; built once, the same for the same `seed`.

    Takes the arguments of :func:`~scgim.data.simulate_screen`. Graph, mechanisms, drugs and cells have random streams of their
    own: other numbers of cells leave the world unchanged.

    Attributes
    ----------
    gene_names, drug_names
        Names; unseen drugs come last.
    adjacency
        Boolean, genes x genes, true for an edge i -> j.
    weights
        Mean derivative of the log mean of j by the control-standardised expression of i, genes x genes.
    drugs
        Direct effects of all drugs.
    drug_embedding
        Features, drugs x features.

    Examples
    --------
    >>> world = scgim.data.ScreenSimulator(n_genes=10, n_drugs=8, seed=1)
    >>> adata = world.screen()
    >>> both = world.sample({"drug_0": 1.0, "drug_3": 2.0}, n_cells=5000)  # a combination
    >>> knocked_out = world.sample(do={"gene_2": 0.0})
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        streams = [np.random.default_rng(child) for child in np.random.SeedSequence(self.seed).spawn(_N_STREAMS)]
        self._graph_rng, self._mechanism_rng, drug_rng, feature_rng, self._batch_rng, _ = streams
        n_all = self.n_drugs + self.n_unseen_drugs
        self.gene_names = _names("gene", self.n_genes)
        self.drug_names = _names("drug", n_all)
        self._model = self._build_model()
        ranges = {"emax": self.effect_range, "ec50": self.ec50, "hill": self.hill}
        self.drugs = random_drugs(n_all, self.n_genes, max_targets=self.max_targets, rng=drug_rng, **ranges)
        features = drug_features(
            self.drugs,
            np.asarray(self.doses),
            n_train=self.n_drugs,
            n_features=self.n_features,
            noise=self.feature_noise,
            kind=self.features,
            rng=feature_rng,
        )
        self.drug_embedding = pd.DataFrame(features, self.drug_names, _names("feature", self.n_features))

    def _build_model(self) -> StructuralModel:
        rng = self._graph_rng
        dag = random_dag(self.n_genes, self.edges_per_gene, self.graph, rng)
        feedback = feedback_edges(dag, self.n_feedback, rng)
        confounding = np.zeros((self.n_confounders, self.n_genes))
        for loadings in confounding:
            reached = rng.choice(self.n_genes, min(max(2, self.n_genes // _REACH), self.n_genes), replace=False)
            loadings[reached] = self.confounder_sd * rng.choice([-1.0, 1.0], len(reached))
        self.adjacency = dag | feedback
        structure = Structure(dag, feedback, confounding, self.mechanism, hard=self.intervention == "hard")
        model = self._observed(structure, self._mechanism_rng)
        self.weights = model.weights
        self._batch_offsets = self.batch_sd * self._batch_rng.normal(size=(self.n_batches, self.n_genes))
        return model

    def _observed(self, structure: Structure, rng: np.random.Generator) -> StructuralModel:
        if self.likelihood == "normal":
            return GaussianModel(structure, rng)
        mean_count = self.mean_count * rng.uniform(*_MEANS, self.n_genes)
        if self.measurement == "poisson":
            return LatentCountModel(structure, rng, mean_count=mean_count, latent_sd=self.latent_sd)
        theta = rng.uniform(*_INVERSE_DISPERSIONS, self.n_genes) if self.likelihood == "nb" else None
        return CountModel(structure, rng, mean_count=mean_count, inverse_dispersion=theta)

    def _positions(self, index: pd.Index, names: Mapping[str, float], kind: str) -> np.ndarray:
        unknown = [name for name in names if name not in index]
        if unknown:
            raise KeyError(f"Unknown {kind} {unknown}. This world has {index[0]!r} to {index[-1]!r}.")
        return index.get_indexer(list(names))

    def sample(
        self,
        drugs: Mapping[str, float] | None = None,
        *,
        shift: Mapping[str, float] | None = None,
        do: Mapping[str, float] | None = None,
        n_cells: int = 1000,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Cells of one experiment, cells x genes, with size factor 1 and without batch effects; `.mean()` is the true answer.

        Parameters
        ----------
        drugs
            Dose of each drug given; nothing for control cells. Several drugs act together: their targets are united, and
            on a target they share their effects add up.
        shift
            Change of the log mean (of the mean, if continuous) of genes, in addition to the drugs.
        do
            Value at which genes are held, whatever their parents and the drugs do; a count at size factor 1.
        n_cells
            Number of cells.
        seed
            Seed of the cells; random by default.
        """
        arms = np.zeros((1, self.n_genes))
        targets = np.zeros((1, self.n_genes), dtype=bool)
        clamp = np.full((1, self.n_genes), np.nan)
        if drugs:
            chosen = self._positions(self.drug_names, drugs, "drugs")
            arms[0] += self.drugs.shift(chosen, np.fromiter(drugs.values(), float)).sum(0)
            targets[0] |= self.drugs.targets[chosen].any(0)
        if shift:
            genes = self._positions(self.gene_names, shift, "genes in `shift`")
            arms[0, genes] += np.fromiter(shift.values(), float)
            targets[0, genes] = True
        if do:
            clamp[0, self._positions(self.gene_names, do, "genes in `do`")] = np.fromiter(do.values(), float)
        cells = Cells(context=np.zeros(n_cells, dtype=int), size_factor=np.ones(n_cells))
        drawn = self._model.sample(Interventions(arms, targets, clamp), cells, np.random.default_rng(seed))
        return pd.DataFrame(drawn.values, columns=self.gene_names)

    def total_effects(self, dosage: float | None = None, *, n_cells: int = 5000) -> pd.DataFrame:
        """Direct and propagated effect of every drug on the mean, genes x drugs, by Monte Carlo.

        A log fold change against control cells for counts, a difference for continuous data; at the largest of `doses`
        unless a dose is given. Control and drug share their random numbers.
        """
        dosage = max(self.doses) if dosage is None else dosage
        means = pd.DataFrame(
            {drug: self.sample({drug: dosage}, n_cells=n_cells, seed=self.seed).mean() for drug in self.drug_names}
        )
        control = self.sample(n_cells=n_cells, seed=self.seed).mean()
        if self.likelihood == "normal":
            return means.sub(control, axis=0)
        return np.log(means.clip(lower=_MIN_MEAN)).sub(np.log(control.clip(lower=_MIN_MEAN)), axis=0)

    def _contexts(self) -> pd.DataFrame:
        """One row a context: position of the drug (-1 for control), dosage, split, number of cells."""
        rows = [(-1, 0.0, "train", self.n_controls)]
        n_unseen_cells = self.n_unseen_cells or self.n_cells
        seen, unseen = range(self.n_drugs), range(self.n_drugs, len(self.drug_names))
        rows += [(drug, dose, "train", self.n_cells) for drug in seen for dose in self.doses]
        rows += [(drug, dose, "unseen_dose", n_unseen_cells) for drug in seen for dose in self.unseen_doses]
        rows += [(drug, dose, "unseen_drug", n_unseen_cells) for drug in unseen for dose in self.doses]
        return pd.DataFrame(rows, columns=["drug", "dosage", "split", "n_cells"])

    def _obs(self, contexts: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        rows = contexts.loc[contexts.index.repeat(contexts["n_cells"])]
        names = [CONTROL, *self.drug_names]
        obs = pd.DataFrame(
            {
                "perturbation": pd.Categorical.from_codes(rows["drug"].to_numpy() + 1, names),
                "dosage": rows["dosage"].to_numpy(),
                "split": pd.Categorical(
                    rows["split"], ["train", "unseen_drug", "unseen_dose"]
                ).remove_unused_categories(),
                "size_factor": np.exp(self.library_size_sd * rng.normal(size=len(rows))),
            },
            index=[f"cell_{i}" for i in range(len(rows))],
        )
        if self.n_batches:
            batches = _names("batch", self.n_batches)
            obs["batch"] = pd.Categorical.from_codes(rng.integers(self.n_batches, size=len(rows)), batches)
        return obs

    def _blocks(self, contexts: pd.DataFrame, obs: pd.DataFrame, rng: np.random.Generator) -> Iterator[Draw]:
        """Cells in blocks of bounded memory."""
        treated = contexts["drug"].to_numpy() >= 0
        drug = contexts["drug"].to_numpy().clip(min=0)
        shift = self.drugs.shift(drug, contexts["dosage"].to_numpy()) * treated[:, None]
        targets = self.drugs.targets[drug] & treated[:, None]
        interventions = Interventions(shift, targets, np.full(shift.shape, np.nan))
        context = np.repeat(np.arange(len(contexts)), contexts["n_cells"])
        size_factor = obs["size_factor"].to_numpy()
        step = max(1, _BLOCK_SIZE // self.n_genes)
        for start in range(0, len(obs), step):
            rows = slice(start, start + step)
            offset = self._batch_offsets[obs["batch"].cat.codes.to_numpy()[rows]] if self.n_batches else None
            yield self._model.sample(interventions, Cells(context[rows], size_factor[rows], offset), rng)

    def _truth(self, adata: AnnData) -> None:
        genes, drugs = self.gene_names, self.drug_names
        adata.varp["true_adjacency"] = sparse.csr_matrix(self.adjacency)
        adata.varp["true_weights"] = sparse.csr_matrix(self.weights)
        targets = self.drugs.targets.T
        adata.varm["true_targets"] = pd.DataFrame(targets, genes, drugs)
        largest = self.drugs.shift(np.arange(len(drugs)), np.full(len(drugs), max(self.doses)))
        adata.varm["true_shifts"] = pd.DataFrame(largest.T, genes, drugs)
        adata.varm["true_emax"] = pd.DataFrame(self.drugs.emax.T, genes, drugs)
        for name in ("ec50", "hill"):
            curve = np.where(targets, getattr(self.drugs, name).T, np.nan)
            adata.varm[f"true_{name}"] = pd.DataFrame(curve, genes, drugs)

    def screen(self) -> AnnData:
        """The screen, as :func:`~scgim.data.simulate_screen` describes it; the same on every call."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed).spawn(_N_STREAMS)[-1])
        contexts = self._contexts()
        obs = self._obs(contexts, rng)
        to_matrix = np.asarray if self.likelihood == "normal" else sparse.csr_matrix
        values, latent = [], []
        for block in self._blocks(contexts, obs, rng):
            values.append(to_matrix(block.values, dtype=np.float32))
            if block.latent is not None:
                latent.append(block.latent.astype(np.float32))
        X = np.concatenate(values) if self.likelihood == "normal" else sparse.vstack(values, format="csr")
        adata = AnnData(X, obs=obs, var=pd.DataFrame(index=self.gene_names))
        if latent:
            adata.layers["true_latent"] = np.concatenate(latent)
        adata.uns["drug_embedding"] = self.drug_embedding.copy()
        adata.uns["simulation"] = self.settings()
        self._truth(adata)
        return adata
