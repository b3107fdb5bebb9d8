//! When a node gives up its life because one of its replicas has lost data.
//!
//! The problem: a shard's snapshot turns out damaged, and the log before it is purged. What this replica promised to hold
//! it does not hold any more, so it must not take part; a new life would be given everything anew by the others. But a new
//! life takes *every* replica of the node out of its group, also those that are sound, and the others may be damaged too.
//! **Rule:** a life ends by itself only while every group that it is part of has a majority without it, of replicas that
//! run. Otherwise the replica stays stopped, which loses nothing, and an operator decides.
//!
//! What a life leaves behind, its log and its part of the meta group, is kept until the next one takes part in everything
//! that the node should hold: until then it may be the last trace of it.
//!
//! It does not cover what cannot even be asked: a log that is damaged ends its life at the start of the node.
use std::collections::BTreeMap;

use nearring_proto::ids::{NodeId, ReplicaId, ShardId};
use nearring_proto::placement::table::Table;
use nearring_proto::wire::NodeStatus;

/// Whether the life `me` can end: every one of its groups, the meta group with the members `meta` among them, keeps a
/// majority without it, as far as `statuses` of the other nodes say.
///
/// # Errors
/// Which group would not.
pub fn dispensable(
    me: ReplicaId,
    table: &Table,
    meta: &[ReplicaId],
    statuses: &BTreeMap<NodeId, NodeStatus>,
) -> Result<(), String> {
    let shards = table.shards.values().map(|row| (row.id, row.replicas.as_slice()));
    for (group, replicas) in shards.chain([(ShardId::META, meta)]) {
        if !replicas.contains(&me) {
            continue;
        }
        let sound = replicas.iter().filter(|replica| **replica != me && runs(group, **replica, statuses)).count();
        if sound * 2 <= replicas.len() {
            let of = replicas.len();
            return Err(format!("group {group} would be left with {sound} of {of} replicas"));
        }
    }
    Ok(())
}

/// Whether the life `me` takes part in every group that it should: nothing that an earlier life left is of use any more.
pub fn settled(me: ReplicaId, table: &Table, meta: &[ReplicaId], own: NodeStatus) -> bool {
    let statuses = BTreeMap::from([(me.node, own)]);
    let shards = table.shards.values().map(|row| (row.id, row.replicas.as_slice()));
    let has_earlier_life = |replicas: &[ReplicaId]| replicas.iter().any(|other| other.node == me.node && *other != me);
    shards
        .chain([(ShardId::META, meta)])
        .all(|(group, replicas)| !has_earlier_life(replicas) && (!replicas.contains(&me) || runs(group, me, &statuses)))
}

fn runs(group: ShardId, replica: ReplicaId, statuses: &BTreeMap<NodeId, NodeStatus>) -> bool {
    let Some(status) = statuses.get(&replica.node).filter(|status| status.incarnation == replica.incarnation.0) else {
        return false;
    };
    let of_group = status.replicas.iter().find(|held| held.shard == group.0);
    of_group.is_some_and(|held| matches!(held.role.as_str(), "leader" | "follower") && held.leader_node != 0)
}

#[cfg(test)]
mod tests {
    use nearring_proto::ids::{ClusterId, CollectionId, Incarnation};
    use nearring_proto::placement::table::{Shard, ShardState};
    use nearring_proto::wire::ReplicaStatus;

    use super::*;

    fn life(node: u64, incarnation: u64) -> ReplicaId {
        ReplicaId { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }

    fn table(rows: &[(u64, &[u64])]) -> Table {
        let mut table = Table::new(ClusterId(uuid::Uuid::nil()));
        for (id, nodes) in rows {
            let id = ShardId(*id);
            let replicas = nodes.iter().map(|node| life(*node, 5)).collect();
            let row = Shard { id, collection: CollectionId(1), state: ShardState::Active, replicas, home_epoch: 1 };
            table.shards.insert(id, row);
        }
        table
    }

    fn says(node: u64, incarnation: u64, groups: &[(u64, &str)]) -> (NodeId, NodeStatus) {
        let held = |(shard, role): &(u64, &str)| ReplicaStatus {
            shard: *shard,
            role: (*role).to_owned(),
            leader_node: 2,
            ..Default::default()
        };
        let replicas = groups.iter().map(held).collect();
        (NodeId(node), NodeStatus { node, incarnation, replicas, ..Default::default() })
    }

    #[test]
    fn a_life_ends_by_itself_only_where_every_group_has_a_majority_without_it() {
        let meta = [life(1, 5), life(2, 5), life(3, 5)];
        let judge = |rows: &[(u64, &[u64])], others: [(NodeId, NodeStatus); 2]| {
            dispensable(life(1, 5), &table(rows), &meta, &BTreeMap::from(others))
        };
        let all: [(u64, &str); 3] = [(0, "leader"), (1, "follower"), (2, "follower")];
        let sound = || [says(2, 5, &all), says(3, 5, &all)];
        assert_eq!(judge(&[(1, &[1, 2, 3]), (2, &[3, 1, 2])], sound()), Ok(()));
        // The only replica of a shard is never given up.
        assert!(judge(&[(1, &[1, 2, 3]), (2, &[1])], sound()).is_err());
        // Others' shards are none of its business.
        assert_eq!(judge(&[(7, &[2])], sound()), Ok(()));
        // Another replica of another shard has lost its data too, is in another life, or does not answer.
        let halted = [says(2, 5, &[(0, "leader"), (1, "leader"), (2, "stopped")]), says(3, 5, &all)];
        assert!(judge(&[(1, &[1, 2, 3]), (2, &[1, 2, 3])], halted).is_err());
        assert!(judge(&[(1, &[1, 2, 3])], [says(2, 6, &all), says(3, 5, &all)]).is_err());
        assert!(judge(&[(1, &[1, 2, 3])], [says(2, 5, &all), says(4, 5, &all)]).is_err());
        let settled =
            |rows: &[(u64, &[u64])], own: (NodeId, NodeStatus)| settled(life(1, 5), &table(rows), &meta, own.1);
        assert!(settled(&[(1, &[1, 2, 3]), (2, &[2, 3])], says(1, 5, &all[..2])));
        assert!(!settled(&[(1, &[1, 2, 3]), (2, &[1, 3])], says(1, 5, &all[..2])), "a shard is still to come");
        assert!(!settled(&[(1, &[1])], says(1, 5, &[(0, "learner"), (1, "leader")])));
        let mut earlier = table(&[(1, &[2, 3])]);
        earlier.shards.values_mut().for_each(|row| row.replicas.push(life(1, 4)));
        assert!(!super::settled(life(1, 5), &earlier, &meta, says(1, 5, &all).1));
        // Nor does the meta group go short.
        assert!(judge(&[(1, &[1, 2, 3])], [says(2, 5, &[(1, "leader")]), says(3, 5, &all)]).is_err());
    }
}
