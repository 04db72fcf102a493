"""`make demo`: a campaign and some single mails, a killed sender, a provider that goes away, and books that agree.

1. Kafka, router, two senders, ledger and the practice SMTP server (the witness, as two providers) come up.
2. A template and a suppression list are put; a list is imported, and a folder of .eml files is sent.
3. Meanwhile a sender dies by SIGKILL and comes back; the primary provider goes away and comes back.
4. When everything is settled, the books are compared with the witness, id by id.
5. Dead letters: their cause is cleared, they are replayed; what is uncertain is settled by asking the witness.
6. The books are compared again. Exit code 0 only if they agreed both times and nothing is left open.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from demo.books import Books, read_books, read_ledger
from demo.people import Expected, write_list
from demo.sending import POLICY, misbehave, put_tables, send_all, wait_until
from demo.system import DemoFailed, System, running
from demo.telling import Told
from postlane.core.identity import message_id_from_key
from postlane.core.lifecycle import OPEN
from postlane.local.errors import LocalError

PROBLEMS_SHOWN_MAX = 20
LETTERS_SHOWN_MAX = 8
AT_ONCE = 3  # commands that run at the same time


def main() -> int:
    """The exit code: 0 when the books agreed and all is settled."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="The main job of Postlane on real input.")
    parser.add_argument("--recipients", type=int, default=2000, metavar="N", help="rows of the list (2000)")
    parser.add_argument("--rate", type=int, default=100, metavar="N", help="rows published a second (100)")
    parser.add_argument(
        "--data-dir", type=Path, default=Path(".postlane-demo"), metavar="D", help="made anew each time"
    )
    options = parser.parse_args()
    if options.recipients < 100 or options.rate < 1:
        parser.error("--recipients of at least 100 and a --rate of at least 1 are expected")
    told = Told()
    try:
        return _demo(options.data_dir.absolute(), options.recipients, options.rate, told)
    except (DemoFailed, LocalError) as error:
        told.say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        told.say("interrupted; everything that was started is stopped")
        return 130


def _demo(folder: Path, recipients: int, rate: int, told: Told) -> int:
    told.say("starting Kafka, a router, two senders, a ledger and the practice SMTP server")
    with running(folder, senders=2) as system:
        told.say(f"all are ready; everything is in {folder}")
        expected = write_list(folder / "input", recipients)
        misbehave(system)
        put_tables(system, folder / "input", told)
        asked_for = send_all(system, folder / "input", rate, expected, told)
        told.say("waiting until every mail is settled")
        _until_settled(system, asked_for)
        books = _books(system, asked_for)
        wrong = _compare(books, told)
        _settle_dead_letters(system, told)
        _settle_uncertain(system, books, told)
        _until_settled(system, asked_for)
        books = _books(system, asked_for)
        wrong += _compare(books, told) + _left_over(books, expected, told)
        _tell_a_story(system, books, told)
        told.say("stopping everything")
    told.say("the books agree id by id, and all is settled" if not wrong else f"{wrong} PROBLEMS: see above")
    return 1 if wrong else 0


# -------------------------------------------------------------------------------------------------------- the books


def _until_settled(system: System, asked_for: set[str]) -> None:
    """Every message that was asked for has its deliveries, and none of them is on its way."""

    def settled() -> bool:
        mails, rows = read_ledger(system.database)
        newest = {ident: mail["generations"] for ident, mail in mails.items()}
        begun = Counter(row["message_id"] for row in rows.values() if row["generation"] == 0)
        requested = {(row["message_id"], row["generation"]) for row in rows.values()}
        return (
            all(ident in mails and begun[ident] == mails[ident]["recipients"] for ident in asked_for)
            and all((ident, generation) in requested for ident, generation in newest.items())
            and all(
                row["replayed_as"] is None or (row["message_id"], row["replayed_as"]) in requested
                for row in rows.values()
            )
            and not any(row["state"] in OPEN for row in rows.values())
        )

    wait_until(settled, f"all is settled (logs: {system.stack.data_dir / 'logs'})")


def _books(system: System, asked_for: set[str]) -> Books:
    return read_books(system.bootstrap_servers, system.database, system.witness, asked_for)


def _compare(books: Books, told: Told) -> int:
    """Print the books side by side; how many disagreements there are."""
    told.say(f"the books of {len(books.asked_for)} accepted mails, {len(books.topics)} deliveries")
    told.table(("state", "topics", "ledger", "copies at the witness", "replayed since"), books.table())
    doubts = sum(row["doubts"] for row in books.topics.values())
    told.show(f"repeated {books.repeated}   doubts recorded {doubts}")
    problems = books.problems()
    for problem in problems[:PROBLEMS_SHOWN_MAX]:
        told.say(f"PROBLEM  {problem}")
    told.say(f"compared per id: {len(problems)} disagreements")
    return len(problems)


def _tell_a_story(system: System, books: Books, told: Told) -> None:
    """The mail to which the most has happened."""
    happened: Counter[str] = Counter()
    for ident, count in books.happened.items():
        happened[books.topics[ident]["message_id"]] += count
    message = max(happened, key=lambda ident: (happened[ident], ident))
    told.say(f"postlane status {message}")
    told.show(system.command("status", message))


# ------------------------------------------------------------------------------------------------------ what is left


def _settle_dead_letters(system: System, told: Told) -> None:
    told.say("postlane dead-letters list --status open")
    told.show(system.command("dead-letters", "list", "--status", "open"), LETTERS_SHOWN_MAX)
    told.say("the cause of the policy refusals is cleared at the providers")
    system.witness.remove_fault(POLICY)
    told.say(f"postlane dead-letters replay --reason {POLICY} --yes")
    told.show(system.command("dead-letters", "replay", "--reason", POLICY, "--yes"))


def _settle_uncertain(system: System, books: Books, told: Told) -> None:
    """Parked mails are the ones of which nobody knew; the witness does. A person would ask the provider."""
    uncertain = books.in_state("uncertain")
    arrived = [ident for ident in uncertain if ident in books.witness]
    lost = [ident for ident in uncertain if ident not in books.witness]
    told.say(f"{len(uncertain)} parked as uncertain; the witness has {len(arrived)} of them: resolved as delivered")
    for first in range(0, len(arrived), AT_ONCE):
        said = ("--as", "delivered", "--note", "the witness has it")
        for child in [system.begin("dead-letters", "resolve", i, *said) for i in arrived[first : first + AT_ONCE]]:
            system.finish(child)
    if lost:
        told.say(f"it never saw the other {len(lost)}: postlane dead-letters replay ID… --yes")
        told.show(system.command("dead-letters", "replay", *lost, "--yes"))


def _left_over(books: Books, expected: Expected, told: Told) -> int:
    """What must not be left, and what came otherwise than the list says; how many."""
    wrong = [f"{ident}: still {books.topics[ident]['state']}" for ident in books.in_state("dead_lettered", "uncertain")]
    last = {row["message_id"]: row for row in sorted(books.topics.values(), key=lambda r: int(r["generation"]))}
    wanted = [(expected.ordinary, "delivered"), (expected.blocked, "delivered")]
    wanted += [(expected.bounced, "bounced"), (expected.suppressed, "suppressed")]
    for keys, state in wanted:
        for key in keys:
            row = last.get(message_id_from_key("default", key))
            if row is None or row["state"] != state:
                wrong.append(f"{key}: expected {state}, is {row['state'] if row else 'unknown'}")
    for problem in wrong[:PROBLEMS_SHOWN_MAX]:
        told.say(f"PROBLEM  {problem}")
    return len(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
