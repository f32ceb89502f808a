"""The versions of Python, of this package and of those that it is built on."""

from __future__ import annotations

import platform
from importlib import import_module, metadata

__all__ = ["versions"]

PACKAGES = ("torch", "pyro-ppl", "zuko", "arviz", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of those that it is built on.

    Example::

        >>> list(versions())[:3]
        ['python', 'pyro_flowsamp', 'torch']
    """
    found = {"python": platform.python_version()}
    found["pyro_flowsamp"] = import_module(__package__).__version__
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
