//! Queries, hits, coverage.
use super::{DecodeError, required, unknown_enum, vector, vector_to_wire, vectors, vectors_to_wire};
use crate::coverage::{Coverage, ShardCoverage};
use crate::examples::{Examples, Pair};
use crate::filter::Scalar;
use crate::hit::Hit;
use crate::ids::{NodeId, ShardId};
use crate::order::{FacetValue, Order};
use crate::position::ReadLevel;
use crate::query::{SearchQuery, Target};
use crate::vector::Vector;
use crate::wire;
use crate::wire::examples::Rule;
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

impl TryFrom<wire::Examples> for Examples {
    type Error = DecodeError;

    fn try_from(message: wire::Examples) -> Result<Self, DecodeError> {
        let read = |of: wire::examples::Vector, field: String| {
            vector(("dense", of.dense), of.sparse, of.multi).map_err(|error| error.within(field))
        };
        let list = |all: Vec<wire::examples::Vector>, field: &str| {
            let read = |(at, one)| read(one, format!("{field}[{at}]"));
            all.into_iter().enumerate().map(read).collect::<Result<Vec<Vector>, DecodeError>>()
        };
        let (liked, disliked) = (list(message.liked, "liked")?, list(message.disliked, "disliked")?);
        let target = message.target.map(|target| read(target, "target".to_owned())).transpose()?;
        let rule = Rule::try_from(message.rule).map_err(|_| unknown_enum(message.rule, "rule"))?;
        if target.is_some() && rule != Rule::Discover {
            return Err(DecodeError::new("target", "is for discovery only"));
        }
        if !message.weights.is_empty() && rule != Rule::Weighted {
            return Err(DecodeError::new("weights", "are for weighted examples only"));
        }
        let pairs = |liked: Vec<Vector>, disliked: Vec<Vector>| {
            if liked.len() != disliked.len() {
                let reason =
                    format!("has {} vectors for {} that are liked; they are pairs", disliked.len(), liked.len());
                return Err(DecodeError::new("disliked", reason));
            }
            Ok(liked.into_iter().zip(disliked).map(|(liked, disliked)| Pair { liked, disliked }).collect())
        };
        Ok(match rule {
            Rule::Unspecified => return Err(DecodeError::new("rule", "is missing")),
            Rule::Best => Self::Best { liked, disliked },
            Rule::Sum => Self::Sum { liked, disliked },
            Rule::Discover => Self::Discover { target: required(target, "target")?, pairs: pairs(liked, disliked)? },
            Rule::Context => Self::Context { pairs: pairs(liked, disliked)? },
            Rule::Weighted if !disliked.is_empty() => {
                return Err(DecodeError::new("disliked", "is given beside weights; give a negative weight"));
            }
            Rule::Weighted if message.weights.len() != liked.len() => {
                let reason = format!("has {} numbers for {} vectors", message.weights.len(), liked.len());
                return Err(DecodeError::new("weights", reason));
            }
            Rule::Weighted => Self::Weighted { examples: liked.into_iter().zip(message.weights).collect() },
        })
    }
}

impl From<Examples> for wire::Examples {
    fn from(examples: Examples) -> Self {
        let write = |vector: Vector| {
            let (dense, sparse, multi) = vector_to_wire(vector);
            wire::examples::Vector { dense, sparse, multi }
        };
        let mut weights = Vec::new();
        let (rule, target, liked, disliked) = match examples {
            Examples::Best { liked, disliked } => (Rule::Best, None, liked, disliked),
            Examples::Sum { liked, disliked } => (Rule::Sum, None, liked, disliked),
            Examples::Discover { target, pairs } => {
                let (liked, disliked) = pairs.into_iter().map(|pair| (pair.liked, pair.disliked)).unzip();
                (Rule::Discover, Some(target), liked, disliked)
            }
            Examples::Context { pairs } => {
                let (liked, disliked) = pairs.into_iter().map(|pair| (pair.liked, pair.disliked)).unzip();
                (Rule::Context, None, liked, disliked)
            }
            Examples::Weighted { examples } => {
                let liked;
                (liked, weights) = examples.into_iter().unzip();
                (Rule::Weighted, None, liked, Vec::new())
            }
        };
        Self {
            rule: rule.into(),
            liked: liked.into_iter().map(write).collect(),
            disliked: disliked.into_iter().map(write).collect(),
            target: target.map(write),
            weights,
        }
    }
}

impl TryFrom<wire::SearchQuery> for SearchQuery {
    type Error = DecodeError;

    fn try_from(message: wire::SearchQuery) -> Result<Self, DecodeError> {
        Ok(Self {
            vector_name: message.vector_name,
            target: match message.examples {
                None => Target::Near(vector(("vector", message.vector), message.sparse, message.multi)?),
                Some(_) if !message.vector.is_empty() || message.sparse.is_some() || message.multi.is_some() => {
                    return Err(DecodeError::new("examples", "is given beside a vector; give one of them"));
                }
                Some(examples) => {
                    let examples = Examples::try_from(examples);
                    Target::Examples(examples.map_err(|error: DecodeError| error.within("examples"))?)
                }
            },
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
        let ((vector, sparse, multi), examples) = match query.target {
            Target::Near(vector) => (vector_to_wire(vector), None),
            Target::Examples(examples) => ((Vec::new(), None, None), Some(examples.into())),
        };
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
            examples,
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
