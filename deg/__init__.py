"""DeepEthogram at cluster scale: the same projects, weights and numbers, on every GPU of a cluster.

Nothing is imported here, so that `import deg` costs nothing. docs/development.md has the map of the package.
"""

from deg.version import __version__

__all__ = ["__version__"]
