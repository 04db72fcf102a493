"""The Pod Security Standard "restricted", as a check of a pod spec that needs no cluster.

Source: kubernetes.io/docs/concepts/security/pod-security-standards, for pods of Linux.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.render import Doc

VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
        "image",
    }
)
SYSCTLS = frozenset(
    {"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"}
    | {"net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"}
    | {"net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"}
    | {"net.ipv4.tcp_keepalive_probes"}
)


def violations(spec: Doc) -> Iterator[str]:
    """What the admission would refuse this pod spec for."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']} is of {', '.join(sorted(kinds))}"
    pod = spec.get("securityContext", {})
    for sysctl in pod.get("sysctls", ()):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    containers = [*spec.get("containers", ()), *spec.get("initContainers", ()), *spec.get("ephemeralContainers", ())]
    for container in containers:
        yield from (f"{container['name']}: {found}" for found in _of_container(container, pod))


def _of_container(container: Doc, pod: Doc) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield "capabilities: ALL are not dropped"
    if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield f"capabilities added: {capabilities['add']}"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "runAsUser is 0"
    profile = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield f"seccompProfile is {profile}"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"
    for context in (pod, own):
        if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
            yield "appArmorProfile"
        if set(context.get("seLinuxOptions", ())) & {"user", "role"}:
            yield "seLinuxOptions"
    for hook in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe"):
        if _host(container.get(hook, {})):
            yield f"{hook} names a host"


def _host(probe: Doc) -> bool:
    inner = [probe, *(v for v in probe.values() if isinstance(v, dict))]
    return any(p.get(action, {}).get("host") for p in inner for action in ("httpGet", "tcpSocket"))
