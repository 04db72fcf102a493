"""`make scale-test`: senders under load, 1 to 8 to 2; what membership costs; what a scaler should go by.

    python -m tests.scaling [scale] [membership] [signal] [--pods N]

One JSON line a figure on stdout; ends with 1 when something was lost, repeated or left uncertain.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from postlane.local.kafka import KafkaCluster
from tests.scaling import membership, scale, signal_of_work

PARTS = {"scale": scale.run, "membership": membership.run, "signal": signal_of_work.run}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="which; all by default")
    parser.add_argument("--pods", type=int, default=8, help="the most senders at a time")
    asked = parser.parse_args()
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    failed = False
    with tempfile.TemporaryDirectory(prefix="postlane-scaling-") as folder:
        kafka = KafkaCluster(Path(folder) / "kafka", brokers=1, port=0, tied=True)
        kafka.start()
        try:
            for part in asked.parts or PARTS:
                try:
                    for figure in PARTS[part](kafka.bootstrap_servers, Path(folder) / part, asked.pods):
                        print(json.dumps({"part": part, **figure}), flush=True)
                except AssertionError as error:
                    failed = True
                    print(f"{part}: FAILED: {error}", file=sys.stderr, flush=True)
        finally:
            kafka.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
