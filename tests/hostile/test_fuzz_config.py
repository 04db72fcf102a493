"""postlane.yaml and the variables: any bytes end in a configuration or one sentence, and a secret never in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postlane.config import ConfigurationError, read_config, read_environment
from postlane.core.policy import Config
from tests.hostile.effort import EXAMPLES

SECRET = "hunter2-Zk9Qx7"

_WORDS = (
    "lanes|providers|bulk|p|host|port|password|tls|retry|topics|partitions|limits|domains|<<|*a|!!binary|--|---|...|"
    "1e999|0x_|2026-01-01|~|.inf|=|{|}|[|]|'|>|#|a: &a|!!python/object/apply:os.system [id]|- |? |: |\n|\n  |%YAML 1.1|"
    '\t|\x00|"'
)
words = st.sampled_from(_WORDS.split("|"))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = sorted(Config.model_fields)


def read(tmp: Path, text: bytes | str) -> Config | str:
    """The configuration, or what a person is told instead."""
    path = tmp / "postlane.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
    try:
        return read_config(path)
    except ConfigurationError as error:
        return str(error)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.binary(max_size=80) | st.lists(words, max_size=12).map("".join))
@example(text=b"[" * 5000)
@example(text=b"a: &a [*a]")
@example(text="lanes: !!python/object/apply:os.system [id]")
@example(text=b"providers: 2026-99-99")
@example(text=b"providers: {1: {}, p: 0x_}")
def test_any_file_is_a_configuration_or_a_sentence(tmp: Path, text: bytes | str) -> None:
    read(tmp, text)


@settings(max_examples=EXAMPLES, deadline=None)
@given(section=st.sampled_from(SECTIONS), value=values)
def test_any_value_of_any_section(tmp: Path, section: str, value: Any) -> None:
    read(tmp, yaml.safe_dump({section: value}, allow_unicode=True))


BROKEN = [
    "providers:\n  p: {host: h, password: '%s}\n",  # the quote is not closed
    "providers:\n  p:\n    host: h\n    password: %s\n   port: 1\n",
    "providers:\n  p: {host: h, password: %s: 1}\n",
    "providers:\n  p: {host: h, password: @%s}\n",
    "providers:\n  p: {host: h, password: [%s]}\n",
    "providers:\n  p: {host: h, password: {%s: 1}}\n",
    "providers:\n  p: {host: h, password: !secret %s}\n",
    "providers:\n  p: {host: h, passwort: %s}\n",
    "providers:\n  p: {host: h, password: %s, port: 99999}\n",
    "providers:\n  p: {password: %s}\n",
    "providers:\n  p: '%s'\n",
    "password: %s\n",
    "providers:\n  p: {host: h, tls: %s}\n",
    "providers:\n  p: {host: h, password: &%s x, username: *y}\n",
    "%%TAG ! %s\n---\na",
    "- %s\n",
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_wrong_with_a_file_never_repeats_a_secret(tmp: Path, text: str) -> None:
    said = read(tmp, text % SECRET)
    assert isinstance(said, str)
    assert SECRET not in said
    assert str(tmp) in said


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["HTTP_PORT", "HTTP_HOST", "LANES", "TOPIC_PREFIX", "INSTANCE_ID", "DATABASE_URL", "DATA_DIR", "CONFIG",
             "BOOTSTRAP_SERVERS", "KAFKA_SASL_PASSWORD", "KAFKA_"]
        ).map(lambda name: f"POSTLANE_{name}"),
        st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
        | st.sampled_from(["²", "٣", "9" * 5000, "-1", "65536", " 1", "1 "]),
        max_size=4,
    )
)  # fmt: skip
@example({"POSTLANE_HTTP_PORT": "²"})
@example({"POSTLANE_HTTP_PORT": "9" * 5000})
def test_any_variables_are_an_environment_or_a_sentence(environ: dict[str, str]) -> None:
    try:
        read_environment(environ)
    except ConfigurationError:
        pass


def test_a_representation_shows_no_secret() -> None:
    environ = {"POSTLANE_KAFKA_SASL_PASSWORD": SECRET, "POSTLANE_DATABASE_URL": f"postgresql://u:{SECRET}@h/d"}
    environment = read_environment(environ)
    config = Config.model_validate({"providers": {"local": {"host": "h", "password": SECRET}}})
    assert SECRET not in f"{environment!r}{environment}{config!r}{config}{config.model_dump_json()}"
