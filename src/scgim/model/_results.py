"""What a fitted model knows: network, targets, effects, dose-response curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgim._validation import check_genes, check_interval, check_query_dosage
from scgim.interventions._interventions import Interventions
from scgim.model._arguments import whole_number
from scgim.model._base import ScreenModel
from scgim.predict._curves import curve_table, likely_targets, usual_log_dosages
from scgim.predict._interactions import interaction_table
from scgim.predict._modifiers import modifier_table
from scgim.predict._sampler import some_seed
from scgim.predict._totals import total_effects

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import ArrayLike

    from scgim.predict._drugs import Query


class ResultsMixin(ScreenModel):
    """Getters and `annotate` of :class:`scgim.model.GIM`."""

    def get_adjacency(self) -> pd.DataFrame:
        """Probability of each edge, over many graphs and choices of perturbations (for `mechanism="mlp"`, given the rest of the graph).

        Both directions of an edge can be probable where the cells ask for feedback (:meth:`get_feedback`).

        Returns
        -------
        Genes x genes, row = source, column = target, values in [0, 1].
        """
        self._check_if_trained(warn=False)
        return pd.DataFrame(self.module.knowledge.edge_probs.cpu().numpy(), self.gene_names_, self.gene_names_)

    def get_graph(self) -> pd.DataFrame:
        """Edges of the fitted graph, which is acyclic.

        Returns
        -------
        One row an edge, strongest first: `source`, `target`, `weight` (change of the target's log mean for one control
        standard deviation of the source's log expression), `weight_sd` and `probability`. decoupler reads it as a net. A strong edge can be
        improbable, where other graphs hold it the other way round or lead there by another way: keep those of a `probability` above one half.
        """
        self._check_if_trained(warn=False)
        i, j = np.nonzero(self.adjacency_)
        names = np.asarray(self.gene_names_)
        frame = pd.DataFrame(
            {
                "source": names[i],
                "target": names[j],
                "weight": self.module.mean_slopes().numpy()[i, j],
                "weight_sd": self.module.knowledge.weight_sd.cpu().numpy()[i, j],
                "probability": self.module.knowledge.edge_probs.cpu().numpy()[i, j],
            }
        )
        return frame.sort_values("weight", key=np.abs, ascending=False, ignore_index=True)

    def get_feedback(self) -> pd.DataFrame:
        """Loops of genes that the cells ask for and that the graph, which is acyclic, leaves out.

        An edge back, from a gene to one that comes before it in the graph, is scored as other edges are, with the determinant that a loop
        brings to the density of cells: perturbations of the one gene move the other, in both directions. The best is taken, edges that it makes
        needless are left out, and so on. Other results of the model are those of the acyclic graph: between genes of a loop, directions of
        edges, and which of the genes is a target, are to be doubted.

        Returns
        -------
        One row a loop, the most certain first; none where nothing speaks for one:

        - `loop`: its genes, each a parent of the next
        - `source`, `target`: the edge back, which the graph leaves out
        - `weight`: its slope, in standard deviations of the target for one of the source (of log expression, for counts)
        - `evidence`: log evidence for it, less what an edge must bring, without the perturbation that says most
        - `forward_weight`, `forward_evidence`: product of the slopes of the other edges, and the least of their log evidences
        - `gain`: product of all slopes; below zero the feedback is negative
        - `probability`: that of the less certain direction, from the evidence

        Mechanisms of another form than the model's can pass for weak feedback: a warning at the end of :meth:`train` names loops with more than
        10 nats of evidence for both directions, and only these are among the probabilities of :meth:`get_adjacency`.

        Raises
        ------
        ValueError
            Feedback was not looked for: with `mechanism="mlp"` or `intervention="hard"`, where a plate has few wells a gene, or where the search was
            ended early.

        Examples
        --------
        >>> model.get_feedback()
        """
        self._check_if_trained(warn=False)
        if self.feedback_ is None:
            raise ValueError(
                "Feedback was not looked for. It is with `mechanism='linear'` and `intervention='shift'`, 12 cells a gene and more, and a search "
                "that is not ended early."
            )
        return self.feedback_.copy()

    def get_states(self, adata: AnnData | None = None) -> pd.DataFrame:
        """Hidden states of cells: what acts on many genes of a cell beside network, drugs and covariates, such as the cell cycle.

        States are looked for where a network alone does not hold between contexts as it does within: with linear mechanisms, shifts,
        a graph of counts (:meth:`report` says whether it is one) and at most 60 genes. Most screens have none that can be told, and the data frame then has no columns.

        Parameters
        ----------
        adata
            Cells of the same genes; None for the training data.

        Returns
        -------
        Cells x states: posterior means, 0 on average in each context and with a variance of at most 1; NaN for cells in contexts that were not
        measured in training. Sign, order and rotation of states are arbitrary.
        """
        self._check_if_trained(warn=False)
        return self._states(adata)

    def get_size_factors(self, adata: AnnData | None = None) -> pd.Series:
        """How deeply each cell was sequenced, as the model has it.

        Without `size_factor_key` it is estimated together with a network where control cells differ in depth
        (:meth:`setup_anndata`).

        Parameters
        ----------
        adata
            Cells of the same genes; None for the training data.

        Returns
        -------
        Size factor of each cell, around 1: estimated, or total over the mean total, or 1 throughout; as they were given where `size_factor_key`
        names them.
        """
        self._check_if_trained(warn=False)
        log_size = self._cells(self._validate_screen(adata)).log_size
        return pd.Series(
            np.exp(log_size), self._own_data().obs_names if adata is None else adata.obs_names, name="size_factor"
        )

    def get_targets(
        self,
        drug_embedding: pd.DataFrame | ArrayLike | str | list[str] | None = None,
        dosage: float | ArrayLike | None = None,
        *,
        level: str | list[str] | None = None,
        min_effect: float = 0.0,
    ) -> pd.DataFrame:
        """Probability that each gene is a direct target.

        Parameters
        ----------
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`; None for the measured contexts. All dosages of a drug have the same
            targets.
        level
            Levels of the effect modifier, such as one cell line; None for those that contexts were measured in (of drugs that are
            named, all). Of a model without `effect_modifier_key` it must be None.
        min_effect
            Size that the direct effect must exceed, up or down, at the largest of the dosages, in units of :meth:`get_effects`. With many
            cells an effect far too small to matter is certain.

        Returns
        -------
        Data frame indexed by (perturbation, dosage), and the level if there are several, a column a gene.
        """
        if not min_effect >= 0:
            raise ValueError(f"`min_effect` is a size and must not be negative, found {min_effect}.")
        index, query = self._contexts_asked(drug_embedding, dosage, level)
        largest = query.log_dosage.max()
        if min_effect > 0:
            probs = query.each(lambda known, log_dosage: known.exceeds(largest.expand_as(log_dosage), min_effect))
        else:
            probs = query.each(lambda known, _: known.target_probs)
        return pd.DataFrame(probs.numpy(), index, self.gene_names_)

    def get_effects(
        self,
        drug_embedding: pd.DataFrame | ArrayLike | str | list[str] | None = None,
        dosage: float | ArrayLike | None = None,
        *,
        level: str | list[str] | None = None,
        return_sd: bool = False,
    ) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
        """Direct effect on each gene: expected log fold change given its parents.

        Parameters
        ----------
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`; None for the measured contexts.
        level
            Levels of the effect modifier, such as one cell line; None for those that contexts were measured in (of drugs that are
            named, all). Of a model without `effect_modifier_key` it must be None.
        return_sd
            Return the standard deviation as well.

        Returns
        -------
        Data frame indexed by (perturbation, dosage), and the level if there are several, a column a gene; natural logarithm (for `likelihood="normal"`, in
        standard deviations, :attr:`standard_deviations_`). With `return_sd`, two such frames.
        """
        index, query = self._contexts_asked(drug_embedding, dosage, level)
        mean = pd.DataFrame(query.each(Interventions.direct).numpy(), index, self.gene_names_)
        if not return_sd:
            return mean
        return mean, pd.DataFrame(query.each(Interventions.sd).numpy(), index, self.gene_names_)

    def get_total_effects(
        self,
        drug_embedding: pd.DataFrame | ArrayLike | str | list[str] | None = None,
        dosage: float | ArrayLike | None = None,
        *,
        level: str | list[str] | None = None,
        n_samples: int | None = None,
        seed: int | None = 0,
    ) -> pd.DataFrame:
        """Direct and propagated effect on each gene: log fold change of its mean against control cells.

        Parameters
        ----------
        drug_embedding, dosage
            Drugs and dosages as in :meth:`predict`; None for the measured contexts.
        level
            Levels of the effect modifier, such as one cell line; None for those that contexts were measured in (of drugs that are
            named, all). Of a model without `effect_modifier_key` it must be None.
        n_samples
            Cells drawn in each context, the same ones but for the effects; None for 200 to 4,000, fewer where contexts and genes
            are many.
        seed
            Seed of the draws; None for new ones each time.

        Returns
        -------
        Data frame indexed by (perturbation, dosage), and the level if there are several, a column a gene; natural logarithm (for `likelihood="normal"`, the
        difference of means in standard deviations, :attr:`standard_deviations_`).
        """
        n_samples = None if n_samples is None else whole_number("n_samples", n_samples)
        index, query = self._contexts_asked(drug_embedding, dosage, level)
        levels = None if index.nlevels == 2 else index.get_level_values(2).tolist()
        found = total_effects(self._sampler, query, n_samples, some_seed(seed), levels)
        return pd.DataFrame(found.effect, index, self.gene_names_)

    def get_modifiers(self) -> pd.DataFrame:
        """For which perturbations effects differ between the levels of the effect modifier.

        Cochran's test: estimates of the direct effect on each target, each by the cells of one level, against their mean, weighed by
        their precision. Fit with `effect_modifier_key`.

        Returns
        -------
        One row a perturbation that was measured in two levels or more, indexed by name, the most different first: `n_levels`, `n_targets`
        (direct targets with a probability above one half; without any there is nothing to test, and the p-value is 1), `spread` (standard deviation of the effects between
        levels beyond chance, root mean square over targets, natural logarithm), `statistic` (chi-squared), `df`, `p_value`, `p_adjusted`
        (Benjamini and Hochberg), and the `gene` and `level` that differ most.

        Raises
        ------
        ValueError
            The model was set up without `effect_modifier_key`.
        """
        self._check_if_trained(warn=False)
        if self._covariates.modifier is None:
            raise ValueError("The model was set up without `effect_modifier_key`: effects are the same in all cells.")
        found = self.module.knowledge.interventions()
        return modifier_table(found, self.perturbations, self.gene_names_, self._covariates.levels)

    def get_interactions(self) -> pd.DataFrame:
        """What each measured combination of drugs does beside the sum of what its members do, gene by gene, with a test.

        Effects are direct ones, given the parents of a gene, so that what follows downstream from an interaction is none. The expectation
        of a combination is by all other cells: those of its members alone, and of the other combinations in which they are. The error
        holds those of both sides, and what combinations and their sums usually are apart by. Where a drug was never given alone, or at
        other dosages only, little is expected, and the error is large.

        Returns
        -------
        One row a combination and gene, the smallest p-value first: `perturbation` (name of the combination among
        `model.perturbations`), `gene`, `observed` and `expected` effect, their difference `interaction` and its standard `error` if there
        is none, `z`, `p_value` (two-sided) and `p_adjusted` (Benjamini and Hochberg, over all rows).

        Raises
        ------
        ValueError
            The model was set up without `combination_separator`.

        Examples
        --------
        >>> table = model.get_interactions()
        >>> table[table["p_adjusted"] < 0.05]
        """
        self._check_if_trained(warn=False)
        if not self.combinations:
            raise ValueError(
                "The model was set up without `combination_separator`: it knows no combinations of drugs to compare with their members."
            )
        return interaction_table(self.module.knowledge, self.perturbations, self.gene_names_)

    def get_dose_response(
        self,
        perturbation: str | pd.DataFrame,
        genes: str | list[str] | None = None,
        dosage: ArrayLike | None = None,
        *,
        level: float = 0.9,
        covariates: pd.DataFrame | Mapping | None = None,
    ) -> pd.DataFrame:
        """Dose-response curves of the direct effect, with intervals.

        Parameters
        ----------
        perturbation
            Name of a measured perturbation, or a data frame with the features of one drug.
        genes
            Genes; None for those with a target probability above one half.
        dosage
            Dosages; None for 50 from a tenth of the smallest to ten times the largest measured.
        level
            Probability that the intervals hold.
        covariates
            Level of the effect modifier, such as `{"cell_line": "K562"}`; None for what levels have in common.

        Returns
        -------
        One row a gene and dosage: `gene`, `dosage`, `effect` (log fold change if the gene is a target), `lower`,
        `upper`, `target_prob`, `emax`, `ec50`, `hill`. No rows, and a warning, where no gene is a likely target and none was named.

        Raises
        ------
        ValueError
            The screen has no doses, more than one drug is asked for, or a gene, dosage or covariate cannot be used.
        """
        self._check_if_trained(warn=False)
        check_interval(level)
        if not self._drugs.has_doses:
            raise ValueError(
                "The screen was set up without doses (`dosage_key=None`), so there are no dose-response curves. `get_effects` has the effects."
            )
        asked = [perturbation] if isinstance(perturbation, str) else perturbation
        query = self._drugs.query(asked, 1.0)
        if covariates is not None and list(covariates) != [self._covariates.modifier]:
            raise ValueError(
                f"`covariates` names {list(covariates)}. Curves differ by the effect modifier only: {self._covariates.modifier!r}."
            )
        of_level = self._covariates.level_named(covariates)
        if len(query) != 1:
            raise ValueError(f"`perturbation` holds {len(query)} drugs. Give one.")
        interventions = query.known.rows_at(query.drug, None if of_level is None else torch.tensor([of_level]))
        if genes is None:
            drug = str(query.features.index[0])
            chosen = likely_targets(interventions.target_probs[0].numpy(), self.gene_names_, drug)
        else:
            chosen = pd.Index(self.gene_names_).get_indexer(check_genes(genes, self.gene_names_))
        log_dosage = usual_log_dosages(*self.module.knowledge.dosage_range())
        if dosage is not None:
            with np.errstate(divide="ignore"):
                log_dosage = np.log(check_query_dosage(dosage, np.size(dosage)))
        return curve_table(interventions, chosen, self.gene_names_, log_dosage, level)

    def _contexts_asked(self, drug_embedding: Any, dosage: Any, level: Any) -> tuple[pd.MultiIndex, Query]:
        """The drugs asked for, or the measured contexts, and their index; effects are those of the level in it."""
        self._check_if_trained(warn=False)
        if drug_embedding is None:
            if dosage is not None:
                raise ValueError("`dosage` was given without `drug_embedding`. Name the perturbations it is meant for.")
            contexts = (
                self.contexts if level is None else self.contexts.droplevel([*range(2, self.contexts.nlevels)]).unique()
            )
            drug_embedding, dosage = contexts.get_level_values(0).tolist(), contexts.get_level_values(1)
            if level is None and contexts.nlevels > 2:
                query = self._drugs.query(drug_embedding, dosage)
                return contexts, query.at_levels(self._covariates.levels, contexts.get_level_values(2))
        names, levels = self._covariates.names_of_levels(level), self._covariates.levels
        query = self._drugs.query(drug_embedding, dosage)
        arrays = [query.features.index.astype(str), query.dosage]
        index = pd.MultiIndex.from_arrays(arrays, names=["perturbation", "dosage"])
        if not names:
            return index, query
        q, n = len(index), len(names)
        index = pd.MultiIndex.from_arrays(
            [*(index.get_level_values(k).repeat(n) for k in (0, 1)), names * q],
            names=["perturbation", "dosage", self._covariates.modifier],
        )
        return index, query.rows(np.arange(q).repeat(n)).at_levels(levels, names * q)
