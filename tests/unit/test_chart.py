"""The Helm chart, rendered by real Helm and held against the schemas of Kubernetes.

`UPDATE_GOLDEN=1 pytest tests/unit/test_chart.py` rewrites the golden rendering.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from annheal.errors import InvalidArgument
from annheal.metastore.factory import open_meta_store
from annheal.objectstore.factory import open_object_store

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "annheal"
GOLDEN = ROOT / "tests" / "golden" / "helm"
KUBERNETES_VERSIONS = ("1.29", "1.35")
UPDATE_VARIABLE = "UPDATE_GOLDEN"
LINT_WARNING = 2

Manifest = dict[str, Any]
Values = dict[str, Any]

S3_AND_TLS: Values = {
    "metadata": {
        "endpoints": ["etcd-0.etcd:2379", "etcd-1.etcd:2379"],
        "tls": {"enabled": True, "secretName": "etcd-client"},
        "auth": {"existingSecret": "etcd-user"},
    },
    "objectStore": {
        "url": "s3://vectors/production",
        "s3": {
            "endpoint": "http://seaweedfs:8333",
            "region": "eu-1",
            "credentials": {"existingSecret": "s3-credentials"},
        },
    },
    "image": {"repository": "registry.example.org/annheal", "tag": "1.2.3"},
    "imagePullSecrets": [{"name": "pull"}],
    "compactor": {"podDisruptionBudget": {"enabled": True, "maxUnavailable": "50%"}},
    "shardNode": {
        "zone": {"name": "zone-a"},
        "cache": {"persistent": False, "size": "10Gi"},
        "tolerations": [{"key": "vectors", "operator": "Exists", "effect": "NoSchedule"}],
        "nodeSelector": {"disk": "ssd"},
        "priorityClassName": "high",
        "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "4"}],
    },
    "settings": {"segment_bytes_max": 1073741824, "trace": True, "note": 'a "quoted" word'},
}
FILE_STORE: Values = {
    "objectStore": {"url": "file:///objects", "file": {"existingClaim": "annheal-objects"}},
    "coordinator": {
        "replicas": 1,
        "settings": {"search_timeout_s": 2.5, "fanout_max": 4},
        "service": {"type": "LoadBalancer", "annotations": {"example.org/internal": "true"}},
    },
    "serviceAccount": {"create": False, "name": "existing"},
    "tests": {"enabled": False},
}
SCRAPED: Values = {
    "metrics": {
        "enabled": True,
        "port": 9100,
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    }
}
CASES: dict[str, Values] = {"default": {}, "s3-tls": S3_AND_TLS, "file-store": FILE_STORE}


@pytest.fixture(scope="module")
def chart() -> Iterator[helm_python.Chart]:
    with helm_python.Chart.load(str(CHART)) as loaded:
        yield loaded


def render(chart: helm_python.Chart, values: Values) -> dict[str, str]:
    rendered = chart.render(values, name="demo", namespace="vectors")
    return {path: text for path, text in sorted(rendered.items()) if text.strip()}


def manifests(chart: helm_python.Chart, values: Values) -> list[Manifest]:
    return [
        manifest
        for path, text in render(chart, values).items()
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def find(all_manifests: list[Manifest], kind: str, name: str) -> Manifest:
    found = [m for m in all_manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pod_specs(all_manifests: list[Manifest]) -> list[Manifest]:
    return [
        manifest["spec"] if manifest["kind"] == "Pod" else manifest["spec"]["template"]["spec"]
        for manifest in all_manifests
        if manifest["kind"] in {"Deployment", "StatefulSet", "Pod"}
    ]


def environment(pod_spec: Manifest) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in pod_spec["containers"][0]["env"]}


@pytest.mark.parametrize("case", CASES)
def test_lint_finds_nothing(case: str) -> None:
    report = helm_python.lint(str(CHART), CASES[case], strict=True, namespace="vectors")
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] >= LINT_WARNING] == []


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_object_is_valid_kubernetes(
    chart: helm_python.Chart, case: str, version: str
) -> None:
    rendered = manifests(chart, CASES[case])
    assert {m["kind"] for m in rendered} >= {"Deployment", "StatefulSet", "Service", "ConfigMap"}
    for manifest in rendered:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_strict_validation_refuses_an_unknown_field(chart: helm_python.Chart) -> None:
    manifest = find(manifests(chart, {}), "StatefulSet", "demo-annheal-shard-node")
    manifest["spec"]["podManagmentPolicy"] = "Parallel"
    with pytest.raises(kubernetes_validate.ValidationError, match="podManagmentPolicy"):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", ["default", "scraped"])
def test_rendering_is_the_golden_one(chart: helm_python.Chart, name: str) -> None:
    values = SCRAPED if name == "scraped" else {}
    text = "".join(f"# {path}\n{body.strip()}\n\n" for path, body in render(chart, values).items())
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get(UPDATE_VARIABLE):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text(), f"set {UPDATE_VARIABLE}=1 to accept the new rendering"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"shardNodes": {"replicas": 3}}, "shardNodes"),
        ({"coordinator": {"replica": 3}}, "replica"),
        ({"metadata": {"endpoints": []}}, "endpoints"),
        ({"metadata": {"endpoints": ["http://etcd:2379"]}}, "endpoints"),
        ({"objectStore": {"url": "gs://bucket"}}, "url"),
        ({"shardNode": {"replicas": -1}}, "replicas"),
        ({"logLevel": "loud"}, "logLevel"),
        ({"settings": {"Bad-Key": 1}}, "Bad-Key"),
    ],
)
def test_schema_refuses(chart: helm_python.Chart, values: Values, named: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=named):
        chart.validate_schema(chart.merge_values(values))


def test_every_default_value_has_a_place_in_the_schema(chart: helm_python.Chart) -> None:
    schema = chart.schema
    assert schema is not None

    def missing(values: Values, node: Values, path: str) -> list[str]:
        if "$ref" in node:
            node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]]
        if "properties" not in node:
            return []
        names = set(values) ^ (set(node["properties"]) - {"global", "initialDelaySeconds"})
        below = [
            name
            for key, value in values.items()
            if isinstance(value, dict) and key in node["properties"]
            for name in missing(value, node["properties"][key], f"{path}{key}.")
        ]
        return sorted(path + name for name in names) + below

    assert missing(chart.values, schema, "") == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objectStore": {"url": "file:///objects"}}, "existingClaim"),
        ({"metadata": {"tls": {"enabled": True}}}, "secretName"),
        ({"metadata": {"tls": {"enabled": True, "secretName": "s", "keyKey": ""}}}, "go together"),
    ],
)
def test_rendering_refuses_half_a_configuration(
    chart: helm_python.Chart, values: Values, message: str
) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=message):
        render(chart, values)


@pytest.mark.parametrize("case", CASES)
def test_no_pod_runs_as_root_or_can_become_it(chart: helm_python.Chart, case: str) -> None:
    specs = pod_specs(manifests(chart, CASES[case]))
    assert len(specs) >= 3
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("case", CASES)
def test_volumes_and_mounts_match(chart: helm_python.Chart, case: str) -> None:
    for manifest in manifests(chart, CASES[case]):
        if manifest["kind"] not in {"Deployment", "StatefulSet"}:
            continue
        spec = manifest["spec"]["template"]["spec"]
        claims = [t["metadata"]["name"] for t in manifest["spec"].get("volumeClaimTemplates", [])]
        volumes = [v["name"] for v in spec["volumes"]] + claims
        assert sorted(volumes) == sorted(m["name"] for m in spec["containers"][0]["volumeMounts"])


@pytest.mark.parametrize("case", CASES)
def test_services_and_budgets_select_the_pods_of_their_role(
    chart: helm_python.Chart, case: str
) -> None:
    rendered = manifests(chart, CASES[case])
    pods = [
        m["spec"]["template"]["metadata"]["labels"]
        for m in rendered
        if m["kind"] in {"Deployment", "StatefulSet"}
    ]
    selectors = [m["spec"]["selector"] for m in rendered if m["kind"] == "Service"]
    selectors += [
        m["spec"]["selector"]["matchLabels"] for m in rendered if m["kind"] == "PodDisruptionBudget"
    ]
    assert len(selectors) >= 5
    for selector in selectors:
        matched = [labels for labels in pods if selector.items() <= labels.items()]
        assert len(matched) == 1, selector


@pytest.mark.parametrize("case", CASES)
def test_roles_are_told_where_everything_is(chart: helm_python.Chart, case: str) -> None:
    rendered = manifests(chart, CASES[case])
    ports = {"coordinator": 7700, "shard-node": 7710, "compactor": 7720}
    for spec in pod_specs([m for m in rendered if m["kind"] != "Pod"]):
        container = spec["containers"][0]
        role = container["name"]
        assert container["args"] == ["serve", role]
        assert container["ports"] == [{"name": "grpc", "containerPort": ports[role]}]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["grpc"]["port"] == ports[role]
        variables = environment(spec)
        assert variables["ANNHEAL_LISTEN"] == f"0.0.0.0:{ports[role]}"
        assert variables["ANNHEAL_CONFIG"] == "/etc/annheal/annheal.toml"
        assert len(variables) == len(container["env"]), "a variable is set twice"


def test_a_shard_node_advertises_the_name_its_headless_service_gives_it(
    chart: helm_python.Chart,
) -> None:
    rendered = manifests(chart, {})
    nodes = find(rendered, "StatefulSet", "demo-annheal-shard-node")["spec"]
    service = find(rendered, "Service", nodes["serviceName"])["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    advertised = environment(nodes["template"]["spec"])["ANNHEAL_ADVERTISE"]
    assert advertised == "$(POD_NAME).demo-annheal-shard-node.vectors.svc:7710"
    assert nodes["podManagementPolicy"] == "Parallel"


def test_configuration_file_is_toml_and_says_what_the_values_say(
    chart: helm_python.Chart,
) -> None:
    config = find(manifests(chart, S3_AND_TLS), "ConfigMap", "demo-annheal")
    settings = tomllib.loads(config["data"]["annheal.toml"])
    assert settings == {
        "metadata_url": "etcd://etcd-0.etcd:2379,etcd-1.etcd:2379/annheal"
        "?ca=/etc/annheal/etcd-tls/ca.crt&cert=/etc/annheal/etcd-tls/tls.crt"
        "&key=/etc/annheal/etcd-tls/tls.key",
        "object_store_url": "s3://vectors/production"
        "?endpoint=http%3A%2F%2Fseaweedfs%3A8333&allow_http=true&region=eu-1",
        "log_level": "info",
        "segment_bytes_max": 1073741824,
        "trace": True,
        "note": 'a "quoted" word',
    }


@pytest.mark.parametrize("case", ["default", "s3-tls"])
def test_the_stores_understand_the_urls(chart: helm_python.Chart, case: str) -> None:
    config = find(manifests(chart, CASES[case]), "ConfigMap", "demo-annheal")
    settings = tomllib.loads(config["data"]["annheal.toml"])
    open_object_store(settings["object_store_url"])
    if case == "default":
        open_meta_store(settings["metadata_url"], environ={})
    else:  # the files are not here, but everything before them was understood
        with pytest.raises(InvalidArgument, match=r"ca cannot be read: .*/etc/annheal/etcd-tls"):
            open_meta_store(settings["metadata_url"], environ={})


def test_credentials_come_from_secrets_only(chart: helm_python.Chart) -> None:
    for spec in pod_specs([m for m in manifests(chart, S3_AND_TLS) if m["kind"] != "Pod"]):
        variables = environment(spec)
        for variable, secret, key in (
            ("AWS_ACCESS_KEY_ID", "s3-credentials", "access-key-id"),
            ("AWS_SECRET_ACCESS_KEY", "s3-credentials", "secret-access-key"),
            ("ANNHEAL_ETCD_USER", "etcd-user", "user"),
            ("ANNHEAL_ETCD_PASSWORD", "etcd-user", "password"),
        ):
            assert variables[variable] == {"secretKeyRef": {"name": secret, "key": key}}


def test_settings_of_a_role_become_its_environment(chart: helm_python.Chart) -> None:
    rendered = manifests(chart, FILE_STORE)
    coordinator = find(rendered, "Deployment", "demo-annheal-coordinator")
    nodes = find(rendered, "StatefulSet", "demo-annheal-shard-node")
    variables = environment(coordinator["spec"]["template"]["spec"])
    assert variables["ANNHEAL_SEARCH_TIMEOUT_S"] == "2.5"
    assert variables["ANNHEAL_FANOUT_MAX"] == "4"
    assert "ANNHEAL_FANOUT_MAX" not in environment(nodes["spec"]["template"]["spec"])
    assert not any(name.startswith("AWS_") for name in variables)


def test_scraped_pods_listen_where_the_monitor_looks(chart: helm_python.Chart) -> None:
    rendered = manifests(chart, SCRAPED)
    for spec in pod_specs([m for m in rendered if m["kind"] != "Pod"]):
        container = spec["containers"][0]
        assert {"name": "metrics", "containerPort": 9100} in container["ports"]
        assert environment(spec)["ANNHEAL_METRICS_LISTEN"] == "0.0.0.0:9100"
    for manifest in rendered:
        if not manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(manifest, KUBERNETES_VERSIONS[0], strict=True)
    monitor = find(rendered, "PodMonitor", "demo-annheal")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    selector = monitor["spec"]["selector"]
    (expression,) = selector["matchExpressions"]
    pods = [
        m["spec"]["template"]["metadata"]["labels"]
        for m in rendered
        if m["kind"] in {"Deployment", "StatefulSet"}
    ]
    assert len(pods) == 3
    for labels in pods:
        assert selector["matchLabels"].items() <= labels.items()
        assert labels[expression["key"]] in expression["values"]
    assert [one["port"] for one in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_alert_rules_are_whole_and_documented(chart: helm_python.Chart) -> None:
    rule = find(manifests(chart, SCRAPED), "PrometheusRule", "demo-annheal")
    (group,) = rule["spec"]["groups"]
    manual = (ROOT / "docs" / "operations" / "metrics.md").read_text()
    for alert in group["rules"]:
        assert set(alert) >= {"alert", "expr", "labels", "annotations"}
        assert alert["expr"].count("(") == alert["expr"].count(")")
        assert f"| {alert['alert']} |" in manual
        assert "{{" not in alert["expr"]
    summaries = [alert["annotations"]["summary"] for alert in group["rules"]]
    assert any("{{ $labels.collection }}" in text for text in summaries)


@pytest.mark.parametrize("kind", ["podMonitor", "prometheusRule"])
def test_what_is_not_scraped_has_no_monitor(chart: helm_python.Chart, kind: str) -> None:
    rendered = manifests(chart, {})
    assert not [m for m in rendered if m["apiVersion"].startswith("monitoring.coreos.com/")]
    with pytest.raises(helm_python.HelmRenderError, match=r"metrics\.enabled"):
        render(chart, {"metrics": {kind: {"enabled": True}}})


def test_a_changed_configuration_rolls_the_pods(chart: helm_python.Chart) -> None:
    def checksum(values: Values) -> str:
        node = find(manifests(chart, values), "StatefulSet", "demo-annheal-shard-node")
        return str(node["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"shardNode": {"replicas": 5}})
    assert checksum({}) != checksum({"logLevel": "debug"})
