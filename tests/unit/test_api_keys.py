"""The key file of the HTTP API: what an entry may say, what it restricts, and how entries are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postlane.core.api_keys import KEY_BYTES, KEY_CHARS, ApiKey, digest, new_key, read_api_keys
from postlane.core.errors import ConfigurationError
from postlane.ops.api_keys import add_key
from postlane_producer.keys import KeyRing

KEY = new_key(bytes(range(KEY_BYTES)))


def entry(**more: Any) -> dict[str, Any]:
    return {"name": "shop", "sha256": digest(KEY), **more}


def one(**more: Any) -> ApiKey:
    return read_api_keys({"keys": [entry(**more)]}).keys[0]


def test_a_key_is_its_prefix_and_32_random_bytes() -> None:
    assert KEY.startswith("plk_")
    assert len(KEY) == KEY_CHARS
    assert new_key(bytes(KEY_BYTES)) != KEY
    with pytest.raises(ValueError, match="32 random bytes"):
        new_key(b"short")


@pytest.mark.parametrize(
    ("allowed", "address", "may"),
    [
        ((), "any@body.example", True),
        (("@acme.example",), "news@acme.example", True),
        (("@ACME.example",), "News@acme.EXAMPLE", True),
        (("@acme.example",), "news@mail.acme.example", False),
        (("@acme.example",), "news@acme.example.evil.example", False),
        (("@acme.example",), "acme.example@evil.example", False),
        (("ceo@acme.example",), "ceo@acme.example", True),
        (("ceo@acme.example",), "xceo@acme.example", False),
        (("@bücher.example",), "laden@xn--bcher-kva.example", True),
        (("@xn--bcher-kva.example",), "laden@xn--bcher-kva.example", True),
    ],
)
def test_who_may_send_as_whom(allowed: tuple[str, ...], address: str, may: bool) -> None:
    assert one(senders=allowed).sends_as(address) is may


MISTAKES: dict[str, dict[str, Any]] = {
    "did you mean 'senders'": entry(sender=["a@b.example"]),
    "keys.0.sha256": entry(sha256="plk_" + "A" * 43),
    "keys.0.name": entry(name="no name"),
    "keys.0.may": entry(may=["everything"]),
    "@domain for all": entry(senders=["acme.example"]),
    "keys.0.rate_per_s": entry(rate_per_s=0),
}


@pytest.mark.parametrize("says", MISTAKES)
def test_a_mistake_in_the_file_is_told_by_its_place(says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_api_keys({"keys": [MISTAKES[says]]})
    assert says in str(refused.value)


def test_two_of_one_name_or_one_digest_are_refused() -> None:
    other = {"name": "other", "sha256": digest("x")}
    for twice in ([entry(), {**other, "name": "shop"}], [entry(), {**other, "sha256": digest(KEY)}]):
        with pytest.raises(ConfigurationError, match="the same"):
            read_api_keys({"keys": twice})
    for wrong in (None, [], "keys", {"key": []}):
        with pytest.raises(ConfigurationError):
            read_api_keys(wrong)


def test_an_entry_is_added_at_the_end_and_the_rest_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    add_key(file, one())
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    file.write_text(file.read_text() + "  # what people wrote\n")
    before = file.read_text()
    add_key(file, ApiKey(name="second", sha256=digest("second"), senders=("@acme.example",)))
    assert file.read_text().startswith(before)
    assert file.stat().st_mode & 0o777 == 0o640
    ring = KeyRing(file)
    found = ring.of(f"bearer {KEY}")
    assert found is not None
    assert found.name == "shop"
    for nobody in ("", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ", f"Bearer {KEY[:-1]}é"):
        assert ring.of(nobody) is None


@pytest.mark.parametrize("text", ["keys: []\n", "keys:\n- {name: a, sha256: nope}\n", "keys: [\n", ""])
def test_a_file_that_an_entry_does_not_fit_into_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"keys\.yaml"):
        add_key(file, one())
    assert file.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["keys.yaml"]


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    add_key(file, one())
    with pytest.raises(ConfigurationError, match="the same name"):
        add_key(file, ApiKey(name="shop", sha256=digest("other")))


def test_a_rate_lets_a_seconds_worth_go_and_makes_up_for_a_batch(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    add_key(file, one(rate_per_s=10))
    ring, caller = KeyRing(file), one(rate_per_s=10)
    assert [ring.wait_s(caller, 1, 100.0) for _ in range(10)] == [0.0] * 10
    assert 0 < ring.wait_s(caller, 1, 100.0) <= 1.0
    assert ring.wait_s(caller, 1, 100.2) == 0.0
    assert ring.wait_s(caller, 100, 103.0) == 0.0  # a batch goes whole
    assert 9.0 < ring.wait_s(caller, 1, 103.0) < 11.0  # and is waited for
    assert ring.wait_s(caller, 1, 113.0) == 0.0
    assert ring.wait_s(one(), 1_000, 100.0) == 0.0


def test_a_right_over_every_tenant_and_rates_without_sense_are_refused() -> None:
    assert one(may=["publish", "bounces"]).may == ("publish", "bounces")
    for wrong in ({"may": ["bounces"], "tenant": "acme"}, {"rate_per_s": float("inf")}, {"rate_per_s": 1e-320},
                  {"tenant": "*"}, {"tenant": ""}, {"lanes": ["BULK!"]}):  # fmt: skip
        with pytest.raises(ConfigurationError):
            one(**wrong)
