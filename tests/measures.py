"""python -m tests.measures [folder of the package …]

What can be counted of the package's Python: how much there is, how it is cut, and how much of it says why. Figures to
look at, not bounds; two folders show what changed.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import eidproxy

Function = ast.FunctionDef | ast.AsyncFunctionDef

BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.comprehension)


class Source(NamedTuple):
    """One file."""

    path: Path
    tree: ast.Module
    code: int
    """Lines that are neither blank nor a comment nor a docstring."""
    comments: int
    docstrings: int


def source(path: Path) -> Source:
    """Read a file."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
    silent.add(tokenize.ENDMARKER)
    told = {line for each in tokens if each.type not in silent for line in range(each.start[0], each.end[0] + 1)}
    comments = {each.start[0] for each in tokens if each.type == tokenize.COMMENT}
    return Source(path, tree, len(told - documented), len(comments), len(documented))


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function with its name, those of classes as `Class.name`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
        yield from functions(node, f"{node.name}." if isinstance(node, ast.ClassDef) else prefix)


def length(function: Function) -> int:
    """Lines of a function's body without its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def complexity(function: Function) -> int:
    """The ways through a function: one more for each branch, and for each word that may end a condition early."""
    nodes = list(ast.walk(function))
    words = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return 1 + words + sum(isinstance(node, BRANCHES) for node in nodes)


def slots(tree: ast.AST, name: str) -> int | None:
    """How many slots a class has."""
    for kind in ast.walk(tree):
        if isinstance(kind, ast.ClassDef) and kind.name == name:
            for node in kind.body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
                    return len(ast.literal_eval(node.value))
    return None


def measured(folder: Path) -> dict[str, str]:
    """The figures of a package."""
    sources = [source(path) for path in sorted(folder.rglob("*.py"))]
    every = [(f"{each.path.stem}.{name}", node) for each in sources for name, node in functions(each.tree)]
    lengths = sorted((length(node), name) for name, node in every)
    ways = sorted((complexity(node), name) for name, node in every)
    roots = {each.path.relative_to(folder).parts[0] for each in sources}
    code = sum(each.code for each in sources)
    comments = sum(each.comments for each in sources)
    docstrings = sum(each.docstrings for each in sources)
    asserts = sum(isinstance(node, ast.Assert) for each in sources for node in ast.walk(each.tree))

    def of(name: str) -> str:
        found = [count for each in sources if (count := slots(each.tree, name)) is not None]
        return " ".join(map(str, found)) or "none"

    return {
        "files": str(len(sources)),
        "lines": str(sum(len(each.path.read_text("utf-8").splitlines()) for each in sources)),
        "lines of code": str(code),
        "names at the root": str(len(roots)),
        "largest file": "{0[0]} ({0[1]})".format(max((each.code, each.path.stem) for each in sources)),
        "slots of Relay": of("Relay"),
        "slots of Connection": of("Connection"),
        "functions": str(len(every)),
        "lines of a function, median and 90th percentile": f"{lengths[len(every) // 2][0]}, "
        f"{lengths[len(every) * 9 // 10][0]}",
        "longest function": "{} ({})".format(*lengths[-1]),
        "worst complexity": "{} ({})".format(*ways[-1]),
        "asserts": str(asserts),
        "comment lines for a line of code": f"{comments / code:.3f}",
        "with docstrings": f"{(comments + docstrings) / code:.3f}",
    }


def main() -> None:
    """Print a table, a column for each folder."""
    folders = [Path(word) for word in sys.argv[1:]] or [Path(eidproxy.__file__).parent]
    columns = [measured(folder) for folder in folders]
    for name in columns[0]:
        print("| " + " | ".join([name, *(column[name] for column in columns)]) + " |")


if __name__ == "__main__":
    main()
