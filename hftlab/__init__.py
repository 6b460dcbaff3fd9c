"""hftlab: research-to-production toolkit for high-frequency trading."""

__version__ = "0.1.0"
