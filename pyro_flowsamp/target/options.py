"""Options of traced and compiled densities, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..validation import check_at_least_one, shown

__all__ = ["CompileMode", "TracingOptions", "check_compile"]

CompileMode = bool | Literal["auto"]


def check_compile(mode: Any) -> CompileMode:
    """A mode of compilation: "auto", True or False.

    Raises:
        ValueError: It is anything else.

    Example:
        >>> check_compile("always")
        Traceback (most recent call last):
        ...
        ValueError: compile must be 'auto', True or False, got 'always'
    """
    if not isinstance(mode, bool) and not (isinstance(mode, str) and mode == "auto"):
        raise ValueError(f"compile must be 'auto', True or False, got {shown(mode)}")
    return mode  # type: ignore[return-value]


@dataclass(frozen=True)
class TracingOptions:
    """Options that decide when a density is traced and compiled, and which traces are kept.

    The decisions depend on numbers of calls and of operations, and never on a clock.

    Attributes:
        calls: Calls with batches of one size after which the density is traced for this size, where
            ``compile_mode`` is "auto". Tracing takes as long as 100 to 250 evaluations, and an
            evaluation of a trace .3 to .8 of the time.
        steps: Whether the steps of kernels are traced and compiled too, with the flow
            (:mod:`pyro_flowsamp.kernels.step_graphs`). Their parts have limits of their own, the
            same numbers.
        compiler: Whether graphs may be compiled; else they are traced only. The environment
            variable ``PYRO_FLOWSAMP_COMPILE=0`` forbids it too.
        compile_operations: Operations that take as long as to compile one operation. Where
            ``compile_mode`` is "auto", the graph is compiled for a size when the counted work of
            its calls is as large as that of its compilation.
        max_compiled: Compilations for sizes of batches, those of the value alone included.
        compiled_ulps: Rounding errors by which a compiled value or gradient may differ from the
            traced one, in units of eps times one plus the largest entry of its row.
        max_sizes: Numbers of points for which there may be a trace.
        min_operations: Operations of the shortest part of a step that has a graph, where
            ``compile_mode`` is "auto". The first trace of a process imports torch's compiler, which
            takes a second.
        max_operations: Operations of the longest trace.
        max_retraces: Times that the density is traced anew, because a value that it reads is
            another object, before it is evaluated without a trace for good.
        max_error: Largest difference of values and gradients from those without a trace, relative
            to one plus their size.

    Raises:
        ValueError: An option is out of range.

    Example:
        >>> TracingOptions(calls=0)
        Traceback (most recent call last):
        ...
        ValueError: TracingOptions.calls must be at least 1, got 0
    """

    calls: int = 500
    steps: bool = True
    compiler: bool = True
    compile_operations: int = 2500
    max_compiled: int = 4
    compiled_ulps: float = 1000.0
    max_sizes: int = 8
    min_operations: int = 50
    max_operations: int = 20_000
    max_retraces: int = 8
    max_error: float = 1e-6

    def __post_init__(self) -> None:
        check_at_least_one(self)
