//! Snapshots of collections: written by a router into its directory, listed, fetched, restored.
//!
//! Writing and restoring take as long as the collection is large, so they have no deadline and are sent once: a router goes on with what
//! it has begun, though the connection breaks.
use futures::stream::{self, Stream, StreamExt};
use nearring_proto::WIRE_FORMAT;
use nearring_proto::wire::{self, restore_snapshot_request as restore};

use crate::client::Client;
use crate::error::Error;

/// What to restore, and how. The collection must be missing or empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restore {
    /// The collection that it becomes.
    pub collection: String,
    /// Shards of it where it is created; 0 = as in the snapshot.
    pub shard_count: u32,
    /// The SHA-256 that the file must have, in hexadecimal; "" = any.
    pub sha256: String,
}

impl Restore {
    fn begin(self) -> restore::Begin {
        let Self { collection, shard_count, sha256 } = self;
        restore::Begin { format: WIRE_FORMAT, collection, shard_count, sha256, ..Default::default() }
    }
}

impl Client {
    /// Writes a snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound), [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where the router
    /// has no directory for them, or a transient kind: then nothing of it is left.
    pub async fn create_snapshot(&self, collection: &str) -> Result<wire::SnapshotInfo, Error> {
        let request = wire::CreateSnapshotRequest { format: WIRE_FORMAT, collection: collection.to_owned() };
        Ok(self.rpc().create_snapshot(request).await?.into_inner())
    }

    /// The snapshots of a collection, oldest first; also of one that was deleted.
    ///
    /// # Errors
    /// As [`Client::create_snapshot`].
    pub async fn list_snapshots(&self, collection: &str) -> Result<Vec<wire::SnapshotInfo>, Error> {
        let request = wire::ListSnapshotsRequest { format: WIRE_FORMAT, collection: collection.to_owned() };
        Ok(self.call(true, request, async |mut rpc, request| rpc.list_snapshots(request).await).await?.snapshots)
    }

    /// Deletes a snapshot; whether it was there.
    ///
    /// # Errors
    /// As [`Client::create_snapshot`].
    pub async fn delete_snapshot(&self, collection: &str, name: &str) -> Result<bool, Error> {
        let (collection, name) = (collection.to_owned(), name.to_owned());
        let request = wire::DeleteSnapshotRequest { format: WIRE_FORMAT, collection, name };
        Ok(self.call(false, request, async |mut rpc, request| rpc.delete_snapshot(request).await).await?.existed)
    }

    /// A snapshot's bytes. A pause longer than the client's deadline ends the stream.
    ///
    /// # Errors
    /// As [`Client::create_snapshot`].
    pub async fn download_snapshot(
        &self,
        collection: &str,
        name: &str,
    ) -> Result<impl Stream<Item = Result<Vec<u8>, Error>> + Send + use<>, Error> {
        let (collection, name) = (collection.to_owned(), name.to_owned());
        let request = wire::DownloadSnapshotRequest { format: WIRE_FORMAT, collection, name };
        let pieces = self.rpc().download_snapshot(request).await?.into_inner();
        Ok(stream::try_unfold((self.clone(), pieces), async |(client, mut pieces)| {
            let piece = match tokio::time::timeout(client.patience(), pieces.message()).await {
                Ok(piece) => piece?,
                Err(_) => return Err(client.no_answer()),
            };
            Ok(piece.map(|piece| (piece.data.to_vec(), (client, pieces))))
        }))
    }

    /// Restores a snapshot that lies at `file:///…` in the router's directory, or at `http(s)://…`.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) where the collection has points,
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) where the file is not a whole snapshot, both before anything is
    /// changed; a transient kind where it did not end: restore the same snapshot again.
    pub async fn restore_from(&self, restore: Restore, location: &str) -> Result<wire::RestoreSnapshotReply, Error> {
        let location = location.to_owned();
        self.restore(restore::Begin { location, ..restore.begin() }, stream::empty()).await
    }

    /// Restores a snapshot that the router lists for `of`.
    ///
    /// # Errors
    /// As [`Client::restore_from`].
    pub async fn restore_listed(
        &self,
        restore: Restore,
        of: &str,
        name: &str,
    ) -> Result<wire::RestoreSnapshotReply, Error> {
        let (name, name_of) = (name.to_owned(), of.to_owned());
        self.restore(restore::Begin { name, name_of, ..restore.begin() }, stream::empty()).await
    }

    /// Restores a snapshot from its bytes, in pieces of at most a few MiB.
    ///
    /// # Errors
    /// As [`Client::restore_from`].
    pub async fn restore_bytes(
        &self,
        restore: Restore,
        pieces: impl Stream<Item = Vec<u8>> + Send + 'static,
    ) -> Result<wire::RestoreSnapshotReply, Error> {
        self.restore(restore.begin(), pieces).await
    }

    async fn restore(
        &self,
        begin: restore::Begin,
        pieces: impl Stream<Item = Vec<u8>> + Send + 'static,
    ) -> Result<wire::RestoreSnapshotReply, Error> {
        let message = |part| wire::RestoreSnapshotRequest { part: Some(part) };
        let first = stream::iter([message(restore::Part::Begin(begin))]);
        let rest = pieces.map(move |piece| message(restore::Part::Data(piece.into())));
        Ok(self.rpc().restore_snapshot(first.chain(rest)).await?.into_inner())
    }
}
