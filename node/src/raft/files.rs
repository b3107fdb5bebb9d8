//! Files on their way between nodes: pieces out of a complete one, pieces into a new one.
//!
//! A file that is being received is removed again unless [`Incoming::finish`] has made it durable, and has exactly the
//! announced length then. What is in it, its receiver checks.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::compute::Compute;
use crate::medium::{AppendFile, Medium};

/// Bytes of one piece.
pub(crate) const PIECE: u64 = 1 << 20;

/// Removes a file when dropped; one that is gone or was renamed it leaves alone.
#[derive(Debug)]
pub(crate) struct RemoveOnDrop {
    medium: Arc<dyn Medium>,
    path: PathBuf,
    armed: bool,
}

impl RemoveOnDrop {
    pub(crate) fn new(medium: Arc<dyn Medium>, path: PathBuf) -> Self {
        Self { medium, path, armed: true }
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = self.medium.remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file stays behind");
        }
    }
}

/// A file being received.
pub(crate) struct Incoming {
    compute: Compute,
    file: Option<Box<dyn AppendFile>>,
    remover: RemoveOnDrop,
    length: u64,
    received: u64,
}

impl Incoming {
    /// Starts a file of `length` bytes at `path`; whatever was there is removed.
    pub(crate) async fn create(
        medium: Arc<dyn Medium>,
        compute: Compute,
        path: PathBuf,
        length: u64,
    ) -> io::Result<Self> {
        let remover = RemoveOnDrop::new(medium.clone(), path.clone());
        let file = compute
            .io(move || {
                if let Some(parent) = path.parent() {
                    medium.create_dir_all(parent)?;
                }
                if medium.exists(&path)? {
                    medium.remove_file(&path)?;
                }
                medium.open_append(&path)
            })
            .await?;
        Ok(Self { compute, file: Some(file), remover, length, received: 0 })
    }

    /// Adds a piece.
    pub(crate) async fn append(&mut self, piece: Bytes) -> io::Result<()> {
        self.received += piece.len() as u64;
        if self.received > self.length {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} bytes and more arrived, {} were announced", self.received, self.length),
            ));
        }
        // After an error the file's end is unknown: it is not put back.
        let Some(mut file) = self.file.take() else {
            return Err(io::Error::other("an earlier piece could not be written"));
        };
        let (file, written) = self
            .compute
            .io(move || {
                let written = file.append(&piece);
                (file, written)
            })
            .await;
        written?;
        self.file = Some(file);
        Ok(())
    }

    /// Makes the file durable, and leaves it to the returned guard, or to the caller if that is kept from dropping.
    pub(crate) async fn finish(mut self) -> io::Result<RemoveOnDrop> {
        if self.received != self.length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the sender stopped after {} of {} bytes", self.received, self.length),
            ));
        }
        let Some(mut file) = self.file.take() else {
            return Err(io::Error::other("an earlier piece could not be written"));
        };
        let (medium, path) = (self.remover.medium.clone(), self.remover.path.clone());
        self.compute
            .io(move || {
                file.sync()?;
                drop(file);
                path.parent().map_or(Ok(()), |parent| medium.sync_dir(parent))
            })
            .await?;
        Ok(self.remover)
    }
}

impl RemoveOnDrop {
    /// Keeps the file.
    pub(crate) fn keep(mut self) {
        self.armed = false;
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The piece of a file at `offset`, at most [`PIECE`] bytes; empty at the end.
pub(crate) async fn piece(
    medium: &Arc<dyn Medium>,
    compute: &Compute,
    path: &Path,
    offset: u64,
    length: u64,
) -> io::Result<Bytes> {
    let len = usize::try_from(length.saturating_sub(offset).min(PIECE)).unwrap_or(0);
    if len == 0 {
        return Ok(Bytes::new());
    }
    let (medium, path) = (medium.clone(), path.to_owned());
    compute.io(move || medium.read_range(&path, offset, len)).await
}
