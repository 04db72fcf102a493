"""`make chaos SEED=… FAULTS='…'` and `make soak MINUTES=…`.

    python -m tests.chaos --seed 1 --faults all            every fault alone, then mixed
    python -m tests.chaos --seed 7 --faults kill-sender mixed
    python -m tests.chaos --soak-minutes 30
    python -m tests.chaos --list

Exit code 0: every fault was injected and every promise kept; 1: not; 2: used wrongly.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from postlane import Publisher
from postlane.ops.drill.load import Load
from tests.chaos import (  # noqa: F401
    faults_inputs,
    faults_kernel,
    faults_network,
    faults_processes,
    faults_providers,
    faults_storage,
    isolation,
    report,
    soak,
)
from tests.chaos.documents import kept_rows, write_results
from tests.chaos.nemesis import Nemesis, Row
from tests.chaos.oracle import Oracle
from tests.chaos.registry import FAULTS, NOT_INJECTED
from tests.chaos.town import LANES, Town

MIXED = "mixed"
_FIRST_MAIL_TIMEOUT_S = 60.0
_log = logging.getLogger("chaos")


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
    if arguments.list:
        for name, fault in FAULTS.items():
            print(f"{name}: {fault.what}")
        return 0
    wanted = _wanted(arguments.faults)
    isolation.enter("tests.chaos", given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("postlane").setLevel(logging.ERROR)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # where it is, when it seems to stand still
    if (why := isolation.why_not()) is not None and not isolation.inside():
        print(f"chaos: without namespaces: {why}", file=sys.stderr)
    if arguments.soak_minutes is not None:
        return _soak(arguments)
    return _chaos(arguments, wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", nargs="*", default=["all"], metavar="FAULT", help="names, `mixed`, or `all`")
    parser.add_argument("--rate", type=float, default=10.0, help="mails a second")
    parser.add_argument("--mixed-seconds", type=float, default=90.0)
    parser.add_argument("--soak-minutes", type=float)
    parser.add_argument("--keep", type=Path, help="a folder for logs and data, kept afterwards")
    parser.add_argument("--write", action="store_true", help="put the table into docs/proof.md as well")
    parser.add_argument("--list", action="store_true", help="what there is")
    return parser


def _wanted(names: Sequence[str]) -> list[str]:
    if list(names) == ["all"]:
        return [*FAULTS, MIXED]
    for name in names:
        if name not in FAULTS and name != MIXED:
            raise SystemExit(f"chaos: there is no fault {name!r}; --list says which there are")
    return list(names)


@contextlib.contextmanager
def _running(folder: Path, seed: int, rate: float) -> Iterator[Nemesis]:
    """A town under load."""
    with Town(folder, seed) as town:
        oracle = Oracle(town)
        publisher = Publisher(town.bootstrap, topic_prefix=town.names.prefix, timeout_s=10)
        load = Load(publisher, rate, name=f"chaos-{seed}", lanes=LANES, seed=seed)
        load.start()
        try:
            deadline = time.monotonic() + _FIRST_MAIL_TIMEOUT_S
            while not (oracle.catch_up() and oracle.times):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no mail was delivered within {_FIRST_MAIL_TIMEOUT_S:.0f} s")
                time.sleep(0.5)
            yield Nemesis(town, load, oracle)
        finally:
            with contextlib.suppress(Exception):
                load.stop(15.0)
                publisher.close(5.0)
            oracle.close()


def _chaos(arguments: argparse.Namespace, wanted: Sequence[str]) -> int:
    rows: list[Row] = []
    began = time.time()
    with _folder(arguments.keep) as folder:
        left = list(wanted)
        while left:
            # A town in which a promise was broken may stay broken: the next fault gets a new one.
            with _running(folder / f"town-{len(rows)}", arguments.seed, arguments.rate) as nemesis:
                while left and (nemesis.fresh or not rows[-1].broken):
                    rows.append(_one(nemesis, left.pop(0), arguments))
                    _record(rows, began, arguments)
                nemesis.end(rows[-1])
    _record(rows, began, arguments)
    print(report.table([row.as_json() for row in rows]))
    for name, why in NOT_INJECTED.items():
        print(f"not injected: {name}: {why}")
    for line in report.broken(rows):
        print(f"BROKEN {line}")
    return 0 if all(row.good for row in rows) else 1


def _record(rows: Sequence[Row], began: float, arguments: argparse.Namespace) -> None:
    """After each fault, so that a run that is ended early has said something; other faults' older rows are kept."""
    known = {row.fault: row.as_json() for row in rows}
    known |= {row["fault"]: row for row in kept_rows("chaos", known)}
    ordered = [known[name] for name in (*FAULTS, MIXED) if name in known]
    document = report.document(ordered, time.time() - began, arguments.rate)
    write_results("chaos", document, report.table(ordered) if arguments.write else None)


def _one(nemesis: Nemesis, name: str, arguments: argparse.Namespace) -> Row:
    nemesis.fresh = False
    if name == MIXED:
        usable = [fault for fault in FAULTS.values() if fault.why_not() is None]
        row = nemesis.mixed(usable, arguments.seed, arguments.mixed_seconds)
    else:
        fault = FAULTS[name]
        if (why := fault.why_not()) is not None:
            return Row(name, fault.what, arguments.seed, not_injected=why)
        row = nemesis.alone(fault, arguments.seed)
    said = {k: v for k, v in row.as_json().items() if v not in ([], "", {}) and k not in ("what", "seed")}
    print(json.dumps(said, default=str)[:3000], file=sys.stderr, flush=True)
    return row


def _soak(arguments: argparse.Namespace) -> int:
    rows: list[Row] = []
    began = time.time()
    ends = began + arguments.soak_minutes * 60
    with _folder(arguments.keep) as folder, _running(folder / "town", arguments.seed, arguments.rate) as nemesis:
        sampler = soak.Sampler(nemesis.town)
        sampler.start()
        usable = [fault for fault in FAULTS.values() if fault.why_not() is None]
        turn = 0
        while time.time() < ends and all(row.good for row in rows):
            left_s = ends - time.time()
            rows.append(nemesis.mixed(usable, arguments.seed * 1000 + turn, min(arguments.mixed_seconds, left_s)))
            turn += 1
            print(json.dumps(rows[-1].as_json(), default=str)[:2000], file=sys.stderr, flush=True)
        nemesis.end(rows[-1])
        sampler.stop()
        verdict = soak.verdict(sampler)
        done = [row.as_json() for row in rows]
        document = report.document(done, time.time() - began, arguments.rate) | soak.document(sampler, verdict)
    text = f"{report.table(done)}\n\n{soak.table(verdict)}"
    print(text)
    for line in report.broken(rows):
        print(f"BROKEN {line}")
    write_results("soak", document, text if arguments.write else None)
    return 0 if document["good"] and not any(row["flat"] is False for row in verdict) else 1


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise SystemExit(f"chaos: {keep} is not empty: what an earlier run kept would be taken for this one's")
        yield keep.absolute()
        return
    base = os.environ.get("TMPDIR", tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="postlane-chaos-", dir=base, ignore_cleanup_errors=True) as name:
        yield Path(name)


if __name__ == "__main__":
    raise SystemExit(main())
