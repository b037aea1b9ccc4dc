"""Every kind of object that a node keeps, and the version of the API that each belongs to."""

from __future__ import annotations

from tinyedge.model import device
from tinyedge.model.device import Device, DeviceModel
from tinyedge.model.pod import ConfigMap, Pod, Secret

Object = Pod | ConfigMap | Secret | Device | DeviceModel

API_VERSIONS: dict[str, str] = {
    "Pod": "v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "Device": device.API_VERSION,
    "DeviceModel": device.API_VERSION,
}
