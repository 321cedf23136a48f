"""Findings of `deg doctor`: one for each check, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from deg.options.yamlfile import yaml_text

State = Literal["ok", "warning", "fault", "not tried"]
FAULT_STATUS = 3


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    state: State
    found: str
    expected: str = ""
    """What should have been found; empty if all is well."""
    remedy: str = ""
    """What to do."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """Options `cluster.*` that follow from it."""
    where: str = ""
    """The host that it is about; empty for this one."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Finding:
        return cls(**document)

    def sentence(self) -> str:
        """Return all that it says, on one line."""
        parts = [self.found, f"expected {self.expected}" if self.expected else ""]
        said = "; ".join(part.rstrip(".") for part in parts if part)
        return " ".join(part for part in (f"{said}." if said else "", self.remedy) if part)


def exit_status(findings: Iterable[Finding]) -> int:
    """Return 0 if nothing is at fault, else 3."""
    return FAULT_STATUS if any(finding.state == "fault" for finding in findings) else 0


def counts(findings: Iterable[Finding]) -> str:
    """Say how many findings there are of each state."""
    states = [finding.state for finding in findings]
    kinds: tuple[State, ...] = ("ok", "warning", "fault", "not tried")
    return ", ".join(f"{states.count(kind)} {kind}" for kind in kinds if kind in states)


def together(findings: Sequence[Finding]) -> list[Finding]:
    """Merge findings that say the same about several hosts into one that names the hosts; the order stays."""
    hosts: dict[str, list[str]] = {}
    first: dict[str, Finding] = {}
    for finding in findings:
        said = repr(replace(finding, where=""))
        first.setdefault(said, finding)
        places = hosts.setdefault(said, [])
        if finding.where and finding.where not in places:
            places.append(finding.where)
    return [replace(finding, where=", ".join(hosts[said])) for said, finding in first.items()]


def implied_profile(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return the options `cluster.*` that follow from the findings; if two differ, the later one holds."""
    options: dict[str, Any] = {}
    for finding in findings:
        options.update(finding.profile)
    return options


def profile_text(options: Mapping[str, Any]) -> str:
    """Return these options as lines for a cluster profile; empty if there are none."""
    return yaml_text({"cluster": dict(options)}) if options else ""
