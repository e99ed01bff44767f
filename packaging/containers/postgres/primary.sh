#!/bin/sh
# Run once by the image, when the primary's directory is new. The standby cannot be there yet, so nothing waits for it: its
# name is set last, and counts from the start that follows.
set -eu
sql() { PGOPTIONS="-c synchronous_commit=local" psql -qX -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d postgres "$@"; }
sql -v password="$(cat "$DATABASE_PASSWORD_FILE")" -v copying="$(cat "$REPLICATION_PASSWORD_FILE")" <<'END'
CREATE ROLE "activity-milter" LOGIN PASSWORD :'password';
GRANT pg_read_all_stats TO "activity-milter";
CREATE DATABASE "activity-milter" OWNER "activity-milter";
CREATE ROLE replication LOGIN REPLICATION PASSWORD :'copying';
ALTER SYSTEM SET synchronous_standby_names = 'standby';
END
echo "host replication replication all scram-sha-256" >>"$PGDATA/pg_hba.conf"
