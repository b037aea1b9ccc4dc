"""Pods for tests, as mappings: the least that is one, one with everything, and one as an API server makes it."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def container(**fields: Any) -> Json:
    return {"name": "main", "image": "busybox:1.36", **fields}


def pod(*containers: Json, **spec: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "uid": "8a6e0804-2bd0-4672-b79d-d97027f9071a"},
        "spec": {"containers": list(containers) or [container()], **spec},
    }


def config_map(name: str = "settings", **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def from_an_api_server() -> Json:
    """With what admission and a scheduler add to each pod, and a kubelet's status."""
    never = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    access = {
        "defaultMode": 420,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {
                "downwardAPI": {
                    "items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
                    ]
                }
            },
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-7d5c9",
            "generateName": "web-",
            "namespace": "shop",
            "uid": "3c1b45cc-9965-4367-9bd4-5d53910280c4",
            "resourceVersion": "1484",
            "generation": 1,
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "deletionTimestamp": None,
            "labels": {"app.kubernetes.io/name": "web"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "kept"},
            "finalizers": ["batch.kubernetes.io/job-tracking"],
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u"}],
            "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {
            "volumes": [{"name": "kube-api-access-x2b4c", "projected": access}],
            "containers": [
                {
                    "name": "main",
                    "image": "busybox:1.36",
                    "resources": {},
                    "volumeMounts": [
                        {
                            "name": "kube-api-access-x2b4c",
                            "readOnly": True,
                            "recursiveReadOnly": "Disabled",
                            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                        }
                    ],
                    "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "imagePullPolicy": "IfNotPresent",
                }
            ],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "serviceAccountName": "shop",
            "serviceAccount": "shop",
            "nodeName": "edge-1",
            "securityContext": {},
            "affinity": {"nodeAffinity": {}},
            "schedulerName": "default-scheduler",
            "tolerations": [{"key": f"node.kubernetes.io/{why}", **never} for why in ("not-ready", "unreachable")],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
            "priority": 0,
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
            "hostUsers": True,
            "os": {"name": "linux"},
            "schedulingGates": [],
            "overhead": {"cpu": "250m"},
        },
        "status": {
            "phase": "Running",
            "qosClass": "BestEffort",
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": None}],
            "podIPs": [{"ip": "10.1.2.3"}],
        },
    }


def with_everything() -> Json:
    """A value other than the default in every field that a node understands."""
    http = {
        "path": "/live",
        "port": "web",
        "host": "h",
        "scheme": "HTTPS",
        "httpHeaders": [{"name": "A", "value": "b"}],
    }
    times = {"initialDelaySeconds": 3, "timeoutSeconds": 4, "periodSeconds": 5, "failureThreshold": 6}
    items = [{"key": "k", "path": "a/b", "mode": 0o400}]
    field = {"apiVersion": "v1", "fieldPath": "metadata.name"}
    resource = {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}
    downward = [
        {"path": "name", "fieldRef": field, "mode": 0o444},
        {"path": "cpu", "resourceFieldRef": resource},
    ]
    main = container(
        command=["sh"],
        args=["-c", "$(A)"],
        workingDir="/w",
        env=[
            {"name": "A", "value": "1"},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k", "optional": True}}},
            {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "D", "valueFrom": {"fieldRef": field}},
            {"name": "E", "valueFrom": {"resourceFieldRef": resource}},
        ],
        envFrom=[{"prefix": "P_", "configMapRef": {"name": "c", "optional": True}}, {"secretRef": {"name": "s"}}],
        ports=[{"name": "web", "containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1", "protocol": "UDP"}],
        resources={"requests": {"cpu": 0.5}, "limits": {"cpu": 1, "memory": "1Gi", "ephemeral-storage": "1G"}},
        volumeMounts=[
            {"name": "dir", "mountPath": "/dir", "subPath": "a/b", "readOnly": True},
            {"name": "host", "mountPath": "/host", "subPathExpr": "$(A)", "mountPropagation": "HostToContainer"},
        ],
        livenessProbe={"httpGet": http, **times, "terminationGracePeriodSeconds": 7},
        readinessProbe={"tcpSocket": {"port": 80, "host": "h"}, **times, "successThreshold": 2},
        startupProbe={"grpc": {"port": 9000, "service": "s"}, **times},
        lifecycle={"postStart": {"exec": {"command": ["true"]}}, "preStop": {"sleep": {"seconds": 2}}},
        terminationMessagePath="/tmp/message",
        terminationMessagePolicy="FallbackToLogsOnError",
        imagePullPolicy="Never",
        securityContext={
            "runAsUser": 1,
            "runAsGroup": 2,
            "runAsNonRoot": True,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"},
            "appArmorProfile": {"type": "Localhost", "localhostProfile": "own"},
            "procMount": "Unmasked",
        },
        stdin=True,
        stdinOnce=True,
        tty=True,
    )
    hook = {"tcpSocket": {"port": "81"}}
    sidecar = container(name="sidecar", restartPolicy="Always", lifecycle={"preStop": hook})
    return pod(
        main,
        initContainers=[sidecar, container(name="init")],
        volumes=[
            {"name": "dir", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "host", "hostPath": {"path": "/srv", "type": "Directory"}},
            {"name": "c", "configMap": {"name": "c", "items": items, "defaultMode": 0o440, "optional": True}},
            {"name": "s", "secret": {"secretName": "s", "items": items, "defaultMode": 0o400, "optional": True}},
            {"name": "down", "downwardAPI": {"items": downward, "defaultMode": 0o444}},
            {
                "name": "all",
                "projected": {
                    "defaultMode": 0o444,
                    "sources": [
                        {"configMap": {"name": "c", "items": items, "optional": True}},
                        {"secret": {"name": "s", "items": items}},
                        {"downwardAPI": {"items": downward}},
                        {"serviceAccountToken": {"path": "token", "audience": "a", "expirationSeconds": 600}},
                    ],
                },
            },
        ],
        restartPolicy="OnFailure",
        terminationGracePeriodSeconds=0,
        activeDeadlineSeconds=60,
        dnsPolicy="None",
        dnsConfig={"nameservers": ["::1"], "searches": ["a_b.example."], "options": [{"name": "ndots", "value": "2"}]},
        hostAliases=[{"ip": "10.0.0.1", "hostnames": ["a", "b.example"]}],
        hostname="host",
        subdomain="sub",
        hostIPC=False,
        shareProcessNamespace=True,
        securityContext={
            "runAsUser": 3,
            "supplementalGroups": [4],
            "fsGroup": 5,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
            "appArmorProfile": {"type": "Unconfined"},
            "sysctls": [{"name": "net.core.somaxconn", "value": "1024"}],
        },
        imagePullSecrets=[{"name": "registry"}],
        nodeName="edge-1",
        serviceAccountName="shop",
        priorityClassName="system-node-critical",
        priority=7,
    )
