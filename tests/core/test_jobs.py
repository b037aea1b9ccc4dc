"""Jobs of a fleet on one node: the way of each, over reboots and links that go, and what the gateway is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.rig import Rig
from tinyedge import events as ev
from tinyedge.model.job import CONFIG, PREPULL, UPGRADE, JobMeta, JobSpec, NodeJob
from tinyedge.model.pod import ObjectMeta, Secret
from tinyedge.protocol.jobs import STATUS, JobReport, read_report

OLD, NEW = "0.2.0-amd64", "0.3.0-amd64"
UP, PRE, CONF = "nodeupgradejob/up", "imageprepulljob/up", "configupdatejob/up"
RUNS = ev.SoftwareSeen(OLD, "0.1.0-amd64")


def job(kind: str = UPGRADE, name: str = "up", uid: str = "u1", **spec: Any) -> NodeJob:
    of_kind: dict[str, dict[str, Any]] = {
        UPGRADE: {"version": "v0.3.0"},
        PREPULL: {"images": ("a:1", "b")},
        CONFIG: {"update_fields": {"log.level": "debug"}},
    }
    return NodeJob(JobMeta(name, uid), JobSpec(kind, **(of_kind[kind] | spec)))  # type: ignore[arg-type]


class Node(Rig):
    """A node with a link, and answers to what its jobs order."""

    def start_up(self, software: ev.SoftwareSeen = RUNS) -> None:
        self.boot("clean" if self.boots else "first")
        self.join()
        self.link()
        self.step(software)

    def order(self, one: NodeJob) -> Any:
        return self.put(one)

    def the(self, kind: type[Any]) -> Any:
        """The newest effect of a job, which must be of this kind."""
        assert self.job_effects, f"no effect, wanted {kind.__name__}"
        assert isinstance(self.job_effects[-1], kind), self.job_effects[-1]
        return self.job_effects[-1]

    def done(self, kind: type[Any], error: str = "", detail: str = "") -> None:
        self.step(ev.JobDone(self.the(kind).op, error, detail))

    def job_reports(self, key: str = UP) -> list[JobReport]:
        found = [one for one in self.sent if isinstance(one, ev.Report) and (one.kind, one.key) == (STATUS, key)]
        return [read_report(one.body) for one in found]

    def job_report(self, key: str = UP) -> JobReport:
        return self.job_reports(key)[-1]

    def flow(self, key: str = UP) -> list[tuple[str, str]]:
        return [(one.action, one.status) for one in self.job_report(key).flow]

    def take_reports(self) -> None:
        for one in [one for one in self.sent if isinstance(one, ev.Report)]:
            self.step(ev.ReportTaken(one.kind, one.key, one.revision))

    def to_trial(self, **spec: Any) -> None:
        self.start_up()
        self.order(job(**spec))
        self.done(ev.FetchVersion, detail="/incoming/job")
        self.done(ev.StageVersion, detail=NEW)


@pytest.fixture
def node() -> Node:
    return Node()


# --- an upgrade ------------------------------------------------------------------------------------------


def test_an_upgrade_goes_its_way_and_its_end_is_told_by_the_version_that_stays(node: Node) -> None:
    node.start_up()
    assert isinstance(node.order(job(check_items=("cpu", "disk"))), ev.CloudAck)
    node.step(ev.JobLooked(node.the(ev.LookAtMachine).op, {"cpu": 80, "mem": 99, "disk": 12}))
    assert node.the(ev.FetchVersion).job == UP
    node.done(ev.FetchVersion, detail="/incoming/job")
    assert node.the(ev.StageVersion).path == "/incoming/job"
    node.done(ev.StageVersion, detail=NEW)
    assert node.the(ev.BeginTrial).version == NEW
    assert node.flow() == [("Check", "True"), ("BackUp", "True")]
    node.start_up(ev.SoftwareSeen(OLD, trial=NEW))
    assert not node.job_effects
    node.advance(11)
    assert node.job_report().progress == f"{NEW} is on trial, for 0 min"
    node.request(ev.UpgradeEnded(NEW, "confirmed", "it has passed its trial"))
    found = node.job_report()
    assert (found.phase, found.version, found.before) == ("Successful", "0.3.0", "0.2.0")
    assert node.flow() == [("Check", "True"), ("BackUp", "True"), ("Upgrade", "True")]


def test_a_trial_that_fails_is_told_by_the_version_that_is_back(node: Node) -> None:
    node.to_trial()
    node.start_up(ev.SoftwareSeen(OLD, untold=True))
    assert not node.job_effects, "what has become of it is told next"
    node.request(ev.UpgradeEnded(NEW, "rolled-back", "0.3.0-amd64 was given up: 3 starts did not bring it up"))
    found = node.job_report()
    assert (found.phase, found.version) == ("Failure", "0.2.0")
    assert found.reason.endswith("3 starts did not bring it up")
    assert node.flow()[-2:] == [("Upgrade", "False"), ("RollBack", "True")]


def test_a_person_who_puts_a_version_back_ends_the_job(node: Node) -> None:
    node.to_trial()
    node.start_up(ev.SoftwareSeen(OLD, untold=True))
    node.request(ev.UpgradeEnded(OLD, "switched", f"{OLD} was put back by a person"))
    assert node.job_report().phase == "Failure"


def test_confirmation_is_waited_for_and_the_gateway_knows(node: Node) -> None:
    node.to_trial(require_confirmation=True)
    waits = node.the(ev.AwaitConfirmation)
    assert (waits.job, waits.version) == (UP, NEW)
    assert node.job_report().waiting
    assert node.flow() == [("Check", "True"), ("WaitingConfirmation", "True")]
    node.start_up()
    assert node.the(ev.AwaitConfirmation).version == NEW, "a reboot changes nothing"
    node.done(ev.AwaitConfirmation)
    assert node.the(ev.BeginTrial).version == NEW
    assert not node.job_report().waiting


@pytest.mark.parametrize("stage", range(3))
def test_each_life_goes_on_with_the_stage_that_it_finds(node: Node, stage: int) -> None:
    node.start_up()
    node.order(job())
    answers = [(ev.FetchVersion, "/incoming/job"), (ev.StageVersion, NEW)]
    for kind, detail in answers[:stage]:
        node.done(kind, detail=detail)
    before = node.job_effects[-1]
    node.power_cut()
    node.join()
    node.link()
    assert not node.job_effects, "not before it is known what runs"
    node.step(RUNS)
    again = node.job_effects[-1]
    assert type(again) is type(before)
    assert {name: getattr(again, name) for name in again.__struct_fields__ if name != "op"} == {
        name: getattr(before, name) for name in before.__struct_fields__ if name != "op"
    }


def test_a_trial_that_never_began_is_begun_again_but_not_for_ever(node: Node) -> None:
    node.to_trial()
    for _ in range(2):
        node.start_up()
        assert node.the(ev.BeginTrial).version == NEW
    node.start_up()
    assert not node.job_effects
    assert node.job_report().phase == "Failure"
    assert "begun 3 times" in node.job_report().reason


def test_a_trial_that_was_passed_and_told_before_a_cut_is_known_by_what_runs(node: Node) -> None:
    node.to_trial()
    node.start_up(ev.SoftwareSeen(NEW, OLD))
    assert node.job_report().phase == "Successful"


@pytest.mark.parametrize(
    ("kind", "error", "action"),
    [
        (ev.FetchVersion, "there is no such version", "Check"),
        (ev.StageVersion, "it is signed by nobody whom this node trusts", "Check"),
        (ev.AwaitConfirmation, "the disk is full", "Check"),
        (ev.BeginTrial, "no launcher has started this daemon", "Upgrade"),
    ],
)
def test_what_goes_wrong_ends_the_job_and_nothing_is_rolled_back(
    node: Node, kind: type[Any], error: str, action: str
) -> None:
    node.start_up()
    node.order(job(require_confirmation=True))
    for one, detail in (
        (ev.FetchVersion, "/p"),
        (ev.StageVersion, NEW),
        (ev.AwaitConfirmation, ""),
        (ev.BeginTrial, ""),
    ):
        if one is kind:
            node.done(one, error)
            break
        node.done(one, detail=detail)
    assert (node.job_report().phase, node.job_report().reason) == ("Failure", error)
    assert node.flow()[-1] == (action, "False")
    assert "RollBack" not in dict(node.flow())


def test_a_machine_that_is_full_takes_no_upgrade(node: Node) -> None:
    node.start_up()
    node.order(job(check_items=("cpu", "mem", "disk")))
    node.step(ev.JobLooked(node.the(ev.LookAtMachine).op, {"cpu": 81, "mem": 80, "disk": 95}))
    assert node.job_report().reason == "cpu is used to 81 %, disk is used to 95 %, and 80 % are allowed"
    assert len(node.job_effects) == 1


@pytest.mark.parametrize("wanted", ["v0.2.0", "0.2.0"])
def test_what_runs_already_is_no_work(node: Node, wanted: str) -> None:
    node.start_up()
    node.order(job(version=wanted))
    assert (node.job_report().phase, node.job_report().version) == ("Successful", "0.2.0")
    assert not node.job_effects


def test_a_node_that_was_not_installed_can_not_be_upgraded(node: Node) -> None:
    node.start_up(ev.SoftwareSeen())
    node.order(job())
    assert node.job_report().phase == "Failure"
    assert "tinyedge was not installed here" in node.job_report().reason


def test_a_node_on_trial_begins_nothing_else(node: Node) -> None:
    node.start_up(ev.SoftwareSeen(OLD, trial="9.9.9-amd64"))
    node.order(job(PREPULL))
    assert not node.ordered(ev.PullImage)
    node.request(ev.UpgradeEnded("9.9.9-amd64", "confirmed", "it has passed"))
    assert node.ordered(ev.PullImage)


# --- orders ------------------------------------------------------------------------------------------------


def test_an_order_that_is_taken_back_ends_what_has_changed_nothing(node: Node) -> None:
    node.start_up()
    node.order(job())
    op = node.the(ev.FetchVersion).op
    node.drop("nodejob", UP)
    assert node.the(ev.CancelJob).op == op
    assert "job" not in {table for table, rows in node.tables.items() if rows}
    node.step(ev.JobDone(op, "", "/late"))
    assert isinstance(node.job_effects[-1], ev.CancelJob)


def test_what_is_on_trial_ends_though_its_order_was_taken_back_and_is_told_once(node: Node) -> None:
    node.to_trial()
    node.drop("nodejob", UP)
    node.start_up(ev.SoftwareSeen(OLD, trial=NEW))
    node.request(ev.UpgradeEnded(NEW, "confirmed", ""))
    assert node.job_report().phase == "Successful"
    node.take_reports()
    assert not node.tables.get("job")


def test_an_order_that_comes_again_changes_nothing_and_another_of_its_name_begins_anew(node: Node) -> None:
    node.start_up()
    node.order(job())
    op = node.the(ev.FetchVersion).op
    node.order(job())
    assert node.the(ev.FetchVersion).op == op
    node.order(job(uid="u2"))
    assert isinstance(node.job_effects[-2], ev.CancelJob)
    assert node.the(ev.FetchVersion).op != op
    assert node.job_report().uid == "u2"


def test_one_job_after_the_other(node: Node) -> None:
    node.start_up()
    node.order(job())
    node.order(job(CONFIG))
    assert node.job_report(CONF).progress == f"waits for {UP}"
    node.done(ev.FetchVersion, "no")
    assert node.the(ev.CheckConfig).fields == {"log.level": "debug"}


def test_a_node_that_leaves_its_gateway_has_no_jobs(node: Node) -> None:
    node.start_up()
    node.order(job())
    node.join("", "")
    assert not node.tables.get("job")
    assert isinstance(node.job_effects[-1], ev.CancelJob)


def test_more_jobs_than_there_is_room_for_are_refused(node: Node) -> None:
    node.start_up()
    answers = [node.order(job(name=f"j{number}")) for number in range(40)]
    refused = [one for one in answers if isinstance(one, ev.CloudRefuse)]
    assert {one.reason for one in refused} == {"TooMany"}
    assert len(refused) == 8


def test_the_outline_names_what_is_held(node: Node) -> None:
    node.start_up()
    node.order(job())
    assert set(node.edge.view.outlines()["nodejob"]) == {UP}
    node.drop("nodejob", UP)
    assert not node.edge.view.outlines()["nodejob"]


def test_a_job_under_a_key_that_is_not_its_own_is_refused(node: Node) -> None:
    node.start_up()
    answer = node.put(job(), key=CONF)
    assert (type(answer), answer.reason) == (ev.CloudRefuse, "Invalid")


def test_a_store_that_can_not_be_written_takes_no_job_and_goes_on_with_none(node: Node) -> None:
    node.start_up()
    node.order(job())
    count = len(node.job_effects)
    node.step(ev.StoreFault("read-only", "the disk is broken", read_only=True))
    node.done(ev.FetchVersion, detail="/p")
    assert len(node.job_effects) == count
    answer = node.order(job(name="other"))
    assert answer.reason == "StoreReadOnly"


# --- telling -------------------------------------------------------------------------------------------------


def test_each_link_hears_of_each_job(node: Node) -> None:
    node.start_up()
    node.order(job())
    node.done(ev.FetchVersion, "no such file")
    node.sent.clear()
    node.unlink()
    node.advance(60)
    assert not node.job_reports()
    node.link()
    assert node.job_report().reason == "no such file"


def test_progress_is_told_a_few_times_a_minute_and_what_matters_at_once(node: Node) -> None:
    node.start_up()
    node.order(job())
    node.sent.clear()
    for megabytes in range(1, 31):
        node.step(ev.JobProgress(node.the(ev.FetchVersion).op, "fetches it", megabytes * 1_000_000, 11_300_000))
        node.advance(1)
    assert 2 <= len(node.job_reports()) <= 4
    assert node.job_report().progress.startswith("fetches it: ")
    before = len(node.job_reports())
    node.done(ev.FetchVersion, "no")
    assert len(node.job_reports()) == before + 1


def test_a_trial_is_a_word_a_minute(node: Node) -> None:
    node.to_trial()
    node.start_up(ev.SoftwareSeen(OLD, trial=NEW))
    node.advance(30)
    node.sent.clear()
    node.advance(170)
    assert [one.progress for one in node.job_reports()] == [
        f"{NEW} is on trial, for {minutes} min" for minutes in (1, 2, 3)
    ]


def test_a_report_that_is_refused_is_no_reason_to_keep_a_job_for_ever(node: Node) -> None:
    node.to_trial()
    node.drop("nodejob", UP)
    node.start_up(ev.SoftwareSeen(NEW, OLD))
    newest = [one for one in node.sent if isinstance(one, ev.Report) and one.kind == STATUS][-1]
    node.step(ev.ReportRefused(STATUS, UP, newest.revision, "UnknownKind", "what is that?"))
    assert not node.tables.get("job")


def test_people_are_shown_what_goes_on(node: Node) -> None:
    node.start_up()
    node.order(job())
    node.order(job(PREPULL))
    assert node.edge.view.jobs() == [
        {"job": UP, "phase": "InProgress", "progress": "waits for the file", "reason": ""},
        {"job": PRE, "phase": "InProgress", "progress": "waits", "reason": ""},
    ]


# --- images ------------------------------------------------------------------------------------------------------


def test_images_are_pulled_one_after_the_other(node: Node) -> None:
    node.start_up()
    node.order(job(PREPULL))
    first = node.one(ev.PullImage)
    assert (first.image, first.present_ok) == ("a:1", True)
    node.finish(first)
    second = node.one(ev.PullImage)
    assert (second.image, second.present_ok) == ("b", False), "its newest is asked for"
    node.finish(second)
    found = node.job_report(PRE)
    assert found.phase == "Successful"
    assert [(one.image, one.status) for one in found.images] == [("a:1", "True"), ("b", "True")]
    assert node.flow(PRE) == [("Check", "True"), ("Pull", "True")]


def test_an_image_is_tried_again_as_often_as_the_job_says(node: Node) -> None:
    node.start_up()
    node.refuse = lambda effect: ("ErrImagePull", "no such host") if isinstance(effect, ev.PullImage) else None
    node.order(job(PREPULL, images=("a:1",), retry_times=2))
    tries = 0
    for _ in range(100):
        for effect in node.ordered(ev.PullImage):
            node.finish(effect)
            tries += 1
        node.advance(1, settle=False)
    assert tries == 3
    found = node.job_report(PRE)
    assert (found.phase, found.reason) == ("Failure", "1 of 1 images could not be pulled")
    assert found.images[0].reason == "ErrImagePull: no such host"


def test_a_reboot_goes_on_with_the_image_that_was_next(node: Node) -> None:
    node.start_up()
    node.order(job(PREPULL))
    node.finish(node.one(ev.PullImage))
    node.start_up()
    assert node.one(ev.PullImage).image == "b"


def test_without_a_runtime_images_wait(node: Node) -> None:
    node.boot(runtime=False)
    node.join()
    node.link()
    node.step(RUNS)
    node.order(job(PREPULL))
    assert not node.ordered(ev.PullImage)
    node.runtime_up()
    assert node.ordered(ev.PullImage)


def test_a_file_of_another_version_than_the_job_names_is_not_begun(node: Node) -> None:
    node.start_up()
    node.order(job())
    node.done(ev.FetchVersion, detail="/incoming/job")
    node.done(ev.StageVersion, detail="0.2.5-arm64")
    report = node.job_report(UP)
    assert (report.phase, report.reason) == ("Failure", "the job is for version 0.3.0, and its file holds 0.2.5")
    assert not node.ordered(ev.BeginTrial)


def test_a_secret_comes_beside_its_job_or_the_job_fails(node: Node) -> None:
    node.start_up()
    node.order(job(PREPULL, image_secrets="default/reg"))
    assert not node.ordered(ev.PullImage)
    node.put(Secret(ObjectMeta("reg", "default"), {".dockerconfigjson": b"{}"}, type="kubernetes.io/dockerconfigjson"))
    assert node.one(ev.PullImage).secrets[0].data == b"{}"
    other = Node()
    other.start_up()
    other.order(job(PREPULL, image_secrets="default/reg"))
    other.advance(70)
    assert other.job_report(PRE).reason.startswith("Secret default/reg is not here: there is none, or none by which")


# --- configurations ------------------------------------------------------------------------------------------------


def test_a_configuration_is_checked_changed_and_what_became_of_it_is_told(node: Node) -> None:
    node.start_up()
    node.order(job(CONFIG))
    node.done(ev.CheckConfig, detail="changes")
    assert node.the(ev.ChangeConfig).job == CONF
    node.start_up(ev.SoftwareSeen(OLD, config_trial=CONF))
    node.advance(11)
    assert node.job_report(CONF).progress == "the new configuration is on trial, for 0 min"
    node.request(ev.ConfigEnded(CONF, "confirmed", ""))
    assert node.job_report(CONF).phase == "Successful"
    assert node.flow(CONF) == [("Check", "True"), ("BackUp", "True"), ("Update", "True")]


def test_a_configuration_that_does_no_good_is_told_as_rolled_back(node: Node) -> None:
    node.start_up()
    node.order(job(CONFIG))
    node.done(ev.CheckConfig, detail="changes")
    node.start_up(ev.SoftwareSeen(OLD, untold=True))
    node.request(ev.ConfigEnded(CONF, "rolled-back", "there is no link any more"))
    assert (node.job_report(CONF).phase, node.job_report(CONF).reason) == ("Failure", "there is no link any more")
    assert node.flow(CONF)[-3:] == [("BackUp", "True"), ("Update", "False"), ("RollBack", "True")]


def test_a_configuration_that_is_wrong_is_never_written(node: Node) -> None:
    node.start_up()
    node.order(job(CONFIG))
    node.done(ev.CheckConfig, "modules.edgeStream.enable: there is no such key")
    assert node.flow(CONF) == [("Check", "False")]
    assert not [one for one in node.job_effects if isinstance(one, ev.ChangeConfig)]


def test_a_configuration_that_is_so_already_is_no_work(node: Node) -> None:
    node.start_up()
    node.order(job(CONFIG))
    node.done(ev.CheckConfig)
    assert node.job_report(CONF).phase == "Successful"


def test_the_end_of_another_jobs_configuration_is_not_this_ones(node: Node) -> None:
    node.start_up()
    node.order(job(CONFIG))
    node.done(ev.CheckConfig, detail="changes")
    node.start_up(ev.SoftwareSeen(OLD, untold=True))
    node.request(ev.ConfigEnded("configupdatejob/other", "rolled-back", "no"))
    assert node.job_report(CONF).phase == "InProgress"
    assert node.the(ev.ChangeConfig).job == CONF
