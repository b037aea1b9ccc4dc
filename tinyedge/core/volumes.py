"""The volumes of a pod: what is to stand on the node, and where its containers see it.

A volume lives at `<pods_dir>/<uid>/volumes/<kind>/<name>` and what is mounted from below it with a subPath at
`<pods_dir>/<uid>/volume-subpaths/<volume>/<container>/<index>`; a hostPath volume is where it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tinyedge.core import env, resources
from tinyedge.core.env import Around
from tinyedge.core.refs import Refs, Unready
from tinyedge.errors import InvariantBroken, require
from tinyedge.events import NodeFacts
from tinyedge.model import quantity
from tinyedge.model.pod import (
    Container,
    DownwardAPIItem,
    EmptyDirVolume,
    KeyToPath,
    Pod,
    ProjectedSource,
    ProjectedVolume,
    ServiceAccountTokenProjection,
    Volume,
    VolumeMount,
)
from tinyedge.model.runtime import (
    EmptyDirPlan,
    FilesPlan,
    HostPathPlan,
    Mount,
    ProjectedFile,
    SubpathPlan,
    VolumePlan,
)

Files = tuple[ProjectedFile, ...]

WAITS_FOR_CLOUD = "waiting for a token from the cloud"
_GROUP_CAN_READ = 0o440  # what fsGroup adds to the mode of each file that the node writes


def volumes(pod: Pod, around: Around) -> tuple[VolumePlan, ...] | Unready:
    """One plan for each volume, or what the first one that can't be made waits for."""
    plans: list[VolumePlan] = []
    for volume in pod.spec.volumes:
        plan = _plan(pod, volume, around)
        if isinstance(plan, Unready):
            return Unready("FailedMount", f'volume "{volume.name}": {plan.message}')
        plans.append(plan)
    return tuple(plans)


def mounts(pod: Pod, container: Container, node: NodeFacts, known: Mapping[str, str]) -> tuple[Mount, ...] | Unready:
    """Of the container's `volumeMounts`; `known` is its environment, which a subPathExpr refers to."""
    out = []
    for index, mount in enumerate(container.volume_mounts):
        volume = find_volume(pod, mount.name)
        subpath = _subpath(mount, known)
        if isinstance(subpath, Unready):
            return subpath
        host_path = subpath_target(pod, container, index, node) if subpath else volume_path(pod, volume, node)
        read_only = mount.read_only or _written_by_the_node(volume)
        out.append(Mount(mount.mount_path, host_path, read_only=read_only, propagation=mount.mount_propagation))
    return tuple(out)


def subpaths(pod: Pod, container: Container, node: NodeFacts, known: Mapping[str, str]) -> tuple[SubpathPlan, ...]:
    """What is to be bound before the container is created. Empty for a mount that `mounts` finds unready."""
    out = []
    for index, mount in enumerate(container.volume_mounts):
        subpath = _subpath(mount, known)
        if isinstance(subpath, str) and subpath:
            volume = find_volume(pod, mount.name)
            out.append(
                SubpathPlan(
                    volume_path=volume_path(pod, volume, node),
                    subpath=subpath,
                    target=subpath_target(pod, container, index, node),
                    read_only=mount.read_only or _written_by_the_node(volume),
                    create=not _written_by_the_node(volume),
                )
            )
    return tuple(out)


def volume_path(pod: Pod, volume: Volume, node: NodeFacts) -> str:
    if volume.host_path is not None:
        return volume.host_path.path
    return f"{pod_dir(pod, node)}/volumes/{kind_directory(volume)}/{volume.name}"


def subpath_target(pod: Pod, container: Container, index: int, node: NodeFacts) -> str:
    mount = container.volume_mounts[index]
    return f"{pod_dir(pod, node)}/volume-subpaths/{mount.name}/{container.name}/{index}"


def pod_dir(pod: Pod, node: NodeFacts) -> str:
    return f"{node.pods_dir}/{pod.metadata.uid}"


def find_volume(pod: Pod, name: str) -> Volume:
    found = [volume for volume in pod.spec.volumes if volume.name == name]
    require(found, "a mount's volume was checked when the pod was decoded")
    return found[0]


def kind_directory(volume: Volume) -> str:
    """The directory in which volumes of its kind lie, spelled as the kubelet does it."""
    kinds = {
        "kubernetes.io~empty-dir": volume.empty_dir,
        "kubernetes.io~host-path": volume.host_path,
        "kubernetes.io~configmap": volume.config_map,
        "kubernetes.io~secret": volume.secret,
        "kubernetes.io~downward-api": volume.downward_api,
        "kubernetes.io~projected": volume.projected,
    }
    return next(kind for kind, source in kinds.items() if source is not None)


def holds_token(volume: Volume) -> bool:
    """Whether a service account token belongs into it."""
    return volume.projected is not None and any(one.service_account_token for one in volume.projected.sources)


def _written_by_the_node(volume: Volume) -> bool:
    return volume.empty_dir is None and volume.host_path is None


def _subpath(mount: VolumeMount, known: Mapping[str, str]) -> str | Unready:
    if not mount.sub_path_expr:
        return mount.sub_path
    if unknown := env.unknown_references(mount.sub_path_expr, known):
        return _config_error(mount, f"refers to variable {unknown[0]}, which the container does not have")
    subpath = env.expand(mount.sub_path_expr, known)
    if subpath.startswith("/") or ".." in subpath.split("/"):
        return _config_error(mount, f"gives {subpath!r}, which is not a path below the volume")
    return subpath


def _config_error(mount: VolumeMount, why: str) -> Unready:
    return Unready("CreateContainerConfigError", f"subPathExpr {mount.sub_path_expr!r} of {mount.mount_path} {why}")


# --- one volume ----------------------------------------------------------------------------------


def _plan(pod: Pod, volume: Volume, around: Around) -> VolumePlan | Unready:
    path = volume_path(pod, volume, around.node)
    group = pod.spec.security_context.fs_group if pod.spec.security_context else None
    if volume.host_path is not None:
        return HostPathPlan(volume.name, path, volume.host_path.type)
    if volume.empty_dir is not None:
        memory = volume.empty_dir.medium == "Memory"
        return EmptyDirPlan(volume.name, path, memory, _size(pod, volume.empty_dir), group)
    files = _files(pod, volume, around)
    if isinstance(files, Unready):
        return files
    if group is not None:
        files = tuple(ProjectedFile(one.path, one.data, one.mode | _GROUP_CAN_READ) for one in files)
    return FilesPlan(volume.name, path, files, memory=_is_secret(volume), group=group)


def _size(pod: Pod, volume: EmptyDirVolume) -> int:
    """Bytes; 0 when there is no limit. Files in memory count as the pod's memory, so its limit is one for them too."""
    size = quantity.units(volume.size_limit) if volume.size_limit is not None else 0
    pod_limit = resources.pod_memory_limit(pod) if volume.medium == "Memory" else 0
    return min(size, pod_limit) if size and pod_limit else size or pod_limit


def _is_secret(volume: Volume) -> bool:
    projected = volume.projected.sources if volume.projected is not None else []
    return volume.secret is not None or any(one.secret or one.service_account_token for one in projected)


def _files(pod: Pod, volume: Volume, around: Around) -> Files | Unready:
    if volume.config_map is not None:
        of = volume.config_map
        return _of_config_map(pod, of.name, around.refs, of.items, of.default_mode, optional=of.optional)
    if volume.secret is not None:
        kept = volume.secret
        return _of_secret(pod, kept.secret_name, around.refs, kept.items, kept.default_mode, optional=kept.optional)
    if volume.downward_api is not None:
        return _downward(pod, volume.downward_api.items, volume.downward_api.default_mode, around)
    if volume.projected is not None:
        return _projected(pod, volume, volume.projected, around)
    raise InvariantBroken("a volume has one source: checked when the pod was decoded")


def _projected(pod: Pod, volume: Volume, projected: ProjectedVolume, around: Around) -> Files | Unready:
    """The sources one after the other; of two files at one path the later stands."""
    found: dict[str, ProjectedFile] = {}
    lenient = holds_token(volume) and not around.refs.from_cloud(pod)
    for source in projected.sources:
        files = _of_source(pod, source, projected.default_mode, around, lenient=lenient)
        if isinstance(files, Unready):
            return files
        found.update({one.path: one for one in files})
    return tuple(found[path] for path in sorted(found))


def _of_source(pod: Pod, source: ProjectedSource, mode: int, around: Around, *, lenient: bool) -> Files | Unready:
    """`lenient` is for the volume with which an API server gives every pod access to itself: where no cluster is
    connected, the certificates beside the token are not there, and that keeps no pod from running."""
    if source.config_map is not None:
        of = source.config_map
        return _of_config_map(pod, of.name, around.refs, of.items, mode, optional=of.optional or lenient)
    if source.secret is not None:
        kept = source.secret
        return _of_secret(pod, kept.name, around.refs, kept.items, mode, optional=kept.optional)
    if source.downward_api is not None:
        return _downward(pod, source.downward_api.items, mode, around)
    if source.service_account_token is not None:
        return _of_token(pod, source.service_account_token, mode, around)
    raise InvariantBroken("a source is one thing: checked when the pod was decoded")


def _of_token(pod: Pod, wanted: ServiceAccountTokenProjection, mode: int, around: Around) -> Files | Unready:
    """A pod that no cluster has given to this node gets an empty file; another waits for its first token."""
    if not around.refs.from_cloud(pod):
        return (ProjectedFile(wanted.path, b"", mode),)
    token = around.refs.token(pod, wanted)
    if token is None:
        return Unready("FailedMount", WAITS_FOR_CLOUD)
    return (ProjectedFile(wanted.path, token.encode(), mode),)


def _of_config_map(
    pod: Pod, name: str, refs: Refs, items: Sequence[KeyToPath], mode: int, *, optional: bool
) -> Files | Unready:
    found = refs.configmap(f"{pod.metadata.namespace}/{name}")
    if found is None:
        return () if optional else env.missing("configmap", name)
    data = {**{key: text.encode() for key, text in found.data.items()}, **found.binary_data}
    return _of_keys(data, f"ConfigMap {found.key}", items, mode, optional=optional)


def _of_secret(
    pod: Pod, name: str, refs: Refs, items: Sequence[KeyToPath], mode: int, *, optional: bool
) -> Files | Unready:
    found = refs.secret(f"{pod.metadata.namespace}/{name}")
    if found is None:
        return () if optional else env.missing("secret", name)
    return _of_keys(found.data, f"Secret {found.key}", items, mode, optional=optional)


def _of_keys(
    data: Mapping[str, bytes], of: str, items: Sequence[KeyToPath], mode: int, *, optional: bool
) -> Files | Unready:
    """Every key as a file of its name, or just the `items` named."""
    if not items:
        return tuple(ProjectedFile(key, data[key], mode) for key in sorted(data))
    files = []
    for item in items:
        if item.key in data:
            files.append(ProjectedFile(item.path, data[item.key], mode if item.mode is None else item.mode))
        elif not optional:
            return Unready("FailedMount", f"couldn't find key {item.key} in {of}")
    return tuple(files)


def _downward(pod: Pod, items: Iterable[DownwardAPIItem], mode: int, around: Around) -> Files:
    files = []
    for item in items:
        if item.field_ref is not None:
            text = env.field_value(pod, item.field_ref.field_path, around)
        elif item.resource_field_ref is not None:
            container = env.find_container(pod, item.resource_field_ref.container_name)
            text = env.resource_value(container, item.resource_field_ref, around.node)
        else:
            raise InvariantBroken("an item has one source: checked when the pod was decoded")
        files.append(ProjectedFile(item.path, text.encode(), mode if item.mode is None else item.mode))
    return tuple(files)
