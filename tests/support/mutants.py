"""The mutants of secure aggregation: one of its modules with one place changed.

Removals: a check or a call (`raise` and calls that stand alone become `pass`), one condition of several,
one part of what is hashed. Other changes are Cosmic Ray's: operators, comparisons, numbers, decorators,
handlers, loops. What no program can notice is not changed: annotations, docstrings, the text of errors.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import OPERATOR_PROVIDERS

ROOT = Path(__file__).parents[2]
PACKAGE = "fedproxy_secure"
FEWEST = 5  # sampled places of a module, if it has so many


class DropStatement(Operator):
    """`raise ...` and calls that stand alone become `pass`: a check that is not made."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "raise_stmt" or (
            node.type == "atom_expr"
            and node.parent.type == "simple_stmt"
            and node.parent.children[0] is node
        ):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return _code("pass", before=node)

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class DropCondition(Operator):
    """One of several conditions joined by `and` or `or` is left out."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type in ("or_test", "and_test"):
            for operand in node.children[::2]:
                yield operand.start_pos, operand.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        kept = [c for i, c in enumerate(node.children[::2]) if i != index]
        word = f" {node.children[1].value} "
        code = word.join(c.get_code(include_prefix=False) for c in kept)
        return _code(f"({code})", before=node)

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class DropPart(Operator):
    """One part of what is hashed is left out: a signature or a key that binds less."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "arglist" and _called(node).endswith("digest"):
            for part in node.children[::2]:
                yield part.start_pos, part.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        kept = [c for i, c in enumerate(node.children[::2]) if i != index]
        return _code(", ".join(c.get_code(include_prefix=False) for c in kept), before=node)

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


def _code(text: str, *, before: Any) -> Any:
    made = get_ast(text).children[0]
    made.get_first_leaf().prefix = before.get_first_leaf().prefix
    return made


def _called(arglist: Any) -> str:
    """The expression before the parentheses around `arglist`."""
    trailer = arglist.parent
    before = trailer.get_previous_sibling() if trailer.type == "trailer" else None
    return "" if before is None else before.get_code().strip().rstrip("(")


REMOVALS: tuple[type[Operator], ...] = (DropStatement, DropCondition, DropPart)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """`number` counts an operator's places in a module from 0; line and column (from 1) say where."""

    module: str
    operator: str
    number: int
    line: int
    column: int


def mutants_of(module: str) -> list[Mutant]:
    """Every change of a module that a program could notice."""
    source = _source(module)
    tree, silent = get_ast(source), list(_silent(source))
    found = []
    for name, kind in _operators().items():
        operator = kind()
        places = [p for node in ast_nodes(tree) for p in operator.mutation_positions(node)]
        for number, (start, _) in enumerate(places):
            if not any(first <= start < last for first, last in silent):
                found.append(
                    Mutant(module=module, operator=name, number=number, line=start[0], column=start[1] + 1)
                )
    return found


@cache
def _operators() -> dict[str, type[Operator]]:
    made = {kind.__name__: kind for kind in REMOVALS}
    for provider in OPERATOR_PROVIDERS.values():
        # those named Variable... need to be told which variable
        made |= {name: provider[name] for name in provider if not name.startswith("Variable")}
    return made


@cache
def _source(module: str) -> str:
    return (ROOT / PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def _silent(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a change makes no difference: annotations, docstrings and the text of errors."""
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts = [node.value]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            parts = list(node.exc.args)
        for part in parts:
            if part is not None:
                last = (part.end_lineno or part.lineno, part.end_col_offset or 0)
                yield (part.lineno, part.col_offset), last


def changed(mutant: Mutant) -> str | None:
    """The module's source with the mutant in it; None if that is no Python."""
    made = mutate_code(_source(mutant.module), _operators()[mutant.operator](), mutant.number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(made or "", "mutant", "exec")
        except (SyntaxError, ValueError):
            return None
    return made


def difference(mutant: Mutant) -> str:
    """The lines that differ: `- before`, `+ after`."""
    old, new = _source(mutant.module).splitlines(), (changed(mutant) or "").splitlines()
    first = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    before, after = old[first : len(old) - last], new[first : len(new) - last]
    return "\n".join([f"- {line}" for line in before] + [f"+ {line}" for line in after])


def chosen(mutants: list[Mutant], *, sample: int, seed: int) -> list[Mutant]:
    """All removals, and a sample of the places of other changes: `FEWEST` a module, the rest by chance.

    Chance follows from the seed and the line's text, so that an edit elsewhere leaves the sample as it is.
    """
    removing = {k.__name__ for k in REMOVALS}
    removals = [m for m in mutants if m.operator in removing]
    places: dict[tuple[str, int, int], list[Mutant]] = {}
    for m in mutants:
        if m.operator not in removing:
            places.setdefault((m.module, m.line, m.column), []).append(m)

    def chance(place: tuple[str, int, int]) -> random.Random:
        module, line, column = place
        return random.Random(f"{seed}|{module}|{_source(module).splitlines()[line - 1]}|{column}")

    drawn = sorted(places, key=lambda place: (chance(place).random(), place))
    by_module = {module: [p for p in drawn if p[0] == module] for module, *_ in sorted(places)}
    picked = {p for own in by_module.values() for p in own[:FEWEST]}
    picked |= set([p for p in drawn if p not in picked][: max(0, sample - len(picked))])
    sampled = [chance(place).choice(places[place]) for place in sorted(picked)]
    return sorted(removals + sampled, key=lambda m: (m.module, m.line, m.column))
