#!/bin/sh
# Copies the primary when the standby's directory is new, and follows it under the name for which commits wait.
set -eu
# Written at each start: the copy remembers where it lies, and the password may be another one by now.
passfile=${PASSFILE:-/tmp/replication}
(umask 077 && printf '*:*:*:*:%s\n' "$(cat "$REPLICATION_PASSWORD_FILE")" >"$passfile")
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    primary="host=${PRIMARY_HOST:-primary} port=${PRIMARY_PORT:-5432} user=replication passfile=$passfile application_name=standby"
    # Half a copy is begun anew.
    until find "$PGDATA" -mindepth 1 -delete && pg_basebackup -d "$primary" -D "$PGDATA" -R -X stream -c fast; do
        echo "the primary cannot be copied yet: again in 2 s" >&2
        sleep 2
    done
    chmod 0700 "$PGDATA"
fi
exec "$@"
