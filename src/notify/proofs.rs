//! What notices promise, by a real queue, a real program as sendmail, and a clock that is handed in.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use super::*;
use crate::queue::{self, Settings as QueueSettings, SystemClock};
use rusqlite::{Connection, params};
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

const MINUTE: Duration = Duration::from_secs(60);

struct World {
    notices: Notices,
    other: Connection,
    start: Instant,
    directory: tempfile::TempDir,
}

/// A queue, and a sendmail that does what `script` says: `$to` is the recipient, `mail` the mail.
fn world(script: &str) -> World {
    let directory = tempfile::tempdir().unwrap();
    let of_queue = QueueSettings::new(directory.path().join("queue.db"), directory.path().join("spool"));
    let queue = queue::open(&of_queue, Arc::new(SystemClock)).unwrap();
    let other = Connection::open(&of_queue.path).unwrap();
    let settings = Settings {
        to: To::Owner,
        from: "crm@x.test".parse().unwrap(),
        by: By::Sendmail(directory.path().join("sendmail")),
        subject: SUBJECT.to_owned(),
        text: TEXT.to_owned(),
    };
    let world = World { notices: Notices::new(queue, settings), other, start: Instant::now(), directory };
    world.sendmail(script);
    world
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Written beside and moved: a file that is open for writing cannot be run.
    fn sendmail(&self, script: &str) {
        let text = format!(
            "#!/bin/sh\ncd {}\nfor to; do :; done\necho \"$to\" >> tried\nmail() {{ cat > mail.$$; cat mail.$$ >> sent; \
             echo \"to $to\" >> sent; }}\n{script}\n",
            self.directory.path().display()
        );
        fs::write(self.path("new"), text).unwrap();
        fs::set_permissions(self.path("new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(self.path("new"), self.path("sendmail")).unwrap();
    }

    /// Holds activities of an owner.
    fn hold(&mut self, owner: &str, count: usize) {
        let activity = serde_json::json!({
            "key": format!("b3:{}", "0".repeat(64)), "subject": format!("for {owner}"), "sent_at": "2026-11-23T18:00:00Z",
            "owner": {"user_id": "u", "address": owner, "name": null}, "message_id": null,
        });
        let hold = self.other.transaction().unwrap();
        for _ in 0..count {
            hold.execute(
                "INSERT INTO item (key, tenant, state, due, accepted_at, activity, reason)
                 VALUES (randomblob(32), 't', 1, 1, 1, ?1, '422')",
                params![activity.to_string()],
            )
            .unwrap();
        }
        hold.commit().unwrap();
    }

    /// What happens at a time after the start.
    async fn tell(&mut self, after: Duration) {
        self.notices.tell(self.start + after, &CancellationToken::new()).await;
    }

    /// Recipients for whom sendmail was run.
    fn tried(&self) -> Vec<String> {
        let tried = fs::read_to_string(self.path("tried")).unwrap_or_default();
        tried.lines().map(str::to_owned).collect()
    }

    /// Recipients of mails, and how many activities each lists.
    fn sent(&self) -> Vec<(String, usize)> {
        let sent = fs::read_to_string(self.path("sent")).unwrap_or_default();
        let (mut mails, mut listed) = (Vec::new(), 0);
        for line in sent.lines() {
            listed += usize::from(line.starts_with("* for"));
            if let Some(to) = line.strip_prefix("to ") {
                mails.push((to.to_owned(), std::mem::take(&mut listed)));
            }
        }
        mails
    }

    async fn untold(&self) -> usize {
        self.notices.queue.untold(None, 10_000).await.unwrap().len()
    }
}

fn mails(of: &[(&str, usize)]) -> Vec<(String, usize)> {
    of.iter().map(|(to, count)| ((*to).to_owned(), *count)).collect()
}

/// P24: another program holds the database.
#[tokio::test]
async fn what_cannot_be_noted_is_not_sent_again() {
    let mut world = world("mail");
    world.hold("a@x.test", 3);
    world.hold("b@x.test", 1);
    world.other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for minute in 0..2 {
        world.notices.schedule.held(world.start + minute * MINUTE);
        world.tell(minute * MINUTE + Duration::from_secs(30)).await;
    }
    let once = mails(&[("a@x.test", 3), ("b@x.test", 1)]);
    assert_eq!((world.sent(), world.untold().await), (once.clone(), 4));
    world.other.execute_batch("COMMIT").unwrap();
    world.tell(4 * MINUTE).await;
    assert_eq!((world.untold().await, world.notices.schedule.owed()), (0, vec![]));
    world.hold("a@x.test", 1);
    world.notices.schedule.held(world.start + 5 * MINUTE);
    world.tell(6 * MINUTE).await;
    assert_eq!((world.sent(), world.untold().await), ([once, mails(&[("a@x.test", 1)])].concat(), 0));
}

#[tokio::test]
async fn what_could_not_be_noted_is_noted_at_the_end() {
    let mut world = world("mail");
    world.hold("a@x.test", 1);
    world.notices.schedule.not_noted(world.start);
    let (queue, stop) = (Arc::clone(&world.notices.queue), CancellationToken::new());
    world.notices.tell(world.start, &CancellationToken::new()).await;
    assert_eq!((world.sent().len(), world.untold().await), (1, 1));
    stop.cancel();
    world.notices.until(stop).await;
    assert_eq!(queue.untold(None, 10).await.unwrap().len(), 0);
}

#[tokio::test]
async fn one_recipient_s_trouble_delays_no_other() {
    let mut world = world("case $to in a@*) exit 75;; esac; mail");
    // More than is read at once, before and behind.
    for (owner, count) in [("a@x.test", 1100), ("b@x.test", 1), ("a@x.test", 10), ("c@x.test", 2)] {
        world.hold(owner, count);
    }
    world.tell(Duration::ZERO).await;
    let told = mails(&[("b@x.test", 1), ("c@x.test", 2)]);
    assert_eq!(
        (world.tried(), world.sent()),
        (["a@x.test", "b@x.test", "c@x.test"].map(str::to_owned).to_vec(), told)
    );
    // Nobody runs it for A before a minute has passed, whatever is new.
    world.hold("b@x.test", 1);
    world.notices.schedule.held(world.start);
    world.tell(MINUTE / 2).await;
    assert_eq!((world.tried().len(), world.untold().await), (4, 1110));
    world.tell(MINUTE - Duration::from_secs(1)).await;
    assert_eq!(world.tried().len(), 4);
    world.sendmail("mail");
    world.tell(MINUTE * 2).await;
    let told = mails(&[("b@x.test", 1), ("a@x.test", 500), ("a@x.test", 500), ("a@x.test", 110)]);
    assert_eq!((world.sent()[2..].to_vec(), world.untold().await), (told, 0));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_looked_for_once_a_minute() {
    let mut world = world("mail");
    fs::rename(world.path("sendmail"), world.path("away")).unwrap();
    for owner in ["a@x.test", "b@x.test"] {
        world.hold(owner, 1);
    }
    world.tell(Duration::ZERO).await;
    fs::rename(world.path("away"), world.path("sendmail")).unwrap();
    world.notices.schedule.held(world.start);
    world.tell(MINUTE - Duration::from_secs(1)).await;
    assert_eq!(world.tried().len(), 0);
    world.tell(MINUTE + Duration::from_secs(5)).await;
    assert_eq!((world.sent().len(), world.untold().await), (2, 0));
}

#[tokio::test]
async fn a_program_that_hangs_takes_its_time_once() {
    let mut world = world("case $to in c@*) mail;; *) exec sleep 100;; esac");
    world.notices.patience = Duration::from_millis(300);
    for owner in ["a@x.test", "b@x.test", "c@x.test"] {
        world.hold(owner, 1);
    }
    for (at, tried) in [(0, "a"), (70, "ab"), (140, "abca"), (210, "abcab")] {
        // All that is due by now: a look at all, and one for each suspect until the way breaks off.
        for after in 0..3 {
            world.tell(Duration::from_secs(at + after)).await;
        }
        assert_eq!(world.tried().iter().map(|to| &to[..1]).collect::<String>(), tried, "after {at} seconds");
    }
    assert_eq!(world.sent(), mails(&[("c@x.test", 1)]));
}

#[tokio::test]
async fn what_never_can_be_told_is_logged_and_blocks_nobody() {
    let mut world = world("mail");
    for owner in ["no address", "b@x.test", "b@x.test", "b@x.test"] {
        world.hold(owner, 1);
    }
    for (row, damage) in [(2, "activity = '{'"), (3, "activity = x'ff'")] {
        world.other.execute(&format!("UPDATE item SET {damage} WHERE id = {row}"), []).unwrap();
    }
    world.tell(Duration::ZERO).await;
    assert_eq!((world.sent(), world.untold().await), (mails(&[("b@x.test", 1)]), 0));
    assert_eq!(world.notices.schedule.next(), None);
}

/// Who asks us to stop waits for the mail under way: it would be sent once more after the start.
#[tokio::test]
async fn a_stop_during_a_mail_tells_nobody_twice() {
    let mut world = world("mail; sleep 1");
    world.hold("a@x.test", 1);
    let (queue, settings) = (Arc::clone(&world.notices.queue), world.notices.settings.clone());
    let stop = CancellationToken::new();
    let World { notices, directory, .. } = world;
    let running = tokio::spawn(notices.until(stop.clone()));
    let sent = directory.path().join("sent");
    while !sent.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    running.await.unwrap();
    Notices::new(queue, settings).tell(Instant::now(), &CancellationToken::new()).await;
    let sent = fs::read_to_string(sent).unwrap();
    assert_eq!(sent.lines().filter(|line| line.starts_with("to ")).count(), 1, "{sent}");
}

/// An MTA that has all of a mail may take long to say so (RFC 5321, section 4.5.3.2.6).
#[tokio::test]
async fn a_slow_end_of_a_mail_is_waited_for() {
    let mut world = world("mail; exec sleep 1");
    world.notices.patience = Duration::from_millis(300);
    world.hold("a@x.test", 1);
    for at in [0, 130, 400, 1000] {
        world.tell(Duration::from_secs(at)).await;
    }
    assert_eq!(world.sent().len(), 1);
}
