"""What a node and its gateway say of jobs (upgrades, image pulls, changes of the configuration), the same file at both
ends.

    Put("nodejob", KIND/NAME)               ─▶  the node is to be at it, from now on
    State("nodejobstatus", KIND/NAME)       ◀─  JobReport: how far it is, and what became of it
    Delete("nodejob", KIND/NAME)            ─▶  it is over, or not wanted any more
    Ask("file", FileAsk) ─▶ FileGrant           the file of a NodeUpgradeJob that the node is at, piece by piece
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from tinyedge.errors import BadInput
from tinyedge.limits import JOB_ACTIONS_MAX, JOB_IMAGES_MAX, JOB_PIECE_BYTES_MAX
from tinyedge.model.job import Action, ImageResult, Words

STATUS = "nodejobstatus"  # the kind of a report
FILE = "file"  # Ask.what


class JobReport(Struct, frozen=True, omit_defaults=True):
    """`phase` is InProgress, Successful or Failure. `waiting`: for somebody on site. `progress` says in words what it
    is at. `version` is what the node runs, `before` what it ran before."""

    uid: Words
    phase: Words
    reason: Words = ""
    progress: Words = ""
    waiting: bool = False
    flow: Annotated[tuple[Action, ...], Meta(max_length=JOB_ACTIONS_MAX)] = ()
    version: Words = ""
    before: Words = ""
    images: Annotated[tuple[ImageResult, ...], Meta(max_length=JOB_IMAGES_MAX)] = ()


class FileAsk(Struct, frozen=True):
    """`size` bytes from `offset` on; none to hear of the file only."""

    job: Words
    offset: Annotated[int, Meta(ge=0)] = 0
    size: Annotated[int, Meta(ge=0, le=JOB_PIECE_BYTES_MAX)] = 0


class FileGrant(Struct, frozen=True):
    """`size` and `sha256` are of the whole file. `data` may be less than was asked for, and is nothing at its end."""

    name: Words
    size: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    data: bytes = b""


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def encode(body: JobReport | FileAsk | FileGrant) -> bytes:
    return _ENCODER.encode(body)


def read_report(body: bytes) -> JobReport:
    """BadInput when it is none, as the others."""
    try:
        return msgspec.msgpack.decode(body, type=JobReport)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput("the report on a job", f"{len(body)} bytes", f"one: {error}") from None


def read_file_ask(body: bytes) -> FileAsk:
    try:
        return msgspec.msgpack.decode(body, type=FileAsk)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput("what was asked for of a file", f"{len(body)} bytes", f"a FileAsk: {error}") from None


def read_file_grant(body: bytes) -> FileGrant:
    try:
        return msgspec.msgpack.decode(body, type=FileGrant)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput("a piece of a file", f"{len(body)} bytes", f"a FileGrant: {error}") from None
