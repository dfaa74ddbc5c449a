"""Draw the figure of the README, from the screen of the demo: run after any change of a plot."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import scvi
from PIL import Image, ImageDraw, ImageFont

import scgim

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

TARGET = Path(__file__).parents[1] / "docs" / "_static" / "overview.png"
# Pages show it 800 pixels wide, at half its size: rows are at most 10.4 inches, so that 9 points are 10 pixels there
WIDTH = 1600
DPI = 150
GAP = 28


def fit(seed: int) -> tuple[AnnData, AnnData]:
    """Annotated screen, and predictions of the drugs that were never measured."""
    scvi.settings.seed = seed
    adata = scgim.datasets.load_demo(seed=seed)
    train = adata[adata.obs["split"] == "train"].copy()
    scgim.model.GIM.setup_anndata(train, size_factor_key="size_factor")
    model = scgim.model.GIM(train)
    model.train()
    model.annotate(adata)
    unseen = adata.obs.loc[adata.obs["split"] == "unseen_drug", ["perturbation", "dosage"]].drop_duplicates()
    features = adata.uns["drug_embedding"].loc[unseen["perturbation"]]
    return adata, model.predict(features, unseen["dosage"].to_numpy(), n_samples=200, seed=seed)


def image(title: str, plot: Callable[[], object]) -> Image.Image:
    """A plot as an image, under a title."""
    plot()
    buffer = io.BytesIO()
    plt.savefig(buffer, dpi=DPI, bbox_inches="tight", pad_inches=0.05)
    plt.close()
    panel = Image.open(buffer).convert("RGB")
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf", 27)
    out = Image.new("RGB", (max(panel.width, round(font.getlength(title))), panel.height + 48), "white")
    out.paste(panel, (0, 48))
    ImageDraw.Draw(out).text((0, 2), title, fill="#222222", font=font)
    return out


def compose(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of panels on white, each row spread over the whole width."""
    width = WIDTH - 2 * GAP
    widest = max(sum(p.width for p in row) + GAP * (len(row) - 1) for row in rows)
    if widest > width:
        raise ValueError(f"Rows may be {width} pixels wide, found one of {widest}: make its panels smaller.")
    height = sum(max(p.height for p in row) for row in rows) + GAP * (len(rows) - 1)
    out = Image.new("RGB", (width + 2 * GAP, height + 2 * GAP), "white")
    y = GAP
    for row in rows:
        space = (width - sum(p.width for p in row)) / max(len(row) - 1, 1)
        x = float(GAP)
        for panel in row:
            out.paste(panel, (round(x), y))
            x += panel.width + space
        y += max(p.height for p in row) + GAP
    return out


def draw(adata: AnnData, predicted: AnnData) -> Image.Image:
    drug = adata.varm["gim_total_effects"].abs().sum().idxmax()
    targets = adata.varm["gim_targets"]
    genes = adata.varm["gim_total_effects"].loc[targets[drug] > 0.5, drug].abs().nlargest(2).index
    some = [drug, *targets.columns.drop(drug)[:11]]
    pl = scgim.pl
    network = image(
        f"{drug}: what it acts on, and what follows", lambda: pl.network(adata, drug, figsize=(10.1, 3.6), show=False)
    )
    dots = image(
        "Direct targets, with a probability",
        lambda: pl.targets(adata, some, n_top=12, kind="dot", figsize=(5.0, 3.9), show=False),
    )
    doses = image(
        "Dose response of its targets",
        lambda: pl.dose_response(adata, drug, genes, figsize=(4.8, 3.5), show=False),
    )
    unseen = image(
        "Drugs that were never measured, predicted",
        lambda: pl.predicted_vs_observed(adata, predicted, n_genes=5, figsize=(10.1, 4.0), show=False),
    )
    return compose([[network], [doses, dots], [unseen]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=TARGET)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(*fit(arguments.seed)).save(arguments.output, optimize=True)
