"""`python -m release [OUT]`: what `make dist` runs. Exit code 1 with one sentence when something is not right."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from release.build import ROOT, BuildError, build_twice, digest, source_date_epoch
from release.contents import check_sdist, check_wheel
from release.declared import declared
from release.install import check_install
from release.sbom import write_sbom


def main() -> int:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    epoch = source_date_epoch()
    try:
        built = build_twice(out, epoch)
        for path in built:
            (check_wheel if path.suffix == ".whl" else check_sdist)(path)
        wheel = next(path for path in built if path.suffix == ".whl")
        sbom = out / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
        write_sbom(sbom, epoch)
        again = out / "again.json"
        write_sbom(again, epoch)
        if digest(again) != digest(sbom):
            raise BuildError(f"{sbom.name} is not reproducible")
        again.unlink()
        said = check_install(wheel)
        (out / "declared.json").write_text(json.dumps(declared(), indent=1, sort_keys=True) + "\n")
    except BuildError as error:
        print(f"dist: {error}", file=sys.stderr)
        return 1
    sums = "".join(f"{digest(path)}  {path.name}\n" for path in sorted(out.iterdir()))
    (out / "SHA256SUMS").write_text(sums)
    print(sums, end="")
    print(f"built twice with the same bytes (SOURCE_DATE_EPOCH={epoch}), contents checked, installed: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
