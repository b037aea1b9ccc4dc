#!/bin/sh
# tinyedge in one file. Needs a POSIX shell (busybox will do), tar with gzip, and root.
#
#   sh tinyedge-….run install [--root DIR] [--no-start]     install, enable and start it
#   sh tinyedge-….run extract DIR                            only unpack this version to DIR
#   sh tinyedge-….run info                                   what it is
#   sh /usr/lib/tinyedge/install.sh uninstall [--purge] [--stop-pods]
#
# Before the first install compare the file with the published SHA256SUMS (and that with its signature). From then on
# the installed version verifies the next one: `tinyedge upgrade FILE`; this script then does just that.
set -eu
umask 022
MARK=__TINYEDGE_PAYLOAD__
DEST=
START=yes
PURGE=
STOP_PODS=

say() { echo "tinyedge: $*"; }

fail() {
  echo "tinyedge: $1" >&2
  [ -z "${2:-}" ] || echo "  $2" >&2
  exit 1
}

need_root() {
  [ "$(id -u)" = 0 ] || fail "this needs root" "run it again with sudo, or as root"
}

payload() {
  line=$(awk -v mark="$MARK" '$0 == mark { print NR; exit }' "$0")
  [ -n "$line" ] || fail "$0 holds no version" "the file is cut off: fetch it again"
  tail -n "+$((line + 1))" "$0"
}

# To a folder that is not there yet.
unpack() {
  mkdir -p "$1"
  payload | gzip -dc | (cd "$1" && tar -xf -) || fail "$0 is damaged" "fetch it again, and compare it with SHA256SUMS"
  [ -x "$1/tinyedge" ] || fail "$0 is not whole" "fetch it again"
}

field() {
  sed -n "s/^ *\"$2\": \"\\(.*\\)\",*\$/\\1/p" "$1" | head -n 1
}

machine() {
  case $(uname -m) in
  x86_64) echo amd64 ;;
  aarch64) [ "$(getconf LONG_BIT 2>/dev/null || echo 64)" = 32 ] && echo armhf || echo arm64 ;;
  armv7l | armv8l) echo armhf ;;
  *) uname -m ;;
  esac
}

init_system() {
  if [ -d "$DEST/run/systemd/system" ] || [ -x "$DEST/lib/systemd/systemd" ] || [ -x "$DEST/usr/lib/systemd/systemd" ]; then
    echo systemd
  elif [ -x "$DEST/sbin/openrc-run" ] || [ -x "$DEST/usr/sbin/openrc-run" ]; then
    echo openrc
  elif [ -d "$DEST/etc/init.d" ]; then
    echo sysv
  else
    echo none
  fi
}

# copy MODE FROM TO, whole or not at all
copy() {
  cp "$2" "$3.new"
  chmod "$1" "$3.new"
  mv -f "$3.new" "$3"
}

user() {
  grep -q '^tinyedge:' "$DEST/etc/group" 2>/dev/null && return 0
  if [ -z "$DEST" ]; then
    groupadd --system tinyedge 2>/dev/null || addgroup -S tinyedge 2>/dev/null || :
  elif [ -f "$DEST/etc/group" ]; then
    echo "tinyedge:x:990:" >>"$DEST/etc/group"
  fi
}

enable_service() {
  files=$1
  case $(init_system) in
  systemd)
    mkdir -p "$DEST/etc/systemd/system/multi-user.target.wants"
    copy 644 "$files/systemd/tinyedge.service" "$DEST/etc/systemd/system/tinyedge.service"
    ln -sf ../tinyedge.service "$DEST/etc/systemd/system/multi-user.target.wants/tinyedge.service"
    [ -n "$DEST" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
    ;;
  openrc)
    copy 755 "$files/openrc/tinyedge" "$DEST/etc/init.d/tinyedge"
    mkdir -p "$DEST/etc/runlevels/default"
    ln -sf /etc/init.d/tinyedge "$DEST/etc/runlevels/default/tinyedge"
    ;;
  sysv)
    copy 755 "$files/sysv/tinyedge" "$DEST/etc/init.d/tinyedge"
    if [ -z "$DEST" ] && command -v update-rc.d >/dev/null; then
      update-rc.d tinyedge defaults >/dev/null
    else
      for level in 2 3 4 5; do
        [ ! -d "$DEST/etc/rc$level.d" ] || ln -sf ../init.d/tinyedge "$DEST/etc/rc$level.d/S20tinyedge"
      done
    fi
    ;;
  *) say "no init system that is known here was found: start '/usr/lib/tinyedge/launcher --supervise run' at boot" ;;
  esac
}

service() {
  [ -z "$DEST" ] || return 0
  case $(init_system) in
  systemd) [ ! -d /run/systemd/system ] || systemctl "$1" tinyedge.service ;;
  openrc) rc-service tinyedge "$1" ;;
  sysv) "/etc/init.d/tinyedge" "$1" ;;
  esac
}

install() {
  need_root
  lib=$DEST/usr/lib/tinyedge
  if [ -z "$DEST" ] && [ -s "$lib/current" ] && [ -x /usr/bin/tinyedge ]; then
    say "a version is installed: it verifies this one and upgrades itself"
    exec /usr/bin/tinyedge upgrade "$0"
  fi
  mkdir -p "$lib/versions" "$lib/trust" "$DEST/usr/bin" "$DEST/etc/tinyedge/manifests" "$DEST/var/lib/tinyedge"
  chmod 700 "$DEST/var/lib/tinyedge"
  rm -rf "$lib/versions/.new-install"
  say "unpacking"
  unpack "$lib/versions/.new-install"
  new=$lib/versions/.new-install
  arch=$(field "$new/manifest.json" architecture)
  version=$(field "$new/manifest.json" version)
  if [ -z "$DEST" ] && [ "$arch" != "$(machine)" ]; then
    rm -rf "$new"
    fail "this file is for $arch, and this machine is $(machine)" "take the file for $(machine)"
  fi
  name=$version-$arch
  rm -rf "$lib/versions/$name"
  mv "$new" "$lib/versions/$name"
  files=$lib/versions/$name/_internal/packaging
  copy 755 "$files/launcher" "$lib/launcher"
  copy 644 "$files/install.sh" "$lib/install.sh"
  for key in "$files"/trust/*.pub; do
    [ ! -f "$key" ] || copy 644 "$key" "$lib/trust/${key##*/}"
  done
  printf '#!/bin/sh\nexec /usr/lib/tinyedge/launcher "$@"\n' >"$DEST/usr/bin/tinyedge.new"
  chmod 755 "$DEST/usr/bin/tinyedge.new"
  mv -f "$DEST/usr/bin/tinyedge.new" "$DEST/usr/bin/tinyedge"
  [ -e "$DEST/etc/tinyedge/tinyedge.toml" ] || copy 600 "$files/tinyedge.toml" "$DEST/etc/tinyedge/tinyedge.toml"
  user
  sync
  echo "$name" >"$lib/current.new" # from here on it is installed
  mv -f "$lib/current.new" "$lib/current"
  enable_service "$files"
  sync
  say "version $version ($arch) is installed"
  if [ -n "$DEST" ] || [ -z "$START" ]; then
    return 0
  fi
  service start
  say "it runs. Next: 'tinyedge check', 'tinyedge status', and 'tinyedge join' to belong to a cluster"
}

uninstall() {
  need_root
  if [ -n "$STOP_PODS" ] && [ -x "$DEST/usr/bin/tinyedge" ]; then
    say "stopping pods"
    pids=$(pidof tinyedge 2>/dev/null || :)
    [ -z "$pids" ] || say "the daemon is stopped first"
  fi
  service stop || :
  if [ -n "$STOP_PODS" ]; then
    timeout 120 /usr/lib/tinyedge/launcher run --stop-pods --once || say "some pods may still run: see 'crictl pods'"
  fi
  rm -f "$DEST/etc/systemd/system/tinyedge.service" "$DEST/etc/systemd/system/multi-user.target.wants/tinyedge.service"
  rm -f "$DEST/etc/init.d/tinyedge" "$DEST/etc/runlevels/default/tinyedge"
  for level in 0 1 2 3 4 5 6; do
    rm -f "$DEST/etc/rc$level.d/"[SK][0-9][0-9]tinyedge
  done
  [ -n "$DEST" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
  rm -rf "$DEST/usr/lib/tinyedge" "$DEST/usr/bin/tinyedge"
  if [ -n "$PURGE" ]; then
    rm -rf "$DEST/etc/tinyedge" "$DEST/var/lib/tinyedge" "$DEST/run/tinyedge" "$DEST/var/log/tinyedge.log"
    say "uninstalled, with its configuration and state"
  else
    say "uninstalled; /etc/tinyedge and /var/lib/tinyedge are left, and pods go on (--purge, --stop-pods)"
  fi
}

info() {
  folder=$(mktemp -d)
  payload | gzip -dc 2>/dev/null | (cd "$folder" && tar -xf - manifest.json 2>/dev/null) || :
  for what in product version architecture; do
    echo "$what: $(field "$folder/manifest.json" $what)"
  done
  rm -rf "$folder"
}

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit 2
}

command=${1:-}
[ $# -eq 0 ] || shift
target=
while [ $# -gt 0 ]; do
  case $1 in
  --root)
    DEST=$(cd "${2:?--root needs a folder}" && pwd)
    [ "$DEST" != / ] || DEST=
    shift
    ;;
  --no-start) START= ;;
  --purge) PURGE=yes ;;
  --stop-pods) STOP_PODS=yes ;;
  -*) fail "unknown option $1" "$0 without arguments shows what there is" ;;
  *) target=$1 ;;
  esac
  shift
done
case $command in
install) install ;;
uninstall) uninstall ;;
extract)
  [ -n "$target" ] && [ ! -e "$target" ] || fail "extract needs the name of a folder that is not there yet"
  unpack "$target"
  ;;
info) info ;;
*) usage ;;
esac
exit 0
