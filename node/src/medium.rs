//! The storage medium: the only thing in the node that touches files (the key-value engine excepted).
//!
//! The simulator hands in its own medium, which forgets unsynced bytes on a crash and fails on request; everything above
//! runs unchanged. What callers may assume of a medium, and nothing more:
//!
//! - bytes appended are durable only once [`AppendFile::sync`] has returned; before that a crash may keep any prefix;
//! - a created, renamed or removed name is durable only once [`Medium::sync_dir`] on its directory has returned;
//! - [`Medium::rename`] replaces the target in one step;
//! - a file is appended to or complete: a file that was mapped is never written again.
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;

/// Files and directories. All calls block; call them where blocking is allowed.
pub trait Medium: Debug + Send + Sync + 'static {
    /// Creates a directory and its parents. Does nothing where it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Opens a file for appending at its end, creating it where it does not exist.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// The whole file, copied to memory.
    fn read(&self, path: &Path) -> io::Result<Bytes>;
    /// `len` bytes from `offset`; [`io::ErrorKind::UnexpectedEof`] where the file is shorter.
    fn read_range(&self, path: &Path, offset: u64, len: usize) -> io::Result<Bytes>;
    /// The whole file, mapped where the medium can. Only for complete files.
    fn map(&self, path: &Path) -> io::Result<Bytes>;
    /// Length in bytes.
    fn len(&self, path: &Path) -> io::Result<u64>;
    /// Whether the name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Renames a file or directory, replacing the target file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all in it. Does nothing where it does not exist.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Cuts a file to `len` bytes, and syncs it.
    fn truncate(&self, path: &Path, len: u64) -> io::Result<()>;
    /// Bytes that an unprivileged process can still write to the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// A file open for appending; one writer at a time.
pub trait AppendFile: Send {
    /// Writes all of `bytes` at the end. After an error the file's end is unknown.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything appended so far durable. After an error nothing is known about it: never retry.
    fn sync(&mut self) -> io::Result<()>;
    /// Bytes in the file, synced or not.
    fn len(&self) -> u64;
    /// Whether nothing is in the file.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Writes a file so that after a crash it is either absent (or as it was) or complete: temporary name, sync, rename, sync of the
/// directory.
///
/// # Errors
/// Any error of the medium; the target is then as it was, or complete.
pub fn write_durably(medium: &dyn Medium, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().map(|name| name.to_os_string()).unwrap_or_default();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    if medium.exists(&temporary)? {
        medium.remove_file(&temporary)?;
    }
    let mut file = medium.open_append(&temporary)?;
    file.append(bytes)?;
    file.sync()?;
    drop(file);
    medium.rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => medium.sync_dir(parent),
        None => Ok(()),
    }
}

/// Creates a directory and makes the last `levels` names of its path durable: without that a crash takes the directory away, with
/// every durable file in it. Also where it exists: whoever created it may have ended before the sync.
///
/// # Errors
/// Any error of the medium.
pub fn create_dir_durably(medium: &dyn Medium, path: &Path, levels: usize) -> io::Result<()> {
    medium.create_dir_all(path)?;
    path.ancestors().skip(1).take(levels).try_for_each(|parent| medium.sync_dir(parent))
}

/// The operating system's files.
#[derive(Clone, Copy, Default, Debug)]
pub struct OsMedium;

struct OsAppendFile {
    file: File,
    len: u64,
}

impl AppendFile for OsAppendFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> u64 {
        self.len
    }
}

#[allow(clippy::disallowed_methods, reason = "the medium's production side")]
impl Medium for OsMedium {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Box::new(OsAppendFile { file, len }))
    }

    fn read(&self, path: &Path) -> io::Result<Bytes> {
        Ok(Bytes::from(fs::read(path)?))
    }

    fn read_range(&self, path: &Path, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes)?;
        Ok(Bytes::from(bytes))
    }

    fn map(&self, path: &Path) -> io::Result<Bytes> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: only complete files are mapped; they are never written or cut again, and removing the name leaves the
        // mapping intact. The data directory belongs to one process.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Bytes::from_owner(map))
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name();
            names.push(name.into_string().map_err(|name| {
                io::Error::new(io::ErrorKind::InvalidData, format!("file name {name:?} is not unicode; remove it"))
            })?);
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // The parent of a relative name without directories is "", which cannot be opened.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        File::open(path)?.sync_all()
    }

    fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(len)?;
        file.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_is_written_durably_replaces_what_was_there_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        write_durably(&OsMedium, &path, b"first, and longer").unwrap();
        write_durably(&OsMedium, &path, b"second").unwrap();
        assert_eq!(OsMedium.read(&path).unwrap(), Bytes::from_static(b"second"));
        assert_eq!(OsMedium.list(dir.path()).unwrap(), vec!["identity".to_owned()]);
    }

    #[test]
    fn appends_continue_at_the_end_and_ranges_end_at_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = OsMedium.open_append(&path).unwrap();
        file.append(b"abc").unwrap();
        drop(file);
        let mut file = OsMedium.open_append(&path).unwrap();
        assert_eq!(file.len(), 3);
        file.append(b"def").unwrap();
        file.sync().unwrap();
        assert_eq!(OsMedium.read_range(&path, 2, 3).unwrap(), Bytes::from_static(b"cde"));
        assert_eq!(OsMedium.read_range(&path, 4, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(OsMedium.map(&path).unwrap(), Bytes::from_static(b"abcdef"));
        OsMedium.truncate(&path, 2).unwrap();
        assert_eq!(OsMedium.len(&path).unwrap(), 2);
        assert!(OsMedium.free_bytes(dir.path()).unwrap() > 0);
    }

    #[test]
    fn an_empty_file_maps_and_a_missing_directory_is_already_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        drop(OsMedium.open_append(&path).unwrap());
        assert!(OsMedium.map(&path).unwrap().is_empty());
        OsMedium.remove_dir_all(&dir.path().join("absent")).unwrap();
    }
}
