"""Genes that may regulate, from the registry to the graph."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgim.model import GIM


def marked(adata, genes):
    adata.var["regulator"] = adata.var_names.isin(genes)
    return adata


@pytest.mark.parametrize(
    "options", [{}, {"mechanism": "mlp"}, {"measurement": "latent"}], ids=["linear", "mlp", "latent"]
)
def test_only_regulators_are_parents(adata, fit, options):
    model = fit(marked(adata, ["gene_0", "gene_2", "gene_5"]), {"regulator_key": "regulator"}, epochs=2, **options)
    others = [gene for gene in model.gene_names_ if gene not in ("gene_0", "gene_2", "gene_5")]
    assert (model.get_adjacency().loc[others] == 0).all(axis=None)
    assert not set(model.get_graph()["source"]) & set(others)


def test_regulators_are_kept_with_the_model(adata, fit, tmp_path):
    model = fit(marked(adata, ["gene_0", "gene_2"]), {"regulator_key": "regulator"}, epochs=2)
    model.save(tmp_path / "model")
    told = model.module.knowledge.told_regulators()
    assert told.sum() == 2
    del adata.var["regulator"]  # other data need not have it
    for data in (False, adata):
        loaded = GIM.load(tmp_path / "model", adata=data)
        np.testing.assert_array_equal(loaded.module.knowledge.told_regulators(), told)


def test_without_a_key_any_gene_may_regulate(adata):
    GIM.setup_anndata(adata)
    assert GIM(adata).module.knowledge.told_regulators() is None


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, 0.0] * 4, r"`adata\.var\['regulator'\]` must be boolean, found float64.*scgim\.pp\.mark_regulators"),
        (["yes", "no"] * 4, r"must be boolean"),
        ([True, None] * 4, r"4 genes have no value \(NaN\).*'gene_1'.*fillna"),
        ([False] * 8, r"marks 0 of 8 genes.*leave out `regulator_key`"),
        ([True] + [False] * 7, r"marks 1 of 8 genes"),
    ],
)
def test_wrong_columns(adata, column, message):
    adata.var["regulator"] = column
    with pytest.raises(ValueError, match=message):
        GIM.setup_anndata(adata, regulator_key="regulator")


def test_missing_column(adata):
    adata.var["regulator"] = True
    with pytest.raises(KeyError, match="`regulator_key='regulators'` is not in `adata.var`.*Did you mean 'regulator'"):
        GIM.setup_anndata(adata, regulator_key="regulators")


def test_likely_edges_from_other_genes_are_refused_and_unlikely_ones_are_not(adata):
    GIM.setup_anndata(marked(adata, ["gene_0", "gene_2"]), regulator_key="regulator")
    network = pd.DataFrame([[0.9, np.nan], [0.9, 0.1]], ["gene_0", "gene_1"], ["gene_3", "gene_4"])
    with pytest.raises(ValueError, match=r"'gene_1 -> gene_3'\. Mark these genes"):
        GIM(adata, network_prior=network)
    GIM(adata, network_prior=network.drop(columns="gene_3"))
