"""What a sender process is told, read once: its lanes, its tests' settings, the passwords of its providers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from postlane.config import ConfigurationError, Environment
from postlane.core.policy import Config, Provider
from postlane.core.rules import Rules, rules_without
from postlane_sender.failpoints import Failpoints, read_failpoints


def lanes_of(environment: Environment, config: Config) -> tuple[str, ...]:
    """The lanes that this process serves. Raises ConfigurationError for one that is not configured."""
    wanted = environment.lanes or tuple(config.lanes)
    for lane in wanted:
        if lane not in config.lanes:
            raise ConfigurationError(f"POSTLANE_LANES: no lane {lane!r}; configured: {', '.join(config.lanes)}")
    return wanted


def password_of(provider: Provider) -> SecretStr | None:
    """The password of a provider, from its file or the configuration. Raises ConfigurationError without its text."""
    if provider.password_file is None:
        return provider.password
    try:
        return SecretStr(Path(provider.password_file).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"providers.{provider.name}.password_file: {provider.password_file} cannot be read: {type(error).__name__}"
        ) from None


def settings_of_tests(environ: Mapping[str, str] | None = None) -> tuple[Rules, Failpoints]:
    """What a test switched off or set up; everything on, nothing set, in a normal process."""
    env = os.environ if environ is None else environ
    try:
        rules = rules_without(env.get("POSTLANE_TEST_RULES_OFF", "").split(","))
        return rules, read_failpoints(env.get("POSTLANE_TEST_FAILPOINT"))
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
