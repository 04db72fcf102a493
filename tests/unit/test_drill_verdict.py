"""From an account to figures and a verdict, and from both to a report."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.unit.drill_accounts import delivered, event

from postlane.ops.drill import report, verdict
from postlane.ops.drill.account import Account, Copy
from postlane.ops.drill.checkers import Broken
from postlane.ops.drill.load import Accepted
from postlane.ops.drill.plot import timeline_svg
from postlane.ops.drill.prometheus import Alarm, _alarm, _unix
from postlane.ops.drill.result import Result

BEGAN, HEALED, STARTED = 1_000.0, 1_010.0, 995.0


def _mail(number: int, asked_at: float, partition: int = 0, kind: str = "ordinary") -> Accepted:
    ident = f"00000000-0000-7000-8000-{number:012d}"
    return Accepted(ident, f"k{number}", "transactional", "ada@example.com", partition, asked_at, asked_at, kind)


def _played(*mails: tuple[Accepted, float | None]) -> tuple[Account, dict[str, Accepted]]:
    account = Account()
    for number, (mail, at) in enumerate(mails):
        delivery = delivered(account, mail.message_id, offset=number)
        delivery.copies = [] if at is None else [Copy(at, "primary", "digest")]
    return account, {mail.message_id: mail for mail, _ in mails}


def _measured(account: Account, accepted: dict[str, Accepted]) -> Result:
    result = Result("s", "what")
    verdict.measure(result, account, accepted, BEGAN, HEALED, STARTED)
    return result


def test_recovery_counts_until_every_partition_has_delivered_a_mail_from_after_the_fault() -> None:
    account, accepted = _played(
        (_mail(1, 999.0), 1_001.0),  # on its way when the fault came: no sign of recovery
        (_mail(2, 1_002.0, partition=0), 1_002.5),
        (_mail(3, 1_002.0, partition=1), 1_008.0),
        (_mail(4, 1_009.0, partition=1), 1_009.1),
    )
    result = _measured(account, accepted)
    assert (result.first_delivery_s, result.rto_s) == (2.5, 8.0)
    assert result.silence_s == 5.5
    assert result.slowest_s == 6.0


def test_silence_counts_from_the_fault_when_nothing_arrives_any_more() -> None:
    account, accepted = _played((_mail(1, 990.0), 990.5), (_mail(2, 1_001.0), 1_012.0), (_mail(3, 1_012.0), 1_013.0))
    assert _measured(account, accepted).silence_s == 12.0


def test_a_partition_that_stays_silent_is_no_recovery() -> None:
    account, accepted = _played((_mail(1, 1_002.0, partition=0), 1_003.0), (_mail(2, 1_002.0, partition=1), None))
    result = _measured(account, accepted)
    verdict.judge(result, [], [])
    assert result.rto_s is None
    assert result.verdict == "failed"


def test_the_mails_of_a_scenario_say_nothing_about_recovery() -> None:
    account, accepted = _played((_mail(1, 1_001.0), 1_001.5), (_mail(2, 1_001.0, partition=3, kind="runaway"), 1_009.0))
    assert _measured(account, accepted).rto_s == 1.5


def test_lost_and_repeated_are_counted_by_delivery() -> None:
    result = Result("s", "what", rto_s=1.0)
    broken = [
        Broken("copies", "d1", "2"),
        Broken("a resend is the same bytes", "d1", ""),
        Broken("accepted is kept", "d2", ""),
    ]
    verdict.judge(result, broken, [])
    assert (result.lost, result.repeated, result.verdict) == (1, 1, "failed")


def test_the_timeline_has_every_second() -> None:
    account, accepted = _played((_mail(1, 995.2), 996.1), (_mail(2, 997.9), 998.0))
    seconds = _measured(account, accepted).seconds
    assert [(s.published, s.delivered) for s in seconds] == [(1, 0), (0, 1), (1, 0), (0, 1)]


def test_an_alert_counts_when_its_condition_came_with_the_fault() -> None:
    alarms = [
        Alarm("A", (("lane", "bulk"),), "pending", 1_004.0, "page", 60.0),
        Alarm("A", (("lane", "transactional"),), "pending", 1_002.0, "page", 60.0),
        Alarm("A", (), "pending", 1_001.0, "page", 900.0),  # another rule of that name, which is slower
        Alarm("B", (), "pending", 1_005.0, "ticket", 0.0),
        Alarm("B", (), "firing", 1_005.0, "ticket", 0.0),
        Alarm("C", (), "firing", 990.0, "page", 0.0),  # was there before
        Alarm("C", (), "pending", 1_020.0, "page", 0.0),  # came after everything was over
    ]
    found = verdict.told(alarms, BEGAN, HEALED)
    assert [(t.alert, t.condition_s, t.fires_s, t.fired) for t in found] == [
        ("B", 5.0, 5.0, True),
        ("A", 2.0, 62.0, False),
        ("A", 1.0, 901.0, False),
    ]
    result = Result("s", "what", alerts=found)
    assert result.first_alert is not None
    assert result.first_alert.alert == "B"


def test_mails_of_others_count_when_the_fault_touched_them() -> None:
    account, accepted = _played((_mail(1, 1_001.0), 1_001.5))
    other = account.delivery("00000000-0000-7000-8000-000000000099.0000000000000000.0")
    other.events += [
        event(other.ident, "Deferred", at="1970-01-01T00:16:41Z"),
        event(other.ident, "Deferred", at="1970-01-01T00:10:00Z"),
    ]
    quiet = account.delivery("00000000-0000-7000-8000-000000000098.0000000000000000.0")
    quiet.events.append(event(quiet.ident, "Deferred", at="1970-01-01T00:10:00Z"))
    assert verdict.others(account, accepted, BEGAN) == {other.ident}


@pytest.mark.parametrize(
    "text", ["2026-11-24T13:49:16.123456789Z", "2026-11-24T14:49:16.123456+01:00", "2026-11-24T13:49:16.1234Z"]
)
def test_prometheus_times_are_read(text: str) -> None:
    assert int(_unix(text)) == int(datetime(2026, 11, 24, 13, 49, 16, tzinfo=UTC).timestamp())


def test_an_alert_of_prometheus_is_read() -> None:
    labels = {"alertname": "ProviderDown", "severity": "page", "provider": "primary"}
    alarm = _alarm({"labels": labels, "state": "pending", "activeAt": "2026-11-24T13:49:16Z", "value": "2e+00"}, 60.0)
    assert (alarm.name, alarm.severity, alarm.labels, alarm.for_s) == (
        "ProviderDown",
        "page",
        (("provider", "primary"),),
        60.0,
    )


def _result() -> Result:
    account, accepted = _played((_mail(1, 996.0), 996.2), (_mail(2, 1_001.0), 1_001.5))
    result = _measured(account, accepted)
    result.scenario, result.marks = "a<b>", [(5.0, 'killed & "gone"')]
    verdict.judge(result, [Broken("copies", "<script>", "x")], [])
    return result


def test_the_plot_is_well_formed_and_says_what_it_shows() -> None:
    root = ElementTree.fromstring(timeline_svg(_result(), "p"))
    title, described = root.find("title"), root.find("desc")
    assert root.get("aria-labelledby") == f"{title.get('id')} {described.get('id')}"  # type: ignore[union-attr]
    assert "killed" in (described.text or "")  # type: ignore[union-attr]
    kinds = {element.get("class") for element in root.iter()}
    assert {"published", "delivered", "fault", "mark"} <= kinds


def test_the_report_is_written_whole_and_escapes_what_it_quotes(tmp_path: Path) -> None:
    results = [_result(), Result("other", "what", why="no witness")]
    body = report.document(results, "a <site>", datetime.now(UTC), {"per_s": 20.0})
    files = report.write(tmp_path, body, results)
    assert json.loads(files["json"].read_text())["results"][0]["lost"] == 0
    html = files["html"].read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<table>" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    text = files["md"].read_text()
    assert "not played: no witness" in text
    assert "BROKEN copies: <script>: x" in text


def test_a_report_without_results_is_not_passed() -> None:
    assert report.document([], "s", datetime.now(UTC), {})["passed"] is False
