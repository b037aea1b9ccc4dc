"""The manifests of a simulated node: a folder that people change, break, unmount and bring back."""

from __future__ import annotations

from random import Random

from tinyedge.events import FileProblem, FileSeen, FolderSeen
from tinyedge.model.objects import Object
from tinyedge.model.pod import (
    ConfigMap,
    ConfigMapVolume,
    Container,
    ExecAction,
    ObjectMeta,
    Pod,
    PodSpec,
    Probe,
    Volume,
    VolumeMount,
)

PATH = "/manifests"
NAMES = ("web", "cache", "meter", "job", "tick")


def make_pod(rng: Random, name: str) -> Pod:
    restart = rng.choice(("Always", "Always", "Always", "OnFailure", "Never"))
    image = "run" if restart == "Always" and rng.random() < 0.7 else rng.choice(("run", "done", "crash"))
    probe = Probe(exec=ExecAction(["true"]), period_seconds=rng.choice((5, 10))) if rng.random() < 0.4 else None
    mounts = [VolumeMount("conf", "/conf")] if rng.random() < 0.4 else []
    main = Container(
        "main",
        image,
        args=[f"--generation={rng.randrange(1000)}"],
        liveness_probe=probe if image == "run" else None,
        readiness_probe=probe if rng.random() < 0.5 else None,
        volume_mounts=mounts,
    )
    side = [Container("side", "run", args=[str(rng.randrange(3))])] if rng.random() < 0.3 else []
    inits = [Container("prepare", "done")] if rng.random() < 0.3 else []
    if rng.random() < 0.2:
        inits.append(Container("proxy", "run", restart_policy="Always"))
    volumes = [Volume("conf", config_map=ConfigMapVolume(name))] if mounts else []
    return Pod(
        ObjectMeta(name),
        PodSpec(
            [main, *side],
            init_containers=inits,
            volumes=volumes,
            restart_policy=restart,
            termination_grace_period_seconds=rng.choice((0, 1, 30)),
        ),
    )


def make_config(rng: Random, name: str) -> ConfigMap:
    return ConfigMap(ObjectMeta(name), {"value": str(rng.randrange(5))})


class Folder:
    """Files and what is in them. Every file holds one pod and its ConfigMap."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.identity = "disk-a:2"
        self.problem = ""
        self.files: dict[str, tuple[str, tuple[Object, ...] | None]] = {}
        self._n = 0

    def change(self) -> str:
        """One change that a person makes; returns it in words."""
        dice = self.rng.random()
        if self.problem and dice < 0.5:
            self.problem, self.identity = "", "disk-a:2"
            return "the folder is back"
        if dice < 0.05:
            self.problem = "it is not there"
            return "the folder goes away"
        name = self.rng.choice(NAMES)
        path = f"{name}.yaml"
        if dice < 0.25 and path in self.files:
            del self.files[path]
            return f"{path} is deleted"
        if dice < 0.35 and path in self.files:
            self.files[path] = (self._digest(), None)
            return f"{path} is broken"
        self.files[path] = (self._digest(), (make_pod(self.rng, name), make_config(self.rng, name)))
        return f"{path} is written"

    def mend(self) -> None:
        """No fault is left: the folder is there and every file can be read."""
        self.problem, self.identity = "", "disk-a:2"
        for path, (_, objects) in list(self.files.items()):
            if objects is None:
                del self.files[path]

    def seen(self, known: set[tuple[str, str]]) -> FolderSeen:
        """What the adapter tells; `known` holds the (path, digest) whose objects need not be told again."""
        if self.problem:
            return FolderSeen(PATH, self.identity, (), self.problem)
        files = []
        for path, (digest, objects) in sorted(self.files.items()):
            if objects is None:
                files.append(FileSeen(path, digest, None, (FileProblem(path, 3, "spec", "is not a pod"),)))
            else:
                files.append(FileSeen(path, digest, None if (path, digest) in known else objects))
                known.add((path, digest))
        return FolderSeen(PATH, self.identity, tuple(files))

    def pods(self) -> list[Pod]:
        return [obj for _, objects in self.files.values() for obj in objects or () if isinstance(obj, Pod)]

    def _digest(self) -> str:
        self._n += 1
        return f"digest-{self._n}"
