//! Connections to the database: made, lent, and thrown away when they are of no use.
//!
//! In: the server. Out: [`Line`]s: a connection lent for one piece of work, with the time it may take.
//! Promise: a notice reaches the work it is about. PostgreSQL reports a commit whose wait for its standbys was cancelled
//! as a success, with the warning 01000: here that is an error. A connection whose work is given up, or is not over in its
//! time, is lent to nobody any more; it is never cancelled, for a cancelled wait is a commit that no standby has, and keeps
//! its place until the server is done with it (`Limbo`). While
//! nobody answers, we try again now and then, each of us at another moment, and who comes between hears it at once.
//! Fails: [`StorageError::Busy`] for all that passes.
//!
//! Why not deadpool-postgres: its connector gives a client and a task, and a notice has no way from the one to the other;
//! and what it keeps for each connection, prepared statements, is what PgBouncer does not know. So this is deadpool's
//! pool with connections of our own. All statements are unnamed (`query_typed`), and no session is set to anything; what is done
//! all the time is a function's (`routine`).

use super::{
    fault::{lacks_function, spoils, storage_error, whole},
    guarantee::{self, Guarantee},
    routine::Made,
    server::{Server, Tls},
    tls,
};
use crate::queue::StorageError;
use deadpool::managed::{self, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult};
use futures_util::{StreamExt, future::poll_fn, stream::FuturesUnordered};
use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, error::Elapsed, sleep, sleep_until, timeout, timeout_at},
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, Row, Socket,
    config::Host,
    error::{Severity, SqlState},
    tls::MakeTlsConnect,
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// What the library gives.
type Connected =
    (Client, tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>);

/// A value of a statement, and its type.
pub(super) type Value<'a> = (&'a (dyn ToSql + Sync), Type);

/// The first pause after a failure to connect; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Time for one host, where the URL says none.
const HOST_TIME: Duration = Duration::from_secs(5);

/// Between two tries to get a connection where no more can be made.
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a connection that is not as safe as is asked is believed to be so.
const DOUBTED_FOR: Duration = Duration::from_secs(1);

/// A connection.
pub(super) struct Connection {
    client: Client,
    /// The place of its host.
    at: usize,
    /// A warning came: what was committed last is not where it should be.
    warned: Arc<AtomicBool>,
    /// As it was read here, and when.
    guarantee: Guarantee,
    looked: Instant,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Or it would go on for as long as an answer is awaited.
        self.task.abort();
    }
}

/// When the server was tried in vain.
#[derive(Debug, Default)]
struct Silence {
    pause: Duration,
    until: Option<Instant>,
    why: String,
}

/// Connections of whose last statement nobody knows yet how it ends. They keep their place in the pool: at the server each of
/// them still is a session, as long as it waits for a standby for as long as that is away, and there must not be more and
/// more of them.
#[derive(Debug, Default)]
struct Limbo {
    /// How many there are.
    count: AtomicUsize,
    /// A commit came through: nobody waits for these any more.
    released: Notify,
    /// Held by the next that is given up.
    turn: tokio::sync::Mutex<()>,
    /// How many were given up since the server last answered.
    given_up: AtomicU32,
}

/// So long an answer is waited for before the first connection is given up, one by one and ever more slowly: the server may
/// be one that hangs for ever while another has taken over.
const LIMBO_TIME: Duration = Duration::from_secs(5);

/// The longest time between two that are given up.
const LIMBO_TURN: Duration = Duration::from_secs(600);

impl Limbo {
    /// Until the connection is of no more interest.
    async fn wait(&self, connection: &Connection) {
        let answered = async {
            // It stands behind what was not answered.
            let _ = connection.client.simple_query("").await;
        };
        let given_up = async {
            let _turn = self.turn.lock().await;
            let before = self.given_up.load(Ordering::Relaxed);
            sleep((LIMBO_TIME * 2_u32.saturating_pow(before.min(16))).min(LIMBO_TURN)).await;
            self.given_up.fetch_add(1, Ordering::Relaxed);
        };
        self.count.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            () = answered => self.given_up.store(0, Ordering::Relaxed),
            () = self.released.notified() => {}
            () = given_up => {}
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all who connect share with each other.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// The host that is asked first, by its place in the URL.
    next: AtomicUsize,
    /// Which one could be written to last.
    good: AtomicUsize,
    /// The functions of `routine` are there.
    routines: AtomicBool,
}

impl Learnt {
    /// The functions are there.
    pub(super) fn has_routines(&self) {
        self.routines.store(true, Ordering::Relaxed);
    }
}

/// Makes connections.
pub(super) struct Connector {
    server: Server,
    limbo: Arc<Limbo>,
    learnt: Arc<Learnt>,
    tls: MakeRustlsConnect,
    silence: Mutex<Silence>,
}

impl Connector {
    fn silence(&self) -> std::sync::MutexGuard<'_, Silence> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To the host that can be written to: the last one first, and each for so long, for one that hangs must not stand
    /// before the others.
    async fn connect_to_one(
        &self,
        configs: &[Config],
        tls: MakeRustlsConnect,
    ) -> Result<(usize, Connected), String> {
        let first = self.learnt.next.load(Ordering::Relaxed) % configs.len().max(1);
        let mut why = Vec::new();
        for at in (0..configs.len()).map(|step| (first + step) % configs.len()) {
            // The next time it begins behind this one, should nobody wait for its end.
            self.learnt.next.store((at + 1) % configs.len(), Ordering::Relaxed);
            let Some(config) = configs.get(at) else { continue };
            match connect_to_addresses(config, &tls).await {
                Ok(connected) => {
                    self.learnt.next.store(at, Ordering::Relaxed);
                    self.learnt.good.store(at, Ordering::Relaxed);
                    return Ok((at, connected));
                }
                Err(error) => why.push(error),
            }
        }
        if let [only] = &mut why[..] {
            return Err(std::mem::take(only));
        }
        let hosts = configs.iter().map(super::server::host_of);
        // In the order of the hosts.
        let count = why.len().max(1);
        why.rotate_right(first % count);
        Err(hosts.zip(why).map(|(host, why)| format!("{host}: {why}")).collect::<Vec<_>>().join("; "))
    }

    async fn connect(&self) -> Result<Connection, String> {
        let configs = self.server.configs()?;
        // The file as it is now: certificates are renewed while we run.
        let tls = match &self.server.tls {
            Tls::Verify { ca_file: Some(_) } => tls::connector(&self.server.tls)?,
            Tls::Verify { ca_file: None } | Tls::Off => self.tls.clone(),
        };
        let (at, (client, mut connection)) = self.connect_to_one(&configs, tls).await?;
        let warned = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&warned);
        // It reads what the server says, in its order: a notice is noted before the answer behind it is given.
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message
                    && *notice.code() == SqlState::WARNING
                    && notice.parsed_severity() == Some(Severity::Warning)
                {
                    heard.store(true, Ordering::Release);
                }
            }
        });
        let (guarantee, looked) = (Guarantee::default(), Instant::now());
        let mut connection = Connection { client, at, warned, guarantee, looked, task };
        let rows = connection.client.query_typed(guarantee::ASK, &[]).await.map_err(|error| whole(&error))?;
        connection.guarantee =
            rows.first().map(Guarantee::of).ok_or("it does not say what a commit promises")?;
        // What the server says while one logs in is about nothing that was written.
        connection.warned.store(false, Ordering::Release);
        Ok(connection)
    }
}

impl managed::Manager for Connector {
    type Type = Connection;
    type Error = StorageError;

    async fn create(&self) -> Result<Connection, StorageError> {
        let away = |why: &str| {
            let name = self.server.name();
            StorageError::Busy(format!("{name} cannot be reached: {why}"))
        };
        {
            let silence = self.silence();
            if silence.until.is_some_and(|until| Instant::now() < until) {
                return Err(away(&silence.why));
            }
        }
        match self.connect().await {
            Ok(connection) => {
                *self.silence() = Silence::default();
                // Perhaps there is another one that can be written to, and is as safe as is asked.
                if connection.guarantee.lacks(self.server.require_replication).is_some() {
                    self.learnt.next.fetch_add(1, Ordering::Relaxed);
                }
                Ok(connection)
            }
            Err(why) => {
                let mut silence = self.silence();
                silence.pause = (silence.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                silence.until = Some(Instant::now() + silence.pause.mul_f64(0.5 + fastrand::f64()));
                silence.why.clone_from(&why);
                Err(away(&why))
            }
        }
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<StorageError> {
        if connection.client.is_closed() || connection.warned.load(Ordering::Acquire) {
            return Err(RecycleError::message("of no use any more"));
        }
        // The other one may hang, and say nothing for long.
        if connection.at != self.learnt.good.load(Ordering::Relaxed) {
            return Err(RecycleError::message("another host has taken over"));
        }
        // A session's settings are those it began with; whoever put them right wants to see it.
        let lacks = connection.guarantee.lacks(self.server.require_replication).is_some();
        if lacks && connection.looked.elapsed() >= DOUBTED_FOR {
            return Err(RecycleError::message("not as safe as is asked"));
        }
        Ok(())
    }
}

/// Connections to be lent.
pub(super) struct Lines {
    pool: Pool<Connector>,
    name: String,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Lines {
    /// At most so many; connects to nobody yet.
    pub(super) fn new(server: &Server, most: usize, learnt: &Arc<Learnt>) -> Result<Self, String> {
        let connector = Connector {
            tls: tls::connector(&server.tls)?,
            server: server.clone(),
            limbo: Arc::default(),
            learnt: Arc::clone(learnt),
            silence: Mutex::default(),
        };
        let pool = Pool::builder(connector).max_size(most.max(1)).build();
        Ok(Self { pool: pool.map_err(|error| error.to_string())?, name: server.name() })
    }

    /// What a connection of its own is promised: one that is there already has the settings it began with.
    pub(super) async fn guarantee(&self, time: Duration) -> Result<Guarantee, StorageError> {
        let made = managed::Manager::create(self.pool.manager());
        let late = || StorageError::Busy(format!("{} has no connection within {time:?}", self.name));
        let connection = timeout(time, made).await.map_err(|_| late())??;
        Ok(connection.guarantee.clone())
    }

    /// One of them, for so long. Where no more can be made, one that is lent comes back.
    pub(super) async fn lend(&self, time: Duration) -> Result<Line, StorageError> {
        let until = Instant::now() + time;
        loop {
            match timeout_at(until, self.pool.get()).await {
                Ok(Ok(object)) => {
                    return Ok(Line {
                        object: Some(object),
                        until,
                        is_open: false,
                        is_sound: true,
                        is_late: false,
                    });
                }
                Ok(Err(PoolError::Backend(error))) => {
                    let next = Instant::now() + BETWEEN_TRIES;
                    if self.pool.status().size == 0 || next >= until {
                        return Err(error);
                    }
                    sleep_until(next).await;
                }
                Ok(Err(error)) => return Err(StorageError::Busy(format!("{}: {error}", self.name))),
                Err(_) => return Err(self.none_is_free(time)),
            }
        }
    }

    fn none_is_free(&self, time: Duration) -> StorageError {
        let mut text = format!("{} has no connection free within {time:?}", self.name);
        let unanswered = self.pool.manager().limbo.count.load(Ordering::Relaxed);
        if unanswered > 0 {
            text =
                format!("{text}: {unanswered} wait for its answer (its disk or a standby is slow or away)");
        }
        StorageError::Busy(text)
    }
}

/// A connection that is lent.
pub(super) struct Line {
    object: Option<Object<Connector>>,
    until: Instant,
    /// A transaction is open.
    is_open: bool,
    /// It may be lent again: nothing is on its way, and no warning came.
    is_sound: bool,
    /// Its last statement was not answered in time.
    is_late: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        if (!self.is_sound || self.is_open)
            && let Some(object) = self.object.take()
        {
            let pool = Object::pool(&object).filter(|_| self.is_late);
            let (Some(pool), Ok(runtime)) = (pool, tokio::runtime::Handle::try_current()) else {
                drop(Object::take(object));
                return;
            };
            let limbo = Arc::clone(&pool.manager().limbo);
            runtime.spawn(async move {
                limbo.wait(&object).await;
                drop(Object::take(object));
            });
        }
    }
}

/// Why a statement was not done.
pub(super) enum Trouble {
    /// The database's word.
    Said(Error),
    /// No answer in time, or one that does not count.
    Unsure(StorageError),
}

impl From<Trouble> for StorageError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Said(error) => storage_error(&error),
            Trouble::Unsure(error) => error,
        }
    }
}

impl Line {
    /// One statement; its rows. Outside of a transaction it is committed when this returns.
    pub(super) async fn ask(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StorageError> {
        Ok(self.tell(sql, values).await?)
    }

    /// The same, with the database's own word for what failed.
    pub(super) async fn tell(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Trouble> {
        let Some(object) = &self.object else { return Err(lost()) };
        // Whoever goes away in the midst of it leaves it so.
        self.is_sound = false;
        let answer = timeout_at(self.until, object.client.query_typed(sql, values)).await;
        let answer = self.in_time(answer)?;
        self.judge(answer)
    }

    /// The same by the function of a statement, where that is there.
    pub(super) async fn call(&mut self, made: &Made, values: &[Value<'_>]) -> Result<Vec<Row>, Trouble> {
        let told = self.tell(self.words(made), values).await;
        match self.lacks_function(&told) {
            true => self.tell(&made.sql, values).await,
            false => told,
        }
    }

    /// The same, and its commit holds, be that its own or one that follows.
    pub(super) async fn call_durably(
        &mut self,
        made: &Made,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, Trouble> {
        if self.is_open { self.call(made, values).await } else { self.call_for_good(made, values).await }
    }

    fn words<'a>(&self, made: &'a Made) -> &'a str {
        let pool = self.object.as_ref().and_then(Object::pool);
        match pool.is_some_and(|pool| pool.manager().learnt.routines.load(Ordering::Relaxed)) {
            true => &made.call,
            false => &made.sql,
        }
    }

    /// Whether a function is gone, and the statement can be sent instead: somebody dropped it, or put an older copy back.
    fn lacks_function(&self, told: &Result<Vec<Row>, Trouble>) -> bool {
        let lacks = matches!(told, Err(Trouble::Said(error)) if lacks_function(error));
        if lacks && let Some(pool) = self.object.as_ref().and_then(Object::pool) {
            pool.manager().learnt.routines.store(false, Ordering::Relaxed);
        }
        lacks && !self.is_open
    }

    /// What this connection promises, as it was read last.
    pub(super) fn guarantee(&self) -> Guarantee {
        self.object.as_ref().map(|object| object.guarantee.clone()).unwrap_or_default()
    }

    /// Why nothing may be put on this connection, if what it promises is not what is asked.
    pub(super) fn lacks(&self) -> Option<String> {
        let object = self.object.as_ref()?;
        let is_asked = Object::pool(object).is_none_or(|pool| pool.manager().server.require_replication);
        object.guarantee.lacks(is_asked)
    }

    /// A statement whose commit must hold, by its function where that is there.
    pub(super) async fn call_for_good(
        &mut self,
        made: &Made,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, Trouble> {
        let told = self.tell_for_good(self.words(made), values).await;
        match self.lacks_function(&told) {
            true => self.tell_for_good(&made.sql, values).await,
            false => told,
        }
    }

    /// A statement whose commit must hold: what is promised is read right behind it, on its way together with it.
    pub(super) async fn tell_for_good(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, Trouble> {
        let Some(object) = &self.object else { return Err(lost()) };
        self.is_sound = false;
        let both = async {
            // They are sent in this order.
            tokio::join!(
                object.client.query_typed(sql, values),
                object.client.query_typed(guarantee::ASK_BEHIND, &[])
            )
        };
        let both = timeout_at(self.until, both).await;
        let (told, after) = self.in_time(both)?;
        let told = self.judge(told)?;
        self.judge_promise(after)?;
        Ok(told)
    }

    /// Commits a transaction, as [`Line::tell_for_good`] does.
    pub(super) async fn commit_for_good(&mut self) -> Result<(), Trouble> {
        let Some(object) = &self.object else { return Err(lost()) };
        self.is_sound = false;
        let both = async {
            tokio::join!(
                object.client.batch_execute("COMMIT"),
                object.client.query_typed(guarantee::ASK_BEHIND, &[])
            )
        };
        let both = timeout_at(self.until, both).await;
        let (done, after) = self.in_time(both)?;
        self.judge(done)?;
        self.is_open = false;
        self.judge_promise(after)
    }

    /// What was promised right behind a commit.
    fn judge_promise(&mut self, after: Result<Vec<Row>, Error>) -> Result<(), Trouble> {
        let rows = self.judge(after)?;
        let (Some(row), Some(object)) = (rows.first(), &mut self.object) else { return Err(lost()) };
        object.guarantee = Guarantee::of(row);
        object.looked = Instant::now();
        if let Some(lack) = self.lacks() {
            return Err(Trouble::Unsure(StorageError::Busy(lack)));
        }
        if let Some(pool) = self.object.as_ref().and_then(Object::pool) {
            let limbo = &pool.manager().limbo;
            limbo.given_up.store(0, Ordering::Relaxed);
            limbo.released.notify_waiters();
        }
        Ok(())
    }

    /// Statements without values, one after the other, in one transaction unless they say otherwise.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<(), StorageError> {
        let Some(object) = &self.object else { return Err(lost().into()) };
        self.is_sound = false;
        let answer = timeout_at(self.until, object.client.batch_execute(sql)).await;
        let answer = self.in_time(answer)?;
        Ok(self.judge(answer)?)
    }

    /// Whatever was committed here before holds when this returns, as [`Line::tell_for_good`] says. Who finds that there is
    /// nothing to do any more may see what this server alone has done: a statement that changes nothing waits for no standby, and
    /// this one does.
    pub(super) async fn confirm(&mut self) -> Result<(), StorageError> {
        let mark = "SELECT pg_catalog.pg_logical_emit_message(true, 'activity_milter', '')";
        self.tell_for_good(mark, &[]).await?;
        Ok(())
    }

    /// What follows has so long from now.
    pub(super) fn has_time(&mut self, time: Duration) {
        self.until = Instant::now() + time;
    }

    /// Throws the connection away: the next one is another session.
    pub(super) fn discard(mut self) {
        self.is_sound = false;
    }

    /// Begins a transaction: all that follows, until [`Line::commit`], or nothing.
    pub(super) async fn begin(&mut self) -> Result<(), StorageError> {
        // Whatever is the default here: each statement sees what was committed before it.
        self.batch("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        self.is_open = true;
        Ok(())
    }

    /// Commits it.
    pub(super) async fn commit(&mut self) -> Result<(), StorageError> {
        self.batch("COMMIT").await?;
        self.is_open = false;
        Ok(())
    }

    fn in_time<T>(&mut self, answer: Result<T, Elapsed>) -> Result<T, Trouble> {
        answer.map_err(|_| {
            self.is_late = true;
            let text = "the database did not answer in time: its disk or a standby is slow or away";
            Trouble::Unsure(StorageError::Busy(text.to_owned()))
        })
    }

    fn judge<T>(&mut self, answer: Result<T, Error>) -> Result<T, Trouble> {
        let warned = self.object.as_ref().is_none_or(|object| object.warned.load(Ordering::Acquire));
        match answer {
            Ok(_) if warned => {
                let text = "the wait for a standby was cancelled, so nobody knows where this is";
                Err(Trouble::Unsure(StorageError::Busy(text.to_owned())))
            }
            Ok(done) => {
                self.is_sound = true;
                Ok(done)
            }
            Err(error) => {
                self.is_sound = !spoils(&error);
                Err(Trouble::Said(error))
            }
        }
    }
}

/// One of the addresses of a host. What is looked up is looked up here, for the library waits for an answer of one address for as
/// long as it comes.
async fn connect_to_addresses(config: &Config, tls: &MakeRustlsConnect) -> Result<Connected, String> {
    let time = config.get_connect_timeout().copied().unwrap_or(HOST_TIME);
    first_that_answers(addresses_of(config, time).await?, time, tls).await
}

/// Each is asked for so long, and the next one at once where one fails, or after [`HEAD_START`] beside those that are silent: they may
/// accept and say nothing, and all are asked before whoever waits gives up (RFC 8305 does the same with two families).
async fn first_that_answers(
    all: Vec<Config>,
    time: Duration,
    tls: &MakeRustlsConnect,
) -> Result<Connected, String> {
    let (mut all, mut asked, mut why) = (all.into_iter(), FuturesUnordered::new(), Vec::new());
    let mut is_next = true;
    loop {
        if is_next && let Some(config) = all.next() {
            let tls = tls.clone();
            asked.push(async move {
                match timeout(time, config.connect(tls)).await {
                    Ok(connected) => connected.map_err(|error| whole(&error)),
                    Err(_) => Err(format!("no answer within {time:?}")),
                }
            });
        }
        is_next = tokio::select! {
            biased;
            Some(answer) = asked.next() => match answer {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    why.push(error);
                    true
                }
            },
            () = sleep(HEAD_START), if all.len() > 0 => true,
            else => break,
        };
    }
    why.dedup();
    Err(why.join("; "))
}

/// How long an address has before the next one is asked too.
const HEAD_START: Duration = Duration::from_secs(1);

/// Most addresses of one name that are tried.
const MOST_ADDRESSES: usize = 8;

/// The same host by each of its addresses.
async fn addresses_of(config: &Config, time: Duration) -> Result<Vec<Config>, String> {
    let (Some(Host::Tcp(name)), true) = (config.get_hosts().first(), config.get_hostaddrs().is_empty())
    else {
        return Ok(vec![config.clone()]);
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let found = timeout(time, tokio::net::lookup_host((name.as_str(), port))).await;
    let found = found.map_err(|_| format!("{name} is not found within {time:?}"))?;
    let mut all: Vec<IpAddr> = Vec::new();
    for address in found.map_err(|error| format!("{name} is not found: {error}"))? {
        if !all.contains(&address.ip()) {
            all.push(address.ip());
        }
    }
    let by = |address: IpAddr| {
        let mut one = config.clone();
        one.hostaddr(address);
        one
    };
    Ok(all.into_iter().take(MOST_ADDRESSES).map(by).collect())
}

fn lost() -> Trouble {
    Trouble::Unsure(StorageError::Busy("the connection to the database is gone".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::net::TcpListener;

    /// Q42: the last address of a name is asked before whoever waits gives up, though all before it accept and say nothing; one
    /// that refuses costs no time.
    #[tokio::test]
    async fn addresses_that_hang_hide_no_other() {
        let mut listeners = Vec::new();
        let mut all = Vec::new();
        let mut port = 0;
        for last in 1..=MOST_ADDRESSES as u8 {
            let address = Ipv4Addr::new(127, 0, 17, last);
            let listener = TcpListener::bind((address, port)).await.unwrap();
            port = listener.local_addr().unwrap().port();
            let mut config = Config::new();
            config.host("db").hostaddr(address.into()).port(port).user("mail");
            all.push(config);
            // The second one refuses.
            if last != 2 {
                listeners.push(listener);
            }
        }
        let tls = tls::connector(&Tls::Off).unwrap();
        let asked = tokio::spawn(async move { first_that_answers(all, HOST_TIME, &tls).await.map(|_| ()) });
        let last = listeners.last().unwrap();
        let patience = Duration::from_secs(15);
        timeout(patience, last.accept()).await.expect("the last one is never asked").unwrap();
        let why = timeout(patience, asked).await.unwrap().unwrap().unwrap_err();
        assert!(why.contains("refused") && why.contains("no answer"), "{why}");
    }
}
