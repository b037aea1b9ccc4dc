"""HTTP/1.1 and JSON on a unix socket: what the command line, a metrics collector and scripts on this machine use.

    GET    /healthz /readyz /metrics
    GET    /v1/version /v1/status /v1/node /v1/usage /v1/blackbox /v1/store /v1/config
    GET    /v1/KINDS                             ?watch=1 goes on; KINDS: pods nodes configmaps secrets images events
                                                 devices devicemodels localrules rules ruleendpoints
    GET    /v1/namespaces/NS/KINDS[/NAME]
    GET    /v1/namespaces/NS/pods/NAME/why
    GET    /v1/namespaces/NS/pods/NAME/log       ?container= follow= previous= tailLines= sinceSeconds= timestamps=
    POST   /v1/namespaces/NS/pods/NAME/exec      ?container= command=…&command=… stdin= tty=     answers {"url": …}
    POST   /v1/namespaces/NS/pods/NAME/attach    ?container= stdin= tty=
    POST   /v1/namespaces/NS/pods/NAME/portforward ?ports=
    POST   /v1/namespaces/NS/pods/NAME/restart   ?container=
    POST   /v1/namespaces/NS/pods/NAME/release   an update of it that is held; /v1/release: all
    DELETE /v1/namespaces/NS/KINDS/NAME          ?gracePeriodSeconds=
    GET    /v1/namespaces/NS/devices/NAME/why
    GET    /v1/namespaces/NS/localrules/NAME/why
    GET    /v1/namespaces/NS/devices/NAME/history    ?property= limit=     values that wait in the store
    POST   /v1/namespaces/NS/devices/NAME/read       ?property=            asks the device: {"message", "values"}
    POST   /v1/namespaces/NS/devices/NAME/properties/PROPERTY   {"value": …}: what it is to have
    DELETE /v1/namespaces/NS/devices/NAME/properties/PROPERTY   what was set on the node is taken back
    POST   /v1/namespaces/NS/devices/NAME/methods/METHOD        {"arguments": {property: value}}
    POST   /v1/redact                            {"text": …}: the same without the values of secrets
    POST   /v1/apply                             {"items": [manifest, …]}: all of them or none
    POST   /v1/images/pull ?image=   /v1/images/import ?path=      lines of progress
    DELETE /v1/images ?image=
    POST   /v1/join                              {"url", "token", "name", "labels", "taints"}
    DELETE /v1/join                              ?local=1: without a word to the gateway
    POST   /v1/upgrade                           {"name"}: try an installed version; empty: start again

Lists are Kubernetes lists; a watch is JSON lines of {"type", "object"}. An error is {"what", "why", "remedy",
"reason"}, in the body or, once a stream has begun, in the trailer `tinyedge-error`. `?redact=1` on any GET takes every
value of a Secret out of the answer. Who may open the socket is as powerful as root; each change is logged with the
caller's uid. A device that does not answer within 30 s answers nobody: what was asked of it goes on, and the error
says so.

A client that is slow, silent or greedy costs only itself: all waits on it end, and one user can't take all connections.
"""

from __future__ import annotations

from tinyedge.adapters.local_api.backend import Backend, JoinBody, LogOptions
from tinyedge.adapters.local_api.server import LocalApi

__all__ = ["Backend", "JoinBody", "LocalApi", "LogOptions"]
