"""What containers of a pod are and how they follow each other, in real containerd."""

from __future__ import annotations

import time

import pytest

from tests.e2e.rig import (
    SLEEP,
    Json,
    Node,
    condition,
    configmap,
    has_ended,
    identities,
    pod,
    secret,
    sh,
    statuses,
    task,
)
from tests.fakes.image_archives import BUSYBOX

pytestmark = pytest.mark.containerd

COUNT = "n=$(cat /keep/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n > /keep/n; echo run $n; "
KEEP: Json = {"name": "keep", "emptyDir": {}}
AT_KEEP: Json = {"volumeMounts": [{"name": "keep", "mountPath": "/keep"}]}


# --- containers, init containers, sidecars --------------------------------------------------------


def test_all_containers_of_a_pod_run_and_share_its_address(node: Node) -> None:
    serve = "mkdir /tmp/www; echo hello > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"
    server = sh(serve, "server")
    asker = sh(f"until wget -qO- http://127.0.0.1:8080/ 2>/dev/null; do sleep 0.1; done; {SLEEP}", "asker")
    found = node.run(pod("several", server, asker))
    assert {name: list(one["state"]) for name, one in statuses(found).items()} == {
        "server": ["running"],
        "asker": ["running"],
    }
    assert found["status"]["podIP"]
    node.wait(lambda: node.logs("several", "asker") == "hello\n")


def test_init_containers_run_one_after_the_other_before_the_containers(node: Node) -> None:
    write = "echo {0} >> /keep/order; cat /keep/order | wc -l"
    found = task(
        "inits",
        sh("echo main >> /keep/order; cat /keep/order", **AT_KEEP),
        initContainers=[sh(write.format(name), name, **AT_KEEP) for name in ("first", "second", "third")],
        volumes=[KEEP],
    )
    assert node.output(found).split() == ["first", "second", "third", "main"]
    done = node.wait_pod("inits", has_ended)
    ends = {name: one["state"]["terminated"] for name, one in statuses(done).items()}
    assert all(one["exitCode"] == 0 and one["reason"] == "Completed" for one in ends.values())


def test_a_failed_init_container_keeps_the_containers_from_starting(node: Node) -> None:
    node.add(task("init-fails", sh("echo never"), initContainers=[sh("exit 3", "broken")]))
    found = node.wait_pod("init-fails", has_ended)
    assert found["status"]["phase"] == "Failed"
    assert statuses(found)["broken"]["state"]["terminated"]["exitCode"] == 3
    assert "waiting" in statuses(found)["main"]["state"]
    assert condition(found, "Initialized") == "False"


def test_a_sidecar_runs_before_the_containers_and_is_stopped_after_them(node: Node) -> None:
    notes = "trap 'echo sidecar ends >> /keep/notes; exit 0' TERM; echo sidecar >> /keep/notes; "
    sidecar = sh(
        notes + "sleep 100000 & wait",
        "sidecar",
        restartPolicy="Always",
        startupProbe={"exec": {"command": ["cat", "/keep/notes"]}, "periodSeconds": 1},
        **AT_KEEP,
    )
    main = sh("echo main >> /keep/notes; cat /keep/notes; sleep 1; echo main ends >> /keep/notes", **AT_KEEP)
    found = task("sidecar", main, initContainers=[sidecar], volumes=[KEEP], terminationGracePeriodSeconds=10)
    assert node.output(found).split() == ["sidecar", "main"]
    ended = node.wait_pod("sidecar", lambda one: "terminated" in statuses(one)["sidecar"]["state"])
    assert statuses(ended)["sidecar"]["state"]["terminated"]["exitCode"] == 0
    assert ended["status"]["phase"] == "Succeeded"


# --- commands and environment ---------------------------------------------------------------------


def test_command_args_and_working_directory_are_those_of_the_pod(node: Node) -> None:
    container = {
        "name": "main",
        "image": BUSYBOX,
        "command": ["sh", "-c", 'pwd; printf "[%s]" "$0" "$@"'],
        "args": ["zero", "with space", "$(NAME)", "$$(NAME)", "$(UNKNOWN)"],
        "workingDir": "/tmp",
        "env": [{"name": "NAME", "value": "value"}],
    }
    assert node.output(task("words", container)) == "/tmp\n[zero][with space][value][$(NAME)][$(UNKNOWN)]"


def environment_of(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_environment_comes_from_values_configmaps_secrets_and_the_pod_itself(node: Node) -> None:
    def field(path: str) -> Json:
        return {"fieldRef": {"fieldPath": path}}

    def resource(name: str, divisor: str) -> Json:
        return {"resourceFieldRef": {"resource": name, "divisor": divisor}}

    sources = {
        "FROM_MAP": {"configMapKeyRef": {"name": "site", "key": "place"}},
        "FROM_SECRET": {"secretKeyRef": {"name": "login", "key": "password"}},
        "NOT_THERE": {"configMapKeyRef": {"name": "site", "key": "nothing", "optional": True}},
        "POD_IP": field("status.podIP"),
        "HOST_IP": field("status.hostIP"),
        "NODE": field("spec.nodeName"),
        "POD": field("metadata.name"),
        "NAMESPACE": field("metadata.namespace"),
        "UID": field("metadata.uid"),
        "LABEL": field("metadata.labels['app']"),
        "NOTE": field("metadata.annotations['site/note']"),
        "CPU_MILLIS": resource("limits.cpu", "1m"),
        "MEMORY_MIB": resource("requests.memory", "1Mi"),
    }
    env: list[Json] = [{"name": name, "valueFrom": source} for name, source in sources.items()]
    env += [{"name": "BOTH", "value": "$(FROM_MAP) and $(POD)"}, {"name": "KEPT", "value": "$$(POD) $(LATER)"}]
    main = sh(
        "env",
        env=env,
        envFrom=[{"configMapRef": {"name": "site"}, "prefix": "SITE_"}, {"secretRef": {"name": "login"}}],
        resources={"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"memory": "32Mi"}},
    )
    labels = {"labels": {"app": "environment"}, "annotations": {"site/note": "north"}}
    found = environment_of(
        node.output(
            configmap("site", place="roof", unit="7"),
            secret("login", password="hunter2", user="gate"),
            task("environment", main, metadata=labels),
        )
    )
    status = node.pod("environment")
    assert status is not None
    expected = {
        "FROM_MAP": "roof",
        "FROM_SECRET": "hunter2",
        "HOST_IP": status["status"]["hostIP"],
        "NODE": node.name,
        "POD": "environment",
        "NAMESPACE": "default",
        "UID": status["metadata"]["uid"],
        "LABEL": "environment",
        "NOTE": "north",
        "CPU_MILLIS": "250",
        "MEMORY_MIB": "32",
        "BOTH": "roof and environment",
        "KEPT": "$(POD) $(LATER)",
        "SITE_place": "roof",
        "SITE_unit": "7",
        "password": "hunter2",
        "user": "gate",
        "HOSTNAME": "environment",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["POD_IP"].startswith(node.rig.subnet.rpartition(".")[0])
    assert "NOT_THERE" not in found
    assert not [name for name in found if name.endswith("_SERVICE_HOST")]


def test_a_container_waits_for_a_configmap_that_comes_later(node: Node) -> None:
    env = [{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "word"}}}]
    node.add(task("waits", sh("echo $WORD", env=env)))
    waiting = node.wait_pod("waits", lambda one: "waiting" in statuses(one)["main"]["state"])
    waiting = node.wait_pod(
        "waits", lambda one: statuses(one)["main"]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    )
    assert "late" in statuses(waiting)["main"]["state"]["waiting"]["message"]
    assert "late" in node.cli("why", "waits")
    node.add(configmap("late", word="here"))
    node.wait_pod("waits", has_ended)
    assert node.logs("waits") == "here\n"


# --- what follows the end of a container ----------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "code", "phase"), [("Never", 0, "Succeeded"), ("Never", 7, "Failed"), ("OnFailure", 0, "Succeeded")]
)
def test_a_pod_ends_as_its_restart_policy_says(node: Node, policy: str, code: int, phase: str) -> None:
    name = f"ends-{policy.lower()}-{code}"
    node.add(pod(name, sh(f"exit {code}"), restartPolicy=policy))
    found = node.wait_pod(name, has_ended)
    main = statuses(found)["main"]
    assert (found["status"]["phase"], main["restartCount"]) == (phase, 0)
    assert main["state"]["terminated"]["exitCode"] == code
    assert main["state"]["terminated"]["reason"] == ("Error" if code else "Completed")
    assert condition(found, "Ready") == "False"


def test_on_failure_runs_again_until_it_ends_well(node: Node) -> None:
    main = sh(COUNT + "test $n -ge 2", **AT_KEEP)
    node.add(pod("on-failure", main, restartPolicy="OnFailure", volumes=[KEEP]))
    found = node.wait_pod("on-failure", has_ended)
    assert (found["status"]["phase"], statuses(found)["main"]["restartCount"]) == ("Succeeded", 1)
    assert statuses(found)["main"]["lastState"]["terminated"]["exitCode"] == 1
    assert node.logs("on-failure") == "run 2\n"
    assert node.logs("on-failure", previous="1") == "run 1\n"


def test_a_container_that_keeps_ending_is_held_back_visibly(node: Node) -> None:
    node.add(pod("crashing", sh("exit 4")))

    def is_held(found: Json) -> bool:
        return bool(statuses(found)["main"]["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff")

    found = node.wait_pod("crashing", is_held)
    main = statuses(found)["main"]
    assert (found["status"]["phase"], main["restartCount"]) == ("Running", 1)
    assert main["lastState"]["terminated"]["exitCode"] == 4
    assert "back-off 10s" in main["state"]["waiting"]["message"]
    assert "CrashLoopBackOff" in node.cli("get", "pods")
    again = node.wait_pod("crashing", lambda one: statuses(one)["main"]["restartCount"] == 2)
    ended = statuses(again)["main"]["lastState"]["terminated"]
    assert ended["exitCode"] == 4
    held = node.wait_pod("crashing", is_held)
    assert "back-off 20s" in statuses(held)["main"]["state"]["waiting"]["message"]


def test_a_deadline_ends_a_pod(node: Node) -> None:
    began = time.monotonic()
    node.add(pod("deadline", sh(SLEEP), activeDeadlineSeconds=2))
    found = node.wait_pod("deadline", has_ended)
    assert (found["status"]["phase"], found["status"]["reason"]) == ("Failed", "DeadlineExceeded")
    assert time.monotonic() - began >= 2
    node.wait_pod("deadline", lambda one: "terminated" in statuses(one)["main"]["state"])


# --- changes --------------------------------------------------------------------------------------


def test_a_change_restarts_the_container_that_it_concerns_and_no_other(node: Node) -> None:
    before = identities(node.run(pod("changing", sh(SLEEP, "calm"), sh(SLEEP, "changed"))))
    node.add(pod("changing", sh(SLEEP, "calm"), sh(f"echo new; {SLEEP}", "changed")))
    found = node.wait_pod("changing", lambda one: identities(one)["changed"][1] == 1 and is_running(one, "changed"))
    assert identities(found)["calm"] == before["calm"]
    assert identities(found)["changed"][0] != before["changed"][0]
    assert node.logs("changing", "changed") == "new\n"


def is_running(found: Json, name: str) -> bool:
    return "running" in statuses(found)[name]["state"]


def test_a_change_of_probes_labels_and_pull_policy_restarts_nothing(node: Node) -> None:
    before = identities(node.run(pod("calm", sh(SLEEP))))
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    changed = sh(SLEEP, readinessProbe=probe, imagePullPolicy="Never")
    node.add(pod("calm", changed, metadata={"labels": {"new": "label"}}))
    found = node.wait_pod("calm", lambda one: one["metadata"].get("labels") == {"new": "label"})
    found = node.wait_pod("calm")
    assert identities(found) == before


def test_a_change_of_the_sandbox_makes_the_pod_anew(node: Node) -> None:
    before = identities(node.run(pod("renamed", sh(f"cat /etc/hostname 2>/dev/null; echo $HOSTNAME; {SLEEP}"))))
    node.add(pod("renamed", sh(f"cat /etc/hostname 2>/dev/null; echo $HOSTNAME; {SLEEP}"), hostname="other"))
    found = node.wait_pod("renamed", lambda one: identities(one)["main"][1] == 1 and is_running(one, "main"))
    assert identities(found)["main"][0] != before["main"][0]
    node.wait(lambda: "other" in node.logs("renamed"))


# --- what is told ---------------------------------------------------------------------------------


def test_describe_tells_everything_about_a_pod_but_a_secrets_value(node: Node) -> None:
    env = [
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "described", "key": "password"}}},
        {"name": "PLAIN", "value": "shown"},
    ]
    mounts = [{"name": "login", "mountPath": "/login"}]
    volumes = [{"name": "login", "secret": {"secretName": "described"}}]
    limits = {"limits": {"memory": "64Mi"}}
    main = sh(SLEEP, env=env, volumeMounts=mounts, resources=limits, livenessProbe={"exec": {"command": ["true"]}})
    found = node.run(secret("described", password="hunter2"), pod("described", main, volumes=volumes))
    told = node.cli("describe", "pod", "described")
    for words in (found["status"]["podIP"], BUSYBOX, "64Mi", "/login", "shown", "Started", "described", "Running"):
        assert words in told
    everything = told + node.cli("get", "pod", "described", "-o", "yaml") + node.cli("get", "secrets", "-o", "json")
    assert "hunter2" not in everything


def test_attach_passes_input_to_the_process_that_runs(node: Node) -> None:
    script = "read line; echo heard $line > /dev/termination-log"
    node.add(task("listens", sh(script, stdin=True, stdinOnce=True)))
    node.wait_pod("listens", lambda one: is_running(one, "main"))
    node.cli("attach", "-i", "listens", stdin="hello\n", check=False)
    found = node.wait_pod("listens", has_ended)
    assert statuses(found)["main"]["state"]["terminated"]["message"] == "heard hello\n"
