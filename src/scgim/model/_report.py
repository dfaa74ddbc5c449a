"""What a fit has found and what speaks against believing it, on one page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from scgim._priors import CELLS_A_GENE
from scgim._report import Report, about
from scgim._validation import quote_some
from scgim.fit._feedback import strongest
from scgim.model._base import ScreenModel
from scgim.model._halves import agreement_of_halves, refit_halves

if TYPE_CHECKING:
    from scgim.model._gim import GIM

_CALLED = 0.5  # probability from which a target is called
# What a reader is warned of. Conventions.
_USUAL_SHARE, _MIN_USUAL = 0.25, 3  # a gene called for this share of the perturbations, and at least so many, is listed
_MANY_TARGETS, _MIN_MANY = 0.2, 6  # of the genes, and at least so many: a drug of few targets is what the model assumes
_LITTLE = 0.5  # agreement of two halves below which half of what one finds is not in the other
_HARDLY_ANY = 0.2  # agreement below which nothing of it can be read by itself
# share of the edges that genes of a cluster could have, and edges of each: networks are sparser
_DENSE, _MIN_DENSE = 0.6, 6
_MUCH_BETTER = 0.95  # of the error of the mean: what features bring below it is worth naming


class ReportMixin(ScreenModel):
    """`report` of :class:`scgim.model.GIM`."""

    def report(self, *, split_half: bool = False, seed: int = 0) -> Report:
        """What the fit has found and what speaks against believing it; :func:`scgim.tl.report` is that of one drug.

        Parameters
        ----------
        split_half
            Fit two halves of the training cells as well, with the same settings, and compare what they find. It takes about as long as
            the fit did, and needs its data.
        seed
            Seed of the halves and of their fits.

        Returns
        -------
        A report, which prints as text and shows as tables in a notebook. Its tables:

        - `controls`: genes in which simulated control cells differ from the observed ones, with the moments of both
        - `cut`: edges that the search found and the fit did not bear out, with their log evidence
        - `feedback`: loops that the graph leaves out, as :meth:`get_feedback` has them
        - `features`: mean squared error of measured drugs that were left out, relative to that of no effect: of the mean of the other
          drugs at that dose, and of what is predicted for a new drug
        - `usual_targets`: genes that are called targets of many perturbations
        - `dense_cluster`: genes that have most of the edges among them that they could have, as genes do on which something acts that
          was not measured
        - with `split_half`, `halves`: how far two halves agree; `edges` and `targets`: those of the model, and in how many halves each was
          found

        Raises
        ------
        ValueError
            Halves are wanted, and the model was loaded without data, or a perturbation has fewer than four cells.

        Examples
        --------
        >>> model.report()
        >>> model.report(split_half=True)["edges"]
        """
        self._check_if_trained(warn=False)
        called = pd.DataFrame(
            self.module.knowledge.interventions().target_probs.numpy() > _CALLED, self.perturbations, self.gene_names_
        )[self._drugs.is_measured & self._drugs.is_drug]
        tables = {"controls": self._controls_off(), "cut": self._cut_edges()}
        if self.feedback_ is not None:
            tables["feedback"] = about(self.get_feedback(), "loops that the cells ask for and the graph leaves out")
        if self.drug_embedding is not None:
            tables["features"] = self._features_table()
        tables["usual_targets"] = _usual_targets(called)
        tables["dense_cluster"] = _dense_cluster(self.adjacency_, self.gene_names_)
        if split_half:
            model = cast("GIM", self)
            tables |= agreement_of_halves(model, refit_halves(model, seed))
        cautions = [*self._cautions_of_fit(called, tables), *_cautions_of_halves(tables.get("halves"))]
        return Report("What the fit has found", self._numbers(called), tables, cautions)

    def _numbers(self, called: pd.DataFrame) -> dict[str, Any]:
        probs = self.module.knowledge.edge_probs.cpu().numpy()
        out: dict[str, Any] = {
            **self._sizes,
            "treated_cells_trained_on": int(self.n_cells_.sum()),
            "edges": int(self.adjacency_.sum()),
            "edges_less_likely_than_not": int((self.adjacency_ & (probs < 0.5)).sum()),
            "targets": int(called.to_numpy().sum()),
            "perturbations_without_target": int((~called.any(axis=1)).sum()),
        }
        if self.measurement_reason_ is not None:
            out["graph_of"] = "hidden expression" if self.graph_is_hidden_ else "counts"
            out["since"] = self.measurement_reason_
        if self.control_check_ is not None:
            out["genes_whose_controls_agree"] = f"{int(self.control_check_['agree'].sum())} of {called.shape[1]}"
        return out

    def _controls_off(self) -> pd.DataFrame:
        check = self.control_check_
        table = pd.DataFrame() if check is None else check.loc[~check["agree"]].drop(columns="agree")
        return about(table, "genes in which simulated control cells differ from the observed ones")

    def _cut_edges(self) -> pd.DataFrame:
        names, evidence = np.asarray(self.gene_names_), self.edge_evidence_
        if evidence is None or not self.module.mechanism.is_linear:
            evidence = np.full((len(names), len(names)), np.inf)
        i, j = np.nonzero((evidence <= 0) & np.isfinite(evidence))
        table = pd.DataFrame({"source": names[i], "target": names[j], "log_evidence": evidence[i, j]})
        return about(
            table.sort_values("log_evidence", ignore_index=True), "edges of the search that the fit did not bear out"
        )

    def _features_table(self) -> pd.DataFrame:
        generator = self._drugs.generator
        error = {
            "no effect": 1.0,
            "mean of the other drugs": float(generator.error_of_mean),
            "predicted": float(generator.error),
        }
        return about(pd.DataFrame({"error": error}), "squared error of drugs left out, relative to no effect")

    def _cautions_of_fit(self, called: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> list[str]:
        out, n_genes = [], called.shape[1]
        if len(off := tables["controls"]):
            out.append(
                f"Simulated control cells differ from the observed ones in {quote_some(off.index)}: doubt these genes, and those below them."
            )
        if "feedback" in tables and len(clear := strongest(tables["feedback"])):
            out.append(
                f"The graph leaves out feedback, {quote_some(clear['loop'])}: doubt directions and targets of these genes."
            )
        if "features" in tables and not self._drugs.features_tell:
            out.append(
                "The features tell nothing of what drugs do: predictions of drugs that were not measured are the mean of those that were."
            )
        elif "features" in tables:
            error = tables["features"]["error"]
            if error["predicted"] > _MUCH_BETTER * error["mean of the other drugs"]:
                out.append(
                    "The features tell little of what drugs do: drugs left out are hardly better predicted than by the mean."
                )
        if "halves" not in tables:  # which say it better
            out += self._caution_of_few_cells()
        if not called.to_numpy().any():
            out.append(
                "No target is called for any perturbation: nothing is known of where they act. Effects are weak for so many cells, or "
                "shared by all perturbations."
            )
        many = called.index[called.sum(axis=1) >= max(_MIN_MANY, _MANY_TARGETS * n_genes)]
        if len(many):
            out.append(
                f"Many of the genes are called targets of {quote_some(many)}, which is not what the model assumes."
            )
        usual = tables["usual_targets"]
        if len(usual) and usual["share"].max() >= 2 * _USUAL_SHARE:
            names = usual.index[usual["share"] >= 2 * _USUAL_SHARE]
            out.append(
                f"{quote_some(names)}: called targets of at least half of the perturbations, which is rarely direct."
            )
        cluster = tables["dense_cluster"]
        if len(cluster):
            n, possible = cluster["n_edges"].sum() // 2, len(cluster) * (len(cluster) - 1) // 2
            out.append(
                f"{len(cluster)} genes ({quote_some(cluster.index)}) have {n} of the {possible} edges that they could have among them. What was "
                "not measured and acts on all of them, such as the cell cycle or stress, looks like this, and with certainty: give it as a "
                "covariate, or doubt these edges."
            )
        return out

    def _caution_of_few_cells(self) -> list[str]:
        n_cells, n_genes, n_edges = int(self.n_cells_.sum()), len(self.gene_names_), int(self.adjacency_.sum())
        if not n_edges or n_cells >= CELLS_A_GENE * n_genes:
            return []
        return [
            f"{n_cells} treated cells or wells are few for {n_genes} genes: fewer than {CELLS_A_GENE} a gene. Edges are often not "
            f"reproducible then, whatever their probability: before any of the {n_edges} is read by itself, see with `report(split_half=True)` how "
            "many two halves of the cells agree in."
        ]


def _dense_cluster(adjacency: np.ndarray, genes: list[str]) -> pd.DataFrame:
    """The genes that are left where those of fewest edges are taken away one by one, when the fewest are most; empty unless they are dense."""
    edges = adjacency | adjacency.T
    degree, left = edges.sum(axis=1).astype(float), np.ones(len(edges), dtype=bool)
    core, most = left.copy(), -1.0
    for _ in genes:
        fewest = int(np.where(left, degree, np.inf).argmin())
        if degree[fewest] > most:
            core, most = left.copy(), degree[fewest]
        left[fewest] = False
        degree -= edges[fewest]
    n_edges = edges[np.ix_(core, core)].sum(axis=1)
    if most < _MIN_DENSE or n_edges.sum() < _DENSE * core.sum() * (core.sum() - 1):
        core[:], n_edges = False, n_edges[:0]
    table = pd.DataFrame({"n_edges": n_edges}, np.asarray(genes, dtype=object)[core]).rename_axis("gene")
    return about(table.sort_values("n_edges", ascending=False, kind="stable"), "genes with edges between most of them")


def _usual_targets(called: pd.DataFrame) -> pd.DataFrame:
    n = called.sum(axis=0).sort_values(ascending=False, kind="stable")
    n = n[n >= max(_MIN_USUAL, _USUAL_SHARE * len(called))]
    table = pd.DataFrame({"n_perturbations": n, "share": n / len(called)}).rename_axis("gene")
    return about(table, "genes called for many perturbations")


def _cautions_of_halves(halves: pd.DataFrame | None) -> list[str]:
    if halves is None:
        return []
    return [text for name in halves.index if (text := _caution_of_agreement(name, halves.loc[name]))]


def _caution_of_agreement(name: str, found: pd.Series) -> str | None:
    """What two halves say against edges or targets, called `name`; None where they agree."""
    agreement, n = found["agreement"], int(found["all_cells"])
    if np.isnan(agreement):
        return f"Neither half of the cells has any of the {n} {name}: they are not reproducible." if n else None
    if agreement >= _LITTLE:
        return None
    then = (
        "these are not reproducible, so read none by itself"
        if agreement < _HARDLY_ANY
        else "many hang on the choice of cells"
    )
    return f"Two halves of the cells agree in {agreement:.0%} of the {name}: {then}."
