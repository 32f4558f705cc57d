#!/usr/bin/env bash
# Takes the server out of launchd. Settings, keys, usage and logs stay, and are named at the end.
set -euo pipefail
. "$(dirname "$0")/common.sh"

usage() {
  cat <<'TEXT'
uninstall.sh agent|daemon [options]
  --prefix DIR   where install.sh put all files, with launchd left alone
  --dry-run      only say what would be done
TEXT
}

kind='' config=''
while [ $# -gt 0 ]; do
  case $1 in
    agent | daemon) kind=$1 ;;
    --dry-run) dry_run=yes ;;
    -h | --help) usage; exit 0 ;;
    --prefix) [ $# -ge 2 ] || fail "$1 takes a value"; prefix=$2; shift ;;
    *) usage >&2; fail "unknown argument: $1" ;;
  esac
  shift
done
[ -n "$kind" ] || { usage >&2; fail "agent or daemon?"; }
home=$(eval "printf '%s' ~$(printf '%q' "$(id -un)")")
places "$kind"
check_machine

remove() {
  if [ -e "$1" ]; then
    change rm "$1"
    [ "$dry_run" = yes ] || say "removed: $1"
  else
    say "not there: $1"
  fi
}

unload "$domain" "$label"
remove "$plist"
if as_root; then remove "$rotation"; fi
if [ "$kind" = daemon ]; then
  unload system "$wired_label"
  remove "$wired_plist"
fi
say "kept: $prefix$logs and $(dirname "$prefix$config")"
