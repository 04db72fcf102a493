"""`python -m observability`: write every generated file anew; `--check` says which would change and ends with 1."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from observability import dashboards, rules

HERE = Path(__file__).parent


def generated() -> dict[Path, str]:
    """Every generated file, by path."""
    files = {HERE / "prometheus" / "rules.yml": rules.text()}
    for board in dashboards.BOARDS:
        files[HERE / "grafana" / "dashboards" / f"{board.uid}.json"] = dashboards.text(board)
    return files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m observability", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    stale = []
    for path, text in generated().items():
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        stale.append(path)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    for path in stale:
        print(f"{'is not what is generated' if check else 'written'}: {path.relative_to(HERE.parent)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
