"""From cells to a fitted module: statistics, search, start, descent, inference, generator, baselines."""
