"""`tinyedge-gateway run`: from flags to a Config."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cloud_gateway.config import Config, address, autonomy_s, ports
from tinyedge.errors import BadInput

DAYS_MAX = 36500


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    from cloud_gateway import daemon

    return daemon.serve(config)


def config_of(args: argparse.Namespace) -> Config:
    """BadInput names the flag."""
    if args.sandbox and args.kubeconfig:
        raise BadInput("--sandbox", args.sandbox, "a sandbox or --kubeconfig, not both")
    if bool(args.kubelet_cert) != bool(args.kubelet_key):
        raise BadInput("--kubelet-cert", args.kubelet_cert, "a certificate together with --kubelet-key")
    if bool(args.rest_cert) != bool(args.rest_key):
        raise BadInput("--rest-cert", args.rest_cert, "a certificate together with --rest-key")
    autonomy_s(args.autonomy, "--autonomy")
    _check_rules(args)
    _check_sinks(args.sink)
    chosen: dict[str, Any] = {}
    if args.hold_daemonsets:
        chosen["hold_daemonsets_of"] = tuple(one for one in args.hold_daemonsets if one != "none")
    if args.outbound_allow:
        chosen["outbound_allow"] = tuple(one for one in args.outbound_allow if one != "none")
    if args.device_status:
        chosen["device_status"] = args.device_status
    if args.log_format:
        chosen["log_format"] = args.log_format
    if args.log_level:
        chosen["log_level"] = args.log_level
    return Config(
        kubeconfig=args.kubeconfig,
        context=args.context,
        sandbox=args.sandbox,
        sandbox_listen=address(args.sandbox_listen, "--sandbox-listen"),
        listen=address(args.listen, "--listen"),
        kubelet_ports=ports(args.kubelet_ports, "--kubelet-ports") if args.kubelet_ports else (0, 0),
        kubelet_listen=args.kubelet_listen,
        kubelet_address=args.kubelet_address or os.environ.get("POD_IP", ""),
        kubelet_cert=args.kubelet_cert,
        kubelet_key=args.kubelet_key,
        kubelet_client_ca=args.kubelet_client_ca,
        namespace=args.namespace,
        replica=args.replica,
        metrics=None if args.metrics == "none" else address(args.metrics, "--metrics"),
        heartbeat_s=_number(args.heartbeat, "--heartbeat", 1, 3600),
        autonomy=args.autonomy,
        hold_labels=tuple(_label(one) for one in args.hold),
        sinks=tuple(args.sink),
        upgrade_source=_source(args.upgrade_source),
        rest=address(args.rest, "--rest") if args.rest else None,
        rest_cert=args.rest_cert,
        rest_key=args.rest_key,
        rest_tokens=args.rest_tokens,
        cert_days=_number(args.cert_days, "--cert-days", 1, DAYS_MAX),
        grace_days=_number(args.grace_days, "--grace-days", 0, DAYS_MAX),
        qps=_number(args.qps, "--qps", 1, 100_000),
        burst=_number(args.burst, "--burst", 1, 100_000),
        **chosen,
    )


def _check_sinks(urls: list[str]) -> None:
    if urls:
        from cloud_gateway.adapters.sinks import sink

        for url in urls:
            sink(url, lambda *_: None)


def _check_rules(args: argparse.Namespace) -> None:
    if args.outbound_allow:
        from tinyedge.outbound import allowed

        allowed((one for one in args.outbound_allow if one != "none"), "--outbound-allow")
    if args.rest_tokens:
        from cloud_gateway.adapters.rest_access import read_tokens

        read_tokens(args.rest_tokens)


def _source(text: str) -> str:
    if not text:
        return ""
    from cloud_gateway.adapters.upgrade_source import check

    check(text)
    return text


def _number(text: str, flag: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise BadInput(flag, text, f"a whole number from {least} to {most}")
    return int(text)


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key:
        raise BadInput("--hold", text, "a label: KEY or KEY=VALUE")
    return key, value
