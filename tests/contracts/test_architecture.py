"""The layout of the package: imports between its parts, and names that are out of use."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import pyro_flowsamp

ROOT = Path(pyro_flowsamp.__file__).parent
REPOSITORY = Path(__file__).parents[2]
DESIGN = REPOSITORY / "docs" / "design.md"
FILES = sorted(ROOT.rglob("*.py"))

#: part of the package -> the parts that it may import, itself included where it is a folder
MAY_IMPORT = {
    "_zuko": "zuko",
    "search_options": "",
    "checkpoint": "checkpoint distributed seeding versions",
    "chains": "chains kernels target checkpoint distributed seeding free_memory",
    "free_memory": "",
    "progress": "",
    "options": "checkpoint search_options",
    "weights": "",
    "validation": "",
    "seeding": "",
    "distributed": "distributed seeding versions",
    "nn": "nn",
    "training": "options checkpoint training distributed",
    "target": "target options seeding distributed",
    "objectives": "target",
    "transitions": "transitions target",
    "flows": "flows _zuko nn target weights",
    "smc": "smc checkpoint target flows transitions weights options distributed seeding",
    "guides": "guides _zuko checkpoint nn flows target transitions smc weights objectives options "
    "training distributed seeding free_memory",
    "kernels": "kernels target flows transitions distributed",
    "expectations": "expectations _zuko nn flows guides objectives options smc target training "
    "weights distributed",
    "problems": "problems target",
    "lattice": "lattice _zuko flows guides problems target",
    "export": "export chains target",
    "convergence": "",
    "stays": "",
    "trust": "convergence flows kernels options target weights chains",
    "sampling": "checkpoint convergence distributed kernels options seeding target chains "
    "training flows guides smc sampling transitions trust diagnostics remedies stays export "
    "provenance weights free_memory",
    "remedies": "",
    "versions": "",
    "provenance": "seeding chains trust versions",
    "diagnostics": "diagnostics convergence chains export flows guides kernels options seeding "
    "smc stays target trust weights distributed",
    "reporting": "convergence export provenance remedies reporting seeding versions weights",
    "plots": "guides training reporting",
    "selftest": "flows guides kernels target chains",
    "__main__": "diagnostics reporting selftest versions",
}
#: parts that any module may import
ANYWHERE = {"progress", "validation"}
#: (file, part): imports that are made inside a function, when it is called
WHEN_CALLED = {("kernels/base.py", "guides")}


def part_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path):
    """(part, whether at the top of the file) for each import of the package, or of zuko."""
    package = path.relative_to(ROOT).parts[:-1]
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) + 1 - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield (*base, *name.split("."))[0], id(node) in top
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or alias.name for alias in node.names]
            for name in names:
                if name.startswith(("zuko", "pyro_flowsamp")):
                    yield name.split(".")[0], id(node) in top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    if path == ROOT / "__init__.py":
        return
    name = path.relative_to(ROOT).as_posix()
    for part, at_top in imported(path):
        allowed = part in ANYWHERE or part in MAY_IMPORT[part_of(path)].split()
        assert allowed or (not at_top and (name, part) in WHEN_CALLED), (name, part)


def test_only_the_package_imports_lattices():
    parts = {part_of(path) for path in FILES if "lattice" in {part for part, _ in imported(path)}}
    assert parts <= {"lattice", "__init__"}


def test_the_tree_in_the_design_page_has_every_module():
    tree = re.search(r"^    pyro_flowsamp/\n((?:     .*\n)+)", DESIGN.read_text(), re.MULTILINE)[1]
    named = set(re.findall(r"\w+\.py\b", tree))
    assert {path.name for path in FILES} - {"__init__.py"} - named == set()


def test_class_names_are_unique():
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_module_hides_what_its_package_exports():
    for init in ROOT.rglob("__init__.py"):
        modules = {path.stem for path in init.parent.iterdir()} - {"__init__"}
        exported = [
            alias.asname or alias.name
            for node in ast.parse(init.read_text()).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        assert modules.isdisjoint(exported), init


#: identifiers of the vocabulary that readers could not understand, as whole words
OUT_OF_USE = """
    Ladder Rung climb rungs _lessons _taught _forget placed _better _pays TASTE stuck
    JumpHMC Cloud Known Learnt Tally Spot Walkers Explorers followers Arrived crowd crowds
    lesson awake loud attach amortize Quality log_q_gap
    path_weights train_scale phi4_truth xy_chain_truth xy_torus_truth
    _push_most _settle seconds_trials tempered_ensemble tempered_ensembles
    taught
""".split()


def identifiers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        for name in ("name", "id", "attr", "arg", "asname"):
            value = getattr(node, name, None)
            if isinstance(value, str):
                yield value


@pytest.mark.parametrize("folder", ["pyro_flowsamp", "examples", "tests"])
def test_words_out_of_use(folder):
    old = set(OUT_OF_USE)
    found = {
        (str(path.relative_to(REPOSITORY)), name)
        for path in (REPOSITORY / folder).rglob("*.py")
        for name in identifiers(path)
        if name in old
    }
    assert found == set()


# ---- sizes and docstrings ------------------------------------------------------------------------

#: a docstring that begins with one of these words does not stand alone in help()
MID_SENTENCE = re.compile(
    r"(What|Who|How|Where|Which|Of|As|With|Both|Everybody|The same|By|On|In|From|Beside|Also)\b"
)
MAX_CLASS, MAX_FILE, MAX_PARAMETERS, MAX_KERNEL_PARAMETERS = 160, 400, 8, 12


def nodes(kinds):
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds):
                yield path, node


def docstring_lines(tree):
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            found |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def test_docstrings_stand_alone():
    kinds = ast.FunctionDef | ast.ClassDef | ast.Module
    texts = [(path.name, ast.get_docstring(node) or "") for path, node in nodes(kinds)]
    assert [(name, text) for name, text in texts if MID_SENTENCE.match(text)] == []


def test_classes_are_small():
    large = set()
    for path, node in nodes(ast.ClassDef):
        lines, text = path.read_text().splitlines(), docstring_lines(node)
        numbers = range(node.lineno, node.end_lineno + 1)
        code = [n for n in numbers if lines[n - 1].strip() and n not in text]
        code = [n for n in code if not lines[n - 1].strip().startswith("#")]
        large |= {node.name} if len(code) > MAX_CLASS else set()
    assert large == set()


def test_files_are_small():
    lengths = {p.relative_to(ROOT).as_posix(): p.read_text().count("\n") for p in FILES}
    assert {name for name, length in lengths.items() if length > MAX_FILE} == set()


def test_constructors_have_few_parameters():
    long = set()
    for path, node in nodes(ast.ClassDef):
        if node.name.startswith("_") or node.name.endswith("Options"):
            continue
        as_in_pyro = part_of(path) in ("kernels", "chains")  # the names of Pyro's MCMC
        most = MAX_KERNEL_PARAMETERS if as_in_pyro else MAX_PARAMETERS
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                count = len(method.args.args) + len(method.args.kwonlyargs) - 1
                long |= {node.name} if count > most else set()
    assert long == set()


def test_no_private_name_is_imported():
    found = {
        (path.relative_to(ROOT).as_posix(), alias.name)
        for path, node in nodes(ast.ImportFrom)
        if node.level
        for alias in node.names
        if alias.name.startswith("_")
    }
    assert found == set()
