#!/bin/sh
# Records each freeze with the last row that the held database has, and fails on request:
# /run/fail-freeze, /run/hang-freeze and /run/fail-thaw exist, or do not.
set -eu
counter=/var/lib/app/freezes

freeze() {
	[ ! -e /run/hang-freeze ] || sleep 3600
	[ ! -e /run/fail-freeze ] || { echo "told to fail"; exit 1; }
	n=$(cat "$counter" 2>/dev/null || echo 0)
	echo $((n + 1)) >"$counter"
	sqlite3 -readonly /var/lib/app/app.db 'SELECT max(n) FROM entry' >/var/lib/app/quiesced 2>/dev/null || :
}

case $1 in
freeze) freeze ;;
thaw) [ ! -e /run/fail-thaw ] || { echo "told to fail"; exit 1; } ;;
esac
