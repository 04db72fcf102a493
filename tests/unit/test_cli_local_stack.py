"""Commands beside `postlane up` find its Kafka and its books without being told; who names another gets nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postlane.cli.local_stack import with_local_stack

KAFKA, CONFIG, BOOKS = "POSTLANE_BOOTSTRAP_SERVERS", "POSTLANE_CONFIG", "POSTLANE_DATABASE_URL"


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of a stack that is up in ./.postlane."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".postlane"
    folder.mkdir()
    (folder / "postlane.yaml").write_text("{}")
    env = {KAFKA: "127.0.0.1:19092", CONFIG: str(folder / "postlane.yaml"), BOOKS: f"sqlite:///{folder}/postlane.db"}
    children = {
        "practice": {"spec": {"env": {}}},
        "router-1": {"spec": {"env": {**env, "POSTLANE_INSTANCE_ID": "router-1", "POSTLANE_HTTP_PORT": "1"}}},
    }
    (folder / "stack.json").write_text(json.dumps({"children": children}))
    return env


def test_what_is_not_set_is_the_stacks_and_nothing_but_where_it_is(stack: dict[str, str]) -> None:
    assert with_local_stack({"PATH": "x"}) == {"PATH": "x", **stack}
    assert with_local_stack({KAFKA: ""}) == stack


def test_what_is_set_stays(stack: dict[str, str]) -> None:
    assert with_local_stack({BOOKS: "sqlite:///mine.db"}) == {**stack, BOOKS: "sqlite:///mine.db"}


def test_another_kafka_gets_nothing_of_it(stack: dict[str, str]) -> None:
    assert with_local_stack({KAFKA: "kafka:9092"}) == {KAFKA: "kafka:9092"}


def test_a_configuration_beside_the_caller_comes_first(stack: dict[str, str]) -> None:
    Path("postlane.yaml").write_text("{}")
    assert CONFIG not in with_local_stack({})


def test_another_data_folder_is_looked_at_when_it_is_named(stack: dict[str, str], tmp_path: Path) -> None:
    assert with_local_stack({"POSTLANE_DATA_DIR": str(tmp_path / "other")}) == {
        "POSTLANE_DATA_DIR": str(tmp_path / "other")
    }


@pytest.mark.parametrize("text", ["", "{", "[]", '{"children": 3}', '{"children": {"a": {"spec": null}}}', "\x00"])
def test_a_state_file_that_cannot_be_read_is_none(stack: dict[str, str], text: str) -> None:
    Path(".postlane/stack.json").write_text(text)
    assert with_local_stack({"A": "b"}) == {"A": "b"}


def test_a_stack_that_is_down_is_none(stack: dict[str, str]) -> None:
    Path(".postlane/stack.json").unlink()
    assert with_local_stack({}) == {}
