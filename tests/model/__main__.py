"""Run the models: `python -m tests.model [--long] [--only TEXT] [--trace] [--list] [--write docs/model.md]`.

Exit 0: every case came out as it must. Exit 1: a design broke or was not exhausted, or a switched-off rule was not
caught. Progress goes to stdout, one line a case.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .all_cases import CASES
from .cases import Case
from .explorer import Result, explore
from .report import Row, write


def _line(case: Case, result: Result, good: bool) -> str:
    wanted = "must break" if case.expected == "breaks" else "must hold"
    mark = "ok  " if good else "FAIL"
    return (
        f"{mark} {case.name:58} {result.states:>9,} states {result.transitions:>10,} transitions "
        f"{result.seconds:>6.1f} s  {wanted}: {result.verdict}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Explore the models of the protocols.")
    parser.add_argument("--long", action="store_true", help="also the deep configurations (minutes, gigabytes)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--trace", action="store_true", help="print the steps to each broken property")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--states-max", type=int, default=8_000_000, help="give a case up beyond this many states")
    parser.add_argument("--seconds-max", type=float, default=900.0, help="give a case up after this long")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables of this run into PAGE")
    options = parser.parse_args(arguments)
    chosen = [c for c in CASES if options.only in c.name and (options.long or c.size == "short")]
    wrong = 0
    rows: list[Row] = []
    for case in chosen:
        if options.list:
            print(f"{case.size:5} {case.expected:6} {case.name}: {case.about}")
            continue
        result = explore(case.build(), options.states_max, options.seconds_max, may_finish=case.size == "short")
        good = case.as_expected(result)
        wrong += not good
        rows.append((case, result))
        print(_line(case, result, good), flush=True)
        if result.broken and (options.trace or not good):
            for number, label in enumerate(result.trace, 1):
                print(f"      {number:3}. {label}")
    if options.write and rows:
        write(options.write, rows)
    if not options.list:
        print(f"{len(chosen)} cases, {wrong} not as they must be")
    return 1 if wrong or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
