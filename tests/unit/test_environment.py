"""What the variables of a process say, and secrets that stand in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from postlane.config import SECRETS, ConfigurationError, read_environment


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    url, password = tmp_path / "url", tmp_path / "password"
    url.write_text("postgresql+psycopg://ledger:s3cret@db/postlane\n")
    password.write_text("pass word \r\n")
    read = read_environment(
        {"POSTLANE_DATABASE_URL_FILE": str(url), "POSTLANE_KAFKA_SASL_PASSWORD_FILE": str(password)}
    )
    assert read.database_url == "postgresql+psycopg://ledger:s3cret@db/postlane"
    assert read.kafka == {"sasl.password": "pass word "}, "only the line end goes, and no option named after the file"
    assert "s3cret" not in repr(read)
    assert "pass word" not in repr(read)


@pytest.mark.parametrize("name", SECRETS)
def test_a_file_that_cannot_be_read_is_a_mistake_that_names_the_variable(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}_FILE: .* cannot be read: No such file"):
        read_environment({f"{name}_FILE": str(tmp_path / "none")})
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00secret")
    with pytest.raises(ConfigurationError, match=f"{name}_FILE: .* no text file") as error:
        read_environment({f"{name}_FILE": str(binary)})
    assert "secret" not in str(error.value).replace(name, "")


def test_a_secret_in_both_places_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("sqlite:///a.db")
    with pytest.raises(ConfigurationError, match="are both set"):
        read_environment({"POSTLANE_DATABASE_URL": "sqlite:///b.db", "POSTLANE_DATABASE_URL_FILE": str(file)})


@pytest.mark.parametrize("port", ["-1", "65536", "http", "1e3", " 9"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(ConfigurationError, match="POSTLANE_HTTP_PORT"):
        read_environment({"POSTLANE_HTTP_PORT": port})


@pytest.mark.parametrize("prefix", ["a b", "shop/", "é", "x" * 101, "a\n"])
def test_a_prefix_that_no_topic_can_have_is_refused_at_once(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="POSTLANE_TOPIC_PREFIX"):
        read_environment({"POSTLANE_TOPIC_PREFIX": prefix})
    assert read_environment({"POSTLANE_TOPIC_PREFIX": "shop-1.eu_"}).topic_prefix == "shop-1.eu_"
