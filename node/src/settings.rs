//! What a node is started with. Tunable values only; replaceable parts (medium, network, compute, clock) are handed to
//! the builder instead.
use std::path::PathBuf;
use std::time::Duration;

use nearring_proto::collection::InvalidInput;
use nearring_proto::ids::NodeId;
use nearring_proto::wire::is_host_port;

use crate::index::GRAPH_FROM;

/// Everything a node needs to know before it can start. [`Settings::check`] before use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// This node's number, at least 1, unique in the cluster and the same over all its lives.
    pub node: NodeId,
    /// Where its log, snapshots, segments and state store live. One process at a time.
    pub data_dir: PathBuf,
    /// `host:port` under which the others reach it.
    pub advertise: String,
    /// The nodes that form the meta group when the cluster is first started: an odd number, the same list on each.
    pub seeds: Vec<(NodeId, String)>,
    /// Failure domain; "" where none is given.
    pub zone: String,
    /// Bounds on memory and disk.
    pub limits: Limits,
    /// Timing of every Raft group.
    pub raft: RaftSettings,
    /// Members from which on a segment that this node builds gets a graph; smaller ones are read whole.
    pub graph_from: usize,
}

/// Bounds that protect the process. Over one, a caller gets `RESOURCE_EXHAUSTED`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of writes accepted and not yet applied, over all shards.
    pub inflight_write_bytes: u64,
    /// Bytes of vectors in the tails of all shards; beyond it writes wait for segments.
    pub tail_bytes: u64,
    /// Bytes of sparse and multi-vectors of all shards, which stay in memory; beyond it no more of them are taken.
    pub resident_vector_bytes: u64,
    /// Free disk below which proposals and appends are refused; votes and snapshots may still use it.
    pub disk_reserve_bytes: u64,
    /// Size of the shared log at which the group that pins its oldest file must snapshot. Several log files at least.
    pub log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inflight_write_bytes: 256 << 20,
            tail_bytes: 2 << 30,
            resident_vector_bytes: 4 << 30,
            disk_reserve_bytes: 256 << 20,
            log_bytes: 1 << 30,
        }
    }
}

/// Timing of every Raft group on the node; the same on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RaftSettings {
    /// How often a leader shows itself; at most half of the shortest election timeout.
    pub heartbeat: Duration,
    /// Shortest and longest election timeout. A follower stands for election after a silence of the longest (the leader's
    /// lease, in which nobody votes) and then a time drawn from between the two: with the defaults after 750 to 900 ms, in
    /// which a leader shows itself five times. The spread keeps two from standing at once.
    pub election: (Duration, Duration),
}

impl Default for RaftSettings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election: (Duration::from_millis(300), Duration::from_millis(450)),
        }
    }
}

impl Settings {
    /// Settings with every default filled in.
    pub fn new(
        node: NodeId,
        data_dir: impl Into<PathBuf>,
        advertise: impl Into<String>,
        seeds: Vec<(NodeId, String)>,
    ) -> Self {
        Self {
            node,
            data_dir: data_dir.into(),
            advertise: advertise.into(),
            seeds,
            zone: String::new(),
            limits: Limits::default(),
            raft: RaftSettings::default(),
            graph_from: GRAPH_FROM,
        }
    }

    /// Checks what can be checked without touching disk or network.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the setting.
    pub fn check(&self) -> Result<(), InvalidInput> {
        if self.node.0 == 0 {
            return Err(InvalidInput::new("node", "must be at least 1"));
        }
        if !is_host_port(&self.advertise) {
            return Err(InvalidInput::new("advertise", format!("{:?} is not host:port", self.advertise)));
        }
        if self.seeds.is_empty() || self.seeds.len().is_multiple_of(2) {
            let count = self.seeds.len();
            return Err(InvalidInput::new("seeds", format!("{count} nodes given; name an odd number, 3 is usual")));
        }
        let mut numbers: Vec<NodeId> = self.seeds.iter().map(|(node, _)| *node).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() != self.seeds.len() {
            return Err(InvalidInput::new("seeds", "a node is named twice"));
        }
        if let Some((node, address)) = self.seeds.iter().find(|(node, address)| node.0 == 0 || !is_host_port(address)) {
            return Err(InvalidInput::new("seeds", format!("{node}={address:?}: want a number from 1 and host:port")));
        }
        let (shortest, longest) = self.raft.election;
        if self.raft.heartbeat.is_zero() || self.raft.heartbeat * 2 > shortest {
            return Err(InvalidInput::new("raft.heartbeat", "must be above zero and at most half of raft.election.0"));
        }
        if shortest >= longest {
            return Err(InvalidInput::new("raft.election", "the shortest timeout must be below the longest"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let seeds = (1..=3).map(|node| (NodeId(node), format!("10.0.0.{node}:7000"))).collect();
        Settings::new(NodeId(1), "data", "10.0.0.1:7000", seeds)
    }

    fn refused(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = settings();
        change(&mut settings);
        settings.check().expect_err("must be refused").field
    }

    #[test]
    fn the_defaults_hold_and_each_mistake_names_its_setting() {
        assert_eq!(settings().check(), Ok(()));
        assert_eq!(refused(|s| s.node = NodeId(0)), "node");
        assert_eq!(refused(|s| s.advertise = "10.0.0.1".into()), "advertise");
        assert_eq!(refused(|s| s.seeds.clear()), "seeds");
        assert_eq!(refused(|s| s.seeds.truncate(2)), "seeds");
        assert_eq!(refused(|s| s.seeds[1].0 = NodeId(1)), "seeds");
        assert_eq!(refused(|s| s.seeds[2].1 = ":7000".into()), "seeds");
        assert_eq!(refused(|s| s.raft.heartbeat = Duration::from_millis(300)), "raft.heartbeat");
        assert_eq!(refused(|s| s.raft.election.1 = s.raft.election.0), "raft.election");
    }
}
