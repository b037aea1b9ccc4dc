"""What must hold in the volumes of a pod."""

from __future__ import annotations

from collections.abc import Sequence

from tinyedge.errors import BadInput
from tinyedge.limits import VOLUMES_PER_POD_MAX
from tinyedge.model import findings, names
from tinyedge.model.checks_container import field_path_problems, resource_problems
from tinyedge.model.findings import Bad, Shown, each_once, must, one_of, one_source, within
from tinyedge.model.pod import (
    DownwardAPIItem,
    EmptyDirVolume,
    HostPathVolume,
    KeyToPath,
    PodSpec,
    ProjectedSource,
    ProjectedVolume,
    Volume,
)

SOURCES = ("emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected")
HOST_PATH_TYPES = (
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
)
_BELOW_WORDS = "a path below the volume: relative, without '..'"
_TOKEN_S_MIN = 600
_TOKEN_S_MAX = 2**32


def volume_problems(spec: PodSpec, bad: Bad) -> None:
    if len(spec.volumes) > VOLUMES_PER_POD_MAX:
        bad.append(BadInput("spec.volumes", Shown(f"a list of {len(spec.volumes)}"), f"at most {VOLUMES_PER_POD_MAX}"))
    each_once(bad, "spec.volumes", (volume.name for volume in spec.volumes), "name")
    for index, volume in enumerate(spec.volumes):
        _volume(spec, volume, f"spec.volumes[{index}]", bad)


def _volume(spec: PodSpec, volume: Volume, path: str, bad: Bad) -> None:
    must(bad, names.is_label(volume.name), f"{path}.name", volume.name, names.LABEL_WORDS)
    one_source(bad, path, volume, SOURCES)
    if volume.empty_dir is not None:
        _empty_dir(volume.empty_dir, f"{path}.emptyDir", bad)
    if volume.host_path is not None:
        _host_path(volume.host_path, f"{path}.hostPath", bad)
    if volume.config_map is not None:
        held = volume.config_map
        _object(held.name, f"{path}.configMap.name", bad)
        _items(held.items, held.default_mode, f"{path}.configMap", bad)
    if volume.secret is not None:
        kept = volume.secret
        _object(kept.secret_name, f"{path}.secret.secretName", bad)
        _items(kept.items, kept.default_mode, f"{path}.secret", bad)
    if volume.downward_api is not None:
        findings.mode(bad, f"{path}.downwardAPI.defaultMode", volume.downward_api.default_mode)
        _downward(spec, volume.downward_api.items, f"{path}.downwardAPI", bad)
    if volume.projected is not None:
        _projected(spec, volume.projected, f"{path}.projected", bad)


def _empty_dir(volume: EmptyDirVolume, path: str, bad: Bad) -> None:
    findings.amount(bad, f"{path}.sizeLimit", volume.size_limit)
    if volume.medium.startswith("HugePages"):
        bad.append(BadInput(f"{path}.medium", volume.medium, "Memory, or none: the node gives no huge pages"))
    else:
        one_of(bad, f"{path}.medium", volume.medium, ("", "Memory"))


def _host_path(volume: HostPathVolume, path: str, bad: Bad) -> None:
    words = "an absolute path on the node, without '..'"
    must(bad, names.is_absolute_path(volume.path), f"{path}.path", volume.path, words)
    one_of(bad, f"{path}.type", volume.type, HOST_PATH_TYPES)


def _object(name: str, path: str, bad: Bad) -> None:
    must(bad, names.is_subdomain(name), path, name, names.SUBDOMAIN_WORDS)


def _items(items: Sequence[KeyToPath], default_mode: int | None, path: str, bad: Bad) -> None:
    findings.mode(bad, f"{path}.defaultMode", default_mode)
    for index, item in enumerate(items):
        where = f"{path}.items[{index}]"
        must(bad, names.is_key(item.key), f"{where}.key", item.key, names.KEY_WORDS)
        _file_path(item.path, f"{where}.path", bad)
        findings.mode(bad, f"{where}.mode", item.mode)


def _file_path(text: str, path: str, bad: Bad) -> None:
    # What begins with '..' is kept for the swap of versions.
    must(bad, names.is_path_below(text) and not text.startswith(".."), path, text, _BELOW_WORDS)


def _downward(spec: PodSpec, items: Sequence[DownwardAPIItem], path: str, bad: Bad) -> None:
    for index, item in enumerate(items):
        where = f"{path}.items[{index}]"
        _file_path(item.path, f"{where}.path", bad)
        findings.mode(bad, f"{where}.mode", item.mode)
        one_source(bad, where, item, ("fieldRef", "resourceFieldRef"))
        if item.field_ref is not None:
            field_path_problems(item.field_ref, f"{where}.fieldRef", bad, in_volume=True)
        if item.resource_field_ref is not None:
            resource_problems(spec, item.resource_field_ref, f"{where}.resourceFieldRef", bad, in_volume=True)


def _projected(spec: PodSpec, volume: ProjectedVolume, path: str, bad: Bad) -> None:
    findings.mode(bad, f"{path}.defaultMode", volume.default_mode)
    for index, source in enumerate(volume.sources):
        _source(spec, source, f"{path}.sources[{index}]", bad)


def _source(spec: PodSpec, source: ProjectedSource, path: str, bad: Bad) -> None:
    one_source(bad, path, source, ("configMap", "secret", "downwardAPI", "serviceAccountToken"))
    for name, held in (("configMap", source.config_map), ("secret", source.secret)):
        if held is not None:
            _object(held.name, f"{path}.{name}.name", bad)
            _items(held.items, None, f"{path}.{name}", bad)
    if source.downward_api is not None:
        _downward(spec, source.downward_api.items, f"{path}.downwardAPI", bad)
    if source.service_account_token is not None:
        token, where = source.service_account_token, f"{path}.serviceAccountToken"
        _file_path(token.path, f"{where}.path", bad)
        within(bad, f"{where}.expirationSeconds", token.expiration_seconds, _TOKEN_S_MIN, _TOKEN_S_MAX)
