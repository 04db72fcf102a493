"""Imports: what a row asks for, its key, and that a run which ends anywhere loses nothing and sends nothing twice."""

from __future__ import annotations

import io
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postlane.errors import BrokerUnavailable, InvalidMail, MailTooLarge, PublishTimeout
from postlane.mail import Mail
from postlane.ops.import_files import Progress, Rejected
from postlane.ops.importer import Import, ImportOptions, Pace, check_columns, mail_of
from postlane.ops.rows import CsvRows, ImportRefused, Position, Row, json_rows
from postlane.publisher import Receipt

WELCOME = ImportOptions(sender="shop@example.org", template=("welcome", None), campaign="spring")


class FakePublisher:
    """Keeps what was published by key; fails from the mail number `fails_at` on, or never acknowledges it."""

    def __init__(self, fails_at: int | None = None, *, at_once: bool = True, error: Exception | None = None) -> None:
        self.mails: list[tuple[str | None, Mail]] = []
        self.fails_at = fails_at
        self.at_once = at_once
        self.error = error or BrokerUnavailable("gone")

    def publish_soon(self, mail: Mail, key: str | None = None) -> Future[Receipt]:
        future: Future[Receipt] = Future()
        if self.fails_at is not None and len(self.mails) >= self.fails_at:
            if self.at_once:
                raise self.error
            future.set_exception(self.error)
            return future
        self.mails.append((key, mail))
        future.set_result(Receipt("id", 0, len(self.mails)))
        return future

    def keys(self) -> list[str | None]:
        return [key for key, _ in self.mails]


# ------------------------------------------------------------------------------------------------- what a row asks for


def test_a_csv_row_is_the_data_of_its_template() -> None:
    mail, key = mail_of({"Email": " Ada@Example.com ", "name": "Ada", "City": "x"}, WELCOME, csv=True)
    assert mail.to == ("Ada@Example.com",)
    assert mail.template is not None
    assert mail.template.data == {"Email": " Ada@Example.com ", "name": "Ada", "City": "x"}
    assert (mail.sender, mail.campaign, mail.lane) == ("shop@example.org", "spring", "bulk")
    assert key == "spring/Ada@example.com"


def test_a_csv_row_brings_its_own_content_without_a_template() -> None:
    options = ImportOptions(sender="shop@example.org")
    mail, key = mail_of({"to": "a@b.example", "Subject": "Hi", "text": "T", "html": "", "x": "y"}, options, csv=True)
    assert (mail.subject, mail.text, mail.html, mail.template) == ("Hi", "T", None, None)
    other, other_key = mail_of({"to": "a@b.example", "Subject": "Ho", "text": "T"}, options, csv=True)
    assert key.startswith("row/")
    assert key != other_key
    assert mail != other


def test_a_json_row_is_a_mail_or_data_for_the_template() -> None:
    mail, key = mail_of({"to": "a@b.example", "data": {"name": "Ada"}}, WELCOME, csv=False)
    assert mail.template is not None
    assert (mail.template.id, mail.template.data, key) == ("welcome", {"name": "Ada"}, "spring/a@b.example")
    own, own_key = mail_of({"to": ["a@b.example"], "subject": "S", "text": "T", "lane": "x"}, WELCOME, csv=False)
    assert (own.template, own.lane, own.campaign) == (None, "x", "spring")
    assert own_key.startswith("spring/")
    assert own_key != key
    assert mail_of({"email": "a@b.example", "text": "T", "key": 7}, WELCOME, csv=False)[1] == "7"


@pytest.mark.parametrize(
    ("values", "options", "csv", "says"),
    [
        ({"email": ""}, WELCOME, True, "empty"),
        ({"email": "nobody"}, WELCOME, True, "no @"),
        ({"email": "a@b.example,c@d.example"}, WELCOME, True, "to"),
        ({"to": "a@b.example", "txt": "x"}, WELCOME, False, "did you mean 'text'"),
        ({"to": "a@b.example", "data": [1]}, WELCOME, False, "JSON object"),
        ({"to": "a@b.example", "data": {}}, ImportOptions(sender="a@b.example"), False, "--template"),
        ({"to": "a@b.example", "text": "x", "key": True}, WELCOME, False, "key"),
        ({"to": "a@b.example", "text": "x", "key": ""}, WELCOME, False, "key"),
        ({"to": "a@b.example", "text": "x"}, ImportOptions(), False, "sender"),
        ({"to": "a@b.example", "id": ""}, ImportOptions("a@b.example", ("w", 1), key_column="id"), True, "id"),
    ],
)
def test_a_row_that_cannot_be_a_mail(values: dict[str, Any], options: ImportOptions, csv: bool, says: str) -> None:
    with pytest.raises(InvalidMail, match=says):
        mail_of(values, options, csv=csv)


def test_the_key_column() -> None:
    options = ImportOptions("a@b.example", ("w", None), key_column="order")
    assert mail_of({"to": "a@b.example", "order": " 42 "}, options, csv=True)[1] == "42"
    assert mail_of({"to": "a@b.example", "data": {"order": 42}}, options, csv=False)[1] == "42"
    assert mail_of({"to": "a@b.example", "order": "43", "data": {}}, options, csv=False)[1] == "43"


def test_without_a_campaign_the_row_is_the_key_and_the_template_counts() -> None:
    row = {"email": "a@b.example", "name": "Ada"}
    plain = ImportOptions("a@b.example", ("w", None))
    assert mail_of(row, plain, csv=True)[1] == mail_of(dict(reversed(row.items())), plain, csv=True)[1]
    assert mail_of(row, plain, csv=True)[1] != mail_of(row, ImportOptions("a@b.example", ("v", None)), csv=True)[1]
    assert mail_of(row, plain, csv=True)[1] != mail_of({**row, "name": "Bob"}, plain, csv=True)[1]


@pytest.mark.parametrize(
    ("header", "options", "says"),
    [
        (b"name,x\n", WELCOME, "no column 'email'"),
        (b"email,x\n", ImportOptions("a@b.example"), "nothing to say"),
        (b"email,text\n", ImportOptions(), "who sends it"),
        (b"email,order\n", ImportOptions("a@b.example", ("w", None), key_column="ordr"), "did you mean 'order'"),
    ],
)
def test_a_file_of_which_no_row_could_be_sent_is_refused_at_once(
    header: bytes, options: ImportOptions, says: str
) -> None:
    with pytest.raises(ImportRefused, match=says):
        check_columns(CsvRows(io.BytesIO(header)), options)


# ----------------------------------------------------------------------------------------------------------- the run


def begin(file: Path, publisher: Any, options: ImportOptions = WELCOME) -> tuple[Import, list[Row], Position]:
    progress = Progress(file.with_name("list.progress"), file, options.digest())
    rejected = Rejected(file.with_name("list.rejected"))
    resumed = progress.resume()
    rejected.begin(resumed.rejected_bytes if resumed else 0, resumed.rejected if resumed else 0)
    at = resumed.at if resumed else Position()
    work = Import(options, publisher, rejected, progress, Pace(None), csv=True)
    if resumed:
        work.summary.before, work.summary.at = resumed.published, resumed.at
    with file.open("rb") as stream:
        return work, list(CsvRows(stream, start=at)), at


def run(file: Path, publisher: Any, options: ImportOptions = WELCOME) -> Import:
    work, rows, _ = begin(file, publisher, options)
    try:
        work.run(rows)
    finally:
        work.rejected.close()
    return work


def write(folder: Path, count: int, bad: frozenset[int] = frozenset()) -> Path:
    file = folder / "list.csv"
    lines = [f"u{i}@b.example,n{i}" if i not in bad else f"bad{i},n{i}" for i in range(count)]
    file.write_text("email,name\n" + "\n".join(lines) + "\n")
    return file


def rejected_lines(file: Path) -> list[int]:
    path = file.with_name("list.rejected")
    return [orjson.loads(line)["line"] for line in path.read_bytes().splitlines()] if path.exists() else []


def test_a_whole_run(tmp_path: Path) -> None:
    file = write(tmp_path, 20, frozenset({3, 7}))
    publisher = FakePublisher()
    work = run(file, publisher)
    assert publisher.keys() == [f"spring/u{i}@b.example" for i in range(20) if i not in (3, 7)]
    assert (work.summary.published, work.summary.rejected) == (18, 2)
    assert rejected_lines(file) == [5, 9]
    entry = orjson.loads(file.with_name("list.rejected").read_bytes().splitlines()[0])
    assert entry["row"] == "bad3,n3"
    assert "no @" in entry["reason"]
    assert file.read_bytes()[entry["offset"] :].startswith(b"bad3")
    assert not file.with_name("list.progress").exists()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 30),
    fails=st.lists(st.integers(0, 12), max_size=4),
    bad=st.frozensets(st.integers(0, 29)),
    at_once=st.booleans(),
)
def test_runs_that_fail_anywhere_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, count: int, fails: list[int], bad: frozenset[int], at_once: bool
) -> None:
    file = write(tmp_path_factory.mktemp("import"), count, bad)
    published: set[str | None] = set()
    for fails_at in fails:
        publisher = FakePublisher(fails_at, at_once=at_once, error=PublishTimeout("unknown"))
        try:
            run(file, publisher)
        except PublishTimeout:
            pass
        published |= set(publisher.keys())
    publisher = FakePublisher()
    run(file, publisher)
    published |= set(publisher.keys())
    assert published == {f"spring/u{i}@b.example" for i in range(count) if i not in bad}
    assert rejected_lines(file) == [i + 2 for i in range(count) if i in bad]


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    file = write(tmp_path, 20, frozenset({1}))
    with pytest.raises(BrokerUnavailable):
        run(file, FakePublisher(5))
    second = FakePublisher()
    work = run(file, second)
    assert second.keys() == [f"spring/u{i}@b.example" for i in range(6, 20)]
    assert (work.summary.before, work.summary.published, work.rejected.count) == (5, 14, 1)
    assert rejected_lines(file) == [3]


@pytest.mark.parametrize("change", ["options", "head", "shorter", "torn"])
def test_progress_of_something_else_does_not_count(tmp_path: Path, change: str) -> None:
    file = write(tmp_path, 20)
    with pytest.raises(BrokerUnavailable):
        run(file, FakePublisher(5))
    options = WELCOME
    if change == "options":
        options = ImportOptions("shop@example.org", ("welcome", 2), "summer")
    elif change == "head":
        file.write_text(file.read_text().replace("u0@", "U0@"))
    elif change == "shorter":
        file.write_text("email,name\nu0@b.example,n0\n")
    else:
        file.with_name("list.progress").write_bytes(b'{"offset": 3')
    publisher = FakePublisher()
    run(file, publisher, options)
    assert len(publisher.mails) == (1 if change == "shorter" else 20)


def test_rows_may_be_added_to_a_file_that_was_stopped(tmp_path: Path) -> None:
    file = write(tmp_path, 20)
    with pytest.raises(BrokerUnavailable):
        run(file, FakePublisher(5))
    with file.open("a") as more:
        more.write("new@b.example,n\n")
    publisher = FakePublisher()
    run(file, publisher)
    assert publisher.keys()[-1] == "spring/new@b.example"
    assert len(publisher.mails) == 16


def test_a_row_that_is_too_large_is_kept_and_the_rest_goes_on(tmp_path: Path) -> None:
    class Picky(FakePublisher):
        def publish_soon(self, mail: Mail, key: str | None = None) -> Future[Receipt]:
            future = super().publish_soon(mail, key)
            if len(self.mails) == 2:
                raise MailTooLarge(2, 1)
            if len(self.mails) == 4:
                future = Future()
                future.set_exception(MailTooLarge(2, 1))
            return future

    file = write(tmp_path, 6)
    work = run(file, Picky())
    assert rejected_lines(file) == [3, 5]
    assert work.summary.published == 4


def test_in_flight_is_bounded_and_rows_in_flight_are_not_kept_whole(tmp_path: Path) -> None:
    class Slow(FakePublisher):
        waiting: list[Future[Receipt]] = []  # noqa: RUF012
        most = 0

        def publish_soon(self, mail: Mail, key: str | None = None) -> Future[Receipt]:
            future: Future[Receipt] = Future()
            self.waiting.append(future)
            self.most = max(self.most, sum(not f.done() for f in self.waiting))
            if len(self.waiting) >= 1000:
                next(f for f in self.waiting if not f.done()).set_result(Receipt("", 0, 0))
            if len(self.waiting) == 1300:
                for left in self.waiting:
                    if not left.done():
                        left.set_result(Receipt("", 0, 0))
            return future

    publisher = Slow()
    file = write(tmp_path, 1300)
    assert run(file, publisher).summary.published == 1300
    assert publisher.most <= 1000


def test_the_pace() -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(10, clock=lambda: now[0], sleep=sleep)
    for _ in range(101):
        pace.wait()
    assert now[0] == pytest.approx(10.0)
    now[0] += 60  # a pause of the publisher is not caught up in a burst
    for _ in range(11):
        pace.wait()
    assert now[0] >= 70.0 + 0.9


def test_json_lines_run(tmp_path: Path) -> None:
    file = tmp_path / "list.ndjson"
    file.write_bytes(b'{"to":"a@b.example","data":{"n":1}}\n{"to":"x"}\n{"to":"c@b.example","text":"hi"}\n')
    publisher = FakePublisher()
    rejected = Rejected(tmp_path / "r")
    work = Import(WELCOME, publisher, rejected, None, Pace(None), csv=False)
    with file.open("rb") as stream:
        work.run(json_rows(stream, Position()))
    rejected.close()
    assert [mail.to[0] for _, mail in publisher.mails] == ["a@b.example", "c@b.example"]
    assert (work.summary.published, rejected.count) == (2, 1)
