"""Run the code of `plots.md` and draw its pictures: run after any change of a plot."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import scanpy as sc
import scvi
from PIL import Image

PAGE = Path(__file__).with_name("plots.md")
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n!\[[^\]]*\]\(([^)]+)\))?", flags=re.DOTALL)
DPI = 110


def draw(folder: Path) -> list[Path]:
    """Run all blocks in order, and save the figure of each that is followed by a picture; returns the pictures."""
    scvi.settings.seed = 0
    sc.settings.autoshow = False
    names: dict[str, Any] = {}
    pictures = []
    for code, picture in BLOCK.findall(PAGE.read_text()):
        exec(code, names)
        if picture:
            pictures.append(folder / Path(picture).name)
            plt.savefig(pictures[-1], dpi=DPI, bbox_inches="tight", pad_inches=0.05)
            # few colours are enough, and make the file a third of its size
            Image.open(pictures[-1]).convert("RGB").quantize(128).save(pictures[-1], optimize=True)
            plt.close("all")
    return pictures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PAGE.parent / "_static" / "plots")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder)
