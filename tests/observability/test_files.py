"""The files that Prometheus, Alertmanager, Grafana and the collector read: generated ones as generated, and every name
in them one that exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from observability.__main__ import HERE, generated
from prometheus_client import CollectorRegistry

from observability import slos
from postlane.core.policy import Config
from postlane.ops.backup import textfile
from postlane.service import PORTS
from postlane.telemetry.metrics import _WAIT_S, Metrics
from postlane_health.measures import Measures as Health
from tests.observability.names import FOREIGN, named, queries, rules, series_of, used

ROOT = HERE.parent
AMTOOL, PROMTOOL = shutil.which("amtool"), shutil.which("promtool")
CHILD = re.compile(r"(?<!^)(?=[A-Z])")


@pytest.mark.parametrize("path", sorted(generated()), ids=lambda path: path.name)
def test_a_generated_file_is_what_is_generated(path: Path) -> None:
    assert path.read_text("utf-8") == generated()[path], "run `python -m observability`"


def test_no_dashboard_is_left_over() -> None:
    assert set((HERE / "grafana" / "dashboards").iterdir()) <= generated().keys()


def exposed(tmp_path: Path) -> set[str]:
    """What the services' registries expose, without Kafka: what is asked for at the start, as `service.run` does."""
    names = set(FOREIGN)
    for service in ("router", "sender", "ledger", "producer"):
        metrics = Metrics(service)
        metrics.watch(lambda: None, tmp_path)
        assert metrics.kafka
        names |= series_of(metrics.registry.collect())
    registry = CollectorRegistry()
    Health(registry)
    names |= series_of(registry.collect())
    # process_* are Linux's; the textfile is what `postlane backup --textfile` writes.
    return names | {"process_start_time_seconds", textfile.LAST_SUCCESS}


def test_every_metric_that_rules_and_dashboards_name_exists(tmp_path: Path) -> None:
    there = exposed(tmp_path)
    assert {name: sorted(places) for name, places in used().items() if name not in there} == {}


def test_a_name_that_does_not_exist_is_found(tmp_path: Path) -> None:
    expr = 'sum by (lane) (rate(postlane_sender_mistyped_total{lane="bulk"}[5m])) > 2 and up == 1'
    assert named(expr) == {"postlane_sender_mistyped_total", "up"}
    assert "postlane_sender_mistyped_total" not in exposed(tmp_path)


def test_scalers_name_metrics_that_exist(tmp_path: Path) -> None:
    text = (ROOT / "k8s" / "components" / "keda" / "scaled-objects.yaml").read_text("utf-8")
    names = set(re.findall(r"postlane_[a-z_]+", text))
    assert names <= exposed(tmp_path)


def test_foreign_metrics_say_what_they_need() -> None:
    for rule in rules():
        if any(name.startswith(("node_", textfile.LAST_SUCCESS)) for name in named(rule["expr"])):
            assert rule["annotations"]["needs"], rule["alert"]


def test_every_alert_has_a_runbook_and_says_what_it_is() -> None:
    for rule in (rule for rule in rules() if "alert" in rule):
        annotations = rule["annotations"]
        assert annotations["runbook"] == f"docs/runbooks/{CHILD.sub('-', rule['alert']).lower()}.md"
        assert (ROOT / annotations["runbook"]).is_file()
        assert annotations["summary"]
        assert annotations["description"]
        assert rule["labels"]["severity"] in ("page", "ticket", "none")


def test_what_is_promised_within_is_a_bucket() -> None:
    within = [promise.within_s for slo in slos.read() for promise in slo.lanes.values() if promise.within_s]
    assert within
    assert set(within) <= set(_WAIT_S)


def test_the_lanes_of_the_slos_are_those_of_the_default() -> None:
    assert {lane for slo in slos.read() for lane in slo.lanes} <= {"transactional", "bulk"}


def test_an_unknown_key_of_the_slos_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "slos.yaml"
    file.write_text(slos.FILE.read_text("utf-8").replace("min_events: 50}", "min_event: 50}", 1))
    with pytest.raises(ValueError, match="min_event"):
        slos.read(file)


def test_dashboards_have_queries() -> None:
    found = list(queries())
    assert len(found) > 30
    assert all(expr.strip() for _, expr in found)


def test_prometheus_scrapes_every_service_at_its_port() -> None:
    jobs = prometheus()["scrape_configs"]
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in jobs}
    assert ports.pop("node") == 9100
    assert ports.pop("postlane-gateway") == PORTS["producer"]
    assert ports == {f"postlane-{name}": PORTS[name] for name in ("router", "sender", "ledger", "health")}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    for job in jobs:
        names = [name for name in job["dns_sd_configs"][0]["names"] if name != "node-exporter"]
        assert set(names) <= services.keys()


def prometheus() -> dict[str, Any]:
    return dict(yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text("utf-8")))


def alertmanager() -> dict[str, Any]:
    return dict(yaml.safe_load((HERE / "alertmanager" / "alertmanager.yml").read_text("utf-8")))


def test_alerts_leave_by_a_way_that_is_not_postlane() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    ours = set(services["services"])
    for source in (services["configs"]["postlane"]["content"], (ROOT / "k8s/base/config/postlane.yaml").read_text()):
        ours |= {provider.host for provider in Config.model_validate(yaml.safe_load(source)).providers.values()}
    smarthost = alertmanager()["global"]["smtp_smarthost"].partition(":")[0]
    urls = [hook["url"] for receiver in alertmanager()["receivers"] for hook in receiver.get("webhook_configs", ())]
    assert urls
    assert not {smarthost, *(url.split("/")[2].partition(":")[0] for url in urls)} & ours


def test_no_secret_is_in_the_alertmanagers_file() -> None:
    assert "smtp_auth_password" not in alertmanager()["global"]
    assert alertmanager()["global"]["smtp_auth_password_file"].startswith("/")


@pytest.mark.skipif(AMTOOL is None, reason="amtool is not installed (Debian: apt install prometheus-alertmanager)")
def test_amtool_takes_the_alertmanagers_file() -> None:
    run([str(AMTOOL), "check-config", str(HERE / "alertmanager" / "alertmanager.yml")])


@pytest.mark.skipif(AMTOOL is None, reason="amtool is not installed (Debian: apt install prometheus-alertmanager)")
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=ProviderDown", "severity=page", "provider=primary"), "page"),
        (("alertname=LedgerBehind", "severity=ticket"), "ticket"),
        (("alertname=Watchdog", "severity=none"), "heartbeat"),
    ],
)
def test_an_alert_reaches_its_receiver(labels: tuple[str, ...], receiver: str) -> None:
    file = str(HERE / "alertmanager" / "alertmanager.yml")
    assert run([str(AMTOOL), "config", "routes", "test", f"--config.file={file}", *labels]).strip() == receiver


def test_a_page_goes_two_ways() -> None:
    page = next(receiver for receiver in alertmanager()["receivers"] if receiver["name"] == "page")
    assert page["webhook_configs"]
    assert page["email_configs"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)")
def test_promtool_takes_prometheus_files() -> None:
    run([str(PROMTOOL), "check", "config", str(HERE / "prometheus" / "prometheus.yml")])


def test_in_kubernetes_the_jobs_have_the_same_names() -> None:
    """Debian's promtool is built without Kubernetes discovery, so this file is held to the manifests instead."""
    (job,) = yaml.safe_load((HERE / "prometheus" / "kubernetes.yml").read_text("utf-8"))["scrape_configs"]
    rename = next(rule for rule in job["relabel_configs"] if rule.get("target_label") == "job")
    apps = set()
    for path in (ROOT / "k8s" / "base").rglob("*.yaml"):
        apps |= set(re.findall(r"app.kubernetes.io/name: ([a-z-]+)", path.read_text("utf-8")))
    made = {match.expand(r"postlane-\1") for app in apps if (match := re.fullmatch(rename["regex"], app))}
    assert made == {f"postlane-{name}" for name in ("router", "sender", "ledger", "health", "gateway")}


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_collectors_pipelines_use_what_is_declared() -> None:
    config = yaml.safe_load((HERE / "collector" / "config.yaml").read_text("utf-8"))
    for pipeline in config["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= config[part].keys()
    assert set(config["service"]["extensions"]) == config["extensions"].keys()


def test_the_docs_name_metrics_that_exist(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "observability.md").read_text("utf-8")
    there = exposed(tmp_path) | {"postlane_build_info", "postlane_health", "postlane_kafka_"}
    bases = {re.sub(r"_(bucket|count|sum)$", "", name) for name in there} | there
    for row in (line for line in text.splitlines() if line.startswith("|")):
        prefix = re.search(r"`(postlane_(?:router|sender|ledger|kafka))_", row)
        for name in re.findall(r"`(_?[a-z_]+)`", row):
            if prefix is not None and name.startswith("_"):
                assert prefix[1] + name in bases, name
            elif name.startswith("postlane_"):
                assert name in bases, name
