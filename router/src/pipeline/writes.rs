//! Writes: check all, group by home shard, send each part to its shard's leader.
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use nearring_proto::collection::check_payload;
use nearring_proto::filter::Filter;
use nearring_proto::ids::{PointId, RequestId, SessionId, ShardId};
use nearring_proto::position::Position;
use nearring_proto::wire::{self, node_write_request as node, node_write_request::Op};
use nearring_proto::write::{Outcome, PayloadMode, Precondition};

use super::Pipeline;
use crate::failure::{Error, Kind};
use crate::write::batch::{Conditional, Part, group_ids, group_points, group_stored};
use crate::write::{PartEnd, Sending, ShardWrite};

/// What a write did. Shards commit separately, so a part of it may have failed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct WriteAnswer {
    /// Where each shard's part was committed.
    pub positions: Vec<Position>,
    /// Items of the request that were not applied, by place.
    pub outcomes: Vec<(usize, Outcome)>,
    /// Points changed or removed.
    pub applied: u64,
    /// Shards that failed.
    pub errors: Vec<ShardWriteError>,
}

/// One shard's failure within a write that others took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardWriteError {
    /// The shard.
    pub shard: ShardId,
    /// In words; begins with what kind of failure it is.
    pub message: String,
    /// The part may have been written all the same.
    pub unknown_outcome: bool,
    /// The request's items it concerns.
    pub places: Vec<u32>,
}

impl Pipeline {
    fn sending(&self, request: Option<RequestId>, deadline: Option<Duration>) -> Sending {
        Sending { request, harmless: false, until: self.write_until(deadline) }
    }

    fn check_count(&self, count: usize, field: &str) -> Result<(), Error> {
        let most = self.settings().limits.batch_points;
        if count > most {
            return Err(Error::invalid(
                field,
                format!("has {count} entries, at most {most} are allowed; split the batch"),
            ));
        }
        Ok(())
    }

    /// Writes whole points.
    ///
    /// # Errors
    /// [`Kind::Invalid`] naming a field, before anything is proposed; [`Kind::NotFound`]; where every shard failed.
    pub async fn upsert(
        &self,
        collection: &str,
        points: Vec<Conditional>,
        request: Option<RequestId>,
        deadline: Option<Duration>,
    ) -> Result<WriteAnswer, Error> {
        self.check_count(points.len(), "points")?;
        let sending = self.sending(request, deadline);
        let found = self.collection(collection, sending.until).await?;
        self.send_points(group_points(&found.collection, points)?, &sending).await
    }

    /// Writes whole points that were read from a store, their vectors to the bit.
    ///
    /// # Errors
    /// As [`Pipeline::upsert`].
    pub async fn upsert_stored(
        &self,
        collection: &str,
        points: Vec<Conditional>,
        deadline: Duration,
    ) -> Result<WriteAnswer, Error> {
        self.check_count(points.len(), "points")?;
        let sending = self.sending(None, Some(deadline));
        let found = self.collection(collection, sending.until).await?;
        self.send_points(group_stored(&found.collection, points)?, &sending).await
    }

    async fn send_points(
        &self,
        parts: BTreeMap<ShardId, Part<Conditional>>,
        sending: &Sending,
    ) -> Result<WriteAnswer, Error> {
        let write = |(shard, part): (ShardId, Part<Conditional>)| {
            let conditional = part.items.iter().any(|(_, precondition)| precondition.is_some());
            let mut upserts = node::Upserts::default();
            for (point, precondition) in part.items {
                upserts.points.push(point.into());
                if conditional {
                    upserts.preconditions.push(precondition.map(Into::into).unwrap_or_default());
                }
            }
            ShardWrite { shard, op: Op::Upserts(upserts), places: part.places }
        };
        self.send(parts.into_iter().map(write).collect(), sending).await
    }

    /// Changes payloads.
    ///
    /// # Errors
    /// As [`Pipeline::upsert`].
    #[expect(clippy::too_many_arguments, reason = "one for each field of the request")]
    pub async fn set_payload(
        &self,
        collection: &str,
        ids: Vec<PointId>,
        payload_json: Bytes,
        mode: PayloadMode,
        precondition: Option<Precondition>,
        request: Option<RequestId>,
        deadline: Option<Duration>,
    ) -> Result<WriteAnswer, Error> {
        self.check_count(ids.len(), "ids")?;
        match mode {
            PayloadMode::Merge | PayloadMode::Overwrite => check_payload(&payload_json, "payload_json")?,
            PayloadMode::DeleteKeys => {
                serde_json::from_slice::<Vec<String>>(&payload_json).map_err(|error| {
                    Error::invalid("payload_json", format!("must be a JSON array of keys: {error}"))
                })?;
            }
        }
        let sending = self.sending(request, deadline);
        let found = self.collection(collection, sending.until).await?;
        let parts = group_ids(&found.collection, ids)?;
        let writes = parts.into_iter().map(|(shard, part)| {
            let set = node::SetPayloads {
                ids: part.items.into_iter().map(Into::into).collect(),
                payload_json: payload_json.clone(),
                mode: wire::PayloadMode::from(mode).into(),
                precondition: precondition.map(Into::into),
            };
            ShardWrite { shard, op: Op::SetPayload(set), places: part.places }
        });
        self.send(writes.collect(), &sending).await
    }

    /// Deletes points by id.
    ///
    /// # Errors
    /// As [`Pipeline::upsert`].
    pub async fn delete(
        &self,
        collection: &str,
        ids: Vec<PointId>,
        precondition: Option<Precondition>,
        request: Option<RequestId>,
        deadline: Option<Duration>,
    ) -> Result<WriteAnswer, Error> {
        self.check_count(ids.len(), "ids")?;
        let sending = self.sending(request, deadline);
        let found = self.collection(collection, sending.until).await?;
        let parts = group_ids(&found.collection, ids)?;
        let writes = parts.into_iter().map(|(shard, part)| {
            let deletes = node::Deletes {
                ids: part.items.into_iter().map(Into::into).collect(),
                precondition: precondition.map(Into::into),
            };
            ShardWrite { shard, op: Op::Deletes(deletes), places: part.places }
        });
        self.send(writes.collect(), &sending).await
    }

    /// Deletes every point that matches, on every shard.
    ///
    /// # Errors
    /// As [`Pipeline::upsert`].
    pub async fn delete_by_filter(
        &self,
        collection: &str,
        filter: Filter,
        request: Option<RequestId>,
        deadline: Option<Duration>,
    ) -> Result<WriteAnswer, Error> {
        filter.check()?;
        let sending = self.sending(request, deadline);
        let found = self.collection(collection, sending.until).await?;
        let writes = found.collection.shards.iter().map(|shard| {
            let delete = node::DeleteByFilter { filter: Some(filter.clone().into()) };
            ShardWrite { shard: *shard, op: Op::DeleteByFilter(delete), places: Vec::new() }
        });
        self.send(writes.collect(), &sending).await
    }

    /// Registers a session at every shard; its time to live, and where. `opened_at_ms` is the caller's clock.
    ///
    /// # Errors
    /// As [`Pipeline::upsert`]; also where a single shard failed, since the session would not hold there.
    pub async fn open_session(
        &self,
        collection: &str,
        session: SessionId,
        opened_at_ms: u64,
    ) -> Result<(Duration, Vec<Position>), Error> {
        // Opening an open session again changes nothing, so a repeat is harmless.
        let sending = Sending { harmless: true, ..self.sending(None, None) };
        let found = self.collection(collection, sending.until).await?;
        let session = Bytes::copy_from_slice(session.0.as_bytes());
        let writes = found.collection.shards.iter().map(|shard| {
            let open = node::OpenShardSession { session: session.clone(), opened_at_ms };
            ShardWrite { shard: *shard, op: Op::OpenSession(open), places: Vec::new() }
        });
        let (mut ttl, mut positions) = (Duration::MAX, Vec::new());
        for part in self.writer().write_all(writes.collect(), &sending).await? {
            let reply = part.end.map_err(|failure| {
                let kind = if failure.kind == Kind::NotDone { Kind::Unavailable } else { failure.kind };
                Error::new(kind, format!("the session is not open on every shard: {}", failure.message))
            })?;
            ttl = ttl.min(Duration::from_millis(reply.session_ttl_ms));
            positions.extend(reply.position.map(Position::from));
        }
        Ok((ttl, positions))
    }

    async fn send(&self, writes: Vec<ShardWrite>, sending: &Sending) -> Result<WriteAnswer, Error> {
        joined(self.writer().write_all(writes, sending).await?)
    }
}

/// The parts' ends as one answer, in the request's numbering.
pub(super) fn joined(parts: Vec<PartEnd>) -> Result<WriteAnswer, Error> {
    let mut answer = WriteAnswer::default();
    let mut outcomes: BTreeMap<usize, Outcome> = BTreeMap::new();
    for PartEnd { shard, places, end } in parts {
        match end {
            Ok(reply) => {
                answer.positions.extend(reply.position.map(Position::from));
                answer.applied += reply.applied + reply.removed;
                for outcome in reply.outcomes {
                    let (at, outcome) = <(usize, Outcome)>::try_from(outcome)?;
                    let place = places.get(at).ok_or_else(|| {
                        Error::new(Kind::Internal, format!("shard {shard} reports on item {at}, which it was not sent"))
                    })?;
                    if outcome != Outcome::Applied {
                        outcomes.insert(*place as usize, outcome);
                    }
                }
            }
            Err(failure) => answer.errors.push(ShardWriteError {
                shard,
                message: failure.message,
                unknown_outcome: failure.unknown,
                places,
            }),
        }
    }
    answer.outcomes = outcomes.into_iter().collect();
    Ok(answer)
}
