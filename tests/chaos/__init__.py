"""Faults on real Kafka: `make chaos`, `make soak`, `make compare`."""
