"""Directives that show parts of docstrings: the fields of an options class, and one section.

``.. options:: package.Class`` is a list of the fields of a dataclass: name, default, and what the
section ``Attributes:`` of its docstring says. ``.. section:: package.name Returns`` is the text of
one section of a docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

HEADING = re.compile(r"^(\w[\w ]*):\s*$")
NESTED = re.compile(r"([=\s]\w+Options)\((?:[^()…]|\([^()]*\))+\)")
ENTRY = re.compile(r"^([\w, ]+): (.*)$")


def found(path: str) -> Any:
    """The object of this full name."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            thing: Any = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            thing = getattr(thing, name)
        return thing
    raise ImportError(path)


def section_of(thing: Any, name: str) -> list[str]:
    """The lines of one section of a docstring, without their indentation."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line == f"{name}:"), None)
    if start is None:
        raise ValueError(f"the docstring of {thing} has no section {name}")
    text = []
    for line in lines[start + 1 :]:
        if line and not line.startswith(" "):
            break
        text.append(line)
    return inspect.cleandoc("\n".join(["", *text])).splitlines()


def entries(lines: list[str]) -> list[tuple[list[str], str]]:
    """(names, text) for each entry "name, name: text" of a section."""
    made: list[tuple[list[str], str]] = []
    for line in lines:
        match = ENTRY.match(line)
        if match and not line.startswith(" "):
            made.append(([name.strip() for name in match[1].split(",")], match[2]))
        elif made and line.strip():
            made[-1] = (made[-1][0], f"{made[-1][1]} {line.strip()}")
    return made


def shown_default(field: dataclasses.Field) -> str:
    """The default of a field as it would be written."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if callable(value) and hasattr(value, "__name__"):
        return f"``{value.__name__}``"
    if dataclasses.is_dataclass(value):
        return f"``{type(value).__name__}()``"
    text = repr(value)
    return f"``{text}``" if len(text) <= 60 else "see the class"


class FromDocstring(SphinxDirective):
    """A directive whose content is made of a docstring."""

    required_arguments = 1
    final_argument_whitespace = True

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        holder = nodes.container()
        content = StringList(lines, source=self.get_source_info()[0])
        self.state.nested_parse(content, self.content_offset, holder)
        return holder.children


class Options(FromDocstring):
    """The fields of an options class as a definition list."""

    def run(self) -> list[nodes.Node]:
        cls = found(self.arguments[0])
        fields = {field.name: field for field in dataclasses.fields(cls)}
        described = entries(section_of(cls, "Attributes"))
        missing = set(fields) - {name for names, _ in described for name in names}
        if missing:
            raise self.error(f"{cls.__name__} has fields without a description: {sorted(missing)}")
        lines = []
        for names, text in described:
            heads = [f"``{n}`` = {shown_default(fields[n])}" for n in names if n in fields]
            if heads:
                lines += ["; ".join(heads), f"   {text}", ""]
        return self.parsed(lines)


class Section(FromDocstring):
    """One section of a docstring."""

    def run(self) -> list[nodes.Node]:
        path, name = self.arguments[0].split()
        lines = section_of(found(path), name)
        if name in ("Attributes", "Arguments"):
            described = entries(lines)
            lines = []
            for names, text in described:
                lines += [", ".join(f"``{n}``" for n in names), f"   {text}", ""]
        return self.parsed(lines)


def shorter(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: Any
) -> tuple[str | None, Any]:
    """A signature without the fields of options classes that are defaults, nor ``<function f>``."""
    if signature:
        signature = re.sub(r"<function ([\w.]+)[^>]*>", r"\1", signature)
        while signature != (inner := NESTED.sub(r"\1(…)", signature)):
            signature = inner
    return signature, returned


def setup(app: Any) -> dict[str, Any]:
    app.connect("autodoc-process-signature", shorter)
    app.add_directive("options", Options)
    app.add_directive("section", Section)
    return {"version": "1", "parallel_read_safe": True}
