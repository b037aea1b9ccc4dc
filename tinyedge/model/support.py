"""What Kubernetes (1.27 to 1.37) has in a pod beyond `pod.py`, and what becomes of it here: one table.

    REFUSED   asks for something that the node would have to do and does not: the object is not taken
    IGNORED   says nothing to a node, or what it says holds anyway: accepted and dropped

A field that stands in neither is not known to Kubernetes. Names are those on the wire, by the Struct that would hold
them. `docs/pod-support.md` is made of this table.
"""

from __future__ import annotations

from msgspec import Struct


class Refused(Struct, frozen=True):
    """`why` also says what to do instead. `harmless` values ask for nothing and are dropped; so are empty ones, unless
    `harmless` is given."""

    why: str
    harmless: tuple[object, ...] = (False, "", [], {})


_NETWORK_STORAGE = Refused("the node mounts no network storage; mount it on the node itself and use hostPath")
_CLOUD_DISK = Refused("a cloud provider's disk; use hostPath for storage of this node")
_NEEDS_CLUSTER = Refused("claims, drivers and classes of storage need a cluster; use hostPath or emptyDir")
_SELINUX = Refused("the node sets no SELinux labels; leave it out")
_WINDOWS = Refused("the node runs Linux")
_DEVICES = Refused("devices are not allocated by claims here; mount the device with hostPath and type CharDevice")
_OWNERS = Refused("the node gives files to fsGroup, not to single users; use fsGroup and mode")

REFUSED: dict[str, dict[str, Refused]] = {
    "PodSpec": {
        "ephemeralContainers": Refused(
            "an API server adds them to a running pod; use `tinyedge exec` to look into one"
        ),
        "evictionResponders": Refused("the node asks nobody before it evicts a pod under pressure"),
        "hostUsers": Refused("the node makes no user namespaces; leave it out, or true", harmless=(True,)),
        "hostnameOverride": Refused("use hostname, which names the pod in its own network too"),
        "os": Refused("the node runs Linux", harmless=({}, {"name": "linux"})),
        "readinessGates": Refused("nobody sets conditions from outside; use a readinessProbe"),
        "resourceClaims": _DEVICES,
        "resources": Refused("limits hold for containers; give them in each container"),
        "runtimeClassName": Refused("every pod runs with the runtime's default handler; leave it out"),
        "schedulingGates": Refused("nobody lifts them on a node; put the manifest in place when the pod may run"),
        "schedulingGroup": Refused("the node schedules nothing, so no group of pods can wait for each other"),
        "setHostnameAsFQDN": Refused("the host name is the short one; the full one stands in /etc/hosts"),
        "workloadRef": Refused("the node schedules nothing, so no group of pods can wait for each other"),
    },
    "Container": {
        "restartPolicyRules": Refused("containers follow the pod's restartPolicy"),
        "volumeDevices": Refused("there are no claims; mount the block device with hostPath and type BlockDevice"),
    },
    "ResourceRequirements": {"claims": _DEVICES},
    "Lifecycle": {"stopSignal": Refused("set STOPSIGNAL in the image, or use preStop")},
    "Volume": {
        "awsElasticBlockStore": _CLOUD_DISK,
        "azureDisk": _CLOUD_DISK,
        "azureFile": _NETWORK_STORAGE,
        "cephfs": _NETWORK_STORAGE,
        "cinder": _CLOUD_DISK,
        "csi": _NEEDS_CLUSTER,
        "ephemeral": _NEEDS_CLUSTER,
        "fc": _NETWORK_STORAGE,
        "flexVolume": _NETWORK_STORAGE,
        "flocker": _NETWORK_STORAGE,
        "gcePersistentDisk": _CLOUD_DISK,
        "gitRepo": Refused("it ran code of the repository as root; clone in an init container into an emptyDir"),
        "glusterfs": _NETWORK_STORAGE,
        "image": Refused("copy the files in an init container of that image into an emptyDir"),
        "iscsi": _NETWORK_STORAGE,
        "nfs": _NETWORK_STORAGE,
        "persistentVolumeClaim": _NEEDS_CLUSTER,
        "photonPersistentDisk": _CLOUD_DISK,
        "portworxVolume": _NETWORK_STORAGE,
        "quobyte": _NETWORK_STORAGE,
        "rbd": _NETWORK_STORAGE,
        "scaleIO": _NETWORK_STORAGE,
        "storageos": _NETWORK_STORAGE,
        "vsphereVolume": _CLOUD_DISK,
    },
    "ProjectedSource": {
        "clusterTrustBundle": Refused("trust bundles are kept by a cluster; put the certificates in a ConfigMap"),
        "podCertificate": Refused("certificates for pods are signed by a cluster; put one in a Secret"),
    },
    "VolumeMount": {
        "bindMountOptions": Refused("mounts are read-write or readOnly, with no further options"),
        # Where a runtime can't do it, IfPossible means Disabled, in Kubernetes too.
        "recursiveReadOnly": Refused(
            "readOnly holds for the mount itself, not for mounts below it; leave it out, or Disabled",
            harmless=("", "Disabled", "IfPossible"),
        ),
    },
    "EmptyDirVolume": {"mode": Refused("an emptyDir has mode 0777, and belongs to fsGroup when there is one")},
    "ConfigMapVolume": {"defaultUser": _OWNERS},
    "SecretVolume": {"defaultUser": _OWNERS},
    "DownwardAPIVolume": {"defaultUser": _OWNERS},
    "ProjectedVolume": {"defaultUser": _OWNERS},
    "DownwardAPIItem": {"user": _OWNERS},
    "KeyToPath": {"user": _OWNERS},
    "ServiceAccountTokenProjection": {"user": _OWNERS},
    "EnvVarSource": {"fileKeyRef": Refused("read the file in the container, or use a ConfigMap or Secret")},
    "HTTPGetAction": {"protocol": Refused("probes speak HTTP/1.1", harmless=("", "HTTP1", "HTTP/1.1"))},
    "GRPCAction": {"mode": Refused("probes speak plain gRPC, without TLS")},
    "SecurityContext": {"seLinuxOptions": _SELINUX, "windowsOptions": _WINDOWS},
    "PodSecurityContext": {
        "seLinuxChangePolicy": _SELINUX,
        "seLinuxOptions": _SELINUX,
        "supplementalGroupsPolicy": Refused(
            "the groups of the image's user are kept; leave it out, or Merge", harmless=("", "Merge")
        ),
        "windowsOptions": _WINDOWS,
    },
}

_BOOKKEEPING = "an API server's own bookkeeping"
_NO_SCHEDULER = "the pod is already where it will run"

IGNORED: dict[str, dict[str, str]] = {
    "Pod": {"status": "the node reports its own"},
    "ObjectMeta": {
        "finalizers": "the API server waits for them, not the node",
        "generateName": _BOOKKEEPING,
        "generation": _BOOKKEEPING,
        "managedFields": _BOOKKEEPING,
        "ownerReferences": "owners delete through the API server",
        "resourceVersion": _BOOKKEEPING,
        "selfLink": _BOOKKEEPING,
    },
    "PodSpec": {
        "affinity": _NO_SCHEDULER,
        "automountServiceAccountToken": "an API server has already added the volume that it asks for",
        "enableServiceLinks": "there are no variables for services on a node",
        "nodeSelector": _NO_SCHEDULER,
        "overhead": "it belongs to a runtime class; there is just the default one",
        "preemptionPolicy": _NO_SCHEDULER,
        "schedulerName": _NO_SCHEDULER,
        "serviceAccount": "an older name of serviceAccountName, which is used when that is not given",
        "tolerations": _NO_SCHEDULER,
        "topologySpreadConstraints": _NO_SCHEDULER,
    },
    "Container": {"resizePolicy": "a container whose resources change is started anew"},
}

# Kinds that people put into a manifest folder, and what to do instead.
_CONTROLLER = "write the Pod that it would make"
KINDS: dict[str, str] = {
    "CronJob": "a Pod runs once; use a timer of the machine with `tinyedge apply`",
    "DaemonSet": _CONTROLLER,
    "Deployment": _CONTROLLER,
    "Ingress": "give the container a hostPort, or the pod hostNetwork",
    "Job": f"{_CONTROLLER}, with restartPolicy OnFailure or Never",
    "Namespace": "namespaces need not be made: name one in metadata.namespace",
    "PersistentVolume": "use a hostPath or emptyDir volume in the Pod",
    "PersistentVolumeClaim": "use a hostPath or emptyDir volume in the Pod",
    "ReplicaSet": _CONTROLLER,
    "ReplicationController": _CONTROLLER,
    "Service": "give the container a hostPort, or the pod hostNetwork",
    "ServiceAccount": "accounts are kept by a cluster; leave it out",
    "StatefulSet": _CONTROLLER,
}


def refusal(owner: str, name: str, value: object) -> str | None:
    """Why field `name` of `owner` can't be taken with this value; None when it can be dropped.

    Raises KeyError for a field that Kubernetes does not have."""
    refused = REFUSED.get(owner, {}).get(name)
    if refused is None:
        _ = IGNORED[owner][name]
        return None
    # Without types True equals 1: no harmless value is a number.
    harmless = any(value == one and type(value) is type(one) for one in refused.harmless)
    return None if harmless else refused.why


def known(owner: str) -> list[str]:
    """The fields of `owner` that this table speaks of."""
    return [*REFUSED.get(owner, {}), *IGNORED.get(owner, {})]
