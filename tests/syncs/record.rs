//! What a service did to its files, as strace wrote it down.
//!
//! In: the files as they were before, what strace said of each life of the service, and the files as each life left them. Out: a [`Record`]: every call that changes
//! or syncs a file, from where to where it lasted, and when which message was said to be accepted.
//! Promise: a call that had returned before another began did so in truth, for strace holds a thread at both ends of a call. All of
//! it done in order gives the files byte for byte, which is looked at after each life ([`Reading::settle`]); so no call is overlooked.
//! Fails: a call that the model does not know, or half of a text, is a panic.
//!
//! `-shm` is left out: SQLite maps it into memory, makes it anew when the first process opens the database (`unixOpenSharedMemory`
//! cuts it to nothing), and fills it from the log. What a power cut leaves of it nobody reads; images get noise there.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

/// A place in the record: the number of a line.
pub type Place = usize;

/// A file or a folder, whatever its name. The first is the folder in which everything is.
pub type Inode = usize;

/// What a call does, if it does anything.
#[derive(Clone, Debug)]
pub enum What {
    Write { inode: Inode, offset: usize, data: Vec<u8> },
    Resize { inode: Inode, length: usize },
    Name { folder: Inode, name: String, inode: Option<Inode> },
    Move { from: (Inode, String), to: (Inode, String), inode: Inode },
    Sync(Inode),
}

/// A call. It was done at some time between the two.
#[derive(Clone, Debug)]
pub struct Call {
    pub begin: Place,
    pub end: Place,
    pub what: What,
}

/// Everything of a run.
#[derive(Debug, Default)]
pub struct Record {
    /// As they began.
    pub calls: Vec<Call>,
    /// Folders among the inodes, and a name of each, for who reads.
    pub inodes: Vec<(bool, String)>,
    /// Where a message was said to be accepted, at the earliest.
    pub said: BTreeMap<usize, Place>,
    /// The time of each line, in microseconds since 1970.
    pub times: Vec<i64>,
    /// Where each life began.
    pub lives: Vec<Place>,
    /// What was there before.
    pub base: Tree,
}

/// Bytes of files, and names in folders, by the inodes.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub contents: Vec<Vec<u8>>,
    pub names: Vec<BTreeMap<String, Inode>>,
}

impl Tree {
    /// Does what a call did.
    pub fn apply(&mut self, what: &What) {
        match what {
            What::Write { inode, offset, data } => write_at(&mut self.contents[*inode], *offset, data),
            What::Resize { inode, length } => self.contents[*inode].resize(*length, 0),
            What::Name { folder, name, inode: Some(inode) } => {
                self.names[*folder].insert(name.clone(), *inode);
            }
            What::Name { folder, name, inode: None } => drop(self.names[*folder].remove(name)),
            What::Move { from, to, inode } => {
                self.names[from.0].remove(&from.1);
                self.names[to.0].insert(to.1.clone(), *inode);
            }
            What::Sync(_) => {}
        }
    }
}

/// Calls that strace shows: those that change files, those that sync them, those that answer, and those that the model does not know.
pub const CALLS: &str = "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,linkat,link,unlink,\
    unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,symlink,symlinkat,fsync,fdatasync,sync_file_range,msync,sync,syncfs,\
    copy_file_range,sendfile,splice,mmap,lseek,sendto,sendmsg,accept4,io_uring_setup";

/// Something that is said on a connection.
struct Talk {
    number: usize,
    said: Vec<u8>,
    /// By LMTP the content was asked for.
    asked: bool,
}

/// A record in the making.
pub struct Reading {
    root: PathBuf,
    record: Record,
    /// What programs see, with nothing lost.
    seen: Tree,
    /// Open ones of this life, and how far `write` has come in them.
    open: HashMap<i64, (Inode, usize)>,
    talks: HashMap<String, Talk>,
    /// By the thread.
    unfinished: HashMap<Vec<u8>, (Place, Vec<u8>)>,
}

impl Reading {
    /// Of what happens below `root`. What is there by now is on the disk.
    pub fn of(root: &Path) -> Self {
        let mut reading = Self {
            root: root.to_owned(),
            record: Record::default(),
            seen: Tree::default(),
            open: HashMap::new(),
            talks: HashMap::new(),
            unfinished: HashMap::new(),
        };
        reading.find(root, true);
        reading.record.base = reading.seen.clone();
        reading
    }

    fn find(&mut self, path: &Path, is_folder: bool) -> Inode {
        let inode = self.new_inode(is_folder, path);
        if !is_folder {
            self.seen.contents[inode] = fs::read(path).unwrap();
            return inode;
        }
        for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if !name.ends_with("-shm") {
                let below = self.find(&path, path.is_dir());
                self.seen.names[inode].insert(name, below);
            }
        }
        inode
    }

    /// Reads one life, which is over, and compares.
    pub fn read(&mut self, trace: &Path) {
        self.record.lives.push(self.record.times.len());
        let mut reader = BufReader::with_capacity(1 << 20, fs::File::open(trace).unwrap());
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).unwrap() > 0 {
            self.line(line.strip_suffix(b"\n").unwrap_or(&line));
            line.clear();
        }
        self.settle();
    }

    pub fn done(mut self) -> Record {
        self.record.calls.sort_by_key(|call| call.begin);
        self.record
    }

    fn line(&mut self, line: &[u8]) {
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let mut part = || parts.next().unwrap_or_default();
        let (thread, mut time, mut rest) = (part(), part(), part());
        while time.is_empty() {
            // A short number of a thread is filled up.
            let (first, others) = rest.split_at(rest.iter().position(|byte| *byte == b' ').unwrap());
            (time, rest) = (first, &others[1..]);
        }
        let time: f64 = std::str::from_utf8(time).unwrap().parse().unwrap();
        let place = self.record.times.len();
        #[allow(clippy::cast_possible_truncation)] // microseconds since 1970
        self.record.times.push((time * 1e6) as i64);
        if let Some(rest) = rest.strip_prefix(b"<... ") {
            let at = find(rest, b"resumed>").expect("resumed");
            let (begin, mut text) = self.unfinished.remove(thread).expect("what is resumed was begun");
            text.extend_from_slice(&rest[at + b"resumed>".len()..]);
            self.returned(begin, place, &text);
        } else if let Some(text) = rest.strip_suffix(b" <unfinished ...>") {
            self.unfinished.insert(thread.to_owned(), (place, text.to_owned()));
        } else if !rest.starts_with(b"+++") && !rest.starts_with(b"---") {
            self.returned(place, place, rest);
        }
    }

    /// A call that has returned, or never will.
    fn returned(&mut self, begin: Place, end: Place, text: &[u8]) {
        let open = text.iter().position(|byte| *byte == b'(').expect("a call");
        let name = std::str::from_utf8(&text[..open]).unwrap();
        let at = text.len().saturating_sub(1000);
        let equals = at + rfind(&text[at..], b"= ").expect("a result");
        let result = &text[equals + 2..];
        if result.starts_with(b"?") {
            // No thread has such a number.
            self.unfinished.insert(format!("ended {end}").into_bytes(), (begin, text[..equals].to_owned()));
            return;
        }
        let (result, of) = Words(result).descriptor();
        if name == "accept4" && result >= 0 {
            self.accepted(text, of);
        }
        if name == "sendto" {
            self.sent(begin, Words(&text[open + 1..]), result);
        }
        if result < 0 || !self.concerns(&text[open + 1..]) {
            return;
        }
        for what in self.what(name, Words(&text[open + 1..]), Some(result)) {
            self.seen.apply(&what);
            self.record.calls.push(Call { begin, end, what });
        }
    }

    /// Whether a path below the root is among what it was told, or is what its descriptor stands for.
    fn concerns(&self, arguments: &[u8]) -> bool {
        let root = self.root.as_os_str().as_encoded_bytes();
        // Paths stand at the beginning, data do not.
        let head = &arguments[..arguments.len().min(1000)];
        find(head, root).is_some_and(|at| {
            let is_shm = find(&head[at..], b"-shm").is_some_and(|end| end < root.len() + 40);
            let is_data = find(&head[..at], b"\"").is_some_and(|quote| quote + 1 != at);
            !is_shm && !is_data
        }) || find(head, b"/proc/self/fd/").is_some()
    }

    fn accepted(&mut self, text: &[u8], of: String) {
        let Some(at) = find(text, b"inet_addr(\"") else { return };
        let address: Vec<u8> = text[at + 11..].iter().copied().take_while(|byte| *byte != b'"').collect();
        let number = super::play::number_of(std::str::from_utf8(&address).unwrap());
        self.talks.insert(of, Talk { number, said: Vec::new(), asked: false });
    }

    /// Something was sent. The message is accepted from the moment on in which that is begun.
    fn sent(&mut self, begin: Place, mut words: Words<'_>, result: i64) {
        let (_, of) = words.descriptor();
        let Some(talk) = self.talks.get_mut(&of) else { return };
        words.comma();
        let data = words.text();
        talk.said.extend_from_slice(&data[..usize::try_from(result.max(0)).unwrap().min(data.len())]);
        let is_accepted = if talk.said.starts_with(b"220") {
            let is_accepted = talk.asked && data.starts_with(b"250");
            talk.asked |= data.starts_with(b"354");
            is_accepted
        } else {
            let mut frames = &talk.said[..];
            let mut discards = false;
            while frames.len() > 4 {
                let length = u32::from_be_bytes(frames[..4].try_into().unwrap()) as usize;
                discards |= frames[4] == b'd';
                frames = frames.get(4 + length..).unwrap_or_default();
            }
            discards
        };
        if is_accepted {
            self.record.said.entry(talk.number).or_insert(begin);
        }
    }

    /// What a call does to our files.
    fn what(&mut self, name: &str, mut words: Words<'_>, result: Option<i64>) -> Vec<What> {
        match name {
            "openat" => {
                words.past_comma();
                let path = words.path();
                words.comma();
                self.opened(&path, &words.word(), result)
            }
            "pwrite64" | "write" => {
                let (descriptor, _) = words.descriptor();
                let (inode, position) = self.open[&descriptor];
                words.comma();
                let mut data = words.text();
                let whole = data.len();
                data.truncate(result.map_or(whole, |result| usize::try_from(result).unwrap()));
                words.past_comma();
                let offset = if name == "write" {
                    self.open.insert(descriptor, (inode, position + data.len()));
                    position
                } else {
                    words.past_comma();
                    words.number()
                };
                vec![What::Write { inode, offset, data }]
            }
            "ftruncate" => {
                let (inode, _) = self.open[&words.descriptor().0];
                words.comma();
                vec![What::Resize { inode, length: words.number() }]
            }
            "fsync" | "fdatasync" => vec![What::Sync(self.open[&words.descriptor().0].0)],
            "mkdir" => {
                let path = words.path();
                let (folder, name) = self.place_of(&path);
                if self.seen.names[folder].contains_key(&name) {
                    return Vec::new(); // it was never told so
                }
                let inode = self.new_inode(true, &path);
                vec![What::Name { folder, name, inode: Some(inode) }]
            }
            "unlink" => vec![self.name(&words.path(), None)],
            "linkat" => {
                words.past_comma();
                let from = words.path();
                let descriptor = from.strip_prefix("/proc/self/fd/").expect("a file without a name");
                let (inode, _) = self.open[&descriptor.to_str().unwrap().parse().unwrap()];
                words.comma();
                words.past_comma();
                let path = words.path();
                self.record.inodes[inode].1 = path.display().to_string();
                vec![self.name(&path, Some(inode))]
            }
            "rename" => {
                let from = words.path();
                words.comma();
                let (from, to) = (self.place_of(&from), self.place_of(&words.path()));
                let inode = self.seen.names[from.0][&from.1];
                vec![What::Move { from, to, inode }]
            }
            "lseek" | "mmap" => panic!("the model does not know {name} of {:?}", words.0),
            _ => panic!("the model does not know {name}({}", String::from_utf8_lossy(words.0)),
        }
    }

    /// A file that is opened, and perhaps made or emptied.
    fn opened(&mut self, path: &Path, flags: &str, result: Option<i64>) -> Vec<What> {
        let has = |flag: &str| flags.split('|').any(|one| one == flag);
        let mut whats = Vec::new();
        let inode = if has("O_TMPFILE") {
            self.new_inode(false, path)
        } else if path == self.root {
            0
        } else {
            let (folder, name) = self.place_of(path);
            let inode = self.seen.names[folder].get(&name).copied();
            match inode {
                Some(inode) if has("O_TRUNC") => {
                    whats.push(What::Resize { inode, length: 0 });
                    inode
                }
                Some(inode) => inode,
                None if has("O_CREAT") => {
                    let inode = self.new_inode(false, path);
                    whats.push(What::Name { folder, name, inode: Some(inode) });
                    inode
                }
                // It was never told that there is none.
                None if result.is_none() => return whats,
                None => panic!("{} was opened and nobody has made it", path.display()),
            }
        };
        if let Some(descriptor) = result {
            self.open.insert(descriptor, (inode, 0));
        }
        whats
    }

    fn new_inode(&mut self, is_folder: bool, path: &Path) -> Inode {
        self.record.inodes.push((is_folder, path.display().to_string()));
        self.seen.contents.push(Vec::new());
        self.seen.names.push(BTreeMap::new());
        self.record.inodes.len() - 1
    }

    fn name(&self, path: &Path, inode: Option<Inode>) -> What {
        let (folder, name) = self.place_of(path);
        What::Name { folder, name, inode }
    }

    /// The folder of a path, and its name there.
    fn place_of(&self, path: &Path) -> (Inode, String) {
        let below =
            path.strip_prefix(&self.root).unwrap_or_else(|_| panic!("{} is elsewhere", path.display()));
        let mut names: Vec<&str> = below.iter().map(|name| name.to_str().unwrap()).collect();
        let last = names.pop().expect("a name").to_owned();
        (names.iter().fold(0, |folder, name| self.seen.names[folder][*name]), last)
    }

    /// A life is over. Of calls that never returned the files tell whether they were done; then all must be as it is there.
    fn settle(&mut self) {
        let end = self.record.times.len();
        // A life ends between two lines.
        self.record.times.extend(self.record.times.last().copied());
        for (_, (begin, text)) in std::mem::take(&mut self.unfinished) {
            let open = text.iter().position(|byte| *byte == b'(').expect("a call");
            let name = String::from_utf8(text[..open].to_owned()).unwrap();
            if !self.concerns(&text[open + 1..]) || name.ends_with("sync") {
                continue;
            }
            for what in self.what(&name, Words(&text[open + 1..]), None) {
                if self.was_done(&what) {
                    self.seen.apply(&what);
                    self.record.calls.push(Call { begin, end, what });
                }
            }
        }
        self.open.clear();
        self.talks.clear();
        self.compare(0, &self.root.clone());
    }

    fn was_done(&self, what: &What) -> bool {
        let path_of = |folder: Inode, name: &str| self.path_of(folder).map(|path| path.join(name));
        match what {
            What::Write { inode, offset, data } => self.path_of(*inode).is_some_and(|path| {
                let content = fs::read(path).unwrap();
                content.get(*offset..offset + data.len()) == Some(data)
            }),
            What::Resize { inode, length } => {
                self.path_of(*inode).is_some_and(|path| fs::metadata(path).unwrap().len() == *length as u64)
            }
            What::Name { folder, name, inode } => {
                path_of(*folder, name).is_some_and(|path| path.exists() == inode.is_some())
            }
            What::Move { to, .. } => path_of(to.0, &to.1).is_some_and(|path| path.exists()),
            What::Sync(_) => false,
        }
    }

    /// Where something has its name now.
    fn path_of(&self, inode: Inode) -> Option<PathBuf> {
        if inode == 0 {
            return Some(self.root.clone());
        }
        let named = |names: &BTreeMap<String, Inode>| {
            names.iter().find(|(_, of)| **of == inode).map(|(name, _)| name.clone())
        };
        let (folder, name) =
            self.seen.names.iter().enumerate().find_map(|(folder, names)| Some((folder, named(names)?)))?;
        Some(self.path_of(folder)?.join(name))
    }

    fn compare(&self, folder: Inode, path: &Path) {
        let there =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let there: std::collections::BTreeSet<String> =
            there.filter(|name| !name.ends_with("-shm")).collect();
        assert!(
            there.iter().eq(self.seen.names[folder].keys()),
            "{}: {there:?}, {:?}",
            path.display(),
            self.seen.names
        );
        for (name, inode) in &self.seen.names[folder] {
            let path = path.join(name);
            match self.record.inodes[*inode].0 {
                true => self.compare(*inode, &path),
                false => assert!(
                    fs::read(&path).unwrap() == self.seen.contents[*inode],
                    "{}: other bytes",
                    path.display()
                ),
            }
        }
    }
}

/// Writes, with zeros before where nothing was.
pub fn write_at(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn rfind(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).rposition(|window| window == what)
}

/// What a call was told, from a place on.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn comma(&mut self) {
        self.0 = self.0.strip_prefix(b", ").expect("a comma");
    }

    fn past_comma(&mut self) {
        let at = find(self.0, b", ").expect("a comma");
        self.0 = &self.0[at + 2..];
    }

    fn word(&mut self) -> String {
        let end = self.0.iter().position(|byte| b",) ".contains(byte)).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        String::from_utf8(word.to_owned()).unwrap()
    }

    fn number(&mut self) -> usize {
        self.word().parse().unwrap()
    }

    /// A descriptor and what it stands for: `3</path>`, `3</path/#17>(deleted)`; or a number alone.
    fn descriptor(&mut self) -> (i64, String) {
        let end =
            self.0.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'-').unwrap_or(self.0.len());
        let number = std::str::from_utf8(&self.0[..end]).unwrap().parse().unwrap_or(-1);
        self.0 = &self.0[end..];
        let Some(rest) = self.0.strip_prefix(b"<") else { return (number, String::new()) };
        let end =
            rest.iter().position(|byte| *byte == b'>').expect("what a descriptor stands for has an end");
        let of = String::from_utf8(rest[..end].to_owned()).unwrap();
        self.0 = rest[end + 1..].strip_prefix(b"(deleted)").unwrap_or(&rest[end + 1..]);
        (number, of)
    }

    fn path(&mut self) -> PathBuf {
        String::from_utf8(self.text()).unwrap().into()
    }

    /// A text in quotes, as strace escapes it.
    fn text(&mut self) -> Vec<u8> {
        let quoted = self.0.strip_prefix(b"\"").expect("a text");
        let mut text = Vec::with_capacity(quoted.len() / 2);
        let mut at = 0;
        loop {
            let byte = quoted[at];
            at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let escape = quoted[at];
                    at += 1;
                    text.push(match escape {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'v' => 0x0b,
                        b'f' => 0x0c,
                        b'0'..=b'7' => {
                            let mut value = u32::from(escape - b'0');
                            let mut digits = 1;
                            while digits < 3 && matches!(quoted[at], b'0'..=b'7') {
                                value = value * 8 + u32::from(quoted[at] - b'0');
                                (at, digits) = (at + 1, digits + 1);
                            }
                            u8::try_from(value).unwrap()
                        }
                        other => other,
                    });
                }
                other => text.push(other),
            }
        }
        self.0 = &quoted[at..];
        assert!(!self.0.starts_with(b"..."), "strace has cut a text");
        text
    }
}
