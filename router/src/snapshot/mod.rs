//! Snapshots: a collection in one file, and a collection out of it.
//!
//! The problem: what is deleted by mistake is deleted on every replica, and a cluster is moved or resized more easily as a file than
//! live. **Rules:**
//! - A snapshot holds, of every shard, all points as of one log position, that of a linearizable read: it has every write that was
//!   acknowledged before it was asked for. It is read through the nodes' `Export` while writes go on
//!   ([`Pipeline::export`](crate::pipeline::Pipeline::export)), so it knows nothing of segments, replicas or the number of shards, and is
//!   restored into any cluster ([`restore`]).
//! - [`archive`] is the file, [`store`] the directory that it lies in. A file that is listed is whole.
//! - Each direction holds a few blocks in memory, whatever the collection's size, and only so many go on at once ([`RUNNING`]).
//! - Work that has begun goes on though its caller goes away: a restore that is cut off by a client's time limit would be worse.
//!
//! What it deliberately does not do: snapshots of single shards or of a whole cluster with its aliases, and restoring over a
//! collection that has points. Snapshots lie where their router is; another router of the cluster does not list them.
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use nearring_proto::clock::Clock;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub mod archive;
mod fetch;
pub mod multipart;
pub mod restore;
pub mod store;

pub use restore::Restored;
pub use store::Described;

use self::fetch::Location;
use self::store::{Directory, Temporary};
use crate::compute::{Compute, EndedEarly};
use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;

/// Snapshots that are written or restored at once; one more is refused.
pub const RUNNING: usize = 4;
/// Bytes of a download's pieces.
const PIECE: usize = 256 << 10;

/// Where a router keeps snapshots, and how large they may come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotSettings {
    /// The directory, which no other router uses; made where it is missing.
    pub directory: PathBuf,
    /// The most bytes that are taken from a client, or fetched from a server.
    pub upload_bytes_max: u64,
}

impl SnapshotSettings {
    /// [`SnapshotSettings::upload_bytes_max`] where none is given: 64 GiB.
    pub const UPLOAD_BYTES_MAX: u64 = 64 << 30;
}

/// Why a request about snapshots failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failed {
    /// The router has no directory for them.
    #[error("snapshots (start the router with --snapshots DIRECTORY, or NEARRING_SNAPSHOTS in its environment)")]
    Off,
    /// A path outside the directory.
    #[error("{0}")]
    Forbidden(String),
    /// More bytes than are taken.
    #[error("the snapshot is larger than {0} bytes, which is what this router takes (--snapshot-upload-bytes)")]
    TooLarge(u64),
    /// As any request.
    #[error(transparent)]
    Other(#[from] Error),
}

impl From<EndedEarly> for Failed {
    fn from(error: EndedEarly) -> Self {
        Error::new(Kind::Internal, error.to_string()).into()
    }
}

fn io_failed(error: io::Error) -> Failed {
    Error::new(Kind::Internal, format!("the directory of snapshots: {error}")).into()
}

/// Where snapshots are kept, if anywhere. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots(Option<Arc<Place>>);

struct Place {
    directory: Directory,
    upload_bytes_max: u64,
    clock: Clock,
    running: Arc<Semaphore>,
}

impl Snapshots {
    /// Opens the directory, where there is one.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn open(settings: Option<&SnapshotSettings>, clock: Clock) -> io::Result<Self> {
        let open = |settings: &SnapshotSettings| {
            let directory = Directory::open(&settings.directory)?;
            let running = Arc::new(Semaphore::new(RUNNING));
            Ok(Arc::new(Place { directory, upload_bytes_max: settings.upload_bytes_max, clock, running }))
        };
        settings.map(open).transpose().map(Self)
    }

    /// Whether there are snapshots here.
    ///
    /// # Errors
    /// [`Failed::Off`].
    pub fn check(&self) -> Result<(), Failed> {
        self.place().map(|_| ())
    }

    fn place(&self) -> Result<Arc<Place>, Failed> {
        self.0.clone().ok_or(Failed::Off)
    }
}

impl Place {
    fn begin(&self) -> Result<OwnedSemaphorePermit, Failed> {
        self.running.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{RUNNING} snapshots are being written or restored; try again when one is done");
            Error::new(Kind::Overloaded, message).into()
        })
    }
}

/// What a collection is restored from.
pub enum Source {
    /// A file in the directory (`file:///…`) or at a server, to which the key is sent.
    Location(String, Option<String>),
    /// One that is listed for a collection, by that and its name.
    Listed(String, String),
    /// One that a client sent.
    Received(Upload),
}

/// A snapshot while it comes.
pub struct Upload {
    temporary: Temporary,
    file: File,
    left: u64,
    most: u64,
    compute: Compute,
}

impl Upload {
    /// The most bytes that are taken.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Takes further bytes of it.
    ///
    /// # Errors
    /// [`Failed::TooLarge`]; of the file system.
    pub async fn write(mut self, bytes: impl AsRef<[u8]> + Send + 'static) -> Result<Self, Failed> {
        let length = bytes.as_ref().len() as u64;
        self.left = self.left.checked_sub(length).ok_or(Failed::TooLarge(self.most))?;
        let compute = self.compute;
        let written = move || async move { self.file.write_all(bytes.as_ref()).map(|()| self).map_err(io_failed) };
        compute.run(written).await?
    }
}

/// How a collection is restored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct How {
    /// The SHA-256 that the file must have, in hexadecimal.
    pub sha256: Option<String>,
    /// Shards of the collection where it is created; 0 = as archived.
    pub shards: u32,
}

impl Pipeline {
    /// Writes a snapshot of a collection into the directory.
    ///
    /// # Errors
    /// [`Failed`]; nothing is left then.
    pub async fn create_snapshot(&self, collection: &str) -> Result<Described, Failed> {
        let place = self.snapshots().place()?;
        let permit = place.begin()?;
        let collection = self.describe_collection(collection).await?.spec.name;
        let pipeline = self.clone();
        let work = move || async move {
            let _held = permit;
            let now_ms = place.clock.now_ms();
            let (temporary, file) = place.directory.temporary().map_err(io_failed)?;
            let (file, written) = pipeline.export(&collection, file, now_ms).await?;
            let name = store::name(&collection, pipeline.view().draw(), now_ms);
            let published = place.directory.publish(temporary, &file, &collection, &name, &written.sha256);
            tracing::info!(collection, name, points = written.points, bytes = written.len, "a snapshot was written");
            published.map_err(io_failed)
        };
        self.compute().run(work).await?
    }

    /// The snapshots of a collection, oldest first; also of one that was deleted since.
    ///
    /// # Errors
    /// [`Failed`]; [`Kind::NotFound`] where there is neither the collection nor a snapshot of it.
    pub async fn list_snapshots(&self, collection: &str) -> Result<Vec<Described>, Failed> {
        let place = self.snapshots().place()?;
        let there = self.describe_collection(collection).await.map(|collection| collection.spec.name);
        let name = match &there {
            Ok(name) => name.clone(),
            Err(_) => folder(collection)?,
        };
        let listed =
            self.compute().run(move || async move { place.directory.list(&name).map_err(io_failed) }).await??;
        match there {
            Err(error) if listed.is_empty() => Err(error.into()),
            _ => Ok(listed),
        }
    }

    /// Deletes a snapshot; whether it was there.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn delete_snapshot(&self, collection: &str, name: &str) -> Result<bool, Failed> {
        let place = self.snapshots().place()?;
        let (collection, name) = (self.folder_of(collection).await?, name.to_owned());
        self.compute().run(move || async move { place.directory.delete(&collection, &name).map_err(io_failed) }).await?
    }

    /// A snapshot's length and its bytes.
    ///
    /// # Errors
    /// [`Failed`]; [`Kind::NotFound`].
    pub async fn download_snapshot(
        &self,
        collection: &str,
        name: &str,
    ) -> Result<(u64, BoxStream<'static, io::Result<Bytes>>), Failed> {
        let place = self.snapshots().place()?;
        let (file, length) = self.listed(&place, collection, name).await?;
        let compute = self.compute();
        let pieces = stream::try_unfold(file, move |mut file| async move {
            let read = move || async move {
                let mut piece = Vec::with_capacity(PIECE);
                Read::by_ref(&mut file).take(PIECE as u64).read_to_end(&mut piece).map(|_| (piece, file))
            };
            let (piece, file) = compute.run(read).await.map_err(io::Error::other)??;
            Ok::<_, io::Error>((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
        });
        Ok((length, pieces.boxed()))
    }

    /// Takes a snapshot from a client.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn receive_snapshot(&self) -> Result<Upload, Failed> {
        let place = self.snapshots().place()?;
        let compute = self.compute();
        let opened = compute.run(move || async move {
            let most = place.upload_bytes_max;
            place.directory.temporary().map(|(temporary, file)| (temporary, file, most))
        });
        let (temporary, file, most) = opened.await?.map_err(io_failed)?;
        Ok(Upload { temporary, file, left: most, most, compute })
    }

    /// Restores a snapshot as a collection that is missing or empty.
    ///
    /// # Errors
    /// [`Failed`]; see [`restore`].
    pub async fn restore_snapshot(&self, collection: &str, source: Source, how: How) -> Result<Restored, Failed> {
        let place = self.snapshots().place()?;
        let permit = place.begin()?;
        let collection = folder(collection)?;
        if let Some(sha256) = &how.sha256
            && (sha256.len() != 64 || !sha256.bytes().all(|digit| digit.is_ascii_hexdigit()))
        {
            return Err(Error::invalid("checksum", "must be a SHA-256 of 64 hexadecimal digits").into());
        }
        let pipeline = self.clone();
        let work = move || async move {
            let _held = permit;
            // The temporary file lives as long as it is read.
            let (mut file, _temporary) = pipeline.opened(&place, source).await?;
            if let Some(wanted) = &how.sha256 {
                check_sha256(&mut file, wanted)?;
            }
            Ok::<_, Failed>(restore::restore(&pipeline, &collection, &mut file, how.shards).await?)
        };
        self.compute().run(work).await?
    }

    async fn opened(&self, place: &Place, source: Source) -> Result<(File, Option<Temporary>), Failed> {
        let location = match source {
            Source::Received(Upload { temporary, file, .. }) => return Ok((file, Some(temporary))),
            Source::Listed(collection, name) => return Ok((self.listed(place, &collection, &name).await?.0, None)),
            Source::Location(text, key) => (Location::read(&text)?, key),
        };
        match location {
            (Location::File(path), _) => {
                let file = place.directory.read_path(&path).map_err(|error| match error.kind() {
                    // Whether a file is there is told wherever it is, as Qdrant does: its clients' suites ask for that.
                    io::ErrorKind::NotFound => {
                        Error::new(Kind::Invalid, format!("Bad request: Snapshot file {path:?} does not exist")).into()
                    }
                    io::ErrorKind::PermissionDenied => Failed::Forbidden(
                        "Forbidden: Snapshot file path must be inside the snapshots directory".to_owned(),
                    ),
                    _ => io_failed(error),
                })?;
                Ok((file, None))
            }
            (Location::Http(url), key) => {
                let (temporary, mut file) = place.directory.temporary().map_err(io_failed)?;
                fetch::fetch(&url, key.as_deref(), &mut file, place.upload_bytes_max).await?;
                Ok((file, Some(temporary)))
            }
        }
    }

    async fn listed(&self, place: &Place, collection: &str, name: &str) -> Result<(File, u64), Failed> {
        let collection = self.folder_of(collection).await?;
        let found = place.directory.read(&collection, name).map_err(io_failed)?;
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("Not found: Snapshot {name:?} not found")).into())
    }

    /// The name that a collection's snapshots lie under: its own, where it is called by an alias.
    async fn folder_of(&self, collection: &str) -> Result<String, Failed> {
        match self.describe_collection(collection).await {
            Ok(collection) => Ok(collection.spec.name),
            Err(error) if error.kind == Kind::NotFound => folder(collection),
            Err(error) => Err(error.into()),
        }
    }
}

fn folder(collection: &str) -> Result<String, Failed> {
    nearring_proto::collection::check_name(collection, "collection").map_err(Error::from)?;
    Ok(collection.to_owned())
}

fn check_sha256(file: &mut File, wanted: &str) -> Result<(), Failed> {
    use std::io::Seek;
    file.rewind().map_err(io_failed)?;
    let mut hasher = Sha256::new();
    io::copy(file, &mut hasher).map_err(io_failed)?;
    let found = archive::hex(&hasher.finalize());
    if found.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err(Error::invalid("checksum", format!("is {wanted}, the snapshot has {found}; nothing was changed")).into())
}
