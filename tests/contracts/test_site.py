"""The pages of the site: every public name has one, and every options class is described."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

import pyro_flowsamp
from pyro_flowsamp import lattice, problems

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("package", [pyro_flowsamp, lattice, problems], ids=lambda p: p.__name__)
def test_every_public_name_has_a_page(package):
    listed = re.findall(r"^   ([\w.]+)$", (DOCS / "api/index.md").read_text(), re.MULTILINE)
    assert set(package.__all__) - set(listed) == set()


def options_of_the_page():
    return re.findall(r"^\.\. options:: (\S+)$", (DOCS / "reference/options.md").read_text(), re.M)


def test_every_public_options_class_is_on_the_page():
    names = {name for name in pyro_flowsamp.__all__ if name.endswith("Options")}
    assert {f"pyro_flowsamp.{name}" for name in names} - set(options_of_the_page()) == set()


@pytest.mark.parametrize("path", options_of_the_page())
def test_every_field_is_described(path):
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    section = re.search(r"^    Attributes:\n(.*?)(?=^    \S|\Z)", cls.__doc__, re.S | re.M)[1]
    heads = re.findall(r"^        (\w[\w, ]*):", section, re.M)
    described = {name.strip() for head in heads for name in head.split(",")}
    assert {field.name for field in dataclasses.fields(cls)} - described == set()
