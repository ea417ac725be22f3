"""The rooms of the house: imports go one way."""

import ast

from builders import ROOT

# earlier rooms never import later ones; rooms of one line may not import one another, except within a folder
ORDER = [
    ["errors"],
    ["checks", "files"],
    ["download"],
    ["config"],
    ["plan"],
    ["layers"],
    ["model"],
    ["cost", "backbones", "pictures", "caffe"],
    ["fold"],
    ["data"],
    ["optim"],
    ["task"],
    ["pretrained"],
    ["run"],
    ["publish", "predict"],
    ["export"],
    ["studies"],
    ["cli"],
    ["commands"],
    ["scripts", "__main__"],
]
ROOM = {name: place for place, names in enumerate(ORDER) for name in names}
SOURCES = sorted([*(ROOT / "nin").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])


def room_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return "scripts" if parts[0] == "scripts" else parts[1]


def imported(file):
    """The modules of this project that a file imports, at any depth, by dotted name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "nin")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nin":
            if node.module in ("nin", "nin.cli", "nin.data", "nin.run", "nin.studies"):
                yield from (f"{node.module}.{name.name}" for name in node.names)
            else:
                yield node.module


def test_every_file_has_a_room():
    rooms = {room_of(file) for file in SOURCES} - {"__init__"}
    assert rooms == set(ROOM)


def test_imports_go_one_way():
    against = []
    for file in SOURCES:
        here = room_of(file)
        if here == "__init__":
            continue  # the public names
        for module in imported(file):
            there = [*module.split("."), "nin"][1]
            if there in ROOM and there != here and ROOM[there] >= ROOM[here]:
                against.append(f"{file.relative_to(ROOT)} imports {module}")
    assert not against


def graph_of(files):
    """Imports between the files of nin/: dotted module to dotted modules."""
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}
    edges = {}
    for name, file in names.items():
        found = set(imported(file))
        edges[name] = {m if m in names else m.rpartition(".")[0] for m in found} & set(names) - {name}
    return edges


def test_there_is_no_circle():
    edges = graph_of(file for file in SOURCES if file.name != "__init__.py")
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for further in sorted(edges[module]):
            visit(further)
        done.add(path.pop())

    for module in edges:
        visit(module)


def test_hydra_is_imported_by_the_command_line_alone():
    for file in SOURCES:
        roots = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                roots |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots.add(node.module.split(".")[0])
        if room_of(file) not in ("cli", "scripts"):
            assert not {"hydra", "omegaconf"} & roots, file


def test_functions_are_short():
    """At most 45 lines; a longer one stands here with its reason."""
    allowed = {}
    long = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 45:
                    long[f"{file.relative_to(ROOT)}::{node.name}"] = lines
    assert long == allowed, long
