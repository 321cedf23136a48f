"""What `deg doctor` says: one finding for each check, and what all of them come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from deg.options.yamlfile import yaml_text

State = Literal["ok", "warning", "fault", "not tried"]
FAULT_STATUS = 3


@dataclass(frozen=True)
class Finding:
    """One verdict."""

    check: str
    state: State
    found: str
    expected: str = ""
    """What would have been good; empty where all is well."""
    remedy: str = ""
    """What to do."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """Options `cluster.*` that it implies."""
    where: str = ""
    """The host, where it is not this one."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Finding:
        return cls(**document)

    def sentence(self) -> str:
        """All that it says, in one line."""
        parts = [self.found, f"expected {self.expected}" if self.expected else ""]
        said = "; ".join(part.rstrip(".") for part in parts if part)
        return " ".join(part for part in (f"{said}." if said else "", self.remedy) if part)


def exit_status(findings: Iterable[Finding]) -> int:
    """0 where nothing is at fault, 3 where something is."""
    return FAULT_STATUS if any(finding.state == "fault" for finding in findings) else 0


def counts(findings: Iterable[Finding]) -> str:
    """How many of each, in words."""
    states = [finding.state for finding in findings]
    kinds: tuple[State, ...] = ("ok", "warning", "fault", "not tried")
    return ", ".join(f"{states.count(kind)} {kind}" for kind in kinds if kind in states)


def together(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that say the same of several hosts become one, which names the hosts; the order stays."""
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
    """Options `cluster.*` that the findings imply; of two that differ the later holds."""
    options: dict[str, Any] = {}
    for finding in findings:
        options.update(finding.profile)
    return options


def profile_text(options: Mapping[str, Any]) -> str:
    """These options as lines for a cluster profile; empty where there are none."""
    return yaml_text({"cluster": dict(options)}) if options else ""
