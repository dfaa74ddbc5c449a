"""Plain values as JSON with arrays beside it, and back.

What may be written is listed here; anything else is refused, so that reading needs no pickle and runs no code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

_TYPE = "__type__"
_ARRAY_KINDS = "biufcmMSU"
_EXTENSION_DTYPES = (
    "string",
    "str",
    "boolean",
    *(f"{s}Int{n}" for s in ("", "U") for n in (8, 16, 32, 64)),
    "Float32",
    "Float64",
)

Arrays = dict[str, NDArray]


def encode(value: Any, where: str = "value") -> tuple[Any, Arrays]:
    """Tree for JSON and the arrays that it refers to.

    Parameters
    ----------
    value
        None, booleans, numbers, text, lists, tuples, dictionaries, NumPy arrays and scalars, pandas data frames, series,
        indices and categoricals, nested in any way.
    where
        Name of the value in messages.

    Raises
    ------
    TypeError
        The value holds anything else; the message says where.
    """
    arrays: Arrays = {}
    return _encode(value, where, arrays), arrays


def _encode(value: Any, where: str, arrays: Arrays) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else _tagged("float", value=repr(value))
    for kinds, write in _WRITERS:
        if isinstance(value, kinds):
            return write(value, where, arrays)
    if value is pd.NA:
        return _tagged("missing")
    raise TypeError(
        f"`{where}` is of type {type(value).__module__}.{type(value).__qualname__}, which cannot be saved: files hold "
        "numbers, text, lists, dictionaries, arrays and data frames only. Convert it or remove it."
    )


def _tagged(tag: str, **fields: Any) -> dict:
    return {_TYPE: tag, **fields}


def _encode_scalar(value: np.generic, where: str, arrays: Arrays) -> Any:
    if isinstance(value, np.str_):
        return str(value)
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise TypeError(f"`{where}` is a number of dtype {value.dtype}, which cannot be saved.")
    return _tagged("scalar", dtype=value.dtype.name, value=_encode(value.item(), where, arrays))


def _encode_dict(value: dict, where: str, arrays: Arrays) -> dict:
    if all(type(key) is str for key in value) and _TYPE not in value:
        return {key: _encode(item, f"{where}[{key!r}]", arrays) for key, item in value.items()}
    pairs = [
        [_encode(key, f"key {key!r} of {where}", arrays), _encode(item, f"{where}[{key!r}]", arrays)]
        for key, item in value.items()
    ]
    return _tagged("dict", items=pairs)


def _encode_list(value: list, where: str, arrays: Arrays) -> list:
    return [_encode(item, f"{where}[{i}]", arrays) for i, item in enumerate(value)]


def _encode_tuple(value: tuple, where: str, arrays: Arrays) -> dict:
    return _tagged("tuple", items=_encode_list(list(value), where, arrays))


def _encode_array(value: NDArray, where: str, arrays: Arrays) -> dict:
    if value.dtype.kind == "O":
        return _tagged("objects", shape=list(value.shape), items=_encode_list(value.ravel().tolist(), where, arrays))
    if value.dtype.kind not in _ARRAY_KINDS or type(value) is not np.ndarray:
        raise TypeError(f"`{where}` is a {type(value).__name__} of dtype {value.dtype}, which cannot be saved.")
    name = f"a{len(arrays)}"
    arrays[name] = value
    return _tagged("array", name=name)


def _encode_extension(value: Any, where: str, arrays: Arrays) -> dict:
    """Array of pandas that is not one of NumPy."""
    if isinstance(value, pd.Categorical):
        categories = _encode(value.categories, f"{where}.categories", arrays)
        codes = _encode(np.asarray(value.codes), where, arrays)
        return _tagged("categorical", codes=codes, categories=categories, ordered=bool(value.ordered))
    name = str(value.dtype)
    if name not in _EXTENSION_DTYPES:
        raise TypeError(f"`{where}` has dtype {name}, which cannot be saved. Convert it to one of NumPy.")
    items = [None if missing else item for item, missing in zip(value.tolist(), value.isna(), strict=True)]
    return _tagged("extension", dtype=name, items=_encode_list(items, where, arrays))


def _encode_values(value: pd.Series | pd.Index, where: str, arrays: Arrays) -> dict:
    return _encode(value.to_numpy() if isinstance(value.dtype, np.dtype) else value.array, where, arrays)


def _encode_index(value: pd.Index, where: str, arrays: Arrays) -> dict:
    names = _encode(list(value.names), f"{where}.names", arrays)
    if isinstance(value, pd.MultiIndex):
        levels = [_encode(level, f"{where}.levels", arrays) for level in value.levels]
        codes = [_encode(np.asarray(code), where, arrays) for code in value.codes]
        return _tagged("multi_index", levels=levels, codes=codes, names=names)
    if isinstance(value, pd.RangeIndex):
        return _tagged("range_index", range=[value.start, value.stop, value.step], names=names)
    return _tagged("index", values=_encode_values(value, where, arrays), names=names)


def _encode_series(value: pd.Series, where: str, arrays: Arrays) -> dict:
    fields = {"index": value.index, "name": value.name}
    encoded = {name: _encode(field, f"{where}.{name}", arrays) for name, field in fields.items()}
    return _tagged("series", values=_encode_values(value, where, arrays), **encoded)


def _encode_frame(value: pd.DataFrame, where: str, arrays: Arrays) -> dict:
    fields = {name: _encode(getattr(value, name), f"{where}.{name}", arrays) for name in ("index", "columns")}
    dtypes = list(value.dtypes)
    if dtypes and isinstance(dtypes[0], np.dtype) and all(dtype == dtypes[0] for dtype in dtypes):
        return _tagged("frame", block=_encode(value.to_numpy(), where, arrays), **fields)
    parts = [_encode_values(value.iloc[:, i], f"{where}.iloc[:, {i}]", arrays) for i in range(value.shape[1])]
    return _tagged("frame", parts=parts, **fields)


_WRITERS: tuple[tuple[Any, Callable], ...] = (
    (np.generic, _encode_scalar),
    (dict, _encode_dict),
    (list, _encode_list),
    (tuple, _encode_tuple),
    (np.ndarray, _encode_array),
    (pd.DataFrame, _encode_frame),
    (pd.Series, _encode_series),
    (pd.Index, _encode_index),
    (pd.api.extensions.ExtensionArray, _encode_extension),
)


def decode(tree: Any, arrays: Arrays) -> Any:
    """Value that :func:`encode` wrote.

    Raises
    ------
    ValueError
        The tree was not written by :func:`encode`.
    """
    try:
        return _decode(tree, arrays)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it was not written by scGIM ({type(error).__name__}: {error})") from error


def _decode(tree: Any, arrays: Arrays) -> Any:
    if isinstance(tree, list):
        return [_decode(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _TYPE not in tree:
        return {key: _decode(item, arrays) for key, item in tree.items()}
    return _READERS[tree[_TYPE]](tree, lambda name: _decode(tree[name], arrays), arrays)


def _decode_objects(tree: dict, get: Callable, arrays: Arrays) -> NDArray:
    items = get("items")
    out = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        out[i] = item
    return out.reshape(tree["shape"])


def _decode_extension(tree: dict, get: Callable, arrays: Arrays) -> Any:
    if tree["dtype"] not in _EXTENSION_DTYPES:
        raise ValueError(f"unknown dtype {tree['dtype']!r}")
    return pd.array(get("items"), dtype=tree["dtype"])


def _decode_index(tree: dict, get: Callable, arrays: Arrays) -> pd.Index:
    values = get("values")
    dtype = object if isinstance(values, np.ndarray) and values.dtype.kind in "OU" else None
    return pd.Index(values, dtype=dtype, name=get("names")[0])


def _decode_series(tree: dict, get: Callable, arrays: Arrays) -> pd.Series:
    values = get("values")
    dtype = object if isinstance(values, np.ndarray) and values.dtype == object else None
    return pd.Series(values, index=get("index"), name=get("name"), dtype=dtype)


def _decode_frame(tree: dict, get: Callable, arrays: Arrays) -> pd.DataFrame:
    index, columns = get("index"), get("columns")
    if "block" in tree:
        block = get("block")
        return pd.DataFrame(block, index=index, columns=columns, dtype=block.dtype)
    parts = [pd.Series(part, index=index, dtype=getattr(part, "dtype", None)) for part in get("parts")]
    frame = pd.concat(parts, axis=1) if parts else pd.DataFrame(index=index)
    return frame.set_axis(columns, axis=1)


def _number(text: str) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"unknown number {text!r}")
    return float(text)


def _number_dtype(name: str) -> np.dtype:
    if np.dtype(name).kind not in "biuf":
        raise ValueError(f"unknown dtype {name!r}")
    return np.dtype(name)


_READERS: dict[str, Callable] = {
    "float": lambda tree, get, arrays: _number(tree["value"]),
    "missing": lambda tree, get, arrays: pd.NA,
    "scalar": lambda tree, get, arrays: np.array(get("value"), dtype=_number_dtype(tree["dtype"]))[()],
    "array": lambda tree, get, arrays: arrays[tree["name"]],
    "dict": lambda tree, get, arrays: dict(get("items")),
    "tuple": lambda tree, get, arrays: tuple(get("items")),
    "objects": _decode_objects,
    "categorical": lambda tree, get, arrays: pd.Categorical.from_codes(
        get("codes"), categories=get("categories"), ordered=tree["ordered"]
    ),
    "extension": _decode_extension,
    "index": _decode_index,
    "range_index": lambda tree, get, arrays: pd.RangeIndex(*tree["range"], name=get("names")[0]),
    "multi_index": lambda tree, get, arrays: pd.MultiIndex(
        levels=get("levels"), codes=get("codes"), names=get("names")
    ),
    "series": _decode_series,
    "frame": _decode_frame,
}
