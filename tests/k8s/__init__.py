"""The Kubernetes manifests on a real control plane: `make k8s-test`. Its short form is tests/unit/test_k8s_*.py."""
