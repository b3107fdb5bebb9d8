//! Ids, versions, positions, points.
use super::{DecodeError, required, uuid, uuid_bytes, vectors, vectors_to_wire};
use crate::ids::{PointId, ShardId, Version};
use crate::position::{Position, ReadToken};
use crate::wire;
use crate::write::{Point, PointRecord};

impl TryFrom<wire::PointId> for PointId {
    type Error = DecodeError;

    fn try_from(message: wire::PointId) -> Result<Self, DecodeError> {
        let id = match required(message.id, "id")? {
            wire::point_id::Id::Number(number) => PointId::Number(number),
            wire::point_id::Id::Uuid(bytes) => PointId::Uuid(uuid(&bytes, "uuid")?),
            wire::point_id::Id::Text(text) => PointId::Text(text),
        };
        id.check().map_err(|error| DecodeError::new("text", error))?;
        Ok(id)
    }
}

impl From<PointId> for wire::PointId {
    fn from(id: PointId) -> Self {
        let id = match id {
            PointId::Number(number) => wire::point_id::Id::Number(number),
            PointId::Uuid(uuid) => wire::point_id::Id::Uuid(uuid_bytes(uuid)),
            PointId::Text(text) => wire::point_id::Id::Text(text),
        };
        Self { id: Some(id) }
    }
}

impl From<wire::Version> for Version {
    fn from(message: wire::Version) -> Self {
        Self { epoch: message.epoch, index: message.index }
    }
}

impl From<Version> for wire::Version {
    fn from(version: Version) -> Self {
        Self { epoch: version.epoch, index: version.index }
    }
}

impl From<wire::Position> for Position {
    fn from(message: wire::Position) -> Self {
        Self { shard: ShardId(message.shard), index: message.index }
    }
}

impl From<Position> for wire::Position {
    fn from(position: Position) -> Self {
        Self { shard: position.shard.0, index: position.index }
    }
}

impl From<Vec<wire::Position>> for ReadToken {
    fn from(positions: Vec<wire::Position>) -> Self {
        positions.into_iter().map(Position::from).collect()
    }
}

impl From<&ReadToken> for Vec<wire::Position> {
    fn from(token: &ReadToken) -> Self {
        token.positions().map(wire::Position::from).collect()
    }
}

impl TryFrom<wire::Point> for Point {
    type Error = DecodeError;

    fn try_from(message: wire::Point) -> Result<Self, DecodeError> {
        Ok(Self {
            id: required(message.id, "id")?.try_into().map_err(|error: DecodeError| error.within("id"))?,
            vectors: vectors(message.vectors)?,
            payload_json: message.payload_json,
        })
    }
}

impl From<Point> for wire::Point {
    fn from(point: Point) -> Self {
        Self { id: Some(point.id.into()), vectors: vectors_to_wire(point.vectors), payload_json: point.payload_json }
    }
}

impl TryFrom<wire::PointRecord> for PointRecord {
    type Error = DecodeError;

    fn try_from(message: wire::PointRecord) -> Result<Self, DecodeError> {
        Ok(Self {
            id: required(message.id, "id")?.try_into().map_err(|error: DecodeError| error.within("id"))?,
            version: required(message.version, "version")?.into(),
            payload_json: message.payload_json,
            vectors: vectors(message.vectors)?,
        })
    }
}

impl From<PointRecord> for wire::PointRecord {
    fn from(record: PointRecord) -> Self {
        Self {
            id: Some(record.id.into()),
            version: Some(record.version.into()),
            payload_json: record.payload_json,
            vectors: vectors_to_wire(record.vectors),
        }
    }
}
