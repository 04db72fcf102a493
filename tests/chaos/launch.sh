#!/bin/sh
# launch.sh FILE GID COMMAND…: a service with the variables that FILE holds at this start, under a group id of its own.
. "$1"
gid=$2
shift 2
[ -z "$CHAOS_CGROUP" ] || echo $$ >"$CHAOS_CGROUP/cgroup.procs"
unset CHAOS_CGROUP
[ "$gid" = 0 ] && exec "$@"
exec setpriv --regid "$gid" --clear-groups "$@"
