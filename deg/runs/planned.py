"""What a run is planned with: files that must not change until it is done, each known again by a digest or a mark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deg.data.digest import sha256


@dataclass(frozen=True)
class PlannedFile:
    """A file, and the digest by which a change is found out."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> PlannedFile:
        """Take the digest of a file. Raises OSError if it cannot be read."""
        return cls(path, sha256(path))

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> PlannedFile:
        """Return the file that `as_dict` described."""
        return cls(Path(known["path"]), known["sha256"])

    def as_dict(self) -> dict[str, str]:
        """Return plain values, as JSON holds them."""
        return {"path": str(self.path), "sha256": self.sha256}


@dataclass(frozen=True)
class PlannedInput:
    """The features or keypoints of a recording that a sequence network is to be trained on."""

    path: Path
    """Outputs file, or the CSV file of keypoints."""
    group: str
    """Group of the outputs file; empty for keypoints."""
    mark: str
    """Mark that they had, as `describe_mark` writes it."""

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> PlannedInput:
        """Return the input that `as_dict` described."""
        return cls(Path(known["path"]), known["group"], known["mark"])

    def as_dict(self) -> dict[str, str]:
        """Return plain values, as JSON holds them."""
        return {"path": str(self.path), "group": self.group, "mark": self.mark}


@dataclass(frozen=True)
class FeatureSource:
    """Features that results of a sequence network are computed from."""

    group: str
    settings: str
    """Digest of the settings that they were computed with; empty if they do not say."""
    weights: Mapping[str, str]
    """Digest of the weights of each role that they were computed with."""


@dataclass(frozen=True)
class KeypointSource:
    """Keypoints that results of a sequence network are computed from."""

    keypoints: str
    """Name of the file, which lies beside the outputs file."""
    mark: str
    """Version of the file, as `describe_mark` writes it."""


Source = FeatureSource | KeypointSource


def source_from_dict(known: Mapping[str, Any]) -> Source:
    """Return the source of either kind that plan.json holds."""
    return KeypointSource(**known) if "keypoints" in known else FeatureSource(**known)
