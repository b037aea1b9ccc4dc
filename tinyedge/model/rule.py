"""Rules: our own that a node carries out by itself (`rules.tinyedge.io/v1alpha1`), and KubeEdge's, which pass messages
on between a node and the cloud (`rules.kubeedge.io/v1`, its field names)."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from tinyedge.model.pod import K8s, ObjectMeta

LOCAL_API_VERSION = "rules.tinyedge.io/v1alpha1"
API_VERSION = "rules.kubeedge.io/v1"

REST, EVENTBUS, SERVICEBUS = "rest", "eventbus", "servicebus"


class RuleInput(K8s, frozen=True):
    """A property of a Device in the rule's own namespace."""

    device: str
    property: str


class SetAction(K8s, frozen=True):
    device: str
    property: str
    value: str


class PublishAction(K8s, frozen=True):
    topic: str
    payload: str = ""
    qos: int = 1
    retain: bool = False


class HTTPAction(K8s, frozen=True):
    url: str
    method: str = "POST"
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class EventAction(K8s, frozen=True):
    reason: str
    message: str = ""
    type: str = "Normal"


class RuleAction(K8s, frozen=True):
    """One of them."""

    set: SetAction | None = None
    publish: PublishAction | None = None
    http: HTTPAction | None = None
    event: EventAction | None = None


class LocalRuleSpec(K8s, frozen=True):
    """`when` and `clear` are expressions over `inputs` by name (`model.expression`). `clear` empty: not `when`. In a
    payload, body, value or message, {INPUT} stands for an input's value."""

    when: str
    inputs: dict[str, RuleInput]
    actions: list[RuleAction]
    node_name: str = ""
    clear: str = ""
    hold_seconds: int = 0


class LocalRule(K8s, frozen=True):
    metadata: ObjectMeta
    spec: LocalRuleSpec

    kind: ClassVar[str] = "LocalRule"

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


class RuleEndpointSpec(K8s, frozen=True):
    """Of a servicebus `properties` name the `service_port` on the node."""

    rule_endpoint_type: str
    properties: dict[str, str] = field(default_factory=dict)


class RuleEndpoint(K8s, frozen=True):
    metadata: ObjectMeta
    spec: RuleEndpointSpec

    kind: ClassVar[str] = "RuleEndpoint"

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


class RuleSpec(K8s, frozen=True):
    """`source` and `target` name RuleEndpoints of the same namespace. Of these the resources say what is meant: `path`
    of rest and servicebus, `topic` (and as a source `node_name`) of eventbus; as a target `resource` of rest is a URL,
    and `target_url` another spelling of it."""

    source: str
    source_resource: dict[str, str]
    target: str
    target_resource: dict[str, str]


class Rule(K8s, frozen=True):
    metadata: ObjectMeta
    spec: RuleSpec

    kind: ClassVar[str] = "Rule"

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def source(self) -> str:
        return f"{self.metadata.namespace}/{self.spec.source}"

    @property
    def target(self) -> str:
        return f"{self.metadata.namespace}/{self.spec.target}"
