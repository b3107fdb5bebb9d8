//! Bulk import: a stream of points becomes batches, a bounded number of them in flight.
//!
//! Memory is bounded by `batch_bytes` × (`in_flight` + 1), whatever the stream's length: the stream is only polled when
//! there is room. Every batch carries a request id, so a repeated one has one effect.
use std::pin::pin;

use futures::stream::{FuturesUnordered, Stream, StreamExt};
use nearring_proto::wire;
use prost::Message;

use crate::client::Client;
use crate::error::{Error, ErrorKind};

/// How an import is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImportOptions {
    /// Points in a batch at the most, 1 or more.
    pub batch_points: usize,
    /// Encoded bytes in a batch at the most; a single larger point travels alone. Keep well below the servers'
    /// message limit.
    pub batch_bytes: usize,
    /// Batches under way at once, 1 or more. More than a few only moves the queue into the servers.
    pub in_flight: usize,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { batch_points: 1024, batch_bytes: 2 << 20, in_flight: 4 }
    }
}

/// What an import did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ImportReport {
    /// Points read from the stream.
    pub read: u64,
    /// Points written.
    pub applied: u64,
    /// Points refused by their precondition, in the stream's numbering: (position, outcome).
    pub refused: Vec<(u64, wire::PointOutcome)>,
}

struct Batch {
    first: u64,
    points: Vec<wire::UpsertPoint>,
}

impl Client {
    /// Writes a stream of points. `progress` is called with the points acknowledged so far.
    ///
    /// # Errors
    /// The first batch that fails ends the import, once the batches under way have ended: points of the stream up to
    /// any position may or may not be written, and importing the same stream again puts that right.
    pub async fn import(
        &self,
        collection: &str,
        points: impl Stream<Item = wire::UpsertPoint>,
        options: ImportOptions,
        mut progress: impl FnMut(u64),
    ) -> Result<ImportReport, Error> {
        // It is asked again after its end.
        let mut points = pin!(points.fuse());
        let mut report = ImportReport::default();
        let mut under_way = FuturesUnordered::new();
        let mut failed = None;
        // A point that did not fit the batch before it.
        let mut carried = None;
        loop {
            let mut batch = Batch { first: report.read, points: Vec::new() };
            let mut bytes = 0;
            while failed.is_none() && batch.points.len() < options.batch_points.max(1) {
                let next = match carried.take() {
                    Some(point) => Some(point),
                    None => points.next().await,
                };
                let Some(point) = next else { break };
                let size = point.encoded_len();
                if !batch.points.is_empty() && bytes + size > options.batch_bytes {
                    carried = Some(point);
                    break;
                }
                bytes += size;
                batch.points.push(point);
            }
            let exhausted = batch.points.is_empty();
            if !exhausted {
                report.read += batch.points.len() as u64;
                under_way.push(self.send_batch(collection, batch));
            }
            while under_way.len() >= if exhausted { 1 } else { options.in_flight.max(1) } {
                match under_way.next().await {
                    Some(Ok((first, reply))) => {
                        report.applied += reply.applied;
                        report.refused.extend(
                            reply.outcomes.into_iter().map(|outcome| (first + u64::from(outcome.position), outcome)),
                        );
                        progress(report.applied + report.refused.len() as u64);
                    }
                    Some(Err(error)) => failed = failed.or(Some(error)),
                    None => break,
                }
            }
            if exhausted {
                break;
            }
        }
        report.refused.sort_by_key(|(position, _)| *position);
        match failed {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }

    async fn send_batch(&self, collection: &str, batch: Batch) -> Result<(u64, wire::WriteReply), Error> {
        let reply = self.upsert(collection, batch.points).await?;
        match reply.errors.first() {
            Some(error) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("shard {} did not take its part of a batch: {}", error.shard, error.message),
            )),
            None => Ok((batch.first, reply)),
        }
    }
}
