"""What connections report, against what an independent server kept while it misbehaved: per mail, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from smtp_sending import Mail, Run, Sender, run

from postlane.core.policy import Provider
from postlane.core.smtp_events import Accepted, InDoubt
from postlane.local.practice.listener import Options
from postlane.local.practice.server import PracticeServer
from postlane_sender.connection import SessionLimits
from postlane_sender.session import ProviderRefused, open_session

__all__ = ["run"]  # fixture

MAILS = 300
FAULTS: list[dict[str, Any]] = [
    {"action": "reply", "phase": "mail", "code": 451, "probability": 0.03},
    {"action": "reply", "phase": "rcpt", "code": 550, "text": "5.1.1 no such user", "probability": 0.05},
    {"action": "reply", "phase": "data", "code": 452, "probability": 0.03},
    {"action": "reply", "phase": "dot", "code": 554, "probability": 0.05},
    {"action": "reply", "phase": "rcpt", "code": 421, "probability": 0.02},
    {"action": "reply", "phase": "dot", "code": 421, "probability": 0.02},
    {"action": "drop", "phase": "mail", "probability": 0.02},
    {"action": "drop", "phase": "data", "probability": 0.02},
    {"action": "drop", "phase": "body", "probability": 0.02},
    {"action": "drop", "phase": "dot", "probability": 0.02},
    {"action": "accept_drop", "phase": "dot", "probability": 0.04},
]


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "by-command"])
@pytest.mark.parametrize("data_always", [False, True], ids=["", "354-always"])
def test_reports_agree_with_the_witness(run: Run, tmp_path: Path, pipelining: bool, data_always: bool) -> None:
    async def main() -> None:
        sender = Sender(
            [Mail(f"m{n}", f"X-Postlane-Delivery: m{n}\r\n\r\nbody {n}\r\n".encode()) for n in range(MAILS)]
        )
        options = Options(pipelining=pipelining, data_always=data_always)
        async with PracticeServer(tmp_path / "ledger.ndjson", options=options) as server:
            await server.set_faults([fault | {"seed": seed} for seed, fault in enumerate(FAULTS)])
            config = Provider(name="practice", host="127.0.0.1", port=server.ports["primary"], tls="none")
            while not sender.done.is_set():
                sender.is_closed.clear()
                sender.end = None
                conn = await open_session(config, None, sender, limits=SessionLimits(tick_s=0.05), ehlo_name="me.test")
                if not sender.done.is_set():
                    await sender.closed_or_done()
            conn.abort("done")
            records = [json.loads(line) for line in server.ledger.read().splitlines()]
        taken = [record["rcpts"][0].partition("@")[0] for record in records if record["outcome"].startswith("accepted")]
        assert len(taken) == len(set(taken))
        for name, result in sender.results.items():
            if isinstance(result, Accepted):
                assert name in taken, result
            elif not isinstance(result, InDoubt):
                assert name not in taken, result
        kinds = {type(result).__name__ for result in sender.results.values()}
        assert kinds == {"Accepted", "Refused", "NotBegun", "InDoubt"}
        doubts = {name for name, result in sender.results.items() if isinstance(result, InDoubt)}
        assert {record["outcome"] for record in records} == {"accepted", "accepted_dropped"}
        assert {r["rcpts"][0].partition("@")[0] for r in records if r["outcome"] == "accepted_dropped"} <= doubts

    run(main())


def test_an_outage_resets_and_refuses(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        sender = Sender([])
        async with PracticeServer(tmp_path / "ledger.ndjson") as server:
            config = Provider(name="practice", host="127.0.0.1", port=server.ports["primary"], tls="none")
            await open_session(config, None, sender, limits=SessionLimits(), ehlo_name="me.test")
            await server.add_fault({"action": "reply", "phase": "connect", "code": 421})
            with pytest.raises(ProviderRefused):
                await open_session(config, None, Sender([]), limits=SessionLimits(), ehlo_name="me.test")
            await server.add_fault({"action": "refuse"})
            await sender.is_closed.wait()

    run(main())
