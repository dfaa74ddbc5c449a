"""Structure learning: from cells, or their sufficient statistics, to an acyclic graph. Plain arrays in, graph out."""

from __future__ import annotations

from scgim.structure._learn import learn_graph
from scgim.structure._search import StructureResult, search_structure
from scgim.structure._statistics import ContextStatistics, StatisticsAccumulator

__all__ = ["ContextStatistics", "StatisticsAccumulator", "StructureResult", "learn_graph", "search_structure"]
