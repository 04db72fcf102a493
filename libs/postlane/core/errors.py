"""What every part may have to say to the person who configured it."""

from __future__ import annotations


class ConfigurationError(Exception):
    """The environment or postlane.yaml is wrong; the message names the place and what to do. Exit code 2."""
