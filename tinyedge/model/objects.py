"""Every kind of object that a node keeps, and the version of the API that each belongs to."""

from __future__ import annotations

from tinyedge.model import device, rule
from tinyedge.model.device import Device, DeviceModel
from tinyedge.model.pod import ConfigMap, Pod, Secret
from tinyedge.model.rule import LocalRule, Rule, RuleEndpoint

Object = Pod | ConfigMap | Secret | Device | DeviceModel | LocalRule | Rule | RuleEndpoint

API_VERSIONS: dict[str, str] = {
    "Pod": "v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "Device": device.API_VERSION,
    "DeviceModel": device.API_VERSION,
    "LocalRule": rule.LOCAL_API_VERSION,
    "Rule": rule.API_VERSION,
    "RuleEndpoint": rule.API_VERSION,
}
