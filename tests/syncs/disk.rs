//! What a power cut may leave of the files, at any place of a record.
//!
//! In: a [`Record`], a place in it, and a [`Variant`]. Out: the folder, laid out as it may be found.
//! The model: what a call did that had returned before a sync of the same file or folder began is there once that sync has returned.
//! Of everything else any part may be there, in any order: of a file's bytes any sectors of 512 (a sector is never half, and bytes
//! beside a write are not touched by it), its new length with the bytes or without them (zeros then); of a folder's names any. A
//! file's sync says nothing of its name; a folder's says nothing of what is in its files. A rename is there or not, in both folders.
//!
//! That is what POSIX promises, and less than ext4, XFS and btrfs give: their journals keep the order of names, and a file's sync
//! takes its name with it. So what holds here holds there.

use super::record::{Call, Inode, Place, Record, Tree, What, write_at};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

const SECTOR: usize = 512;

/// Syncs of what has such a path do nothing, from a place on.
pub type Unsynced = (fn(&str) -> bool, Place);

/// What is there of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Nothing,
    Everything,
    /// Some of it, drawn by this seed.
    Some(u64),
}

/// What became of a call that was not synced.
#[derive(Clone, Debug, PartialEq)]
enum Fate {
    Whole,
    /// The length may be there all the same.
    Lost {
        grows: bool,
    },
    /// These sectors of it are there.
    Torn(Vec<bool>),
}

/// The files of a record as a power cut would leave them, from place to place.
pub struct Disk<'r> {
    record: &'r Record,
    /// What has happened, in the order of places: a call began, or a sync has returned.
    events: Vec<(Place, bool, usize)>,
    next: usize,
    /// What is there for sure.
    last: Tree,
    /// Calls that were not synced, in their order.
    pending: Vec<usize>,
    unsynced: Option<Unsynced>,
    /// Files that are whole here, to be linked into images.
    store: PathBuf,
    stored: BTreeSet<Inode>,
}

impl<'r> Disk<'r> {
    /// At the beginning, when nothing was there.
    pub fn of(record: &'r Record, store: &Path, unsynced: Option<Unsynced>) -> Self {
        fs::create_dir_all(store).unwrap();
        let mut events = Vec::new();
        for (at, call) in record.calls.iter().enumerate() {
            events.push((call.begin, false, at));
            if matches!(call.what, What::Sync(_)) {
                events.push((call.end, true, at));
            }
        }
        events.sort_unstable();
        let mut last = record.base.clone();
        last.contents.resize(record.inodes.len(), Vec::new());
        last.names.resize(record.inodes.len(), BTreeMap::new());
        Self {
            record,
            events,
            next: 0,
            last,
            pending: Vec::new(),
            unsynced,
            store: store.to_owned(),
            stored: BTreeSet::new(),
        }
    }

    /// Goes on to a place: what began before it may have been done.
    pub fn go_to(&mut self, place: Place) {
        while let Some((_, is_end, call)) =
            self.events.get(self.next).copied().filter(|event| event.0 < place)
        {
            self.next += 1;
            let what = &self.record.calls[call].what;
            match (what, is_end) {
                (What::Sync(inode), true) => self.sync(call, *inode),
                (What::Sync(_), false) => {}
                _ => self.pending.push(call),
            }
        }
    }

    /// How much is not synced.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    fn sync(&mut self, sync: usize, inode: Inode) {
        let record = self.record;
        let begin = record.calls[sync].begin;
        let path = &record.inodes[inode].1;
        if self.unsynced.is_some_and(|(is_unsynced, from)| begin >= from && is_unsynced(path)) {
            return;
        }
        let is_synced = |call: &Call| call.end < begin && concerns(&call.what, inode);
        let (synced, pending) = self.pending.iter().partition(|at| is_synced(&record.calls[**at]));
        self.pending = pending;
        let synced: Vec<usize> = synced;
        for at in synced {
            self.last.apply(&record.calls[at].what);
            if self.stored.remove(&inode) {
                fs::remove_file(self.stored_at(inode)).unwrap();
            }
        }
    }

    fn stored_at(&self, inode: Inode) -> PathBuf {
        self.store.join(inode.to_string())
    }

    /// Lays the files out in a folder that is not there yet.
    pub fn lay(&mut self, variant: Variant, to: &Path) {
        let fates = self.fates(variant);
        let mut names = self.last.names.clone();
        let mut changed: HashMap<Inode, Vec<u8>> = HashMap::new();
        for (at, fate) in self.pending.iter().zip(&fates) {
            let what = &self.record.calls[*at].what;
            match what {
                What::Write { inode, .. } | What::Resize { inode, .. } => {
                    let content = changed.entry(*inode).or_insert_with(|| self.last.contents[*inode].clone());
                    change(what, fate, content);
                }
                _ => rename(what, fate, &mut names),
            }
        }
        self.lay_folder(0, &names, &changed, to);
        if let Variant::Some(seed) = variant
            && seed % 2 == 0
            && to.join("state/queue.db").exists()
        {
            let mut random = fastrand::Rng::with_seed(seed);
            let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(32_768).collect();
            fs::write(to.join("state/queue.db-shm"), noise).unwrap();
        }
    }

    fn lay_folder(
        &mut self,
        folder: Inode,
        names: &[BTreeMap<String, Inode>],
        changed: &HashMap<Inode, Vec<u8>>,
        to: &Path,
    ) {
        fs::DirBuilder::new().mode(0o700).create(to).unwrap();
        for (name, inode) in &names[folder] {
            let path = to.join(name);
            if self.record.inodes[*inode].0 {
                self.lay_folder(*inode, names, changed, &path);
            } else if let Some(content) = changed.get(inode) {
                fs::write(path, content).unwrap();
            } else if name.ends_with(".eml") {
                // Nobody writes into these.
                if self.stored.insert(*inode) {
                    fs::write(self.stored_at(*inode), &self.last.contents[*inode]).unwrap();
                }
                fs::hard_link(self.stored_at(*inode), path).unwrap();
            } else {
                fs::write(path, &self.last.contents[*inode]).unwrap();
            }
        }
    }

    fn fates(&self, variant: Variant) -> Vec<Fate> {
        let count = self.pending.len();
        let mut random = match variant {
            Variant::Nothing => return vec![Fate::Lost { grows: false }; count],
            Variant::Everything => return vec![Fate::Whole; count],
            Variant::Some(seed) => fastrand::Rng::with_seed(seed),
        };
        let whats: Vec<&What> = self.pending.iter().map(|at| &self.record.calls[*at].what).collect();
        let grows = random.f64() < 0.3;
        let mut tear = |what: &What| Fate::torn(what, &mut random);
        // Torn ones are drawn first, so that the rest knows nothing of them.
        let torn: Vec<Fate> = whats.iter().map(|what| tear(what)).collect();
        let (kind, chance) = (random.u8(0..5), [0.1, 0.5, 0.9][random.usize(0..3)]);
        let tears = [0.0, 0.1, 0.5][random.usize(0..3)];
        let cut = random.usize(0..=count);
        let one = random.usize(0..count.max(1));
        let kept: BTreeSet<Inode> =
            whats.iter().map(|what| inode_of(what)).filter(|_| random.bool()).collect();
        let is_there = |at: usize, random: &mut fastrand::Rng| match kind {
            // All in its order, up to a moment.
            0 => at < cut,
            // What one file's cache has written, and another's has not.
            1 => kept.contains(&inode_of(whats[at])),
            // The later before the earlier.
            2 => at >= cut,
            3 => (at == one) != (chance > 0.5),
            _ => random.f64() < chance,
        };
        torn.into_iter()
            .enumerate()
            .map(|(at, torn)| match is_there(at, &mut random) {
                _ if torn != Fate::Whole && random.f64() < tears => torn,
                true => Fate::Whole,
                false => Fate::Lost { grows },
            })
            .collect()
    }
}

impl Fate {
    /// Some of its sectors, if it has several.
    fn torn(what: &What, random: &mut fastrand::Rng) -> Self {
        let What::Write { offset, data, .. } = what else { return Self::Whole };
        let sectors = (offset + data.len()).div_ceil(SECTOR) - offset / SECTOR;
        // A half of it, or any.
        let cut = random.usize(0..=sectors);
        match random.u8(0..3) {
            _ if sectors < 2 => Self::Whole,
            0 => Self::Torn((0..sectors).map(|at| at < cut).collect()),
            1 => Self::Torn((0..sectors).map(|at| at >= cut).collect()),
            _ => Self::Torn((0..sectors).map(|_| random.bool()).collect()),
        }
    }
}

/// Whether a sync of this file or folder makes it last.
fn concerns(what: &What, synced: Inode) -> bool {
    match what {
        What::Write { inode, .. } | What::Resize { inode, .. } => *inode == synced,
        What::Name { folder, .. } => *folder == synced,
        What::Move { from, to, .. } => from.0 == synced || to.0 == synced,
        What::Sync(_) => false,
    }
}

fn inode_of(what: &What) -> Inode {
    match what {
        What::Write { inode, .. } | What::Resize { inode, .. } | What::Sync(inode) => *inode,
        What::Name { folder, .. } | What::Move { from: (folder, _), .. } => *folder,
    }
}

/// Of a file's bytes.
fn change(what: &What, fate: &Fate, content: &mut Vec<u8>) {
    match (what, fate) {
        (What::Write { offset, data, .. }, Fate::Whole) => write_at(content, *offset, data),
        (What::Write { offset, data, .. }, Fate::Lost { grows: true }) => {
            content.resize(content.len().max(offset + data.len()), 0);
        }
        (What::Write { offset, data, .. }, Fate::Torn(sectors)) => {
            let first = offset / SECTOR;
            for (at, _) in sectors.iter().enumerate().filter(|(_, is_there)| **is_there) {
                let begin = ((first + at) * SECTOR).max(*offset);
                let end = ((first + at + 1) * SECTOR).min(offset + data.len());
                write_at(content, begin, &data[begin - offset..end - offset]);
            }
        }
        (What::Resize { length, .. }, Fate::Whole) => content.resize(*length, 0),
        _ => {}
    }
}

/// Of names.
fn rename(what: &What, fate: &Fate, names: &mut [BTreeMap<String, Inode>]) {
    if *fate != Fate::Whole {
        return;
    }
    match what {
        What::Name { folder, name, inode: Some(inode) } => drop(names[*folder].insert(name.clone(), *inode)),
        What::Name { folder, name, inode: None } => drop(names[*folder].remove(name)),
        What::Move { from, to, inode } => {
            names[from.0].remove(&from.1);
            names[to.0].insert(to.1.clone(), *inode);
        }
        _ => {}
    }
}

/// What was synced is there, and of the rest any part.
#[test]
fn what_was_synced_is_there_and_of_the_rest_any_part() {
    let write = |offset, byte, length| What::Write { inode: 1, offset, data: vec![byte; length] };
    let name = |name: &str| What::Name { folder: 0, name: name.to_owned(), inode: Some(1) };
    let whats = [
        name("a"),
        write(0, b'x', 1024),
        What::Sync(1),
        What::Sync(0),
        write(512, b'y', 1024),
        What::Name { folder: 0, name: "a".to_owned(), inode: None },
        name("b"),
    ];
    let call = |(at, what)| Call { begin: at, end: at, what };
    let record = Record {
        calls: whats.into_iter().enumerate().map(call).collect(),
        inodes: vec![(true, "/".to_owned()), (false, "a".to_owned())],
        base: Tree { contents: vec![Vec::new()], names: vec![BTreeMap::new()] },
        ..Record::default()
    };
    let place = tempfile::tempdir().unwrap();
    let found = |place_of_cut: Place, variant: Variant| -> Vec<(String, String)> {
        let mut disk = Disk::of(&record, &place.path().join("store"), None);
        disk.go_to(place_of_cut);
        let image = place.path().join("image");
        disk.lay(variant, &image);
        let entries = fs::read_dir(&image).unwrap().map(Result::unwrap);
        // A letter a sector.
        let sectors = |path: PathBuf| {
            fs::read(path).unwrap().chunks(SECTOR).map(|sector| char::from(sector[0])).collect()
        };
        let mut found: Vec<(String, String)> =
            entries.map(|entry| (entry.file_name().into_string().unwrap(), sectors(entry.path()))).collect();
        found.sort();
        fs::remove_dir_all(image).unwrap();
        found
    };
    let is = |names: &[(&str, &str)]| {
        names.iter().map(|(name, of)| ((*name).to_owned(), (*of).to_owned())).collect::<Vec<_>>()
    };
    for (cut, nothing, everything) in [
        (0, is(&[]), is(&[])),
        (2, is(&[]), is(&[("a", "xx")])),
        // The file is synced, and has no name yet.
        (3, is(&[]), is(&[("a", "xx")])),
        (4, is(&[("a", "xx")]), is(&[("a", "xx")])),
        (7, is(&[("a", "xx")]), is(&[("b", "xyy")])),
    ] {
        assert_eq!(found(cut, Variant::Nothing), nothing, "{cut}");
        assert_eq!(found(cut, Variant::Everything), everything, "{cut}");
    }
    let drawn: BTreeSet<Vec<(String, String)>> = (0..300).map(|seed| found(7, Variant::Some(seed))).collect();
    let contents: BTreeSet<&str> = drawn.iter().flatten().map(|(_, content)| content.as_str()).collect();
    // Half of a write, the later half alone, and a length without its bytes.
    assert_eq!(contents, BTreeSet::from(["xx", "xx\0", "xxy", "xy", "xyy"]));
    let names: BTreeSet<Vec<&str>> =
        drawn.iter().map(|found| found.iter().map(|(name, _)| name.as_str()).collect()).collect();
    assert_eq!(names, BTreeSet::from([vec![], vec!["a"], vec!["a", "b"], vec!["b"]]));
}
