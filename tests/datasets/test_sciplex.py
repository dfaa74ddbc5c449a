from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgim import _validation, datasets
from scgim.datasets import _geo, _sciplex

GENES = [("ENSG01.1", "AAA"), ("ENSMUSG9.1", "Bbb"), ("ENSG02.3", "CCC"), ("ENSG03.1", "AAA"), ("ENSG04.1", "NEVER")]
N_CELLS = 60


def counts_of(n_cells=N_CELLS):
    counts = np.random.default_rng(0).poisson(2.0, (n_cells, 5)) + 1
    counts[:, 4] = 0
    return counts


def as_coordinates(counts):
    cell, gene = np.nonzero(counts)
    return "".join(f"{g + 1}\t{c + 1}\t{counts[c, g]}\n" for c, g in zip(cell, gene, strict=True))


def as_r_table(frame, *, row_names):
    """Quoted text, space-separated, the header without an entry for the row names."""
    quoted = frame.map(lambda v: f'"{v}"' if isinstance(v, str) else ("NA" if pd.isna(v) else str(v).upper()))
    lines = [" ".join(f'"{name}"' for name in frame.columns)]
    for i, row in enumerate(quoted.itertuples(index=False)):
        lines.append(" ".join([f'"{i + 1}"', *row] if row_names else row))
    return "\n".join(lines) + "\n"


@pytest.fixture
def labels3():
    """Of 60 cells: 20 vehicle, 20 of each of two drugs; cell 0 has few hashes, 1 an impossible well, 2 no label."""
    names = [f"A01_RT_{i}" for i in range(N_CELLS)]
    drug = np.repeat(["Vehicle", "Trametinib (GSK1120212) ", "TAK-901"], 20)
    frame = pd.DataFrame({"cell": names, "sample": "Screen", "n.umi": counts_of().sum(axis=1)})
    frame["hash_umis_W"], frame["hash_umis_P"] = 50.0, 60.0
    frame["top_to_second_best_ratio_W"], frame["top_to_second_best_ratio_P"] = 20.0, 30.0
    frame["rt_well"], frame["culture_plate"], frame["well_oligo"] = 7, "plate1", "plate2_A9"
    frame["cell_type"] = np.tile(["A549", "K562"], 30)
    frame["replicate"], frame["time_point"] = "rep1", np.tile([24, 24, 72, 24], 15)
    frame["catalog_number"] = np.repeat(["S0000", "S2673", "S2718"], 20)
    frame["vehicle"] = drug == "Vehicle"
    frame["dose"] = np.where(frame["vehicle"], 0, np.tile([10, 10000], 30))
    frame["pathway_level_1"], frame["target"], frame["product_name"] = "Cell cycle", "MEK", drug
    frame.loc[0, "hash_umis_P"] = 4.0
    frame.loc[1, "rt_well"] = 1
    frame = frame.astype({"product_name": object})
    frame.loc[2, "product_name"] = None
    return frame


@pytest.fixture
def sciplex3_server(serve, labels3, server):
    design = (
        "catalog_number\tvehicle\tSMILES\nS0000\tTRUE\tNA\nS2673\tFALSE\tCCO\nS2673\tFALSE\tCCO\nS2718\tFALSE\tCCC\n"
    )
    serve(
        _sciplex,
        "SCIPLEX3",
        {
            "counts": as_coordinates(counts_of()),
            "cells": "".join(f"{name}\tScreen\n" for name in labels3["cell"]),
            "genes": "id gene_short_name\n" + "".join(f"{i} {s}\n" for i, s in GENES),
            # The order of the labels is not that of the counts.
            "labels": as_r_table(labels3.iloc[::-1], row_names=True),
            "design": design,
        },
    )
    return server


def load3(tmp_path, **arguments):
    return datasets.sciplex3(cache_dir=tmp_path, progress=False, **arguments)


@pytest.mark.parametrize("lines", [7, 10**6])
def test_sciplex3(sciplex3_server, tmp_path, labels3, monkeypatch, lines):
    monkeypatch.setattr(_geo, "_LINES", lines)
    adata = load3(tmp_path, time=None)
    assert adata.shape == (57, 3)
    assert list(adata.obs_names) == list(labels3["cell"][3:])
    np.testing.assert_array_equal(adata.X.toarray(), counts_of()[3:][:, [0, 2, 3]])
    assert list(adata.var_names) == ["AAA", "CCC", "AAA-1"]
    assert list(adata.var["gene_id"]) == ["ENSG01.1", "ENSG02.3", "ENSG03.1"]
    assert adata.obs["perturbation"].cat.categories.tolist() == ["TAK-901", "Trametinib (GSK1120212)", "control"]
    assert adata.obs.loc["A01_RT_41", "dosage"] == 10.0
    assert adata.obs.loc["A01_RT_40", "dosage"] == 0.01
    drugs = adata.uns["drugs"]
    assert drugs.loc["Trametinib (GSK1120212)", ["smiles", "catalog_number"]].tolist() == ["CCO", "S2673"]
    assert list(drugs.index) == ["TAK-901", "Trametinib (GSK1120212)"]


def test_sciplex3_is_ready_for_the_model(sciplex3_server, tmp_path):
    adata = load3(tmp_path, time=None)
    _validation.check_matrix_type(adata)
    _validation.check_counts(adata.X, where="adata.X")
    _validation.check_nonempty(adata.X, adata.var_names, adata.obs_names, where="adata.X")
    labels = _validation.check_perturbations(adata.obs, "perturbation", "control")
    assert (_validation.check_dosage(adata.obs, "dosage", "perturbation", "control") > 0).sum() == 40
    pytest.importorskip("rdkit")
    from scgim import pp

    pp.drug_fingerprints(adata.uns["drugs"]["smiles"], adata=adata)
    assert _validation.resolve_embedding(adata, "drug_embedding", labels, control="control").shape == (2, 1024)


def test_sciplex3_subsets(sciplex3_server, tmp_path):
    adata = load3(tmp_path, drugs=["trametinib"], cell_lines=["K562"])
    assert set(adata.obs["perturbation"]) == {"control", "Trametinib (GSK1120212)"}
    assert set(adata.obs["cell_line"]) == {"K562"}
    assert set(adata.obs["time"]) == {24.0}
    few = load3(tmp_path, n_cells=20, time=None)
    assert few.n_obs == 20
    everything = load3(tmp_path, time=None)
    np.testing.assert_array_equal(few.X.toarray(), everything[few.obs_names, few.var_names].X.toarray())
    with pytest.raises(KeyError, match="`drugs='aspirin'`"):
        load3(tmp_path, drugs=["aspirin"])
    with pytest.raises(KeyError, match="`cell_lines='HeLa'`"):
        load3(tmp_path, cell_lines=["HeLa"])
    with pytest.raises(ValueError, match="No cells fit this choice"):
        load3(tmp_path, time=48)


def test_second_call_reads_the_cache(sciplex3_server, tmp_path):
    first = load3(tmp_path)
    n_requests = len(sciplex3_server.requests)
    assert n_requests == 5
    second = load3(tmp_path)
    assert len(sciplex3_server.requests) == n_requests
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    pd.testing.assert_frame_equal(first.obs, second.obs)
    pd.testing.assert_frame_equal(first.uns["drugs"], second.uns["drugs"], check_dtype=False)
    load3(tmp_path, n_cells=10)
    assert len(sciplex3_server.requests) == n_requests


def test_counts_out_of_step_with_labels_are_noticed(serve, labels3, sciplex3_server, tmp_path):
    shifted = np.roll(counts_of(), 1, axis=0)
    files = {name: file.name for name, file in _sciplex.SCIPLEX3.items()}
    assert files["counts"] == "counts.gz"
    import gzip

    from scgim.datasets._download import RemoteFile

    sciplex3_server.files["/counts.gz"] = gzip.compress(as_coordinates(shifted).encode())
    _sciplex.SCIPLEX3["counts"] = RemoteFile("counts.gz", f"{sciplex3_server.address}/counts.gz")
    with pytest.warns(UserWarning, match="total counts of .* differ from those deposited"):
        load3(tmp_path)


@pytest.fixture
def sciplex2_server(serve, server):
    names = [f"cell{i}" for i in range(N_CELLS)]
    oligo = np.repeat(["BMS_0_1A1", "Dex_0.1_1B2", "Nutlin_50_2C3", "SAHA_10_2D12", "Dex_0_1B1", "SAHA_0.5_2D11"], 10)
    frame = pd.DataFrame({"Cell": names, "sample": "s", "Size_Factor": 1.0, "n.umi": counts_of().sum(axis=1)})
    frame["hash_umis"], frame["pval"], frame["qval"], frame["top_to_second_best_ratio"] = 100, 1e-9, 1e-8, 30.0
    frame["top_oligo"] = oligo.astype(object)
    frame.loc[0, "hash_umis"] = 30
    frame.loc[1, "qval"] = 0.02
    frame.loc[2, "top_to_second_best_ratio"] = 10.0
    frame.loc[3, "top_oligo"] = None
    serve(
        _sciplex,
        "SCIPLEX2",
        {
            "counts": as_coordinates(counts_of()),
            "cells": "".join(f"{name}\ts\n" for name in names),
            "genes": "".join(f"{i}\t{s}\n" for i, s in GENES),
            "labels": as_r_table(frame, row_names=False),
        },
    )
    return server


def test_sciplex2(sciplex2_server, tmp_path):
    adata = datasets.sciplex2(cache_dir=tmp_path, progress=False)
    assert adata.n_obs == 56
    assert adata.obs_names[0] == "cell4"
    np.testing.assert_array_equal(adata.X.toarray(), counts_of()[4:][:, [0, 2, 3]])
    found = adata.obs.groupby("perturbation", observed=True)["dosage"].unique()
    assert {k: sorted(v) for k, v in found.items()} == {
        "Dexamethasone": [0.1],
        "Nutlin-3a": [50.0],
        "Vorinostat": [0.5, 10.0],
        "control": [0.0],
    }
    assert adata.obs.loc["cell40", ["perturbation", "solvent", "well"]].tolist() == ["control", "ethanol", "1B1"]
    assert adata.obs.loc["cell4", "solvent"] == "DMSO"
    some = datasets.sciplex2(drugs="vorino", n_cells=12, cache_dir=tmp_path, progress=False)
    assert some.n_obs == 12
    assert set(some.obs["perturbation"]) == {"control", "Vorinostat"}


def test_addresses_are_those_of_geo():
    for table, sample in ((_sciplex.SCIPLEX2, "GSM4150377"), (_sciplex.SCIPLEX3, "GSM4150378")):
        for file in table.values():
            assert file.url == f"https://ftp.ncbi.nlm.nih.gov/geo/samples/GSM4150nnn/{sample}/suppl/{file.name}"
    assert all(len(file.sha256) == 64 for file in _sciplex.SCIPLEX3.values())


def test_other_columns_are_refused(serve, labels3, sciplex3_server, tmp_path):
    import gzip

    from scgim.datasets._download import RemoteFile

    text = as_r_table(labels3.drop(columns="n.umi"), row_names=True)
    sciplex3_server.files["/labels.gz"] = gzip.compress(text.encode())
    _sciplex.SCIPLEX3["labels"] = RemoteFile("labels.gz", f"{sciplex3_server.address}/labels.gz")
    with pytest.raises(ValueError, match=r"lacks the columns \['n.umi'\]"):
        load3(tmp_path)
