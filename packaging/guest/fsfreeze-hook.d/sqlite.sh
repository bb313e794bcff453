#!/bin/sh
# Holds the write lock of SQLite databases while the file systems are frozen, so that no database
# is in the middle of a transaction: none has a rollback journal with pages in it.
#
# SQLITE_DATABASES names a file with one path of a database a line. The lock is held by a
# background process for at most SQLITE_HOLD seconds; if it was gone before the thaw, the thaw
# fails, and the recovery point must not be called application-consistent.
set -u

list=${SQLITE_DATABASES:-/etc/qemu/sqlite-databases}
hold=${SQLITE_HOLD:-60}
state=/run/fsfreeze-sqlite

# lock DATABASE PIDFILE
lock() {
	fifo=$2.fifo
	rm -f "$fifo"
	mkfifo "$fifo" || return 1
	# .shell's output is not buffered by sqlite3, which keeps its own until it ends.
	setsid sh -c '{
		printf "%s\n" ".timeout 3000" "BEGIN IMMEDIATE;" ".shell echo held"
		sleep "$1"
	} | sqlite3 -bail "$0"' "$1" "$hold" >"$fifo" 2>&1 &
	echo $! >"$2"
	IFS= read -r answer <"$fifo"
	rm -f "$fifo"
	[ "$answer" = held ] && return 0
	echo "lock $1: $answer"
	return 1
}

freeze() {
	mkdir -p "$state" || return 1
	n=0
	while IFS= read -r database; do
		[ -n "$database" ] || continue
		n=$((n + 1))
		lock "$database" "$state/$n.pid" || return 1
	done <"$list"
}

thaw() {
	result=0
	for pidfile in "$state"/*.pid; do
		[ -f "$pidfile" ] || continue
		if ! kill -- "-$(cat "$pidfile")" 2>/dev/null; then
			echo "the lock of database $pidfile was lost before the thaw"
			result=1
		fi
		rm -f "$pidfile"
	done
	return "$result"
}

[ -f "$list" ] || exit 0
case $1 in
freeze) freeze ;;
thaw) thaw ;;
esac
