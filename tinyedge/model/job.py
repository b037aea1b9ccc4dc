"""A job of a fleet as one node is told it, and what a node does in it. Words are KubeEdge's
(operations.kubeedge.io/v1alpha2)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct, field

from tinyedge.errors import BadInput
from tinyedge.limits import JOB_FIELDS_MAX, JOB_IMAGES_MAX, JOB_WORDS_CHARS_MAX
from tinyedge.model.pod import K8s

KIND = "nodejob"  # on the link
UPGRADE, PREPULL, CONFIG = "NodeUpgradeJob", "ImagePrePullJob", "ConfigUpdateJob"

# Of a node in a job.
PENDING, IN_PROGRESS, SUCCESSFUL, FAILURE, UNKNOWN = "Pending", "InProgress", "Successful", "Failure", "Unknown"

# What a node does in one, in this order.
CHECK, WAITING, BACK_UP, UPGRADING = "Check", "WaitingConfirmation", "BackUp", "Upgrade"
ROLL_BACK, PULL, UPDATE = "RollBack", "Pull", "Update"
TRUE, FALSE = "True", "False"

Words = Annotated[str, Meta(max_length=JOB_WORDS_CHARS_MAX)]
Value = Annotated[str, Meta(max_length=8192)]


class Action(Struct, frozen=True, omit_defaults=True):
    """Something that a node has done. `status`: True, or False when it has failed."""

    action: Words
    status: Words
    reason: Words = ""


class ImageResult(Struct, frozen=True, omit_defaults=True):
    image: Words
    status: Words
    reason: Words = ""


class JobSpec(K8s, frozen=True):
    """`check_items`: of cpu, mem and disk none may be used to more than 80 %. `version` as the job names it, with or
    without a v before it. `image_secrets`: namespace/name of a Secret. `update_fields`: section.key → value."""

    type: Literal["NodeUpgradeJob", "ImagePrePullJob", "ConfigUpdateJob"]
    timeout_seconds: Annotated[int, Meta(ge=1)] = 300
    check_items: tuple[Literal["cpu", "mem", "disk"], ...] = ()
    version: Words = ""
    require_confirmation: bool = False
    allow_downgrade: bool = False
    images: Annotated[tuple[Words, ...], Meta(max_length=JOB_IMAGES_MAX)] = ()
    image_secrets: Words = ""
    retry_times: Annotated[int, Meta(ge=0, le=100)] = 0
    update_fields: Annotated[dict[Words, Value], Meta(max_length=JOB_FIELDS_MAX)] = field(default_factory=dict)


class JobMeta(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    uid: Annotated[str, Meta(min_length=1, max_length=64)]


class NodeJob(Struct, frozen=True):
    metadata: JobMeta
    spec: JobSpec

    kind: ClassVar[str] = "NodeJob"

    @property
    def key(self) -> str:
        """Of the order, as the link calls it."""
        return f"{self.spec.type.lower()}/{self.metadata.name}"

    @property
    def version(self) -> str:
        return self.spec.version.removeprefix("v")


_DECODER = msgspec.msgpack.Decoder(NodeJob)


def decode_job(body: bytes) -> NodeJob:
    """What the gateway sends of a job; BadInput when it is none that this software knows."""
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput("the job", "(not shown)", f"one that this version of tinyedge knows: {error}") from None
