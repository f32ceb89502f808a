"""Checks of draws, and the diagnosis that they make up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

__all__ = ["Check", "Diagnosis"]


#: a check, and those whose failure says the same and more: then its own message is left out
IMPLIED_BY = {
    "ESS per chain": ("bulk ESS", "tail ESS"),
    "error of long runs": ("chains that never moved",),
    "error of shares": ("visits of regions",),
    "particles far from draws": ("mass not visited",),
    "particles in regions without draws": ("mass not visited", "particles far from draws"),
    "shares beside particles": ("mass not visited", "visits of regions"),
    "distance from particles": ("mass not visited", "shares beside particles"),
}
#: a part of a text that a run has reported, and the check whose failure says the same
REPORTED_TOO = {
    "the bulk has an effective sample size": "bulk ESS",
    "the tail has an effective sample size": "tail ESS",
    "chains depend on where they started": "nested R-hat",
    "chains have never moved": "chains that never moved",
    "of states at which chains stay longest": "ESS of rare states",
}


@dataclass(frozen=True)
class Check:
    """One number of a result, with the bound that it should keep.

    Attributes:
        name: Name of the number.
        value: The number.
        threshold: The bound; NaN where there is none, and the number is reported only.
        ok: Whether nothing is wrong.
        message: A clause that says what is wrong; made empty where nothing is.
        advice: What to try; made empty where nothing is wrong.
        at_least: Whether the bound is a lower one.

    Example:
        >>> Check("R-hat", 1.3, 1.01, False, "the chains disagree", "draw longer chains").ok
        False
    """

    name: str
    value: float
    threshold: float
    ok: bool
    message: str = ""
    advice: str = ""
    at_least: bool = False

    def __post_init__(self) -> None:
        if self.ok:
            object.__setattr__(self, "message", "")
            object.__setattr__(self, "advice", "")


@dataclass(frozen=True)
class Diagnosis:
    """All that is known about the quality of draws.

    Attributes:
        checks: All checks that could be made.
        unchecked: What could not be checked, with what it would need.
        notes: What else should be known, and is not wrong.

    Example:
        >>> bad = Check("R-hat", 1.3, 1.01, False, "the chains disagree", "draw longer chains")
        >>> found = Diagnosis((Check("bulk ESS", 900.0, 400.0, True, at_least=True), bad))
        >>> found.reliable, found.problems, found["bulk ESS"].value
        (False, ('the chains disagree',), 900.0)
        >>> few = Check("ESS per chain", 1.0, 5.0, False, "a chain has one effective draw")
        >>> fewer = Check("bulk ESS", 9.0, 400.0, False, "the bulk has nine effective draws")
        >>> Diagnosis((few, fewer)).problems  # the second says the same and more
        ('the bulk has nine effective draws',)
        >>> print(found)
        check          value    bound
        bulk ESS         900     >= 400
        R-hat            1.3    <= 1.01  FAILS
        <BLANKLINE>
        The draws may be wrong:
        - the chains disagree: draw longer chains
    """

    checks: tuple[Check, ...]
    unchecked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def reliable(self) -> bool:
        """Whether nothing has been seen to be wrong."""
        return all(check.ok for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that fail."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def told(self) -> tuple[Check, ...]:
        """The checks that fail, without those that others imply."""
        names = {check.name for check in self.failed}

        def implied(check: Check) -> bool:
            if check.name == "reported":
                return any(
                    text in check.message and name in names for text, name in REPORTED_TOO.items()
                )
            return not names.isdisjoint(IMPLIED_BY.get(check.name, ()))

        return tuple(check for check in self.failed if not implied(check))

    @property
    def problems(self) -> tuple[str, ...]:
        """The messages of the checks that fail, without those that others imply."""
        return tuple(check.message for check in self.told)

    def __getitem__(self, name: str) -> Check:
        """The check of a name.

        Raises:
            KeyError: There is no such check.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"there is no check {name!r}: there are {[c.name for c in self.checks]}")

    def __contains__(self, name: object) -> bool:
        """Whether there is a check of a name."""
        return any(check.name == name for check in self.checks)

    def __iter__(self) -> Iterator[Check]:
        """All checks."""
        return iter(self.checks)

    def __str__(self) -> str:
        """A plain table of all checks, and what is wrong."""
        rows = [_row(check) for check in self.checks]
        width = max([len(row[0]) for row in rows] + [10])
        lines = [f"{'check':{width}}  {'value':>8} {'bound':>8}"]
        lines += [f"{n:{width}}  {v:>8}  {b:>9}  {end}".rstrip() for n, v, b, end in rows]
        return "\n".join([*lines, "", *self._verdict()])

    def _verdict(self) -> list[str]:
        if self.reliable:
            lines = ["Nothing has been seen to be wrong."]
        else:
            told = [f"{c.message}: {c.advice}" if c.advice else c.message for c in self.told]
            lines = ["The draws may be wrong:", *(f"- {text}" for text in told)]
        if self.notes:
            lines += ["Notes:", *(f"- {text}" for text in self.notes)]
        if self.unchecked:
            lines += ["Not checked:", *(f"- {text}" for text in self.unchecked)]
        return lines

    def _repr_html_(self) -> str:
        head = "<tr><th>check</th><th>value</th><th>bound</th><th></th></tr>"
        rows = [
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _row(check)) + "</tr>"
            for check in self.checks
        ]
        told = "<br>".join(escape(line) for line in self._verdict())
        return f"<table>{head}{''.join(rows)}</table><p>{told}</p>"


def _row(check: Check) -> tuple[str, str, str, str]:
    sign = ">=" if check.at_least else "<="
    bound = "" if check.threshold != check.threshold else f"{sign} {check.threshold:.4g}"
    return check.name, f"{check.value:.4g}", bound, "" if check.ok else "FAILS"
