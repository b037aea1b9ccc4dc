"""What the daemon sees and does of jobs of a fleet: a part of `events.py`, apart for its length. Import these from
`tinyedge.events`.
"""

from __future__ import annotations

from msgspec import Struct

# --- what the daemon sees -------------------------------------------------------------------------


class SoftwareSeen(Struct, frozen=True):
    """What runs here, once in each life, and when that has changed. `current` is the version that has proved itself
    (empty: it was not installed so that it could be upgraded), `before` the one that ran before it. `trial`: the
    version that is on trial; `config_trial`: the job whose configuration is. `untold`: what became of a trial is still
    to be told (`UpgradeEnded`, `ConfigEnded`)."""

    current: str = ""
    before: str = ""
    trial: str = ""
    config_trial: str = ""
    untold: bool = False


class JobLooked(Struct, frozen=True):
    """Answers `LookAtMachine`: how much of `cpu`, `mem` and `disk` is used, in percent."""

    op: int
    used: dict[str, int]


class JobDone(Struct, frozen=True):
    """The outcome of another effect of a job. `error` empty means it worked; `detail` is what it made."""

    op: int
    error: str = ""
    detail: str = ""


class JobProgress(Struct, frozen=True):
    """`what` it is at, in words; bytes that are done, of so many in all."""

    op: int
    what: str
    done: int
    total: int


class UpgradeEnded(Struct, frozen=True):
    """What has become of an upgrade, told once. `verdict`: `confirmed`, `rolled-back` or `switched` (by a person);
    `message` says it in words."""

    version: str
    verdict: str
    message: str


class ConfigEnded(Struct, frozen=True):
    """What has become of a configuration that a job has brought, told once. `verdict`: `confirmed` or `rolled-back`."""

    job: str
    verdict: str
    message: str


class Release(Struct, frozen=True):
    """Let changes of pods go on that are held (`edge.kubeedge.io/hold-upgrade`): of one pod, or without a name of
    all."""

    namespace: str = ""
    name: str = ""


# --- what the daemon does -------------------------------------------------------------------------
# `job` is the key of an order, KIND/NAME in lower case.


class LookAtMachine(Struct, frozen=True):
    """Answered by `JobLooked`."""

    op: int


class FetchVersion(Struct, frozen=True):
    """Get the file of an upgrade from the gateway, over however many links it takes. Answered by `JobDone`, whose
    detail is its path."""

    op: int
    job: str


class StageVersion(Struct, frozen=True):
    """Verify and unpack it. Answered by `JobDone`, whose detail is the version's name."""

    op: int
    path: str
    allow_downgrade: bool = False


class AwaitConfirmation(Struct, frozen=True):
    """Answered by `JobDone` once somebody on site has agreed."""

    op: int
    job: str
    version: str


class BeginTrial(Struct, frozen=True):
    """This life ends with it. Answered only when it fails."""

    op: int
    version: str


class CheckConfig(Struct, frozen=True):
    """Whether the configuration would be right with these values (section.key → text). Nothing is written. Answered by
    `JobDone`, whose detail is empty when nothing would change."""

    op: int
    fields: dict[str, str]


class ChangeConfig(Struct, frozen=True):
    """Put these values into the configuration, on trial. This life ends with it. Answered only when it fails."""

    op: int
    job: str
    fields: dict[str, str]


class CancelJob(Struct, frozen=True):
    """Stop what was begun under this number; nobody waits for its answer."""

    op: int
