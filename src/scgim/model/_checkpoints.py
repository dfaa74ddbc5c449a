"""What of the model a checkpoint holds, and how the model is put back."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgim._constants import REGISTRY
from scgim.fit._course import Course
from scgim.train._checkpoint import CheckpointFolder, to_tensors

if TYPE_CHECKING:
    import os

    from lightning.pytorch import Trainer

_ROUNDING = 1e-6  # of a sum in single precision, whose order may differ


def attributes_of(model: Any, trainer: Trainer) -> dict:
    """What a checkpoint needs of the model beside the module."""
    attributes = {name: value for name, value in vars(model).items() if name.endswith("_") and name != "registry_"}
    attributes["history_"] = _history_so_far(model, trainer)
    return {"attributes": attributes, "contexts": model.contexts, "cells": _digest(model)}


def _digest(model: Any) -> int:
    """A number that tells names and contexts of the cells in their order: a run holds positions of cells."""
    context = model.get_anndata_manager(model.adata, required=True).get_from_registry(REGISTRY.CONTEXT)
    names = "\n".join(model.adata.obs_names.astype(str))
    return zlib.crc32(np.asarray(context, dtype="<i8").tobytes(), zlib.crc32(names.encode()))


def _history_so_far(model: Any, trainer: Trainer) -> dict[str, pd.DataFrame]:
    """History of earlier fits and of the one that is running."""
    earlier = (model.history_ or {}) if model.is_trained_ else {}
    running = getattr(trainer.logger, "history", None) or {}
    parts = {name: [h[name] for h in (earlier, running) if name in h] for name in (earlier or running)}
    return {name: pd.concat(part, ignore_index=True).rename_axis(part[0].index.name) for name, part in parts.items()}


def resume(model: Any, folder: str | os.PathLike) -> Course:
    """Put a model where its training run was at the latest checkpoint.

    Raises
    ------
    ValueError
        There is no checkpoint, or it is of another model or other data.
    """
    store = CheckpointFolder(folder)
    content = store.read()
    try:
        attributes = content["attributes"]
        differing = _differences(model, content)
        if differing:
            raise ValueError(
                f"The checkpoint in `{store.path}` was made with other {' and '.join(differing)}. Set up the same data and "
                "make the model with the same arguments, or train without `resume_from`."
            )
        course = Course(**content["course"], resumed=content)
        for name, value in attributes.items():
            setattr(model, name, value)
        model.is_trained_ = bool(model.history_)  # what is logged from here on is appended
        model.module.load_state_dict(to_tensors(content["module"]))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"The checkpoint in `{store.path}` does not fit this version of scGIM: {error!r}.") from error
    return course


def _differences(model: Any, content: dict) -> list[str]:
    """In what the model at hand differs from the one of a checkpoint."""
    attributes = content["attributes"]
    n_cells = sum(len(part) for part in content["course"]["indices"])
    same_counts = math.isclose(attributes["mean_total_"], model.mean_total_, rel_tol=_ROUNDING)
    same = {
        "model options": attributes["init_params_"] == model.init_params_,
        "genes": attributes["gene_names_"] == model.gene_names_,
        "perturbations or dosages": content["contexts"].equals(model.contexts),
        "cells": n_cells == model.adata.n_obs and same_counts,
    }
    differing = [name for name, is_same in same.items() if not is_same]
    # checkpoints of earlier versions do not tell the order
    if not differing and content.get("cells") not in (None, _digest(model)):
        return ["cells, or cells in another order or of other names"]
    return differing
