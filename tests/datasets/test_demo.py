from __future__ import annotations

import socket

import pandas as pd

from scgim import datasets


def test_demo_needs_no_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    adata = datasets.load_demo()
    assert set(adata.obs["split"]) == {"train", "unseen_drug", "unseen_dose"}
    assert adata.uns["drug_embedding"].shape[0] == 48
    pd.testing.assert_frame_equal(datasets.load_demo().obs, adata.obs)
