//! The directory that archives lie in.
//!
//! ```text
//! DIRECTORY/COLLECTION/COLLECTION-DIGITS-2027-01-31-23-59-59.snapshot             named as Qdrant names them
//! DIRECTORY/COLLECTION/COLLECTION-DIGITS-2027-01-31-23-59-59.snapshot.checksum    its SHA-256, in hexadecimal
//! DIRECTORY/.partial/                                                             what is being written or received
//! DIRECTORY/.lock                                                                 held by the router that uses it
//! ```
//! **Rules:** a file under its final name is whole: it was written under another, synced, then renamed, and the directory synced.
//! What is half written goes away with its writer, or at the next start. What a client gives as a name is one only if it looks like
//! one ([`is_name`]); it is never a path. One router uses a directory: two would clear away each other's halves.
#![allow(
    clippy::disallowed_methods,
    reason = "a router has no other place on disk than this one, and this module is it"
)]
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;

const PARTIAL: &str = ".partial";
const LOCK: &str = ".lock";
const ENDING: &str = ".snapshot";
const CHECKSUM: &str = ".checksum";
const NAME_BYTES_MAX: usize = 200;

/// An archive that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// When it was written: milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal; `None` where it is not known.
    pub sha256: Option<String>,
}

/// The directory, which no other router uses.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    next: AtomicU64,
    _lock: File,
}

/// A file that goes away unless it is published.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    published: bool,
}

impl Temporary {
    /// Opens it for reading, from its beginning.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a half-written snapshot stays until the next start");
        }
    }
}

/// Whether a name can be that of an archive. So it is no path, and hidden from nobody.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let stem = name.strip_suffix(ENDING).unwrap_or_default();
    name.len() <= NAME_BYTES_MAX
        && stem.bytes().all(plain)
        && stem.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
}

/// The name of an archive. `digits` tell those of one second apart.
pub fn name(collection: &str, digits: u64, now_ms: u64) -> String {
    let at = i64::try_from(now_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    let digits = digits % 10_000_000_000_000_000;
    format!("{collection}-{digits:016}-{}{ENDING}", at.strftime("%Y-%m-%d-%H-%M-%S"))
}

impl Directory {
    /// Opens the directory, makes it where it is missing, and removes what was left half written.
    ///
    /// # Errors
    /// Of the file system; [`io::ErrorKind::WouldBlock`] where another router has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let root = fs::canonicalize(path)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(root.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another router uses it; give each its own")
            }
            fs::TryLockError::Error(error) => error,
        })?;
        let partial = root.join(PARTIAL);
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&partial)?,
        }
        sync_dir(&root)?;
        Ok(Self { root, next: AtomicU64::new(1), _lock: lock })
    }

    /// Where it is, without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A new empty file, and how to write it.
    ///
    /// # Errors
    /// Of the file system.
    pub fn temporary(&self) -> io::Result<(Temporary, File)> {
        let path = self.root.join(PARTIAL).join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok((Temporary { path, published: false }, file))
    }

    /// Makes a written file durable and gives it its name.
    ///
    /// # Errors
    /// Of the file system; the file is gone then.
    pub fn publish(
        &self,
        mut written: Temporary,
        file: &File,
        collection: &str,
        name: &str,
        sha256: &str,
    ) -> io::Result<Described> {
        let folder = self.folder(collection)?;
        if !is_name(name) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of a snapshot"));
        }
        if !folder.is_dir() {
            fs::create_dir_all(&folder)?;
            sync_dir(&self.root)?;
        }
        file.sync_all()?;
        let (checksum, mut checksum_file) = self.temporary()?;
        checksum_file.write_all(sha256.as_bytes())?;
        checksum_file.sync_all()?;
        let checksum_path = folder.join(format!("{name}{CHECKSUM}"));
        let path = folder.join(name);
        let renamed = checksum.rename(&checksum_path).and_then(|()| fs::rename(&written.path, &path));
        if let Err(error) = renamed {
            remove(&checksum_path)?;
            return Err(error);
        }
        written.published = true;
        sync_dir(&folder)?;
        let metadata = file.metadata()?;
        Ok(described(name.to_owned(), &metadata, Some(sha256.to_owned())))
    }

    /// Every archive of a collection, oldest first. None where there is no such folder.
    ///
    /// # Errors
    /// Of the file system.
    pub fn list(&self, collection: &str) -> io::Result<Vec<Described>> {
        let folder = self.folder(collection)?;
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().filter(|name| is_name(name)).map(str::to_owned) else {
                continue;
            };
            // It may be deleted at this very moment.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                let sha256 = fs::read_to_string(folder.join(format!("{name}{CHECKSUM}"))).ok();
                found.push(described(name, &metadata, sha256));
            }
        }
        found.sort_by(|a, b| (a.created_ms, &a.name).cmp(&(b.created_ms, &b.name)));
        Ok(found)
    }

    /// Opens an archive for reading, and its length; `None` where there is none of this name.
    ///
    /// # Errors
    /// Of the file system.
    pub fn read(&self, collection: &str, name: &str) -> io::Result<Option<(File, u64)>> {
        if !is_name(name) {
            return Ok(None);
        }
        match File::open(self.folder(collection)?.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => {
                let file = file?;
                let metadata = file.metadata()?;
                Ok(metadata.is_file().then_some((file, metadata.len())))
            }
        }
    }

    /// Opens a file that a client names by its path, where that lies in this directory and is no half-written one.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]; [`io::ErrorKind::PermissionDenied`] outside; of the file system.
    pub fn read_path(&self, path: &Path) -> io::Result<File> {
        let path = fs::canonicalize(path)?;
        let inside = path.strip_prefix(&self.root).ok();
        let hidden = |part: &std::ffi::OsStr| part.as_encoded_bytes().first() == Some(&b'.');
        if inside.is_none_or(|inside| inside.iter().any(hidden)) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(file)
    }

    /// Deletes an archive; whether it was there.
    ///
    /// # Errors
    /// Of the file system.
    pub fn delete(&self, collection: &str, name: &str) -> io::Result<bool> {
        if !is_name(name) {
            return Ok(false);
        }
        let folder = self.folder(collection)?;
        let existed = remove(&folder.join(name))?;
        remove(&folder.join(format!("{name}{CHECKSUM}")))?;
        if existed {
            sync_dir(&folder)?;
        }
        Ok(existed)
    }

    fn folder(&self, collection: &str) -> io::Result<PathBuf> {
        // The names of collections are checked long before; one that is a path would be a fault.
        match nearring_proto::collection::check_name(collection, "collection") {
            Ok(()) => Ok(self.root.join(collection)),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidInput, error.to_string())),
        }
    }
}

impl Temporary {
    fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.published = true;
        Ok(())
    }
}

fn described(name: String, metadata: &fs::Metadata, sha256: Option<String>) -> Described {
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let created_ms = modified.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    Described { name, created_ms, bytes: metadata.len(), sha256 }
}

fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::Read;

    use super::*;

    #[test]
    fn names_are_qdrants_and_never_paths() {
        let named = name("books", 12_345_678_901_234_567_890, 1_801_439_999_000);
        assert_eq!(named, "books-5678901234567890-2027-01-31-23-59-59.snapshot");
        assert!(is_name(&named) && is_name("_a.b-c.snapshot"));
        let long = format!("{}.snapshot", "a".repeat(NAME_BYTES_MAX));
        for name in [
            "",
            ".snapshot",
            "..snapshot",
            "a",
            "a.snapshot.checksum",
            "/etc/passwd",
            "../a.snapshot",
            "a/b.snapshot",
            "..%2Fa.snapshot",
            "a\\b.snapshot",
            "a\0.snapshot",
            "é.snapshot",
            "-.snapshot",
            long.as_str(),
        ] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn what_is_published_stays_and_halves_go() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(&place.path().join("a/b")).unwrap();
        assert_eq!(directory.list("books").unwrap(), []);
        let name = name("books", 7, 0);
        let (temporary, mut file) = directory.temporary().unwrap();
        file.write_all(b"content").unwrap();
        let published = directory.publish(temporary, &file, "books", &name, "abc").unwrap();
        assert_eq!((published.bytes, published.sha256.as_deref()), (7, Some("abc")));
        assert_eq!(directory.list("books").unwrap(), [published]);
        let (_, path) = directory.temporary().map(|(half, _)| (half.open().unwrap(), half.path.clone())).unwrap();
        assert!(!path.exists(), "dropped, it is gone");
        let (half, _) = directory.temporary().unwrap();
        std::mem::forget(half);
        assert_eq!(Directory::open(directory.root()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let root = directory.root().to_owned();
        drop(directory);
        let directory = Directory::open(&root).unwrap();
        assert_eq!(fs::read_dir(root.join(PARTIAL)).unwrap().count(), 0, "left by one that was killed");
        let (mut file, len) = directory.read("books", &name).unwrap().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), len), ("content", 7));
        assert!(directory.delete("books", &name).unwrap());
        assert!(!directory.delete("books", &name).unwrap());
        assert_eq!(fs::read_dir(root.join("books")).unwrap().count(), 0);
    }

    #[test]
    fn nothing_outside_is_reached() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(&place.path().join("snapshots")).unwrap();
        let outside = place.path().join("secret.snapshot");
        fs::write(&outside, "x").unwrap();
        fs::create_dir(directory.root().join("books")).unwrap();
        let inside = directory.root().join("books/a.snapshot");
        fs::write(&inside, "x").unwrap();
        assert!(directory.read_path(&inside).is_ok());
        let kind = |path: &Path| directory.read_path(path).unwrap_err().kind();
        assert_eq!(kind(&outside), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(&directory.root().join("../secret.snapshot")), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(&directory.root().join(LOCK)), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(directory.root()), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(&directory.root().join("books/b.snapshot")), io::ErrorKind::NotFound);
        std::os::unix::fs::symlink(&outside, directory.root().join("books/link.snapshot")).unwrap();
        assert_eq!(kind(&directory.root().join("books/link.snapshot")), io::ErrorKind::PermissionDenied);
        assert!(directory.read("..", "a.snapshot").is_err());
        assert!(directory.read("books", "../../secret.snapshot").unwrap().is_none());
    }
}
