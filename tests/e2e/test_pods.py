"""What containers of a pod are and how they follow each other, in real containerd."""

from __future__ import annotations

import pytest

from tests.e2e.rig import SLEEP, Node, has_ended, is_ready, pod, sh, statuses, task

pytestmark = pytest.mark.containerd


def test_all_containers_of_a_pod_run_and_share_its_address(node: Node) -> None:
    server = sh("while true; do echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | nc -l -p 8080 >/dev/null; done", "server")
    asker = sh(f"until wget -qO- http://127.0.0.1:8080/; do sleep 0.1; done; {SLEEP}", "asker")
    found = node.run(pod("several", server, asker))
    assert {name: list(one["state"]) for name, one in statuses(found).items()} == {
        "server": ["running"],
        "asker": ["running"],
    }
    assert found["status"]["podIP"]
    node.wait(lambda: node.logs("several", "asker") == "hello\n")


def test_init_containers_run_one_after_the_other_before_the_containers(node: Node) -> None:
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    write = "echo {0} >> /shared/order; cat /shared/order | wc -l"
    found = task(
        "inits",
        sh("echo main >> /shared/order; cat /shared/order", volumeMounts=mounts),
        initContainers=[sh(write.format(name), name, volumeMounts=mounts) for name in ("first", "second", "third")],
        volumes=[{"name": "shared", "emptyDir": {}}],
    )
    assert node.output(found).split() == ["first", "second", "third", "main"]
    done = node.wait_pod("inits", has_ended)
    ends = {name: one["state"]["terminated"] for name, one in statuses(done).items()}
    assert all(one["exitCode"] == 0 and one["reason"] == "Completed" for one in ends.values())


def test_command_args_and_working_directory_are_those_of_the_pod(node: Node) -> None:
    container = {
        "name": "main",
        "image": "tinyedge.test/busybox:1",
        "command": ["sh", "-c", 'pwd; printf "[%s]" "$0" "$@"'],
        "args": ["zero", "with space", "$(NAME)", "$$(NAME)", "$(UNKNOWN)"],
        "workingDir": "/tmp",
        "env": [{"name": "NAME", "value": "value"}],
    }
    assert node.output(task("words", container)) == "/tmp\n[zero][with space][value][$(NAME)][$(UNKNOWN)]"
