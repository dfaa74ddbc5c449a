"""From a fitted module to cells, means and rankings."""
