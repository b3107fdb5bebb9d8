//! The calls of the service `Nearring` about snapshots.
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use nearring_proto::wire::{self, restore_snapshot_request as restore};
use tonic::Status;

use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;
use crate::snapshot::{Described, Failed, How, Source};

/// Bytes of a download.
pub(super) type Download = BoxStream<'static, Result<wire::SnapshotBytes, Status>>;

/// How an error looks on the wire.
pub(super) fn refused(error: Failed) -> Status {
    match error {
        Failed::Off => Status::unimplemented(format!("not supported: {error}")),
        Failed::Forbidden(message) => Status::permission_denied(message),
        Failed::TooLarge(_) => Status::invalid_argument(error.to_string()),
        Failed::Other(error) => error.into(),
    }
}

/// One of a listing.
pub(super) fn info(described: Described) -> wire::SnapshotInfo {
    let Described { name, created_ms, bytes, sha256 } = described;
    wire::SnapshotInfo { name, created_ms, bytes, sha256: sha256.unwrap_or_default() }
}

/// A snapshot's bytes.
pub(super) async fn download(pipeline: &Pipeline, collection: &str, name: &str) -> Result<Download, Status> {
    let (_, bytes) = pipeline.download_snapshot(collection, name).await.map_err(refused)?;
    let pieces = bytes.map(|piece| match piece {
        Ok(data) => Ok(wire::SnapshotBytes { data }),
        Err(error) => Err(Status::internal(format!("the snapshot cannot be read: {error}"))),
    });
    Ok(pieces.boxed())
}

/// Restores what the messages say, or carry.
pub(super) async fn restore(
    pipeline: &Pipeline,
    begin: restore::Begin,
    mut messages: impl Stream<Item = Result<wire::RestoreSnapshotRequest, Status>> + Unpin,
) -> Result<wire::RestoreSnapshotReply, Status> {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let how = How { sha256: given(begin.sha256), shards: begin.shard_count };
    let source = match (given(begin.location), given(begin.name)) {
        (Some(_), Some(_)) => return Err(Error::invalid("begin.name", "excludes a location").into()),
        (Some(location), None) => Source::Location(location, given(begin.api_key)),
        (None, Some(name)) => Source::Listed(given(begin.name_of).unwrap_or_else(|| begin.collection.clone()), name),
        (None, None) => {
            let mut upload = pipeline.receive_snapshot().await.map_err(refused)?;
            while let Some(message) = messages.next().await {
                match message?.part {
                    Some(restore::Part::Data(data)) => upload = upload.write(data).await.map_err(refused)?,
                    Some(restore::Part::Begin(_)) | None => {
                        return Err(Error::invalid("data", "is missing in a message after the first").into());
                    }
                }
            }
            Source::Received(upload)
        }
    };
    let restored = pipeline.restore_snapshot(&begin.collection, source, how).await.map_err(refused)?;
    Ok(wire::RestoreSnapshotReply { points: restored.points, shard_count: restored.shards })
}

/// The first message.
pub(super) fn begin(message: Option<wire::RestoreSnapshotRequest>) -> Result<restore::Begin, Error> {
    match message.and_then(|message| message.part) {
        Some(restore::Part::Begin(begin)) => Ok(begin),
        _ => Err(Error::new(Kind::Invalid, "begin: is missing in the first message")),
    }
}
