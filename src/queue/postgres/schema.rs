//! The tables, the version they have, and the way from older ones.
//!
//! All lie in a schema of their own, which every statement names: nothing depends on a search path, which PgBouncer does
//! not keep. What changes is narrow and what is large never changes: an `item` is written again whenever it is leased, put
//! back or held, so it has numbers and little text, and its message lies in `payload`, which is written once and dropped
//! by whole days, so that no vacuum ever walks over it. Nothing counts in a row that many change: who changes something
//! adds a line to `delta`, and every second somebody adds those up in `tenant`.
//!
//! Promise: migrations run in order, one node at a time (an advisory lock that ends with the transaction). A program may
//! work with tables of a newer version as long as that says so (`meta.reads`), so that nodes can be upgraded one by one.
//! Nothing here needs a superuser; the schema itself may be made by somebody else and be given to our user.
//! Fails: [`OpenError`].

use super::line::Line;
use crate::queue::{OpenError, StorageError};
use std::path::PathBuf;
use tokio_postgres::types::Type;

/// The version this program writes.
pub(super) const VERSION: i32 = 1;

/// What makes each version from the one before; the last number of `meta.reads` is the oldest program that may work with it.
const STEPS: &[&str] = &[VERSION_1];

/// Who migrates has this lock: a number that nobody else has any reason to take.
const LOCK: i64 = 0x616d_2d71_7565_7565;

/// Version 1. `item.state`: 0 waiting, 1 held. Times are milliseconds since 1970. `until`: a lease that ends then, `fence`
/// its number and `node` whose it is; none of the three is in an index, so that a lease changes no index. `letter` and
/// `day` say where the message lies: item and letter have the same number where the message is for one target. `item_due` and
/// `item_age` are of what else is asked nowhere (`state + 0`), so that nobody takes them to find what one tenant has: a server that
/// believes a table to be empty takes any index, and would walk over all of it. `delta` has what happened and was not added up yet.
/// `leaving`: all of it is being moved away by `who`, who has it for himself until then.
const VERSION_1: &str = r#"
    CREATE SEQUENCE activity_milter.number;
    CREATE SEQUENCE activity_milter.fence;
    CREATE FUNCTION activity_milter.at(given int8) RETURNS int8 LANGUAGE sql VOLATILE AS
        'SELECT coalesce(given, (extract(epoch FROM clock_timestamp()) * 1000)::int8)';
    CREATE TABLE activity_milter.meta (
        one        int4 PRIMARY KEY CHECK (one = 1),
        version    int4 NOT NULL,
        reads      int4 NOT NULL,
        newest     int8 NOT NULL DEFAULT 0,
        distrust   int8 NOT NULL DEFAULT 0,
        kept_since int8 NOT NULL DEFAULT 0,
        id         uuid NOT NULL DEFAULT gen_random_uuid()
    );
    INSERT INTO activity_milter.meta (one, version, reads) VALUES (1, 0, 1);
    CREATE TABLE activity_milter.leaving (
        one   int4 PRIMARY KEY CHECK (one = 1),
        until int8 NOT NULL DEFAULT 0,
        who   text NOT NULL DEFAULT ''
    ) WITH (fillfactor = 50);
    INSERT INTO activity_milter.leaving (one) VALUES (1);
    CREATE TABLE activity_milter.node (
        id       text PRIMARY KEY,
        arrivals int8 NOT NULL DEFAULT 0,
        seen     int8 NOT NULL DEFAULT 0,
        boot     text NOT NULL DEFAULT '',
        keeps    bool NOT NULL DEFAULT false,
        program  text NOT NULL DEFAULT ''
    ) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
    CREATE TABLE activity_milter.tenant (
        id      text COLLATE "C" PRIMARY KEY,
        prefix  text NOT NULL DEFAULT '',
        waiting int8 NOT NULL DEFAULT 0,
        held    int8 NOT NULL DEFAULT 0,
        aged    int8 NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
    CREATE TABLE activity_milter.delta (
        tenant  text COLLATE "C" NOT NULL,
        prefix  text,
        waiting int4 NOT NULL DEFAULT 0,
        held    int4 NOT NULL DEFAULT 0,
        aged    int4 NOT NULL DEFAULT 0
    ) WITH (autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);
    CREATE VIEW activity_milter.number_of AS
        SELECT id, max(prefix) AS prefix, sum(waiting)::int8 AS waiting, sum(held)::int8 AS held, sum(aged)::int8 AS aged
        FROM (SELECT id, prefix, waiting, held, aged FROM activity_milter.tenant
              UNION ALL SELECT tenant, prefix, waiting, held, aged FROM activity_milter.delta) AS both_tables
        GROUP BY id;
    CREATE TABLE activity_milter.key (
        key  bytea PRIMARY KEY,
        item int8 NOT NULL,
        at   int8 NOT NULL
    ) WITH (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
    ALTER TABLE activity_milter.key ALTER COLUMN key SET STORAGE PLAIN;
    CREATE INDEX key_at ON activity_milter.key (at);
    CREATE TABLE activity_milter.item (
        id          int8 PRIMARY KEY,
        due         int8 NOT NULL,
        accepted_at int8 NOT NULL,
        until       int8,
        fence       int8 NOT NULL DEFAULT 0,
        held_at     int8,
        letter      int8 NOT NULL,
        size        int8 NOT NULL,
        day         int4 NOT NULL,
        attempts    int4 NOT NULL DEFAULT 0,
        state       int2 NOT NULL DEFAULT 0,
        told        bool NOT NULL DEFAULT false,
        aged        bool NOT NULL DEFAULT false,
        replay      bool NOT NULL DEFAULT false,
        key         bytea NOT NULL,
        tenant      text COLLATE "C" NOT NULL,
        node        text,
        reason      text,
        note        text
    ) WITH (fillfactor = 60, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.02,
            autovacuum_vacuum_cost_delay = 0);
    CREATE INDEX item_turn ON activity_milter.item (tenant, due, id) WHERE state = 0;
    CREATE INDEX item_due ON activity_milter.item ((due + 0)) WHERE state + 0 = 0;
    CREATE INDEX item_age ON activity_milter.item (accepted_at, id) WHERE state + 0 = 0;
    CREATE INDEX item_held ON activity_milter.item (told, id) WHERE state = 1;
    CREATE TABLE activity_milter.kept (
        id           int8 PRIMARY KEY,
        accepted_at  int8 NOT NULL,
        delivered_at int8 NOT NULL,
        letter       int8 NOT NULL,
        size         int8 NOT NULL,
        day          int4 NOT NULL,
        attempts     int4 NOT NULL,
        key          bytea NOT NULL,
        tenant       text COLLATE "C" NOT NULL
    ) WITH (autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
    CREATE INDEX kept_time ON activity_milter.kept (delivered_at, id);
    CREATE TABLE activity_milter.expired (
        number int8 PRIMARY KEY,
        at     int8 NOT NULL,
        prefix text NOT NULL
    );
    CREATE TABLE activity_milter.payload (
        id       int8 NOT NULL,
        day      int4 NOT NULL,
        part     int4 NOT NULL,
        brief    text,
        activity text,
        cuts     text,
        text     text,
        bytes    bytea,
        PRIMARY KEY (day, id, part)
    ) PARTITION BY RANGE (day);
    ALTER TABLE activity_milter.payload ALTER COLUMN bytes SET STORAGE EXTERNAL;
"#;

/// What is compiled for a statement takes a thousand times as long as the statement: it is chosen by cost, and what looks at
/// every tenant seems to cost much. And a function that somebody else has made in `public` must not be taken for the
/// server's own of that name. What others mean to set for all their users (an isolation that makes us try again, warnings that
/// are not told) is not for us. A user may say all of that of himself; it counts from the next connection on.
const SETTINGS: &[&str] = &[
    "jit = off",
    "search_path = pg_catalog",
    "default_transaction_isolation = 'read committed'",
    "client_min_messages = warning",
];

/// Makes the tables, or brings them to our version. `name`: the database, for people.
pub(super) async fn prepare(line: &mut Line, name: &str) -> Result<(), OpenError> {
    let wrong = |error: StorageError| unusable(name, &error);
    has_all_characters(line, name).await?;
    line.begin().await.map_err(wrong)?;
    line.ask("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]).await.map_err(wrong)?;
    let mut found = version(line).await.map_err(wrong)?;
    if found.is_none() {
        // Who may not make a schema may have been given one.
        let there = line.ask("SELECT 1 FROM pg_namespace WHERE nspname = 'activity_milter'", &[]).await;
        if there.map_err(wrong)?.is_empty() {
            line.batch("CREATE SCHEMA activity_milter").await.map_err(wrong)?;
        }
    }
    let (version, reads) = found.take().unwrap_or((0, 1));
    may_work(name, version, reads)?;
    if version < VERSION {
        for (number, step) in (1..).zip(STEPS).skip(usize::try_from(version).unwrap_or(0)) {
            line.batch(step).await.map_err(wrong)?;
            let set = "UPDATE activity_milter.meta SET version = $1 WHERE version < $1";
            line.ask(set, &[(&number, Type::INT4)]).await.map_err(wrong)?;
        }
    }
    // Also where the tables came out of a back-up, which has no settings of users.
    let is_set = "SELECT current_setting('search_path') = 'pg_catalog' AND current_setting('jit') = 'off'";
    if !line.ask(is_set, &[]).await.map_err(wrong)?.first().is_some_and(|row| row.get(0)) {
        let name = line.ask("SELECT quote_ident(current_database())", &[]).await.map_err(wrong)?;
        let name: String = name.first().map(|row| row.get(0)).unwrap_or_default();
        for setting in SETTINGS {
            let set = format!("ALTER ROLE CURRENT_USER IN DATABASE {name} SET {setting}");
            line.batch(&set).await.map_err(wrong)?;
        }
    }
    line.commit().await.map_err(wrong)
}

/// That the tables are there and ours.
pub(super) async fn look(line: &mut Line, name: &str) -> Result<(), OpenError> {
    has_all_characters(line, name).await?;
    let wrong = |error: StorageError| unusable(name, &error);
    // As a service does: a pooler may allow no transactions.
    line.begin().await.map_err(wrong)?;
    let found = version(line).await.map_err(wrong)?;
    line.commit().await.map_err(wrong)?;
    match found {
        None => Err(OpenError::Missing(PathBuf::from(name))),
        Some((version, _)) if version < VERSION => {
            Err(OpenError::Older { path: PathBuf::from(name), found: version.into(), known: VERSION.into() })
        }
        Some((version, reads)) => may_work(name, version, reads),
    }
}

/// Mail with a character that the database lacks would be refused for ever.
async fn has_all_characters(line: &mut Line, name: &str) -> Result<(), OpenError> {
    let rows = line.ask("SELECT pg_catalog.current_setting('server_encoding')", &[]).await;
    let rows = rows.map_err(|error| unusable(name, &error))?;
    let encoding: String = rows.first().map(|row| row.get(0)).unwrap_or_default();
    if encoding == "UTF8" {
        return Ok(());
    }
    let remedy = "make another one with ENCODING 'UTF8' TEMPLATE template0";
    let message =
        format!("the database's encoding is {encoding}, which lacks characters that mail has: {remedy}");
    Err(OpenError::Unusable { path: PathBuf::from(name), message })
}

/// A newer version says which programs may still work with it.
fn may_work(name: &str, version: i32, reads: i32) -> Result<(), OpenError> {
    if reads <= VERSION {
        return Ok(());
    }
    Err(OpenError::Newer { path: PathBuf::from(name), found: version.into(), known: VERSION.into() })
}

/// The version, and the oldest program that may work with it; none: there is nothing.
async fn version(line: &mut Line) -> Result<Option<(i32, i32)>, StorageError> {
    if !has_table(line, "meta").await? {
        return Ok(None);
    }
    let rows = line.ask("SELECT version, reads FROM activity_milter.meta", &[]).await?;
    Ok(rows.first().map(|row| (row.get(0), row.get(1))))
}

/// Whether there is such a table of ours. Not `to_regclass`, which may remember that there was none.
pub(super) async fn has_table(line: &mut Line, name: &str) -> Result<bool, StorageError> {
    let rows = line
        .ask(
            "SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE nspname = 'activity_milter' AND relname = $1",
            &[(&name, Type::TEXT)],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// The database cannot be used as a queue, or not now.
pub(super) fn unusable(name: &str, error: &StorageError) -> OpenError {
    if let StorageError::Busy(why) = error {
        return OpenError::Away(why.clone());
    }
    OpenError::Unusable { path: PathBuf::from(name), message: error.to_string() }
}
