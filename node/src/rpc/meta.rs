//! The calls about the placement table that any node answers, and what their errors look like on the wire.
//!
//! A refusal carries two things beside its code and text: `nearring-reason`, a word for programs, and, where the table's
//! rules refused, the refusal itself, so that a node which passed the change on tells its caller the same.
//!
//! | what | code | `nearring-reason` |
//! |---|---|---|
//! | a setting out of bounds | `INVALID_ARGUMENT`, "field: why" | `invalid` |
//! | the name is taken | `ALREADY_EXISTS` | `exists` |
//! | no such collection, no such shard | `NOT_FOUND` | `no_collection`, `no_shard` |
//! | too few nodes, an earlier life | `FAILED_PRECONDITION` | `not_enough_nodes`, `earlier_life` |
//! | the leader was not reached; nothing has changed | `UNAVAILABLE` | `not_done` |
//! | no answer; it may have happened | `UNAVAILABLE` | `unclear` |
//! | meant for another cluster | `FAILED_PRECONDITION` | `other_cluster` |
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use nearring_proto::convert::{DecodeError, check_format};
use nearring_proto::placement::table::{Change, Rejected, Table};
use nearring_proto::wire;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::meta::group::{HOPS_MAX, Meta, MetaError};

/// A word for programs why a request was refused.
pub const REASON: &str = "nearring-reason";
const REJECTED: &str = "nearring-rejected-bin";
/// How long a change may take where its caller does not say.
const DEADLINE: Duration = Duration::from_secs(10);
const DEADLINE_MAX: Duration = Duration::from_secs(120);

/// What is known of a change that has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It did not happen.
    NotDone,
    /// It may have happened.
    Unclear,
}

fn refusal(code: Code, reason: &'static str, message: String) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(REASON, MetadataValue::from_static(reason));
    Status::with_metadata(code, message, metadata)
}

/// A request that cannot be read, as its caller is told.
pub fn malformed(error: &DecodeError) -> Status {
    refusal(Code::InvalidArgument, "invalid", error.to_string())
}

impl From<MetaError> for Status {
    fn from(error: MetaError) -> Self {
        let message = error.to_string();
        match error {
            MetaError::Rejected(rejected) => {
                let (code, reason) = match &rejected {
                    Rejected::Invalid(_) => (Code::InvalidArgument, "invalid"),
                    Rejected::AlreadyExists { .. } => (Code::AlreadyExists, "exists"),
                    Rejected::NotFound { .. } => (Code::NotFound, "no_collection"),
                    Rejected::UnknownShard { .. } => (Code::NotFound, "no_shard"),
                    Rejected::NotEnoughNodes { .. } => (Code::FailedPrecondition, "not_enough_nodes"),
                    Rejected::EarlierLife { .. } => (Code::FailedPrecondition, "earlier_life"),
                };
                let mut status = refusal(code, reason, message);
                let json = serde_json::to_vec(&rejected).unwrap_or_default();
                status.metadata_mut().insert_bin(REJECTED, MetadataValue::from_bytes(&json));
                status
            }
            MetaError::Unavailable { .. } => refusal(Code::Unavailable, "not_done", message),
            MetaError::Unclear { .. } => refusal(Code::Unavailable, "unclear", message),
            MetaError::Refused(status) => *status,
        }
    }
}

/// What another node's table refused, where it did.
pub fn rejection(status: &Status) -> Option<Rejected> {
    let bytes = status.metadata().get_bin(REJECTED)?.to_bytes().ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// What another node knows of a change that it has no answer to.
pub fn reason(status: &Status) -> Option<Reason> {
    match status.metadata().get(REASON)?.to_str().ok()? {
        "not_done" => Some(Reason::NotDone),
        "unclear" => Some(Reason::Unclear),
        _ => None,
    }
}

/// `ProposeMeta`: carries out a change to the table, here or wherever the leader is.
///
/// # Errors
/// As the module says.
pub async fn propose(meta: &Meta, request: wire::ProposeMetaRequest) -> Result<wire::ProposeMetaReply, Status> {
    check_format(request.format).map_err(|error| malformed(&error))?;
    check_cluster(meta, &request.cluster_id)?;
    let change = request.change.ok_or_else(|| malformed(&DecodeError::new("change", "is missing")))?;
    let change = Change::try_from(change).map_err(|error| malformed(&error))?;
    let within = match request.deadline_ms {
        0 => DEADLINE,
        ms => Duration::from_millis(ms.into()).min(DEADLINE_MAX),
    };
    let applied = meta.propose_at(change, within, request.hops.min(HOPS_MAX)).await?;
    let collection = applied.collection.map(Into::into);
    Ok(wire::ProposeMetaReply { epoch: applied.epoch.0, collection, existed: applied.existed })
}

/// A request never reaches a different cluster by a stale address. Who does not name one means this.
fn check_cluster(meta: &Meta, named: &[u8]) -> Result<(), Status> {
    match meta.cluster() {
        Some(cluster) if !named.is_empty() && named != cluster.0.as_bytes() => {
            let message = format!("cluster_id: this node belongs to cluster {cluster}; ask one of your own cluster");
            Err(refusal(Code::FailedPrecondition, "other_cluster", message))
        }
        _ => Ok(()),
    }
}

/// `WatchTable`: the table if it is newer than the caller's, then every newer one; one that comes while another is being
/// sent replaces it. Ends with the node.
///
/// # Errors
/// A request of a newer format, as the stream's only item.
pub fn watch(meta: &Meta, request: wire::WatchTableRequest) -> BoxStream<'static, Result<wire::ClusterTable, Status>> {
    if let Err(error) = check_format(request.format) {
        let status = malformed(&error);
        return stream::once(async move { Err(status) }).boxed();
    }
    let tables = (meta.table(), request.known_epoch);
    let tables = stream::unfold(tables, |(mut tables, known)| async move {
        let table = tables.wait_for(|table| table.epoch.0 > known).await.ok()?.clone();
        let epoch = table.epoch.0;
        Some((Ok(wire::ClusterTable::from(Table::clone(&table))), (tables, epoch)))
    });
    tables.take_until(meta.stopping()).boxed()
}
