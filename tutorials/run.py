"""Run tutorials again, in place: all of them, or those named. Those on real data are left as they are where the data are not at hand.

Stored outputs get no times of execution, and paths in warnings begin at the package: what is committed tells nothing of the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).parent
REAL = "real_"  # how the names of tutorials on real data begin
SECONDS_A_CELL = 3600


def run(path: Path) -> None:
    """Execute one notebook and write it back."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(HERE)}}
    NotebookClient(notebook, timeout=SECONDS_A_CELL, record_timing=False, resources=resources).execute()
    strip(notebook)
    nbformat.write(notebook, path)


def strip(notebook: NotebookNode) -> None:
    """Leave out of outputs what is of this machine."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"/\S*?/(site-packages|src(?=/scgim))/", "", output.text)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb; all by default")
    parser.add_argument("--data", default=os.environ.get("SCGIM_DATA"), help="folder with real screens (SCGIM_DATA)")
    arguments = parser.parse_args()
    found = {path.stem: path for path in sorted(HERE.glob("*.ipynb"))}
    unknown = set(arguments.names) - set(found)
    if unknown:
        parser.error(f"no tutorials {sorted(unknown)}; there are {', '.join(found)}")
    has_data = arguments.data is not None and Path(arguments.data).is_dir()
    if has_data:
        os.environ["SCGIM_DATA"] = str(Path(arguments.data).resolve())
    for name in arguments.names or found:
        if name.startswith(REAL) and not has_data:
            print(
                f"{name}: left as it is, for want of a folder with real screens (--data, SCGIM_DATA)", file=sys.stderr
            )
            continue
        print(name, file=sys.stderr)
        run(found[name])


if __name__ == "__main__":
    main()
