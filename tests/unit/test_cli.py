"""The command line: options, exit codes, what goes to stdout and what to stderr. Kafka is a fake here."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from postlane import errors
from postlane.cli import exits
from postlane.cli.exits import Stop, confirm, exit_code, translated
from postlane.cli.inputs import moment, span
from postlane.cli.main import main
from postlane.config import ConfigurationError
from postlane.core.identity import message_id_from_key
from postlane.eventlog import errors as log_errors
from postlane.eventlog.publish import AppendUnknown
from postlane.mail import Mail
from postlane.publisher import Receipt

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)


class FakePublisher:
    """Stands for Publisher; `error` is what publishing raises."""

    mails: ClassVar[list[tuple[str | None, Mail]]] = []
    error: ClassVar[Exception | None] = None

    @classmethod
    def from_environment(cls, environment: Any, **_: Any) -> FakePublisher:
        return cls()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def connect(self) -> None:
        if self.error is not None:
            raise self.error

    def publish(self, mail: Mail, key: str | None = None) -> Receipt:
        if self.error is not None:
            raise self.error
        self.mails.append((key, mail))
        return Receipt(message_id_from_key(mail.tenant, key or ""), 5, len(self.mails))

    def publish_soon(self, mail: Mail, key: str | None = None) -> Future[Receipt]:
        future: Future[Receipt] = Future()
        future.set_result(self.publish(mail, key))
        return future


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POSTLANE_CONFIG", "POSTLANE_TOPIC_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FakePublisher, "mails", [])
    monkeypatch.setattr(FakePublisher, "error", None)
    monkeypatch.setattr("postlane.publisher.Publisher", FakePublisher)


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


def send(*more: str, stdin: str | None = None) -> Result:
    return run("send", "--from", "a@b.example", "--to", "x@y.example", *more, stdin=stdin)


def sent() -> Mail:
    (only,) = FakePublisher.mails
    return only[1]


# --------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (errors.InvalidMail([("to", "x")]), 2),
        (errors.MailTooLarge(2, 1), 2),
        (errors.BrokerUnavailable("x"), 3),
        (errors.PublishTimeout("x"), 3),
        (errors.PublishRefused("x"), 1),
        (log_errors.Unreachable("x"), 3),
        (log_errors.Retriable("x"), 1),
        (log_errors.EndNotReached("x"), 1),
        (log_errors.UnknownTopic("x"), 1),
        (log_errors.OptionRefused("x"), 2),
        (log_errors.Fatal("x"), 1),
        (AppendUnknown("x"), 3),
        (FileNotFoundError(2, "No such file", "f"), 1),
        (ZeroDivisionError(), None),
    ],
)
def test_every_known_error_has_its_exit_code(error: Exception, code: int | None) -> None:
    assert exit_code(error) == code
    told = translated(error)
    assert (told is error) if code is None else (isinstance(told, Stop) and told.exit_code == code)


def test_every_class_named_in_the_table_exists_and_none_hides_behind_its_base() -> None:
    from importlib import import_module

    kinds: list[type] = []
    for path in exits._CODES:
        module, _, name = path.rpartition(".")
        kind = getattr(import_module(module), name)
        assert not [base for base in kinds if issubclass(kind, base)], path
        kinds.append(kind)


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.BrokerUnavailable("no broker"), 3), (errors.PublishRefused("no topic"), 1), (ZeroDivisionError(), 1)],
)
def test_a_failure_is_one_sentence_on_stderr(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    monkeypatch.setattr(FakePublisher, "error", error)
    result = send("--subject", "S", "--text", "T", "--json")
    assert (result.exit_code, result.stdout) == (code, "")
    if code == 3:
        assert result.stderr == "postlane: no broker\n"


def test_a_guard_refuses_outside_a_terminal() -> None:
    @click.command()
    def careful() -> None:
        confirm("Really?", yes=False)

    assert CliRunner().invoke(careful).exit_code == 4
    confirm("Really?", yes=True)


@pytest.mark.parametrize("arguments", [["sned"], ["send", "--nope"], ["topics", "destroy"], ["pause"], ["cancel"]])
def test_used_wrongly(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_a_configuration_error_is_used_wrongly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "postlane.yaml").write_text("lane: {}\n")
    result = send("--subject", "S", "--text", "T")
    assert result.exit_code == 2
    assert "did you mean 'lanes'" in result.stderr
    monkeypatch.setenv("POSTLANE_CONFIG", "/nowhere.yaml")
    assert send("--subject", "S", "--text", "T").exit_code == 2


def test_help_and_version_name_every_command_without_loading_them() -> None:
    assert run("--version").stdout.startswith("postlane 0.")
    result = run("--help")
    assert result.exit_code == 0
    for name in ("send", "import", "topics", "suppress", "template", "pause", "resume", "cancel", "doctor", "status"):
        assert f"  {name} " in result.stdout
    code = (
        "import sys; from postlane.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'pydantic', 'confluent_kafka', 'rich', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_takes_json() -> None:
    def commands(group: click.Group, path: tuple[str, ...]) -> Any:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                yield from commands(command, (*path, name))
            elif command is not None:
                yield (*path, name), command

    without = [
        " ".join(path)
        for path, command in commands(main, ())
        if not any("--json" in getattr(parameter, "opts", ()) for parameter in command.params)
    ]
    assert without == []


# --------------------------------------------------------------------------------------------------------------- send


def test_send_prints_what_the_contract_says() -> None:
    result = send("--subject", "S", "--text", "T", "--key", "k", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"message_id": message_id_from_key("default", "k"), "partition": 5, "offset": 1}
    assert send("--subject", "S", "--text", "T", "--key", "k").stdout.startswith(message_id_from_key("default", "k"))


def test_send_with_every_option(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("file")
    result = send(
        *("--to", "y@y.example", "--cc", "c@y.example", "--bcc", "b@y.example", "--reply-to", "r@y.example"),
        *("--subject", "S", "--text", "T", "--html", "<p>", "--header", "X-A: b: c", "--attach", "notes.txt"),
        *("--lane", "bulk", "--campaign", "spring", "--tenant", "acme", "--in-doubt", "park"),
        *("--at", "2030-01-31T10:00:00+01:00", "--expires", "2030-02-01T00:00:00Z", "z@y.example"),
    )
    assert result.exit_code == 0, result.stderr
    mail = sent()
    assert mail.to == ("x@y.example", "y@y.example", "z@y.example")
    assert (mail.cc, mail.bcc, mail.reply_to) == (("c@y.example",), ("b@y.example",), "r@y.example")
    assert (mail.subject, mail.text, mail.html, mail.headers) == ("S", "T", "<p>", {"X-A": "b: c"})
    assert (mail.lane, mail.campaign, mail.tenant, mail.in_doubt) == ("bulk", "spring", "acme", "park")
    assert mail.send_at == datetime(2030, 1, 31, 9, tzinfo=UTC)
    assert [a.filename for a in mail.attachments] == ["notes.txt"]


def test_texts_from_files_and_stdin(tmp_path: Path) -> None:
    (tmp_path / "body.html").write_bytes(b"\xef\xbb\xbf<p>hi</p>")
    assert send("--subject", "S", "--html", "@body.html", "--text", "-", stdin="from stdin").exit_code == 0
    assert (sent().html, sent().text) == ("<p>hi</p>", "from stdin")
    FakePublisher.mails.clear()
    assert send("--subject", "S", "--text", "@@home").exit_code == 0
    assert sent().text == "@home"
    assert send("--subject", "S", "--text", "@nowhere").exit_code == 2


def test_a_template_and_its_data(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"name": "Ada"}')
    assert send("--template", "welcome@3", "--data", "@data.json").exit_code == 0
    template = sent().template
    assert template is not None
    assert (template.id, template.version, template.data) == ("welcome", 3, {"name": "Ada"})
    for wrong in ("[1]", "{", "@nowhere"):
        assert send("--template", "welcome", "--data", wrong).exit_code == 2


def test_an_eml_file(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(b"From: A <a@b.example>\r\nTo: x@y.example\r\nSubject: Hi\r\n\r\nbody\r\n")
    assert run("send", "--eml", "a.eml").exit_code == 0
    assert (sent().sender, sent().to, sent().subject) == ('"A" <a@b.example>', ('"" <x@y.example>',), "Hi") or (
        sent().to == ("x@y.example",)
    )
    FakePublisher.mails.clear()
    assert run("send", "--eml", "a.eml", "--to", "other@y.example", "--from", "b@b.example").exit_code == 0
    assert (sent().to, sent().sender) == (("other@y.example",), "b@b.example")
    (tmp_path / "b.eml").write_bytes(b"\x00\x01")
    result = run("send", "--eml", "b.eml")
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to send"),
        (["--text", "T"], "--subject is missing"),
        (["--text", "T", "--template", "w", "--subject", "S"], "exclude each other"),
        (["--text", "T", "--subject", "S", "--data", "{}"], "--data belongs to"),
        (["--text", "T", "--subject", "S", "--to", "nobody"], "to[1]"),
        (["--text", "T", "--subject", "S", "--header", "X"], "Name: value"),
        (["--text", "T", "--subject", "S", "--at", "tomorrow"], "ISO 8601"),
        (["--text", "T", "--subject", "a\nb"], "subject"),
        (["--text", "x" * 1_000_000, "--subject", "S"], None),
    ],
)
def test_a_mistake_publishes_nothing(arguments: list[str], says: str | None) -> None:
    result = send(*arguments)
    if says is None:  # its size is the publisher's to refuse
        return
    assert (result.exit_code, FakePublisher.mails) == (2, [])
    assert says in result.stderr


def test_a_lane_that_the_configuration_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "postlane.yaml").write_text("lanes: {mass: {providers: [p]}}\nproviders: {p: {host: h}}\n")
    result = send("--subject", "S", "--text", "T", "--lane", "bulk")
    assert result.exit_code == 2
    assert "known: mass" in result.stderr


# -------------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("+10m", NOW + timedelta(minutes=10)),
        ("+1h30m", NOW + timedelta(minutes=90)),
        ("-2d", NOW - timedelta(days=2)),
        ("2026-01-31T10:00:00+01:00", NOW),
        ("2026-01-31T09:00Z", NOW),
    ],
)
def test_times(text: str, time: datetime) -> None:
    assert moment(text, NOW) == time


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    for parse in (lambda: moment(text, NOW), lambda: span(text)):
        try:
            parse()
        except ValueError:
            pass


@pytest.mark.parametrize("text", ["", "+", "+10", "10m", "+999999999w", "2026-01-31", "2026-01-31T09:00", "now"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        moment(text, NOW)


# ------------------------------------------------------------------------------------------------------------- import


def test_an_import_and_its_rejects(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("email,name\na@b.example,A\nnobody,B\nc@d.example,C\n")
    arguments = ("import", "list.csv", "--from", "s@b.example", "--template", "w@2", "--campaign", "spring", "--json")
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["published"], told["rejected"], told["rejected_file"]) == (2, 1, "list.csv.rejected.ndjson")
    assert [key for key, _ in FakePublisher.mails] == ["spring/a@b.example", "spring/c@d.example"]
    assert {mail.lane for _, mail in FakePublisher.mails} == {"bulk"}
    assert json.loads((tmp_path / "list.csv.rejected.ndjson").read_text())["line"] == 3
    again = run(*arguments)
    assert [key for key, _ in FakePublisher.mails][2:] == ["spring/a@b.example", "spring/c@d.example"]
    assert again.exit_code == 0


def test_an_import_from_stdin() -> None:
    rows = '{"to":"a@b.example","data":{}}\n'
    result = run("import", "-", "--format", "ndjson", "--from", "s@b.example", "--template", "w", stdin=rows)
    assert result.exit_code == 0, result.stderr
    assert len(FakePublisher.mails) == 1


def test_an_import_that_is_stopped_by_the_broker_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv").write_text("email,text\n" + "".join(f"u{i}@b.example,t\n" for i in range(10)))
    real = FakePublisher.publish

    def fails(self: FakePublisher, mail: Mail, key: str | None = None) -> Receipt:
        if len(self.mails) == 4:
            raise errors.BrokerUnavailable("gone")
        return real(self, mail, key)

    monkeypatch.setattr(FakePublisher, "publish", fails)
    assert run("import", "list.csv", "--from", "s@b.example").exit_code == 3
    monkeypatch.setattr(FakePublisher, "publish", real)
    result = run("import", "list.csv", "--from", "s@b.example", "--json")
    assert json.loads(result.stdout)["published_before"] == 4
    assert "going on after line 5" in result.stderr
    assert [mail.to[0] for _, mail in FakePublisher.mails] == [f"u{i}@b.example" for i in range(10)]


@pytest.mark.parametrize(
    ("content", "arguments", "code", "says"),
    [
        ("x\n", ["--from", "a@b.example", "--template", "w"], 2, "no column 'email'"),
        ("", ["--from", "a@b.example", "--template", "w"], 2, "empty"),
        ("email\n", ["--from", "nobody", "--template", "w"], 2, "--from"),
        ("email\n", ["--from", "a@b.example", "--template", "w", "--lane", "x"], 2, "--lane"),
        ("email\n", ["--from", "a@b.example", "--template", "w", "--at", "+10m"], 2, "not a span"),
        ("email\n", ["--from", "a@b.example", "--template", "w", "--encoding", "x"], 2, "encoding"),
        ("email\n", ["--from", "a@b.example", "--template", "w", "--rate", "0"], 2, "rate"),
        ("email\n", ["--from", "a@b.example", "--template", "w", "--campaign", "a b"], 2, "--campaign"),
        ("email\nnobody\n", ["--from", "a@b.example", "--template", "w"], 1, "no row"),
    ],
)
def test_an_import_that_cannot_be(tmp_path: Path, content: str, arguments: list[str], code: int, says: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    result = run("import", "list.csv", *arguments)
    assert result.exit_code == code
    assert says in result.stderr


def test_a_file_that_is_not_there_or_has_no_format(tmp_path: Path) -> None:
    assert run("import", "nowhere.csv", "--from", "a@b.example", "--template", "w").exit_code == 1
    (tmp_path / "list.dat").write_text("email\n")
    assert "--format" in run("import", "list.dat", "--from", "a@b.example", "--template", "w").stderr


# ------------------------------------------------------------------------------------------------------------- orders


@pytest.mark.parametrize(
    "arguments",
    [
        ["pause", "--lane", "bulk", "--tenant", "x"],
        ["pause", "--campaign", "a b"],
        ["cancel", "not-an-id"],
        ["cancel", "0197c1b4-0000-7000-8000-000000000000", "--campaign", "x"],
        ["suppress", "add", "nobody"],
        ["suppress", "add"],
        ["suppress", "add", "a@b.example", "--tenant", "a/b"],
        ["suppress", "add", "a@b.example", "--tenant", "**"],
        ["template", "put", "w", "--subject", "{{", "--text", "x"],
        ["template", "put", "w", "--subject", "S"],
        ["template", "put", "a/b", "--subject", "S", "--text", "x"],
        ["template", "get", "w", "--version", "0"],
        ["status", "x", "--key", "y"],
        ["watch", "--interval", "0"],
    ],
)
def test_mistakes_are_found_before_anything_is_asked_of_kafka(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.stderr)
    assert result.stderr


def test_an_order_for_a_lane_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "postlane.yaml").write_text("lanes: {bulk: {providers: [p]}}\nproviders: {p: {host: h}}\n")
    result = run("pause", "--lane", "blk")
    assert result.exit_code == 2
    assert "did you mean 'bulk'" in result.stderr


def test_a_story_without_a_ledger_is_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLANE_DATABASE_URL", "sqlite:///./nowhere.db")
    assert run("status", "0197c1b4-0000-7000-8000-000000000000").exit_code == 3
    monkeypatch.setenv("POSTLANE_DATABASE_URL", "nonsense")
    assert run("status", "0197c1b4-0000-7000-8000-000000000000").exit_code == 2
