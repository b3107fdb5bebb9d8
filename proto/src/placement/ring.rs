//! The consistent-hash ring, in its two uses: shard replicas on nodes, and point ids on home shards.
//!
//! Both are functions of their arguments alone, and every router, node and client must compute the same answer in every
//! build: a point whose home moved silently would be lost to its readers. So what is hashed is bytes that this file
//! lays out, never the platform's `Hash` of a slice or an integer, and a test pins placements by value.
//!
//! **Home shards are numbered, not named.** The ring places the *ordinals* of a collection's shards. A shard that is
//! replaced while it is being created (see [`super::table`]) keeps its ordinal, so no id of any other shard changes home.
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use hashring::HashRing;

use crate::ids::{NodeId, PointId, ShardId};

/// Virtual nodes of each shard on a [`HomeRing`]: enough that shards differ by a few percent in size.
const SHARD_COPIES: u64 = 512;
/// Virtual nodes of each node on a [`NodeRing`].
const NODE_COPIES: u64 = 256;
/// Rings remembered by [`ring_of`]. A cluster uses few shard counts; the bound is for one that does not.
const RINGS_MAX: usize = 64;

/// One of an owner's virtual nodes. Its hash is that of these two numbers, little-endian.
#[derive(Clone, Copy, Debug)]
struct VirtualNode {
    owner: u64,
    copy: u64,
}

impl Hash for VirtualNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.owner.to_le_bytes());
        state.write(&self.copy.to_le_bytes());
    }
}

/// Bytes hashed as they are: the standard `Hash` of a slice adds its length in the platform's width and byte order.
struct Raw<'a>(&'a [u8]);

impl Hash for Raw<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0);
    }
}

fn ring(owners: impl IntoIterator<Item = u64>, copies: u64) -> HashRing<VirtualNode> {
    let mut ring = HashRing::new();
    ring.batch_add(
        owners.into_iter().flat_map(|owner| (0..copies).map(move |copy| VirtualNode { owner, copy })).collect(),
    );
    ring
}

/// The ring of `shards` ordinals. It depends on nothing else, so it is built once a process and shared.
fn ring_of(shards: usize) -> Arc<HashRing<VirtualNode>> {
    static RINGS: Mutex<BTreeMap<usize, Arc<HashRing<VirtualNode>>>> = Mutex::new(BTreeMap::new());
    let mut rings = RINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if rings.len() >= RINGS_MAX && !rings.contains_key(&shards) {
        rings.clear();
    }
    rings.entry(shards).or_insert_with(|| Arc::new(ring(0..shards as u64, SHARD_COPIES))).clone()
}

/// Which shard of a collection is home to a routing key. Cheap to make after the first of its size.
#[derive(Clone, Debug)]
pub struct HomeRing {
    ring: Arc<HashRing<VirtualNode>>,
    shards: Vec<ShardId>,
}

impl HomeRing {
    /// The ring of a collection's shards, in the collection's order: the order is part of the placement.
    pub fn new(shards: &[ShardId]) -> Self {
        Self { ring: ring_of(shards.len()), shards: shards.to_vec() }
    }

    /// The home of a routing key as [`routing_key`] gives it. A ring without shards answers [`ShardId::META`], which
    /// holds no points and refuses every request for one.
    pub fn home(&self, routing_key: impl AsRef<[u8]>) -> ShardId {
        let copy = self.ring.get(&Raw(routing_key.as_ref()));
        let ordinal = copy.and_then(|copy| usize::try_from(copy.owner).ok());
        ordinal.and_then(|ordinal| self.shards.get(ordinal)).copied().unwrap_or(ShardId::META)
    }

    /// The home of a point.
    pub fn home_of(&self, id: &PointId, separator: &str) -> ShardId {
        self.home(routing_key(id, separator))
    }
}

/// The bytes that decide an id's home: those of [`PointId::to_key`], for a string id those of its part before the
/// first `separator`. An empty separator divides nothing. So `doc#7`, `doc#8` and `doc` itself share the home of
/// [`group_routing_key`]`("doc")`, and numbers and UUIDs are never divided.
pub fn routing_key(id: &PointId, separator: &str) -> Vec<u8> {
    match id {
        PointId::Text(text) if !separator.is_empty() => match text.split_once(separator) {
            Some((group, _)) => group_routing_key(group),
            None => id.to_key(),
        },
        _ => id.to_key(),
    }
}

/// The routing key of all string ids whose part before the separator is `group`.
pub fn group_routing_key(group: &str) -> Vec<u8> {
    PointId::Text(group.to_owned()).to_key()
}

/// Which nodes hold a shard's replicas.
#[derive(Clone, Debug)]
pub struct NodeRing {
    ring: HashRing<VirtualNode>,
    zones: BTreeMap<NodeId, String>,
}

impl NodeRing {
    /// The ring of these nodes, each with its zone. A node whose zone is "" counts as a zone of its own.
    pub fn new<'a>(nodes: impl IntoIterator<Item = (NodeId, &'a str)>) -> Self {
        let zones: BTreeMap<NodeId, String> = nodes.into_iter().map(|(id, zone)| (id, zone.to_owned())).collect();
        Self { ring: ring(zones.keys().map(|node| node.0), NODE_COPIES), zones }
    }

    /// The first `count` distinct nodes clockwise from the shard's hash; a zone gives its second replica only when
    /// every zone that can has given one, and so on. Fewer than `count` where there are fewer nodes.
    pub fn replicas(&self, shard: ShardId, count: usize) -> Vec<NodeId> {
        let clockwise = self.clockwise(shard);
        let count = count.min(clockwise.len());
        let mut chosen = Vec::with_capacity(count);
        let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
        let mut round = 1;
        while chosen.len() < count {
            for node in &clockwise {
                if chosen.len() == count {
                    break;
                }
                if chosen.contains(node) {
                    continue;
                }
                let zone = self.zones.get(node).map_or("", String::as_str);
                if !zone.is_empty() {
                    let taken = taken.entry(zone).or_default();
                    if *taken >= round {
                        continue;
                    }
                    *taken += 1;
                }
                chosen.push(*node);
            }
            round += 1;
        }
        chosen
    }

    /// Every node once, in the order met clockwise.
    fn clockwise(&self, shard: ShardId) -> Vec<NodeId> {
        let whole = self.ring.len().saturating_sub(1); // the crate counts the replicas after the first
        let copies = self.ring.get_with_replicas(&Raw(&shard.0.to_le_bytes()), whole).unwrap_or_default();
        let mut seen = BTreeSet::new();
        copies.into_iter().map(|copy| NodeId(copy.owner)).filter(|node| seen.insert(*node)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn shards(count: u64) -> Vec<ShardId> {
        (1..=count).map(ShardId).collect()
    }

    fn nodes(count: u64) -> NodeRing {
        NodeRing::new((1..=count).map(|node| (NodeId(node), "")))
    }

    fn keys() -> impl Iterator<Item = Vec<u8>> {
        (0..30_000_u64).map(|number| PointId::Number(number).to_key())
    }

    #[test]
    fn placement_never_changes() {
        let ring = HomeRing::new(&shards(6));
        let homes = |ids: &[PointId]| ids.iter().map(|id| ring.home_of(id, "#").0).collect::<Vec<_>>();
        let numbers: Vec<PointId> = (0..16).map(PointId::Number).collect();
        assert_eq!(homes(&numbers), HOMES_OF_NUMBERS);
        let texts: Vec<PointId> = ["a", "b", "doc#1", "doc#2", "doc", "日本", "#"].map(PointId::from).to_vec();
        assert_eq!(homes(&texts), HOMES_OF_TEXTS);
        let uuid = PointId::from("67e55044-10b1-426f-9247-bb680e5fe0c8");
        assert_eq!(homes(&[uuid]), HOME_OF_UUID);
        let ring = nodes(5);
        let replicas: Vec<Vec<u64>> =
            (1..=6).map(|shard| ring.replicas(ShardId(shard), 3).iter().map(|node| node.0).collect()).collect();
        assert_eq!(replicas, REPLICAS);
    }

    // Data already written is found through these. If the test fails, the code is wrong, not the numbers.
    const HOMES_OF_NUMBERS: [u64; 16] = [2, 2, 1, 6, 5, 1, 3, 2, 6, 6, 2, 5, 6, 1, 1, 5];
    const HOMES_OF_TEXTS: [u64; 7] = [3, 3, 4, 4, 4, 3, 2];
    const HOME_OF_UUID: [u64; 1] = [1];
    const REPLICAS: [[u64; 3]; 6] = [[1, 3, 4], [4, 2, 3], [5, 2, 4], [2, 4, 1], [3, 1, 5], [1, 2, 4]];

    #[test]
    fn shards_are_of_similar_size() {
        for count in [2, 3, 6, 12] {
            let ring = HomeRing::new(&shards(count));
            let mut sizes: BTreeMap<ShardId, u64> = BTreeMap::new();
            keys().for_each(|key| *sizes.entry(ring.home(key)).or_default() += 1);
            let fair = 30_000 / count;
            assert_eq!(sizes.len() as u64, count);
            assert!(sizes.values().all(|size| size.abs_diff(fair) * 100 < fair * 20), "{count}: {sizes:?}");
        }
    }

    #[test]
    fn a_new_shard_takes_its_share_and_nothing_else_moves() {
        let (before, after) = (HomeRing::new(&shards(6)), HomeRing::new(&shards(7)));
        let mut moved = 0;
        for key in keys() {
            let (old, new) = (before.home(&key), after.home(&key));
            if old != new {
                assert_eq!(new, ShardId(7));
                moved += 1;
            }
        }
        assert!((30_000 / 7_u64).abs_diff(moved) < 30_000 / 7 / 4, "{moved}");
    }

    #[test]
    fn a_replaced_shard_keeps_its_ids() {
        let before = HomeRing::new(&[ShardId(1), ShardId(2), ShardId(3)]);
        let after = HomeRing::new(&[ShardId(1), ShardId(90), ShardId(3)]);
        for key in keys() {
            let expected = if before.home(&key) == ShardId(2) { ShardId(90) } else { before.home(&key) };
            assert_eq!(after.home(&key), expected);
        }
    }

    #[test]
    fn a_prefix_routes_its_whole_group() {
        for id in ["doc#1", "doc#2#3", "doc"] {
            assert_eq!(routing_key(&PointId::from(id), "#"), group_routing_key("doc"));
        }
        assert_ne!(routing_key(&PointId::from("doc#1"), ""), group_routing_key("doc"));
        assert_eq!(routing_key(&PointId::Number(7), "7"), PointId::Number(7).to_key());
    }

    #[test]
    fn replicas_are_distinct_and_follow_the_ring_when_a_node_joins() {
        let (before, after) = (nodes(6), nodes(7));
        let (mut moved, shards) = (0, 600);
        for shard in (1..=shards).map(ShardId) {
            let (old, new) = (before.replicas(shard, 3), after.replicas(shard, 3));
            assert_eq!(old.iter().collect::<BTreeSet<_>>().len(), 3);
            let gained: Vec<_> = new.iter().filter(|node| !old.contains(node)).collect();
            assert!(gained.is_empty() || gained == [&NodeId(7)], "{old:?} {new:?}");
            moved += gained.len();
        }
        let fair = shards as usize * 3 / 7;
        assert!(moved.abs_diff(fair) < fair * 2 / 5, "{moved} of {fair}");
    }

    #[test]
    fn nodes_hold_similar_numbers_of_replicas() {
        let ring = nodes(5);
        let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
        (1..=1000).for_each(|shard| {
            ring.replicas(ShardId(shard), 3).into_iter().for_each(|node| *held.entry(node).or_default() += 1);
        });
        assert!(held.values().all(|held| held.abs_diff(600) < 150), "{held:?}");
    }

    #[test]
    fn zones_come_first_and_are_filled_evenly() {
        let zones = ["a", "a", "a", "b", "b", "c"];
        let zone_of = |node: &NodeId| zones[node.0 as usize - 1];
        let ring = NodeRing::new((1..).map(NodeId).zip(zones));
        for shard in (1..200).map(ShardId) {
            let distinct: BTreeSet<_> = ring.replicas(shard, 3).iter().map(zone_of).collect();
            assert_eq!(distinct.len(), 3);
            let five = ring.replicas(shard, 5);
            assert_eq!(five.iter().filter(|node| zone_of(node) == "a").count(), 2);
            assert_eq!(five.iter().collect::<BTreeSet<_>>().len(), 5);
        }
    }

    #[test]
    fn too_few_nodes_give_what_there_is() {
        assert_eq!(nodes(2).replicas(ShardId(1), 3).len(), 2);
        assert_eq!(nodes(0).replicas(ShardId(1), 3), []);
        let one_zone = NodeRing::new([(NodeId(1), "a"), (NodeId(2), "a")]);
        assert_eq!(one_zone.replicas(ShardId(1), 3).len(), 2);
        assert_eq!(HomeRing::new(&[]).home("x"), ShardId::META);
    }
}
