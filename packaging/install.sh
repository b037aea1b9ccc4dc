#!/bin/sh
# tinyedge in one file. Needs a POSIX shell (busybox will do), tar with gzip, and root.
#
#   sh tinyedge-….run install [--root DIR] [--init NAME] [--no-start]   install, enable and start it; an upgrade
#                                              [--wait] [--allow-downgrade]   is a trial, whose end --wait tells
#   sh tinyedge-….run extract DIR                            only unpack this version to DIR
#   sh tinyedge-….run info                                   what it is
#   sh /usr/lib/tinyedge/install.sh uninstall [--purge] [--stop-pods]
#   sh /usr/lib/tinyedge/install.sh users                    make its groups and its user where they lack
#   sh …/_internal/packaging/install.sh renew [--root DIR]   of a version that has proved itself: its unit, scripts and
#                                                            tools in place of those of the version before
#
# Before the first install compare the file with the published SHA256SUMS (and that with its signature). From then on
# the installed version verifies the next one: `tinyedge upgrade FILE`; this script then does just that. An install that
# was cut off is finished by another; of the version that is installed already, it puts right what is missing.
set -eu
umask 022
MARK=__TINYEDGE_PAYLOAD__
LIB=/usr/lib/tinyedge
DEST=
INIT=
START=yes
PURGE=
STOP_PODS=
WAIT=
DOWNGRADE=
WAIT_S=${TINYEDGE_WAIT_S:-900}

say() { echo "tinyedge: $*"; }

fail() {
  echo "tinyedge: $1" >&2
  [ -z "${2:-}" ] || echo "  $2" >&2
  exit 1
}

need_root() {
  [ -n "$DEST" ] || [ "$(id -u)" = 0 ] || fail "this needs root" "run it again with sudo, or as root"
}

# --- what is in the file -------------------------------------------------------------------------

payload() {
  line=$(awk -v mark="$MARK" '$0 == mark { print NR; exit }' "$0")
  [ -n "$line" ] || fail "$0 holds no version" "the file is cut off: fetch it again"
  tail -n "+$((line + 1))" "$0"
}

# Every file of an unpacked version is what its manifest says.
is_whole() {
  [ -f "$1/manifest.json" ] || return 1
  (cd "$1" && awk -F '"' '
    $2 == "path" { path = $4 }
    $2 == "sha256" { print $4 "  " path }
  ' manifest.json | sha256sum -c >/dev/null 2>&1)
}

# To a folder that is not there yet.
unpack() {
  payload | gzip -t 2>/dev/null || fail "$0 is damaged or cut off" "fetch it again, and compare it with SHA256SUMS"
  mkdir -p "$1"
  payload | gzip -dc | (cd "$1" && tar -xf -) || fail "$0 is damaged" "fetch it again, and compare it with SHA256SUMS"
  is_whole "$1" || fail "$0 is damaged: its files are not what its manifest says" "fetch it again"
}

field() {
  sed -n "s/^ *\"$2\": \"\\(.*\\)\",*\$/\\1/p" "$1" | head -n 1
}

# --- the machine ---------------------------------------------------------------------------------

# Of its programs, which may be another one than the kernel's, and of an image another one than this machine's.
machine() {
  case $(od -An -tx1 -j18 -N2 "$DEST/bin/sh" 2>/dev/null | tr -d ' \n') in
  3e00) echo amd64 ;;
  b700) echo arm64 ;;
  2800) echo armhf ;;
  *) [ -n "$DEST" ] || uname -m ;; # an image that has no programs yet takes any
  esac
}

# What runs, or, in an image, what its /sbin/init is.
init_system() {
  if [ -n "$INIT" ]; then
    echo "$INIT"
  elif [ -z "$DEST" ] && [ -d /run/systemd/system ]; then
    echo systemd
  elif [ -z "$DEST" ] && [ -d /run/openrc ]; then
    echo openrc
  else
    case $(readlink "$DEST/sbin/init" || :) in
    *systemd*) echo systemd ;;
    *openrc*) echo openrc ;;
    *)
      if [ -x "$DEST/sbin/openrc-run" ] || [ -x "$DEST/usr/sbin/openrc-run" ]; then
        echo openrc
      elif [ -d "$DEST/etc/init.d" ]; then
        echo sysv
      else
        echo none
      fi
      ;;
    esac
  fi
}

# copy MODE FROM TO: whole or not at all, also over a power cut; a file that is the same already is left alone
copy() {
  if ! cmp -s "$2" "$3"; then
    mkdir -p "${3%/*}"
    rm -f "$3.new" # a cut in a rename may have left both names to one file
    cp "$2" "$3.new"
    chmod "$1" "$3.new"
    sync
    mv -f "$3.new" "$3"
  fi
  chmod "$1" "$3"
}

# --- groups and the user -------------------------------------------------------------------------

# tinyedge      may use the API's socket, which is as good as being root
# tinyedge-dmi  mappers of devices: may connect to the DMI socket
# _tinyedge     owns nothing: what parses manifests of others runs as it
users() {
  [ -f "$DEST/etc/group" ] || [ -z "$DEST" ] || return 0 # an image that has no users yet
  for group in tinyedge tinyedge-dmi _tinyedge; do
    grep -q "^$group:" "$DEST/etc/group" || add_group "$group" || say "group $group can't be made: make it yourself"
  done
  grep -q '^_tinyedge:' "$DEST/etc/passwd" || add_user || say "user _tinyedge can't be made: manifests are parsed as root"
}

add_group() {
  if [ -n "$DEST" ]; then
    append group "$1:x:$(free_id):"
    [ ! -f "$DEST/etc/gshadow" ] || append gshadow "$1:!::"
  elif command -v groupadd >/dev/null; then
    groupadd --system "$1"
  else
    addgroup -S "$1"
  fi
}

add_user() {
  id=$(awk -F : '$1 == "_tinyedge" { print $3 }' "$DEST/etc/group")
  if [ -n "$DEST" ]; then
    append passwd "_tinyedge:x:$(free_id):$id:tinyedge:/nonexistent:/usr/sbin/nologin"
    [ ! -f "$DEST/etc/shadow" ] || append shadow "_tinyedge:!:::::::"
  elif command -v useradd >/dev/null; then
    useradd --system --gid _tinyedge --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin _tinyedge
  else
    adduser -S -D -H -h /nonexistent -s /sbin/nologin -G _tinyedge -g tinyedge _tinyedge
  fi
}

free_id() {
  awk -F : '{ taken[$3] = 1 } END { for (id = 990; id > 100; id--) if (!(id in taken)) { print id; exit } }' \
    "$DEST/etc/passwd" "$DEST/etc/group"
}

append() {
  file=$DEST/etc/$1
  cp -p "$file" "$file.tinyedge"
  echo "$2" >>"$file.tinyedge"
  mv -f "$file.tinyedge" "$file"
}

# --- the service ---------------------------------------------------------------------------------

enable_service() {
  files=$1
  case $(init_system) in
  systemd)
    copy_ours 644 systemd/tinyedge.service /etc/systemd/system/tinyedge.service
    mkdir -p "$DEST/etc/systemd/system/multi-user.target.wants"
    ln -sfn ../tinyedge.service "$DEST/etc/systemd/system/multi-user.target.wants/tinyedge.service"
    reload_systemd
    ;;
  openrc)
    copy_ours 755 openrc/tinyedge /etc/init.d/tinyedge
    mkdir -p "$DEST/etc/runlevels/default"
    ln -sfn /etc/init.d/tinyedge "$DEST/etc/runlevels/default/tinyedge"
    ;;
  sysv)
    copy_ours 755 sysv/tinyedge /etc/init.d/tinyedge
    enable_sysv
    ;;
  *) say "no init system that is known here was found: start '$LIB/launcher --supervise run' at boot" ;;
  esac
}

reload_systemd() {
  [ -n "$DEST" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
}

# copy_ours MODE FROM TO: FROM is a file of $files. One that somebody has changed since it was installed stays; what
# was installed is what stands in `installed`, or else what any version here brings.
copy_ours() {
  if [ -f "$DEST$3" ] && [ -f "$DEST$LIB/installed" ] && ! is_ours "$2" "$3"; then
    say "$3 was changed here and stays; this version's own is $2 beside its install.sh"
  else
    copy "$1" "$files/$2" "$DEST$3"
  fi
}

is_ours() {
  for one in "$files" "$DEST$LIB/versions"/*/_internal/packaging; do
    cmp -s "$one/$1" "$DEST$2" && return 0
  done
  grep -qxF "$(sha256sum <"$DEST$2" | cut -d ' ' -f 1)  $2" "$DEST$LIB/installed"
}

# The version whose files these are, and each that somebody might change. It is written last.
note_installed() {
  rm -f "$DEST$LIB/installed.new"
  {
    echo "$name"
    for one in systemd/tinyedge.service openrc/tinyedge sysv/tinyedge; do
      to=/etc/init.d/tinyedge
      [ "$one" != systemd/tinyedge.service ] || to=/etc/systemd/system/tinyedge.service
      ! cmp -s "$files/$one" "$DEST$to" || echo "$(sha256sum <"$DEST$to" | cut -d ' ' -f 1)  $to"
    done
    [ ! -f "$DEST$LIB/installed" ] || grep '^[0-9a-f]*  /' "$DEST$LIB/installed" || :
  } | awk '!seen[$0]++' | head -n 20 >"$DEST$LIB/installed.new"
  sync
  mv -f "$DEST$LIB/installed.new" "$DEST$LIB/installed"
}

enable_sysv() {
  if [ -z "$DEST" ] && command -v update-rc.d >/dev/null; then
    update-rc.d tinyedge defaults >/dev/null
    return 0
  fi
  for level in 2 3 4 5; do
    [ ! -d "$DEST/etc/rc$level.d" ] || ln -sfn ../init.d/tinyedge "$DEST/etc/rc$level.d/S20tinyedge"
  done
  for level in 0 1 6; do
    [ ! -d "$DEST/etc/rc$level.d" ] || ln -sfn ../init.d/tinyedge "$DEST/etc/rc$level.d/K01tinyedge"
  done
}

disable_service() {
  if [ -z "$DEST" ] && [ -f /etc/init.d/tinyedge ] && command -v update-rc.d >/dev/null; then
    update-rc.d -f tinyedge remove >/dev/null || :
  fi
  rm -f "$DEST/etc/systemd/system/multi-user.target.wants/tinyedge.service" "$DEST/etc/runlevels/default/tinyedge"
  rm -f "$DEST/etc/rc"[0-6].d/[SK][0-9][0-9]tinyedge
  rm -f "$DEST/etc/systemd/system/tinyedge.service" "$DEST/etc/init.d/tinyedge"
  reload_systemd
}

# An image that is being made has no init that runs.
is_booted() {
  [ -z "$DEST" ] || return 1
  case $(init_system) in
  systemd) [ -d /run/systemd/system ] ;;
  openrc) [ -d /run/openrc ] ;;
  sysv) [ "$(readlink /proc/1/root)" = / ] && [ -e /proc/1/exe ] && [ -n "$(runlevel 2>/dev/null || :)" ] ;;
  *) false ;;
  esac
}

service() {
  is_booted || return 0
  case $(init_system) in
  systemd) systemctl "$1" tinyedge.service ;;
  openrc) rc-service tinyedge "$1" ;;
  sysv) if command -v invoke-rc.d >/dev/null; then invoke-rc.d tinyedge "$1"; else /etc/init.d/tinyedge "$1"; fi ;;
  esac
}

# --- install -------------------------------------------------------------------------------------

install() {
  need_root
  lib=$DEST$LIB
  new=$lib/versions/.new-install
  mkdir -p "$lib/versions"
  rm -rf "$new"
  current=
  [ ! -f "$lib/current" ] || read -r current _ <"$lib/current" || :
  say "unpacking"
  unpack "$new"
  arch=$(field "$new/manifest.json" architecture)
  version=$(field "$new/manifest.json" version)
  name=$version-$arch
  here=$(machine)
  if [ -n "$here" ] && [ "$arch" != "$here" ]; then
    rm -rf "$new"
    fail "this file is for $arch, and ${DEST:-this machine} is $here" "take the file for $here"
  fi
  if [ -z "$DEST" ] && [ -n "$current" ] && [ "$current" != "$name" ] && [ -x /usr/bin/tinyedge ]; then
    rm -rf "$new"
    upgrade
    return
  fi
  settle_version
  settle_rest "$lib/versions/$name/_internal/packaging"
  note_installed
  if [ "$current" != "$name" ]; then
    rm -f "$DEST/var/lib/tinyedge/upgrade/trial" # of an installation that is no more
    rm -f "$lib/current.new"
    echo "$name" >"$lib/current.new"
    sync # all that it stands for is there before it is
    mv -f "$lib/current.new" "$lib/current"
  fi
  sync
  say "version $version ($arch) is installed"
  [ -n "$START" ] && is_booted || return 0
  service "${replaced:+re}start" # a daemon whose files have changed below it goes on with the new ones
  say "it runs. Next: 'tinyedge check', 'tinyedge status', and 'tinyedge join' to belong to a cluster"
  [ -S /run/containerd/containerd.sock ] ||
    say "there is no containerd here yet: 'sh $LIB/container-stack.sh install' brings it (or set runtime.kind = \"process\")"
}

# The version's folder, whole: one that is there and is the same stays, for it may run. Another build of its number is
# verified by the one that is installed, as any other file, if that one is whole.
settle_version() {
  replaced=
  if cmp -s "$new/manifest.json" "$lib/versions/$name/manifest.json" && is_whole "$lib/versions/$name"; then
    rm -rf "$new"
  else
    if [ -z "$DEST" ] && [ "$current" = "$name" ] && is_whole "$lib/versions/$name" && [ -x /usr/bin/tinyedge ]; then
      replaced=yes
      /usr/bin/tinyedge upgrade verify "$0" >/dev/null || {
        rm -rf "$new"
        fail "$name is installed, and does not take this other build of it" "see above; nothing was changed"
      }
    fi
    sync
    rm -rf "$lib/versions/.old-install"
    [ ! -e "$lib/versions/$name" ] || mv "$lib/versions/$name" "$lib/versions/.old-install"
    mv "$new" "$lib/versions/$name" # a cut between the two: the launcher starts what is aside
    sync
    rm -rf "$lib/versions/.old-install"
  fi
}

settle_rest() {
  files=$1
  mkdir -p "$lib/trust" "$DEST/usr/bin" "$DEST/etc/tinyedge/manifests" "$DEST/var/lib/tinyedge"
  chmod 700 "$DEST/var/lib/tinyedge"
  copy 755 "$files/launcher" "$lib/launcher"
  settle_tools
  for key in "$files"/trust/*.pub; do
    [ ! -f "$key" ] || copy 644 "$key" "$lib/trust/${key##*/}"
  done
  [ -e "$DEST/etc/tinyedge/tinyedge.toml" ] || copy 600 "$files/tinyedge.toml" "$DEST/etc/tinyedge/tinyedge.toml"
  users
  enable_service "$files"
}

settle_tools() {
  copy 755 "$files/install.sh" "$DEST$LIB/install.sh"
  copy 755 "$files/container-stack.sh" "$DEST$LIB/container-stack.sh"
  copy 755 "$files/tinyedge" "$DEST/usr/bin/tinyedge"
}

# --- upgrade -------------------------------------------------------------------------------------

# By the version that runs, which verifies this one and lets it try.
upgrade() {
  say "$current is installed: it verifies this one and upgrades itself"
  runs=
  ! /usr/bin/tinyedge status >/dev/null 2>&1 || runs=yes
  /usr/bin/tinyedge upgrade $DOWNGRADE "$0" || exit
  [ -n "$WAIT" ] || return 0
  if [ -z "$runs" ]; then
    say "$current is what is installed until the trial has been passed"
    return 0
  fi
  left=$WAIT_S
  state=/var/lib/tinyedge/upgrade
  while [ -f "$state/trial" ] && [ "$left" -gt 0 ]; do
    sleep 1
    left=$((left - 1))
  done
  if [ -f "$state/trial" ]; then
    say "$name is still on trial after $WAIT_S s, and $current comes back if it fails: 'tinyedge upgrade status' tells"
    return 0
  fi
  verdict=$(cat "$state/result" "$state/told" 2>/dev/null | grep -m 1 " $name" || :)
  case $verdict in
  "confirmed $name"*) say "$name has passed its trial and runs" ;;
  *) fail "$name was given up, and $current runs: ${verdict#rolled-back "$name" }" "see 'tinyedge upgrade status'" ;;
  esac
}

# --- after an upgrade ----------------------------------------------------------------------------

# Asked by the daemon of a version that has proved itself. Only what is there is renewed: nothing is enabled that
# somebody has disabled. A cut in it is followed by another one, for what it has done is noted last.
renew() {
  need_root
  files=$(cd "${0%/*}" && pwd)
  name=$(field "$files/../../manifest.json" version)-$(field "$files/../../manifest.json" architecture)
  settle_tools
  restart=
  unit=/etc/systemd/system/tinyedge.service
  if [ -f "$DEST$unit" ] && ! cmp -s "$files/systemd/tinyedge.service" "$DEST$unit"; then
    if is_ours systemd/tinyedge.service "$unit" && ! unit_starts; then
      fail "the unit of $name does not start here: $unit stays" "see systemctl status tinyedge-new, and tell who made it"
    fi
    copy_ours 644 systemd/tinyedge.service "$unit"
    ! cmp -s "$files/systemd/tinyedge.service" "$DEST$unit" || restart=yes
    reload_systemd
  fi
  if [ -f "$DEST/etc/init.d/tinyedge" ]; then
    kind=sysv
    ! head -n 1 "$DEST/etc/init.d/tinyedge" | grep -q openrc-run || kind=openrc
    copy_ours 755 "$kind/tinyedge" /etc/init.d/tinyedge
  fi
  note_installed
  sync
  say "what belongs to $name is in place"
  # Only a start by systemd is one under the new unit. Pods go on.
  [ -z "$restart" ] || [ -n "$DEST" ] || [ ! -d /run/systemd/system ] ||
    systemctl --no-block try-restart tinyedge.service
}

# Whether systemd takes the new unit, and a program starts under what it says, before it takes the old one's place.
unit_starts() {
  [ -z "$DEST" ] && [ -d /run/systemd/system ] || return 0
  new=/run/systemd/system/tinyedge-new.service
  mkdir -p "$new.d"
  sed '/^ExecStart/d; /^ExecStop/d; /^Type=/d; /^Restart/d; /^WatchdogSec=/d; /^RuntimeDirectory/d' \
    "$files/systemd/tinyedge.service" >"$new"
  printf '[Service]\nType=oneshot\nExecStart=%s/launcher --version\nTimeoutStartSec=60\n' "$LIB" >"$new.d/proof.conf"
  systemctl daemon-reload
  starts=0
  systemctl start tinyedge-new.service || starts=1
  rm -rf "$new" "$new.d"
  systemctl daemon-reload
  return "$starts"
}

# --- uninstall -----------------------------------------------------------------------------------

uninstall() {
  need_root
  service stop || :
  [ -z "$STOP_PODS" ] || [ -n "$DEST" ] || stop_pods
  [ -z "$PURGE" ] || let_go_of_volumes
  disable_service
  rm -rf "$DEST$LIB/versions" # this script goes last, so that what was cut off can be repeated
  rm -f "$DEST/usr/bin/tinyedge" "$DEST/run/tinyedge.pid" "$DEST/run/tinyedge.daemon.pid"
  if [ -n "$PURGE" ]; then
    rm -rf "$DEST/etc/tinyedge" "$DEST/var/lib/tinyedge" "$DEST/run/tinyedge" "$DEST/var/log/tinyedge.log"*
    remove_users
  fi
  rm -rf "$DEST$LIB"
  if [ -n "$PURGE" ]; then
    say "uninstalled, with its configuration and state"
  else
    say "uninstalled; /etc/tinyedge and /var/lib/tinyedge are left, and pods go on (--purge, --stop-pods)"
  fi
}

# A daemon of our own is told to end, and to end its pods with it.
stop_pods() {
  say "stopping pods"
  "$LIB/launcher" run --stop-pods >/dev/null 2>&1 &
  daemon=$!
  left=60
  while [ "$left" -gt 0 ] && ! /usr/bin/tinyedge status >/dev/null 2>&1 && kill -0 "$daemon" 2>/dev/null; do
    sleep 1
    left=$((left - 1))
  done
  kill -TERM "$daemon" 2>/dev/null || :
  wait "$daemon" || say "some pods may still run: see 'crictl pods'"
}

# What is mounted below may be a folder of the host's, whose files are none of ours.
let_go_of_volumes() {
  state=$DEST/var/lib/tinyedge
  awk -v below="$state/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | while read -r point; do
    umount "$point" || :
  done
  if awk -v below="$state/" 'index($2, below) == 1 { found = 1 } END { exit !found }' /proc/mounts; then
    fail "volumes of pods are still mounted below $state: it is not removed" "repeat it with --stop-pods"
  fi
}

remove_users() {
  [ -z "$DEST" ] || return 0
  if command -v userdel >/dev/null; then
    userdel _tinyedge 2>/dev/null || :
    for group in tinyedge tinyedge-dmi _tinyedge; do groupdel "$group" 2>/dev/null || :; done
  else
    deluser _tinyedge 2>/dev/null || :
    for group in tinyedge tinyedge-dmi _tinyedge; do delgroup "$group" 2>/dev/null || :; done
  fi
}

# --- words ---------------------------------------------------------------------------------------

info() {
  folder=$(mktemp -d)
  payload | gzip -dc 2>/dev/null | (cd "$folder" && tar -xf - manifest.json 2>/dev/null) || :
  [ -f "$folder/manifest.json" ] || fail "$0 is damaged" "fetch it again"
  for what in product version architecture; do
    echo "$what: $(field "$folder/manifest.json" $what)"
  done
  rm -rf "$folder"
}

usage() {
  sed -n '2,12s/^# \{0,1\}//p' "$0"
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
  --init)
    INIT=${2:?--init needs a name: systemd, openrc or sysv}
    shift
    ;;
  --no-start) START= ;;
  --wait) WAIT=yes ;;
  --allow-downgrade) DOWNGRADE=--allow-downgrade ;;
  --purge) PURGE=yes ;;
  --stop-pods) STOP_PODS=yes ;;
  -*) fail "unknown option $1" "$0 without arguments shows what there is" ;;
  *) target=$1 ;;
  esac
  shift
done
case $command in
install) install ;;
renew) renew ;;
uninstall) uninstall ;;
users)
  need_root
  users
  ;;
extract)
  [ -n "$target" ] && [ ! -e "$target" ] || fail "extract needs the name of a folder that is not there yet"
  unpack "$target"
  ;;
info) info ;;
*) usage ;;
esac
exit 0
