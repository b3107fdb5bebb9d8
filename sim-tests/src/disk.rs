//! A disk that keeps only what was promised: bytes that were synced, names whose directory was synced.
//!
//! A node gets a [`SimDisk`] as its medium; the simulator keeps a clone, and when it crashes the host it calls
//! [`SimDisk::crash`]. What a crash leaves, drawn from the disk's seed:
//!
//! - of a file, everything synced and any prefix of the rest; with [`Faults::torn_blocks`] some 512-byte blocks of what is
//!   kept beyond the synced end read as zeros (the file grew, a block did not make it);
//! - of a directory, the names as of its last sync and any prefix of the changes since, each directory for itself; so a
//!   rename across directories that was synced in neither may leave both names, one, or none;
//! - nothing of files and directories that no name leads to.
//!
//! Handles of before the crash belong to a process that is gone: they fail, and change nothing.
//!
//! On request a disk is full, fails operations of any kind, burns its host's [fuse](crate::knobs) at one, reads wrong bytes
//! once, flips stored bits, or claims to have synced what it did not, which the judges must notice. Everything that is
//! done to it goes into a running digest, in order, bytes
//! included: two runs that differ anywhere differ there.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nearring_node::medium::{AppendFile, Medium};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::knobs::{Counts, Knobs};

const BLOCK: usize = 512;
const ROOT: InodeId = 0;

type InodeId = u64;

/// What goes wrong, and how often. All off by default.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Faults {
    /// Whether a crash may zero blocks beyond what was synced.
    pub torn_blocks: bool,
    /// Whether syncs claim success and do nothing.
    pub lie_about_syncs: bool,
}

/// Operations of a disk, as far as they fail for different reasons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DiskOp {
    /// Makes a file or a directory, or opens a file to append to it.
    Create,
    /// Appends bytes; any prefix of them may have been written.
    Append,
    /// Syncs a file or a directory; what it covered is then as likely lost as kept at the next crash.
    Sync,
    /// Renames.
    Rename,
    /// Removes a file or a directory, or cuts a file.
    Remove,
    /// Reads or maps bytes.
    Read,
    /// Lists a directory, or looks whether a name is there.
    List,
}

impl DiskOp {
    /// All of them.
    pub const ALL: [DiskOp; 7] =
        [DiskOp::Create, DiskOp::Append, DiskOp::Sync, DiskOp::Rename, DiskOp::Remove, DiskOp::Read, DiskOp::List];

    fn failed(self) -> &'static str {
        match self {
            DiskOp::Create => "failed creates",
            DiskOp::Append => "failed appends",
            DiskOp::Sync => "failed syncs",
            DiskOp::Rename => "failed renames",
            DiskOp::Remove => "failed removals",
            DiskOp::Read => "failed reads",
            DiskOp::List => "failed lists",
        }
    }

    fn changes(self) -> bool {
        !matches!(self, DiskOp::Read | DiskOp::List)
    }
}

/// Files in memory. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

struct State {
    rng: SmallRng,
    inodes: BTreeMap<InodeId, Inode>,
    next: InodeId,
    /// Counts crashes; handles of an earlier one are dead.
    boot: u64,
    capacity: u64,
    faults: Faults,
    fail_syncs: u32,
    /// Which operations fail, with which chance.
    failing: Vec<(DiskOp, f64)>,
    /// So many reads of files whose path contains the text give a wrong bit.
    misread: Option<(String, u32)>,
    knobs: Knobs,
    counts: Counts,
    digest: blake3::Hasher,
}

enum Inode {
    File {
        bytes: Vec<u8>,
        /// Durable up to here.
        synced: usize,
        /// Durable up to here before something later became durable.
        confirmed: usize,
        linked: bool,
    },
    Dir(Dir),
}

/// A name and what it leads to from now on; `None`: it is gone.
type Change = (String, Option<InodeId>);

#[derive(Default)]
struct Dir {
    names: BTreeMap<String, InodeId>,
    durable: BTreeMap<String, InodeId>,
    /// Changes since the last sync, in order; those of one element happen together.
    pending: Vec<Vec<Change>>,
}

impl Dir {
    fn change(&mut self, changes: Vec<Change>) {
        apply(&mut self.names, &changes);
        self.pending.push(changes);
    }
}

fn apply(names: &mut BTreeMap<String, InodeId>, changes: &[Change]) {
    for (name, inode) in changes {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

impl SimDisk {
    /// An empty disk without a limit; what its crashes leave follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: SmallRng::seed_from_u64(seed),
            inodes: BTreeMap::from([(ROOT, Inode::Dir(Dir::default()))]),
            next: ROOT + 1,
            boot: 0,
            capacity: u64::MAX,
            faults: Faults::default(),
            fail_syncs: 0,
            failing: Vec::new(),
            misread: None,
            knobs: Knobs::default(),
            counts: Counts::new(),
            digest: blake3::Hasher::new(),
        })))
    }

    /// Gives the disk to a host: operations that change it are effects of that host.
    pub fn attach(&self, knobs: &Knobs) {
        self.lock().knobs = knobs.clone();
    }

    /// Loses what the process had not made durable, or any part of it.
    pub fn crash(&self) {
        let mut state = self.lock();
        let State { rng, inodes, faults, .. } = &mut *state;
        for inode in inodes.values_mut() {
            match inode {
                Inode::File { bytes, synced, confirmed, .. } => {
                    let kept = rng.random_range(*synced..=bytes.len());
                    bytes.truncate(kept);
                    if faults.torn_blocks {
                        let mut at = *synced;
                        while at < kept {
                            let end = kept.min((at / BLOCK + 1) * BLOCK);
                            if rng.random_bool(0.25) {
                                bytes[at..end].fill(0);
                            }
                            at = end;
                        }
                    }
                    // Nothing follows what is kept, so nothing confirms it, unless it was confirmed before.
                    *confirmed = (*confirmed).min(kept);
                    *synced = kept;
                }
                Inode::Dir(dir) => {
                    let kept = rng.random_range(0..=dir.pending.len());
                    for changes in dir.pending.drain(..).take(kept) {
                        apply(&mut dir.durable, &changes);
                    }
                    dir.names = dir.durable.clone();
                }
            }
        }
        state.collect_garbage();
        state.boot += 1;
        state.fail_syncs = 0;
        let boot = state.boot;
        state.note("crash", Path::new(""), &boot.to_le_bytes());
    }

    /// Forgets everything, as another disk in its place would. Handles are dead, as after a crash.
    pub fn wipe(&self) {
        let mut state = self.lock();
        state.inodes = BTreeMap::from([(ROOT, Inode::Dir(Dir::default()))]);
        state.boot += 1;
        state.note("wipe", Path::new(""), &[]);
    }

    /// Makes operations of a kind fail with a chance from 0 to 1, until they are set otherwise.
    pub fn fail(&self, op: DiskOp, chance: f64) {
        let mut state = self.lock();
        state.failing.retain(|(other, _)| *other != op);
        if chance > 0.0 {
            state.failing.push((op, chance));
        }
    }

    /// Makes the next `times` reads of a file whose path contains `part` return one wrong bit; what is stored stays.
    pub fn misread(&self, part: &str, times: u32) {
        self.lock().misread = (times > 0).then(|| (part.to_owned(), times));
    }

    /// How often it did what, of what it was asked to do wrong.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Makes the next `count` syncs fail, of files or directories, until the next crash.
    pub fn fail_syncs(&self, count: u32) {
        self.lock().fail_syncs = count;
    }

    /// Sets how many bytes fit. What is there stays, even beyond the limit.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Bytes in all files that have a name.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Flips one bit, drawn from the seed, in a file whose path `eligible` accepts. Returns which file and byte; `None` where
    /// no such file holds a byte that can be meant.
    ///
    /// Only durable bytes are meant; with `confirmed`, as for a log, only those that were durable before something later in
    /// that file became durable, too. What was written last to a log cannot be told from a write that a crash tore, neither by
    /// this log, which says so, nor by any other that has one copy of it. No promise covers that, so nothing could be judged.
    pub fn flip_bit(&self, confirmed: bool, eligible: impl Fn(&str) -> bool) -> Option<(PathBuf, usize)> {
        let mut state = self.lock();
        let mut files = Vec::new();
        state.walk(ROOT, Path::new("/"), &mut |path, inode, _| {
            if eligible(&path.to_string_lossy()) {
                files.push((path.to_owned(), inode));
            }
        });
        let meant = |inode: Option<&Inode>| match inode {
            Some(Inode::File { confirmed: before_last, synced, .. }) => *if confirmed { before_last } else { synced },
            _ => 0,
        };
        files.retain(|(_, inode)| meant(state.inodes.get(inode)) > 0);
        if files.is_empty() {
            return None;
        }
        let (path, inode) = files.swap_remove(state.rng.random_range(0..files.len()));
        let State { rng, inodes, .. } = &mut *state;
        let len = meant(inodes.get(&inode));
        let Some(Inode::File { bytes, .. }) = inodes.get_mut(&inode) else { return None };
        let at = rng.random_range(0..len);
        bytes[at] ^= 1 << rng.random_range(0..8);
        state.note("flip", &path, &at.to_le_bytes());
        Some((path, at))
    }

    /// Paths of all files, in order.
    pub fn files(&self) -> Vec<String> {
        let state = self.lock();
        let mut files = Vec::new();
        state.walk(ROOT, Path::new("/"), &mut |path, _, _| files.push(path.to_string_lossy().into_owned()));
        files
    }

    /// A digest of everything done so far, in order.
    pub fn digest(&self) -> blake3::Hash {
        self.lock().digest.finalize()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic on a simulated host ends the simulation; the state is only read afterwards, to explain it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let mut files = f.debug_map();
        state.walk(ROOT, Path::new("/"), &mut |path, _, len| {
            files.entry(&path, &len);
        });
        files.finish()
    }
}

impl State {
    fn note(&mut self, what: &str, path: &Path, bytes: &[u8]) {
        let path = path.to_string_lossy();
        for part in [what.as_bytes(), path.as_bytes(), bytes] {
            self.digest.update(&(part.len() as u64).to_le_bytes());
            self.digest.update(part);
        }
    }

    fn dir(&self, inode: InodeId) -> Option<&Dir> {
        match self.inodes.get(&inode) {
            Some(Inode::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    fn find(&self, path: &Path) -> Option<InodeId> {
        names(path).ok()?.iter().try_fold(ROOT, |inode, name| self.dir(inode)?.names.get(name).copied())
    }

    fn existing(&self, path: &Path) -> io::Result<InodeId> {
        self.find(path).ok_or_else(|| error(io::ErrorKind::NotFound, path, "does not exist"))
    }

    fn file(&self, path: &Path) -> io::Result<&[u8]> {
        match self.inodes.get(&self.existing(path)?) {
            Some(Inode::File { bytes, .. }) => Ok(bytes),
            _ => Err(error(io::ErrorKind::IsADirectory, path, "is a directory")),
        }
    }

    fn dir_mut(&mut self, path: &Path) -> io::Result<&mut Dir> {
        match self.existing(path).map(|inode| self.inodes.get_mut(&inode))? {
            Some(Inode::Dir(dir)) => Ok(dir),
            _ => Err(error(io::ErrorKind::NotADirectory, path, "is not a directory")),
        }
    }

    /// The directory and the last name of a path.
    fn parent(&self, path: &Path) -> io::Result<(PathBuf, String)> {
        let mut all = names(path)?;
        match all.pop() {
            Some(name) => Ok((all.iter().collect(), name)),
            None => Err(error(io::ErrorKind::InvalidInput, path, "is the root")),
        }
    }

    fn add(&mut self, inode: Inode) -> InodeId {
        let id = self.next;
        self.next += 1;
        self.inodes.insert(id, inode);
        id
    }

    fn used(&self) -> u64 {
        let len = |inode: &Inode| match inode {
            Inode::File { bytes, linked: true, .. } => bytes.len() as u64,
            _ => 0,
        };
        self.inodes.values().map(len).sum()
    }

    fn walk(&self, from: InodeId, path: &Path, found: &mut dyn FnMut(&Path, InodeId, usize)) {
        match self.inodes.get(&from) {
            Some(Inode::File { bytes, .. }) => found(path, from, bytes.len()),
            Some(Inode::Dir(dir)) => {
                for (name, inode) in &dir.names {
                    self.walk(*inode, &path.join(name), found);
                }
            }
            None => {}
        }
    }

    /// Forgets the bytes of files under `from`, whose name was removed; an open handle may go on writing to them.
    fn unlink(&mut self, from: InodeId) {
        let mut gone = Vec::new();
        self.walk(from, Path::new(""), &mut |_, inode, _| gone.push(inode));
        for inode in gone {
            if let Some(Inode::File { linked, .. }) = self.inodes.get_mut(&inode) {
                *linked = false;
            }
        }
    }

    fn collect_garbage(&mut self) {
        let (mut reachable, mut open) = (BTreeSet::new(), vec![ROOT]);
        while let Some(inode) = open.pop() {
            if reachable.insert(inode) {
                open.extend(self.dir(inode).into_iter().flat_map(|dir| dir.names.values()));
            }
        }
        self.inodes.retain(|inode, _| reachable.contains(inode));
        for inode in self.inodes.values_mut() {
            if let Inode::File { linked, .. } = inode {
                *linked = true; // a removal that was not durable is undone
            }
        }
    }

    /// Whether a sync of `path` does what it says.
    fn sync(&mut self, path: &Path) -> io::Result<bool> {
        if self.fail_syncs > 0 {
            self.fail_syncs -= 1;
            self.fails(DiskOp::Sync, path)?;
        }
        self.begin(DiskOp::Sync, path)?;
        self.note("sync", path, b"");
        Ok(!self.faults.lie_about_syncs)
    }

    /// Before every operation: whether it is to fail.
    fn begin(&mut self, op: DiskOp, path: &Path) -> io::Result<()> {
        match op.changes() {
            true => self.knobs.effect()?,
            false if self.knobs.is_burnt() => {
                return Err(error(io::ErrorKind::BrokenPipe, path, "belongs to a process that has crashed"));
            }
            false => {}
        }
        let chance = self.failing.iter().find(|(failing, _)| *failing == op).map_or(0.0, |(_, chance)| *chance);
        if chance > 0.0 && self.rng.random_bool(chance) { self.fails(op, path) } else { Ok(()) }
    }

    fn fails(&mut self, op: DiskOp, path: &Path) -> io::Result<()> {
        *self.counts.entry(op.failed()).or_default() += 1;
        self.note(op.failed(), path, b"");
        Err(error(io::ErrorKind::Other, path, "could not be worked on (simulated I/O error)"))
    }

    /// What a read of `bytes` of this file returns.
    fn read(&mut self, path: &Path, bytes: Bytes) -> Bytes {
        let Some((part, times)) = &mut self.misread else { return bytes };
        if bytes.is_empty() || *times == 0 || !path.to_string_lossy().contains(part.as_str()) {
            return bytes;
        }
        *times -= 1;
        *self.counts.entry("wrong reads").or_default() += 1;
        let mut wrong = bytes.to_vec();
        let at = self.rng.random_range(0..wrong.len());
        wrong[at] ^= 1 << self.rng.random_range(0..8);
        self.note("misread", path, &at.to_le_bytes());
        Bytes::from(wrong)
    }
}

fn error(kind: io::ErrorKind, path: &Path, what: &str) -> io::Error {
    io::Error::new(kind, format!("{} {what}", path.display()))
}

/// The names on a path, from the root.
fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
            Component::RootDir | Component::CurDir => {}
            _ => {
                return Err(error(
                    io::ErrorKind::InvalidInput,
                    path,
                    "climbs, which the simulated disk does not follow",
                ));
            }
        }
    }
    Ok(names)
}

impl Medium for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.begin(DiskOp::Create, path)?;
        let mut at = PathBuf::from("/");
        for name in names(path)? {
            if !state.dir_mut(&at)?.names.contains_key(&name) {
                let new = state.add(Inode::Dir(Dir::default()));
                state.dir_mut(&at)?.change(vec![(name.clone(), Some(new))]);
            }
            at.push(name);
        }
        state.dir_mut(&at)?; // the last may be a file
        state.note("mkdir", path, b"");
        Ok(())
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let mut state = self.lock();
        state.begin(DiskOp::Create, path)?;
        let inode = match state.find(path) {
            Some(inode) => {
                state.file(path)?;
                inode
            }
            None => {
                let (dir, name) = state.parent(path)?;
                state.dir_mut(&dir)?;
                let inode = state.add(Inode::File { bytes: Vec::new(), synced: 0, confirmed: 0, linked: true });
                state.dir_mut(&dir)?.change(vec![(name, Some(inode))]);
                inode
            }
        };
        state.note("open", path, b"");
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), inode, boot: state.boot }))
    }

    fn read(&self, path: &Path) -> io::Result<Bytes> {
        let mut state = self.lock();
        state.begin(DiskOp::Read, path)?;
        let bytes = Bytes::copy_from_slice(state.file(path)?);
        Ok(state.read(path, bytes))
    }

    fn read_range(&self, path: &Path, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut state = self.lock();
        state.begin(DiskOp::Read, path)?;
        let bytes = state.file(path)?;
        let range = usize::try_from(offset).ok().and_then(|from| Some(from..from.checked_add(len)?));
        match range.and_then(|range| bytes.get(range)).map(Bytes::copy_from_slice) {
            Some(bytes) => Ok(state.read(path, bytes)),
            None => Err(error(io::ErrorKind::UnexpectedEof, path, "ends before the range asked for")),
        }
    }

    fn map(&self, path: &Path) -> io::Result<Bytes> {
        self.read(path)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(self.lock().file(path)?.len() as u64)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.lock();
        state.begin(DiskOp::List, path)?;
        Ok(state.find(path).is_some())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.begin(DiskOp::Rename, from)?;
        let inode = state.existing(from)?;
        let ((from_dir, from_name), (to_dir, to_name)) = (state.parent(from)?, state.parent(to)?);
        let replaced = state.dir_mut(&to_dir)?.names.get(&to_name).copied();
        if replaced == Some(inode) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            if state.dir(replaced).is_some_and(|dir| !dir.names.is_empty()) {
                return Err(error(io::ErrorKind::DirectoryNotEmpty, to, "is a directory that is not empty"));
            }
            state.unlink(replaced);
        }
        let (gone, there) = ((from_name, None), (to_name, Some(inode)));
        if from_dir == to_dir {
            state.dir_mut(&from_dir)?.change(vec![gone, there]);
        } else {
            state.dir_mut(&from_dir)?.change(vec![gone]);
            state.dir_mut(&to_dir)?.change(vec![there]);
        }
        state.note("rename", from, to.to_string_lossy().as_bytes());
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.begin(DiskOp::Remove, path)?;
        state.file(path)?;
        let inode = state.existing(path)?;
        let (dir, name) = state.parent(path)?;
        state.unlink(inode);
        state.dir_mut(&dir)?.change(vec![(name, None)]);
        state.note("remove", path, b"");
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let Some(inode) = state.find(path) else { return Ok(()) };
        state.begin(DiskOp::Remove, path)?;
        state.dir_mut(path)?;
        let (dir, name) = state.parent(path)?;
        state.unlink(inode);
        // One change of the parent: an operating system removes the content first, and may stop at any point of that. Whoever
        // relies on the content being gone relies on the name being gone.
        state.dir_mut(&dir)?.change(vec![(name, None)]);
        state.note("remove all", path, b"");
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut state = self.lock();
        state.begin(DiskOp::List, path)?;
        Ok(state.dir_mut(path)?.names.keys().cloned().collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.dir_mut(path)?;
        if state.sync(path)? {
            let dir = state.dir_mut(path)?;
            dir.durable = dir.names.clone();
            dir.pending.clear();
        }
        Ok(())
    }

    fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        let have = state.file(path)?.len();
        let Some(len) = usize::try_from(len).ok().filter(|len| *len <= have) else {
            return Err(error(io::ErrorKind::InvalidInput, path, "is shorter than it should be cut to"));
        };
        state.begin(DiskOp::Remove, path)?;
        let inode = state.existing(path)?;
        let durable = state.sync(path)?;
        if let Some(Inode::File { bytes, synced, confirmed, .. }) = state.inodes.get_mut(&inode) {
            bytes.truncate(len);
            *synced = if durable { len } else { (*synced).min(len) };
            *confirmed = (*confirmed).min(len);
        }
        state.note("truncate", path, &len.to_le_bytes());
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity.saturating_sub(state.used()))
    }
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: InodeId,
    boot: u64,
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        if state.boot == self.boot {
            Ok(state)
        } else {
            Err(error(io::ErrorKind::BrokenPipe, &self.path, "was open in a process that crashed"))
        }
    }
}

impl AppendFile for SimFile {
    fn append(&mut self, added: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        let free = state.capacity.saturating_sub(if state.capacity == u64::MAX { 0 } else { state.used() });
        let fits = usize::try_from(free).unwrap_or(usize::MAX).min(added.len());
        let failed = state.begin(DiskOp::Append, &self.path);
        if state.knobs.is_burnt() {
            return failed; // not a byte of it
        }
        let written = if failed.is_err() { state.rng.random_range(0..=fits) } else { fits };
        if let Some(Inode::File { bytes, .. }) = state.inodes.get_mut(&self.inode) {
            bytes.extend_from_slice(&added[..written]);
        }
        state.note("append", &self.path, &added[..written]);
        failed?;
        if written < added.len() {
            *state.counts.entry("appends to a full disk").or_default() += 1;
            return Err(error(io::ErrorKind::StorageFull, &self.path, "does not fit: the simulated disk is full"));
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state()?;
        let path = self.path.clone();
        if state.sync(&path)?
            && let Some(Inode::File { bytes, synced, confirmed, .. }) = state.inodes.get_mut(&self.inode)
            && *synced < bytes.len()
        {
            (*confirmed, *synced) = (*synced, bytes.len());
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        match self.state().as_deref().map(|state| state.inodes.get(&self.inode)) {
            Ok(Some(Inode::File { bytes, .. })) => bytes.len() as u64,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use nearring_node::medium::write_durably;
    use proptest::prelude::*;

    fn put(disk: &SimDisk, path: &str, bytes: &[u8], sync: bool) {
        let mut file = disk.open_append(Path::new(path)).unwrap();
        file.append(bytes).unwrap();
        if sync {
            file.sync().unwrap();
        }
    }

    /// What crashes left of `set up`, over many seeds.
    fn outcomes<T: Ord>(set_up: impl Fn(&SimDisk), look: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
        let crash = |seed| {
            let disk = SimDisk::new(seed);
            set_up(&disk);
            disk.crash();
            look(&disk)
        };
        (0..200).map(crash).collect()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_any_prefix_of_the_rest() {
        let path = Path::new("/log");
        let left = outcomes(
            |disk| {
                let mut file = disk.open_append(path).unwrap();
                disk.sync_dir(Path::new("/")).unwrap();
                file.append(b"ab").unwrap();
                file.sync().unwrap();
                file.append(b"cd").unwrap();
            },
            |disk| disk.read(path).unwrap(),
        );
        assert_eq!(left, ["ab", "abc", "abcd"].into_iter().map(Bytes::from).collect());
    }

    #[test]
    fn names_last_only_with_their_directory() {
        let look = |disk: &SimDisk| (disk.exists(Path::new("/a")).unwrap(), disk.exists(Path::new("/b")).unwrap());
        // Synced bytes do not keep an unsynced name.
        assert_eq!(outcomes(|disk| put(disk, "/a", b"x", true), look), [(false, false), (true, false)].into());
        // A rename happens whole or not at all; what was not renamed yet comes back.
        let renamed = |disk: &SimDisk| {
            put(disk, "/a", b"x", true);
            disk.sync_dir(Path::new("/")).unwrap();
            disk.rename(Path::new("/a"), Path::new("/b")).unwrap();
        };
        assert_eq!(outcomes(renamed, look), [(true, false), (false, true)].into());
        // A removal that was not synced may be undone; one that was stays.
        let removed = |disk: &SimDisk| {
            put(disk, "/a", b"x", true);
            disk.sync_dir(Path::new("/")).unwrap();
            disk.remove_file(Path::new("/a")).unwrap();
        };
        assert_eq!(outcomes(removed, look), [(true, false), (false, false)].into());
        let synced = |disk: &SimDisk| {
            removed(disk);
            disk.sync_dir(Path::new("/")).unwrap();
        };
        assert_eq!(outcomes(synced, look), [(false, false)].into());
        // A synced file in a directory whose own name was not synced is lost with it.
        let nested = |disk: &SimDisk| {
            disk.create_dir_all(Path::new("/d/e")).unwrap();
            put(disk, "/d/e/f", b"x", true);
            disk.sync_dir(Path::new("/d/e")).unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
        };
        let file_there = |disk: &SimDisk| disk.exists(Path::new("/d/e/f")).unwrap();
        assert_eq!(outcomes(nested, file_there), [false, true].into());
    }

    #[test]
    fn what_is_written_durably_is_as_it_was_or_complete() {
        let path = Path::new("/d/identity");
        let outcomes = |finished: bool| {
            outcomes(
                |disk| {
                    disk.create_dir_all(Path::new("/d")).unwrap();
                    disk.sync_dir(Path::new("/")).unwrap();
                    write_durably(disk, path, b"first").unwrap();
                    if finished {
                        write_durably(disk, path, b"second").unwrap();
                    } else {
                        disk.fail_syncs(1);
                        assert!(write_durably(disk, path, b"second").is_err());
                    }
                },
                |disk| disk.read(path).unwrap(),
            )
        };
        assert_eq!(outcomes(true), [Bytes::from("second")].into());
        assert_eq!(outcomes(false), [Bytes::from("first")].into());
    }

    #[test]
    fn torn_blocks_are_zeros_beyond_the_synced_end_only() {
        let mut torn = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            disk.set_faults(Faults { torn_blocks: true, ..Faults::default() });
            put(&disk, "/log", &[7; 700], true);
            disk.sync_dir(Path::new("/")).unwrap();
            put(&disk, "/log", &[7; 3000], false);
            disk.crash();
            let left = disk.read(Path::new("/log")).unwrap();
            assert_eq!(left[..700], [7; 700]);
            torn += usize::from(left[700..].contains(&0));
        }
        assert!(torn > 10, "{torn} of 50 crashes tore a block");
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_says_so() {
        let disk = SimDisk::new(1);
        disk.set_capacity(5);
        let mut file = disk.open_append(Path::new("/a")).unwrap();
        file.append(b"abc").unwrap();
        assert_eq!(disk.free_bytes(Path::new("/")).unwrap(), 2);
        assert_eq!(file.append(b"def").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.read(Path::new("/a")).unwrap(), Bytes::from("abcde"));
        disk.remove_file(Path::new("/a")).unwrap();
        assert_eq!(disk.free_bytes(Path::new("/")).unwrap(), 5);
    }

    #[test]
    fn failed_and_pretended_syncs_keep_nothing() {
        let lost = |set_up: &dyn Fn(&SimDisk)| {
            outcomes(
                |disk| {
                    drop(disk.open_append(Path::new("/a")).unwrap());
                    disk.sync_dir(Path::new("/")).unwrap();
                    set_up(disk);
                },
                |disk| disk.len(Path::new("/a")).unwrap(),
            )
        };
        let failed = lost(&|disk| {
            disk.fail_syncs(1);
            let mut file = disk.open_append(Path::new("/a")).unwrap();
            file.append(b"x").unwrap();
            assert!(file.sync().is_err());
        });
        let pretended = lost(&|disk| {
            disk.set_faults(Faults { lie_about_syncs: true, ..Faults::default() });
            put(disk, "/a", b"x", true);
        });
        assert_eq!((failed, pretended), ([0, 1].into(), [0, 1].into()));
    }

    #[test]
    fn a_handle_of_before_the_crash_is_dead() {
        let disk = SimDisk::new(1);
        let mut old = disk.open_append(Path::new("/a")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        disk.crash();
        assert!(old.append(b"late").is_err() && old.sync().is_err());
        assert_eq!(disk.len(Path::new("/a")).unwrap(), 0);
    }

    #[test]
    fn a_flipped_bit_is_one_bit_of_what_was_confirmed() {
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            disk.create_dir_all(Path::new("/segments")).unwrap();
            put(&disk, "/segments/x", &[0; 64], true);
            assert_eq!(
                disk.flip_bit(true, |path| path.contains("segments")),
                None,
                "nothing shows that it had been synced"
            );
            assert!(SimDisk::flip_bit(&disk.clone(), false, |path| path.contains("nowhere")).is_none());
            put(&disk, "/segments/x", &[0; 64], true);
            let (path, at) = disk.flip_bit(true, |path| path.contains("segments")).unwrap();
            let bytes = disk.read(&path).unwrap();
            assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
            assert!(bytes[at].count_ones() == 1 && at < 64);
            assert_eq!(disk.flip_bit(true, |path| path.contains("elsewhere")), None);
        }
    }

    #[test]
    fn a_wrong_read_is_one_bit_and_once() {
        let disk = SimDisk::new(3);
        put(&disk, "/a", &[0; 64], true);
        disk.misread("a", 1);
        let ones = |bytes: Bytes| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
        assert_eq!(ones(disk.read_range(Path::new("/a"), 8, 16).unwrap()), 1);
        assert_eq!(ones(disk.read(Path::new("/a")).unwrap()), 0);
        assert_eq!(disk.counts()["wrong reads"], 1);
    }

    /// Every operation fails on request, changes nothing then (an append: a prefix at most), and works again afterwards.
    #[test]
    fn every_operation_fails_on_request() {
        let path = Path::new;
        for op in DiskOp::ALL {
            let disk = SimDisk::new(5);
            put(&disk, "/a", b"abc", true);
            let mut file = disk.open_append(path("/a")).unwrap();
            let before = disk.files();
            disk.fail(op, 1.0);
            let failed = match op {
                DiskOp::Create => disk.open_append(path("/b")).is_err() && disk.create_dir_all(path("/d")).is_err(),
                DiskOp::Append => file.append(b"d").is_err(),
                DiskOp::Sync => file.sync().is_err() && disk.sync_dir(path("/")).is_err(),
                DiskOp::Rename => disk.rename(path("/a"), path("/b")).is_err(),
                DiskOp::Remove => disk.remove_file(path("/a")).is_err() && disk.truncate(path("/a"), 1).is_err(),
                DiskOp::Read => disk.read(path("/a")).is_err() && disk.map(path("/a")).is_err(),
                DiskOp::List => disk.list(path("/")).is_err() && disk.exists(path("/a")).is_err(),
            };
            assert!(failed && disk.counts()[op.failed()] >= 1, "{op:?}");
            assert_eq!(disk.files(), before);
            disk.fail(op, 0.0);
            assert!(disk.exists(path("/a")).unwrap() && disk.read(path("/a")).unwrap().starts_with(b"abc"));
        }
    }

    /// Whatever was being done, the n-th operation that changes the disk and all after it do not happen.
    #[test]
    fn a_fuse_freezes_the_disk_at_exactly_the_nth_operation() {
        let path = |path: &'static str| Path::new(path);
        for effects in 0..9 {
            let (disk, knobs) = (SimDisk::new(effects), Knobs::default());
            disk.attach(&knobs);
            knobs.set_fuse(Some(effects));
            let mut done = 0;
            for number in 0..3 {
                let name = format!("/{number}");
                let Ok(mut file) = disk.open_append(Path::new(&name)) else { break };
                done += 1;
                for _ in 0..2 {
                    done += u64::from(file.append(b"x").is_ok());
                }
            }
            assert_eq!((done, knobs.is_burnt()), (effects, true));
            let image = disk.files();
            assert!(disk.remove_file(path("/0")).is_err() && disk.read(path("/0")).is_err());
            disk.crash();
            knobs.reset();
            assert!(disk.files().iter().all(|file| image.contains(file)));
        }
    }

    proptest! {
        /// A model that keeps two copies of everything agrees after any sequence that ends in syncs of all of it.
        #[test]
        fn everything_synced_survives(seed in any::<u64>(), steps in proptest::collection::vec((0u8..6, 0u8..4, 0u8..4), 0..40)) {
            let disk = SimDisk::new(seed);
            let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let name = |n: u8| format!("/{n}");
            for (step, a, b) in steps {
                let (a, b) = (name(a), name(b));
                match step {
                    0..=2 => {
                        put(&disk, &a, a.as_bytes(), step == 0);
                        model.entry(a.clone()).or_default().extend_from_slice(a.as_bytes());
                    }
                    3 => {
                        prop_assert_eq!(disk.rename(Path::new(&a), Path::new(&b)).is_ok(), model.contains_key(&a));
                        if let Some(bytes) = model.remove(&a) {
                            model.insert(b, bytes);
                        }
                    }
                    4 => {
                        prop_assert_eq!(disk.remove_file(Path::new(&a)).is_ok(), model.remove(&a).is_some());
                    }
                    _ => {
                        if let Some(bytes) = model.get_mut(&a) {
                            bytes.truncate(1);
                            disk.truncate(Path::new(&a), 1).unwrap();
                        }
                    }
                }
            }
            for path in model.keys() {
                disk.open_append(Path::new(path)).unwrap().sync().unwrap();
            }
            disk.sync_dir(Path::new("/")).unwrap();
            disk.crash();
            let left = disk.list(Path::new("/")).unwrap().into_iter().map(|name| {
                let path = format!("/{name}");
                let bytes = disk.read(Path::new(&path)).unwrap().to_vec();
                (path, bytes)
            }).collect::<BTreeMap<_, _>>();
            prop_assert_eq!(left, model);
        }
    }
}
