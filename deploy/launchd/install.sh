#!/usr/bin/env bash
# Has launchd run the server: as an agent of this user, or as a daemon from boot on.
# May be run again at any time: it changes what differs, and never a settings file.
set -euo pipefail
. "$(dirname "$0")/common.sh"

usage() {
  cat <<'TEXT'
install.sh agent|daemon [options]
  --commons PATH      the command (default: the one on the PATH)
  --user NAME         whose daemon it is (default: who called sudo)
  --config FILE       settings (default: ~/.config/mlx-commons/commons.toml for an agent,
                      /usr/local/etc/mlx-commons/commons.toml for a daemon); made if absent
  --wired-limit MB    also set iogpu.wired_limit_mb at every boot (daemon only)
  --prefix DIR        put all files below DIR and leave launchd alone
  --dry-run           only say what would be done
TEXT
}

value() { [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 takes a value"; }

parse() {
  kind='' commons='' user='' config='' wired=''
  while [ $# -gt 0 ]; do
    case $1 in
      agent | daemon) kind=$1 ;;
      --dry-run) dry_run=yes ;;
      -h | --help) usage; exit 0 ;;
      --commons) value "$@"; commons=$2; shift ;;
      --user) value "$@"; user=$2; shift ;;
      --config) value "$@"; config=$2; shift ;;
      --wired-limit) value "$@"; wired=$2; shift ;;
      --prefix) value "$@"; prefix=$2; shift ;;
      *) usage >&2; fail "unknown argument: $1" ;;
    esac
    shift
  done
  [ -n "$kind" ] || { usage >&2; fail "agent or daemon?"; }
  case $wired in *[!0-9]*) fail "--wired-limit is a number of MiB" ;; esac
  [ -z "$wired" ] || [ "$kind" = daemon ] || fail "--wired-limit takes a daemon: only root may set it"
}

resolve() {
  commons=${commons:-$(command -v commons || true)}
  [ -n "$commons" ] || fail "there is no commons on the PATH: give --commons PATH"
  case $commons in /*) ;; *) commons=$PWD/$commons ;; esac
  [ -x "$commons" ] || fail "$commons is no command"
  [ "$kind" = daemon ] || user=$(id -un)
  user=${user:-${SUDO_USER:-}}
  [ -n "$user" ] || fail "whose daemon? A server needs no root: give --user NAME"
  id "$user" >/dev/null 2>&1 || fail "there is no user $user"
  group=$(id -gn "$user")
  home=$(eval "printf '%s' ~$(printf '%q' "$user")")
  case $config in '' | /*) ;; *) config=$PWD/$config ;; esac
}

# A text as sed's replacement, inside XML.
quoted() {
  printf '%s' "$1" | sed -e 's/&/\&amp;/g' -e 's/</\&lt;/g' -e 's/>/\&gt;/g' -e 's/[\\&|]/\\&/g'
}

filled() {
  sed -e "s|@COMMONS@|$(quoted "$commons")|g" -e "s|@CONFIG@|$(quoted "$config")|g" \
    -e "s|@LOGS@|$(quoted "$logs")|g" -e "s|@HOME@|$(quoted "$home")|g" \
    -e "s|@USER@|$(quoted "$user")|g" -e "s|@GROUP@|$(quoted "$group")|g" \
    -e "s|@WIRED@|$wired|g" "$here/$1"
}

folder() {
  [ -d "$1" ] || change mkdir -p "$1"
}

# Gives what a daemon's user has to read or write to that user.
hand_over() {
  [ "$kind" = agent ] || [ -n "$prefix" ] || change chown "$user:$group" "$1"
}

# Writes a filled template where it differs; true if it did.
put() {
  if [ -f "$2" ] && filled "$1" | cmp -s - "$2"; then
    say "as it is: $2"
    return 1
  fi
  if [ "$dry_run" = yes ]; then
    say "would write: $2"
    return 0
  fi
  mkdir -p "$(dirname "$2")"
  filled "$1" >"$2.new"
  chmod 644 "$2.new"
  mv "$2.new" "$2"
  say "written: $2"
}

settings() {
  if [ -e "$prefix$config" ]; then
    say "kept: $prefix$config"
    return
  fi
  folder "$(dirname "$prefix$config")"
  if [ "$dry_run" = yes ]; then
    say "would write: $prefix$config"
    return
  fi
  (umask 077 && cp "$here/settings.toml" "$prefix$config")
  hand_over "$prefix$config"
  # Keys, and what is counted, are kept beside the settings.
  hand_over "$(dirname "$prefix$config")"
  say "written: $prefix$config"
}

load() {
  launchd || return 0
  if [ "$3" = same ] && loaded "$1/$2"; then return; fi
  unload "$1" "$2"
  change launchctl bootstrap "$1" "$4"
}

main() {
  parse "$@"
  resolve
  places "$kind"
  check_machine
  settings
  folder "$prefix$logs"
  hand_over "$prefix$logs"
  if as_root; then
    put newsyslog.conf "$rotation" || true
  else
    say "left to root: $rotation, by which the log is rotated (see docs/service.md)"
  fi
  local state=same
  if put "$kind.plist" "$plist"; then state=changed; fi
  load "$domain" "$label" "$state" "$plist"
  if [ -n "$wired" ]; then
    state=same
    if put wired-limit.plist "$wired_plist"; then state=changed; fi
    load system "$wired_label" "$state" "$wired_plist"
  fi
  say "check it: $commons doctor --config $config"
}

main "$@"
