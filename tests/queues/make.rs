//! Makes a queue as an older version left it when it was killed. Not built here: see README.md.
//!
//! In: `TO`, a directory. Out: `queue.db`, `spool/` and `rows.txt` there: number of the message, tenant, key, how it stood.

#![allow(clippy::unwrap_used)] // a panic is the answer

use activity_milter::{activity::*, mail::*, queue::*};
use std::{
    collections::HashMap,
    fmt::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

async fn parcel(spool: &Path, id: usize, tenants: &[&str], project: bool, large: bool) -> Parcel {
    let kind = if large { "image/png" } else { "text/plain" };
    let mut text = format!("Subject: s\r\nMessage-ID: <{id}@x>\r\nContent-Type: {kind}\r\n\r\nhello {id}\r\n");
    if large {
        text.push_str(&"x".repeat(76).to_string().add_lines(1700));
    }
    let head = Head::parse(text.split("\r\n\r\n").next().unwrap().as_bytes()).unwrap();
    let envelope =
        Envelope { sender: None, recipients: Vec::new(), queue_id: None, client: None, login: None, intake: Intake::Milter };
    let parties = tenants.iter().map(|tenant| Parties {
        tenant: TenantRef { id: (*tenant).to_owned(), prefix: (*tenant).to_owned() },
        activity_type: "Email".to_owned(),
        owner: Owner { user_id: "u".to_owned(), address: "a@x.test".to_owned(), name: None },
        participants: Default::default(),
        people_omitted: 0, // schema 3
        customer: None,
        project: project.then(|| ProjectRef { id: "p".to_owned(), number: "7".to_owned() }),
    });
    let parties: Vec<_> = parties.collect();
    let mut spill = Spill::new(spool, u64::MAX, &Budget::new(u64::MAX));
    spill.push(text.as_bytes()).await.unwrap();
    let (raw, _) = spill.finish().await.unwrap(); // schema 3
    let body = Reader::whole(text.as_bytes(), LIMITS); // schema 3
    Parcel::build(parties, &envelope, &head, body, raw, SystemTime::now()) // schema 3
    // schema 2: let raw = spill.finish().await.unwrap();
    // schema 2: Parcel::build(parties, &envelope, &head, raw, SystemTime::now()).unwrap()
}

trait AddLines { fn add_lines(self, lines: usize) -> String; }
impl AddLines for String {
    fn add_lines(self, lines: usize) -> String { (self + "\r\n").repeat(lines) }
}

#[tokio::test]
async fn make() {
    let to = std::env::var("TO").unwrap();
    let to = Path::new(&to);
    let spool = to.join("spool");
    std::fs::create_dir_all(&spool).unwrap();
    let settings = Settings { path: to.join("queue.db"), spool: spool.clone(), max_items: 1000 };
    let queue = Arc::new(Queue::open(&settings, SystemTime::now()).unwrap());
    let hour = Duration::from_secs(3600);
    let both: &[&str] = &["t", "u"];
    let one: &[&str] = &["t"];
    // Number, tenants, with a project, large, how the activity of t shall end.
    let all: &[(usize, &[&str], bool, bool, &str)] = &[
        (1, one, false, false, "attempted"),
        (2, one, false, false, "told"),
        (3, one, false, false, "held"),
        (4, both, false, false, "told"), // shared, one of it held
        (5, both, false, true, "taken"), // shared file, one of it delivered
        (6, one, false, false, "taken"),
        (7, one, true, false, "taken"), // covers the bare address
        (8, one, false, false, "leased"),
        (9, one, false, false, "waiting"),
        (10, one, false, true, "waiting"),
        (11, both, false, false, "waiting"),
    ];
    let mut rows = String::new();
    for (id, tenants, project, large, end) in all {
        let parcel = parcel(&spool, *id, tenants, *project, *large).await;
        let keys: HashMap<String, Key> =
            parcel.activities.iter().map(|activity| (activity.tenant.id.clone(), activity.key.clone())).collect();
        for key in &parcel.covered {
            writeln!(rows, "{id} t {key} covered").unwrap();
        }
        queue.put(parcel, SystemTime::now()).await.unwrap();
        for tenant in *tenants {
            let end = if *tenant == "t" { end } else { "waiting" };
            writeln!(rows, "{id} {tenant} {} {end}", keys[*tenant]).unwrap();
        }
        if *end == "waiting" { continue; }
        let now = SystemTime::now() + hour / 2; // what was tried again is not due before an hour
        let (leases, _) = queue.take(10, Turn::default(), now, hour).await.unwrap();
        for lease in leases {
            let wanted = lease.activity.key == keys["t"];
            match *end {
                _ if !wanted => queue.release(vec![lease.id], SystemTime::now()).await.unwrap(),
                "leased" => {}
                "taken" => queue.finish(lease.id, Finish::Taken, now).await.unwrap(),
                "attempted" => {
                    let again = Finish::Again { due: now + hour * 2, counts: true, reason: "503".to_owned() };
                    queue.finish(lease.id, again, now).await.unwrap();
                }
                end => {
                    queue.finish(lease.id, Finish::Held { reason: "400".to_owned() }, now).await.unwrap();
                    if end == "told" { queue.told(vec![lease.id]).await.unwrap(); }
                }
            }
        }
    }
    std::fs::write(to.join("rows.txt"), rows).unwrap();
    std::process::abort(); // as it was killed
}
