"""The Helm chart: rendered by Helm, checked against Kubernetes' schemas, with a config that the gateway accepts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "headgate"
BIN = Path(sys.executable).parent
HELM = shutil.which("helm", path=f"{BIN}:/usr/local/bin:/usr/bin")
CONFIG = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
EVERYTHING: dict[str, Any] = {
    "config": CONFIG.replace("drain_delay_s = 5", "drain_delay_s = 10").replace("drain_s = 60", "drain_s = 120.0"),
    "image": {"tag": "1.2.3"},
    "imagePullSecrets": [{"name": "registry"}],
    "secretEnv": [{"name": "OPENAI_API_KEY", "secret": "headgate", "key": "openai"}],
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
    "tls": {"secretName": "certificate"},
    "drain": {"delaySeconds": 10, "seconds": 120},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {
        "ingressFrom": [{"podSelector": {}}],
        "egressTo": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}],
    },
    "persistence": {"existingClaim": "files"},
    "gpu": {"enabled": True, "count": 2},
    "models": {"existingClaim": "models"},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "podAnnotations": {"c": "d"},
    "priorityClassName": "high",
}
pytestmark = pytest.mark.skipif(HELM is None, reason="there is no helm for this platform")


def helm(*arguments: str, values: dict[str, Any]) -> subprocess.CompletedProcess[bytes]:
    assert HELM is not None
    command = [HELM, *arguments, "--values", "-"]
    return subprocess.run(command, input=orjson.dumps(values), capture_output=True, check=False)


def render(values: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Return what a release "gate" consists of, by kind and name."""
    done = helm("template", "gate", str(CHART), "--namespace", "models", values=values)
    assert done.returncode == 0, done.stderr.decode()
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["the defaults", "everything"])
def test_what_is_rendered_is_valid(values: dict[str, Any], tmp_path: Path):
    """By Kubernetes' own schemas, without unknown fields; the ServiceMonitor's is not among them."""
    done = helm("lint", str(CHART), "--strict", values=values)
    assert done.returncode == 0, done.stdout.decode()
    rendered = render(values)
    monitor = rendered.pop(("ServiceMonitor", "gate"), None)
    files = []
    for (kind, name), document in rendered.items():
        files.append(tmp_path / f"{kind}-{name}.yaml")
        files[-1].write_text(yaml.safe_dump(document))
    command = [str(BIN / "kubernetes-validate"), "--strict", "--kubernetes-version", "1.37.0", *map(str, files)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (monitor is None) is (values == {})
    assert len(rendered) == (7 if values == {} else 8)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["the defaults", "everything"])
def test_pods_meet_the_restricted_standard(values: dict[str, Any]):
    """Kubernetes' "restricted" Pod Security Standard, and a root file system that cannot be written."""
    pod = render(values)["Deployment", "gate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_a_pod_has_time_to_drain_and_is_not_asked_for_secrets():
    """What the values say is what the pod gets: seconds, variables by reference, devices, the scheme of probes."""
    rendered = render(EVERYTHING)
    pod = rendered["Deployment", "gate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (variable, _) = container["env"]

    assert pod["terminationGracePeriodSeconds"] == 10 + 120 + 15
    assert variable == {
        "name": "OPENAI_API_KEY",
        "valueFrom": {"secretKeyRef": {"name": "headgate", "key": "openai"}},
    }
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert {container[probe]["httpGet"]["scheme"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {"HTTPS"}  # fmt: skip
    assert "replicas" not in rendered["Deployment", "gate"]["spec"]
    (metric,) = rendered["HorizontalPodAutoscaler", "gate"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "http_server_active_requests"


def test_selectors_find_what_they_are_for():
    """Services, budget, policy and monitor select the pods or the service by labels that these have."""
    rendered = render(EVERYTHING)
    labels = rendered["Deployment", "gate"]["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        rendered["Service", "gate"]["spec"]["selector"],
        rendered["Service", "gate-admin"]["spec"]["selector"],
        rendered["PodDisruptionBudget", "gate"]["spec"]["selector"]["matchLabels"],
        rendered["NetworkPolicy", "gate"]["spec"]["podSelector"]["matchLabels"],
        rendered["Deployment", "gate"]["spec"]["selector"]["matchLabels"],
    ]
    monitored = rendered["ServiceMonitor", "gate"]["spec"]["selector"]["matchLabels"].items()

    assert all(selector.items() <= labels for selector in selectors)
    assert monitored <= rendered["Service", "gate-admin"]["metadata"]["labels"].items()
    assert not monitored <= rendered["Service", "gate"]["metadata"]["labels"].items()
    assert rendered["Service", "gate-admin"]["metadata"]["labels"]["app.kubernetes.io/name"] == "headgate"


def test_what_is_not_wanted_is_left_out():
    """Policy, budget, account, and who may reach the admin listener."""
    nothing = {"enabled": False}
    rendered = render({"networkPolicy": nothing, "podDisruptionBudget": nothing, "serviceAccount": {"create": False}})
    closed = render({"networkPolicy": {"adminFrom": []}})["NetworkPolicy", "gate"]["spec"]

    assert {kind for kind, _ in rendered} == {"ConfigMap", "Deployment", "Service"}
    assert rendered["Deployment", "gate"]["spec"]["template"]["spec"]["serviceAccountName"] == "default"
    assert [rule["ports"] for rule in closed["ingress"]] == [[{"port": "http", "protocol": "TCP"}]]


@pytest.mark.parametrize("has_console", [False, True])
def test_the_gateway_accepts_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_console: bool):
    """The one of the values, and the key of an operator in it; its demo model is where the image has it."""
    config = render({})["ConfigMap", "gate"]["data"]["headgate.toml"]
    if has_console:
        config = re.sub(r"^# (?=\[\[admin|name = \"ada|key = |role = )", "", config, flags=re.MULTILINE)
        monkeypatch.setenv("HEADGATE_ADMIN_KEY", "a-key-of-an-operator-0123456789-0123")
        assert "\n[[admin.key]]\nname" in config
    demo = Path(__file__).parents[2] / "backends" / "demo"
    (tmp_path / "headgate.toml").write_text(config.replace("/opt/headgate/demo", str(demo)))
    command = [sys.executable, "-m", "proxy", "check", "--config", str(tmp_path / "headgate.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHART.parents[2])

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 3}, "replica"),
        ({"config": '[server]\nhost = "127.0.0.1"'}, "config"),
        ({"secretEnv": [{"name": "KEY", "value": "sk-secret"}]}, "secretEnv"),
        ({"autoscaling": {"callsInFlight": 0}}, "callsInFlight"),
        ({"service": {"port": 70_000}}, "port"),
        ({"drain": {"seconds": 90}}, "drain_s = 60"),
        ({"drain": {"delaySeconds": 0}}, "drain_delay_s = 5"),
    ],
    ids=["a misspelt key", "a loopback address", "a secret as text", "no calls", "no port", "less time", "no delay"],
)
def test_values_that_cannot_be_meant_are_errors(values: dict[str, Any], message: str):
    done = helm("template", "gate", str(CHART), values=values)

    assert done.returncode != 0
    assert message in done.stderr.decode()
