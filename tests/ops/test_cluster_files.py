"""cluster*.yaml against Ray's own schema and defaults; KubeRay manifests and Dockerfile by what they name.

The CRDs of KubeRay are a megabyte of generated YAML and not a package, so the manifests are held against the fields of
its `ray.io/v1` types, written down here by hand (ray-operator/apis/ray/v1 of KubeRay 1.7). No pod is started.
"""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from llm4sbr_ray.config import load_config
from llm4sbr_ray.serving.app import ServeArgs

ROOT = Path(__file__).parent.parent.parent
CLUSTERS = ["cluster.yaml", "cluster.local.yaml"]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


# ---- ray up


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_takes_the_cluster_file(name: str) -> None:
    config = prepare_config(read(name))  # what `ray up` does first: defaults of the provider, then the schema
    validate_config(config)
    used = {kind["min_workers"] for kind in config["available_node_types"].values()}
    assert max(used) <= config["max_workers"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_misspelt_field_would_be_refused(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config({**read(name), "idle_timeout": 5}))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_dashboard_is_bound_to_the_head_itself(name: str) -> None:
    start = " ".join(read(name)["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in (ROOT / name).read_text()


def test_groups_of_the_aws_cluster() -> None:
    config = prepare_config(read("cluster.yaml"))
    kinds = config["available_node_types"]
    assert kinds["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in kinds["cpu"]["resources"]
    for group in ("cpu", "gpu"):
        node = kinds[group]["node_config"]
        assert kinds[group]["min_workers"] == 0  # nothing to pay for when nothing runs
        assert node["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert node["IamInstanceProfile"] == config["metadata"]["profile"]  # or it could not reach the bucket
    assert kinds["cpu"]["node_config"]["InstanceType"] != kinds["gpu"]["node_config"]["InstanceType"]
    assert any("EXTRA=gpu" in command for command in config["worker_setup_commands"])


# ---- KubeRay


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


INT, TEXT, FLAG = {"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}  # rayStartParams: numbers must be quoted
ANYTHING = {"type": "object"}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"},
}
CONTAINER = fields(
    ("name", "image", "resources"),
    name=TEXT,
    image=TEXT,
    envFrom={"type": "array", "items": ANYTHING},
    env={"type": "array", "items": fields(("name", "value"), name=TEXT, value=TEXT)},
    resources=fields(("requests", "limits"), requests=QUANTITIES, limits=QUANTITIES),
    ports={"type": "array", "items": fields(("containerPort", "name"), containerPort=INT, name=TEXT)},
    volumeMounts={"type": "array", "items": fields(("name", "mountPath"), name=TEXT, mountPath=TEXT)},
)
POD = fields(
    ("spec",),
    spec=fields(
        ("containers",),
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        tolerations={"type": "array", "items": ANYTHING},
        volumes={"type": "array", "items": ANYTHING},
        topologySpreadConstraints={"type": "array", "items": ANYTHING},
        terminationGracePeriodSeconds=INT,
    ),
)
SECRET = fields(valueFrom=ANYTHING)
CLUSTER = fields(
    ("headGroupSpec", "rayVersion"),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=INT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    gcsFaultToleranceOptions=fields(redisAddress=TEXT, redisUsername=SECRET, redisPassword=SECRET),
    headGroupSpec=fields(
        ("rayStartParams", "template"),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=TEXTS,
        template=POD,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=INT,
            minReplicas=INT,
            maxReplicas=INT,
            rayStartParams=TEXTS,
            template=POD,
        ),
    },
)
SPECS = {
    "RayJob": fields(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=INT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=INT,
        rayClusterSpec=CLUSTER,
    ),
    "RayService": fields(
        ("serveConfigV2", "rayClusterConfig"),
        serveConfigV2=TEXT,
        upgradeStrategy=fields(
            type={"enum": ["NewClusterWithIncrementalUpgrade", "NewCluster", "None"]},
            clusterUpgradeOptions=fields(
                ("gatewayClassName", "stepSizePercent", "intervalSeconds"),
                gatewayClassName=TEXT,
                maxSurgePercent=INT,
                stepSizePercent=INT,
                intervalSeconds=INT,
            ),
        ),
        rayClusterDeletionDelaySeconds=INT,
        excludeHeadPodFromServeSvc=FLAG,
        rayClusterConfig=CLUSTER,
    ),
}
MANIFESTS = {"RayJob": "serve_configs/kuberay/rayjob.yaml", "RayService": "serve_configs/kuberay/rayservice.yaml"}


def spec(kind: str) -> Any:
    return read(MANIFESTS[kind])["spec"]


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_use_fields_that_kuberay_has(kind: str) -> None:
    shape = fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields(("name",), name={"type": "string", "pattern": "^[a-z][a-z0-9-]{0,40}$"}),
        spec=SPECS[kind],
    )
    manifest = read(MANIFESTS[kind])
    json.dumps(manifest)
    jsonschema.Draft202012Validator.check_schema(shape)
    jsonschema.validate(manifest, shape)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_clusters_run_the_ray_that_is_pinned_and_keep_their_ports_inside(kind: str) -> None:
    cluster = spec(kind)["rayClusterSpec" if kind == "RayJob" else "rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__ == importlib.metadata.version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_ray_service_serves_what_production_yaml_says() -> None:
    served = yaml.safe_load(spec("RayService")["serveConfigV2"])
    assert served == read("serve_configs/production.yaml"), "copy production.yaml to the end of rayservice.yaml"
    schema = ServeDeploySchema.model_validate(served)
    for application in schema.applications:
        ServeArgs.model_validate(application.args)


def test_the_ray_job_runs_settings_that_exist() -> None:
    words = spec("RayJob")["entrypoint"].replace("'", "").replace("/app/", f"{ROOT}/").split()
    assert words[:2] == ["python", str(ROOT / "jobs" / "pipeline.py")]
    config = load_config(words[2:])
    assert config.storage.startswith("s3://")
    assert config.perspectives.schedule_timeout_s > 300  # a GPU machine takes minutes to come


# ---- the image


def test_the_image_copies_files_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY --chown=ray (.+) \S+$", text, re.M) for word in line.split()]
    assert len(copied) > 6
    assert all((ROOT / name).exists() for name in copied)
    assert "make install EXTRA=${EXTRA}" in text
