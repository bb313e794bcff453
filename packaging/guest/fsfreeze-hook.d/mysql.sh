#!/bin/sh
# Holds the writes of MySQL or MariaDB while the file systems are frozen.
#
# InnoDB needs no lock: it recovers from a copy of all disks at one instant as from a power cut.
# The global read lock is for MyISAM tables. It waits behind long statements, so the wait is
# limited to 3 seconds, after which the freeze fails. The session that holds the lock must stay
# open until the thaw; it ends by itself after MYSQL_HOLD seconds, and then the thaw fails.
# The client reads its credentials from MYSQL_DEFAULTS.
set -u

defaults=${MYSQL_DEFAULTS:-/root/.my.cnf}
hold=${MYSQL_HOLD:-60}
pidfile=/run/fsfreeze-mysql.pid
fifo=/run/fsfreeze-mysql.fifo

freeze() {
	rm -f "$fifo"
	mkfifo "$fifo" || return 1
	setsid sh -c '{
		echo "SET SESSION lock_wait_timeout=3; FLUSH TABLES WITH READ LOCK; SELECT \"held\";"
		sleep "$1"
	} | mysql --defaults-extra-file="$0" --batch --skip-column-names --unbuffered' "$defaults" "$hold" >"$fifo" 2>&1 &
	echo $! >"$pidfile"
	IFS= read -r answer <"$fifo"
	rm -f "$fifo"
	[ "$answer" = held ] && return 0
	echo "FLUSH TABLES WITH READ LOCK: $answer"
	return 1
}

thaw() {
	[ -f "$pidfile" ] || return 0
	pid=$(cat "$pidfile")
	rm -f "$pidfile"
	kill -- "-$pid" 2>/dev/null && return 0
	echo "the read lock was lost before the thaw"
	return 1
}

command -v mysql >/dev/null || exit 0
case $1 in
freeze) freeze ;;
thaw) thaw ;;
esac
