//! A medium in memory that forgets what a crash may forget and fails on request. For tests of whatever writes files.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::medium::{AppendFile, Medium};

/// Files in memory, as one life of the machine sees them. Clones are the same files.
#[derive(Clone, Default, Debug)]
pub(crate) struct FaultMedium {
    disk: Arc<Mutex<Disk>>,
    life: u64,
}

#[derive(Clone, Default, Debug)]
struct Disk {
    files: Vec<FileData>,
    /// Names as a running process sees them, and as a crash leaves them.
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    dirs: Vec<PathBuf>,
    /// Counts crashes: files opened before the last one are dead.
    life: u64,
    syncs: u64,
    capacity: Option<u64>,
    sync_fails: bool,
    stop_in: Option<u64>,
    stopped: bool,
}

#[derive(Clone, Default, Debug)]
struct FileData {
    bytes: Vec<u8>,
    synced: usize,
}

struct OpenFile {
    disk: FaultMedium,
    file: usize,
    life: u64,
}

impl FaultMedium {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    /// The machine stops and starts again. Of every file's unsynced bytes `keep` says how many stay, and may spoil them;
    /// of the names those stay that were synced, or all as they are. Whoever was there before changes nothing any more: the
    /// machine goes on with what is returned.
    #[must_use]
    pub(crate) fn crash(&self, names_stay: bool, mut keep: impl FnMut(&mut [u8]) -> usize) -> FaultMedium {
        let disk = &mut *self.disk();
        disk.life += 1;
        (disk.stop_in, disk.stopped) = (None, false);
        if names_stay {
            disk.durable_names = disk.names.clone();
        } else {
            disk.names = disk.durable_names.clone();
        }
        for file in &mut disk.files {
            let unsynced = &mut file.bytes[file.synced..];
            let kept = keep(unsynced).min(unsynced.len());
            file.bytes.truncate(file.synced + kept);
            file.synced = file.bytes.len();
        }
        FaultMedium { disk: self.disk.clone(), life: disk.life }
    }

    /// Fails for a life that has ended.
    fn live(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.disk();
        if disk.life == self.life { Ok(disk) } else { Err(io::Error::other("the machine crashed")) }
    }

    /// After `syncs` more syncs, of files or directories, the next one and everything else fails until there is a crash.
    pub(crate) fn stop_after(&self, syncs: u64) {
        self.disk().stop_in = Some(syncs);
    }

    /// Another medium with the same files.
    pub(crate) fn copy(&self) -> FaultMedium {
        FaultMedium { disk: Arc::new(Mutex::new(self.disk().clone())), life: self.life }
    }

    /// Turns the bits `mask` of a byte over. On a durable byte that is damage, on one that was not it is a torn write.
    pub(crate) fn flip(&self, path: &Path, offset: usize, mask: u8) {
        let disk = &mut *self.disk();
        disk.files[disk.names[path]].bytes[offset] ^= mask;
    }

    /// From now on syncs fail, or do not.
    pub(crate) fn fail_syncs(&self, fail: bool) {
        self.disk().sync_fails = fail;
    }

    /// From now on all files together take at most so many bytes.
    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// How many syncs of files there were.
    pub(crate) fn syncs(&self) -> u64 {
        self.disk().syncs
    }
}

impl Disk {
    fn alive(&self) -> io::Result<()> {
        if self.stopped { Err(io::Error::other("the machine stopped")) } else { Ok(()) }
    }

    fn count_sync(&mut self) -> io::Result<()> {
        self.alive()?;
        if self.sync_fails {
            return Err(io::Error::other("sync failed on request"));
        }
        self.stopped = self.stop_in == Some(0);
        self.stop_in = self.stop_in.and_then(|left| left.checked_sub(1));
        self.alive()
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used(&self) -> u64 {
        self.names.values().map(|&file| self.files[file].bytes.len() as u64).sum()
    }
}

impl AppendFile for OpenFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let disk = &mut *self.disk.disk();
        if disk.life != self.life {
            return Err(io::Error::other("the machine crashed"));
        }
        disk.alive()?;
        let room = disk.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(disk.used()) as usize);
        disk.files[self.file].bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let disk = &mut *self.disk.disk();
        if disk.life != self.life {
            return Err(io::Error::other("the machine crashed"));
        }
        disk.count_sync()?;
        disk.syncs += 1;
        disk.files[self.file].synced = disk.files[self.file].bytes.len();
        Ok(())
    }

    fn len(&self) -> u64 {
        self.disk.disk().files[self.file].bytes.len() as u64
    }
}

impl Medium for FaultMedium {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk().dirs.push(path.to_owned());
        Ok(())
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let disk = &mut *self.live()?;
        disk.alive()?;
        let file = disk.names.get(path).copied().unwrap_or_else(|| {
            disk.files.push(FileData::default());
            disk.files.len() - 1
        });
        disk.names.insert(path.to_owned(), file);
        Ok(Box::new(OpenFile { disk: self.clone(), file, life: disk.life }))
    }

    fn read(&self, path: &Path) -> io::Result<Bytes> {
        let disk = self.disk();
        Ok(Bytes::copy_from_slice(&disk.files[disk.find(path)?].bytes))
    }

    fn read_range(&self, path: &Path, offset: u64, len: usize) -> io::Result<Bytes> {
        let disk = self.disk();
        let bytes = disk.files[disk.find(path)?].bytes.get(offset as usize..offset as usize + len);
        bytes.map(Bytes::copy_from_slice).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn map(&self, path: &Path) -> io::Result<Bytes> {
        self.read(path)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.read(path).map(|bytes| bytes.len() as u64)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let disk = self.disk();
        Ok(disk.names.contains_key(path) || disk.dirs.iter().any(|dir| dir == path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let disk = &mut *self.disk();
        let file = disk.find(from)?;
        disk.names.remove(from);
        disk.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let disk = &mut *self.live()?;
        disk.alive()?;
        disk.find(path)?;
        disk.names.remove(path);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk().names.retain(|name, _| !name.starts_with(path));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk();
        let names = disk.names.keys().filter(|name| name.parent() == Some(path));
        Ok(names.filter_map(|name| name.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let disk = &mut *self.live()?;
        disk.count_sync()?;
        disk.durable_names.retain(|name, _| name.parent() != Some(path));
        let now = disk.names.iter().filter(|(name, _)| name.parent() == Some(path));
        disk.durable_names.extend(now.map(|(name, file)| (name.clone(), *file)));
        Ok(())
    }

    fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        let disk = &mut *self.disk();
        disk.count_sync()?;
        let file = disk.find(path)?;
        disk.files[file].bytes.truncate(len as usize);
        disk.files[file].synced = disk.files[file].bytes.len();
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let disk = self.disk();
        Ok(disk.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used())))
    }
}
