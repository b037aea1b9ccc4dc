#!/bin/sh
# containerd, runc and a network for pods: looks what is there, and installs what lacks. POSIX shell, busybox-safe.
#
#   sh /usr/lib/tinyedge/container-stack.sh check              what is there; exit 1 when something lacks
#   sh /usr/lib/tinyedge/container-stack.sh install            by apt, apk or dnf; then a configuration for small boards
#
# A configuration of yours is never changed. CNI_SUBNET=10.88.0.0/24 is the pods' network, local to this machine.
set -eu
umask 022
CNI_SUBNET=${CNI_SUBNET:-10.88.0.0/24}
CONFIG=/etc/containerd/config.toml
NET=/etc/cni/net.d
BRIDGE=$NET/10-tinyedge.conflist

say() { echo "$*"; }

plugins() {
  for folder in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
    [ -x "$folder/bridge" ] && echo "$folder" && return 0
  done
  return 1
}

# --- check ---------------------------------------------------------------------------------------

lacking=

look() { # look WHAT HOW-IT-IS REMEDY: an empty second word is what lacks
  if [ -n "$2" ]; then
    say "ok     $1: $2"
  else
    say "LACKS  $1: $3"
    lacking=yes
  fi
}

first_line() { "$@" 2>/dev/null | head -n 1 || :; }

check() {
  look containerd "$(first_line containerd --version)" "container-stack.sh install"
  look runc "$(first_line runc --version)" "container-stack.sh install"
  look "CNI plugins" "$(plugins || :)" "container-stack.sh install"
  look iptables "$(first_line iptables --version)" "container-stack.sh install"
  look "pods' network" "$(find "$NET" -name '*.conf*' 2>/dev/null | head -n 1)" "container-stack.sh install"
  look "IPv4 forwarding" "$(grep -x 1 /proc/sys/net/ipv4/ip_forward || :)" "sysctl -w net.ipv4.ip_forward=1"
  look overlayfs "$(awk '$NF == "overlay" { print $NF }' /proc/filesystems)" "modprobe overlay"
  look "CRI" "$(grep -q '^disabled_plugins.*"cri"' "$CONFIG" 2>/dev/null || echo enabled)" \
    "take \"cri\" out of disabled_plugins in $CONFIG"
  memory
  [ -z "$lacking" ]
}

# What each takes now, in MB: resident, without what pods themselves use.
memory() {
  for name in containerd containerd-shim-runc-v2 tinyedge; do
    for folder in /proc/[0-9]*; do
      [ "$(cut -c 1-15 "$folder/comm" 2>/dev/null)" = "$(echo "$name" | cut -c 1-15)" ] || continue
      awk '/^VmRSS/ { print int($2 / 1024) }' "$folder/status" 2>/dev/null || :
    done | awk -v name="$name" '{ n++; sum += $1 } END { if (n) printf "memory %s: %d MB in %d process(es)\n", name, sum, n }'
  done
}

# --- install -------------------------------------------------------------------------------------

packages() {
  if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends containerd runc containernetworking-plugins iptables
  elif command -v apk >/dev/null; then
    apk add --no-cache containerd runc cni-plugins iptables
  elif command -v dnf >/dev/null; then
    dnf install -y containerd runc containernetworking-plugins iptables ||
      dnf install -y containerd.io containernetworking-plugins iptables
  else
    say "no apt, apk or dnf here: bring containerd, runc and CNI plugins, then run this again" >&2
    exit 1
  fi
}

# Whether the file is as its Debian package brought it, so that nobody has decided anything in it.
is_packaged() {
  command -v dpkg-query >/dev/null || return 1
  sum=$(dpkg-query -W -f '${Conffiles}\n' containerd containerd.io 2>/dev/null | awk -v f="$CONFIG" '$1 == f { print $2 }')
  [ -n "$sum" ] && [ "$sum" = "$(md5sum "$CONFIG" | cut -d ' ' -f 1)" ]
}

configure_containerd() {
  folder=$(plugins)
  # As Docker's packages come: without CRI. Such a file has nothing else in it.
  if [ -f "$CONFIG" ] && ! is_packaged && ! grep -q '^disabled_plugins.*"cri"' "$CONFIG"; then
    say "$CONFIG is yours and stays as it is"
    return 0
  fi
  [ ! -f "$CONFIG" ] || cp -p "$CONFIG" "$CONFIG.before-tinyedge"
  mkdir -p "${CONFIG%/*}"
  cat >"$CONFIG.new" <<END
# For small boards: one image layer at a time, no metrics, no plugins that nothing here uses.
version = 2
oom_score = -999
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
  "io.containerd.internal.v1.opt",
]

[plugins."io.containerd.grpc.v1.cri"]
  max_concurrent_downloads = 1
  stream_idle_timeout = "5m"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "$folder"
  conf_dir = "$NET"
END
  sync
  mv -f "$CONFIG.new" "$CONFIG"
}

configure_network() {
  if [ -z "$(find "$NET" -name '*.conf*' 2>/dev/null)" ]; then
    mkdir -p "$NET"
    cat >"$BRIDGE.new" <<END
{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "$CNI_SUBNET"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/run/cni/pods"
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END
    sync
    mv -f "$BRIDGE.new" "$BRIDGE"
  fi
  mkdir -p /etc/sysctl.d /etc/modules-load.d
  echo net.ipv4.ip_forward=1 >/etc/sysctl.d/90-tinyedge-pods.conf
  printf 'overlay\nbr_netfilter\n' >/etc/modules-load.d/tinyedge-pods.conf
  sysctl -q -w net.ipv4.ip_forward=1 || :
  for module in overlay br_netfilter; do modprobe "$module" 2>/dev/null || :; done
}

restart_containerd() {
  if [ -d /run/systemd/system ]; then
    systemctl enable containerd.service
    systemctl restart containerd.service
  elif [ -d /run/openrc ]; then
    rc-update add containerd default
    rc-service containerd restart
  elif [ -x /etc/init.d/containerd ]; then
    /etc/init.d/containerd restart
  else
    say "start containerd at boot: no init system that is known here was found"
  fi
}

install() {
  [ "$(id -u)" = 0 ] || { say "this needs root: run it again with sudo" >&2 && exit 1; }
  if ! command -v containerd >/dev/null || ! command -v runc >/dev/null || ! plugins >/dev/null ||
    ! command -v iptables >/dev/null; then
    packages
  fi
  configure_containerd
  configure_network
  restart_containerd
  check
}

case ${1:-} in
check) check ;;
install) install ;;
*)
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
