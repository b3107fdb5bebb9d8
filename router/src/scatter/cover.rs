//! Few nodes for many shards. [core]
//!
//! A call costs both sides far more than one more shard inside it, so shards are grouped: with three nodes and three
//! replicas one call to one node answers a whole query. Choosing the fewest nodes is set cover; the greedy choice is
//! within ln(shards) of it and exact in the common case. Among nodes that cover equally many shards, two are drawn at
//! random and the less loaded one is taken (power of two choices, Mitzenmacher 2001): always taking the least loaded
//! makes all routers run to the same node at once.
use std::collections::{BTreeMap, BTreeSet};

use nearring_proto::ids::{NodeId, ShardId};
use rand::Rng;

/// What a router knows of a node's load.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct NodeLoad {
    /// Recent latency of its answers, in microseconds; 0 = not known.
    pub latency_us: f64,
    /// Calls under way from this router.
    pub in_flight: u32,
}

impl NodeLoad {
    /// Expected wait: latency times the calls before ours. An unknown node looks quick, so that it gets known.
    pub fn cost(self) -> f64 {
        self.latency_us.max(1.0) * f64::from(self.in_flight + 1)
    }
}

/// Assigns every shard that has a candidate to one of its candidates. Shards without one are left out; the caller
/// reports them as failed.
pub fn cover(
    candidates: &BTreeMap<ShardId, BTreeSet<NodeId>>,
    loads: &BTreeMap<NodeId, NodeLoad>,
    random: &mut impl Rng,
) -> BTreeMap<NodeId, Vec<ShardId>> {
    let mut open: BTreeMap<ShardId, &BTreeSet<NodeId>> =
        candidates.iter().filter(|(_, nodes)| !nodes.is_empty()).map(|(shard, nodes)| (*shard, nodes)).collect();
    let mut chosen = BTreeMap::new();
    while !open.is_empty() {
        let mut covers: BTreeMap<NodeId, usize> = BTreeMap::new();
        open.values().flat_map(|nodes| nodes.iter()).for_each(|node| *covers.entry(*node).or_default() += 1);
        let most = covers.values().copied().max().unwrap_or(0);
        let tied: Vec<NodeId> = covers.into_iter().filter(|(_, count)| *count == most).map(|(node, _)| node).collect();
        let Some(node) = less_loaded_of_two(&tied, loads, random) else { break };
        let shards: Vec<ShardId> =
            open.iter().filter(|(_, nodes)| nodes.contains(&node)).map(|(shard, _)| *shard).collect();
        shards.iter().for_each(|shard| {
            open.remove(shard);
        });
        chosen.insert(node, shards);
    }
    chosen
}

/// Draws two different nodes and keeps the one with the lower cost; `None` only where there is none.
pub fn less_loaded_of_two(
    nodes: &[NodeId],
    loads: &BTreeMap<NodeId, NodeLoad>,
    random: &mut impl Rng,
) -> Option<NodeId> {
    let cost = |node: NodeId| loads.get(&node).copied().unwrap_or_default().cost();
    match nodes {
        [] => None,
        [only] => Some(*only),
        several => {
            let first = random.random_range(0..several.len());
            let step = random.random_range(1..several.len());
            let (a, b) = (*several.get(first)?, *several.get((first + step) % several.len())?);
            Some(if cost(b) < cost(a) { b } else { a })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn candidates(rows: &[(u64, &[u64])]) -> BTreeMap<ShardId, BTreeSet<NodeId>> {
        rows.iter().map(|(shard, nodes)| (ShardId(*shard), nodes.iter().map(|node| NodeId(*node)).collect())).collect()
    }

    #[test]
    fn three_nodes_with_three_replicas_need_one_call() {
        let all = candidates(&[(1, &[1, 2, 3]), (2, &[1, 2, 3]), (3, &[1, 2, 3])]);
        let mut asked = BTreeSet::new();
        for seed in 0..64 {
            let plan = cover(&all, &BTreeMap::new(), &mut SmallRng::seed_from_u64(seed));
            assert_eq!(plan.len(), 1);
            asked.extend(plan.into_keys());
        }
        assert_eq!(asked.len(), 3, "equal nodes share the work");
    }

    #[test]
    fn the_busiest_node_is_never_taken_while_others_cover_as_much() {
        let all = candidates(&[(1, &[1, 2, 3]), (2, &[1, 2, 3])]);
        let loads = [(1, 1, 100.0), (2, 40, 100.0), (3, 0, 900.0)]
            .map(|(node, in_flight, latency_us)| (NodeId(node), NodeLoad { latency_us, in_flight }))
            .into();
        for seed in 0..64 {
            let plan = cover(&all, &loads, &mut SmallRng::seed_from_u64(seed));
            assert!(!plan.contains_key(&NodeId(2)), "seed {seed}");
        }
    }

    #[test]
    fn a_shard_without_candidates_is_left_out() {
        let plan = cover(&candidates(&[(1, &[]), (2, &[5])]), &BTreeMap::new(), &mut SmallRng::seed_from_u64(1));
        assert_eq!(plan, [(NodeId(5), vec![ShardId(2)])].into());
    }

    proptest! {
        #[test]
        fn every_shard_is_asked_once_of_a_node_that_holds_it(
            rows in proptest::collection::btree_map(1_u64..40, proptest::collection::btree_set(1_u64..9, 0..4), 0..40),
            seed: u64,
        ) {
            let all: BTreeMap<_, BTreeSet<_>> = rows
                .into_iter()
                .map(|(shard, nodes)| (ShardId(shard), nodes.into_iter().map(NodeId).collect()))
                .collect();
            let plan = cover(&all, &BTreeMap::new(), &mut SmallRng::seed_from_u64(seed));
            let mut asked: Vec<ShardId> = plan.values().flatten().copied().collect();
            asked.sort_unstable();
            let expected: Vec<ShardId> = all.iter().filter(|(_, nodes)| !nodes.is_empty()).map(|(s, _)| *s).collect();
            prop_assert_eq!(asked, expected);
            for (node, shards) in &plan {
                prop_assert!(shards.iter().all(|shard| all[shard].contains(node)));
            }
        }
    }
}
