//! A batch, checked as a whole and taken apart by home shard. [core]
//!
//! Nothing of a batch is proposed unless all of it is acceptable, so that a refused request changed nothing. Places in
//! the request are kept: outcomes and errors of a shard are reported in the request's numbering.
use std::collections::BTreeMap;

use nearring_proto::collection::{Collection, InvalidInput};
use nearring_proto::ids::{PointId, ShardId};
use nearring_proto::placement::ring::HomeRing;
use nearring_proto::write::{Point, Precondition};

/// A point, and the condition under which it is written.
pub type Conditional = (Point, Option<Precondition>);

/// One shard's part of a batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Part<T> {
    /// Where each item stood in the request, ascending.
    pub places: Vec<u32>,
    /// The items, in the request's order.
    pub items: Vec<T>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self { places: Vec::new(), items: Vec::new() }
    }
}

/// Checks points and groups them. Vectors come out as they are stored.
///
/// # Errors
/// [`InvalidInput`] naming the first field refused, for example `points[3].vectors[""]`.
pub fn group_points(
    collection: &Collection,
    mut points: Vec<Conditional>,
) -> Result<BTreeMap<ShardId, Part<Conditional>>, InvalidInput> {
    for (point, _) in &mut points {
        collection.spec.adopt_point(point);
    }
    let mut parts = group_stored(collection, points)?;
    for (point, _) in parts.values_mut().flat_map(|part| &mut part.items) {
        collection.spec.prepare_point(point);
    }
    Ok(parts)
}

/// As [`group_points`], of points whose vectors were read from a store: they are as they are stored, and stay so to the bit.
///
/// # Errors
/// As [`group_points`].
pub fn group_stored(
    collection: &Collection,
    points: Vec<Conditional>,
) -> Result<BTreeMap<ShardId, Part<Conditional>>, InvalidInput> {
    if points.is_empty() {
        return Err(InvalidInput::new("points", "is empty; give at least one point"));
    }
    for (at, (point, _)) in points.iter().enumerate() {
        collection.spec.check_point(point, &format!("points[{at}]"))?;
    }
    refuse_repeated(points.iter().map(|(point, _)| &point.id), "points", ".id")?;
    let ring = HomeRing::new(&collection.shards);
    let mut parts: BTreeMap<ShardId, Part<_>> = BTreeMap::new();
    for (at, (point, precondition)) in (0..).zip(points) {
        let part = parts.entry(ring.home_of(&point.id, &collection.spec.routing_separator)).or_default();
        part.places.push(at);
        part.items.push((point, precondition));
    }
    Ok(parts)
}

/// Checks ids and groups them.
///
/// # Errors
/// [`InvalidInput`] naming the first id refused, for example `ids[3]`.
pub fn group_ids(collection: &Collection, ids: Vec<PointId>) -> Result<BTreeMap<ShardId, Part<PointId>>, InvalidInput> {
    if ids.is_empty() {
        return Err(InvalidInput::new("ids", "is empty; name at least one point"));
    }
    for (at, id) in ids.iter().enumerate() {
        collection.spec.check_id(id, &format!("ids[{at}]"))?;
    }
    refuse_repeated(ids.iter(), "ids", "")?;
    let ring = HomeRing::new(&collection.shards);
    let mut parts: BTreeMap<ShardId, Part<_>> = BTreeMap::new();
    for (at, id) in (0..).zip(ids) {
        let part = parts.entry(ring.home_of(&id, &collection.spec.routing_separator)).or_default();
        part.places.push(at);
        part.items.push(id);
    }
    Ok(parts)
}

/// A batch is a set: which of two writes to one point came last would be anyone's guess.
fn refuse_repeated<'a>(ids: impl Iterator<Item = &'a PointId>, list: &str, field: &str) -> Result<(), InvalidInput> {
    let mut seen: BTreeMap<&PointId, usize> = BTreeMap::new();
    for (at, id) in ids.enumerate() {
        if let Some(first) = seen.insert(id, at) {
            let reason = format!("{id} stands at {list}[{first}] already; give each point once a request");
            return Err(InvalidInput::new(format!("{list}[{at}]{field}"), reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use nearring_proto::collection::{CollectionSpec, IndexSpec, VectorSpec};
    use nearring_proto::ids::CollectionId;
    use nearring_proto::vector::{Metric, ScalarKind};
    use proptest::prelude::*;

    use super::*;

    fn collection(shards: u64) -> Collection {
        let vector = VectorSpec { dimension: 2, metric: Metric::Cosine, scalar: ScalarKind::I8 };
        let spec = CollectionSpec {
            name: "c".into(),
            vectors: BTreeMap::from([(String::new(), vector)]),
            payload_indexes: BTreeMap::new(),
            shard_count: shards as u32,
            replication_factor: 1,
            routing_separator: "#".into(),
            index: IndexSpec::default(),
            documents: None,
            sparse_vectors: BTreeMap::new(),
            multi_vectors: BTreeMap::new(),
        };
        Collection { id: CollectionId(1), spec, shards: (10..10 + shards).map(ShardId).collect() }
    }

    fn point(id: PointId, vector: &[f32]) -> Conditional {
        let vectors = BTreeMap::from([(String::new(), vector.to_vec().into())]);
        (Point { id, vectors, payload_json: Default::default() }, None)
    }

    #[test]
    fn the_whole_batch_is_refused_by_field() {
        let refused = |points| group_points(&collection(3), points).unwrap_err().field;
        let well = || point(PointId::Number(1), &[3.0, 4.0]);
        assert_eq!(refused(vec![]), "points");
        assert_eq!(refused(vec![well(), point(PointId::Number(2), &[1.0])]), "points[1].vectors[\"\"]");
        assert_eq!(refused(vec![well(), point(PointId::Text(String::new()), &[1.0, 0.0])]), "points[1].id");
        assert_eq!(refused(vec![well(), point(PointId::Number(2), &[1.0, 0.0]), well()]), "points[2].id");
        let ids = |ids: &[u64]| ids.iter().map(|id| PointId::Number(*id)).collect::<Vec<_>>();
        assert_eq!(group_ids(&collection(3), ids(&[4, 5, 4])).unwrap_err().field, "ids[2]");
        assert_eq!(group_ids(&collection(3), ids(&[])).unwrap_err().field, "ids");
        let parts = group_points(&collection(1), vec![well()]).unwrap();
        assert_eq!(parts[&ShardId(10)].items[0].0.vectors[""], vec![0.6, 0.8].into(), "stored at unit length");
    }

    proptest! {
        /// Against the definition: each item in exactly its home's part, at its place, in order.
        #[test]
        fn every_item_goes_home_and_keeps_its_place(
            ids in proptest::collection::btree_set(0_u64..500, 1..80), shards in 1_u64..8, chunks: bool,
        ) {
            let collection = collection(shards);
            let ids: Vec<PointId> = ids
                .into_iter()
                .map(|id| if chunks { format!("d{}#{}", id % 7, id).as_str().into() } else { PointId::Number(id) })
                .collect();
            let ring = HomeRing::new(&collection.shards);
            let by_id = group_ids(&collection, ids.clone()).unwrap();
            let points = ids.iter().map(|id| point(id.clone(), &[1.0, 1.0])).collect();
            let by_point = group_points(&collection, points).unwrap();
            let mut found = vec![None; ids.len()];
            for (shard, part) in &by_id {
                prop_assert!(part.places.is_sorted() && part.places.len() == part.items.len());
                let of_points: Vec<_> = by_point[shard].items.iter().map(|(point, _)| point.id.clone()).collect();
                prop_assert_eq!(&of_points, &part.items);
                prop_assert_eq!(&by_point[shard].places, &part.places);
                for (place, id) in part.places.iter().zip(&part.items) {
                    prop_assert_eq!(ring.home_of(id, "#"), *shard);
                    prop_assert!(found[*place as usize].replace(id.clone()).is_none());
                }
            }
            prop_assert_eq!(found.into_iter().flatten().collect::<Vec<_>>(), ids);
        }
    }
}
