//! `Export`: all points of a shard, as of one position, to whoever asks for them as fast as it reads.
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use nearring_proto::wire;
use tonic::{Code, Status};

use super::data::refusal;
use crate::compute::Compute;
use crate::shard::Shard;
use crate::shard::view::{View, ViewError};

/// About how many bytes of points one message carries.
const MESSAGE_BYTES: usize = 1 << 20;

/// The messages of an export.
pub(super) type Messages = BoxStream<'static, Result<wire::NodeExportReply, Status>>;

fn failed(error: ViewError) -> Status {
    let text = error.to_string();
    match error {
        ViewError::TooMany(_) | ViewError::TooMuchChanged(_) => refusal(Code::ResourceExhausted, "overloaded", text),
        ViewError::Replaced => refusal(Code::Unavailable, "behind", text),
        ViewError::VectorMissing => refusal(Code::Unavailable, "segment_missing", text),
        ViewError::Store(_) => Status::internal(text),
    }
}

/// The messages of one export, as of now. Nothing is read before it is asked for; dropped, it ends.
///
/// # Errors
/// Where no further export may begin.
pub(super) async fn messages(shard: &Arc<Shard>, compute: Compute) -> Result<Messages, Status> {
    let (id, state) = (shard.id, shard.state.clone());
    let view = compute.run(move || View::begin(state)).await.map_err(failed)?;
    let first = wire::NodeExportReply {
        position: Some(wire::Position { shard: id.0, index: view.index() }),
        count: view.points(),
        ..Default::default()
    };
    let rest = stream::try_unfold(Some(view), move |view| {
        let compute = compute.clone();
        async move {
            let Some(mut view) = view else { return Ok(None) };
            let (view, points) = compute
                .run(move || {
                    let points = view.next(MESSAGE_BYTES);
                    (view, points)
                })
                .await;
            let points: Vec<wire::PointRecord> = points.map_err(failed)?.into_iter().map(Into::into).collect();
            let last = points.is_empty();
            let message = wire::NodeExportReply { points, last, ..Default::default() };
            Ok::<_, Status>(Some((message, (!last).then_some(view))))
        }
    });
    Ok(stream::once(async move { Ok(first) }).chain(rest).boxed())
}
