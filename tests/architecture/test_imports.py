"""The walls of the package: imports point left and make no cycle; a library has one home, a file one subject."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src/myllm"
ORDER = (
    "errors < config, files, device, batched, progress < caption, presets < metrics < data, model, decoding"
    " < attribution, checkpoints < export < inference < training, evaluation < apps"
)
LEVEL = {area: level for level, areas in enumerate(ORDER.split(" < ")) for area in areas.split(", ")}
LEVEL |= {"__init__": 99, "__main__": 99}  # the public face and the door: they see all, none sees them
HOMES = {
    "timm": ["model/backbones.py"],
    "onnx": ["export/onnx_export.py", "export/onnx_graph.py", "inference/onnx_stepper.py"],
    "onnxruntime": ["inference/onnx_captioner.py", "inference/onnx_stepper.py"],
}
MAX_LINES = 400


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Dotted names, from inside functions and under TYPE_CHECKING too; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def module_name(file: Path) -> str:
    """data/records.py -> data.records, data/__init__.py -> data, __init__.py -> __init__."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def faults(package: Path) -> list[str]:
    """Every broken rule as a line for people."""
    files = {module_name(path.relative_to(package)): path for path in sorted(package.rglob("*.py"))}
    graph: dict[str, set[str]] = {module: set() for module in files}
    found = []
    for module, path in files.items():
        place = path.relative_to(package).as_posix()
        source = path.read_text(encoding="utf-8")
        area = module.split(".")[0]
        if area not in LEVEL:
            found.append(f"{place}: {area} has no place in the order {ORDER}")
        if path.stem in ("utils", "common"):
            found.append(f"{place}: a name that says nothing; name the file for its subject")
        if path.stem == "__init__" and module != "__init__" and source:
            found.append(f"{place}: not empty")
        if (lines := source.count("\n")) > MAX_LINES:
            found.append(f"{place}: {lines} lines, more than {MAX_LINES}: it has two subjects")
        for name in imported_names(ast.parse(source)):
            library, *rest = name.split(".")
            if not library:
                found.append(f"{place}: imports {name}; absolute imports only")
            if place not in HOMES.get(library, [place]):
                found.append(f"{place}: imports {library}, whose home is {', '.join(HOMES[library])}")
            if library != "myllm":
                continue
            while rest and ".".join(rest) not in files:  # the last parts are what the module defines
                rest.pop()
            target = ".".join(rest) or "__init__"
            graph[module].add(target)
            target_area = target.split(".")[0]
            if target_area != area and LEVEL.get(target_area, 99) >= LEVEL.get(area, 99):
                found.append(f"{place}: imports {target}, which does not stand left of {area}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"cycle: {' -> '.join(reversed(error.args[1]))}")
    return found


def test_the_package_keeps_its_order_and_its_homes() -> None:
    assert faults(PACKAGE) == []
