//! What each stage of a message takes: time, processor, log, disk. `docs/scale.md` has the figures, and the model counts with
//! them as they stand there.

use crate::{
    database::Cluster,
    number,
    pair::Pair,
    rates::{Mail, Node, deliveries, puts, runtime},
};
use activity_milter::{
    backend::{Backend, Delivery, Fleeting, HttpBackend, HttpSettings, Outcome},
    queue::{Ask, End, Queue, Ticket},
    sink,
    web::{Client, ClientSettings},
};
use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

/// Processor that a process and all below it have used, those that have ended too.
fn of_tree(pid: &str) -> f64 {
    let of = |pid: &str, ended: bool| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let parent = fields.get(1).copied().unwrap_or_default().to_owned();
        let ticks: f64 = fields
            .iter()
            .skip(11)
            .take(if ended { 4 } else { 2 })
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum();
        (parent, ticks / 100.0)
    };
    let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let (parent, used) = of(&name, false);
        (parent == pid).then_some(used)
    });
    of(pid, true).1 + children.sum::<f64>()
}

fn of_cluster(cluster: &Cluster) -> f64 {
    let pid = fs::read_to_string(cluster.directory.join("data/postmaster.pid")).unwrap();
    of_tree(pid.lines().next().unwrap())
}

/// Everything that is used up, so far.
#[derive(Clone, Copy)]
struct Used {
    node: f64,
    primary: f64,
    standby: f64,
    log: f64,
    syncs: f64,
    commits: f64,
}

impl Used {
    fn now(pair: &Pair) -> Self {
        // The server adds up its numbers now and then.
        std::thread::sleep(Duration::from_millis(1500));
        let number = |sql| pair.number(sql) as f64;
        Self {
            node: of_tree(&std::process::id().to_string()),
            primary: of_cluster(pair.primary),
            standby: of_cluster(pair.standby),
            log: number("SELECT (pg_current_wal_lsn() - '0/0')::int8"),
            syncs: number("SELECT wal_sync FROM pg_stat_wal"),
            commits: number("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"),
        }
    }
}

/// Says what a message used, of so many.
fn say(what: &str, before: Used, after: Used, messages: u64) {
    let each = |part: fn(&Used) -> f64| (part(&after) - part(&before)) / messages as f64;
    println!("| {what}: processor of the node, us | {:.0} |", 1e6 * each(|used| used.node));
    println!("| {what}: processor of the primary, us | {:.0} |", 1e6 * each(|used| used.primary));
    println!("| {what}: processor of the standby, us | {:.0} |", 1e6 * each(|used| used.standby));
    println!("| {what}: log, bytes | {:.0} |", each(|used| used.log));
    println!("| {what}: syncs of the log | {:.3} |", each(|used| used.syncs));
    println!("| {what}: commits | {:.3} |", each(|used| used.commits));
}

fn say_time(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / times.len() as f64;
    let part = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("| {what}: mean, us | {:.0} |", 1e6 * mean);
    println!("| {what}: variation | {:.2} |", variance / (mean * mean));
    println!("| {what}: 99 %, us | {:.0} |", 1e6 * part(99));
}

/// All of them.
pub fn stages() {
    let count = number("COUNT", 20_000);
    let (runtime, pair, mail) = (runtime(), Pair::new(), Arc::new(Mail::new()));
    let nodes = [Node::new(Some(pair.server()))];
    // Warm, and the first day's tables are made.
    runtime.block_on(puts(&nodes, &mail, count / 4, 16));
    runtime.block_on(deliveries(&nodes, count / 4, 64));
    println!("| What | Measured |\n| --- | --- |");
    fit(&nodes, &mail, count);
    let start = Used::now(&pair);
    runtime.block_on(puts(&nodes, &mail, count, 64));
    let between = Used::now(&pair);
    say("a put", start, between, count);
    let size = "SELECT sum(pg_total_relation_size(oid))::int8 FROM pg_class
                WHERE relnamespace = 'activity_milter'::regnamespace AND relkind = 'r' AND relname LIKE 'payload_%'";
    let kept = pair.number(size) as f64
        / pair.number("SELECT count(*) FROM activity_milter.payload WHERE part = 0") as f64;
    println!("| a day's table: bytes of a message | {kept:.0} |");
    let keys = "SELECT pg_total_relation_size('activity_milter.key') / count(*) FROM activity_milter.key";
    println!("| its key, for seven days: bytes | {} |", pair.number(keys));
    let between = Used::now(&pair);
    runtime.block_on(deliveries(&nodes, count, 64));
    say("a delivery", between, Used::now(&pair), count);
    runtime.block_on(alone(&nodes[0], &mail));
    runtime.block_on(posts(&nodes[0], &mail));
}

/// A turn of puts is so long, and so much longer for each message in it: the line that is nearest to what was seen.
fn fit(nodes: &[Node], mail: &Arc<Mail>, count: u64) {
    let runtime = runtime();
    let mut seen = Vec::new();
    for callers in [1, 2, 4, 8, 16, 32, 64, 128] {
        let part = (count * callers / 64).clamp(count / 20, count);
        let rate = runtime.block_on(puts(nodes, mail, part, usize::try_from(callers).unwrap())).rate;
        runtime.block_on(deliveries(nodes, part, 64));
        let (turns, pieces) = (callers.min(2) as f64, (callers as f64 / 2.0).max(1.0));
        seen.push((pieces, turns * pieces / rate));
        println!("| puts/s, {callers} at once | {rate:.0} |");
    }
    let all = seen.len() as f64;
    let [x, y] = [
        seen.iter().map(|seen| seen.0).sum::<f64>() / all,
        seen.iter().map(|seen| seen.1).sum::<f64>() / all,
    ];
    let each = seen.iter().map(|seen| (seen.0 - x) * (seen.1 - y)).sum::<f64>()
        / seen.iter().map(|seen| (seen.0 - x).powi(2)).sum::<f64>();
    println!("| a turn of puts: base, us | {:.0} |", 1e6 * (y - each * x));
    println!("| a turn of puts: each message, us | {:.0} |", 1e6 * each);
}

async fn ticket(queue: &Arc<dyn Queue>) -> Ticket {
    queue.lease(Ask { room: 1, ..Ask::default() }).await.unwrap().tickets.remove(0)
}

/// Each step for itself, while nothing else is done.
async fn alone(node: &Node, mail: &Arc<Mail>) {
    const STEPS: usize = 500;
    let put = puts(std::slice::from_ref(node), mail, STEPS as u64, 1).await;
    say_time("a put alone", put.times.iter().map(Duration::as_secs_f64).collect());
    let queue = &node.queue;
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..STEPS {
        let began = Instant::now();
        let ticket = ticket(queue).await;
        let leased = Instant::now();
        queue.open(ticket.item).await.unwrap();
        let opened = Instant::now();
        queue.finish(vec![(ticket, End::Taken)]).await.unwrap();
        let all = [leased - began, opened - leased, opened.elapsed()];
        times.iter_mut().zip(all).for_each(|(times, took)| times.push(took.as_secs_f64()));
    }
    for (what, times) in ["a lease alone", "an open alone", "a finish alone"].iter().zip(times) {
        say_time(what, times);
    }
}

/// What the reference backend takes on this machine, by HTTP without TLS: it syncs each activity, as a business system does.
async fn posts(node: &Node, mail: &Arc<Mail>) {
    const POSTS: u64 = 500;
    let data = tempfile::tempdir_in("/tmp").unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let settings = sink::Settings { data: data.path().to_owned(), ..Default::default() };
    let sink = tokio::spawn(sink::run(listener, settings, std::future::pending()));
    let client = Client::new(&ClientSettings::new(url.parse().unwrap(), Duration::from_secs(30))).unwrap();
    let settings = HttpSettings {
        timeout: Duration::from_secs(30),
        signing_secret_file: None,
        include_raw_message: false,
    };
    let backend = HttpBackend::new(Arc::new(client), settings).unwrap();
    puts(std::slice::from_ref(node), mail, POSTS, 16).await;
    let (mut times, before) = (Vec::new(), of_tree(&std::process::id().to_string()));
    for _ in 0..POSTS {
        let ticket = ticket(&node.queue).await;
        let item = node.queue.open(ticket.item).await.unwrap();
        let delivery = Delivery {
            activity: item.activity,
            json: item.json,
            cuts: item.cuts,
            raw: item.raw,
            replay: false,
        };
        let began = Instant::now();
        let outcome = backend.deliver(&delivery, &Fleeting::default()).await;
        times.push(began.elapsed().as_secs_f64());
        assert_eq!(outcome, Outcome::Taken);
        node.queue.finish(vec![(ticket, End::Taken)]).await.unwrap();
    }
    let used = of_tree(&std::process::id().to_string()) - before;
    println!(
        "| a POST: processor of the node, the sink and the rest of the delivery, us | {:.0} |",
        1e6 * used / POSTS as f64
    );
    say_time("a POST to the sink", times);
    sink.abort();
}
