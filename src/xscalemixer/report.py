"""What was found in a dataset: problems, warnings and every assumption made about it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from xscalemixer.errors import InputError, SchemaError

__all__ = ["Finding", "Report"]

_SIGNS = {"error": "✗", "warning": "!", "assumption": "·"}
_TITLES = {"error": "problems", "warning": "warnings", "assumption": "converted or assumed"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact about an input.

    Attributes
    ----------
    severity : "error", "warning" or "assumption"
        Errors stop a forecast; assumptions (conversions included) are written into its attributes.
    subject : str
        Variable, coordinate or dimension the finding is about.
    found, needed, fix : str
        What is there, what was wanted, and what to type; empty where there is nothing to say.
    error : type
        Exception class raised when this finding is an error.
    """

    severity: Literal["error", "warning", "assumption"]
    subject: str
    found: str
    needed: str = ""
    fix: str = ""
    error: type[InputError] = SchemaError

    def __str__(self) -> str:
        needed = f" Needed: {self.needed}." if self.needed else ""
        fix = f" {self.fix}" if self.fix else ""
        return f"{self.subject}: {self.found}.{needed}{fix}"


class Report:
    """Ordered findings on one dataset; prints as text and, in Jupyter, as a table."""

    def __init__(self, title: str, findings: Iterable[Finding] = ()):
        self.title = title
        self.findings = list(findings)

    def error(self, subject: str, found: str, needed: str = "", fix: str = "", *, kind: type[InputError] = SchemaError):
        """Add a problem that makes the dataset unusable."""
        self.findings.append(Finding(severity="error", subject=subject, found=found, needed=needed, fix=fix, error=kind))

    def warn(self, subject: str, found: str, fix: str = ""):
        """Add something the user should look at."""
        self.findings.append(Finding(severity="warning", subject=subject, found=found, fix=fix))

    def assume(self, subject: str, found: str):
        """Add a conversion or an assumption."""
        self.findings.append(Finding(severity="assumption", subject=subject, found=found))

    def extend(self, other: Report, prefix: str = ""):
        """Append the findings of another report, subjects prefixed with ``prefix``."""
        for finding in other:
            self.findings.append(Finding(**{**_fields(finding), "subject": prefix + finding.subject}))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def select(self, severity: str) -> list[Finding]:
        """Findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def ok(self) -> bool:
        """True when nothing stops a forecast."""
        return not self.select("error")

    @property
    def assumptions(self) -> list[str]:
        """Sentences to be written into the attributes of a forecast."""
        return [f"{finding.subject}: {finding.found}" for finding in self.findings if finding.severity != "error"]

    def raise_errors(self, task: str | None = None) -> None:
        """Raise one error that lists every problem; do nothing if there is none.

        Raises
        ------
        SchemaError, GridError, TimeError
            If all problems are of that kind.
        InputError
            If they are of several kinds.
        """
        if not self.ok:
            raise self.failure(task)

    def failure(self, task: str | None = None) -> InputError:
        """What `raise_errors` raises: one error that lists every problem."""
        errors = self.select("error")
        kinds = {finding.error for finding in errors}
        kind = kinds.pop() if len(kinds) == 1 else InputError
        return kind(task or f"{self.title} cannot be used", map(str, errors))

    def to_dict(self) -> dict:
        """Plain data, for JSON."""
        findings = [{**_fields(finding), "error": finding.error.__name__} for finding in self.findings]
        return {"title": self.title, "ok": self.ok, "findings": findings}

    @classmethod
    def from_dict(cls, data: dict) -> Report:
        """Inverse of `to_dict`."""
        known: list[type[InputError]] = [InputError, *InputError.__subclasses__()]
        kinds = {kind.__name__: kind for kind in known}
        return cls(data["title"], [Finding(**{**finding, "error": kinds[finding["error"]]}) for finding in data["findings"]])

    def __repr__(self) -> str:
        verdict = "ready" if self.ok else "not usable"
        lines = [f"{self.title}: {verdict}"]
        for severity, heading in _TITLES.items():
            chosen = self.select(severity)
            if chosen:
                lines.append(f"{heading} ({len(chosen)})")
                lines += [f"  {_SIGNS[severity]} {finding}" for finding in chosen]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        verdict = "✓ ready" if self.ok else "✗ not usable"
        rows = [
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
            for severity in _TITLES
            for cells in (
                (_SIGNS[severity], finding.subject, finding.found, finding.needed, finding.fix)
                for finding in self.select(severity)
            )
        ]
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("", "what", "found", "needed", "what to type"))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
        return f"<b>{html.escape(self.title)}: {verdict}</b>{table}"


def _fields(finding: Finding) -> dict:
    return asdict(finding)
