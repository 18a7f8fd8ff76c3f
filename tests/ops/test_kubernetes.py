"""The manifests of ops/kubernetes: by Kubernetes' own schemas, and by what trialfleet needs of them."""

import math
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import PATIENCE
from support.deployed import OPS, check_arguments, check_variables, named_certificates

from trialfleet.fleet_file import CoordinatorSection, load_fleet
from trialfleet_coordinator.batching import Pacing
from trialfleet_shared import instruments
from trialfleet_shared.adapters.rabbit import EVALUATIONS

FOLDER = OPS / "kubernetes"
VALIDATE = Path(sysconfig.get_path("scripts")) / "kubernetes-validate"
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
#: What kubernetes-validate has no schemas of, and only warns about.
CUSTOM = {"ScaledObject", "TriggerAuthentication"}
#: Of the autoscaler: a figure that is off by no more than this share changes nothing.
TOLERANCE = 0.1


def documents() -> list[Any]:
    return [document for name in MANIFESTS for document in yaml.safe_load_all((FOLDER / name).read_text())]


def find(kind: str, name: str) -> Any:
    (found,) = (one for one in documents() if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pods() -> dict[str, Any]:
    """The pods' specifications, by what makes them."""
    return {
        name: find(kind, name)["spec"]["template"]["spec"]
        for kind, name in (("StatefulSet", "trialfleet-coordinator"), ("Deployment", "trialfleet-worker"))
    }


def container(name: str) -> Any:
    (only,) = pods()[name]["containers"]
    return only


def validate(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [VALIDATE, "--strict", *files]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_keeps_to_its_schemas(manifest: str) -> None:
    done = validate(FOLDER / manifest)

    assert done.returncode == 0, done.stdout + done.stderr
    unchecked = set(re.findall(r"Couldn't find schema for kind (\w+)", done.stdout + done.stderr))
    assert unchecked <= CUSTOM


@pytest.mark.parametrize(
    ("manifest", "right", "wrong"),
    [
        ("worker.yaml", "terminationGracePeriodSeconds", "terminationGraceSeconds"),
        ("coordinator.yaml", "periodSeconds: 5", "periodSeconds: often"),
        ("network.yaml", "policyTypes", "policyType"),
    ],
)
def test_a_mistake_is_noticed(manifest: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = (FOLDER / manifest).read_text()
    assert right in text
    (tmp_path / manifest).write_text(text.replace(right, wrong))

    assert validate(tmp_path / manifest).returncode != 0


def test_every_manifest_is_applied() -> None:
    assert sorted(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]) == MANIFESTS


@pytest.mark.parametrize("name", ["trialfleet-coordinator", "trialfleet-worker"])
def test_a_container_says_what_trialfleet_understands(name: str, tmp_path: Path) -> None:
    check_arguments(container(name)["args"])
    check_variables({one["name"]: one["value"] for one in container(name)["env"]}, tmp_path)


def test_the_fleet_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    text = find("ConfigMap", "trialfleet-coordinator")["data"]["fleet.toml"]
    (tmp_path / "fleet.toml").write_text(text.replace('"/studies"', f'"{tmp_path}/studies"'))

    section = load_fleet(tmp_path / "fleet.toml")
    assert section.host != CoordinatorSection().host  # Kubernetes asks from outside of the pod
    assert {"name": "http", "containerPort": section.port} in container("trialfleet-coordinator")["ports"]


@pytest.mark.parametrize("name", ["trialfleet-coordinator", "trialfleet-worker"])
def test_a_pod_may_do_as_little_as_the_namespace_demands(name: str) -> None:
    """The Pod Security Standard `restricted`."""
    assert find("Namespace", "trialfleet")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001  # the image's
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    restrictions = container(name)["securityContext"]
    assert restrictions["allowPrivilegeEscalation"] is False
    assert restrictions["readOnlyRootFilesystem"] is True
    assert restrictions["capabilities"] == {"drop": ["ALL"]}
    assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "configMap", "secret", "emptyDir"}


@pytest.mark.parametrize("name", ["trialfleet-coordinator", "trialfleet-worker"])
def test_what_is_mounted_is_a_volume_and_the_other_way_round(name: str) -> None:
    volumes = {volume["name"] for volume in pods()[name]["volumes"]}
    claims = find("StatefulSet", "trialfleet-coordinator")["spec"]["volumeClaimTemplates"]
    if name == "trialfleet-coordinator":
        volumes |= {claim["metadata"]["name"] for claim in claims}

    assert {mount["name"] for mount in container(name)["volumeMounts"]} == volumes
    assert "/var/lib/trialfleet" in {mount["mountPath"] for mount in container(name)["volumeMounts"]}


def test_no_probe_that_kills_asks_about_the_broker() -> None:
    coordinator, worker = container("trialfleet-coordinator"), container("trialfleet-worker")
    assert coordinator["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert coordinator["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert coordinator["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert worker["livenessProbe"]["httpGet"]["path"] == "/metrics"


def test_a_worker_leaves_in_its_own_time() -> None:
    worker = find("Deployment", "trialfleet-worker")["spec"]
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] >= 3600
    assert worker["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in worker  # each `kubectl apply` would undo what KEDA decided
    budget = find("PodDisruptionBudget", "trialfleet-worker")["spec"]
    assert budget["selector"]["matchLabels"].items() <= worker["template"]["metadata"]["labels"].items()


def test_there_is_one_coordinator_and_its_records_are_kept() -> None:
    coordinator = find("StatefulSet", "trialfleet-coordinator")["spec"]
    assert coordinator["replicas"] == 1
    assert set(coordinator["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}


@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment"])
def test_what_is_selected_is_there(kind: str) -> None:
    (made,) = (one["spec"] for one in documents() if one["kind"] == kind)
    labels = made["template"]["metadata"]["labels"]
    assert made["selector"]["matchLabels"].items() <= labels.items()
    policies = [one["spec"] for one in documents() if one["kind"] == "NetworkPolicy"]
    chosen = [one for one in policies if one["podSelector"]["matchLabels"].items() <= labels.items()]
    # Each pod is closed in both directions, and open at the ports that it has.
    assert {kind for policy in chosen for kind in policy["policyTypes"]} == {"Ingress", "Egress"}
    (only,) = made["template"]["spec"]["containers"]
    opened = {port["port"] for policy in chosen for rule in policy.get("ingress", []) for port in rule["ports"]}
    assert opened == {port["containerPort"] for port in only["ports"]}


def test_secrets_are_those_that_are_made(tmp_path: Path) -> None:
    subprocess.run([sys.executable, OPS / "make-secrets", tmp_path], check=True, capture_output=True)
    told = re.sub(r"\\\n#\s*", "", (FOLDER / "kustomization.yaml").read_text())
    created = {
        name: re.findall(r"--from-file (\S+)", files)
        for name, files in re.findall(r"create secret generic (\S+)(.*)", told)
    }
    assert all((tmp_path / file).is_file() for files in created.values() for file in files)
    for name, pod in pods().items():
        (secret,) = (volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume)
        files = {one["value"].rpartition("/")[2] for one in container(name)["env"] if one["name"].endswith("_FILE")}
        assert files == set(created[secret])
    (reference,) = find("TriggerAuthentication", "trialfleet-rabbitmq")["spec"]["secretTargetRef"]
    assert reference["key"] in created[reference["name"]]
    assert reference["parameter"] == "host"


def test_with_tls_every_certificate_is_where_it_is_looked_for(tmp_path: Path) -> None:
    told = (FOLDER / "kustomization.yaml").read_text()
    (options,) = re.findall(r"make-secrets \S+ (.*--tls.*)", told)
    subprocess.run([sys.executable, OPS / "make-secrets", tmp_path, *options.split()], check=True, capture_output=True)
    added = re.findall(r"--from-file (\S+)", told[told.index(options) :])

    for name in ("coordinator", "worker"):
        (folder,) = (
            one["mountPath"] for one in container(f"trialfleet-{name}")["volumeMounts"] if one["name"] == "secrets"
        )
        named = named_certificates((tmp_path / f"{name}-broker-url").read_text())
        assert named == {f"{folder}/{file}" for file in added}


def test_the_scaled_object_is_one() -> None:
    """By KEDA's resource definition (keda.sh_scaledobjects.yaml), of which there is no schema at hand."""
    scaled = find("ScaledObject", "trialfleet-worker")
    spec = scaled["spec"]
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    numbers = ("minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod")
    assert spec.keys() == {"scaleTargetRef", "advanced", "triggers", *numbers}
    assert all(isinstance(spec[number], int) for number in numbers)
    assert find("Deployment", spec["scaleTargetRef"]["name"])
    (advanced,) = spec["advanced"].items()
    assert advanced[0] == "horizontalPodAutoscalerConfig"
    behavior = advanced[1]["behavior"]
    assert behavior.keys() == {"scaleUp", "scaleDown"}
    for direction in behavior.values():
        assert direction.keys() == {"stabilizationWindowSeconds", "policies"}
        for policy in direction["policies"]:
            assert policy.keys() == {"type", "value", "periodSeconds"}
            assert policy["type"] in ("Percent", "Pods")
    for trigger in spec["triggers"]:
        assert trigger.keys() <= {"type", "metadata", "authenticationRef"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def wanted(workers: int, *, messages: int, busy: int) -> int:
    """How many workers there are to be: the arithmetic of Kubernetes' autoscaler on an average value, of KEDA for none."""
    spec = find("ScaledObject", "trialfleet-worker")["spec"]
    targets = [int(one["metadata"].get("value", one["metadata"].get("threshold"))) for one in spec["triggers"]]
    if messages == busy == 0:
        return int(spec["minReplicaCount"])
    asked = []
    for figure, target in zip((messages, busy), targets, strict=True):
        near = workers > 0 and abs(figure / (target * workers) - 1) <= TOLERANCE
        asked.append(workers if near else math.ceil(figure / target))
    return min(max(1, *asked), int(spec["maxReplicaCount"]))


def slots_of_a_worker() -> int:
    arguments = container("trialfleet-worker")["args"]
    return int(arguments[arguments.index("--slots") + 1])


@pytest.mark.parametrize("seconds", [0.001, 0.1, 1.0, 60.0, 3600.0])
def test_a_fleet_grows_while_all_its_slots_are_busy(seconds: float) -> None:
    """However long evaluations take: of slow ones none waits, as nothing is kept ahead."""
    pacing, workers, most = Pacing(50), 1, find("ScaledObject", "trialfleet-worker")["spec"]["maxReplicaCount"]
    for _ in range(1000):
        pacing.observe(seconds)
    while workers < most:
        slots = workers * slots_of_a_worker()
        in_flight = pacing.in_flight(slots)
        messages = math.ceil(in_flight / pacing.batch(in_flight, slots))
        # After ten minutes an evaluation is no message any more.
        grown = wanted(workers, messages=0 if seconds > 600 else messages, busy=slots)
        assert grown > workers
        workers = grown


def test_the_first_evaluations_start_a_worker() -> None:
    assert wanted(0, messages=1, busy=0) == 1


def test_what_is_left_at_the_end_does_not_keep_all() -> None:
    for left in range(1, 100):
        kept = wanted(50, messages=left, busy=left)
        assert kept < 50
        assert left <= kept * slots_of_a_worker(), "there is a slot for each"
        assert wanted(kept, messages=left, busy=left) == kept, "and that is where it stays"


def test_an_idle_fleet_goes_away() -> None:
    spec = find("ScaledObject", "trialfleet-worker")["spec"]
    assert wanted(50, messages=0, busy=0) == spec["minReplicaCount"] == 0


def test_the_fleet_is_scaled_by_messages_and_by_busy_slots() -> None:
    messages, busy = find("ScaledObject", "trialfleet-worker")["spec"]["triggers"]
    slots = container("trialfleet-worker")["args"][2]
    # Less than a worker has slots, by more than the autoscaler's tolerance.
    target = str(int(slots) - 1)

    assert messages["type"] == "rabbitmq"
    assert messages["metadata"] == {
        "protocol": "http",  # amqp does not count what workers hold
        "queueName": EVALUATIONS,
        "mode": "QueueLength",
        "value": target,
    }
    assert find("TriggerAuthentication", messages["authenticationRef"]["name"])
    assert busy["type"] == "prometheus"
    assert busy["metadata"]["query"] == f"sum({instruments.WORKER_BUSY.name})"
    assert busy["metadata"]["threshold"] == target
    # A slot is a core.
    assert container("trialfleet-worker")["resources"]["requests"]["cpu"] == slots
    assert "cpu" not in container("trialfleet-worker")["resources"]["limits"]
