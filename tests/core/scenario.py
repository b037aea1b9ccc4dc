"""Scenarios as text: what happens, and what the core decides on it.

    # a comment, or an empty line
    > command arguments          what happens
    | manifest in YAML           the body of a command
    anything else                what the core answered: its writes, effects, and what a looking command shows

`pytest --rewrite` writes the answers anew; the review reads the difference.

    boot [first|crash|clean|power] [forgets]      power cut [forgets]      runtime up|down [why]
    apply | file PATH | nofile PATH | folder-problem WHY | delete POD [GRACE] | restart POD [CONTAINER]
    ok [EFFECT…] | fail EFFECT REASON words | settle | wait SECONDS | exit POD CONTAINER CODE [REASON]
    wall SECONDS [untrusted|trusted] | machine key=value… | store read-only|ok
    join [NODE] | leave | link [KIND KEY=REVISION…] | unlink | cloud [UID] | refuse UID words | drop KIND KEY
    token TEXT SECONDS | taken
    show POD | why POD | events POD | node | outline KIND

A pod given to `cloud` has the uid that follows, and one with `deletionTimestamp` is to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import yaml
from msgspec import msgpack, structs

from tests.core.rig import Json, Rig, obj
from tinyedge import events as ev
from tinyedge.model.runtime import EmptyDirPlan, FilesPlan, PodUsage

QUIET = (ev.Note, ev.Record)
MIB = 1 << 20


class Command:
    """One command with its body and the lines that stand before it."""

    def __init__(self, before: list[str], line: str) -> None:
        self.before = before
        self.line = line
        self.body: list[str] = []
        self.expected: list[str] = []


def parse(text: str) -> tuple[list[Command], list[str]]:
    """The commands, and the comments after the last one."""
    commands: list[Command] = []
    loose: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            commands.append(Command(loose, line[2:]))
            loose = []
        elif line.startswith("|"):
            commands[-1].body.append(line[1:].removeprefix(" "))
        elif not line or line.startswith("#"):
            loose.append(line)
        else:
            commands[-1].expected.append(line)
    return commands, loose


def play(text: str) -> str:
    """The same scenario with the answers that the core gives now."""
    commands, rest = parse(text)
    player = Player()
    out: list[str] = []
    for command in commands:
        out += [*command.before, f"> {command.line}", *(f"| {line}".rstrip() for line in command.body)]
        out += player.run(command)
    return "\n".join([*out, *rest]).rstrip() + "\n"


class Player:
    def __init__(self) -> None:
        self.rig = Rig()
        self._files: dict[str, ev.FileSeen] = {}
        self._n = 0
        self._log: list[str] = []
        self._watch()

    def _watch(self) -> None:
        step = self.rig.step

        def told(*events: ev.Event) -> ev.Step:
            done = step(*events)
            self._log += [*map(_write, done.writes), *map(self._effect, done.effects)]
            return done

        self.rig.step = told  # type: ignore[method-assign]

    def run(self, command: Command) -> list[str]:
        self._log = []
        word, *args = command.line.split()
        shown = getattr(self, "do_" + word.replace("-", "_"))(args, command.body)
        return [line.rstrip() for line in [*self._log, *(shown or [])] if line]

    # --- commands ----------------------------------------------------------------------------------

    def do_boot(self, args: list[str], body: list[str]) -> None:
        self.rig.boot(args[0] if args else "first")

    def do_power(self, args: list[str], body: list[str]) -> None:
        self.rig.power_cut(forgets="forgets" in args)

    def do_runtime(self, args: list[str], body: list[str]) -> None:
        if args[0] == "up":
            self.rig.runtime_up()
        else:
            self.rig.step(ev.RuntimeDown(" ".join(args[1:])))

    def do_apply(self, args: list[str], body: list[str]) -> None:
        self.rig.apply(*map(obj, yaml.safe_load_all("\n".join(body))))

    def do_file(self, args: list[str], body: list[str]) -> None:
        self._n += 1
        objects = tuple(map(obj, yaml.safe_load_all("\n".join(body))))
        self._show_folder(ev.FileSeen(args[0], f"digest-{self._n}", objects))

    def do_nofile(self, args: list[str], body: list[str]) -> None:
        del self._files[args[0]]
        self._show_folder()

    def do_folder_problem(self, args: list[str], body: list[str]) -> None:
        self.rig.folder(problem=" ".join(args))

    def _show_folder(self, new: ev.FileSeen | None = None) -> None:
        files = dict(self._files)
        if new:
            files[new.path] = new
            self._files[new.path] = ev.FileSeen(new.path, new.digest, None)
        self.rig.folder(*files.values())

    def do_delete(self, args: list[str], body: list[str]) -> None:
        self.rig.delete(args[0], grace_s=int(args[1]) if len(args) > 1 else None)

    def do_restart(self, args: list[str], body: list[str]) -> None:
        self.rig.request(ev.RestartPod("default", *args))

    def do_ok(self, args: list[str], body: list[str]) -> None:
        """The effects that are under way now are done, or only those named."""
        for effect in list(self.rig.pending):
            if not args or type(effect).__name__ in args:
                self.rig.finish(effect)

    def do_fail(self, args: list[str], body: list[str]) -> None:
        self.rig.fail(getattr(ev, args[0]), args[1], " ".join(args[2:]))

    def do_settle(self, args: list[str], body: list[str]) -> None:
        self.rig.settle()

    def do_wait(self, args: list[str], body: list[str]) -> None:
        self.rig.advance(float(args[0]), settle=False)

    def do_exit(self, args: list[str], body: list[str]) -> None:
        self.rig.exit(args[1], int(args[2]), pod=args[0], reason=args[3] if len(args) > 3 else "")

    def do_wall(self, args: list[str], body: list[str]) -> None:
        self.rig.wall += int(float(args[0]) * 1000)
        self.rig.trusted = "untrusted" not in args
        self.rig.step()

    def do_machine(self, args: list[str], body: list[str]) -> None:
        given = {key: int(value) * MIB for key, value in (arg.split("=") for arg in args)}
        usage = tuple(
            PodUsage(self.rig.uid(name), "main", memory_bytes=value)
            for name, value in given.items()
            if name not in ("memory", "disk")
        )
        memory, disk = given.get("memory", 512 * MIB), given.get("disk", 512 * MIB)
        self.rig.step(ev.MachineSeen(memory, 1024 * MIB, disk, 1024 * MIB, usage=usage))

    def do_store(self, args: list[str], body: list[str]) -> None:
        self.rig.step(ev.StoreFault("EIO", "input/output error", args[0] == "read-only"))

    # --- the cloud -----------------------------------------------------------------------------------

    def do_join(self, args: list[str], body: list[str]) -> None:
        self.rig.join(node=args[0] if args else "gate-7")

    def do_leave(self, args: list[str], body: list[str]) -> None:
        self.rig.step(ev.Joined("", ""))

    def do_link(self, args: list[str], body: list[str]) -> None:
        """`have`: what the API server holds of one kind, where that is not the same."""
        objects = {key: value.encode() for key, _, value in (arg.partition("=") for arg in args[1:])}
        self.rig.link(**({args[0]: objects} if args else {}))

    def do_unlink(self, args: list[str], body: list[str]) -> None:
        self.rig.unlink()

    def do_cloud(self, args: list[str], body: list[str]) -> None:
        for one in map(obj, yaml.safe_load_all("\n".join(body))):
            uid = args[0] if args else ""
            self.rig.put(structs.replace(one, metadata=structs.replace(one.metadata, uid=uid)))

    def do_refuse(self, args: list[str], body: list[str]) -> None:
        self.rig.put(None, key=args[0], problem=" ".join(args[1:]))

    def do_drop(self, args: list[str], body: list[str]) -> None:
        self.rig.drop(*args)

    def do_token(self, args: list[str], body: list[str]) -> None:
        """Every token that was asked for comes."""
        asked = [one for one in self.rig.sent if isinstance(one, ev.RequestToken)]
        self.rig.sent = [one for one in self.rig.sent if one not in asked]
        for one in asked:
            self.rig.step(ev.TokenGiven(one.op, args[0], self.rig.wall + int(args[1]) * 1000))

    def do_taken(self, args: list[str], body: list[str]) -> None:
        self.rig.take_reports()

    # --- looking -----------------------------------------------------------------------------------

    def do_outline(self, args: list[str], body: list[str]) -> list[str]:
        return [f"  {key}" for key in sorted(self.rig.edge.view.outlines()[args[0]])]

    def do_show(self, args: list[str], body: list[str]) -> list[str]:
        status = self.rig.status(args[0])
        why = ": ".join(status[key] for key in ("reason", "message") if status.get(key))
        lines = [f"  {status['phase']}{' ' + why if why else ''}"]
        conditions = [one["type"] for one in status["conditions"] if one["status"] == "True"]
        lines.append(f"  conditions {' '.join(conditions)}")
        for one in (*status.get("initContainerStatuses", []), *status["containerStatuses"]):
            ready = "ready" if one["ready"] else "not ready"
            lines.append(f"  {one['name']}: {_state(one['state'])}, {ready}, restarts {one['restartCount']}")
            if one["lastState"]:
                lines[-1] += f", before {_state(one['lastState'])}"
        return lines

    def do_why(self, args: list[str], body: list[str]) -> list[str]:
        told = self.rig.why(args[0])
        lines = [f"  {told['summary']}"]
        for one in told["reasons"]:
            lines.append(f"  - {one['container'] + ': ' if one['container'] else ''}{one['what']}: {one['why']}")
            lines.append(f"    {one['remedy']}")
        return lines

    def do_events(self, args: list[str], body: list[str]) -> list[str]:
        return [
            f"  {one['type']} {one['reason']}: {one['message']}" + (f" (x{one['count']})" if one["count"] > 1 else "")
            for one in self.rig.edge.view.events()
            if one["involvedObject"]["name"] == args[0]
        ]

    def do_node(self, args: list[str], body: list[str]) -> list[str]:
        conditions = self.rig.edge.view.node_object()["status"]["conditions"]
        return ["  " + " ".join(f"{one['type']}={one['status']}" for one in conditions)]

    # --- words -------------------------------------------------------------------------------------

    def _effect(self, effect: Any) -> str:
        if isinstance(effect, QUIET):
            return ""
        describe = WORDS.get(type(effect))
        words = describe(self.rig, effect) if describe else ""
        return f"{type(effect).__name__} {words}".rstrip()


def _write(write: Any) -> str:
    if isinstance(write, ev.Append):
        told = msgpack.decode(write.item)
        return f"append {write.series} {told['reason']}" + (f" x{told['count']}" if told["count"] > 1 else "")
    if isinstance(write, ev.Trim):
        return f"trim {write.series} {write.through}"
    if write.table == "token":
        return f"{type(write).__name__.lower()} token {write.key.partition(' ')[0]}"
    key = "…" if write.table == "podstate" else write.key
    return f"{type(write).__name__.lower()} {write.table} {key}"


def _state(state: Json) -> str:
    ((kind, more),) = state.items()
    detail = more.get("reason", "")
    code = f" {more['exitCode']}" if "exitCode" in more else ""
    return f"{kind}{' ' + detail if detail else ''}{code}"


def _name(rig: Rig, container_id: str) -> str:
    seen = rig.machine.containers.get(container_id)
    return f"{_pod(rig, seen[0])}/{seen[1].name}.{seen[1].attempt}" if seen else container_id


def _pod(rig: Rig, uid: str) -> str:
    for key, row in rig.edge.view._desk.tables.pods.items():
        if row.uid == uid:
            return key.partition("/")[2]
    return "unwanted"


def _box(rig: Rig, effect: Any) -> str:
    found = rig.machine.sandboxes.get(effect.sandbox_id)
    return f"{found[0].name}.{found[0].attempt}" if found else str(effect.sandbox_id)


def _plan(plan: Any) -> Iterator[str]:
    kind = "emptyDir" if isinstance(plan, EmptyDirPlan) else "files" if isinstance(plan, FilesPlan) else "hostPath"
    yield f"{kind} {plan.name}"


def _report(rig: Rig, report: Any) -> str:
    """What is told of a pod, in the words of `show`; of other things what kind they are of."""
    if report.kind == "node" or not report.body:
        return f"{report.kind} {report.key}{'' if report.body else ' is no more'}"
    told = msgpack.decode(report.body)
    if report.kind == "mirror":
        return f"mirror {told['metadata']['name']}"
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in told.get("conditions", ()))
    words = [report.key, told.get("phase", ""), "ready" if ready else "", "gone" if told.get("gone") else ""]
    return f"podstatus {' '.join(word for word in words if word)}"


def _mounts(rig: Rig, effect: Any) -> str:
    return f"{_pod(rig, effect.uid)} [{', '.join(word for plan in effect.volumes for word in _plan(plan))}]"


WORDS: dict[type[Any], Callable[[Rig, Any], str]] = {
    ev.RunSandbox: lambda rig, e: f"{e.spec.name}.{e.spec.attempt}",
    ev.StopSandbox: _box,
    ev.RemoveSandbox: _box,
    ev.StartContainer: lambda rig, e: f"{e.sandbox.name}/{e.spec.name}.{e.spec.attempt} {e.spec.image}",
    ev.StopContainer: lambda rig, e: f"{_name(rig, e.container_id)} grace {e.grace_s} s",
    ev.RemoveContainer: lambda rig, e: _name(rig, e.container_id),
    ev.PullImage: lambda rig, e: f"{e.image}{' if absent' if e.present_ok and not e.never else ''}",
    ev.MountVolumes: _mounts,
    ev.UnmountVolumes: lambda rig, e: _pod(rig, e.uid),
    ev.RemoveLogs: lambda rig, e: e.path.rpartition("/")[2].rpartition("_")[0] or e.path,
    ev.RunProbe: lambda rig, e: _name(rig, e.container_id),
    ev.RunHook: lambda rig, e: _name(rig, e.container_id),
    ev.CloudAck: lambda rig, e: "",
    ev.CloudRefuse: lambda rig, e: f"{e.reason}: {e.message}",
    ev.Report: _report,
    ev.RequestToken: lambda rig, e: f"{e.service_account} of {e.pod}",
    ev.Answer: lambda rig, e: f"refused: {e.error}" if e.error else e.message,
}
