"""`python -m tests.simulation --seeds 1-200 [--without RULE] [--json]`, or `--seed 7 --trace`. Exit 1: one broke."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from postlane.core.rules import rules_without
from tests.simulation.world import Result, simulate

HASH_SEED = "0"


def main() -> int:
    """Runs the seeds in order and stops at the first that breaks an invariant."""
    options = _options()
    began, lives, mails = time.perf_counter(), 0, 0
    rules = rules_without(options.without.split(","))
    for seed in options.seeds:
        result = simulate(seed, rules)
        lives, mails = lives + result.lives, mails + result.mails
        if options.trace:
            print("\n".join(result.history.lines))
        if options.digest:
            print(seed, result.history.digest())
        if result.broken is not None and options.survey:
            print(f"{seed}: {result.broken}"[:250])
        elif result.broken is not None:
            _explain(result, options)
            return 1
    took = time.perf_counter() - began
    count = len(options.seeds)
    if options.json:
        summary = {"seeds": count, "held": count, "mails": mails, "lives": lives, "seconds": round(took, 2)}
        print(json.dumps(summary))
    else:
        print(f"{count} seeds held: {mails} deliveries, {lives} lives of processes, {count / took:.1f} seeds/s")
    return 0


def _explain(result: Result, options: argparse.Namespace) -> None:
    broken = result.broken
    assert broken is not None
    if options.json:
        print(json.dumps({"seed": result.seed, "oracle": broken.oracle, "text": broken.text, "about": broken.about}))
        return
    if not options.trace:
        print("\n".join(result.history.story(broken.about) if broken.about else result.history.lines[-60:]))
    print(f"seed {result.seed} is broken: {broken}")
    print(f"again, whole: python -m tests.simulation --seed {result.seed} --trace")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="1-100", help="FIRST-LAST")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="print the whole history")
    parser.add_argument("--digest", action="store_true", help="print the digest of each history")
    parser.add_argument("--without", default="", help="rules to switch off, comma-separated")
    parser.add_argument("--survey", action="store_true", help="go on after a broken seed, one line each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    options.seeds = [options.seed] if options.seed is not None else range(int(first), int(last or first) + 1)
    return options


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:  # sets of strings have an order of their own in every process
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": HASH_SEED},
        )
    sys.exit(main())
