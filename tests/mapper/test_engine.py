"""What is done for a device and when, decided without a clock and without a device."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyedge.limits import DEVICE_REASON_CHARS_MAX
from tinyedge.mapper.contract import Device, Offline, Property, Refused
from tinyedge.mapper.engine import (
    ASK_MS_MAX,
    PUT_MS_MAX,
    RETRY_MS_MAX,
    Engine,
)
from tinyedge.mapper.jobs import (
    Answered,
    CallNow,
    Job,
    Out,
    Outcome,
    ReadNow,
    Said,
    State,
    Values,
    WriteNow,
)

WALL = 1_700_000_000_000


def device(*properties: Property, name: str = "pump", state_ms: int = 0, offset: int = 0) -> Device:
    return Device(
        "default",
        name,
        "test",
        {"offset": offset},
        {one.name: one for one in properties or (Property("speed", "INT"),)},
        {"stop": ("speed",)},
        state_ms,
    )


class Rig:
    """An engine with the time in one's hand, and a device that answers what it is told to."""

    def __init__(self, *devices: Device, polls: bool = True) -> None:
        self.engine = Engine(polls=polls)
        self.now = 0
        self.values: dict[str, object] = {"speed": 7}
        self.failed: Exception | None = None
        self.opens = True
        self.write_errors: dict[str, Exception] = {}
        self.ran: list[Job] = []
        for one in devices:
            self.engine.put(one, 0)

    def outcome(self, job: Job) -> Outcome:
        if self.failed is not None:
            return Outcome(opened=self.opens, failed=self.failed)
        return Outcome(
            written={prop.name: self.write_errors.get(prop.name) for prop, _ in job.write},
            values={prop.name: self.values.get(prop.name) for prop in job.read},  # type: ignore[misc]
        )

    def run(self, until_ms: int) -> list[Out]:
        """Let time pass: each turn takes none of it."""
        out: list[Out] = []
        while self.engine.next_ms <= until_ms:
            self.now = max(self.now, self.engine.next_ms)
            for job in self.engine.jobs(self.now):
                self.ran.append(job)
                self.engine.done(job, self.outcome(job), self.now, WALL + self.now)
            out += self.engine.take()
        self.now = until_ms
        return out + self.engine.take()


def reported(out: list[Out]) -> list[tuple[str, str, int]]:
    """Property, value, and how many ms after the beginning it was taken."""
    return [(one.property, one.value, one.at_ms - WALL) for got in out if isinstance(got, Values) for one in got.values]


def states(out: list[Out]) -> list[str]:
    return [one.state for one in out if isinstance(one, State)]


def whys(out: list[Out]) -> list[tuple[str, str]]:
    return [(one.state, one.why) for one in out if isinstance(one, State)]


def answers(out: list[Out]) -> list[Answered]:
    return [one for one in out if isinstance(one, Answered)]


def test_a_device_is_opened_read_and_reported_at_once_and_then_each_cycle() -> None:
    rig = Rig(device())
    out = rig.run(2500)
    assert [(job.open, [prop.name for prop in job.read]) for job in rig.ran] == [
        (True, ["speed"]),
        (False, ["speed"]),
        (False, ["speed"]),
    ]
    assert reported(out) == [("speed", "7", 0), ("speed", "7", 1000), ("speed", "7", 2000)]
    assert states(out) == ["online"]


def test_readings_that_were_missed_are_not_made_up_for() -> None:
    rig = Rig(device())
    [job] = rig.engine.jobs(0)
    assert rig.engine.jobs(3400) == []  # one turn at a time
    rig.engine.done(job, Outcome(values={"speed": 1}), 3400, WALL + 3400)
    assert rig.engine.next_ms == 3400
    assert rig.engine.jobs(3400) == []
    assert rig.engine.next_ms == 4000


def test_cycles_of_one_device_that_meet_share_a_turn() -> None:
    rig = Rig(device(Property("a", collect_ms=1000), Property("b", collect_ms=3000)))
    rig.run(3000)
    assert [[prop.name for prop in job.read] for job in rig.ran] == [["a", "b"], ["a"], ["a"], ["a", "b"]]


def test_a_shorter_cycle_counts_from_now_on() -> None:
    rig = Rig(device(Property("a", collect_ms=3_600_000)))
    rig.run(5000)
    rig.engine.put(device(Property("a", collect_ms=1000)), 5000)
    rig.run(7000)
    assert len(rig.ran) == 4


def test_with_a_report_cycle_the_newest_reading_is_reported() -> None:
    rig = Rig(device(Property("speed", "INT", collect_ms=1000, report_ms=3000)))
    out: list[Out] = []
    for second in range(8):
        rig.values["speed"] = second
        out += rig.run(second * 1000)
    assert reported(out) == [("speed", "0", 0), ("speed", "3", 3000), ("speed", "6", 6000)]


def test_a_device_that_does_not_answer_is_tried_ever_more_slowly() -> None:
    rig = Rig(device())
    rig.failed = Offline("no answer")
    rig.opens = False
    out = rig.run(130_000)
    assert states(out) == ["offline"]
    assert len(rig.ran) == 9  # 0, 1, 3, 7, 15, 31, 61, 91, 121 s
    rig.failed = None
    out = rig.run(130_000 + RETRY_MS_MAX)
    assert states(out) == ["online"]


def test_an_os_error_means_that_the_device_does_not_answer() -> None:
    rig = Rig(device())
    rig.values["speed"] = TimeoutError("no answer")
    assert states(rig.run(0)) == ["offline"]


def test_what_somebody_asks_is_tried_though_the_device_did_not_answer() -> None:
    rig = Rig(device())
    rig.failed = Offline("no answer", "the line is dead")
    rig.run(8000)
    rig.engine.ask("default/pump", ReadNow(), 8000, 5)
    [answer] = answers(rig.run(8000))
    assert (answer.ticket, answer.error) == (5, "no answer: the line is dead")
    rig.failed = None
    rig.engine.ask("default/pump", ReadNow(("speed",)), 8000, 6)
    [answer] = answers(rig.run(8000))
    assert (answer.error, [(one.property, one.value) for one in answer.values]) == ("", [("speed", "7")])


def test_one_property_that_fails_makes_the_device_unhealthy_and_leaves_the_others() -> None:
    rig = Rig(device(Property("speed", "INT"), Property("heat", "INT")))
    rig.values["heat"] = ValueError("no such register")
    out = rig.run(1000)
    assert states(out) == ["unhealthy"]
    assert [name for name, _, _ in reported(out)] == ["speed", "speed"]
    assert [one.why for one in out if isinstance(one, Said)] == ["heat: ValueError: no such register"]


def test_why_a_device_is_offline_or_unhealthy_is_told_with_its_state() -> None:
    rig = Rig(device())
    assert whys(rig.run(0)) == [("online", "")]
    rig.failed = Offline("no answer", "the line is dead", "look at the cable")
    assert whys(rig.run(1000)) == [("offline", "no answer: the line is dead (look at the cable)")]
    rig.failed = None
    assert whys(rig.run(60_000)) == [("online", "")]


def test_of_several_properties_that_fail_each_has_its_reason() -> None:
    rig = Rig(device(*(Property(name, "INT") for name in ("speed", "heat", "level", "flow"))))
    rig.values = {
        "speed": Refused("speed is no register"),
        "heat": 1.5,
        "level": Refused("illegal function"),
        "flow": Refused("illegal function"),
    }
    why = "speed is no register; heat is 1.5: expected a whole number; level, flow: illegal function"
    assert whys(rig.run(0)) == [("unhealthy", why)]


def test_of_more_reasons_than_there_is_room_for_the_rest_is_counted() -> None:
    rig = Rig(device(*(Property(f"p{number}", "INT") for number in range(30))))
    rig.values = {f"p{number}": Refused(f"register {number} of p{number} can't be read") for number in range(30)}
    [(_, why)] = whys(rig.run(0))
    assert why.startswith("register 0 of p0 can't be read; register 1 of p1 can't be read; ")
    assert why.endswith(" more")
    assert why.count("; and ") == 1
    assert len(why) <= DEVICE_REASON_CHARS_MAX


def test_a_property_that_fails_keeps_its_device_unhealthy_until_it_is_read_again() -> None:
    rig = Rig(device(Property("speed", "INT"), Property("heat", "INT", collect_ms=5000)))
    rig.values |= {"heat": Refused("heat is no register")}
    assert whys(rig.run(4000)) == [("unhealthy", "heat is no register")]  # though speed is read each second
    rig.values["heat"] = 1
    assert whys(rig.run(5000)) == [("online", "")]


def test_a_reason_that_changes_all_the_time_is_told_now_and_then_and_its_last_one_in_the_end() -> None:
    rig = Rig(device(Property("speed", "INT", maximum="5")))
    told = []
    for second in range(60):
        rig.values["speed"] = 10 + second
        told += whys(rig.run(second * 1000))
    assert len(told) == 6
    assert told[-1] == ("unhealthy", "speed is 60: expected at most 5")
    told = whys(rig.run(80_000))
    assert told == [("unhealthy", "speed is 69: expected at most 5")]


def test_a_reason_without_end_is_cut() -> None:
    rig = Rig(device())
    rig.failed = Offline("x" * 10_000)
    [(_, why)] = whys(rig.run(0))
    assert len(why) == DEVICE_REASON_CHARS_MAX


def test_a_value_of_another_type_or_out_of_its_limits_is_not_reported() -> None:
    for prop, value in (
        (Property("speed", "INT"), 1.5),
        (Property("speed", "INT", maximum="5"), 6),
        (Property("speed", "FLOAT"), float("nan")),
        (Property("speed", "BOOLEAN"), 2),
        (Property("speed", "INT"), object()),
    ):
        rig = Rig(device(prop))
        rig.values["speed"] = value
        out = rig.run(0)
        assert (states(out), reported(out)) == (["unhealthy"], [])


def test_no_value_at_present_is_no_fault() -> None:
    rig = Rig(device())
    rig.values["speed"] = None
    out = rig.run(0)
    assert (states(out), reported(out)) == (["online"], [])


def test_a_desired_value_is_written_once_and_read_back_at_once() -> None:
    rig = Rig(device(Property("speed", "INT", desired="9", report_ms=60_000)))
    rig.run(5000)
    assert [[text for _, text in job.write] for job in rig.ran if job.write] == [["9"]]
    rig.engine.put(device(Property("speed", "INT", desired="4", report_ms=60_000)), 5500)
    rig.values["speed"] = 4
    out = rig.run(5500)
    assert not rig.ran[-1].open
    assert reported(out) == [("speed", "4", 5500)]  # though its report cycle is not over


def test_a_desired_value_that_was_refused_is_not_tried_again_before_another_is_wanted() -> None:
    rig = Rig()
    rig.write_errors["speed"] = Refused("too fast")
    rig.engine.put(device(Property("speed", "INT", desired="9")), 0, ticket=3)
    out = rig.run(60_000)
    assert [(one.ticket, one.error, one.refused) for one in answers(out)] == [(3, "", (("speed", "too fast"),))]
    assert sum(bool(job.write) for job in rig.ran) == 1
    rig.engine.put(device(Property("speed", "INT", desired="8")), 60_000)
    rig.run(60_000)
    assert sum(bool(job.write) for job in rig.ran) == 2


def test_what_was_refused_is_told_to_each_who_asks_until_another_value_is_wanted() -> None:
    rig = Rig()
    rig.write_errors = {"speed": Refused("too fast"), "valve": Refused("it is locked")}
    wanted = (Property("speed", "INT", desired="9"), Property("valve", "INT", desired="1"), Property("heat", "INT"))
    both = (("speed", "too fast"), ("valve", "it is locked"))
    for at_ms in (0, 5000, 10_000):
        rig.engine.put(device(*wanted), at_ms, ticket=at_ms + 1)
        assert [(one.error, one.refused) for one in answers(rig.run(at_ms))] == [("", both)]
    rig.write_errors.pop("speed")
    rig.engine.put(device(Property("speed", "INT", desired="8"), wanted[1]), 15_000, ticket=4)
    assert [one.refused for one in answers(rig.run(15_000))] == [both[1:]]


def test_a_device_that_answers_rubbish_is_not_said_to_be_busy_while_it_is_left_alone() -> None:
    rig = Rig()
    rig.failed = Offline("the device answers rubbish")
    wanted = device(Property("speed", "INT", desired="9"))
    for at_ms in (0, 20_000, 40_000):
        rig.engine.put(wanted, at_ms, ticket=at_ms + 1)
        assert [one.error for one in answers(rig.run(at_ms + 10_000))] == ["the device answers rubbish"]


def test_a_desired_value_that_could_not_be_written_is_tried_again() -> None:
    rig = Rig()
    rig.write_errors["speed"] = ValueError("busy")
    rig.engine.put(device(Property("speed", "INT", desired="9")), 0, ticket=3)
    out = rig.run(8000)
    assert [one.error for one in answers(out)] == ["speed: ValueError: busy"]
    assert sum(bool(job.write) for job in rig.ran) == 4  # 0, 1, 3, 7 s
    del rig.write_errors["speed"]
    rig.run(80_000)
    assert sum(bool(job.write) for job in rig.ran) == 5


def test_a_desired_value_waits_for_a_device_that_does_not_answer() -> None:
    rig = Rig()
    rig.failed = Offline("no answer")
    rig.engine.put(device(Property("speed", "INT", desired="9")), 0, ticket=3)
    assert [one.error for one in answers(rig.run(10_000))] == ["no answer"]
    rig.failed = None
    rig.run(60_000)
    assert sum(bool(job.write) for job in rig.ran) == 5  # 0, 1, 3, 7 and 15 s


def test_a_device_that_does_not_answer_is_taken_all_the_same_when_nothing_is_wanted_of_it() -> None:
    rig = Rig()
    rig.failed, rig.opens = Offline("no answer"), False
    rig.engine.put(device(), 0, ticket=3)
    assert [one.error for one in answers(rig.run(0))] == [""]


def test_what_is_read_only_is_never_written() -> None:
    rig = Rig(device(Property("speed", "INT", writable=False, desired="9")))
    rig.run(3000)
    assert not any(job.write for job in rig.ran)
    rig.engine.ask("default/pump", WriteNow("speed", "4"), 3000, 1)
    [answer] = answers(rig.run(3000))
    assert "ReadOnly" in answer.error


def test_settings_that_cannot_be_used_are_said_to_whoever_sent_them() -> None:
    rig = Rig()
    rig.failed, rig.opens = Refused("offset is 'x'", "expected a number"), False
    rig.engine.put(device(), 0, ticket=8)
    out = rig.run(0)
    assert [(one.ticket, one.error) for one in answers(out)] == [(8, "offset is 'x': expected a number")]
    assert states(out) == ["unhealthy"]


def test_other_settings_close_the_device_as_it_was_and_open_it_as_it_is() -> None:
    before, after = device(offset=1), device(offset=2)
    rig = Rig(before)
    rig.run(0)
    rig.engine.put(after, 100)
    rig.run(100)
    assert (rig.ran[-1].close, rig.ran[-1].open, rig.ran[-1].device) == (before, True, after)


def test_what_was_read_with_the_settings_before_is_dropped() -> None:
    rig = Rig(device(offset=1))
    [job] = rig.engine.jobs(0)
    rig.engine.put(device(offset=2), 10)
    rig.engine.done(job, Outcome(values={"speed": 1}), 20, WALL + 20)
    assert reported(rig.engine.take()) == []
    [job] = rig.engine.jobs(20)
    assert (job.close, job.open) == (device(offset=1), True)


def test_a_removed_device_is_closed_and_forgotten() -> None:
    rig = Rig(device())
    rig.run(0)
    rig.engine.ask("default/pump", ReadNow(), 10, 1)
    rig.engine.remove("default/pump", 10)
    out = rig.run(60_000)
    assert [one.error for one in answers(out)] == ["device default/pump was removed"]
    assert [(job.close is not None, job.open, job.read) for job in rig.ran[1:]] == [(True, False, ())]
    rig.engine.ask("default/pump", ReadNow(), 60_000, 2)
    assert [one.error for one in answers(rig.run(60_000))] == ["there is no device default/pump here"]


def test_a_device_that_comes_back_while_it_is_read_is_not_served_twice() -> None:
    rig = Rig(device())
    [job] = rig.engine.jobs(0)
    rig.engine.remove("default/pump", 5)
    rig.engine.put(device(), 6)
    assert rig.engine.jobs(100) == []
    rig.engine.done(job, Outcome(values={"speed": 1}), 100, WALL + 100)
    assert rig.engine.jobs(999) == []
    [again] = rig.engine.jobs(1006)
    assert (again.open, bool(again.read)) == (False, True)


def test_asks_are_answered_in_their_order_and_before_readings() -> None:
    rig = Rig(device())
    rig.run(999)
    rig.engine.ask("default/pump", WriteNow("speed", "3"), 999, 1)
    rig.engine.ask("default/pump", CallNow("stop"), 999, 2)
    assert [one.ticket for one in answers(rig.run(1000))] == [1, 2]
    assert [(bool(job.write), job.call is not None, bool(job.read)) for job in rig.ran[1:]] == [
        (True, False, True),
        (False, True, False),
        (False, False, True),
    ]


def test_a_write_that_is_asked_for_tells_its_error_even_if_the_value_can_be_read() -> None:
    rig = Rig(device())
    rig.write_errors["speed"] = ValueError("jammed")
    rig.engine.ask("default/pump", WriteNow("speed", "3"), 0, 1)
    assert [(one.error, one.values) for one in answers(rig.run(0))] == [("ValueError: jammed", ())]


def test_a_method_that_fails_says_nothing_of_the_devices_state() -> None:
    rig = Rig(device())
    rig.run(0)
    rig.engine.ask("default/pump", CallNow("stop"), 10, 1)
    [job] = rig.engine.jobs(10)
    rig.engine.done(job, Outcome(call_failed=Refused("not now")), 10, WALL)
    out = rig.engine.take()
    assert [one.error for one in answers(out)] == ["not now"]
    assert states(out) == []


def test_what_the_device_does_not_have_can_not_be_asked() -> None:
    rig = Rig(device())
    for what, error in (
        (ReadNow(("heat",)), "device default/pump has no property heat"),
        (WriteNow("heat", "1"), "device default/pump has no property heat"),
        (WriteNow("speed", "x"), "speed can't be 'x': expected a whole number"),
        (CallNow("start"), "device default/pump has no method start (it has stop)"),
    ):
        rig.engine.ask("default/pump", what, 0, 1)
        assert [one.error for one in answers(rig.engine.take())] == [error]


def test_who_waits_for_a_device_that_hangs_is_answered_in_time() -> None:
    rig = Rig()
    rig.engine.put(device(), 0, ticket=1)
    [_] = rig.engine.jobs(0)  # and never done
    rig.engine.ask("default/pump", ReadNow(), 1000, 2)
    assert rig.engine.next_ms == 1000
    rig.engine.jobs(1000)
    assert rig.engine.next_ms == PUT_MS_MAX
    rig.engine.jobs(PUT_MS_MAX)
    assert [(one.ticket, one.error) for one in answers(rig.engine.take())] == [(1, "")]
    assert rig.engine.next_ms == 1000 + ASK_MS_MAX
    rig.engine.jobs(1000 + ASK_MS_MAX)
    [answer] = answers(rig.engine.take())
    assert answer.ticket == 2
    assert answer.error


def test_an_ask_that_hangs_itself_is_answered_once() -> None:
    rig = Rig(device())
    rig.run(0)
    rig.engine.ask("default/pump", ReadNow(), 10, 2)
    [job] = rig.engine.jobs(10)
    rig.engine.jobs(10 + ASK_MS_MAX)
    assert [one.ticket for one in answers(rig.engine.take())] == [2]
    rig.engine.done(job, Outcome(values={"speed": 1}), 20_000, WALL)
    assert answers(rig.engine.take()) == []


def test_devices_that_speak_are_not_read_unless_somebody_asks() -> None:
    rig = Rig(device(Property("speed", "INT", report_ms=1000)), polls=False)
    assert rig.run(5000) == []
    rig.engine.spoke("default/pump", {"speed": 1, "unknown": 4}, 5000, WALL + 5000)
    rig.engine.spoke("default/pump", {"speed": 2}, 5100, WALL + 5100)
    rig.engine.spoke("default/pump", {"speed": 3}, 5200, WALL + 5200)
    out = rig.run(10_000)
    assert states(out) == ["online"]
    assert reported(out) == [("speed", "1", 5000), ("speed", "3", 5200)]
    rig.engine.spoke("default/pump", Offline("the broker is away"), 10_000, WALL)
    assert states(rig.run(10_000)) == ["offline"]
    rig.engine.ask("default/pump", ReadNow(), 10_000, 4)
    assert [len(one.values) for one in answers(rig.run(10_000))] == [1]


def test_states_are_told_again_when_they_are_due_or_were_forgotten() -> None:
    rig = Rig(device(Property("speed", "INT", collect_ms=60_000), state_ms=2000))
    assert states(rig.run(4500)) == ["online", "online", "online"]
    rig.engine.resync(4600)
    assert states(rig.engine.take()) == ["online"]


def test_a_thousand_devices_are_found_by_their_time() -> None:
    rig = Rig(*(device(name=f"d{number}") for number in range(1000)))
    assert len(rig.engine.jobs(0)) == 1000


class History:
    """Devices that are put, changed, asked and removed while their turns go on, as somebody else decides."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.now = self.tickets = 0
        self.running: dict[str, Job] = {}
        self.out: list[Out] = []

    def begin(self) -> None:
        for job in self.engine.jobs(self.now):
            assert job.device.key not in self.running, "two turns at one device"
            self.running[job.device.key] = job
        self.out += self.engine.take()

    def end(self, key: str, outcome: Outcome) -> None:
        if (job := self.running.pop(key, None)) is not None:
            self.engine.done(job, outcome, self.now, WALL + self.now)

    def ticket(self) -> int:
        self.tickets += 1
        return self.tickets

    def step(self, kind: str, which: int, number: int) -> None:
        key = f"default/d{which}"
        wanted = str(number % 3) if number % 3 else ""
        one = device(Property("speed", "INT", desired=wanted, report_ms=number % 2000), name=f"d{which}")
        match kind:
            case "put":
                self.engine.put(one, self.now, self.ticket())
            case "change":
                self.engine.put(msgspec.structs.replace(one, config={"offset": number}), self.now, self.ticket())
            case "remove":
                self.engine.remove(key, self.now)
            case "read":
                self.engine.ask(key, ReadNow(), self.now, self.ticket())
            case "write":
                self.engine.ask(key, WriteNow("speed", str(number)), self.now, self.ticket())
            case "done":
                self.end(key, Outcome(written={"speed": None}, values={"speed": self.now}))
            case "fail":
                self.end(key, Outcome(opened=False, failed=Offline("away")))
            case "refuse":
                self.end(key, Outcome(opened=False, failed=Refused("no")))
            case "speak":
                self.engine.spoke(key, {"speed": self.now}, self.now, WALL + self.now)
            case "wait":
                self.now += number
        self.begin()

    def settle(self) -> None:
        for _ in range(5):
            for key in list(self.running):
                self.end(key, Outcome())
            self.now += 60_000
            self.begin()


KINDS = ["put", "change", "remove", "read", "write", "done", "fail", "refuse", "speak", "wait"]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2), st.integers(0, 4000)), max_size=60))
def test_whatever_happens_each_ticket_has_one_answer_and_values_stay_in_order(
    steps: list[tuple[str, int, int]],
) -> None:
    history = History()
    for kind, which, number in steps:
        history.step(kind, which, number)
    history.settle()
    assert sorted(one.ticket for one in answers(history.out)) == list(range(1, history.tickets + 1))
    for key in {one.key for one in history.out if isinstance(one, Values)}:
        taken = reported([one for one in history.out if isinstance(one, Values) and one.key == key])
        assert [at_ms for _, _, at_ms in taken] == sorted(at_ms for _, _, at_ms in taken)
