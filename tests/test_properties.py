"""Screens of any shape, dtype, sparsity, keys, categories and doses can be set up, trained on, predicted, saved and loaded.

A few screens are tried by default, always the same; `SCGIM_EXAMPLES=1000` tries that many, drawn anew. The number of
screens tried is printed at the end (`-s`).
"""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from scgim._storage import decode, encode
from scgim.model import GIM

if TYPE_CHECKING:
    from anndata import AnnData

N_EXAMPLES = int(os.environ.get("SCGIM_EXAMPLES", "0"))
# advice of scvi-tools that hypothesis takes for failures
pytestmark = [
    pytest.mark.filterwarnings("ignore:Category .* fewer than 3 cells:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*likelihood='n:UserWarning"
    ),  # whole numbers, or size factors, with continuous values
    pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix is formatted as CSR:UserWarning"),
]
TRIED = {"setup": 0, "life": 0, "values": 0}


def profile(n_default: int):
    """The same few examples in the test suite, many new ones where they are asked for."""
    return settings(
        max_examples=N_EXAMPLES or n_default,
        derandomize=not N_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    print(", ".join(f"{what}: {n} inputs tried" for what, n in TRIED.items()))  # noqa: T201


@dataclass
class Screen:
    """A screen and how it is set up, trained on and asked."""

    adata: AnnData
    setup: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    obs_keys: list[str] = field(default_factory=list)


def names(n: int, letters: str = "abé Δ-_.0#/") -> st.SearchStrategy[list[str]]:
    """Different names, odd ones too."""
    name = st.text(letters, min_size=1, max_size=6).filter(lambda s: s.strip() == s and s)
    return st.lists(name, min_size=n, max_size=n, unique=True)


MATRICES = {
    "dense": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
}
DTYPES = (np.float32, np.float64, np.int32, np.int64, np.uint8, np.uint16)


def counts_of(draw, n_cells: int, n_genes: int) -> np.ndarray:
    """Counts from nearly none to many, with constant genes now and then; no cell and no gene is empty."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    mean = 10.0 ** draw(st.floats(-2, 2))
    x = random.poisson(mean * random.gamma(1.0, 1.0, (n_cells, n_genes)))
    if draw(st.booleans()):
        x[:, draw(st.integers(0, n_genes - 1))] = draw(st.integers(1, 9))
    x[np.arange(n_cells), np.arange(n_cells) % n_genes] += 1
    x[np.arange(n_genes) % n_cells, np.arange(n_genes)] += 1
    return np.minimum(x, 250)


@st.composite
def screens(draw) -> Screen:
    n_genes, n_drugs = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    *drugs, control = draw(names(n_drugs + 1))
    key = draw(names(7, "abcdé_ "))
    doses = draw(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=3, unique=True))
    has_dosage = draw(st.booleans())
    contexts = [(control, 0.0), *((drug, dose) for drug in drugs for dose in (doses if has_dosage else doses[:1]))]
    sizes = [draw(st.integers(4, 20)), *(draw(st.integers(2, 6)) for _ in contexts[1:])]
    design = pd.DataFrame(contexts, columns=["p", "d"]).loc[np.repeat(np.arange(len(contexts)), sizes)]
    n_cells = len(design)
    order = np.random.default_rng(n_cells).permutation(n_cells)
    design = design.iloc[order].set_axis([f"cell_{i}" for i in range(n_cells)])

    values = MATRICES[draw(st.sampled_from(sorted(MATRICES)))](
        counts_of(draw, n_cells, n_genes).astype(draw(st.sampled_from(DTYPES)))
    )
    perturbation = design["p"].astype(draw(st.sampled_from(["category", object])))
    obs = pd.DataFrame({key[0]: perturbation}, index=design.index)
    if has_dosage:
        obs[key[1]] = design["d"].astype(draw(st.sampled_from([np.float64, np.float32])))
    genes = draw(names(n_genes))
    adata = anndata.AnnData(values, obs=obs, var=pd.DataFrame(index=genes))
    setup: dict[str, Any] = {
        "perturbation_key": key[0],
        "control": control,
        "dosage_key": key[1] if has_dosage else None,
        "drug_embedding_key": None,
    }
    if draw(st.booleans()):
        adata.layers[key[2]], adata.X = adata.X, None
        setup["layer"] = key[2]
    add_features(draw, adata, setup, key[3], drugs, design["p"])
    obs_keys = add_covariates(draw, adata, setup, key[4:])
    options = {
        "mechanism": draw(st.sampled_from(["linear", "linear", "mlp"])),
        "likelihood": draw(st.sampled_from(["nb", "nb", "poisson", "normal"])),
        "intervention": draw(st.sampled_from(["shift", "shift", "hard"])),
    }
    train = {
        "max_epochs": draw(st.integers(1, 2)),
        "batch_size": draw(st.sampled_from([1024, 17, 5])),
        "train_size": draw(st.sampled_from([1.0, 0.9])),
        "early_stopping": draw(st.booleans()),
    }
    return Screen(adata, setup, options, train, obs_keys)


def add_features(draw, adata: AnnData, setup: dict, key: str, drugs: list[str], perturbation: pd.Series) -> None:
    """Features of the drugs, one row a drug or one row a cell, or none."""
    where = draw(st.sampled_from(["none", "uns", "obsm", "obsm frame"]))
    if where == "none":
        return
    random, p = np.random.default_rng(0), draw(st.integers(1, 4))
    scale = 10.0 ** draw(st.integers(-3, 3))
    table = pd.DataFrame(scale * random.normal(size=(len(drugs), p)), drugs, [f"f{i}" for i in range(p)])
    if draw(st.booleans()):
        table = table.astype(np.float32)
    setup["drug_embedding_key"] = key
    if where == "uns":
        adata.uns[key] = table.sample(frac=1, random_state=0)
        return
    by_cell = table.reindex(perturbation.astype(str)).fillna(0.0).set_axis(adata.obs_names)
    adata.obsm[key] = by_cell if where == "obsm frame" else by_cell.to_numpy()


def add_covariates(draw, adata: AnnData, setup: dict, keys: list[str]) -> list[str]:
    """Covariates and size factors of the cells; returns the columns added."""
    random, n = np.random.default_rng(1), adata.n_obs
    used = []
    if draw(st.booleans()):
        levels = draw(st.sampled_from([["a"], ["a", "b"], [1, 2, 3]]))
        adata.obs[keys[0]] = pd.Categorical(random.choice(levels, n))
        setup.update({"batch_key": keys[0]} if draw(st.booleans()) else {"categorical_covariate_keys": [keys[0]]})
        used.append(keys[0])
    if draw(st.booleans()):
        adata.obs[keys[1]] = 10.0 ** draw(st.integers(-4, 4)) * random.normal(size=n)
        setup["continuous_covariate_keys"] = [keys[1]]
        used.append(keys[1])
    if draw(st.booleans()):
        adata.obs[keys[2]] = random.gamma(5.0, 0.2, n)
        setup["size_factor_key"] = keys[2]
        used.append(keys[2])
    return used


def values_of(adata: AnnData, setup: dict) -> np.ndarray:
    values = adata.layers[setup["layer"]] if "layer" in setup else adata.X
    return values.toarray() if sparse.issparse(values) else np.array(values)


@given(screen=screens())
@profile(25)
def test_setup_finds_the_design_and_leaves_the_data_alone(screen):
    TRIED["setup"] += 1
    adata, setup = screen.adata, screen.setup
    before, obs = values_of(adata, setup), adata.obs.copy()
    GIM.setup_anndata(adata, **setup)
    np.testing.assert_array_equal(values_of(adata, setup), before)
    pd.testing.assert_frame_equal(adata.obs[obs.columns], obs)
    model = GIM(adata, **screen.options)
    treated = obs.loc[obs[setup["perturbation_key"]] != setup["control"]]
    columns = [setup["perturbation_key"], *([setup["dosage_key"]] if setup["dosage_key"] else [])]
    assert len(model.contexts) == len(treated[columns].astype(str).drop_duplicates())
    assert set(model.perturbations) == set(treated[setup["perturbation_key"]].astype(str))
    assert model.gene_names_ == adata.var_names.tolist()
    tree, arrays = encode(dict(model.registry))
    again = GIM(None, registry=decode(tree, arrays), **screen.options)
    assert again.contexts.equals(model.contexts)
    assert {n: v.shape for n, v in again.module.state_dict().items()} == {
        n: v.shape for n, v in model.module.state_dict().items()
    }


def outputs(model: GIM, asked: list) -> dict[str, np.ndarray]:
    """What the model tells, as arrays."""
    found = {
        "adjacency": model.get_adjacency(),
        "targets": model.get_targets(),
        "effects": model.get_effects(),
        "total_effects": model.get_total_effects(n_samples=4),
    }
    for i, (drugs, dosage) in enumerate(asked):
        cells = model.predict(drugs, dosage, n_samples=3, seed=i)
        found[f"values {i}"] = cells.X.toarray() if sparse.issparse(cells.X) else cells.X
        found[f"expected {i}"] = cells.layers["expected"]
        found[f"dosage {i}"] = cells.obs["dosage"]
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.filterwarnings("ignore:Predicted means leave the range")  # of one cell, fitted in one epoch
@given(screen=screens())
@profile(12)
def test_life_of_a_model(screen):
    TRIED["life"] += 1
    adata = screen.adata
    GIM.setup_anndata(adata, **screen.setup)
    scvi.settings.seed = 0
    model = GIM(adata, **screen.options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*size factor", category=UserWarning)
        model.train(accelerator="cpu", enable_progress_bar=False, **screen.train)

    has_doses = screen.setup["dosage_key"] is not None
    asked: list = [(model.perturbations, None), (model.perturbations[:1], 3.5 if has_doses else 1.0)]
    if model.drug_embedding is not None:
        new = model.drug_embedding.rename(index=lambda name: f"new {name}") * 1.1
        asked.append((new, np.linspace(0.1, 10.0, len(new)) if has_doses else None))
    told = outputs(model, asked)
    for name, values in told.items():
        assert np.isfinite(values).all(), name
    assert ((told["targets"] >= 0) & (told["targets"] <= 1)).all()
    assert ((told["adjacency"] >= 0) & (told["adjacency"] <= 1)).all()
    if screen.options["likelihood"] != "normal":
        assert (told["values 0"] >= 0).all()
        np.testing.assert_array_equal(told["values 0"], np.round(told["values 0"]))
    score = model.score()
    assert np.isfinite(score["log_likelihood"]).all()
    assert score["n_cells"].sum() == adata.n_obs

    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        without = GIM.load(f"{folder}/model", adata=False, accelerator="cpu")
        within = GIM.load(f"{folder}/model", adata=adata.copy(), accelerator="cpu")
    for loaded in (without, within):
        for name, values in outputs(loaded, asked).items():
            np.testing.assert_array_equal(values, told[name], err_msg=name)
    pd.testing.assert_frame_equal(within.score(), score)


def scalars():
    numbers = st.floats() | st.integers(-(2**70), 2**70)
    numpy_scalars = st.sampled_from([np.float32(0.1), np.int8(-1), np.bool_(True), np.float64("nan")])
    return st.none() | st.booleans() | numbers | st.text() | numpy_scalars


def arrays_and_frames():
    array = st.builds(
        lambda shape, dtype, order: np.asarray(np.random.default_rng(0).integers(0, 99, shape), dtype, order),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.sampled_from(["f4", ">f8", "i2", "u8", "?", "c8", "U3", "O"]),
        st.sampled_from(["C", "F"]),
    )
    column = st.sampled_from(
        [np.arange(3.0), ["a", "b", None], pd.Categorical(["u", "v", "u"]), pd.array([1, None, 2])]
    )
    frame = st.lists(column, max_size=3).map(lambda cs: pd.DataFrame({f"c{i}": c for i, c in enumerate(cs)}))
    return array | frame | st.lists(st.text(), unique=True).map(lambda names: pd.Index(names, dtype=object))


def nested(children):
    keys = st.text() | st.integers() | st.tuples(st.text(), st.floats(allow_nan=False))
    return (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(keys, children, max_size=3)
    )


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    elif isinstance(expected, pd.Index):
        pd.testing.assert_index_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(found, expected)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
        assert np.shape(found) == np.shape(expected)


@given(value=st.recursive(scalars() | arrays_and_frames(), nested, max_leaves=8))
@profile(60)
def test_plain_data_are_written_and_read_as_they_are(value):
    TRIED["values"] += 1
    assert_same(decode(*encode(value)), value)
