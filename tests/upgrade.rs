//! Queue files and configurations of former releases are still read: `tests/releases/VERSION`, made by that version.
//!
//! A new release adds its own: `tests/releases/make VERSION`.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/store.rs"]
mod store;

use activity_milter::{
    config::Config,
    queue::{self, Ask, Counts, HandClock, Settings},
    source::Source,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

fn releases() -> Vec<PathBuf> {
    let all = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/releases")).unwrap();
    let mut all: Vec<_> = all.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

#[tokio::test]
async fn queue_files_of_former_releases_are_delivered() {
    assert!(!releases().is_empty());
    for release in releases() {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path().join("spool");
        fs::create_dir(&spool).unwrap();
        for entry in fs::read_dir(release.join("spool")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, spool.join(path.file_name().unwrap())).unwrap();
        }
        let path = directory.path().join("queue.db");
        fs::copy(release.join("queue.db"), &path).unwrap();
        let clock = Arc::new(HandClock::at(SystemTime::now()));
        let queue = queue::open(&Settings::new(path, spool), clock.clone()).unwrap();
        let counts = queue.counts().await.unwrap();
        assert_eq!(
            Counts { oldest: None, ..counts },
            Counts { waiting: 2, held: 1, oldest: None },
            "{release:?}"
        );
        clock.pass(Duration::from_secs(3600));
        let leased = queue.lease(Ask { room: 10, ..Ask::default() }).await.unwrap();
        assert_eq!(leased.tickets.len(), 2, "{release:?}");
        let mut items = Vec::new();
        for ticket in leased.tickets {
            items.push(queue.open(ticket.item).await.unwrap());
        }
        // One small, one in the spool, both whole.
        let sizes: Vec<bool> = items.iter().map(|item| item.raw.len() > 128 * 1024).collect();
        assert!(sizes.contains(&true) && sizes.contains(&false), "{release:?}");
        for item in items {
            let mut bytes = 0;
            item.raw
                .decode(item.raw.whole(), &mut |piece| {
                    bytes += piece.len() as u64;
                    Ok(())
                })
                .unwrap();
            assert_eq!(bytes, item.raw.len());
        }
    }
}

#[tokio::test]
async fn queues_of_older_schemas_are_taken_over_once() {
    for version in [2, 3, 4] {
        let directory = tempfile::tempdir().unwrap();
        let settings = store::settings(directory.path());
        let left = store::Left::copy(version, directory.path());
        store::take_over(&settings, &left).await;
        // Opened once more: nothing is taken over again.
        let (folder, queue) = (store::folder(&settings), store::open(&settings));
        assert_eq!(store::folder(&settings), folder);
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&folder).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700, "{}: only our user reads mail", folder.display());
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.waiting, counts.held), (0, 3), "schema {version}");
        for row in &left {
            assert!(queue.known(vec![row.key.clone()]).await.unwrap()[0], "{}", row.how);
        }
    }
}

#[test]
fn configurations_of_former_releases_are_read() {
    for release in releases() {
        let text = fs::read_to_string(release.join("activity-milter.toml")).unwrap();
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml");
        let text = text.replace("/etc/activity-milter/directory.toml", &directory.display().to_string());
        Config::from_source(&Source::from_text(&release, text)).map_err(|error| error.to_string()).unwrap();
    }
}
