"""The Kubernetes manifests, without a cluster: valid, restricted, and in step with the code and docker-compose.yml."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry
from tests.k8s.pod_security import violations
from tests.k8s.render import OVERLAYS, ROOT, Doc, moved, named, overlay, pod_specs, pod_template, production_with
from tests.scaling.pods import GRACE_S

from postlane.cli.main import main
from postlane.config import Environment, read_config, read_environment
from postlane.core.policy import Bounces
from postlane.eventlog.kafka_config import SESSION_TIMEOUT_MS, check_options
from postlane.eventlog.topics import TopicNames
from postlane.local.broker_config import OFFSETS_RETENTION_MINUTES
from postlane.ops import kubernetes
from postlane.ops.topics import declared
from postlane.service import EXIT_TIMEOUT_S, PORTS, STOP_TIMEOUT_S
from postlane.telemetry.metrics import SenderMetrics
from postlane_producer.config import read_settings

K8S_VERSIONS = ("1.33", "1.36")
KEDA = "github.com/kedacore/keda/v2@v2.20.2"
OF_OPERATORS = ("kafka.strimzi.io", "keda.sh")
SERVICES = {"router": "router", "sender": "sender", "ledger": "ledger", "health": "health", "gateway": "producer"}
CONFIG = ROOT / "k8s" / "overlays"
NAMES = TopicNames()


@cache
def docs(name: str) -> list[Doc]:
    return overlay(name)


@cache
def specs(name: str) -> dict[str, Doc]:
    return dict(pod_specs(docs(name)))


def postlane_pods(name: str) -> dict[str, Doc]:
    """The pods that run this project's image."""
    return {who: spec for who, spec in specs(name).items() if "postlane" in spec["containers"][0]["image"]}


def environment(name: str, spec: Doc) -> dict[str, str]:
    """The variables of a pod's container, as far as the manifests know them."""
    container = spec["containers"][0]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= named(docs(name), "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {e["name"]: e.get("value", "from-the-pod") for e in container.get("env", ())}


# -------------------------------------------------------------------------------------------------------------- valid


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("version", K8S_VERSIONS)
def test_every_object_has_the_form_that_kubernetes_knows(name: str, version: str) -> None:
    checked = 0
    for doc in docs(name):
        if not doc["apiVersion"].startswith(OF_OPERATORS):
            kubernetes_validate.validate(doc, version, strict=True)
            checked += 1
    assert checked >= 25


def test_the_validation_refuses_an_unknown_field() -> None:
    doc = moved([named(docs("dev"), "StatefulSet", "router")], "x")[0]
    doc["spec"]["template"]["spec"]["terminationGracePeriod"] = 75
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(doc, K8S_VERSIONS[-1], strict=True)


def test_what_keda_reads_has_the_form_of_its_own_definitions() -> None:
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        pytest.skip("Go is not installed: KEDA's definitions come with its Go module")
    got = subprocess.run([go, "mod", "download", "-json", KEDA], capture_output=True, text=True, timeout=240, cwd="/")
    if got.returncode:
        pytest.skip(f"KEDA's Go module cannot be had: {got.stdout[-200:]}{got.stderr[-200:]}")
    folder = Path(json.loads(got.stdout)["Dir"]) / "config" / "crd" / "bases"
    kinds = [doc for doc in docs("production") if doc["apiVersion"].startswith("keda.sh")]
    assert len(kinds) == 3
    for doc in kinds:
        found = yaml.safe_load((folder / f"keda.sh_{doc['kind'].lower()}s.yaml").read_text())
        schema = strict(found["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        jsonschema.validate(doc, schema)


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused wherever the fields are listed, as the API server does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(part) for key, part in schema.items()}
    listed = "properties" in schema and "additionalProperties" not in schema
    if listed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def test_topics_and_users_are_as_declared() -> None:
    config = read_config(CONFIG / "production" / "postlane.yaml")
    for name, text in kubernetes.files(NAMES, config).items():
        assert (ROOT / kubernetes.FOLDER / name).read_text() == text, "run `make k8s-manifests`"
    in_cluster = {d["spec"]["topicName"]: d["spec"] for d in docs("production") if d["kind"] == "KafkaTopic"}
    want = declared(NAMES, config, kubernetes.BROKERS)
    assert {spec.name: (spec.partitions, spec.config) for spec in want.specs} == {
        name: (spec["partitions"], spec["config"]) for name, spec in in_cluster.items()
    }
    assert {spec["replicas"] for spec in in_cluster.values()} == {3}
    assert {spec["config"]["min.insync.replicas"] for spec in in_cluster.values()} == {"2"}


def test_a_sender_of_one_lane_may_nothing_in_the_books_of_another() -> None:
    user = named(docs("production"), "KafkaUser", "postlane-sender-bulk")
    rules = {(r["resource"].get("name"), op) for r in user["spec"]["authorization"]["acls"] for op in r["operations"]}
    assert ("mail.state.bulk", "Write") in rules
    assert not [name for name, _ in rules if name and "transactional" in name]
    scaler = named(docs("production"), "KafkaUser", "postlane-scaler")["spec"]["authorization"]["acls"]
    assert {op for rule in scaler for op in rule["operations"]} == {"Describe"}


# ------------------------------------------------------------------------------------------------------------- hardened


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_is_restricted(name: str) -> None:
    assert {who: found for who, spec in specs(name).items() if (found := list(violations(spec)))} == {}
    labels = next(doc["metadata"]["labels"] for doc in docs(name) if doc["kind"] == "Namespace")
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


BREAKING: dict[str, Callable[[Doc], Any]] = {
    "root": lambda spec: spec["securityContext"].update(runAsNonRoot=False),
    "seccomp": lambda spec: spec["securityContext"].pop("seccompProfile"),
    "escalation": lambda spec: spec["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
    "capabilities": lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"),
    "privileged": lambda spec: spec["containers"][0]["securityContext"].update(privileged=True),
    "host path": lambda spec: spec["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
    "host network": lambda spec: spec.update(hostNetwork=True),
    "host port": lambda spec: spec["containers"][0]["ports"][0].update(hostPort=9101),
}


@pytest.mark.parametrize("broken", BREAKING)
def test_the_check_sees_what_the_admission_would_refuse(broken: str) -> None:
    (doc,) = moved([named(docs("dev"), "StatefulSet", "router")], "x")
    template = pod_template(doc)
    assert template is not None
    BREAKING[broken](template["spec"])
    assert list(violations(template["spec"]))


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_pod_has_a_token_links_or_a_writable_root(name: str) -> None:
    accounts = {d["metadata"]["name"]: d for d in docs(name) if d["kind"] == "ServiceAccount"}
    for who, spec in specs(name).items():
        assert spec["automountServiceAccountToken"] is False, who
        # A Service named postlane-kafka would set POSTLANE_KAFKA_PORT, which reads as an option of the Kafka client.
        assert spec["enableServiceLinks"] is False, who
        account = spec.get("serviceAccountName")
        assert account is None or accounts[account]["automountServiceAccountToken"] is False, who
        for container in spec["containers"]:
            if who != "StatefulSet/kafka":  # of the dev overlay: the image writes its configuration when it starts
                assert container["securityContext"]["readOnlyRootFilesystem"] is True, who
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), who
            assert "memory" in container["resources"]["limits"], who
    assert not [d for d in docs(name) if d["kind"] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")]
    assert not [d for d in docs(name) if d["kind"] == "Secret"], "secrets are made outside the manifests"


@pytest.mark.parametrize("name", OVERLAYS)
def test_secrets_are_files(name: str) -> None:
    text = json.dumps(docs(name))
    assert "secretKeyRef" not in text
    assert not re.search(r'"name": "[A-Z_]*PASSWORD"', text)


# --------------------------------------------------------------------------------------------------- in step with code


@pytest.mark.parametrize("name", OVERLAYS)
def test_services_run_and_are_probed_where_they_listen(name: str) -> None:
    seen = set()
    for who, spec in postlane_pods(name).items():
        container = spec["containers"][0]
        service = container["name"]
        if service not in SERVICES:
            continue
        seen.add(service)
        port = PORTS[SERVICES[service]]
        assert container["command"] == ["python", "-m", f"postlane_{SERVICES[service]}"], who
        assert container["ports"][0] == {"name": "http", "containerPort": port}, who
        assert len(container["ports"]) == (2 if service == "gateway" else 1), who
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}, who
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}, who
        assert container["startupProbe"]["httpGet"] == {"path": "/livez", "port": "http"}, who
        template = next(t for d in docs(name) if (t := pod_template(d)) and t["spec"] is spec)
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port), who
    assert seen == set(SERVICES)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_is_given_longer_than_its_longest_stop(name: str) -> None:
    for who, spec in postlane_pods(name).items():
        if spec["containers"][0]["name"] in SERVICES:
            assert spec["terminationGracePeriodSeconds"] == GRACE_S > STOP_TIMEOUT_S + EXIT_TIMEOUT_S + 10, who
            assert "lifecycle" not in spec["containers"][0], "a preStop hook would take from the grace"


@pytest.mark.parametrize("name", OVERLAYS)
def test_variables_are_those_that_the_services_read(name: str) -> None:
    known = {f"POSTLANE_{field.upper()}" for field in Environment.model_fields} - {"POSTLANE_KAFKA"}
    known |= {"POSTLANE_CONFIG", "POSTLANE_BACKUP_PLACE", "POSTLANE_BACKUP_KEY_FILE"}
    known |= {f"POSTLANE_GATEWAY_{field}" for field in ("LISTEN", "KEYS_FILE", "LINGER_S")}
    for who, spec in postlane_pods(name).items():
        given = environment(name, spec)
        ours = {key for key in given if key.startswith("POSTLANE_")}
        assert {key for key in ours if not key.startswith("POSTLANE_KAFKA_")} <= known, who
        if not given:
            continue  # the practice server is told by its arguments
        read = read_environment({k: v for k, v in given.items() if k != "POSTLANE_CONFIG"})
        check_options(read.kafka)
        mounts = {m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
        assert str(Path(given["POSTLANE_CONFIG"]).parent) in mounts, who
        assert str(read.data_dir) in mounts, who
        for option in ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location"):
            if option in read.kafka:
                assert str(Path(read.kafka[option]).parent) in mounts, (who, option)


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_lane_has_its_senders_and_each_sender_its_name(name: str) -> None:
    config = read_config(CONFIG / name / "postlane.yaml")
    senders = {who: spec for who, spec in postlane_pods(name).items() if spec["containers"][0]["name"] == "sender"}
    assert sorted(senders) == sorted(f"StatefulSet/sender-{lane}" for lane in config.lanes)
    for who, spec in senders.items():
        lane = who.removeprefix("StatefulSet/sender-")
        assert environment(name, spec)["POSTLANE_LANES"] == lane
        assert spec["priorityClassName"] == f"postlane-{lane}"
    for who in [*senders, "StatefulSet/router"]:
        own = specs(name)[who]["containers"][0]["env"]
        field = {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
        assert {"name": "POSTLANE_INSTANCE_ID", **field} in own, "a static member by the name of its pod"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_intent_lapses_before_a_session_does(name: str) -> None:
    config = read_config(CONFIG / name / "postlane.yaml")
    options = read_environment(
        {k: v for k, v in environment(name, specs(name)["StatefulSet/router"]).items() if k != "POSTLANE_CONFIG"}
    ).kafka
    session_s = int(options["session.timeout.ms"]) / 1000
    assert session_s >= SESSION_TIMEOUT_MS / 1000
    assert max(lane.intent_ttl_s for lane in config.lanes.values()) < session_s


def test_the_dev_overlay_is_the_system_of_docker_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    practice = specs("dev")["Deployment/practice"]["containers"][0]
    assert [str(word) for word in practice["command"]] == [str(word) for word in compose["practice"]["command"]]
    kafka = {e["name"]: e["value"] for e in specs("dev")["StatefulSet/kafka"]["containers"][0]["env"]}
    default = re.compile(r"\$\{\w+:-([^}]*)\}")
    theirs = {k: default.sub(r"\1", str(v)) for k, v in compose["kafka"]["environment"].items()}
    differ = {key for key in kafka if kafka[key] != theirs.get(key)}
    assert differ <= {"KAFKA_CONTROLLER_QUORUM_VOTERS", "KAFKA_LISTENERS", "KAFKA_ADVERTISED_LISTENERS"}
    config = read_config(CONFIG / "dev" / "postlane.yaml")
    ports = {port["name"]: port["containerPort"] for port in practice["ports"]}
    assert {name: provider.port for name, provider in config.providers.items()} == {
        name: ports[name] for name in config.providers
    }


def test_backups_are_made_by_a_command_that_there_is() -> None:
    backup = main.get_command(click.Context(main), "backup")
    assert backup is not None
    pod = specs("production")["CronJob/backup"]
    program, name, place, *options = pod["containers"][0]["command"]
    assert (program, name, place) == ("postlane", "backup", "$(POSTLANE_BACKUP_PLACE)")
    given = environment("production", pod)
    with backup.make_context("backup", [given["POSTLANE_BACKUP_PLACE"], *options]) as context:
        assert context.params["keep_days"] == 30
    variables = {p.envvar for p in backup.params}
    assert "POSTLANE_BACKUP_KEY_FILE" in variables
    mounted = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert str(Path(given["POSTLANE_BACKUP_KEY_FILE"]).parent) in mounted
    assert named(docs("dev"), "CronJob", "backup")["spec"]["suspend"] is True


def test_brokers_keep_positions_as_long_as_ours_do() -> None:
    kafka = named(docs("production"), "Kafka", "postlane")["spec"]["kafka"]["config"]
    assert kafka["offsets.retention.minutes"] >= OFFSETS_RETENTION_MINUTES
    assert (kafka["default.replication.factor"], kafka["min.insync.replicas"]) == (3, 2)
    assert kafka["auto.create.topics.enable"] is False


# ------------------------------------------------------------------------------------------------- scaling, disruption


def test_each_lane_is_scaled_by_what_its_senders_tell_and_no_further_than_its_partitions() -> None:
    config = read_config(CONFIG / "production" / "postlane.yaml")
    registry = CollectorRegistry()
    SenderMetrics(registry)
    exposed = {metric.name: metric for metric in registry.collect()}
    for lane in config.lanes:
        spec = named(docs("production"), "ScaledObject", f"sender-{lane}")["spec"]
        sender = named(docs("production"), "StatefulSet", f"sender-{lane}")
        assert "replicas" not in sender["spec"], "the autoscaler owns them"
        assert spec["maxReplicaCount"] == config.topics.partitions
        triggers = {trigger["name"]: trigger for trigger in spec["triggers"]}
        formula = spec["advanced"]["scalingModifiers"]["formula"]
        assert set(re.findall(r"[a-z]+", formula)) - {"max"} == set(triggers)
        assert re.findall(r"- (\d+)", formula) == [str(config.topics.partitions)] * 2, "a control record a partition"
        for trigger in triggers.values():
            if trigger["type"] == "prometheus":
                metric, of = re.fullmatch(r'sum\((\w+)\{lane="(\w+)"\}\)', trigger["metadata"]["query"]).groups()  # type: ignore[union-attr]
                assert of == lane
                assert metric in exposed, f"the senders expose no {metric}"
        lag = triggers["lag"]["metadata"]
        assert (lag["topic"], lag["consumerGroup"]) == (NAMES.dispatch(lane), NAMES.sender_group(lane))
        down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        options = environment("production", specs("production")[f"StatefulSet/sender-{lane}"])
        session_s = int(options["POSTLANE_KAFKA_SESSION_TIMEOUT_MS"]) / 1000
        assert all(policy["periodSeconds"] > GRACE_S + session_s for policy in down["policies"])
        assert down["stabilizationWindowSeconds"] > GRACE_S + session_s


def test_whatever_has_replicas_has_a_budget_and_spreads() -> None:
    budgets = {
        json.dumps(d["spec"]["selector"]["matchLabels"]): d
        for d in docs("production")
        if d["kind"] == "PodDisruptionBudget"
    }
    for name in ("router", "sender-transactional", "sender-bulk", "health", "gateway"):
        doc = next(d for d in docs("production") if d["metadata"]["name"] == name and pod_template(d))
        budget = budgets[json.dumps(doc["spec"]["selector"]["matchLabels"])]
        assert budget["spec"]["maxUnavailable"] == 1
        for spread in doc["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"] == doc["spec"]["selector"]["matchLabels"]
    classes = {d["metadata"]["name"]: d["value"] for d in docs("production") if d["kind"] == "PriorityClass"}
    assert {spec["priorityClassName"] for spec in specs("production").values()} <= set(classes)
    assert classes["postlane-transactional"] > classes["postlane-observing"] > classes["postlane-bulk"]


# ---------------------------------------------------------------------------------------------------------- network


def policies(direction: str, labels: dict[str, str]) -> list[Doc]:
    """The rules of a direction that apply to a pod with these labels."""
    found = []
    for doc in docs("production"):
        if doc["kind"] == "NetworkPolicy" and selects(doc["spec"]["podSelector"], labels):
            found += doc["spec"].get(direction, [])
    return found


def selects(selector: Doc, labels: dict[str, str]) -> bool:
    exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return exact and all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ()))


REACH = {  # service -> TCP ports that it may reach, beside names (53)
    "router": {9093, 4318},
    "sender": {9093, 4318, 25, 465, 587, 2525},
    "ledger": {9093, 4318, 5432},
    "health": {9093, 4318},
    "gateway": {9093, 4318},
    "backup": {9093, 443},
    "postgres": set(),
    "otel-collector": set(),
}


def test_every_pod_is_shut_and_reaches_only_what_it_needs() -> None:
    seen = set()
    for doc in docs("production"):
        template = pod_template(doc)
        if template is None:
            continue
        labels = template["metadata"]["labels"]
        service = labels["app.kubernetes.io/name"]
        seen.add(service)
        shut = next(d for d in docs("production") if d["metadata"]["name"] == "postlane-nothing")
        assert selects(shut["spec"]["podSelector"], labels), service
        assert set(shut["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        ports = {port["port"] for rule in policies("egress", labels) for port in rule["ports"]} - {53}
        assert ports == REACH[service], service
    assert seen == set(REACH)


def test_senders_do_not_reach_into_the_cluster_or_the_clouds_metadata() -> None:
    labels = {"app.kubernetes.io/part-of": "postlane", "app.kubernetes.io/name": "sender", "lane": "bulk"}
    smtp = [rule for rule in policies("egress", labels) if {port["port"] for port in rule["ports"]} >= {587}]
    (v4,) = [to["ipBlock"] for rule in smtp for to in rule["to"] if to["ipBlock"]["cidr"] == "0.0.0.0/0"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(v4["except"])


def test_only_prometheus_reaches_a_service_and_publishers_the_gateway() -> None:
    for service in SERVICES:
        labels = {"app.kubernetes.io/part-of": "postlane", "app.kubernetes.io/name": service}
        rules = policies("ingress", labels)
        metrics = [rule for rule in rules if rule.get("from") == [_namespaces("metrics", "allowed")]]
        assert len(metrics) == 1, service
        assert PORTS[SERVICES[service]] in {port["port"] for port in metrics[0]["ports"]}
        others = [rule for rule in rules if rule not in metrics]
        if service != "gateway":
            assert others == [], service
            continue
        publishers = {"from": [_namespaces("postlane", "publishes")], "ports": [{"protocol": "TCP", "port": 8080}]}
        assert len(others) == 2
        assert publishers in others
        assert {"ports": [{"protocol": "TCP", "port": 2525}]} in others  # for every mail server of the world


def _namespaces(label: str, value: str) -> Doc:
    return {"namespaceSelector": {"matchLabels": {label: value}}}


def test_the_component_for_bounces_gives_the_key_to_who_signs_and_who_verifies() -> None:
    made = production_with("bounces")
    pods = dict(pod_specs(made))
    for who in ("Deployment/gateway", "StatefulSet/sender-bulk", "StatefulSet/sender-transactional"):
        container = pods[who]["containers"][0]
        assert "/run/secrets/bounces" in {m["mountPath"] for m in container["volumeMounts"]}, who
        assert list(violations(pods[who])) == [], who
    assert "/run/secrets/bounces" not in json.dumps(pods["StatefulSet/router"])
    gateway = pods["Deployment/gateway"]["containers"][0]
    listens = {e["name"]: e.get("value") for e in gateway["env"]}["POSTLANE_BOUNCES_LISTEN"]
    settings = read_settings({"POSTLANE_BOUNCES_LISTEN": listens, "POSTLANE_GATEWAY_KEYS_FILE": "k"})
    assert settings.bounces is not None
    assert {"name": "bounces", "containerPort": settings.bounces.port} in gateway["ports"]
    (port,) = named(made, "Service", "bounces")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (25, "bounces")
    told = (ROOT / "k8s/components/bounces/kustomization.yaml").read_text()
    Bounces(address="bounces@bounces.example.org", key_file=re.search(r"key_file: ([^}]+)}", told)[1])  # type: ignore[index]
    for doc in made:
        if not doc["apiVersion"].startswith(OF_OPERATORS):
            kubernetes_validate.validate(doc, K8S_VERSIONS[-1], strict=True)


def test_the_gateways_variables_are_those_that_it_reads_and_its_files_are_mounted() -> None:
    pod = specs("production")["Deployment/gateway"]
    given = environment("production", pod)
    settings = read_settings(given)
    mounts = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert str(settings.keys_file.parent) in mounts
    assert {"name": "api", "containerPort": settings.listen.port} in pod["containers"][0]["ports"]
    service = named(docs("production"), "Service", "gateway")["spec"]
    assert service["ports"] == [{"name": "api", "port": settings.listen.port, "targetPort": "api"}]
    assert settings.linger_s > 0
