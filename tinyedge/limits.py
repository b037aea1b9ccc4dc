"""Every limit in one file, its unit last in its name, with the relations between them required below."""

from __future__ import annotations

from tinyedge.errors import require

KIB = 1024
MIB = 1024 * KIB

# The store.
BLOCK_BYTES = 4 * KIB  # records start on these; the unit a flash card rewrites at least
SEGMENT_BYTES = 4 * MIB
RECORD_BYTES_MAX = 3 * MIB  # one commit, framing included
VALUE_BYTES_MAX = 1 * MIB + 64 * KIB  # one state value; Kubernetes' own limit for an object is about 1 MiB
STORE_KEY_BYTES_MAX = 480  # a table's name and a key together; LMDB takes 511
SERIES_ITEM_BYTES_MAX = 64 * KIB
LMDB_MAP_BYTES = 64 * MIB  # fixed, and small enough for a 32-bit address space
STATE_BYTES_MAX = LMDB_MAP_BYTES // 4
RESERVE_BYTES = 2 * MIB  # given back on a full disk, so that there is room to delete
SERIES_BYTES_MAX = 256 * MIB
SERIES_AGE_MAX_S = 30 * 24 * 3600
CHECKPOINT_BYTES = 1 * MIB  # fold after this much journal, or
CHECKPOINT_AGE_S = 600  # after this long with something to fold
AUDITS_MAX = 256  # entries that wait in the store for a black box that can't be written
BLACKBOX_BYTES = 256 * KIB
COMMIT_BATCH_MAX = 512

# The daemon.
INBOX_EVENTS_MAX = 1024
STEPS_AHEAD_MAX = 256  # decided, not yet durable
PODS_MAX = 250
CONTAINERS_PER_POD_MAX = 32
VOLUMES_PER_POD_MAX = 64
LIST_ITEMS_MAX = 1000  # of any list in an object
ANNOTATIONS_BYTES_MAX = 256 * KIB  # of one object, as Kubernetes
EVENTS_KEPT_MAX = 256
EVENT_MESSAGE_BYTES_MAX = 1 * KIB  # as Kubernetes
OBJECT_BYTES_MAX = 1 * MIB
CLOUD_KEY_CHARS_MAX = 400  # namespace/name, or a uid
CLOUD_REFUSED_MAX = 1000  # refused objects of which the refused revision is remembered
CLOUD_GONE_MAX = 1000  # deleted pods of which the cloud has not said yet that it has dropped them
CLOUD_HELD_MAX = 256  # refused for now, in memory until they can be taken
CLOUD_HELD_BYTES_MAX = 1 * MIB
CLOUD_EVENTS_WAITING_MAX = 1024  # of Kubernetes, on their way into their series
TOKEN_BYTES_MAX = 16 * KIB  # of a service account
NODE_IMAGES_MAX = 50  # that a cluster is told of, as a kubelet
NODE_IMAGE_NAMES_MAX = 5  # of one image
MANIFEST_FILE_BYTES_MAX = 4 * MIB
MANIFEST_FILES_MAX = 1000  # in one folder
MANIFEST_NODES_MAX = 200_000  # values in one file once its aliases are written out
MANIFEST_DEPTH_MAX = 64
MANIFEST_DOCUMENTS_MAX = 1000
MANIFEST_PARSE_S_MAX = 60  # of one batch of files, on the slowest board
MANIFEST_BATCH_BYTES = 4 * MIB  # files parsed by one child, their contents in memory at a time
FILES_TMPFS_BYTES = 16 * MIB  # of one volume of secrets: two versions of it stand side by side for a moment
TERMINATION_MESSAGE_BYTES_MAX = 4 * KIB  # as the kubelet
TERMINATION_LOG_BYTES_MAX = 2 * KIB  # taken from the end of a log, as the kubelet
TERMINATION_LOG_LINES_MAX = 80
USAGE_ENTRIES_MAX = 200_000  # files of one volume that are counted
USAGE_DEPTH_MAX = 128  # levels of folders, each of which takes a descriptor
LOG_LINE_BYTES_MAX = 256 * KIB  # pieces of one line are joined up to this; a longer one is passed on in parts
HOST_FILE_BYTES_MAX = 64 * KIB  # /etc/hosts of the node, put before a pod's own lines
HOOK_S_MAX = 600  # a postStart hook that takes longer has failed
PROBE_BODY_BYTES_MAX = 10 * KIB
API_REQUEST_BYTES_MAX = 4 * MIB
API_CONNECTIONS_MAX = 64
API_CALLER_CONNECTIONS_MAX = 48  # of one user id, so that no user can shut the others out
API_HEAD_BYTES_MAX = 32 * KIB
API_IDLE_S = 30  # for a request to arrive whole
API_STALL_S = 30  # for a client to take what it is sent
API_DEVICE_S = 30  # for a device to answer who waits
GRPC_MESSAGE_BYTES_MAX = 16 * MIB
GRPC_WINDOW_BYTES = 256 * KIB  # what a peer may send ahead of us
GRPC_HEADERS_BYTES_MAX = 16 * KIB
GRPC_CLOSED_STREAMS_MAX = 1000  # of a connection that it still knows
GRPC_REQUEST_BYTES_MAX = 192 * KIB  # of one call that we serve
GRPC_STREAMS_MAX = 512  # calls of one connection at a time
GRPC_QUEUED_BYTES_MAX = 64 * KIB  # answers that a peer does not take
GRPC_CONNECTIONS_MAX = 384
GRPC_CALLER_CONNECTIONS_MAX = 256  # of one user id
GRPC_PROGRAM_CONNECTIONS_MAX = 192  # of one process; of these are served at a time
GRPC_PROGRAM_SERVED_MAX = 32
GRPC_PROGRAM_CALLS_MAX = 1024  # of one process that are not answered yet; a report may wait for its flush
GRPC_PROGRAM_BYTES_MAX = 4 * MIB  # of their messages
GRPC_REQUEST_S = 10  # for a request to arrive whole
GRPC_STALL_S = 10  # for a peer to take what it is sent
GRPC_IDLE_S = 300  # for a connection on which nothing is asked
EXEC_OUTPUT_BYTES_MAX = 64 * KIB
STREAM_MESSAGE_BYTES_MAX = 1 * MIB  # of exec, attach and port-forward in the process runtime
IMPORT_OUTPUT_BYTES_MAX = 64 * KIB  # what the program that imports an image archive may print
DIAL_PROXY_HEAD_BYTES_MAX = 16 * KIB
JOIN_TOKEN_CHARS_MAX = 8 * KIB
JOIN_FILE_BYTES_MAX = 64 * KIB  # of a first boot
JOIN_ANSWER_BYTES_MAX = 128 * KIB  # a certificate and the CAs
IDENTITY_FILE_BYTES_MAX = 256 * KIB
KEY_PEM_BYTES_MAX = 16 * KIB
KEY_CHILD_S_MAX = 120  # to make a key, on the slowest board

# Devices.
DEVICES_MAX = 2000
DEVICE_MODELS_MAX = 500
MAPPERS_MAX = 64
DEVICE_PROPERTIES_MAX = 200  # of one device or model
DEVICE_VALUE_BYTES_MAX = 16 * KIB
DEVICE_REPORT_BYTES_MAX = 48 * KIB  # of all values of one report
PUSH_TARGETS_MAX = 64  # places that the node itself pushes values to
DEVICE_REASON_CHARS_MAX = 300  # why one is offline or unhealthy
DEVICE_CALLS_MAX = 8  # calls of one mapper that are under way
HISTORY_SEGMENTS_MAX = 16  # of the journal, read for who asks for past values
HISTORY_VALUES_MAX = 10_000  # in one answer
DMI_NAME_CHARS_MAX = 253
DMI_PATH_CHARS_MAX = 107  # of a unix socket, as the kernel
DMI_ANSWER_BYTES_MAX = 1 * MIB  # of a mapper
MAPPER_HTTP_BYTES_MAX = 64 * KIB  # of what one answers to a call of a method

# Upgrades.
BUNDLE_HEAD_BYTES_MAX = 256 * KIB  # of the installing script
BUNDLE_MANIFEST_BYTES_MAX = 1 * MIB
BUNDLE_FILES_MAX = 5000
BUNDLE_UNPACKED_BYTES_MAX = 512 * MIB
BUNDLE_FILE_BYTES_MAX = 256 * MIB

# Jobs of a fleet.
JOBS_MAX = 32  # of one node
JOB_WORDS_CHARS_MAX = 1000  # of one thing that a node says of a job
JOB_ACTIONS_MAX = 8
JOB_IMAGES_MAX = 100
JOB_FIELDS_MAX = 256  # keys of the configuration that one job changes
JOB_PIECE_BYTES_MAX = 16 * KIB  # of a file, in one answer: what is more urgent waits for no more

# The link.
LINK_OBJECT_BYTES_MAX = 4 * MIB  # body of one object; what the store takes of it is the core's to say
LINK_MESSAGE_BYTES_MAX = LINK_OBJECT_BYTES_MAX + 64 * KIB  # inflated
LINK_HELLO_BYTES_MAX = 64 * KIB  # of the first message, which comes from somebody who is not known yet; inflated
LINK_INFLIGHT_MAX = 256  # objects that are not acknowledged yet
LINK_INFLIGHT_BYTES_MAX = 4 * MIB
LINK_ACKS_MAX = 1024  # in one message
LINK_ASKS_MAX = 64  # questions that are not answered yet
LINK_CONTROL_MAX = 4096  # messages that wait for a peer that takes nothing
LINK_SERIES_WAITING_MAX = 64  # messages of series that are not sent yet
LINK_KINDS_MAX = 16
LINK_KEYS_MAX = 10_000  # objects of one kind that a node may have
LINK_SERIES_MAX = 1024  # named in a Hello
LINK_SERIES_ITEMS_MAX = 4096  # in one message
LINK_PARAMS_MAX = 64  # of a stream
LINK_STREAMS_MAX = 64
LINK_STREAM_BYTES_MAX = 256 * KIB  # sent and not passed on yet, each way
LINK_PIECE_BYTES = 16 * KIB  # of a stream at a time, so that control overtakes

CLOUD_ASK_S_MAX = 60  # for the gateway to answer a question
CLOUD_SERIES_ITEMS_MAX = 256  # in one message
CLOUD_SERIES_MESSAGE_BYTES = 64 * KIB
CLOUD_SERIES_WINDOW_BYTES = 256 * KIB  # of one series, sent and not acknowledged

# Rules.
EXPRESSION_CHARS_MAX = 1024
EXPRESSION_DEPTH_MAX = 32
RULES_MAX = 256  # of each kind, on one node
RULE_INPUTS_MAX = 32
RULE_ACTIONS_MAX = 16
RULE_ERROR_CHARS_MAX = 500  # of what is told of one
RULE_TEXT_BYTES_MAX = 16 * KIB  # of a payload, a body, a value

# Beyond this machine.
OUTBOUND_ENTRIES_MAX = 256  # of outbound.allow
MQTT_PACKET_BYTES_MAX = 1 * MIB  # of one message, its topic included
MQTT_TOPIC_BYTES_MAX = 4 * KIB
MQTT_WAITING_MAX = 256  # messages on their way to a broker that has not acknowledged them
MQTT_INFLIGHT_MAX = 20  # of these on the wire; what mosquitto takes of MQTT 5 at a time
MQTT_INBOX_MESSAGES_MAX = 1000  # that came and are not taken yet
MQTT_INBOX_BYTES_MAX = 4 * MIB
BUS_PAYLOAD_BYTES_MAX = 64 * KIB  # of a message that tells of a device
BUS_TWINS_MAX = 200  # in one of them
BUS_UNANSWERED_MAX = 64  # messages of the broker that are not durable yet
SPOOL_BATCH_ITEMS = 64  # of a series, read at a time
SPOOL_BATCH_BYTES = 256 * KIB
WAITING_READINGS_MAX = 100_000  # that are looked at for the newest of each property, after a power cut
WAITING_SEGMENTS_MAX = 16  # of the journal, for the same
RULE_SERVICE_BYTES_MAX = 4 * MIB  # of what a service on the node is sent, and of what it answers
RULE_CALLS_MAX = 4  # of services at a time
BUS_CALLERS_MAX = 32  # programs on the node that are answered at a time
ROUTES_MAX = 16  # rules that one message is for

require(SEGMENT_BYTES % BLOCK_BYTES == 0, "a segment is whole blocks")
require(RECORD_BYTES_MAX <= SEGMENT_BYTES - BLOCK_BYTES, "a record fits in a segment beside its header")
require(VALUE_BYTES_MAX < RECORD_BYTES_MAX, "a value fits in a record")
require(SERIES_ITEM_BYTES_MAX < RECORD_BYTES_MAX, "a reading fits in a record")
require(STATE_BYTES_MAX * 4 <= LMDB_MAP_BYTES, "LMDB has room to copy pages and a fold of everything beside it")
require(OBJECT_BYTES_MAX < VALUE_BYTES_MAX, "an object with its bookkeeping fits in a value")
require(GRPC_REQUEST_BYTES_MAX < GRPC_PROGRAM_BYTES_MAX, "the largest request fits beside others")
require(2 * DEVICE_REPORT_BYTES_MAX < GRPC_REQUEST_BYTES_MAX, "a report fits in a request with its metadata")
require(DEVICE_REPORT_BYTES_MAX < SERIES_ITEM_BYTES_MAX, "a report fits in an item of a series")
require(MQTT_TOPIC_BYTES_MAX < MQTT_PACKET_BYTES_MAX <= MQTT_INBOX_BYTES_MAX, "a message fits where it is kept")
require(API_CALLER_CONNECTIONS_MAX < API_CONNECTIONS_MAX, "one caller leaves room for another")
require(OBJECT_BYTES_MAX <= LINK_OBJECT_BYTES_MAX < LINK_MESSAGE_BYTES_MAX, "an object fits in a message of the link")
