"""What the container files say is true of this tree. No engine is needed: they are read, and judged by the programs that read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import relay
from relay.admin.http import _PATHS
from relay.cli.main import make_parser
from relay.config.keys import KEYS
from relay.config.schema import Settings
from tests.integration.packaging.containers import (
    DOCKER,
    KUBERNETES,
    SETTINGS,
    compose,
    dockerfile,
    manifests,
    stack,
    tool,
)
from tests.support.processes import ROOT

SERVICES = compose()["services"]
# An image by name and version, from where the engine looks by itself.
PINNED = re.compile(r"^[a-z0-9-]+(/[a-z0-9-]+)?:v?\d+\.\d+[\w.-]*$")
OURS = "tradr-relay"
NOT_SETTINGS = {"INGESTER_SINK"}


def _run(*command: str, cwd: Path = ROOT, text: str | None = None) -> str:
    ended = subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def _parses(words: list[str]) -> None:
    make_parser().parse_args(words)


# --- the image ------------------------------------------------------------------------------------------------------------


def test_the_linter_of_dockerfiles_has_nothing_to_say() -> None:
    _run(tool("hadolint"), "--failure-threshold", "style", str(DOCKER / "Dockerfile"))


def test_its_bases_are_pinned() -> None:
    bases = [each.text.split()[0] for each in dockerfile() if each.name == "FROM"]
    assert len(bases) == 2
    assert [base for base in bases if not PINNED.match(base)] == []


def test_it_is_made_of_what_is_there_and_sent() -> None:
    sent = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        word for each in dockerfile() if each.name == "COPY" and "--from" not in each.text for word in each.words[:-1]
    ]
    assert "relay" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(one == source or one.startswith(f"{source}/") for one in sent), f"{source} is not sent"


def test_what_is_sent_makes_a_whole_wheel(tmp_path: Path) -> None:
    """The image's own step, from its own sources: what `pip install .` needs is among them."""
    for each in dockerfile():
        if each.name == "COPY" and "--from" not in each.text:
            *sources, target = each.words
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, tmp_path / target)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", ".", cwd=tmp_path)
    assert list((tmp_path / "dist").glob("tradr_relay-*.whl"))


def test_it_runs_as_nobody_in_particular() -> None:
    users = [each.text for each in dockerfile() if each.name == "USER" and each.stage == 1]
    assert users
    uid, gid = users[-1].split(":")
    assert min(int(uid), int(gid)) >= 1000
    (made,) = [each.text for each in dockerfile() if each.name == "RUN" and each.stage == 1]
    assert f"--gid {gid} " in made
    assert f"--uid {uid} --gid {gid} " in made


def test_its_commands_are_commands() -> None:
    found = {each.name: each for each in dockerfile() if each.stage == 1}
    assert found["ENTRYPOINT"].words == [OURS]
    _parses(found["CMD"].words)
    health = re.search(r"CMD (\[.*\])", found["HEALTHCHECK"].text)
    assert health is not None
    program, *words = yaml.safe_load(health[1])
    assert program == OURS
    _parses(words)


def test_its_ports_and_variables_are_those_of_the_configuration() -> None:
    defaults = Settings()
    found = [each for each in dockerfile() if each.stage == 1]
    exposed = {int(word) for each in found if each.name == "EXPOSE" for word in each.words}
    assert exposed == {defaults.metrics.port, defaults.grpc.port}
    named = {word.partition("=")[0] for each in found if each.name == "ENV" for word in each.words} - {"PATH"}
    assert named
    assert named - SETTINGS == set()


# --- compose --------------------------------------------------------------------------------------------------------------


def test_the_compose_file_follows_the_schema() -> None:
    _run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DOCKER / "docker-compose.yml"))


def test_docker_itself_can_read_the_compose_file() -> None:
    docker = tool("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("this docker has no compose")
    _run(docker, "compose", "-f", str(DOCKER / "docker-compose.yml"), "config", "--quiet")


def test_compose_has_everything_for_a_first_look() -> None:
    assert set(SERVICES) == {"postgres", "relay", "ingester", "prometheus", "grafana"}
    for name, service in SERVICES.items():
        assert service["image"] == OURS or PINNED.match(service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} can be reached from everywhere"
        for waits_for in service.get("depends_on", {}):
            assert waits_for in SERVICES
            conditions = service["depends_on"]
            if isinstance(conditions, dict) and conditions[waits_for]["condition"] == "service_healthy":
                assert waits_for == "relay" or "healthcheck" in SERVICES[waits_for]


def test_what_compose_mounts_is_there() -> None:
    volumes = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    files = [volume.split(":")[0] for volume in volumes if volume.startswith(".")]
    assert files
    assert [file for file in files if not (DOCKER / file).is_file()] == []
    named = {volume.split(":")[0] for volume in volumes if not volume.startswith(".")}
    assert named == set(compose()["volumes"])
    rules = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["rule_files"]
    assert all(any(volume.endswith(f"/etc/prometheus/{rule}:ro") for volume in volumes) for rule in rules)


@pytest.mark.parametrize("name", ["relay", "ingester"])
def test_compose_tells_the_relay_what_it_understands(name: str) -> None:
    service = SERVICES[name]
    assert set(service["environment"]) - SETTINGS - NOT_SETTINGS == set()
    if "command" in service:
        _parses(service["command"])
    seconds = int(service["stop_grace_period"].removesuffix("s"))
    assert seconds > 20 if name == "ingester" else seconds > Settings().relay.shutdown_timeout_sec


def test_prometheus_and_grafana_find_what_they_show() -> None:
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    sample = yaml.safe_load((ROOT / "config/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert job["job_name"] == sample["job_name"]  # the rules and the dashboard go by it
    assert job["static_configs"][0]["targets"] == [f"relay:{Settings().metrics.port}"]
    (source,) = yaml.safe_load((DOCKER / "grafana/datasources.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DOCKER / "grafana/dashboards.yml").read_text())["providers"]
    assert any(provider["options"]["path"] in volume for volume in SERVICES["grafana"]["volumes"])


# --- Swarm ----------------------------------------------------------------------------------------------------------------


def test_the_stack_follows_the_schema(tmp_path: Path) -> None:
    (tmp_path / "stack.yml").write_text(stack())
    _run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(tmp_path / "stack.yml"))


def test_docker_itself_can_read_the_stack(tmp_path: Path) -> None:
    (tmp_path / "stack.yml").write_text(stack())
    read = yaml.safe_load(_run(tool("docker"), "stack", "config", "-c", str(tmp_path / "stack.yml")))
    assert set(read["services"]) == {"relay", "ingester"}


def test_the_stack_tells_the_relay_what_it_understands() -> None:
    services: dict[str, Any] = yaml.safe_load(stack())["services"]
    assert set(services["relay"]["environment"]) - SETTINGS == set()
    _parses(services["relay"]["command"])
    (_, _, script) = services["ingester"]["entrypoint"]
    _parses(script[script.index("tradr-relay ") :].split()[1:])
    for service in services.values():
        assert all(int(secret["uid"]) == 10001 for secret in service["secrets"])


# --- Kubernetes -----------------------------------------------------------------------------------------------------------


def _containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every pod with its one container."""
    pods = [each["spec"]["template"]["spec"] for each in manifests() if each["kind"] == "Deployment"]
    return [(pod, pod["containers"][0]) for pod in pods]


def test_the_manifests_follow_the_schema() -> None:
    kinds = [each["kind"] for each in manifests()]
    assert sorted(kinds) == [
        "Deployment", "Deployment", "Namespace", "PersistentVolumeClaim", "Secret", "Service", "Service",
    ]  # fmt: skip
    files = sorted(str(path) for path in KUBERNETES.glob("*.yaml") if path.name != "kustomization.yaml")
    _run(tool("kubernetes-validate"), "--strict", *files)


def test_kubectl_itself_can_build_them() -> None:
    built = list(yaml.safe_load_all(_run(tool("kubectl"), "kustomize", str(KUBERNETES))))
    assert len(built) == len(manifests())
    images = {
        pod["image"]
        for each in built
        if each["kind"] == "Deployment"
        for pod in each["spec"]["template"]["spec"]["containers"]
    }
    assert images == {f"{OURS}:{relay.__version__}"}


def test_the_image_has_the_version_of_this_tree() -> None:
    (image,) = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["images"]
    assert image["newTag"] == relay.__version__


def test_pods_run_without_any_right() -> None:
    for pod, container in _containers():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]


def test_probes_and_ports_are_those_of_the_relay() -> None:
    defaults = Settings()
    for pod, container in _containers():
        _parses(container["args"])
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        for name, probe in container.items():
            if name.endswith("Probe") and "httpGet" in probe:
                assert probe["httpGet"]["path"] in _PATHS.split()
                assert ports[probe["httpGet"]["port"]] == defaults.metrics.port
        if container["name"] == "relay":
            assert set(ports.values()) == {defaults.metrics.port, defaults.grpc.port}
            assert pod["terminationGracePeriodSeconds"] > defaults.relay.shutdown_timeout_sec


def test_variables_and_secrets_of_pods_are_known() -> None:
    (secret,) = [each for each in manifests() if each["kind"] == "Secret"]
    for pod, container in _containers():
        names = {each["name"] for each in container["env"]}
        assert names - SETTINGS - NOT_SETTINGS == set()
        keys = {each["valueFrom"]["secretKeyRef"]["key"] for each in container["env"] if "valueFrom" in each}
        keys |= {item["key"] for each in pod.get("volumes", []) if "secret" in each for item in each["secret"]["items"]}
        assert keys
        assert keys - set(secret["stringData"]) == set()
        # The management port off loopback wants a token, and gets the file that is mounted.
        if "GRPC_HOST" in names:
            (token,) = [each["value"] for each in container["env"] if each["name"] == "GRPC_TOKEN_FILE"]
            assert any(token.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
    assert len(secret["stringData"]["grpc-token"]) >= 16


def test_services_lead_to_pods() -> None:
    pods = [each["spec"]["template"] for each in manifests() if each["kind"] == "Deployment"]
    for service in (each for each in manifests() if each["kind"] == "Service"):
        wanted = service["spec"]["selector"].items()
        (pod,) = [each for each in pods if wanted <= each["metadata"]["labels"].items()]
        ports = {each["name"] for each in pod["spec"]["containers"][0]["ports"]}
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports


def test_secrets_are_no_settings_in_the_open() -> None:
    """A key that is masked wherever it is shown comes out of a Secret."""
    secret = {variable for key in KEYS.values() if key.secret for variable in key.variables}
    for _, container in _containers():
        for each in container["env"]:
            assert each["name"] not in secret or "valueFrom" in each
