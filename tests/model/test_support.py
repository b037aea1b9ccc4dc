"""The table of what is not acted upon: complete, without overlap, and told in docs/pod-support.md."""

from __future__ import annotations

import pytest
from msgspec import Struct

from tests import docs
from tests.docs_pods import pod_support
from tinyedge.model import pod as shapes
from tinyedge.model import support
from tinyedge.model.decode import fields_of

# Every field that Kubernetes 1.27 to 1.37 has, by our Struct. Facts, from its published API.
KUBERNETES = {
    "Pod": "metadata spec status",
    "ObjectMeta": "annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName"
    " generation labels managedFields name namespace ownerReferences resourceVersion selfLink uid",
    "ConfigMap": "binaryData data immutable metadata",
    "Secret": "data immutable metadata type",
    "PodSpec": "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy"
    " enableServiceLinks ephemeralContainers evictionResponders hostAliases hostIPC hostNetwork hostPID hostUsers"
    " hostname hostnameOverride imagePullSecrets initContainers nodeName nodeSelector os overhead preemptionPolicy"
    " priority priorityClassName readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName"
    " schedulingGates schedulingGroup securityContext serviceAccount serviceAccountName setHostnameAsFQDN"
    " shareProcessNamespace subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes"
    " workloadRef",
    "Container": "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe"
    " resizePolicy resources restartPolicy restartPolicyRules securityContext startupProbe stdin stdinOnce"
    " terminationMessagePath terminationMessagePolicy tty volumeDevices volumeMounts workingDir",
    "Volume": "awsElasticBlockStore azureDisk azureFile cephfs cinder configMap csi downwardAPI emptyDir ephemeral fc"
    " flexVolume flocker gcePersistentDisk gitRepo glusterfs hostPath image iscsi name nfs persistentVolumeClaim"
    " photonPersistentDisk portworxVolume projected quobyte rbd scaleIO secret storageos vsphereVolume",
    "VolumeMount": "bindMountOptions mountPath mountPropagation name readOnly recursiveReadOnly subPath subPathExpr",
    "ContainerPort": "containerPort hostIP hostPort name protocol",
    "ResourceRequirements": "claims limits requests",
    "KeySelector": "key name optional",
    "ObjectFieldSelector": "apiVersion fieldPath",
    "ResourceFieldSelector": "containerName divisor resource",
    "EnvVarSource": "configMapKeyRef fieldRef fileKeyRef resourceFieldRef secretKeyRef",
    "EnvVar": "name value valueFrom",
    "EnvFromSource": "configMapRef prefix secretRef",
    "ObjectRef": "name optional",
    "ExecAction": "command",
    "HTTPHeader": "name value",
    "HTTPGetAction": "host httpHeaders path port protocol scheme",
    "TCPSocketAction": "host port",
    "GRPCAction": "mode port service",
    "Probe": "exec failureThreshold grpc httpGet initialDelaySeconds periodSeconds successThreshold tcpSocket"
    " terminationGracePeriodSeconds timeoutSeconds",
    "SleepAction": "seconds",
    "LifecycleHandler": "exec httpGet sleep tcpSocket",
    "Lifecycle": "postStart preStop stopSignal",
    "Capabilities": "add drop",
    "Profile": "localhostProfile type",
    "SecurityContext": "allowPrivilegeEscalation appArmorProfile capabilities privileged procMount"
    " readOnlyRootFilesystem runAsGroup runAsNonRoot runAsUser seLinuxOptions seccompProfile windowsOptions",
    "Sysctl": "name value",
    "PodSecurityContext": "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser"
    " seLinuxChangePolicy seLinuxOptions seccompProfile supplementalGroups supplementalGroupsPolicy sysctls"
    " windowsOptions",
    "KeyToPath": "key mode path user",
    "EmptyDirVolume": "medium mode sizeLimit",
    "HostPathVolume": "path type",
    "ConfigMapVolume": "defaultMode defaultUser items name optional",
    "SecretVolume": "defaultMode defaultUser items optional secretName",
    "DownwardAPIVolume": "defaultMode defaultUser items",
    "DownwardAPIItem": "fieldRef mode path resourceFieldRef user",
    "ProjectedObject": "items name optional",
    "ProjectedDownward": "items",
    "ServiceAccountTokenProjection": "audience expirationSeconds path user",
    "ProjectedSource": "clusterTrustBundle configMap downwardAPI podCertificate secret serviceAccountToken",
    "ProjectedVolume": "defaultMode defaultUser sources",
    "HostAlias": "hostnames ip",
    "PodDNSConfig": "nameservers options searches",
    "DNSOption": "name value",
    "LocalRef": "name",
}

SHAPES: dict[str, type[Struct]] = {
    name: shape
    for name, shape in vars(shapes).items()
    if isinstance(shape, type) and issubclass(shape, shapes.K8s) and shape is not shapes.K8s
}


def test_every_shape_is_held_against_kubernetes() -> None:
    assert SHAPES.keys() == KUBERNETES.keys()


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_field_of_kubernetes_is_supported_refused_or_without_meaning(name: str) -> None:
    ours = set(fields_of(SHAPES[name]))
    spoken_of = support.known(name)
    assert ours | set(spoken_of) == set(KUBERNETES[name].split())
    assert len(ours) + len(spoken_of) == len(ours | set(spoken_of)), "each stands in one place"


def test_the_table_speaks_of_nothing_else() -> None:
    assert support.REFUSED.keys() | support.IGNORED.keys() <= KUBERNETES.keys()


def test_every_reason_says_what_to_do_or_why_it_does_not_matter() -> None:
    reasons = [one.why for fields in support.REFUSED.values() for one in fields.values()]
    reasons += [why for fields in support.IGNORED.values() for why in fields.values()]
    assert all(len(why) > 15 and not why.endswith(".") for why in reasons)


@pytest.mark.parametrize("harmless", [None, False, "", [], {}])
def test_a_refused_field_that_asks_for_nothing_is_dropped(harmless: object) -> None:
    assert harmless is None or support.refusal("PodSpec", "setHostnameAsFQDN", harmless) is None


def test_false_is_not_harmless_where_it_asks_for_something() -> None:
    assert support.refusal("PodSpec", "hostUsers", value=True) is None
    assert support.refusal("PodSpec", "hostUsers", value=False) is not None


def test_one_and_true_are_not_the_same() -> None:
    assert support.refusal("PodSpec", "hostUsers", 1) is not None
    assert support.refusal("PodSpec", "setHostnameAsFQDN", 0) is not None


def test_a_field_that_kubernetes_does_not_have_is_not_in_the_table() -> None:
    with pytest.raises(KeyError):
        support.refusal("PodSpec", "replicas", 3)
    with pytest.raises(KeyError):
        support.refusal("HostAlias", "names", [])


def test_the_page_on_pod_fields_is_fresh() -> None:
    assert docs.POD_SUPPORT.read_text() == pod_support(), "run `make docs`"
