//! A database server as it is meant to be run: what is committed is on the disks of two, each with `fsync`.

use crate::database::{Cluster, Database};
use activity_milter::queue::postgres::Server;
use std::{
    mem::ManuallyDrop,
    time::{Duration, Instant},
};

/// What differs from PostgreSQL's own defaults, and from those of the tests.
pub const SETTINGS: [&str; 5] =
    ["fsync=on", "full_page_writes=on", "shared_buffers=256MB", "max_wal_size=4GB", "autovacuum_naptime=10s"];

/// A primary whose commits wait for a standby, and that standby.
pub struct Pair {
    pub primary: &'static Cluster,
    pub standby: &'static Cluster,
    /// Never dropped: that would wait for the standby.
    database: ManuallyDrop<Database>,
}

impl Pair {
    pub fn new() -> Self {
        let primary = Cluster::start(&SETTINGS).leaked();
        let standby = Cluster::standby_with(primary, "second", &SETTINGS).leaked();
        let pair = Self { primary, standby, database: ManuallyDrop::new(primary.database()) };
        for set in ["ALTER SYSTEM SET synchronous_standby_names = 'second'", "SELECT pg_reload_conf()"] {
            primary.psql("postgres", set).unwrap();
        }
        let began = Instant::now();
        while pair.number("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != 1 {
            assert!(began.elapsed() < Duration::from_secs(20), "the standby does not come");
            std::thread::sleep(Duration::from_millis(50));
        }
        pair
    }

    /// The database.
    pub fn url(&self) -> String {
        self.database.url()
    }

    /// How a node reaches it: nothing is taken without the standby.
    pub fn server(&self) -> Server {
        let mut server = Server::new(&self.url()).unwrap();
        server.require_replication = true;
        server
    }

    /// What a statement counts.
    pub fn number(&self, sql: &str) -> i64 {
        let said = self.primary.psql(&self.database.name, sql).unwrap();
        said.parse().unwrap_or_else(|_| panic!("{sql}: {said}"))
    }
}
