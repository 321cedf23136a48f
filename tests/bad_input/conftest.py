"""Bad files of every kind, met by the real commands."""

from small_lab import weights

__all__ = ["weights"]
