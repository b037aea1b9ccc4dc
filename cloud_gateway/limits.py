"""Every limit of the gateway in one file, its unit last in its name, with the relations between them required below."""

from __future__ import annotations

from tinyedge.errors import require

KIB = 1024
MIB = 1024 * KIB

# Kubernetes.
KUBE_OBJECT_BYTES_MAX = 4 * MIB  # of one answer that is no list; etcd takes 1.5 MiB
KUBE_LIST_ITEMS = 500  # of one page
KUBE_PAGE_BYTES_MAX = 64 * MIB
KUBE_WATCH_LINE_BYTES_MAX = 4 * MIB
KUBE_HEAD_BYTES_MAX = 128 * KIB  # of an answer
KUBE_READ_BYTES = 64 * KIB
KUBE_ERROR_TEXT_CHARS = 2000
KUBE_ERROR_BYTES_MAX = 64 * KIB  # read of a refused watch
KUBE_REQUEST_S_MAX = 30  # of one try, from the connection to the last byte
KUBE_LIST_S_MAX = 120  # of one page
KUBE_TRIES_MAX = 5  # of a request that is answered with 429, or 503 and Retry-After
KUBE_RETRY_AFTER_S_MAX = 60
KUBE_CONNECTIONS_MAX = 128  # watches among them
KUBE_CONFIG_BYTES_MAX = 4 * MIB
KUBE_FILE_BYTES_MAX = 1 * MIB  # of a token, a certificate or a key
KUBE_PLUGIN_S_MAX = 60  # of the program that gets credentials
KUBE_PLUGIN_BYTES_MAX = 1 * MIB  # that it may print

# Edges.
EDGE_HEAD_BYTES_MAX = 16 * KIB  # of a request before the link is open
EDGE_JOIN_BYTES_MAX = 64 * KIB
EDGE_HANDSHAKE_S_MAX = 30
EDGE_HELLO_S_MAX = 60  # for the first message of a link to have come whole
EDGE_SESSIONS_MAX = 5000
EDGE_STRANGERS_MAX = 256  # connections that are no session yet; more wait to be accepted
EDGE_READ_BYTES = 64 * KIB
READINGS_BYTES_MAX = 64 * MIB  # of all nodes together, here and not at every sink yet
READINGS_WINDOW_BYTES_MIN = 16 * KIB  # of one of very many nodes

# Rules.
MESSAGES_BYTES_MAX = 32 * MIB  # of all nodes together, here and not where their rules lead yet
MESSAGES_WINDOW_BYTES_MIN = 8 * KIB  # of one of very many nodes
REST_BODY_BYTES_MAX = 4 * MIB  # of one request
REST_MESSAGE_BYTES_MAX = 63 * KIB  # of one that becomes a message: it is an item of a series at its node
REST_CONNECTIONS_MAX = 256
REST_STRANGERS_MAX = 128  # beside them, who have not said yet who they are
REST_HEAD_BYTES_MAX = 64 * KIB
REST_TOKENS_MAX = 1000  # in the file

# Identity.
IDENTITY_STATE_BYTES_MAX = 900 * KIB  # of the state in its Secret, which may hold 1 MiB: 3,000 nodes or more
IDENTITY_REVOKED_MAX = 1000  # refusals that can be explained; none is forgotten by dropping one
IDENTITY_TRIES_MAX = 20  # at one change of the state when others change it too
TOKEN_TTL_S_MAX = 90 * 86400
JOIN_LABELS_MAX = 64
JOIN_TAINTS_MAX = 32
CSR_BYTES_MAX = 8 * KIB
CA_BYTES_MAX = 64 * KIB  # of all PEM text of the CAs

# Jobs.
JOB_NODES_MAX = 2000  # of one job: its status is one object
UPGRADE_FILE_BYTES_MAX = 256 * MIB
UPGRADE_SUMS_BYTES_MAX = 256 * KIB  # of the list of digests beside the files
UPGRADE_CACHE_BYTES_MAX = 16 * MIB  # of files that come from elsewhere

# The sandbox.
SANDBOX_MAP_BYTES = 4 * 1024 * MIB  # of address space, taken from the disk as it is used
SANDBOX_LOG_CHANGES_MAX = 20_000  # kept for watches that begin in the past
SANDBOX_LOG_BYTES_MAX = 48 * MIB
SANDBOX_BATCH_MAX = 256  # changes that go to the disk at once
SANDBOX_BODY_BYTES_MAX = 3 * MIB  # as Kubernetes
SANDBOX_HEAD_BYTES_MAX = 64 * KIB
SANDBOX_OBJECT_BYTES_MAX = 1536 * KIB  # as etcd
SANDBOX_CONNECTIONS_MAX = 8192
SANDBOX_IDLE_S = 120  # between two requests of a connection
SANDBOX_STALL_S = 30  # for a request to arrive, or a client to take what it is sent
SANDBOX_WATCH_S_MAX = 3600
SANDBOX_BOOKMARK_S = 60
SANDBOX_WATCH_EVENTS_MAX = 20_000  # waiting for one watch
SANDBOX_WATCH_LINES_MAX = 512  # encoded events at hand
SANDBOX_SNAPSHOTS_MAX = 32  # of lists that are read page by page
SANDBOX_PATCH_OPERATIONS_MAX = 10_000  # as Kubernetes
SANDBOX_DEPTH_MAX = 64  # of one object

# Kubelet endpoints.
KUBELET_HEAD_BYTES_MAX = 96 * KIB  # a command of many words stands in it
KUBELET_HEAD_S_MAX = 20
KUBELET_CONNECTIONS_MAX = 512  # of all nodes together
KUBELET_STRANGERS_MAX = 128  # beside them, who have not said yet who they are
KUBELET_CACHE_MAX = 4096  # answers about callers

require(KUBE_OBJECT_BYTES_MAX <= KUBE_PAGE_BYTES_MAX, "a page holds an object")
