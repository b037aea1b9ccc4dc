"""From words to commands, settings, errors and exit codes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud_gateway import daemon
from cloud_gateway.adapters.kube_types import UNREACHABLE, KubeError
from cloud_gateway.cli.commands import BY_NAME, COMMANDS, Command
from cloud_gateway.cli.main import code_of, find, overview, parser
from cloud_gateway.cli.run import config_of
from cloud_gateway.config import Config
from tests.cloud_gateway.cli.conftest import Ran
from tinyedge.cli.errors import EXIT_FAILED, EXIT_FORBIDDEN, EXIT_UNREACHABLE, EXIT_USAGE
from tinyedge.errors import BadInput, PeerError, TinyEdgeError

Run = Callable[..., Ran]


def settings(*words: str) -> Config:
    return config_of(parser(BY_NAME["run"]).parse_args(words))


# --- settings ----------------------------------------------------------------------------------------


def test_without_a_flag_the_settings_are_the_defaults() -> None:
    assert settings() == Config()


def test_every_flag_of_run_reaches_the_settings() -> None:
    given: dict[str, str] = {
        "--context": "c",
        "--sandbox": "/s",
        "--sandbox-listen": "127.0.0.1:1",
        "--listen": "[::1]:2",
        "--kubelet-ports": "3-4",
        "--kubelet-listen": "127.0.0.2",
        "--kubelet-address": "10.0.0.1",
        "--kubelet-cert": "/cert",
        "--kubelet-key": "/key",
        "--kubelet-client-ca": "/ca",
        "--namespace": "other",
        "--replica": "one",
        "--metrics": ":5",
        "--heartbeat": "7",
        "--autonomy": "72h",
        "--hold": "app=cni",
        "--hold-daemonsets": "infra",
        "--device-status": "device",
        "--sink": "file:///out",
        "--upgrade-source": "/",
        "--rest": "127.0.0.1:6",
        "--rest-cert": "/rest-cert",
        "--rest-key": "/rest-key",
        "--rest-tokens": "/dev/null",
        "--outbound-allow": "10.0.0.0/8:443",
        "--cert-days": "8",
        "--grace-days": "0",
        "--qps": "9",
        "--burst": "10",
        "--log-format": "human",
        "--log-level": "debug",
    }
    assert {option.flags[-1] for option in BY_NAME["run"].options} == {*given, "--kubeconfig"}
    made = settings(*(word for pair in given.items() for word in pair))
    assert made == Config(
        context="c",
        sandbox="/s",
        sandbox_listen=("127.0.0.1", 1),
        listen=("::1", 2),
        kubelet_ports=(3, 4),
        kubelet_listen="127.0.0.2",
        kubelet_address="10.0.0.1",
        kubelet_cert="/cert",
        kubelet_key="/key",
        kubelet_client_ca="/ca",
        namespace="other",
        replica="one",
        metrics=("0.0.0.0", 5),  # noqa: S104
        heartbeat_s=7,
        autonomy="72h",
        device_status="device",
        sinks=("file:///out",),
        upgrade_source="/",
        rest=("127.0.0.1", 6),
        rest_cert="/rest-cert",
        rest_key="/rest-key",
        rest_tokens="/dev/null",
        outbound_allow=("10.0.0.0/8:443",),
        hold_labels=(("app", "cni"),),
        hold_daemonsets_of=("infra",),
        cert_days=8,
        grace_days=0,
        qps=9,
        burst=10,
        log_format="human",
        log_level="debug",
    )
    assert settings("--kubeconfig", "/k").kubeconfig == "/k"


def test_every_setting_can_be_set_by_a_flag() -> None:
    flags = {option.name for option in BY_NAME["run"].options}
    renamed = {"hold_daemonsets_of": "hold_daemonsets", "hold_labels": "hold", "sinks": "sink"}
    assert {renamed.get(name, name).removesuffix("_s") for name in Config.__struct_fields__} == flags


def test_what_is_held_can_be_nothing_or_several() -> None:
    assert settings("--hold-daemonsets", "none").hold_daemonsets_of == ()
    several = settings("--hold", "a", "--hold", "b=c=d", "--hold-daemonsets", "x", "--hold-daemonsets", "y")
    assert several.hold_labels == (("a", ""), ("b", "c=d"))
    assert several.hold_daemonsets_of == ("x", "y")


def test_rules_can_lead_nowhere() -> None:
    assert settings("--outbound-allow", "none").outbound_allow == ()


def test_metrics_can_be_nowhere() -> None:
    assert settings("--metrics", "none").metrics is None


def test_the_kubelet_address_is_the_pods_own_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_IP", "10.1.2.3")
    assert settings().kubelet_address == "10.1.2.3"
    assert settings("--kubelet-address", "10.0.0.9").kubelet_address == "10.0.0.9"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--sandbox", "/s", "--kubeconfig", "/k"], "--sandbox"),
        (["--kubelet-cert", "/c"], "--kubelet-cert"),
        (["--kubelet-ports", "10-5"], "--kubelet-ports"),
        (["--listen", "8443"], "--listen"),
        (["--autonomy", "soon"], "--autonomy"),
        (["--heartbeat", "0"], "--heartbeat"),
        (["--heartbeat", "1.5"], "--heartbeat"),
        (["--cert-days", "-1"], "--cert-days"),
        (["--qps", "²"], "--qps"),
        (["--hold", "=x"], "--hold"),
        (["--rest", "8444"], "--rest"),
        (["--rest-key", "/k"], "--rest-cert"),
        (["--outbound-allow", "10.0.0.300"], "--outbound-allow[0]"),
    ],
)
def test_a_wrong_value_is_wrong_usage_and_names_its_flag(run: Run, words: list[str], named: str) -> None:
    ran = run("run", *words)
    assert ran.code == EXIT_USAGE
    assert ran.err.startswith(f"error: {named} is ")


def test_run_hands_the_settings_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Config] = []

    def serve(config: Config) -> int:
        served.append(config)
        return 7

    monkeypatch.setattr(daemon, "serve", serve)
    assert run("run", "--sandbox", "/s").code == 7
    assert served == [Config(sandbox="/s")]


# --- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_helps(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser(command).parse_args(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(option.flags[-1] in told for option in command.options)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_takes_its_examples(command: Command) -> None:
    for line in command.examples:
        words = [word.strip("'") for word in line.partition(" && ")[0].split()]
        found = find(words[1:])
        assert found is command
        assert isinstance(parser(command).parse_args(words[1 + len(command.name.split()) :]), argparse.Namespace)


def test_no_words_are_wrong_usage_and_help_is_not(run: Run) -> None:
    assert (run().code, run("--help").code, run("help").code) == (EXIT_USAGE, 0, 0)
    assert run("--help").out == overview() + "\n"


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["nodse"], "did you mean nodes?"),
        (["xyzzy"], "tinyedge-gateway --help lists them"),
        (["token"], "tinyedge-gateway token create"),
        (["node"], "node list | node revoke | node replace | node delete"),
        (["node", "revok", "x"], "did you mean node revoke?"),
        (["node", "revoke"], "tinyedge-gateway node revoke [options] NAME"),
        (["nodes", "--nope"], "tinyedge-gateway nodes --help tells more"),
        (["nodes", "-o", "yaml"], "tinyedge-gateway nodes --help tells more"),
    ],
)
def test_wrong_words_are_wrong_usage_and_say_what_would_be_right(run: Run, words: list[str], remedy: str) -> None:
    ran = run(*words)
    assert ran.code == EXIT_USAGE
    assert remedy in ran.err


def test_the_version_is_told(run: Run) -> None:
    assert run("version").out == run("--version").out
    assert json.loads(run("version", "-o", "json").out)["program"] in run("version").out


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KubeError("x", status=403), EXIT_FORBIDDEN),
        (KubeError("x", status=401), EXIT_FORBIDDEN),
        (KubeError("x", reason=UNREACHABLE), EXIT_UNREACHABLE),
        (KubeError("x", status=500), EXIT_FAILED),
        (BadInput("--ttl", "x", "y"), EXIT_USAGE),
        (BadInput("exec.command", "x", "y"), EXIT_FAILED),
        (PeerError("x"), EXIT_FAILED),
    ],
)
def test_how_a_command_ends_tells_what_kind_of_failure_it_was(error: TinyEdgeError, code: int) -> None:
    assert code_of(error) == code


def test_no_cluster_is_a_plain_error(run: Run) -> None:
    ran = run("node", "list")
    assert (ran.code, ran.out) == (EXIT_UNREACHABLE, "")
    assert ran.err == "error: no cluster is named\n  → name it: --kubeconfig FILE, or --sandbox DIR\n"


def test_a_sandbox_that_never_was_is_told(run: Run, tmp_path: Path) -> None:
    ran = run("nodes", "--sandbox", str(tmp_path))
    assert ran.code == EXIT_UNREACHABLE
    assert "tinyedge-gateway run --sandbox" in ran.err


def test_errors_are_json_for_programs(run: Run, tmp_path: Path) -> None:
    ran = run("nodes", "--sandbox", str(tmp_path), "-o", "json")
    assert set(json.loads(ran.err)["error"]) == {"what", "why", "remedy"}


def test_a_cluster_that_does_not_answer_is_unreachable(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "current-context: c\n"
        "contexts: [{name: c, context: {cluster: c}}]\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
    )
    ran = run("nodes", "--kubeconfig", str(config))
    assert ran.code == EXIT_UNREACHABLE
    assert "http://127.0.0.1:1" in ran.err
