"""`make bench`: runs the benchmarks in turn; writes bench/results.json and from it docs/benchmarks.md.

    python -m bench [books] [router] [ledger] [others] [latency] [takeover] [kill] [backlog] [telemetry]
                    [gateway] [scale] [--mails N]

Without names: all of them. Ratios are measured side by side in one run; absolute figures depend on the machine, that is
named beside them with the load that it had, so run it on a quiet one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import books, gateway, ledger, recovery, router, sender, telemetry
from postlane.local.kafka import KafkaCluster

HERE = Path(__file__).parent
BOUNDS = HERE / "bounds.md"  # what bounds the figures, by hand
WARM_UP_MAILS = 100_000
RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "benchmarks.md"
Rows = list[dict[str, Any]]


def _books(bootstrap: str, folder: Path, mails: int) -> Rows:
    figures = asyncio.run(books.run(bootstrap, mails))
    detail = f"{figures['cpu_us']:.0f} µs CPU a mail, {books.PLACES} places, 1 KB mails"
    return [sender.row("the books alone (SMTP an instant yes)", figures["per_s"], "mails/s", 30_000, detail=detail)]


def _router(bootstrap: str, folder: Path, mails: int) -> Rows:
    figures = router.run(mails)
    return [sender.row("router with dedup on", figures["requests_per_s"], "requests/s", 20_000, detail=str(figures))]


RUNS: dict[str, Callable[[str, Path, int], Rows]] = {
    "books": _books,
    "router": _router,
    "ledger": lambda _, __, mails: ledger.run(mails),
    "others": lambda bootstrap, folder, mails: sender.beside_others(bootstrap, folder, min(mails, 20_000)),
    "backlog": lambda bootstrap, folder, _: sender.backlog(bootstrap, folder),
    "latency": lambda bootstrap, folder, _: recovery.latency(bootstrap, folder),
    "takeover": lambda bootstrap, folder, _: recovery.takeover(bootstrap, folder),
    "kill": lambda bootstrap, folder, _: recovery.kill(bootstrap, folder),
    "telemetry": lambda bootstrap, folder, mails: telemetry.cost(bootstrap, folder, min(mails, 20_000)),
    "gateway": lambda bootstrap, folder, mails: gateway.run(bootstrap, folder, min(mails, 20_000)),
    "scale": lambda bootstrap, folder, _: sender.scale(bootstrap, folder),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which; all by default")
    parser.add_argument("--mails", type=int, default=60_000)
    chosen = parser.parse_args()
    kept: dict[str, dict[str, Any]] = {}
    if RESULTS.exists():
        kept = {row["name"]: row for row in json.loads(RESULTS.read_text())["rows"]}
    for name in chosen.names or RUNS:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            kafka = KafkaCluster(Path(folder) / "kafka", brokers=1, port=0, tied=True)
            kafka.start()
            asyncio.run(books.run(kafka.bootstrap_servers, WARM_UP_MAILS))  # a broker that has just started is slow
            load = os.getloadavg()[0]
            try:
                for row in RUNS[name](kafka.bootstrap_servers, Path(folder), chosen.mails):
                    row["load_before"] = round(load, 1)
                    kept[row["name"]] = row
                    print(json.dumps(row), flush=True)
            finally:
                kafka.stop(grace_s=5.0)
        _write(list(kept.values()))


def _write(rows: Rows) -> None:
    about = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
    }
    RESULTS.write_text(json.dumps({**about, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` from bench/results.json. {about['machine']}; the broker runs on the same cores.",
        "`load` is the load average just before: figures taken beside other work say little about a quiet machine.",
        "",
        "| what | value | unit | bar | holds | load |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        holds = {True: "yes", False: "**no**", None: ""}[row["holds"]]
        cells = (row["name"], f"{row['value']:,}", row["unit"], row["bar"] or "", holds, row.get("load_before", ""))
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    PAGE.write_text("\n".join(lines) + "\n" + "\n" + BOUNDS.read_text())


if __name__ == "__main__":
    main()
