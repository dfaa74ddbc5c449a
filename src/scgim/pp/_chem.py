"""Drug features from chemical structure, by RDKit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgim._constants import Key
from scgim._validation import check_key, check_perturbations, quote_some

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

_MISSING = {"", "NA", "N/A", "NAN", "NONE", "-"}
DESCRIPTORS = (
    "MolWt",
    "MolLogP",
    "TPSA",
    "LabuteASA",
    "MolMR",
    "NumHDonors",
    "NumHAcceptors",
    "NumRotatableBonds",
    "NumHeteroatoms",
    "HeavyAtomCount",
    "RingCount",
    "NumAromaticRings",
    "NumAliphaticRings",
    "FractionCSP3",
    "BertzCT",
    "qed",
)


def drug_fingerprints(
    smiles: pd.Series | Mapping[str, str] | Sequence[str] | str,
    *,
    radius: int = 2,
    n_bits: int = 1024,
    adata: AnnData | None = None,
    perturbation_key: str = "perturbation",
    control: str = "control",
    key_added: str = "drug_embedding",
) -> pd.DataFrame:
    """Morgan fingerprints of drugs: which substructures each one has.

    Parameters
    ----------
    smiles
        Structures: a series (index = drug names), a mapping from name to SMILES, a list of SMILES (which then are the
        names), or the name of a column of `adata.obs`. An entry for `control` is left out.
    radius
        Bonds that a substructure reaches from its central atom; 2 is the fingerprint known as ECFP4.
    n_bits
        Length of the fingerprint.
    adata
        Screen to align to. The fingerprints of its perturbations are written to `adata.uns[key_added]`, where
        :meth:`scgim.model.GIM.setup_anndata` finds them; and to `adata.uns[f"{key_added}_substructures"]`, a row a bit,
        which substructure it stands for most often among these drugs, with one of them as an example. From there
        :func:`scgim.pl.feature_importance` draws it.
    perturbation_key
        Column of `adata.obs` with the perturbations.
    control
        Label of the controls.
    key_added
        Entry of `adata.uns` to write.

    Returns
    -------
    Data frame, drugs x bits, of 0 and 1, with all drugs of `smiles`.

    Raises
    ------
    ImportError
        RDKit is not installed.
    ValueError
        A SMILES is missing or cannot be read, or a perturbation of `adata` has none.

    Examples
    --------
    >>> scgim.pp.drug_fingerprints({"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "ethanol": "CCO"})
    >>> scgim.pp.drug_fingerprints("smiles", adata=adata)

    Notes
    -----
    Many bits are zero for all drugs of a screen. With few drugs, :func:`pca_features` keeps all that tells these drugs
    apart and makes the fit faster.
    """
    table = _structures(smiles, adata, perturbation_key, control)
    molecules = _molecules(table)
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    generator = GetMorganGenerator(radius=radius, fpSize=n_bits)
    bits = np.stack([generator.GetFingerprintAsNumPy(molecule) for molecule in molecules])
    frame = pd.DataFrame(bits, index=table.index, columns=[f"bit_{i}" for i in range(n_bits)])
    aligned = _align(frame, adata, perturbation_key, control, key_added)
    if adata is not None:
        drugs = adata.uns[key_added].index
        by_name = dict(zip(table.index, molecules, strict=True))
        adata.uns[key_added + Key.SUBSTRUCTURES] = _substructures(
            table[drugs], [by_name[drug] for drug in drugs], generator
        )
    return aligned


def _substructures(table: pd.Series, molecules: list[Any], generator: Any) -> pd.DataFrame:
    """For each bit that a drug has, the substructure that most drugs have it for, with the first of them as an example.

    Columns: `substructure` (SMILES), `n_drugs` that have it, `drug`, its `smiles`, and there the
    central `atom` and the `radius` in bonds.
    """
    from rdkit import Chem
    from rdkit.Chem.rdFingerprintGenerator import AdditionalOutput

    found = []
    for (drug, smiles), molecule in zip(table.items(), molecules, strict=True):
        output = AdditionalOutput()
        output.AllocateBitInfoMap()
        generator.GetFingerprint(molecule, additionalOutput=output)
        for bit, centres in output.GetBitInfoMap().items():
            for atom, radius in centres:
                bonds = list(Chem.FindAtomEnvironmentOfRadiusN(molecule, radius, atom)) if radius else []
                ends = [molecule.GetBondWithIdx(bond) for bond in bonds]
                atoms = {atom, *(b.GetBeginAtomIdx() for b in ends), *(b.GetEndAtomIdx() for b in ends)}
                text = Chem.MolFragmentToSmiles(molecule, list(atoms), bonds)
                found.append((bit, text, drug, smiles, atom, radius))
    columns = ["bit", "substructure", "drug", "smiles", "atom", "radius"]
    frame = pd.DataFrame(found, columns=columns).drop_duplicates(["bit", "substructure", "drug"])
    frame.insert(2, "n_drugs", frame.groupby(["bit", "substructure"])["drug"].transform("size"))
    frame = frame.sort_values(["bit", "n_drugs"], ascending=[True, False], kind="stable").drop_duplicates("bit")
    return frame.set_index("bit").rename(index=lambda bit: f"bit_{bit}").rename_axis(None)


def drug_descriptors(
    smiles: pd.Series | Mapping[str, str] | Sequence[str] | str,
    *,
    descriptors: str | Sequence[str] = DESCRIPTORS,
    adata: AnnData | None = None,
    perturbation_key: str = "perturbation",
    control: str = "control",
    key_added: str = "drug_embedding",
) -> pd.DataFrame:
    """Physical and chemical descriptors of drugs: mass, lipophilicity, polar surface, rings and so on.

    Parameters
    ----------
    smiles
        Structures, as in :func:`drug_fingerprints`.
    descriptors
        Names of RDKit descriptors (`rdkit.Chem.Descriptors.descList`), or the name of one.
    adata
        Screen to align to; the descriptors of its perturbations are written to `adata.uns[key_added]`.
    perturbation_key
        Column of `adata.obs` with the perturbations.
    control
        Label of the controls.
    key_added
        Entry of `adata.uns` to write.

    Returns
    -------
    Data frame, drugs x descriptors, in RDKit's units (not scaled), with all drugs of `smiles`.

    Raises
    ------
    ImportError
        RDKit is not installed.
    KeyError
        RDKit has no such descriptor.
    ValueError
        A SMILES is missing or cannot be read, a perturbation of `adata` has none, or a descriptor is not finite.
    """
    table = _structures(smiles, adata, perturbation_key, control)
    molecules = _molecules(table)
    from rdkit.Chem import Descriptors

    functions = dict(Descriptors.descList)
    descriptors = [descriptors] if isinstance(descriptors, str) else list(descriptors)
    for name in descriptors:
        check_key(name, functions, where="rdkit.Chem.Descriptors.descList", argument="descriptors")
    values = [[float(functions[name](molecule)) for name in descriptors] for molecule in molecules]
    frame = pd.DataFrame(values, index=table.index, columns=descriptors)
    bad = ~np.isfinite(frame.to_numpy())
    if bad.any():
        raise ValueError(
            f"RDKit gives no finite value of {quote_some(frame.columns[bad.any(axis=0)])} for "
            f"{quote_some(frame.index[bad.any(axis=1)])}. Leave these descriptors or drugs out."
        )
    return _align(frame, adata, perturbation_key, control, key_added)


def _structures(smiles: Any, adata: AnnData | None, perturbation_key: str, control: str) -> pd.Series:
    """SMILES as a series with one entry a drug."""
    if isinstance(smiles, str):
        if adata is None:
            raise ValueError(f"`smiles={smiles!r}` names a column of `adata.obs`: pass `adata`, or a list of SMILES.")
        return _structures_from_obs(adata, smiles, perturbation_key, control)
    if not isinstance(smiles, pd.Series):
        smiles = pd.Series(smiles if hasattr(smiles, "keys") else {text: text for text in smiles}, dtype=object)
    table = smiles.set_axis(smiles.index.astype(str)).drop(control, errors="ignore")
    if not table.index.is_unique:
        raise ValueError(
            f"Drugs are repeated in `smiles`: {quote_some(table.index[table.index.duplicated()].unique())}. Give each "
            "drug once, or the name of a column of `adata.obs` together with `adata`."
        )
    return table


def _structures_from_obs(adata: AnnData, key: str, perturbation_key: str, control: str) -> pd.Series:
    check_key(perturbation_key, adata.obs.columns, where="adata.obs", argument="perturbation_key")
    check_key(key, adata.obs.columns, where="adata.obs", argument="smiles")
    pairs = adata.obs[[perturbation_key, key]].astype({perturbation_key: str, key: object}).drop_duplicates()
    pairs = pairs[pairs[perturbation_key] != control]
    several = pairs[perturbation_key].duplicated()
    if several.any():
        raise ValueError(
            f"Cells of {quote_some(pairs.loc[several, perturbation_key].unique())} differ in `adata.obs[{key!r}]`. "
            "A drug has one structure."
        )
    return pairs.set_index(perturbation_key)[key].rename_axis(None)


def _molecules(table: pd.Series) -> list[Any]:
    """RDKit molecules of all drugs; an error names those that cannot be read."""
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise ImportError(
            'Reading chemical structures needs RDKit. Install it: `pip install "scgim[chem]"` (or `pip install rdkit`).'
        ) from error
    if len(table) == 0:
        raise ValueError("`smiles` has no drugs.")
    empty = [name for name, text in table.items() if not isinstance(text, str) or text.strip().upper() in _MISSING]
    if empty:
        raise ValueError(f"No SMILES for {quote_some(empty)}. Add them or leave these drugs out.")
    with rdBase.BlockLogs():
        molecules = [Chem.MolFromSmiles(text) for text in table]
    invalid = [
        f"{name}: {text}" for (name, text), molecule in zip(table.items(), molecules, strict=True) if not molecule
    ]
    if invalid:
        raise ValueError(
            f"{len(invalid)} of {len(table)} SMILES cannot be read by RDKit: {quote_some(invalid)}. Correct them or "
            "leave these drugs out."
        )
    return molecules


def _align(
    frame: pd.DataFrame, adata: AnnData | None, perturbation_key: str, control: str, key_added: str
) -> pd.DataFrame:
    """Write the rows of the perturbations of `adata` to its `uns`, and return the whole frame."""
    if adata is None:
        return frame
    drugs = [name for name in check_perturbations(adata.obs, perturbation_key, control).categories if name != control]
    missing = [name for name in drugs if name not in frame.index]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(drugs)} perturbations in `adata.obs[{perturbation_key!r}]` have no SMILES: "
            f"{quote_some(missing)}. Names must match exactly; `smiles` has {quote_some(frame.index)}."
        )
    adata.uns[key_added] = frame.loc[drugs]
    return frame
