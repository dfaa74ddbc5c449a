"""Saving and loading: folders of data that are written whole or not at all and never run code."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings
from scvi.data import AnnDataManager

from scgim._storage import Saved, read_folder, write_folder
from scgim.model._arguments import NO_MPS
from scgim.model._base import ScreenModel

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

_ADATA = "adata.h5ad"
_REFIT = "Load it with the version of scGIM that saved it, or fit it again."


class SavingMixin(ScreenModel):
    """`save` and `load` of :class:`scgim.model.GIM`."""

    def save(
        self,
        dir_path: str,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        save_kwargs: dict | None = None,
        legacy_mudata_format: bool = False,
        datamodule: LightningDataModule | None = None,
        **anndata_write_kwargs,
    ) -> None:
        """Save the model to a folder, without the state of the optimiser.

        The files hold JSON and arrays, no pickles, and a checksum of each. They are written beside the folder and put in
        place at the end: if that fails, on a full disk for one, what was saved there before is as it was.

        Parameters
        ----------
        dir_path
            Folder to save to; made if it does not exist.
        prefix
            Put before the names of the files, so that a folder can hold several models.
        overwrite
            Write to a folder that exists and replace the model saved there with the same `prefix`. Other files in the
            folder are left alone.
        save_anndata
            Save the training data as well, so that :meth:`load` needs no other.
        save_kwargs, legacy_mudata_format, datamodule
            Arguments of scvi-tools' method that do not apply to this model.
        **anndata_write_kwargs
            Arguments of :func:`anndata.io.write_h5ad`.

        Raises
        ------
        ValueError
            The folder exists, and `overwrite` is not set; or `save_anndata` is set and the model has no data.
        OSError
            The files could not be written; the earlier save, if any, is unchanged.
        TypeError
            An attribute whose name ends in an underscore is neither plain data nor an array.
        """
        _refuse_others(save_kwargs=save_kwargs, legacy_mudata_format=legacy_mudata_format, datamodule=datamodule)
        path = Path(dir_path).expanduser()
        if path.exists() and not overwrite:
            raise ValueError(f"`{dir_path}` already exists. Pass `overwrite=True`, or give another folder.")
        if path.exists() and not path.is_dir():
            raise ValueError(f"`{dir_path}` is a file. Give a folder.")
        writers = {}
        if save_anndata:
            if self.adata is None:
                raise ValueError("`save_anndata=True`, but the model was loaded without data. Leave it out.")
            # the function, not the method: that one makes a file that is written the one that the data are read from
            writers[_ADATA] = lambda file: _write_data(file, self.adata, anndata_write_kwargs)
        content = {
            "attributes": {name: value for name, value in vars(self).items() if _is_saved(name)},
            "state": {name: value.cpu().numpy() for name, value in self.module.state_dict().items()},
        }
        write_folder(path, content, kind="model", prefix=prefix or "", writers=writers)

    @classmethod
    def load(
        cls,
        dir_path: str,
        adata: AnnData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        datamodule: LightningDataModule | None = None,
        allowed_classes_names_list: list[str] | None = None,
    ) -> Self:
        """Load a model that was saved with :meth:`save`. No code in the files is run, whoever wrote them.

        Parameters
        ----------
        dir_path
            Folder that the model was saved to.
        adata
            Cells of the same genes, in the same order, with the same keys as the training data; they need not be set up.
            None for the data that were saved with the model, False for no data: such a model predicts and tells what it
            has learned.
        accelerator, device
            Where to put the model: `"auto"`, `"cpu"`, `"gpu"`; device number.
        prefix
            Put before the names of the files when they were saved.
        backup_url, datamodule
            Arguments of scvi-tools' method that do not apply to this model.
        allowed_classes_names_list
            Names of other classes whose models may be loaded.

        Raises
        ------
        ValueError
            The folder holds no model, or another, or its files are damaged, or the genes are not those of the model.
        """
        _refuse_others(backup_url=backup_url, datamodule=datamodule)
        saved = read_folder(dir_path, kind="model", prefix=prefix or "")
        attributes, state = _unpack(saved, Path(dir_path))
        registry = attributes.pop("registry_")
        if registry["model_name"] not in (cls.__name__, *(allowed_classes_names_list or [])):
            raise ValueError(
                f"`{dir_path}` holds a model of the class {registry['model_name']!r}, not {cls.__name__!r}."
            )
        if adata is None:
            adata = _saved_data(saved)
        if adata is not False:
            if not isinstance(adata, AnnData):
                raise TypeError(f"`adata` must be an AnnData, None or False, found {type(adata).__name__}.")
            cls._check_setup_args(registry["setup_args"], Path(dir_path))
            cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])
        model = cls._restore(adata or None, registry, attributes, state, Path(dir_path))
        model.to_device(_torch_device(accelerator, device))
        model.module.eval()
        return model

    @classmethod
    def _check_setup_args(cls, setup_args: dict, path: Path) -> None:
        """Raise where the data were set up with arguments that this version does not have."""
        known = set(inspect.signature(cls.setup_anndata).parameters) - {"adata", "kwargs"}
        unknown = sorted(set(setup_args) - known)
        if unknown:
            raise ValueError(f"The model in `{path}` was set up with {unknown}, unknown to this version. {_REFIT}")

    @classmethod
    def _restore(cls, adata: AnnData | None, registry: dict, attributes: dict, state: dict, path: Path) -> Self:
        """Model with the given attributes and parameters."""
        try:
            options = attributes["init_params_"]["non_kwargs"]
            model = cls(adata, registry=None if adata is not None else registry, **options)  # type: ignore[call-arg]
            for name, value in attributes.items():
                setattr(model, name, value)
            model.module.load_state_dict(state)
        except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
            reason = " ".join(str(error).split()).rstrip(" .")
            raise ValueError(f"The model in `{path}` does not fit this version of scGIM: {reason}. {_REFIT}") from error
        return model

    @staticmethod
    def load_registry(dir_path: str, prefix: str | None = None) -> dict:
        """Registry of a saved model: how its data were set up.

        Parameters
        ----------
        dir_path
            Folder that the model was saved to.
        prefix
            Put before the names of the files when they were saved.
        """
        return _unpack(read_folder(dir_path, kind="model", prefix=prefix or ""), Path(dir_path))[0]["registry_"]

    @staticmethod
    def view_setup_args(dir_path: str, prefix: str | None = None) -> None:
        """Show the arguments that the data of a saved model were set up with.

        Parameters
        ----------
        dir_path
            Folder that the model was saved to.
        prefix
            Put before the names of the files when they were saved.
        """
        AnnDataManager.view_setup_method_args(SavingMixin.load_registry(dir_path, prefix))

    @classmethod
    def convert_legacy_save(cls, *args, **kwargs) -> None:
        """Not available: there are no models of scGIM in the format of scvi-tools before 0.15."""
        raise ValueError(f"{cls.__name__} has no saves in the legacy format of scvi-tools, and does not open pickles.")


def _write_data(file: Path, adata: AnnData, options: dict) -> None:
    """Write data whose tables in `uns` may have numbers for names of columns, as fingerprints have; files take text only."""
    tables = {key: table for key, table in adata.uns.items() if isinstance(table, pd.DataFrame)}
    try:
        adata.uns.update({key: table.rename(columns=str).rename(index=str) for key, table in tables.items()})
        anndata.io.write_h5ad(file, adata, **options)
    finally:
        adata.uns.update(tables)


def _is_saved(name: str) -> bool:
    """Attributes that belong to the model: those whose names end in an underscore."""
    return name.endswith("_") and not name.startswith("_")


def _refuse_others(**arguments: Any) -> None:
    """Raise for arguments of scvi-tools that have no meaning here."""
    given = [name for name, value in arguments.items() if value]
    if given:
        raise ValueError(f"{given} of scvi-tools do not apply to models of scGIM. Leave them out.")


def _unpack(saved: Saved, path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Attributes and parameters of a saved model."""
    try:
        attributes = {name: value for name, value in saved.content["attributes"].items() if _is_saved(name)}
        state = {name: torch.from_numpy(np.array(value)) for name, value in saved.content["state"].items()}
        _ = attributes["registry_"]["model_name"], attributes["registry_"]["setup_args"].items()
        _ = attributes["registry_"]["field_registries"].items()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"`{path}` holds no model of this version of scGIM ({error!r}). {_REFIT}") from error
    return attributes, state


def _saved_data(saved: Saved) -> AnnData | Literal[False]:
    if _ADATA in saved.files:
        return anndata.read_h5ad(saved.files[_ADATA])
    warnings.warn(
        "No data were saved with the model, so it is loaded without. Pass `adata`, or `adata=False` if that is meant.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
    return False


def _torch_device(accelerator: str, device: int | str) -> torch.device:
    """Device by the names that Lightning uses."""
    if accelerator == "mps":
        raise ValueError(NO_MPS)
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"`accelerator` must be 'auto', 'cpu' or 'gpu', found {accelerator!r}.")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if not on_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"`accelerator={accelerator!r}`, but PyTorch finds no GPU. Pass `accelerator='cpu'`.")
    return torch.device("cuda", 0 if device == "auto" else int(device))
