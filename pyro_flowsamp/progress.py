"""Progress bars: of trainings, of runs of chains, and of the stages of ``sample()``.

A stage of ``sample()`` consists of computations that have bars of their own elsewhere. Inside a
stage there is its bar alone, and they tell it how far they are (:func:`tick`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

__all__ = ["bar", "corrected", "stage", "steps", "tick", "work_left"]

#: shapes of bars whose end is known, and of others; neither has a rate in seconds for each unit
KNOWN_END = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}{postfix}]"
)
UNKNOWN_END = "{desc}: {n_fmt} {unit}s [{elapsed}{postfix}]"
LARGE = {"evaluation", "effective draw"}  #: units of which there are thousands: 12.3k


def bar(name: str, total: float | None, unit: str, hidden: bool) -> Any:
    """A progress bar; inside a stage it has the stage's name.

    Arguments:
        name: What is done.
        total: The number of units; None where this is not known.
        unit: The unit.
        hidden: Whether it is not shown.

    Example:
        >>> with bar("Warmup", 10, "step", hidden=True) as shown:
        ...     shown.update()
    """
    current = _STAGE.get()
    shape = UNKNOWN_END if total is None else KNOWN_END
    return tqdm(
        total=total,
        desc=name if current is None else current.name,
        unit=unit,
        disable=hidden,
        bar_format=shape,
        unit_scale=unit in LARGE,
    )


def work_left(evaluations: float) -> str:
    """The work that is left, as the text behind a bar.

    Arguments:
        evaluations: Evaluations of the density that are left.

    Example:
        >>> work_left(123456.0)
        '1.2e+05 evaluations left'
    """
    return f"{evaluations:.2g} evaluations left"


def steps(name: str, unit: str, done: int, total: int, target: Any, hidden: bool) -> Iterator[int]:
    """The numbers of the steps that are left, with a bar that shows the work that is left.

    Arguments:
        name: What is done.
        unit: What a step is called.
        done: Steps that have been made before.
        total: All steps.
        target: The target, whose evaluations are counted.
        hidden: Whether the bar is not shown.

    Example:
        >>> from types import SimpleNamespace
        >>> list(steps("Warmup", "step", 3, 6, SimpleNamespace(evaluations=0), hidden=True))
        [3, 4, 5]
    """
    first = target.evaluations
    with bar(name, total, unit, hidden or done >= total) as shown:
        shown.update(done)
        for number in range(done, total):
            yield number
            if shown.update():
                each = (target.evaluations - first) / (number + 1 - done)
                shown.set_postfix_str(work_left(each * (total - number - 1)), refresh=False)


class _Stage:
    """A stage of ``sample()``, with its bar.

    Arguments:
        name: The stage.
        target: The target whose evaluations are counted.
        hidden: Whether the bar is not shown.
        wanted: Effective draws that are wanted; None for a stage that makes none.
        each: Effective draws of a draw of all chains, as the pilot run estimates them.
    """

    def __init__(
        self, name: str, target: Any, hidden: bool, wanted: float | None, each: float
    ) -> None:
        self.name, self.target, self.wanted, self.each = name, target, wanted, each
        self.first = target.evaluations
        unit = "evaluation" if wanted is None else "effective draw"
        self.bar = bar(name, wanted, unit, hidden)

    def tick(self, draws: int, note: str) -> None:
        if self.bar.disable:
            return
        evaluations = self.target.evaluations - self.first
        if self.wanted is None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(evaluations - self.bar.n)
            return
        left = max(0.0, self.wanted - self.bar.n)
        more = evaluations / self.bar.n * left if self.bar.n else 0.0
        self.bar.set_postfix_str(work_left(more) if self.bar.n else "", refresh=False)
        self.bar.update(min(left, draws * self.each))

    def correct(self, effective: float, draws: int) -> None:
        if self.wanted is None or self.bar.disable:
            return
        self.each = effective / max(1, draws)
        self.bar.n = min(effective, self.wanted)
        if self.bar.n == self.wanted:
            self.bar.set_postfix_str("", refresh=False)  # no work is left
        self.bar.refresh()


_STAGE: ContextVar[_Stage | None] = ContextVar("stage of sample()", default=None)


@contextmanager
def stage(
    name: str, target: Any, hidden: bool, wanted: float | None = None, each: float = 0.0
) -> Iterator[Any]:
    """A context of one stage of ``sample()``, which has one bar.

    A stage that makes draws shows how many effective draws there are so far, by the pilot run's
    estimate, and the evaluations that are left. Any other shows its evaluations.

    Arguments:
        name: What is done.
        target: The target, whose evaluations are counted.
        hidden: Whether the bar is not shown.
        wanted: Effective draws that are wanted; None for a stage that makes none.
        each: Effective draws in one draw of all chains.

    Example:
        >>> from types import SimpleNamespace
        >>> target = SimpleNamespace(evaluations=0)
        >>> with stage("Draws by HMC", target, hidden=True, wanted=400.0, each=2.0):
        ...     tick(draws=1)
    """
    made = _Stage(name, target, hidden, wanted, each)
    token = _STAGE.set(made)
    try:
        yield made
    finally:
        _STAGE.reset(token)
        made.bar.close()


def tick(draws: int = 0, note: str = "") -> None:
    """Tells the bar of the stage that there is more; without a stage it does nothing.

    Arguments:
        draws: Draws of each chain that have been made since.
        note: A text behind the bar, such as the temperature.

    Example:
        >>> tick(draws=1)  # there is no stage
    """
    current = _STAGE.get()
    if current is not None:
        current.tick(draws, note)


def corrected(effective: float, draws: int) -> None:
    """Tells the bar of the stage the effective draws so far, by the draws themselves.

    Arguments:
        effective: Effective draws so far.
        draws: Draws of each chain so far.

    Example:
        >>> corrected(effective=120.0, draws=3)  # there is no stage
    """
    current = _STAGE.get()
    if current is not None:
        current.correct(effective, draws)
