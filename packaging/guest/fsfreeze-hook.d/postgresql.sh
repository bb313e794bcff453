#!/bin/sh
# Makes recovery of PostgreSQL short: a checkpoint just before the file systems are held.
#
# Nothing is locked. A recovery point shows all disks at one instant, WAL and tablespaces included,
# and PostgreSQL recovers from such a copy as from a power cut; that is a supported backup.
# PGUSER and the other variables of libpq apply; PGOSUSER is the system user that may connect.
set -eu

command -v psql >/dev/null || exit 0
[ "$1" = freeze ] || exit 0
runuser -u "${PGOSUSER:-postgres}" -- psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --command=CHECKPOINT postgres
