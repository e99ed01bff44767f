//! Every sync point: what a power cut may leave of the queue's folder at each sync of a run, opened and looked at.
//!
//! A run of the service is written down call by call (`syncs/play.rs`, `syncs/record.rs`), and so is the place in it where each
//! message was answered 250. Then the folder is laid out as it may be found (`syncs/disk.rs`) when the power is cut at any sync:
//! with nothing that was not synced, with all of it, and with parts of it, drawn by a seed; and the queue is opened there and must have
//! what was promised (`syncs/judge.rs`). That the judgement can fail is a test too: with any one kind of sync left out it does.
//!
//! `make torture-syncs` does it with 1,000 messages and 10,000 parts, and prints the figures of docs/syncs.md.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/store.rs"]
mod store;
#[path = "support/mod.rs"]
mod support;
mod syncs {
    pub mod disk;
    pub mod judge;
    pub mod play;
    pub mod record;
}

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs,
    path::Path,
    process::Command,
    str::FromStr,
    sync::{LazyLock, Mutex},
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use syncs::{
    disk::{Disk, Unsynced, Variant},
    judge::{Care, Judge, Moment},
    play::{Book, begin, play},
    record::{Place, Record, What},
};

/// Threads that open images.
const WORKERS: usize = 2;

/// Each so manieth image is looked at closely.
const CLOSE_EVERY: usize = 10;

/// Each so manieth image is shown to the program too.
const SHOWN_EVERY: usize = 250;

/// Faults that are told.
const TOLD: usize = 10;

fn number<T: FromStr<Err: Debug>>(name: &str, usual: T) -> T {
    // `make` gives those that nobody set as nothing.
    let given = std::env::var(name).ok().filter(|given| !given.is_empty());
    given.map_or(usual, |given| given.parse().unwrap())
}

/// In memory where that can be: what is lost here is lost by the model, and syncs of a disk would only take time.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A run, and what was said and delivered in it.
struct Run {
    record: Record,
    book: Book,
    /// Where syncs begin, and the end.
    syncs: Vec<Place>,
    /// From here on what is delivered is kept.
    keeps: Place,
}

impl Run {
    fn of(messages: usize) -> Self {
        let place = directory();
        let (record, book) = play(messages, place.path());
        assert_eq!(record.said.len(), messages, "each 250 is in the record");
        let syncs = syncs_of(&record);
        let last = record.lives[record.lives.len() - 1];
        let keeps = *syncs.iter().find(|place| **place >= last).unwrap();
        Self { record, book, syncs, keeps }
    }

    /// A start with what a cut has left, and what had been said and delivered by then.
    fn after(
        &self,
        (cut, variant): (Place, Variant),
        gone: &BTreeMap<String, Place>,
    ) -> (Self, BTreeMap<String, Place>) {
        let place = directory();
        let mut disk = Disk::of(&self.record, &place.path().join("store"), None);
        disk.go_to(cut);
        disk.lay(variant, &place.path().join("disk"));
        let mut record = begin(place.path());
        let said = self.record.said.iter().filter(|(_, said)| **said < cut);
        record.said = said.map(|(number, _)| (*number, 0)).collect();
        let mut book = self.book.clone();
        for activity in book.values_mut() {
            activity.taken = activity.taken.filter(|taken| *taken <= self.record.times[cut]);
        }
        let gone = gone.iter().filter(|(_, gone)| **gone < cut).map(|(key, _)| (key.clone(), 0)).collect();
        let (syncs, keeps) = (syncs_of(&record), Place::MAX);
        (Self { record, book, syncs, keeps }, gone)
    }

    /// What there is of each kind.
    fn told(&self) -> String {
        let mut kinds = BTreeMap::<String, usize>::new();
        for call in &self.record.calls {
            let of = |inode: &usize| {
                let path = Path::new(&self.record.inodes[*inode].1);
                let end = path.extension().map_or("nameless", |end| end.to_str().unwrap());
                if self.record.inodes[*inode].0 { "folder".to_owned() } else { end.to_owned() }
            };
            let kind = match &call.what {
                What::Write { inode, .. } => format!("writes to {}", of(inode)),
                What::Resize { inode, .. } => format!("resizes of {}", of(inode)),
                What::Name { inode: Some(_), .. } => "names given".to_owned(),
                What::Name { inode: None, .. } => "names taken".to_owned(),
                What::Move { .. } => "names changed".to_owned(),
                What::Sync(inode) => format!("syncs of {}", of(inode)),
            };
            let is_begun = matches!(call.what, What::Write { offset: 0, .. }) && kind.ends_with("-wal");
            *kinds.entry("logs begun".to_owned()).or_default() += usize::from(is_begun);
            *kinds.entry(kind).or_default() += 1;
        }
        kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
    }

    /// Where the power is cut: at each sync with nothing of what was not synced and with all of it, and so often with a part, at a
    /// sync or between it and the one before.
    fn cuts(&self, subsets: usize, seed: u64) -> Vec<(Place, Variant)> {
        let fixed =
            self.syncs.iter().flat_map(|place| [(*place, Variant::Nothing), (*place, Variant::Everything)]);
        let mut cuts: Vec<(Place, Variant)> = fixed.collect();
        let mut random = fastrand::Rng::with_seed(seed);
        for subset in 0..subsets {
            let at = subset % self.syncs.len();
            let before = at.checked_sub(1).map_or(0, |before| self.syncs[before]);
            let place = match random.bool() {
                true => self.syncs[at],
                false => random.usize(before + 1..=self.syncs[at].max(before + 1)),
            };
            cuts.push((place, Variant::Some(random.u64(..))));
        }
        cuts.sort_by_key(|(place, _)| *place);
        cuts
    }

    /// Opens what each cut leaves; what is wrong, and what is there of the cuts that leave nothing.
    fn look(
        &self,
        cuts: &[(Place, Variant)],
        gone: &BTreeMap<String, Place>,
        unsynced: Option<Unsynced>,
    ) -> Looked {
        let looked = Mutex::new(Looked::default());
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let looked = &looked;
                scope.spawn(move || {
                    let place = directory();
                    let mut disk = Disk::of(&self.record, &place.path().join("store"), unsynced);
                    let mut judge = Judge::of(&self.book);
                    for (at, (cut, variant)) in cuts.iter().enumerate().skip(worker).step_by(WORKERS) {
                        if looked.lock().unwrap().faults.len() >= TOLD {
                            return;
                        }
                        disk.go_to(*cut);
                        let one =
                            self.look_at(&mut disk, &mut judge, place.path(), at, (*cut, *variant), gone);
                        let mut looked = looked.lock().unwrap();
                        looked.images += 1;
                        looked.most = looked.most.max(disk.pending());
                        match one {
                            Ok(there) if *variant == Variant::Nothing => {
                                drop(looked.there.insert(*cut, there))
                            }
                            Ok(_) => {}
                            Err(fault) => looked.faults.push(fault),
                        }
                    }
                });
            }
        });
        looked.into_inner().unwrap()
    }

    fn look_at(
        &self,
        disk: &mut Disk<'_>,
        judge: &mut Judge<'_>,
        place: &Path,
        at: usize,
        (cut, variant): (Place, Variant),
        gone: &BTreeMap<String, Place>,
    ) -> Result<BTreeSet<String>, String> {
        let image = place.join("image");
        disk.lay(variant, &image);
        let moment = Moment {
            place: cut,
            time: self.record.times[cut],
            said: &self.record.said,
            gone,
            keeps: self.keeps,
        };
        let care = if at.is_multiple_of(CLOSE_EVERY) { Care::Close } else { Care::Usual };
        let sync = self.syncs.partition_point(|sync| *sync < cut);
        let where_ =
            |what: String| format!("at sync {sync} of {}, line {cut}, {variant:?}: {what}", self.syncs.len());
        let there = judge.judge(&image, moment, care).map_err(where_);
        fs::remove_dir_all(&image).unwrap();
        let there = there?;
        if at % SHOWN_EVERY == 1 && !there.is_empty() {
            disk.lay(variant, &image);
            let shown = shown(&image, &there).map_err(where_);
            fs::remove_dir_all(&image).unwrap();
            shown?;
        }
        Ok(there)
    }
}

/// Where syncs begin, and the end.
fn syncs_of(record: &Record) -> Vec<Place> {
    let syncs = record.calls.iter().filter(|call| matches!(call.what, What::Sync(_)));
    let mut syncs: Vec<Place> = syncs.map(|call| call.begin).collect();
    syncs.push(record.times.len() - 1);
    syncs
}

/// What was found of all cuts.
#[derive(Debug, Default)]
struct Looked {
    images: usize,
    /// Most calls that were not synced at a time.
    most: usize,
    faults: Vec<String>,
    there: BTreeMap<Place, BTreeSet<String>>,
}

impl Looked {
    /// Where each activity was durably gone: it had been there durably before.
    fn gone(&self) -> BTreeMap<String, Place> {
        let (mut seen, mut gone) = (BTreeSet::new(), BTreeMap::new());
        for (place, there) in &self.there {
            for key in seen.difference(there) {
                let _: &mut Place = gone.entry(String::clone(key)).or_insert(*place);
            }
            seen.extend(there.iter().cloned());
        }
        gone
    }
}

/// The program lists what is there.
fn shown(image: &Path, there: &BTreeSet<String>) -> Result<(), String> {
    let configuration = image.join("am.toml");
    let text = format!(
        "integration_domains = [\"severamail.test\"]\n[milter]\nlisten = \"unix:{0}/milter\"\n[directory]\npath = \"{0}/none\"\n[backend]\n\
         url = \"http://127.0.0.1:9/\"\n[queue]\npath = \"{0}/state/queue.db\"\nspool = \"{0}/state/spool\"\n",
        image.display()
    );
    fs::write(&configuration, text).unwrap();
    let mut command = Command::new(support::world::program());
    command.arg("--config").arg(configuration).args(["queue", "list", "--json", "--limit", "0"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let listed: serde_json::Value = serde_json::from_str(&said)
        .map_err(|_| format!("the program says {said}{}", String::from_utf8_lossy(&output.stderr)))?;
    let listed: BTreeSet<String> =
        listed.as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect();
    if listed == *there { Ok(()) } else { Err(format!("the program lists {listed:?}, not {there:?}")) }
}

fn every_sync(run: &Run, subsets: usize, starts: usize) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("SEED", u64::from(now.subsec_nanos()));
    println!("SEED={seed}");
    let began = Instant::now();
    let cuts = run.cuts(subsets, seed);
    // First what is there at least, so that it is known from where on what is gone must stay so.
    let is_least = |cut: &(Place, Variant)| cut.1 == Variant::Nothing;
    let (least, rest): (Vec<_>, Vec<_>) = cuts.into_iter().partition(is_least);
    let first = run.look(&least, &BTreeMap::new(), None);
    assert_eq!(first.faults, Vec::<String>::new());
    let gone = first.gone();
    let back = first
        .there
        .iter()
        .find(|(place, there)| there.iter().any(|key| gone.get(key).is_some_and(|gone| gone < place)));
    assert_eq!(back, None, "something has come back");
    let second = run.look(&rest, &gone, None);
    println!(
        "{} messages, {} activities, of which {} were durably gone at the end; {} syncs; {} images, {} of them of a part; at most {} \
         calls were not synced; {:.0} s\n{}",
        run.record.said.len(),
        run.book.len(),
        gone.len(),
        run.syncs.len() - 1,
        first.images + second.images,
        subsets,
        first.most.max(second.most),
        began.elapsed().as_secs_f64(),
        run.told(),
    );
    assert_eq!(second.faults, Vec::<String>::new());
    assert!(gone.len() > run.book.len() / 2);
    every_sync_of_starts(run, starts, seed, &rest, &gone);
}

/// The power is cut once more while the service starts with what the first cut has left.
fn every_sync_of_starts(
    run: &Run,
    starts: usize,
    seed: u64,
    cuts: &[(Place, Variant)],
    gone: &BTreeMap<String, Place>,
) {
    let (mut syncs, mut images) = (0, 0);
    for at in 0..starts {
        let cut = cuts[(at + 1) * cuts.len() / (starts + 1)];
        let (again, gone) = run.after(cut, gone);
        let looked = again.look(&again.cuts(again.syncs.len(), seed.wrapping_add(at as u64)), &gone, None);
        assert_eq!(looked.faults, Vec::<String>::new(), "after {cut:?}");
        (syncs, images) = (syncs + again.syncs.len() - 1, images + looked.images);
    }
    println!("{starts} starts after a cut: {syncs} syncs; {images} images");
    assert!(syncs > starts);
}

static SHORT: LazyLock<Run> = LazyLock::new(|| Run::of(60));

/// Q1, Q2, Q3, Q4, Q18, Q34, Q36.
#[test]
fn every_sync_of_sixty_messages() {
    every_sync(&SHORT, 300, 3);
}

/// What is not synced is missed.
#[test]
fn each_kind_of_sync_is_needed() {
    let first = *SHORT.record.said.values().min().unwrap();
    let folder: fn(&str) -> bool = |path| path.contains("/spool/") && !path.ends_with(".eml");
    let kinds: [(&str, Unsynced); 6] = [
        ("of the log", (|path| path.ends_with("queue.db-wal"), first)),
        ("of the database, to which the log is copied", (|path| path.ends_with("queue.db"), first)),
        ("of messages", (|path| path.ends_with(".eml"), 0)),
        ("of the folder they are in", (folder, 0)),
        ("of the spool", (|path| path.ends_with("/spool"), 0)),
        ("of the folder of all that", (|path| path.ends_with("/state"), 0)),
    ];
    for (what, unsynced) in kinds {
        let looked = SHORT.look(&SHORT.cuts(300, 1), &BTreeMap::new(), Some(unsynced));
        println!("without syncs {what}: {:?}", looked.faults.first());
        assert!(!looked.faults.is_empty(), "without syncs {what} nothing is missed");
    }
}

/// Q1, Q2, Q3, Q4, Q18, Q34, Q36: a thousand messages.
#[test]
#[ignore = "twenty minutes; make torture-syncs"]
fn every_sync_of_a_thousand_messages() {
    every_sync(&Run::of(number("MESSAGES", 1000)), number("SUBSETS", 10_000), 50);
}
