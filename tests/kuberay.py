"""The fields of Kubernetes and of KubeRay (ray.io/v1, operator 1.7) that `docker/kuberay/` uses, and no
others: a name that is misspelt is refused.

Kubernetes itself drops unknown fields without a word where they come by an old client, so a typing error
would only be seen as something that does not work.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]
Count = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: str | None = None
    generateName: str | None = None
    labels: dict[str, str] = {}


class SecretKey(Strict):
    name: str
    key: str
    optional: bool = False


class ValueFrom(Strict):
    secretKeyRef: SecretKey


class Variable(Strict):
    name: str
    value: str | None = None
    valueFrom: ValueFrom | None = None


class FromSecret(Strict):
    """A password: KubeRay would also take it in the open."""

    valueFrom: ValueFrom


class Port(Strict):
    name: str
    containerPort: int


class Mount(Strict):
    name: str
    mountPath: str


class HttpGet(Strict):
    path: str
    port: int


class TcpSocket(Strict):
    port: int


class Probe(Strict):
    httpGet: HttpGet | None = None
    tcpSocket: TcpSocket | None = None
    initialDelaySeconds: Count
    periodSeconds: Count
    timeoutSeconds: Count = 1
    failureThreshold: Count = 3


class Resources(Strict):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu", "storage"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity] = {}


class Capabilities(Strict):
    drop: list[Literal["ALL"]]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Container(Strict):
    name: str
    image: Annotated[str, Field(pattern=r":\d")]
    imagePullPolicy: Literal["IfNotPresent", "Always"]
    securityContext: ContainerSecurity
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    ports: list[Port]
    resources: Resources
    volumeMounts: list[Mount]
    livenessProbe: Probe
    readinessProbe: Probe


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: Annotated[int, Field(gt=0)]
    runAsGroup: Annotated[int, Field(gt=0)]
    fsGroup: Annotated[int, Field(gt=0)]
    fsGroupChangePolicy: Literal["OnRootMismatch", "Always"] = "Always"


class Claim(Strict):
    claimName: str


class EmptyDir(Strict):
    medium: Literal["Memory", ""] = ""
    sizeLimit: Quantity | None = None


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class PodSpec(Strict):
    securityContext: PodSecurity
    tolerations: list[Toleration] = []
    containers: Annotated[list[Container], Field(min_length=1)]
    terminationGracePeriodSeconds: Count = 30
    volumes: list[Volume] = []


class PodTemplate(Strict):
    metadata: Metadata | None = None
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # strings, numbers too
    template: PodTemplate


class WorkerGroup(HeadGroup):
    groupName: str
    replicas: Count
    minReplicas: Count
    maxReplicas: Count


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    idleTimeoutSeconds: Count
    imagePullPolicy: Literal["IfNotPresent", "Always"]
    resources: Resources


class AuthOptions(Strict):
    mode: Literal["token"]


class FaultTolerance(Strict):
    redisAddress: str
    redisPassword: FromSecret


class RayClusterSpec(Strict):
    rayVersion: str
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: AutoscalerOptions
    authOptions: AuthOptions
    gcsFaultToleranceOptions: FaultTolerance | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJobSpec(Strict):
    entrypoint: str
    entrypointNumCpus: float
    metadata: dict[str, str]
    backoffLimit: Literal[0]
    activeDeadlineSeconds: Count
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: Count
    rayClusterSpec: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class Core(Strict):
    """Kinds of Kubernetes itself: their names are checked here, pods of a StatefulSet by `PodTemplate`."""

    apiVersion: Literal["v1", "apps/v1", "networking.k8s.io/v1"]
    kind: Literal["PersistentVolumeClaim", "Service", "StatefulSet", "NetworkPolicy"]
    metadata: Metadata
    spec: dict[str, Any]
