"""The version of this package, read by the build and written into every saved edit."""

__version__ = "0.1.0"
