"""Plain data survive as they are; anything else is refused, and nothing that is read runs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scgim._storage import decode, encode


def round_trip(value):
    tree, arrays = encode(value)
    return decode(json.loads(json.dumps(tree)), arrays)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**70),
        "gène\u2028\ud800",
        0.1 + 0.2,
        5e-324,
        float("inf"),
        [1, [2.5, None], "x"],
        (1, (), {"a": (2,)}),
        {"a": 1, "b": {}},
        {3: "x", None: [1], ("d", 0.5): 2},
        {"__type__": "dict", "items": []},
    ],
    ids=repr,
)
def test_plain_values(value):
    found = round_trip(value)
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize("value", [np.float32(0.1), np.int16(-3), np.bool_(True), np.float64("nan")], ids=repr)
def test_scalars_keep_their_type(value):
    found = round_trip(value)
    assert type(found) is type(value)
    np.testing.assert_equal(found, value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int8).reshape(2, 3),
        np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
        np.array([np.nan, -0.0, np.inf], dtype=np.float32),
        np.zeros((0, 3)),
        np.array(2.5),
        np.array(["a", "bcd"]),
        np.array(["2020-01-01"], dtype="datetime64[s]"),
        np.array([["a", None], [1.5, ("t", 2)]], dtype=object),
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}",
)
def test_arrays_keep_bits_shape_and_dtype(array):
    found = round_trip(array)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    if array.dtype != object:
        assert found.tobytes() == array.tobytes()


FRAMES = [
    pd.DataFrame({"x": [1, 2], "y": ["a", "b"], "z": pd.Categorical(["u", "v"], ["v", "u"], ordered=True)}, ["r", "s"]),
    pd.DataFrame(np.ones((2, 3), np.float32), columns=["a", "a", "b"]),
    pd.DataFrame({"elbo": [1.5, np.float64(2.5), None]}, dtype=object).rename_axis("epoch"),
    pd.DataFrame({"i": pd.array([1, None], dtype="Int64"), "s": pd.array(["a", None], dtype="string")}),
    pd.DataFrame(index=["a", "b"]),
    pd.DataFrame(),
]


@pytest.mark.parametrize("frame", FRAMES, ids=range(len(FRAMES)))
def test_frames(frame):
    pd.testing.assert_frame_equal(round_trip(frame), frame, check_index_type=True, check_column_type=True)


@pytest.mark.parametrize(
    "index",
    [
        pd.Index(["b", "a"], name="gene"),
        pd.RangeIndex(1, 9, 3),
        pd.MultiIndex.from_tuples([("a", 0.5), ("b", 1.0)], names=["perturbation", None]),
        pd.CategoricalIndex(["u", "v"]),
        pd.DatetimeIndex(["2020-01-01", "2020-01-02"]),
    ],
    ids=lambda i: type(i).__name__,
)
def test_series_and_indices(index):
    pd.testing.assert_index_equal(round_trip(index), index, exact=True)
    series = pd.Series(np.arange(len(index)), index, name="n")
    pd.testing.assert_series_equal(round_trip(series), series, check_freq=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2, 3}]}, r"`thing\['a'\]\[1\]` is of type builtins\.set"),
        (len, r"`thing` is of type builtins\.builtin_function_or_method"),
        ([object()], r"`thing\[0\]` is of type builtins\.object"),
        ({"m": np.ma.array([1])}, r"`thing\['m'\]` is a MaskedArray"),
        (np.array([(1, 2.0)], dtype="i4,f4"), "dtype"),
        (np.longdouble(1), "dtype"),
        (pd.Series([pd.Timestamp("2020", tz="UTC")]), "dtype datetime64"),
        ({pd.Timestamp("2020"): 1}, "key Timestamp"),
    ],
)
def test_anything_else_is_refused_by_name(value, message):
    with pytest.raises(TypeError, match=message):
        encode(value, "thing")


@pytest.mark.parametrize(
    "tree",
    [
        {"__type__": "module", "name": "os"},
        {"__type__": "array", "name": "a7"},
        {"__type__": "extension", "dtype": "category", "items": []},
        {"__type__": "scalar", "dtype": "object", "value": "x"},
        {"__type__": "frame", "index": 3, "columns": 4, "parts": []},
        {"__type__": "objects", "shape": [7], "items": [1]},
        {"__type__": "float", "value": "__import__('os')"},
        {"__type__": ["list"]},
        {"__type__": "dict", "items": [[[], 1]]},
    ],
    ids=lambda tree: str(tree["__type__"]),
)
def test_trees_of_others_are_value_errors(tree):
    with pytest.raises(ValueError, match="not written by scGIM"):
        decode({"x": [tree]}, {})
