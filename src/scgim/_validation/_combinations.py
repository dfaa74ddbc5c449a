"""Combinations of drugs in the columns of a screen: "A+B" with the dosages "1+10"."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgim._validation._messages import check_column, quote_some

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Members = dict[str, float]
"""Dosage of each drug of a combination."""

# Between the names of drugs in screens of pairs; all but the first are in names of single drugs as well
_USUAL_SEPARATORS = ("+", "&", "|", ";", ",", "/", "_", " ")


def separate_combinations(
    obs: pd.DataFrame, perturbation_key: str, control: str, dosage_key: str | None, separator: str | None
) -> tuple[pd.DataFrame, dict[str, Members]]:
    """Labels and dosages of cells, each combination under one name, and the members of each combination by that name.

    The members are in the order of their names, whatever the order in the column. A combination is called after them, and after their
    dosages where there are any: "A+B", "A:1+B:10" (:func:`combination_name`). Its dosage is the largest of theirs. The control, and a
    drug at dosage 0, is no member.

    Parameters
    ----------
    obs
        Columns `perturbation_key` and `dosage_key`.
    perturbation_key, control, dosage_key
        See :meth:`scgim.model.GIM.setup_anndata`.
    separator
        What stands between the drugs of a combination, and between their dosages; None where there are no combinations.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        A label has an empty member or one twice, or does not have a dosage for each of its members.
    """
    if separator is None:
        return obs, {}
    check_separator(separator, control)
    labels = check_column(obs, perturbation_key, "perturbation_key")
    labels = labels.astype(object).where(labels.isna(), labels.astype(str))
    given = {perturbation_key: labels}
    if dosage_key is not None:
        given[dosage_key] = check_column(obs, dosage_key, "dosage_key").astype(object)
    pairs = pd.DataFrame(given, index=obs.index)
    code, found = pd.factorize(pd.MultiIndex.from_frame(pairs) if dosage_key is not None else labels)
    names, dosages, combinations = [], [], {}
    for one in found:
        label, dosage = one if dosage_key is not None else (one, None)
        members = _members(label, dosage, perturbation_key, dosage_key, control, separator)
        if members is None:
            names.append(label)
            dosages.append(_as_number(dosage))
            continue
        if len(members) > 1:
            combinations[combination_name(members, separator, with_dosages=dosage_key is not None)] = members
        names.append(
            combination_name(members, separator, with_dosages=len(members) > 1 and dosage_key is not None) or control
        )
        dosages.append(max(members.values(), default=0.0))
    plain = pd.DataFrame({perturbation_key: pd.Series(names, dtype=object).to_numpy()[code]}, index=obs.index)
    if (code < 0).any():
        plain.loc[code < 0, perturbation_key] = np.nan
    if dosage_key is not None:
        column = pd.Series(dosages, dtype=object).to_numpy()[code]
        plain[dosage_key] = pd.Series(column, index=obs.index).infer_objects()
    return plain, combinations


def combination_name(members: Mapping[str, float], separator: str, *, with_dosages: bool) -> str:
    """What a combination is called: its members in the order of their names, with their dosages if asked."""
    parts = [f"{name}:{members[name]:g}" if with_dosages else name for name in sorted(members)]
    return separator.join(parts)


def in_combinations(combinations: Mapping[str, Members]) -> set[str]:
    """Names of combinations and of all their members."""
    return {*combinations, *(drug for members in combinations.values() for drug in members)}


def joined_labels(labels: Iterable[str], control: str) -> tuple[str, list[str]] | None:
    """Sign and labels that read like several drugs of a screen, most of them first; None where there are none.

    Both parts must be labels of their own, or given beside the control ("a+control"); where the sign is "+", any two names do.
    """
    own = set(labels)
    found: dict[str, list[str]] = {}
    for sign in _USUAL_SEPARATORS:
        parts = {
            name: [part.strip() for part in name.split(sign)] for name in own if sign in name and sign not in control
        }
        known = own | {part for of_one in parts.values() if control in of_one for part in of_one}
        joins = [name for name, of_one in parts.items() if _are_drugs(of_one, known, sign)]
        if joins:
            found[sign] = sorted(joins)
    return max(found.items(), key=lambda one: len(one[1]), default=None)


def _are_drugs(parts: list[str], known: set[str], sign: str) -> bool:
    """Whether parts of a label are names of drugs, and not of one name that holds the sign, as "(+)-JQ1" and "Na+/K+ ATPase" do."""
    if known.issuperset(parts):
        return True
    whole = all(part.count("(") == part.count(")") and (part[:1].isalnum() or part.startswith("(")) for part in parts)
    return sign == _USUAL_SEPARATORS[0] and whole


def check_separator(separator: Any, control: str) -> None:
    """Raise where the text between drugs could not be told from their names."""
    if not isinstance(separator, str) or not separator.strip() or separator.strip().isalnum():
        raise ValueError(f"`combination_separator` must be text that no name holds, such as '+', found {separator!r}.")
    if separator in control:
        raise ValueError(
            f"`combination_separator={separator!r}` is part of the name of the control, {control!r}. Rename the controls, or separate "
            "drugs by another sign."
        )


def check_no_combination(names: Iterable[str], measured: Iterable[str], separator: str | None) -> None:
    """Raise where a name that was not measured reads like several drugs, and say how combinations are asked for.

    Parameters
    ----------
    names
        What was asked for.
    measured
        Measured perturbations.
    separator
        What separates drugs in the screen; None where that is not known. Then "+" does, and another usual sign next to a measured
        perturbation.
    """
    known = set(measured)
    for name in names:
        drugs = [] if name in known else _drugs_in(str(name), known, separator)
        if not drugs:
            continue
        new = [drug for drug in drugs if drug not in known]
        example = "{" + ", ".join(f"{drug!r}: 1.0" for drug in drugs) + "}"
        features = f", with the features of {quote_some(new)} as `drug_embedding`" if new else ""
        raise ValueError(
            f"{name!r} was not measured and reads like a combination of drugs. Predict it by the dosage of each: "
            f"`model.predict_combination({example}{', drug_embedding' if new else ''})`{features}."
        )


def _drugs_in(name: str, known: set[str], separator: str | None) -> list[str]:
    """Drugs that a name joins; none if it does not read like several."""
    for sign in _USUAL_SEPARATORS if separator is None else (separator, *_USUAL_SEPARATORS):
        drugs = [part.strip() for part in name.split(sign)]
        if len(drugs) > 1 and all(drugs) and (sign in (separator, _USUAL_SEPARATORS[0]) or known.intersection(drugs)):
            return drugs
    return []


def _members(
    label: Any, dosage: Any, perturbation_key: str, dosage_key: str | None, control: str, separator: str
) -> Members | None:
    """Dosage of each drug of a label in the order of names; None of a label of one drug, or none."""
    if not isinstance(label, str) or separator not in label:
        return None
    names, where = [part.strip() for part in label.split(separator)], f"adata.obs[{perturbation_key!r}]"
    if not all(names):
        raise ValueError(
            f"`{where}` holds {label!r}, in which a name is empty beside the separator {separator!r}. Rename it, or choose another "
            "`combination_separator`."
        )
    values = [1.0] * len(names) if dosage_key is None else _dosages(label, dosage, len(names), dosage_key, separator)
    given = [(name, value) for name, value in zip(names, values, strict=True) if name != control and value != 0]
    twice = sorted({name for name, _ in given if [n for n, _ in given].count(name) > 1})
    if twice:
        raise ValueError(
            f"`{where}` holds {label!r}, which names {twice[0]!r} twice. Name it once, with its whole dosage."
        )
    return dict(sorted(given))


def _dosages(label: str, dosage: Any, n: int, dosage_key: str, separator: str) -> list[float]:
    """Dosages of the n drugs of a label, in its order."""
    parts = str(dosage).split(separator)
    values = pd.to_numeric(pd.Series([part.strip() for part in parts], dtype=object), errors="coerce").to_numpy(
        dtype=float
    )
    if len(values) != n or not np.isfinite(values).all() or (values < 0).any():
        example = separator.join(["1", "10", *["1"] * (n - 2)][:n])
        raise ValueError(
            f"{label!r} has the dosage {dosage!r} in `adata.obs[{dosage_key!r}]`. Give that of each of its {n} drugs, in their order, as "
            f"text such as {example!r}; none is negative."
        )
    return values.tolist()


def _as_number(dosage: Any) -> Any:
    """A dosage that is text only because others in its column are, as a number; anything else as it is."""
    if isinstance(dosage, str):
        number = pd.to_numeric(dosage, errors="coerce")
        return dosage if pd.isna(number) else float(number)
    return dosage


def inseparable_drugs(combinations: Mapping[str, Members], alone: set[str]) -> list[str]:
    """Drugs that were given together only, each set of them as one name: nothing tells what each of them does.

    Parameters
    ----------
    combinations
        Members of each combination.
    alone
        Drugs that were given alone.
    """
    together: dict[str, set[frozenset[str]]] = {}
    for members in combinations.values():
        for drug in set(members) - alone:
            together.setdefault(drug, set()).add(frozenset(members))
    alike: dict[frozenset[frozenset[str]], list[str]] = {}
    for drug, own in together.items():
        alike.setdefault(frozenset(own), []).append(drug)
    return sorted("+".join(sorted(drugs)) for drugs in alike.values() if len(drugs) > 1)


def warn_of_inseparable(combinations: Mapping[str, Members], alone: set[str]) -> None:
    """Warn of drugs that were given together only; arguments as for :func:`inseparable_drugs`."""
    inseparable = inseparable_drugs(combinations, alone)
    if inseparable:
        warnings.warn(
            f"{quote_some(inseparable)} were only given together, so that what each of them does cannot be told: their combinations are "
            "predicted, but not one without the other. Add cells of one of them alone, or take what is said of each with care.",
            UserWarning,
            stacklevel=4,
        )
