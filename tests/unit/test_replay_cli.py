"""`postlane dead-letters` and `postlane replay`: what is refused before Kafka is asked, and the names of runs."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner, Result

from postlane.cli.main import main
from postlane.cli.replay_options import choices_of, identity
from postlane.cli.replay_run import transactional_id
from postlane.config import Environment
from postlane.core.replay import Guard


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("dead-letters", "list", "--where", "reson = 'x'"), "at character 1"),
        (("dead-letters", "list", "--since", "2026-01-02T00:00:00Z", "--until", "2026-01-01T00:00:00Z"), "before"),
        (("dead-letters", "list", "--since", "yesterday"), "not a time"),
        (("dead-letters", "list", "--status", "gone"), "gone"),
        (("dead-letters", "list", "--limit", "0"), "0"),
        (("dead-letters", "show", "12"), "no id of a dead letter"),
        (("dead-letters", "replay", "x-1", "--yes"), "no id of a dead letter"),
        (("dead-letters", "replay", "--include", "pending", "--yes"), "is never mailed again"),
        (("dead-letters", "replay", "--include", "everything", "--yes"), "is not one of"),
        (("dead-letters", "replay", "--rate", "0", "--yes"), "0"),
        (("dead-letters", "resolve", "1-2", "--as", "delivered"), "give the delivery id"),
        (("dead-letters", "resolve", "1-2"), "--as"),
        (("replay", "--yes"), "which window"),
        (("replay", "--since", "-1h", "--to-state", "gone"), "gone"),
        (("replay", "--since", "-1h", "--recipient-domain", "ä..b"), "--recipient-domain"),
    ],
)
def test_used_wrongly(args: tuple[str, ...], said: str) -> None:
    done = run(*args)
    assert (done.exit_code, said in done.output) == (2, True), done.output


@pytest.mark.parametrize("order", ["list", "show", "replay", "discard", "resolve"])
def test_each_says_what_it_does(order: str) -> None:
    done = run("dead-letters", order, "--help")
    assert done.exit_code == 0
    assert "--json" in done.output


def _given(**more: Any) -> dict[str, Any]:
    names = ("reason", "lane", "tenant", "campaign", "domain", "provider", "since", "until", "where", "limit", "run")
    return {**dict.fromkeys(names), "include": (), **more}


def test_what_is_named_by_reason_or_id_is_included() -> None:
    assert choices_of(_given()).include == frozenset()
    assert choices_of(_given(reason="uncertain")).include == {Guard.UNCERTAIN}
    assert choices_of(_given(reason="undecodable")).include == {Guard.UNDECODABLE}
    assert choices_of(_given(), ("0-1",)).include == {Guard.UNCERTAIN, Guard.UNDECODABLE}
    assert choices_of(_given(reason="uncertain"), kind="replay").include == frozenset()
    assert choices_of(_given(include=("delivered, suppressed", "bounced"))).include == {
        Guard.DELIVERED,
        Guard.SUPPRESSED,
        Guard.BOUNCED,
    }


def test_a_run_has_the_name_of_what_it_asks_for() -> None:
    base = choices_of(_given()).run
    assert base.startswith("auto-")
    assert choices_of(_given(since="2026", limit=3)).run == base  # how far it looks back makes no other run of it
    names = {
        base,
        choices_of(_given(), ("0-1",)).run,
        choices_of(_given(), kind="replay").run,
        choices_of(_given(lane="bulk")).run,
        choices_of(_given(include=("delivered",))).run,
    }
    assert len(names) == 5
    assert choices_of(_given(run="mine")).run == "mine"


def test_identities() -> None:
    delivery = "00000000-0000-0000-0000-000000000000.0123456789abcdef.1"
    assert identity("3-17") == (3, 17)
    assert identity(delivery) == delivery


def test_two_runs_at_once_have_ids_of_their_own_and_a_later_one_has_the_first_again(tmp_path: Any) -> None:
    environment = Environment(topic_prefix="p.", data_dir=tmp_path / "data", instance_id="host")
    with transactional_id(environment) as one, transactional_id(environment) as two:
        assert (one, two) == ("p.replay.host.0", "p.replay.host.1")
    with transactional_id(environment) as again:
        assert again == one
    (tmp_path / "file").touch()
    nowhere = environment.model_copy(update={"data_dir": tmp_path / "file"})
    with transactional_id(nowhere) as one, transactional_id(nowhere) as two:
        assert one != two
