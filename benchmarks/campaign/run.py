"""Campaigns of three rounds, chosen by the model or otherwise: `python benchmarks/campaign/run.py doses drugs goal rank`, as `make bench-campaign`.

Results go to a CSV file in the work folder seed by seed, so that an interrupted run goes on where it stopped; then the tables are written to
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402
from benchmarks import _records, _report  # noqa: E402
from benchmarks.campaign import ranking  # noqa: E402
from benchmarks.campaign.campaigns import CAMPAIGNS, N_ROUNDS  # noqa: E402

ROWS = {name: campaign.rows for name, campaign in CAMPAIGNS.items()} | {"rank": ranking.rows}

# Heading, and whether less is better.
SCORES = {
    "ec50_error": ("EC50 error (e-folds)", True),
    "curve_error": ("curve error", True),
    "target_auprc": ("target AUPRC", False),
    "library_error": ("library error", True),
    "share_of_best": ("share of the best", False),
    "found_best": ("best found", False),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Campaigns of three rounds on simulated worlds.")
    parser.add_argument("campaigns", nargs="*", default=list(ROWS), help=f"some of {list(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "scgim_bench", help="folder of the results"
    )
    parser.add_argument("--no-docs", action="store_true", help="leave the documentation as it is")
    return parser.parse_args(arguments)


def measure(name: str, seeds: list[int], work: Path) -> pd.DataFrame:
    """Scores of a campaign, a row a seed, way of choosing and round."""
    path = work / "results" / f"campaign_{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(path) if path.exists() else pd.DataFrame({"seed": []})
    for seed in seeds:
        if seed not in set(table["seed"]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of features that tell nothing yet
                table = pd.concat([table, pd.DataFrame(ROWS[name](seed))], ignore_index=True)
            table.to_csv(path, index=False)
    return table[table["seed"].isin(seeds)]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over worlds after each round, and in how many worlds the last is better than by random choice."""
    scores = [name for name in SCORES if name in frame]
    final = frame[frame["round"] == N_ROUNDS].set_index(["policy", "seed"])
    rows = []
    for (policy, step), part in frame[frame["round"] > 0].groupby(["policy", "round"], sort=False):
        row = {"chosen by": policy, "round": step}
        for name in scores:
            heading, less = SCORES[name]
            row[heading] = _records.spread(part[name])
            if step == N_ROUNDS and policy != "random":
                gain = final.loc[policy, name] - final.loc["random", name]
                won = gain < 0 if less else gain > 0
                row[f"{heading}: better than random"] = (
                    f"{int(won.sum())} of {len(won)} ({int((gain == 0).sum())} alike)"
                )
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for name in options.campaigns:
        table = (ranking.summary if name == "rank" else summary)(measure(name, options.seeds, options.work))
        command = f"python benchmarks/campaign/run.py {name} --seeds {' '.join(map(str, options.seeds))}"
        _records.publish(
            {f"campaign-{name}": table}, _report.Provenance(command, options.seeds), docs=not options.no_docs
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
