"""Preparation of a screen: drug features, choice of genes, check of the design, splits."""

from __future__ import annotations

from scgim.pp._chem import drug_descriptors, drug_fingerprints
from scgim.pp._features import pca_features
from scgim.pp._genes import select_genes
from scgim.pp._guides import guide_targets
from scgim.pp._mark_regulators import mark_regulators
from scgim.pp._plate import plate_position
from scgim.pp._screen import check_screen
from scgim.pp._split import split_by_context

__all__ = [
    "check_screen",
    "drug_descriptors",
    "drug_fingerprints",
    "guide_targets",
    "mark_regulators",
    "pca_features",
    "plate_position",
    "select_genes",
    "split_by_context",
]
