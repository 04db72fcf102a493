"""Building a release: sdist, wheel and SBOM, reproducible, their contents checked (`make dist`)."""
