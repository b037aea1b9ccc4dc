"""The CustomResourceDefinitions that tinyedge brings along: devices and what belongs to them, rules, and jobs
for fleets of nodes.

Their files are those of `packaging/kubernetes/crds`, which a cluster gets by kubectl; `cloud_gateway/crds` leads there
in a checkout and holds them in an installed package.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import msgspec

Json = dict[str, Any]

DIGEST = "tinyedge.io/packaged"  # annotation: which version of the definition it is; without it, it is somebody else's
_KIND = "CustomResourceDefinition"


def definitions() -> list[Json]:
    """Each marked with the digest of its spec."""
    import yaml  # noqa: PLC0415 - 2.7 MB that only a sandbox needs

    folder = files("cloud_gateway").joinpath("crds")
    names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".yaml"))
    read = (yaml.safe_load(folder.joinpath(name).read_text()) for name in names)
    return [_marked(one) for one in read if one["kind"] == _KIND]


def _marked(crd: Json) -> Json:
    digest = hashlib.sha256(msgspec.json.encode(crd["spec"], order="deterministic")).hexdigest()[:16]
    return {**crd, "metadata": {**crd["metadata"], "annotations": {DIGEST: digest}}}
