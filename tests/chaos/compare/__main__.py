"""`make compare`: kill what people use today in the same way, and count with the same witness what came of it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from postlane.local.kafka import KafkaCluster
from tests.chaos.compare import celery_pool, postfix_relay, trial
from tests.chaos.compare.naive import NaiveConsumer
from tests.chaos.compare.postlane_sender import PostlaneSender
from tests.chaos.documents import write_results

_ROOT = Path(__file__).resolve().parents[3]
_PYTHON = _ROOT / ".venv-compare/bin/python"
Making = Callable[[str, Path], AbstractContextManager[trial.Contestant]]


def contestants() -> dict[str, tuple[Making, str | None]]:
    """By name: how each is made, and why it cannot be tried here (None: it can)."""
    venv = None if _PYTHON.exists() else f"{_PYTHON} is missing (make compare makes it)"
    celery = venv or celery_pool.missing()
    return {
        "postlane": (lambda b, f: PostlaneSender(b, f, "transactional"), None),
        "postlane-park": (lambda b, f: PostlaneSender(b, f, "bulk"), None),
        "naive": (lambda b, f: NaiveConsumer(b, f, _PYTHON), venv),
        "celery-worker": (lambda b, f: celery_pool.CeleryPool(f, _PYTHON, whole_worker=True), celery),
        "celery-pool": (lambda b, f: celery_pool.CeleryPool(f, _PYTHON, whole_worker=False), celery),
        "postfix": (lambda b, f: postfix_relay.PostfixRelay(f), postfix_relay.missing()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0 when Postlane lost nothing and repeated nothing outside its rule; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.compare", description=__doc__)
    parser.add_argument("--mails", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="which replies are dropped")
    parser.add_argument("--only", nargs="*", choices=list(contestants()), help="some of them (default: all)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/proof.md as well")
    arguments = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="postlane-compare-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postfix's daemons have a user of their own
        kafka = KafkaCluster(folder / "kafka", brokers=1, port=0, tied=True)
        kafka.start()
        try:
            for key, (make, why) in contestants().items():
                if arguments.only and key not in arguments.only:
                    continue
                if why is not None:
                    print(f"{key}: not tried: {why}", file=sys.stderr)
                    rows.append({"name": key, "not_tried": why})
                    continue
                print(f"{key} …", file=sys.stderr, flush=True)
                with make(kafka.bootstrap_servers, folder / key) as contestant:
                    outcome = trial.run(contestant, arguments.mails, arguments.kills, arguments.seed)
                rows.append({"contestant": key, **outcome.as_json()})
                print(json.dumps({k: v for k, v in rows[-1].items() if not k.endswith("_ids")}), file=sys.stderr)
        finally:
            kafka.stop(grace_s=5.0)
    document = {"mails": arguments.mails, "kills": arguments.kills, "seed": arguments.seed, "rows": rows}
    table = _table(rows)
    print(table)
    write_results("compare", document, table if arguments.write else None)
    ours = [row for row in rows if str(row.get("contestant", "")).startswith("postlane")]
    return 1 if any(row["lost"] for row in ours) else 0


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| what | killed with SIGKILL | lost | queued | for a person | repeated | copies too many | replies lost | s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if "not_tried" in row:
            lines.append(f"| {row['name']} | not tried: {row['not_tried']} | | | | | | | |")
            continue
        lines.append(
            f"| {row['name']} | {row['killed']}, {row['kills']} times | {row['lost']} "
            f"| {row['still_queued']} "
            f"| {row['uncertain']} ({row['uncertain_without_a_copy']} without a copy) | {row['repeated']} "
            f"| {row['surplus_copies']} | {row['replies_dropped']} | {row['seconds']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
