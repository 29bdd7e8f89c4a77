"""Import rules of the package: the order of its folders, no cycles, and which files may import which library."""

import ast
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from myllm.apps.cli import VERBS

PACKAGE = Path(__file__).parents[2] / "src/myllm"
ORDER = (
    "errors < option_checks < config, files, device, batched, progress, hub, signals, page < training_config"
    " < caption, presets < metrics < data, model, decoding < attribution, checkpoints < export < inference"
    " < training, evaluation < apps"
)
LEVEL = {area: level for level, areas in enumerate(ORDER.split(" < ")) for area in areas.split(", ")}
LEVEL |= {"__init__": 99, "__main__": 99}  # they may import everything, and nothing may import them
VERBS_MAY_IMPORT = {"demo": ["train"]}
HOMES = {
    "httpx2": ["inference/teacher.py", "inference/teacher_apis.py"],
    "timm": ["model/backbones.py"],
    "onnx": ["export/onnx_export.py", "export/onnx_graph.py", "inference/onnx_stepper.py"],
    "ray": ["apps/ray_data.py", "apps/ray_serve.py"],
    "fastapi": ["apps/server.py"],
    "httpcore2": ["apps/remote_pictures.py"],
    "prometheus_client": ["apps/server_metrics.py"],
    "uvicorn": ["apps/serve.py", "apps/connections.py"],
    "onnxruntime": [f"inference/onnx_{part}.py" for part in ("captioner", "encoder", "sessions", "stepper")],
}
MAX_LINES = 400


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Yield dotted names, also of imports inside functions and under TYPE_CHECKING; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def module_name(file: Path) -> str:
    """data/records.py -> data.records, data/__init__.py -> data, __init__.py -> __init__."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def faults_of_file(file: str, source: str) -> Iterator[str]:
    """Yield broken rules about a file's name, place and length."""
    path = Path(file)
    area = path.parts[0].removesuffix(".py")
    if area not in LEVEL:
        yield f"{file}: {area} is not in the order {ORDER}"
    if path.stem in ("utils", "common"):
        yield f"{file}: a name that says nothing; name the file for its subject"
    if path.stem == "__init__" and len(path.parts) > 1 and source:
        yield f"{file}: not empty"
    if (lines := source.count("\n")) > MAX_LINES:
        yield f"{file}: {lines} lines, more than {MAX_LINES}: it has two subjects"


def faults_of_import(module: str, target: str, verbs: Collection[str]) -> Iterator[str]:
    """Yield broken rules about an import within the package; `verbs` are the modules of verbs."""
    area, target_area = module.split(".")[0], target.split(".")[0]
    if target_area != area and LEVEL.get(target_area, 99) >= LEVEL.get(area, 99):
        yield f"{module}: imports {target}, which does not stand left of {area}"
    verb, other = module.removeprefix("apps."), target.removeprefix("apps.")
    if {module, target} <= {f"apps.{name}" for name in verbs} and other not in (verb, *VERBS_MAY_IMPORT.get(verb, [])):
        yield f"{module}: imports the verb {other}; move what they share to a file of its own"


def faults(package: Path, verbs: Collection[str] = ()) -> list[str]:
    """Return every broken rule as a line of text."""
    files = {module_name(path.relative_to(package)): path for path in sorted(package.rglob("*.py"))}
    graph: dict[str, set[str]] = {module: set() for module in files}
    lines = list[str]()
    for module, path in files.items():
        file, source = path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")
        lines += faults_of_file(file, source)
        for name in imported_names(ast.parse(source)):
            library, *rest = name.split(".")
            if not library:
                lines.append(f"{file}: imports {name}; absolute imports only")
            if file not in HOMES.get(library, [file]):
                lines.append(f"{file}: imports {library}, whose home is {', '.join(HOMES[library])}")
            if library != "myllm":
                continue
            while rest and ".".join(rest) not in files:  # the last parts are what the module defines
                rest.pop()
            target = ".".join(rest) or "__init__"
            graph[module].add(target)
            lines += faults_of_import(module, target, verbs)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        lines.append(f"cycle: {' -> '.join(reversed(error.args[1]))}")
    return list(dict.fromkeys(lines))


def test_package_keeps_the_import_order_and_verbs_do_not_import_verbs() -> None:
    assert faults(PACKAGE, {verb.function.split(":")[0] for verb in VERBS.values()}) == []
