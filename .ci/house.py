"""The rules of the house that no linter knows. Prints one line for each place that breaks one; exit code 1.

python .ci/house.py            all of pcl_ray
python .ci/house.py pcl_ray/runs tests/unit/runs
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES_A_ROOM = 12  # besides its __init__
LINES_A_MODULE = 400
PARAMETERS = 8
WIDE_SIGNATURES = {"kmeans"}  # public ones that checks rely on
# What a stranger cannot guess. A name is a noun of the field.
RIDDLES = {
    *(
        "aftermath",
        "asked",
        "between",
        "chosen",
        "exhibit",
        "facts",
        "found",
        "here",
        "kept",
        "known",
        "mine",
    ),
    *("place", "places", "said", "saved", "spans", "taken", "there", "told"),
}
PREPOSITIONS = {
    *(
        "About",
        "After",
        "Against",
        "As",
        "At",
        "Before",
        "Beside",
        "Between",
        "By",
        "For",
        "From",
        "In",
        "Into",
    ),
    *("Of", "On", "Over", "Through", "To", "Under", "Until", "With", "Within", "Without"),
}


def problems(paths: list[Path]) -> Iterator[str]:
    classes: dict[str, list[str]] = defaultdict(list)
    rooms: dict[Path, int] = defaultdict(int)
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        shown = path.relative_to(ROOT)
        in_package = shown.parts[0] == "pcl_ray"
        if path.name != "__init__.py":
            rooms[path.parent] += 1
        if in_package and (lines := path.read_text(encoding="utf-8").count("\n")) > LINES_A_MODULE:
            yield f"{shown}:1: {lines} lines, more than {LINES_A_MODULE}"
        for node in ast.walk(tree):
            at = f"{shown}:{getattr(node, 'lineno', 1)}"
            if isinstance(node, ast.ClassDef) and in_package:
                classes[node.name].append(at)
            if isinstance(node, ast.IfExp) and any(isinstance(child, ast.IfExp) for child in below(node)):
                yield f"{at}: a conditional expression inside another"
            if in_package:
                yield from (f"{at}: the name {name!r} says nothing to a stranger" for name in riddles(node))
                yield from (f"{at}: {text}" for text in sentences(node))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    count = parameters(node)
                    if count > PARAMETERS and not kernel(node) and node.name not in WIDE_SIGNATURES:
                        yield f"{at}: {node.name} takes {count} parameters, more than {PARAMETERS}"
            if in_package and isinstance(node, ast.ImportFrom) and node.module:
                yield from (f"{at}: {text}" for text in unoffered(shown.parts[1], node))
    for name, places in classes.items():
        if len(places) > 1:
            yield f"{places[0]}: class {name} is also at {', '.join(places[1:])}"
    for room, count in rooms.items():
        if count > MODULES_A_ROOM and room.relative_to(ROOT).parts[0] == "pcl_ray":
            yield f"{room.relative_to(ROOT)}: {count} modules, more than {MODULES_A_ROOM}"


def unoffered(room: str, node: ast.ImportFrom) -> Iterator[str]:
    """What is imported from another room, and is not in the `__all__` of its `__init__`."""
    parts = (node.module or "").split(".")
    if parts[0] != "pcl_ray" or len(parts) < 2 or parts[1] == room:
        return
    other = ROOT / "pcl_ray" / parts[1] / "__init__.py"
    if other.exists():
        names = [alias.name for alias in node.names] if len(parts) == 2 else [parts[2]]
        yield from (f"{parts[1]} does not offer {name!r}" for name in names if name not in offer(other))


@cache
def offer(room: Path) -> frozenset[str]:
    for node in ast.parse(room.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [entry.arg for entry in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is a Triton kernel, which takes a pointer for every tensor."""
    return any(argument.arg.endswith("_ptr") for argument in function.args.args)


def below(node: ast.AST) -> Iterator[ast.AST]:
    return (child for part in ast.iter_child_nodes(node) for child in ast.walk(part))


def riddles(node: ast.AST) -> Iterator[str]:
    names: list[str] = []
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        names = [node.id]
    elif isinstance(node, ast.arg):
        names = [node.arg]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = [node.name]
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        names = [node.attr]
    yield from (name for name in names if name.strip("_").lower() in RIDDLES)


def sentences(node: ast.AST) -> Iterator[str]:
    """A docstring's first line says what the thing does or is."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, documented) and (text := ast.get_docstring(node)):
        first = re.split(r"\W", text, maxsplit=1)[0]
        if first in PREPOSITIONS:
            yield f"a docstring that begins with {first!r}"


def main(arguments: list[str]) -> int:
    folders = [ROOT / argument for argument in arguments] or [ROOT / "pcl_ray", ROOT / "tests", ROOT / "jobs"]
    paths = sorted(
        path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*.py"))
    )
    lines = list(problems(paths))
    print(*lines, sep="\n")
    print(f"the house: {len(paths)} files, {len(lines)} places to mend")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
