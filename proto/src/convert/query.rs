//! Queries, hits, coverage.
use super::{DecodeError, required, unknown_enum, vector, vector_to_wire, vectors, vectors_to_wire};
use crate::coverage::{Coverage, ShardCoverage};
use crate::filter::Scalar;
use crate::hit::Hit;
use crate::ids::{NodeId, ShardId};
use crate::order::{FacetValue, Order};
use crate::position::ReadLevel;
use crate::query::SearchQuery;
use crate::wire;
use crate::wire::shard_coverage::State;

/// Reads a read level as it stands in a message; `None` leaves it to the operation.
///
/// # Errors
/// [`DecodeError`] on the field `level` where it is unknown.
pub fn read_level(value: i32) -> Result<Option<ReadLevel>, DecodeError> {
    Ok(match wire::ReadLevel::try_from(value).map_err(|_| unknown_enum(value, "level"))? {
        wire::ReadLevel::Unspecified => None,
        wire::ReadLevel::Eventual => Some(ReadLevel::Eventual),
        wire::ReadLevel::Session => Some(ReadLevel::Session),
        wire::ReadLevel::Linearizable => Some(ReadLevel::Linearizable),
    })
}

impl From<ReadLevel> for wire::ReadLevel {
    fn from(level: ReadLevel) -> Self {
        match level {
            ReadLevel::Eventual => wire::ReadLevel::Eventual,
            ReadLevel::Session => wire::ReadLevel::Session,
            ReadLevel::Linearizable => wire::ReadLevel::Linearizable,
        }
    }
}

impl TryFrom<wire::Order> for Order {
    type Error = DecodeError;

    fn try_from(message: wire::Order) -> Result<Self, DecodeError> {
        Ok(match required(message.kind, "kind")? {
            wire::order::Kind::RandomSeed(seed) => Self::Random(seed),
            wire::order::Kind::ByPayload(by) => {
                let start_from = by.start_from.map(Scalar::try_from).transpose();
                let start_from = start_from.map_err(|error: DecodeError| error.within("start_from"))?;
                Self::ByPayload { path: by.path, descending: by.descending, start_from }
            }
        })
    }
}

impl From<Order> for wire::Order {
    fn from(order: Order) -> Self {
        let kind = match order {
            Order::Random(seed) => wire::order::Kind::RandomSeed(seed),
            Order::ByPayload { path, descending, start_from } => {
                let start_from = start_from.map(Into::into);
                wire::order::Kind::ByPayload(wire::order::ByPayload { path, descending, start_from })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl From<(FacetValue, u64)> for wire::FacetCount {
    fn from((value, count): (FacetValue, u64)) -> Self {
        let value = match value {
            FacetValue::Bool(value) => Scalar::Bool(value),
            FacetValue::Int(value) => Scalar::Int(value),
            FacetValue::Text(value) => Scalar::Text(value),
        };
        Self { value: Some(value.into()), count }
    }
}

impl TryFrom<wire::FacetCount> for (FacetValue, u64) {
    type Error = DecodeError;

    fn try_from(message: wire::FacetCount) -> Result<Self, DecodeError> {
        let value = match Scalar::try_from(required(message.value, "value")?)? {
            Scalar::Bool(value) => FacetValue::Bool(value),
            Scalar::Int(value) => FacetValue::Int(value),
            Scalar::Text(value) => FacetValue::Text(value),
            Scalar::Float(_) => return Err(DecodeError::new("value", "is a float, which is not counted")),
        };
        Ok((value, message.count))
    }
}

impl TryFrom<wire::SearchQuery> for SearchQuery {
    type Error = DecodeError;

    fn try_from(message: wire::SearchQuery) -> Result<Self, DecodeError> {
        Ok(Self {
            vector_name: message.vector_name,
            vector: vector(("vector", message.vector), message.sparse, message.multi)?,
            limit: message.limit as usize,
            filter: message.filter.map(TryInto::try_into).transpose()?,
            exact: message.exact,
            ef: (message.ef != 0).then_some(message.ef as usize),
            with_payload: message.with_payload,
            with_vectors: message.with_vectors,
            score_threshold: message.score_threshold,
        })
    }
}

/// A limit or breadth beyond 32 bits is written as the largest that fits; both are far beyond what a query may ask for.
impl From<SearchQuery> for wire::SearchQuery {
    fn from(query: SearchQuery) -> Self {
        let clamp = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let (vector, sparse, multi) = vector_to_wire(query.vector);
        Self {
            vector_name: query.vector_name,
            vector,
            sparse,
            multi,
            limit: clamp(query.limit),
            filter: query.filter.map(Into::into),
            exact: query.exact,
            ef: query.ef.map_or(0, clamp),
            with_payload: query.with_payload,
            with_vectors: query.with_vectors,
            score_threshold: query.score_threshold,
        }
    }
}

impl TryFrom<wire::Hit> for Hit {
    type Error = DecodeError;

    fn try_from(message: wire::Hit) -> Result<Self, DecodeError> {
        Ok(Self {
            id: required(message.id, "id")?.try_into().map_err(|error: DecodeError| error.within("id"))?,
            score: message.score,
            version: required(message.version, "version")?.into(),
            payload_json: message.payload_json,
            vectors: vectors(message.vectors)?,
        })
    }
}

impl From<Hit> for wire::Hit {
    fn from(hit: Hit) -> Self {
        Self {
            id: Some(hit.id.into()),
            score: hit.score,
            version: Some(hit.version.into()),
            payload_json: hit.payload_json,
            vectors: vectors_to_wire(hit.vectors),
        }
    }
}

impl TryFrom<wire::Coverage> for Coverage {
    type Error = DecodeError;

    fn try_from(message: wire::Coverage) -> Result<Self, DecodeError> {
        let mut coverage = Coverage::default();
        for (at, shard) in message.shards.into_iter().enumerate() {
            let field = format!("shards[{at}]");
            let state = State::try_from(shard.state).map_err(|_| unknown_enum(shard.state, "state").within(&field))?;
            let one = match state {
                State::Searched => {
                    ShardCoverage::Searched { node: NodeId(shard.node), index: shard.index, segments: shard.segments }
                }
                State::Skipped => ShardCoverage::Skipped { estimated_loss: shard.estimated_loss },
                State::Failed => ShardCoverage::Failed { reason: shard.reason },
            };
            if coverage.0.insert(ShardId(shard.shard), one).is_some() {
                return Err(DecodeError::new(field, format!("names the shard {} a second time", shard.shard)));
            }
        }
        Ok(coverage)
    }
}

impl From<Coverage> for wire::Coverage {
    fn from(coverage: Coverage) -> Self {
        let write = |(shard, coverage): (ShardId, ShardCoverage)| {
            let message = wire::ShardCoverage { shard: shard.0, ..Default::default() };
            match coverage {
                ShardCoverage::Searched { node, index, segments } => {
                    wire::ShardCoverage { state: State::Searched.into(), node: node.0, index, segments, ..message }
                }
                ShardCoverage::Skipped { estimated_loss } => {
                    wire::ShardCoverage { state: State::Skipped.into(), estimated_loss, ..message }
                }
                ShardCoverage::Failed { reason } => {
                    wire::ShardCoverage { state: State::Failed.into(), reason, ..message }
                }
            }
        };
        Self { shards: coverage.0.into_iter().map(write).collect() }
    }
}
