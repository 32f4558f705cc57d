# Sourced by install.sh and uninstall.sh: where things go, and how anything is changed.
# Written for bash 3.2, which is what macOS has.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
label=mlx-commons.server
wired_label=mlx-commons.wired-limit
prefix=''
dry_run=no

say() { printf '%s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Takes all the places of an agent or of a daemon; the user and its home must be known before.
places() {
  rotation=$prefix/etc/newsyslog.d/mlx-commons-$1.conf
  wired_plist=$prefix/Library/LaunchDaemons/$wired_label.plist
  case $1 in
    agent)
      domain=gui/$(id -u)
      plist=$prefix$home/Library/LaunchAgents/$label.plist
      config=${config:-$home/.config/mlx-commons/commons.toml}
      logs=$home/Library/Logs/mlx-commons
      ;;
    daemon)
      domain=system
      plist=$prefix/Library/LaunchDaemons/$label.plist
      config=${config:-/usr/local/etc/mlx-commons/commons.toml}
      logs=/usr/local/var/log/mlx-commons
      ;;
  esac
}

# Runs a command that changes something, or only says which.
change() {
  if [ "$dry_run" = yes ]; then say "would run: $*"; else "$@"; fi
}

# Only root may write outside of a home, or into another one's.
as_root() { [ -n "$prefix" ] || [ "$(id -u)" = 0 ]; }

# launchd is there on a Mac, and not asked where files only go below a prefix.
launchd() { [ -z "$prefix" ] && [ "$(uname)" = Darwin ]; }

check_machine() {
  [ -n "$prefix" ] || [ "$dry_run" = yes ] || [ "$(uname)" = Darwin ] ||
    fail "launchd is macOS's; for Linux see deploy/systemd"
  [ "$kind" = agent ] || [ "$dry_run" = yes ] || as_root || fail "a daemon takes root: use sudo"
  if [ "$kind" = agent ] && [ -z "$prefix" ] && [ "$(id -u)" = 0 ]; then
    fail "an agent is its user's: run it without sudo"
  fi
}

loaded() { launchctl print "$1" >/dev/null 2>&1; }

# Takes a service out of launchd, if it is there, and waits until it has drained.
unload() {
  if ! launchd || ! loaded "$1/$2"; then return; fi
  # It may say that this is still going on, which is no failure.
  change launchctl bootout "$1/$2" || true
  [ "$dry_run" = no ] || return 0
  local left=90
  while loaded "$1/$2"; do
    [ "$left" -gt 0 ] || fail "$1/$2 does not end"
    left=$((left - 1))
    sleep 1
  done
}
