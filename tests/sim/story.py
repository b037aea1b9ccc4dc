"""One history: what happens to a simulated node from its first boot to the quiet end."""

from __future__ import annotations

from tests.sim.cloud import CONFIGS, NAMES, CloudWorld
from tests.sim.devices import DeviceWorld
from tests.sim.fleet import FleetWorld
from tests.sim.manifests import make_config, make_pod
from tests.sim.world import YEARS_20_MS, Violation, World
from tinyedge import events as ev
from tinyedge.errors import InvariantBroken

TROUBLES = 30
QUIET_MS = 1_200_000  # the longest back-off of all, some times over


def tell(seed: int, world_type: type[World] = FleetWorld) -> tuple[str, list[str]]:
    """The failure ("" for none) and the history of one seed."""
    world = world_type(seed)
    try:
        script(world)
        settle(world)
    except (Violation, InvariantBroken) as failure:
        return f"{type(failure).__name__}: {failure}", world.history
    return "", world.history


def script(world: World) -> None:
    """Trouble, at random moments over some hours."""
    for _ in range(world.rng.randrange(1, 4)):
        world.folder.change()
    world.at(0, lambda: world.boot(power=True), script=True)
    moment = 0
    for _ in range(world.rng.randrange(5, TROUBLES)):
        moment += world.rng.choice((50, 500, 3_000, 30_000, 400_000))
        world.at(moment, lambda: trouble(world), script=True)
    world.run_until(moment + 1)


TROUBLE = (
    ("manifest",) * 6
    + ("apply", "delete", "restart", "power", "power", "kill", "exit", "exit", "forget", "runtime", "runtime")
    + ("clock", "disk", "reading", "reading", "take")
)
CLOUD_TROUBLE = (
    ("create",) * 6
    + ("change", "change", "end", "end", "force", "again", "config", "config", "node")
    + ("gateway", "gateway", "cut", "cut", "cut", "silent", "silent", "order_rule", "order_rule")
)


DEVICE_TROUBLE = (
    ("declare",) * 4
    + ("rule", "rule", "undeclare", "speed", "speed", "speed", "speed", "mapper", "mapper")
    + ("reading", "reading", "take")
)


FLEET_TROUBLE = ("order", "order", "order", "take_back", "let_go", "let_go")


def trouble(world: World) -> None:
    kinds: tuple[str, ...] = TROUBLE
    if isinstance(world, DeviceWorld):
        kinds += DEVICE_TROUBLE
    if isinstance(world, CloudWorld):
        kinds += CLOUD_TROUBLE * 2
    if isinstance(world, FleetWorld):
        kinds += FLEET_TROUBLE * 2
    globals()[f"_{world.rng.choice(kinds)}"](world)


def _manifest(world: World) -> None:
    world.say(world.folder.change())
    if world.life:
        life = world.life
        world.of_life(world.rng.randrange(1, 500), life, lambda: world.show_folder(life))


def _apply(world: World) -> None:
    name = world.rng.choice(("api-a", "api-b"))
    world.request(ev.Apply((make_config(world.rng, name), make_pod(world.rng, name))))


def _delete(world: World) -> None:
    world.request(ev.DeleteObject("Pod", "default", world.rng.choice(("api-a", "api-b", "web"))))


def _restart(world: World) -> None:
    world.request(ev.RestartPod("default", world.rng.choice(("api-a", "web", "cache"))))


def _power(world: World) -> None:
    if world.life:
        world.power_cut()


def _kill(world: World) -> None:
    if world.life:
        world.kill("SIGKILL")


def _exit(world: World) -> None:
    running = [(uid, seen.id) for uid, seen in world.runtime.containers.values() if seen.state == "running"]
    if running:
        uid, container_id = world.rng.choice(running)
        world.exited(uid, container_id, world.rng.choice((0, 1, 137)))


def _forget(world: World) -> None:
    world.say("the runtime forgets everything")
    world.runtime.forget()
    if world.life:
        world.runtime_up(world.life)


def _runtime(world: World) -> None:
    world.runtime.up = not world.runtime.up
    world.say(f"the runtime is {'back' if world.runtime.up else 'away'}")
    if world.life:
        world.runtime_up(world.life)


def _clock(world: World) -> None:
    world.wall_offset = world.rng.choice((0, -YEARS_20_MS, YEARS_20_MS, 3_600_000, -3_600_000))
    world.wall_trusted = world.rng.random() < 0.5
    world.say(f"the wall clock jumps to {world.wall_offset} ms, {'' if world.wall_trusted else 'not '}trusted")


def _disk(world: World) -> None:
    error = world.rng.choice(("EIO", "ENOSPC", "EROFS"))
    world.say(f"the disk answers {error}")
    world.break_disk(error)
    world.at(world.rng.randrange(1_000, 120_000), world.mend_disk, script=True)


def _reading(world: World) -> None:
    world.append_reading()


def _take(world: World) -> None:
    world.take_readings()


# --- devices and their mapper ----------------------------------------------------------------------


def _declare(world: DeviceWorld) -> None:
    world.declare()


def _rule(world: DeviceWorld) -> None:
    world.declare_rule()


def _undeclare(world: DeviceWorld) -> None:
    world.undeclare()


def _speed(world: DeviceWorld) -> None:
    world.set_speed()


def _mapper(world: DeviceWorld) -> None:
    world.mapper_down()


# --- the cluster, the gateway, the link ------------------------------------------------------------


def _create(world: CloudWorld) -> None:
    world.create(world.rng.choice(NAMES))


def _change(world: CloudWorld) -> None:
    world.change(world.rng.choice(NAMES))


def _end(world: CloudWorld) -> None:
    world.end(world.rng.choice(NAMES), force=False)


def _force(world: CloudWorld) -> None:
    world.end(world.rng.choice(NAMES), force=True)


def _again(world: CloudWorld) -> None:
    name = world.rng.choice(NAMES)
    world.end(name, force=True)
    world.create(name)


def _config(world: CloudWorld) -> None:
    world.configmap(world.rng.choice(CONFIGS))


def _order_rule(world: CloudWorld) -> None:
    world.order_rule()


def _node(world: CloudWorld) -> None:
    world.delete_node()


def _gateway(world: CloudWorld) -> None:
    world.gateway_down()


def _cut(world: CloudWorld) -> None:
    if world.wire:
        world.cut(world.wire)


def _silent(world: CloudWorld) -> None:
    if world.wire and world.wire.open:
        world.say("the link goes silent")
        world.wire.silent = True


# --- jobs, and what is held on site ----------------------------------------------------------------


def _order(world: FleetWorld) -> None:
    world.order()


def _take_back(world: FleetWorld) -> None:
    world.take_back()


def _let_go(world: World) -> None:
    world.request(ev.Release())


def settle(world: World) -> None:
    """Faults stop; after enough time what is wanted runs."""
    world.say("all faults stop")
    world.faults = False
    world.mend_disk()
    world.runtime.up = True
    world.wall_offset, world.wall_trusted = 0, True
    world.folder.mend()
    if world.life:
        world.runtime_up(world.life)
        world.show_folder(world.life)
    world.run_until(world.now + QUIET_MS)
    if world.life:
        world.show_folder(world.life)
        world.runtime_up(world.life)
    _let_go(world)
    world.run_until(world.now + QUIET_MS)
    world.take_readings()
    world.run_until(world.now + QUIET_MS)
    world.check_converged()
