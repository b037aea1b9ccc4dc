"""`tinyedge apply`, `delete`, `restart`, `release`: what changes the node. Each is on disk before it is answered."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.kinds import Kind, kind_named
from tinyedge.cli.output import client, namespace, pod_name, show, structured

Json = dict[str, Any]

FILE_BYTES_MAX = 4 * 1024 * 1024
ENDINGS = (".yaml", ".yml", ".json")
PLURALS = {
    "Pod": "pods",
    "ConfigMap": "configmaps",
    "Secret": "secrets",
    "Device": "devices",
    "DeviceModel": "devicemodels",
    "LocalRule": "localrules",
    "Rule": "rules",
    "RuleEndpoint": "ruleendpoints",
}


def run(args: argparse.Namespace) -> int:
    return {"apply": _apply, "delete": _delete, "restart": _restart, "release": _release}[args.command](args)


def _apply(args: argparse.Namespace) -> int:
    read = _documents(args)
    for _, document in read:
        _place(document, args.namespace)
    try:
        answer = client(args).ask("POST", "/v1/apply", body={"items": [document for _, document in read]})
    except CliError as error:
        raise _located(error, [origin for origin, _ in read]) from None
    if args.output:
        show(structured(answer, args.output))
        return 0
    for done in answer["objects"]:
        name = f"{kind_named(done['kind']).singular}/{done['name']}"
        show(f"{name} {'created' if done['created'] else 'configured'}")
    return 0


def _located(error: CliError, origins: list[str]) -> CliError:
    """The daemon counts what it was sent; people look for it in files."""

    def origin(match: re.Match[str]) -> str:
        n = int(match[1])
        return origins[n] if n < len(origins) else match[0]

    what = re.sub(r"\bitems\[(\d+)\]", origin, error.what)
    return CliError(what, error.why, error.remedy, code=error.code, reason=error.reason)


def _place(document: Json, within: str | None) -> None:
    """The namespace of -n, where the document names none."""
    meta = document.get("metadata")
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str) or "kind" not in document:
        raise CliError("this is no Kubernetes object", "it has no kind or no metadata.name", "see docs/pod-support.md")
    own = meta.setdefault("namespace", within or "default")
    if within and own != within:
        raise CliError(
            f"{document['kind'].lower()}/{meta['name']} belongs to namespace {own}",
            f"and -n says {within}",
            "leave -n out, or change the manifest",
        )


def _delete(args: argparse.Namespace) -> int:
    params = _grace(args)
    api = client(args)
    deleted = []
    refused: CliError | None = None
    for kind, within, name in _targets(args):
        try:
            api.ask("DELETE", f"/v1/namespaces/{within}/{kind}/{name}", params)
        except CliError as error:
            if not error.reason:  # the daemon is away; the others would fail too
                raise
            if refused:
                show(f"error: {refused}", file=sys.stderr)
            refused = error
            continue
        deleted.append(f"{kind_named(kind).singular}/{name}")
        if not args.output:
            show(f'{kind_named(kind).singular} "{name}" deleted')
    if args.output:
        show(structured({"deleted": deleted}, args.output))
    if refused:
        raise refused
    return 0


def _grace(args: argparse.Namespace) -> list[tuple[str, str]]:
    if args.now:
        return [("gracePeriodSeconds", "1")]
    if args.grace_period is None:
        return []
    if not args.grace_period.isdigit():
        raise CliError(f"--grace-period {args.grace_period} is not a number of seconds", code=EXIT_USAGE)
    return [("gracePeriodSeconds", args.grace_period)]


def _targets(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """What is to be deleted, as (kind, namespace, name)."""
    if args.filename:
        for _, document in _documents(args):
            _place(document, args.namespace)
            if document["kind"] not in PLURALS:
                raise CliError(f"there is no kind {document['kind']} here", "", f"known are {', '.join(PLURALS)}")
            yield PLURALS[document["kind"]], document["metadata"]["namespace"], document["metadata"]["name"]
        return
    words = [word for word in (args.kind, *args.names) if word]
    if not words:
        raise CliError("say what to delete", "", "tinyedge delete pod NAME, or -f FILE", code=EXIT_USAGE)
    if "/" in words[0]:
        for word in words:
            kind, _, name = word.partition("/")
            yield _changeable(kind).plural, namespace(args), name
        return
    if len(words) == 1:
        raise CliError(f"say which {words[0]} to delete", "", f"tinyedge get {words[0]} lists them", code=EXIT_USAGE)
    for name in words[1:]:
        yield _changeable(words[0]).plural, namespace(args), name


def _changeable(word: str) -> Kind:
    kind = kind_named(word)
    if kind.plural == "images":
        raise CliError("images are removed with: tinyedge image rm NAME", code=EXIT_USAGE)
    if kind.plural not in PLURALS.values():
        raise CliError(f"{kind.plural} can't be deleted", code=EXIT_USAGE)
    return kind


def _restart(args: argparse.Namespace) -> int:
    name = pod_name(args.pod)
    params = [("container", args.container)] if args.container else []
    answer = _restarted(client(args), namespace(args), name, params)
    if args.output:
        show(structured({"restarted": f"pod/{name}", "message": answer.get("message", "")}, args.output))
    else:
        show(answer.get("message") or f"pod/{name} restarted")
    return 0


def _release(args: argparse.Namespace) -> int:
    if bool(args.pod) == args.all:
        raise CliError("say which pod to release, or --all", "", "tinyedge status lists what is held", code=EXIT_USAGE)
    path = f"/v1/namespaces/{namespace(args)}/pods/{pod_name(args.pod)}/release" if args.pod else "/v1/release"
    answer = client(args).ask("POST", path)
    if args.output:
        show(structured({"message": answer["message"]}, args.output))
    else:
        show(answer["message"])
    return 0


def _restarted(api: Client, within: str, name: str, params: list[tuple[str, str]]) -> Json:
    answer = api.ask("POST", f"/v1/namespaces/{within}/pods/{name}/restart", params)
    return answer if isinstance(answer, dict) else {}


# --- manifests -------------------------------------------------------------------------------------


def _documents(args: argparse.Namespace) -> list[tuple[str, Json]]:
    """Each object with the file that it came from."""
    if not args.filename:
        raise CliError(
            "say what to apply", "", "tinyedge apply -f FILE, a folder, or - for standard input", code=EXIT_USAGE
        )
    found = [(_origin(file), document) for path in args.filename for file in _files(path) for document in _parsed(file)]
    if not found:
        raise CliError("there is no object in " + ", ".join(args.filename))
    return found


def _origin(file: str) -> str:
    return "standard input" if file == "-" else file


def _files(path: str) -> list[str]:
    if path == "-" or not os.path.isdir(path):
        return [path]
    files = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(ENDINGS)]
    if not files:
        raise CliError(f"there is no manifest in {path}", f"no file ends with {', '.join(ENDINGS)}")
    return files


def _parsed(path: str) -> Iterator[Json]:
    import yaml

    text = _read(path)
    try:
        documents = list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else path
        raise CliError(f"{where} is not valid YAML", getattr(error, "problem", None) or str(error)) from None
    for n, document in enumerate(documents, 1):
        if document is None:
            continue
        items = document.get("items") if isinstance(document, dict) and document.get("kind") == "List" else [document]
        for item in items or ():
            if not isinstance(item, dict):
                raise CliError(f"document {n} of {path} is no Kubernetes object", "it is no mapping of fields")
            yield item


def _read(path: str) -> str:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise CliError(f"{path} is too large", f"{FILE_BYTES_MAX >> 20} MiB are allowed", "split it")
        return data.decode()
    except UnicodeDecodeError:
        raise CliError(f"{path} is not text", "it does not decode as UTF-8") from None
    except OSError as error:
        raise CliError(f"can't read {path}", error.strerror or str(error)) from None
