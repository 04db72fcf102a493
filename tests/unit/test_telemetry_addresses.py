"""How traces speak of recipients."""

from __future__ import annotations

import pytest

from postlane.config import ConfigurationError
from postlane.telemetry.addresses import KEY_VARIABLE, VARIABLE, shown_by

ADDRESS = "Ada.Lovelace@Example.com"


def test_by_default_an_address_is_hashed() -> None:
    about = shown_by({}).of(ADDRESS)
    assert about["postlane.recipient.domain"] == "example.com"
    assert len(about["postlane.recipient.hash"]) == 16
    assert not any("Ada" in value for value in about.values())
    assert about == shown_by({}).of("Ada.Lovelace@example.COM")
    assert about != shown_by({}).of("ada.lovelace@example.com")  # a local part is case-sensitive (RFC 5321 2.4)


def test_a_key_makes_other_hashes() -> None:
    assert shown_by({KEY_VARIABLE: "k"}).of(ADDRESS) != shown_by({}).of(ADDRESS)


def test_plain_and_none_are_asked_for() -> None:
    assert shown_by({VARIABLE: "plain"}).of(ADDRESS)["postlane.recipient.address"] == ADDRESS
    assert shown_by({VARIABLE: " None "}).of(ADDRESS) == {"postlane.recipient.domain": "example.com"}


@pytest.mark.parametrize("environ", [{VARIABLE: "yes"}, {KEY_VARIABLE: "k" * 65}])
def test_what_is_not_known_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="POSTLANE_TRACE"):
        shown_by(environ)
