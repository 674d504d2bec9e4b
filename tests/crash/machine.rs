//! A file system that knows what is durable and what is only pending.
//!
//! A [`Machine`] is a disk with its cache; a [`Process`] works on it through haul's `Disk` and can
//! be made to die or to fail at any operation. When the power goes, [`Machine::image`] gives the
//! disk that the next boot would find, in one of several [`Loss`]es.
//!
//! The model is the least that POSIX promises, not what ext4 happens to do: a file's bytes are
//! durable after its fsync, a name after the fsync of its folder, each apart from the other and in
//! no order; rename and link happen whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use haul::store::{Disk, DiskFile};
use nix::errno::Errno;

type Id = usize;

/// The root of the file system; it is always there.
const ROOT: Id = 0;

#[derive(Clone, Debug)]
enum Node {
    File {
        cached: Vec<u8>,
        /// What was there at the last fsync; `None` before the first.
        durable: Option<Vec<u8>>,
    },
    Folder {
        cached: BTreeMap<OsString, Id>,
        durable: BTreeMap<OsString, Id>,
    },
}

/// One change to a folder: the name now means this, or nothing.
#[derive(Clone, Debug)]
struct Change {
    folder: Id,
    name: OsString,
    now: Option<Id>,
}

#[derive(Clone, Debug, Default)]
struct Files {
    nodes: Vec<Node>,
    /// Operations on names that no fsync has made durable; each is kept or lost whole.
    pending: Vec<Vec<Change>>,
    last_written: Option<Id>,
}

/// What of the pending state a power cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Nothing that was not made durable.
    Everything,
    /// All of it.
    Nothing,
    /// A part of it, drawn from this seed.
    Some(u64),
    /// All of it, but the last write got only so far: in quarters of its file.
    Torn(u8),
}

/// A small generator (SplitMix64), so that a seed names a crash for good.
#[derive(Clone, Debug)]
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

impl Files {
    fn new() -> Files {
        let root = Node::Folder { cached: BTreeMap::new(), durable: BTreeMap::new() };
        Files { nodes: vec![root], pending: Vec::new(), last_written: None }
    }

    fn names(&self, id: Id) -> io::Result<&BTreeMap<OsString, Id>> {
        match &self.nodes[id] {
            Node::Folder { cached, .. } => Ok(cached),
            Node::File { .. } => Err(Errno::ENOTDIR.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Id> {
        let mut at = ROOT;
        for name in path.iter().skip(1) {
            at = *self.names(at)?.get(name).ok_or(Errno::ENOENT)?;
        }
        Ok(at)
    }

    fn parent<'p>(&self, path: &'p Path) -> io::Result<(Id, &'p OsStr)> {
        let name = path.file_name().ok_or(Errno::EEXIST)?;
        let parent = self.find(path.parent().ok_or(Errno::EEXIST)?)?;
        self.names(parent)?;
        Ok((parent, name))
    }

    /// The folder and name that a new name would have, which must be free.
    fn free<'p>(&self, path: &'p Path) -> io::Result<(Id, &'p OsStr)> {
        let (folder, name) = self.parent(path)?;
        match self.names(folder)?.contains_key(name) {
            true => Err(Errno::EEXIST.into()),
            false => Ok((folder, name)),
        }
    }

    fn change(&mut self, changes: Vec<Change>) {
        for Change { folder, name, now } in &changes {
            let Node::Folder { cached, .. } = &mut self.nodes[*folder] else { unreachable!() };
            match now {
                Some(id) => cached.insert(name.clone(), *id),
                None => cached.remove(name),
            };
        }
        self.pending.push(changes);
    }

    fn settle(&mut self, changes: Vec<Change>) {
        for Change { folder, name, now } in changes {
            let Node::Folder { durable, .. } = &mut self.nodes[folder] else { unreachable!() };
            match now {
                Some(id) => durable.insert(name, id),
                None => durable.remove(&name),
            };
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<Id> {
        let (folder, name) = self.free(path)?;
        let id = self.nodes.len();
        self.nodes.push(node);
        self.change(vec![Change { folder, name: name.to_owned(), now: Some(id) }]);
        Ok(id)
    }

    fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        let node = Node::Folder { cached: BTreeMap::new(), durable: BTreeMap::new() };
        self.add(path, node).map(drop)
    }

    fn create(&mut self, path: &Path) -> io::Result<Id> {
        self.add(path, Node::File { cached: Vec::new(), durable: None })
    }

    fn write(&mut self, id: Id, bytes: &[u8]) {
        let Node::File { cached, .. } = &mut self.nodes[id] else { unreachable!() };
        cached.extend_from_slice(bytes);
        self.last_written = Some(id);
    }

    fn sync(&mut self, id: Id) {
        let Node::File { cached, durable } = &mut self.nodes[id] else { unreachable!() };
        *durable = Some(cached.clone());
    }

    fn sync_folder(&mut self, path: &Path) -> io::Result<()> {
        let id = self.find(path)?;
        self.names(id)?;
        let (settled, pending) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|changes: &Vec<Change>| changes.iter().any(|change| change.folder == id));
        self.pending = pending;
        settled.into_iter().for_each(|changes| self.settle(changes));
        Ok(())
    }

    fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let id = self.find(from)?;
        let (folder, name) = self.free(to)?;
        self.change(vec![Change { folder, name: name.to_owned(), now: Some(id) }]);
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let id = self.find(from)?;
        let (folder, name) = self.parent(to)?;
        let (old_folder, old_name) = self.parent(from)?;
        self.change(vec![
            Change { folder: old_folder, name: old_name.to_owned(), now: None },
            Change { folder, name: name.to_owned(), now: Some(id) },
        ]);
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let id = self.find(path)?;
        if let Node::Folder { cached, .. } = &self.nodes[id]
            && !cached.is_empty()
        {
            return Err(Errno::ENOTEMPTY.into());
        }
        let (folder, name) = self.parent(path)?;
        self.change(vec![Change { folder, name: name.to_owned(), now: None }]);
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match &self.nodes[self.find(path)?] {
            Node::File { cached, .. } => Ok(cached.clone()),
            Node::Folder { .. } => Err(Errno::EISDIR.into()),
        }
    }

    /// Every file below a folder, by path.
    fn all(&self, id: Id, at: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        match &self.nodes[id] {
            Node::File { cached, .. } => {
                into.insert(at.to_str().unwrap().to_owned(), cached.clone());
            }
            Node::Folder { cached, .. } => {
                cached.iter().for_each(|(name, id)| self.all(*id, &at.join(name), into));
            }
        }
    }

    fn after(mut self, loss: Loss) -> Files {
        let mut draw = Draw(match loss {
            Loss::Some(seed) => seed,
            _ => 0,
        });
        for changes in std::mem::take(&mut self.pending) {
            let kept = match loss {
                Loss::Everything => false,
                Loss::Nothing | Loss::Torn(_) => true,
                Loss::Some(_) => draw.below(2) == 0,
            };
            if kept {
                self.settle(changes);
            }
        }
        let last = self.last_written;
        for (id, node) in self.nodes.iter_mut().enumerate() {
            match node {
                Node::Folder { cached, durable } => cached.clone_from(durable),
                Node::File { cached, durable } => {
                    let safe = durable.clone().unwrap_or_default();
                    let unsynced = durable.as_ref() != Some(cached);
                    *cached = match loss {
                        _ if !unsynced => safe,
                        Loss::Everything => safe,
                        Loss::Torn(quarters) if Some(id) == last => {
                            // 4 quarters would be the whole: then only the last byte is missing.
                            let whole = cached.len();
                            let kept =
                                (whole * usize::from(quarters) / 4).min(whole.saturating_sub(1));
                            cached[..kept].to_vec()
                        }
                        Loss::Nothing | Loss::Torn(_) => std::mem::take(cached),
                        Loss::Some(_) => match draw.below(4) {
                            0 => safe,
                            1 => std::mem::take(cached),
                            // The length was written, the blocks were not.
                            2 => vec![0; cached.len()],
                            _ => {
                                let kept = draw.below(cached.len() as u64 + 1) as usize;
                                cached[..kept].to_vec()
                            }
                        },
                    };
                    *durable = Some(cached.clone());
                }
            }
        }
        self.last_written = None;
        self
    }
}

/// A disk with its cache, shared by the processes of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine(Arc<Mutex<Files>>);

impl Machine {
    pub(crate) fn new() -> Machine {
        Machine(Arc::new(Mutex::new(Files::new())))
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the next boot finds.
    pub(crate) fn image(&self, loss: Loss) -> Machine {
        Machine(Arc::new(Mutex::new(self.files().clone().after(loss))))
    }

    /// Whether the last write could be torn: whether it is not durable.
    pub(crate) fn can_tear(&self) -> bool {
        let files = self.files();
        files.last_written.is_some_and(|id| match &files.nodes[id] {
            Node::File { cached, durable } => durable.as_ref() != Some(cached) && cached.len() > 1,
            Node::Folder { .. } => false,
        })
    }

    /// Every file below a folder that is there: name relative to it, and bytes.
    pub(crate) fn below(&self, folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let files = self.files();
        let mut found = BTreeMap::new();
        if let Ok(id) = files.find(folder) {
            files.all(id, Path::new(""), &mut found);
        }
        found
    }

    /// Changes a byte of a file behind everybody's back, as a failing disk does.
    pub(crate) fn rot(&self, path: &Path, at: usize) {
        let mut files = self.files();
        let id = files.find(path).unwrap();
        let Node::File { cached, durable } = &mut files.nodes[id] else { panic!("a folder") };
        cached[at] ^= 1;
        *durable = Some(cached.clone());
    }

    /// A process that works on it.
    pub(crate) fn process(&self, fate: Fate) -> Arc<Process> {
        let shared = Shared { files: self.clone(), fate, count: Mutex::default() };
        Arc::new(Process(Arc::new(shared)))
    }
}

/// What becomes of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It lives.
    Well,
    /// It dies directly before this operation that changes something.
    DiesBefore(u64),
    /// It dies directly after it.
    DiesAfter(u64),
    /// This operation fails, reading ones counted too; and maybe all after it.
    Fails { at: u64, errno: Errno, forever: bool },
    /// This write takes only half of the bytes; and maybe all after it.
    ShortWrite { at: u64, forever: bool },
    /// What it says is durable is not: a negative control.
    Lies(Lie),
}

/// Which promise a process breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Files are not synced.
    FileSync,
    /// Folders are not synced.
    FolderSync,
}

#[derive(Debug, Default)]
struct Count {
    changes: u64,
    all: u64,
    dead: bool,
    struck: u64,
    kinds: BTreeSet<&'static str>,
}

#[derive(Debug)]
struct Shared {
    files: Machine,
    fate: Fate,
    count: Mutex<Count>,
}

/// One process's view of a [`Machine`].
#[derive(Debug)]
pub(crate) struct Process(Arc<Shared>);

impl Process {
    /// Operations done so far that change something.
    pub(crate) fn changes(&self) -> u64 {
        self.0.count.lock().unwrap().changes
    }

    /// All operations done so far.
    pub(crate) fn operations(&self) -> u64 {
        self.0.count.lock().unwrap().all
    }

    /// Whether its fate has come.
    pub(crate) fn struck(&self) -> bool {
        let count = self.0.count.lock().unwrap();
        count.dead || count.struck > 0
    }

    /// The kinds of operation it has done.
    pub(crate) fn kinds(&self) -> BTreeSet<&'static str> {
        self.0.count.lock().unwrap().kinds.clone()
    }
}

impl Shared {
    /// Counts an operation, lets fate have its way, and does it on the files.
    ///
    /// The counter stays locked meanwhile, so that "before" and "after" are exact though several
    /// threads work on the disk.
    fn operate<T>(
        &self,
        kind: &'static str,
        changes: bool,
        work: impl FnOnce(&mut Files) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut count = self.count.lock().unwrap();
        let dead = || io::Error::other("the process is dead");
        if count.dead {
            return Err(dead());
        }
        let (at_all, at_change) = (count.all, count.changes);
        count.all += 1;
        count.changes += u64::from(changes);
        count.kinds.insert(kind);
        match self.fate {
            Fate::DiesBefore(at) if changes && at == at_change => {
                count.dead = true;
                return Err(dead());
            }
            Fate::DiesAfter(at) if changes && at == at_change => {
                let _ = work(&mut self.files.files());
                count.dead = true;
                return Err(dead());
            }
            // A signal interrupts what takes long; the standard library repeats the rest.
            Fate::Fails { at, errno, forever }
                if (at_all == at || (forever && at_all > at))
                    && (errno != Errno::EINTR || kind == "write") =>
            {
                count.struck += 1;
                return Err(errno.into());
            }
            _ => {}
        }
        work(&mut self.files.files())
    }

    fn halves(&self) -> bool {
        let mut count = self.count.lock().unwrap();
        let now = count.all;
        let halved = matches!(self.fate,
            Fate::ShortWrite { at, forever } if now == at || (forever && now > at));
        count.struck += u64::from(halved);
        halved
    }
}

/// An open file of a [`Process`].
struct Open {
    process: Arc<Shared>,
    id: Id,
}

impl Write for Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match self.process.halves() {
            true => bytes.len().div_ceil(2),
            false => bytes.len(),
        };
        let id = self.id;
        self.process.operate("write", true, |files| {
            files.write(id, &bytes[..taken]);
            Ok(taken)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for Open {
    fn sync(&mut self) -> io::Result<()> {
        let (id, lies) = (self.id, self.process.fate == Fate::Lies(Lie::FileSync));
        self.process.operate("sync", true, |files| {
            if !lies {
                files.sync(id);
            }
            Ok(())
        })
    }
}

impl Disk for Process {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.0.operate("make_folder", true, |files| files.make_folder(path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let lies = self.0.fate == Fate::Lies(Lie::FolderSync);
        self.0.operate("sync_folder", true, |files| match lies {
            true => Ok(()),
            false => files.sync_folder(path),
        })
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let id = self.0.operate("create", true, |files| files.create(path))?;
        Ok(Box::new(Open { process: self.0.clone(), id }))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.operate("link", true, |files| files.link(from, to))
    }

    fn same_file(&self, a: &Path, b: &Path) -> io::Result<bool> {
        self.0.operate("same_file", false, |files| {
            let (a, b) = (files.find(a).ok(), files.find(b).ok());
            Ok(a.is_some() && a == b)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.operate("rename", true, |files| files.rename(from, to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.operate("rename_new", true, |files| {
            files.free(to)?;
            files.rename(from, to)
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.operate("remove", true, |files| files.remove(path))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.0.operate("remove_folder", true, |files| files.remove(path))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.operate("read", false, |files| files.read(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.0.operate("list", false, |files| {
            Ok(files.names(files.find(path)?)?.keys().cloned().collect())
        })
    }
}
