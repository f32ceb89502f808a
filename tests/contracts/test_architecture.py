"""Modules import only what docs/design.md allows; a new module needs a line in the table."""

import ast
import re
from pathlib import Path

import pytest

import pyro_flowsamp

ROOT = Path(pyro_flowsamp.__file__).parent
DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
MAY_IMPORT = {
    "_zuko": "zuko",
    "_enumeration": "",
    "_support": "",
    "_model": "_enumeration _support",
    "target": "_model",
    "train": "",
    "gaussian": "",
    "importance": "",
    "mixture": "",
    "proposal": "target importance",
    "velocity": "",
    "paths": "_zuko maps",
    "symmetry": "velocity",
    "deformation": "_zuko flows paths target velocity",
    "density_ratio": "importance train velocity",
    "question": "_zuko target flows objectives train importance guides",
    "expectation": "question density_ratio target train importance guides transitions",
    "maps": "_zuko",
    "flows": "_zuko maps mixture",
    "objectives": "target flows",
    "lattice_flow": "_zuko flows maps",
    "discriminators": "_zuko",
    "adversary": "maps objectives target train",
    "transitions": "transitions target gaussian importance",
    "guides": "guides adversary discriminators _model target flows paths velocity symmetry "
    "deformation objectives train "
    "gaussian importance mixture proposal transitions _zuko",
    "kernels": "kernels target flows proposal transitions",
    "mcmc": "kernels target",
    "export": "target",
    "trial": "kernels mcmc target",
    "ladder": "trial target flows train guides kernels transitions export",
    "report": "",
    "targets": "targets target",
}


def imports(path):
    """The parts of this package, and zuko, that a file imports."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) + 1 - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((*base, *name.split("."))[0] for name in names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or alias.name for alias in node.names]
            yield from (n.split(".")[0] for n in names if n.startswith(("zuko", "pyro_flowsamp")))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    part = path.relative_to(ROOT).with_suffix("").parts[0]
    if part != "__init__":
        assert set(imports(path)) <= set(MAY_IMPORT[part].split())


def test_the_tree_has_every_module():
    tree = re.search(r"^    pyro_flowsamp/\n((?:     .*\n)+)", DESIGN.read_text(), re.MULTILINE)[1]
    named = set(re.findall(r"\w+\.py\b", tree))
    assert {path.name for path in ROOT.rglob("*.py")} - {"__init__.py"} - named == set()
