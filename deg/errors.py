"""Everything that deg raises on purpose.

    DegError                  something that the user can act on; shown without a traceback, exit status 2
    ├── ConfigError           an option is unknown, of the wrong type or out of range
    ├── ProjectError          a project folder is missing, incomplete or contradicts itself
    ├── VideoError            a video cannot be opened, or does not decode into the frames that it claims
    ├── LabelError            a label file does not fit its video or its project
    ├── WeightsError          weights cannot be found or read safely, or do not fit the network
    ├── ResultError           an outputs file cannot be read, or is not what it claims to be
    ├── RunError              a run directory is incomplete or busy, or belongs to another plan
    └── LaunchError           a scheduler or a container refused; exit status 3

Each message says what was expected, what was found, and what to do. Any other exception is a defect of deg.
"""

from __future__ import annotations

from pathlib import Path


class DegError(Exception):
    """Something that the user can act on. The command ends with `exit_status`."""

    exit_status = 2


class ConfigError(DegError):
    """An option is unknown, of the wrong type or out of range."""


class ProjectError(DegError):
    """A project folder is missing, incomplete or contradicts itself."""


class VideoError(DegError):
    """A video cannot be opened, or does not decode into the frames that it claims."""

    def __init__(self, path: Path | str, problem: str, remedy: str, *, frame: int | None = None):
        """Say what is wrong and what to do. `frame` is the first frame that could not be decoded, if that is known."""
        self.path, self.problem, self.remedy, self.frame = Path(path), problem, remedy, frame
        super().__init__(f"{show_path(path)}: {problem}. {remedy}")

    def __reduce__(self):
        return _video_error, (str(self.path), self.problem, self.remedy, self.frame)


def _video_error(path: str, problem: str, remedy: str, frame: int | None) -> VideoError:
    return VideoError(path, problem, remedy, frame=frame)


class LabelError(DegError):
    """A label file does not fit its video or its project."""


class WeightsError(DegError):
    """Weights cannot be found or read safely, or do not fit the network."""


class ResultError(DegError):
    """An outputs file cannot be read, or is not what it claims to be."""


class RunError(DegError):
    """A run directory is incomplete or busy, or belongs to another plan."""


class LaunchError(DegError):
    """A scheduler or a container refused."""

    exit_status = 3


def show_path(path: Path | str) -> str:
    """Return a path as text that any terminal and any log can take, even if its bytes are not UTF-8."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
