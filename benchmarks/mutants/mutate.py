"""Small changes of the code, by the operators of Cosmic Ray: which there are, a sample of them, and the code with one made."""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")
_COMPARISON = ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_Gt", "LtE_Lt", "Gt_GtE", "Gt_Lt", "GtE_Gt", "Is_IsNot", "IsNot_Is")
_UNARY = ("Delete_USub", "Delete_Invert", "Delete_Not")
_OTHER = (
    "AddNot",
    "NumberReplacer",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ZeroIterationForLoop",
)
OPERATORS = [
    *(f"core/ReplaceBinaryOperator_{name}" for name in _BINARY),
    *(f"core/ReplaceComparisonOperator_{name}" for name in _COMPARISON),
    *(f"core/ReplaceUnaryOperator_{name}" for name in _UNARY),
    *(f"core/{name}" for name in _OTHER),
]


@dataclass(frozen=True)
class Mutant:
    """One change: the file, the operator, which of its occurrences in the file, and where this begins (line, column)."""

    path: Path
    operator: str
    occurrence: int
    position: tuple[int, int]

    def code(self) -> str:
        """The code of the file with the change."""
        return mutate_code(self.path.read_text(encoding="utf-8"), get_operator(self.operator)(), self.occurrence)

    def lines(self) -> tuple[str, str]:
        """What is changed, before and after: the first line that differs."""
        pairs = zip(self.path.read_text(encoding="utf-8").splitlines(), self.code().splitlines(), strict=False)
        before, after = next((a, b) for a, b in pairs if a != b)
        return " ".join(before.split()), " ".join(after.split())

    def function(self) -> str:
        """Name of the innermost function or class around it; empty at the top of a file."""
        tree = ast.parse(self.path.read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        around = [n for n in ast.walk(tree) if isinstance(n, kinds) and n.lineno <= self.position[0] <= n.end_lineno]
        return min(around, key=lambda n: n.end_lineno - n.lineno).name if around else ""

    def is_seen(self) -> bool:
        """Whether the change is to code that runs: annotations do not, nor does what only type checkers read."""
        return _running(self.path.read_text(encoding="utf-8")) != _running(self.code())


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All changes of a file."""
    nodes = list(ast_nodes(get_ast(path.read_text(encoding="utf-8"))))
    for name in OPERATORS:
        operator = get_operator(name)()
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(positions):
            yield Mutant(path, name, occurrence, start)


def sample(paths: list[Path], n: int, seed: int) -> list[Mutant]:
    """As many changes at different places, all places alike; of several changes at a place, one."""
    places: dict[tuple[Path, tuple[int, int]], list[Mutant]] = {}
    for path in sorted(paths):
        for mutant in mutants_of(path):
            places.setdefault((path, mutant.position), []).append(mutant)
    rng, chosen = random.Random(seed), []
    order = list(places.values())
    rng.shuffle(order)
    for options in order:
        mutant = rng.choice(options)
        if mutant.is_seen():
            chosen.append(mutant)
        if len(chosen) == n:
            break
    return chosen


class _Running(ast.NodeTransformer):
    """Leaves out what never runs."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def _running(code: str) -> str:
    return ast.dump(_Running().visit(ast.parse(code)))
