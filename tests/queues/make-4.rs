//! Makes a queue as schema 4 left it when it was killed. Not built here: see README.md.
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
        text.push_str(&("x".repeat(76) + "\r\n").repeat(1700));
    }
    let head = Head::parse(text.split("\r\n\r\n").next().unwrap().as_bytes()).unwrap();
    let envelope =
        Envelope { sender: None, recipients: Vec::new(), queue_id: None, client: None, login: None, intake: Intake::Milter };
    let parties = tenants.iter().map(|tenant| Parties {
        tenant: TenantRef { id: (*tenant).to_owned(), prefix: (*tenant).to_owned() },
        activity_type: "Email".to_owned(),
        owner: Owner { user_id: "u".to_owned(), address: "a@x.test".to_owned(), name: None },
        participants: Arc::default(),
        people_omitted: 0,
        customer: None,
        project: project.then(|| ProjectRef { id: "p".to_owned(), number: "7".to_owned() }),
    });
    let parties: Vec<_> = parties.collect();
    let mut spill = Spill::new(spool, u64::MAX, &Budget::new(u64::MAX));
    spill.push(text.as_bytes()).await.unwrap();
    let (raw, _) = spill.finish().await.unwrap();
    let body = Reader::whole(text.as_bytes(), LIMITS);
    Parcel::build(parties, &envelope, &head, body, raw, SystemTime::now())
}

#[tokio::test]
async fn make() {
    let to = std::env::var("TO").unwrap();
    let to = Path::new(&to);
    let spool = to.join("spool");
    std::fs::create_dir_all(&spool).unwrap();
    let queue = open(&Settings::new(to.join("queue.db"), spool.clone()), Arc::new(SystemClock)).unwrap();
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
        queue.put(parcel).await.unwrap();
        for tenant in *tenants {
            let end = if *tenant == "t" { end } else { "waiting" };
            writeln!(rows, "{id} {tenant} {} {end}", keys[*tenant]).unwrap();
        }
        if *end == "waiting" {
            continue;
        }
        let leased = queue.lease(Ask { room: 10, ..Ask::default() }).await.unwrap();
        for ticket in leased.tickets {
            let wanted = queue.open(ticket.item).await.unwrap().key == keys["t"];
            let item = ticket.item;
            let finished = match *end {
                _ if !wanted => End::Unused,
                "leased" => continue,
                "taken" => End::Taken,
                "attempted" => {
                    End::Again { after: Duration::from_secs(2 * 3600), counts: true, reason: "503".to_owned() }
                }
                _ => End::Held { reason: "400".to_owned() },
            };
            assert_eq!(queue.finish(vec![(ticket, finished)]).await.unwrap(), [true]);
            if wanted && *end == "told" {
                queue.told(vec![item]).await.unwrap();
            }
        }
    }
    std::fs::write(to.join("rows.txt"), rows).unwrap();
    std::process::abort(); // as it was killed
}
