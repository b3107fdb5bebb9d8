//! How nodes that know nothing but a list of seeds become one cluster, and how later ones find it.
//!
//! The problem: nodes start in any order, stop and come back, and some have lost their disks; yet the group that decides
//! everything else must be initialised once and never again, or there are two of them. **Rules:**
//!
//! - Only the seed with the lowest number mints a cluster id and initialises the meta group. It mints when every seed has
//!   answered in one round, all of them blank and all with the same list; so a seed that still knows a cluster, or cannot
//!   be asked, prevents it. One that lost its disk finds the cluster on the others and never mints again.
//! - It writes down that it is minting ([`Mint`]), then its cluster id, and tells nobody before the group is initialised.
//!   So whoever else knows the id knows of a group that exists. A stop in between is taken up where it was.
//! - Everybody else tells the id it has on disk before it answers anything: a node that is starting must not look blank.
//! - Another blank node adopts an id that the lowest seed tells, or any seed that is in the group by a committed decision;
//!   durably, and before it does anything else in that cluster.
//! - A note of minting counts only in the life that wrote it, and not once anybody is in the group.
//!
//! What the rules do not cure: the lowest seed loses its disk after it has told the id and before any other seed has the
//! group's first entry, a fraction of a second in a cluster's life. No second group arises; the nodes wait, and an operator
//! must empty their data directories, in which nothing is yet.
//!
//! [`next`] is pure: what this node should do, given what it has on disk and what the seeds answered in the last round.
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use nearring_proto::ids::{ClusterId, Incarnation, NodeId, ReplicaId};
use nearring_proto::wire::{self, Dial};
use nearring_proto::{WIRE_FORMAT, placement::table::Node};
use uuid::Uuid;

use crate::medium::{Medium, write_durably};
use crate::raft::peers;

/// How long a seed may take to answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// The seeds and where they are, as this node was told.
pub type Seeds = BTreeMap<NodeId, String>;

/// What this node has on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Who it is.
    pub me: ReplicaId,
    /// Its cluster, if it has one.
    pub cluster: Option<ClusterId>,
    /// Whether this life noted that it mints this very cluster.
    pub minting: bool,
    /// Whether its log holds anything of the meta group.
    pub formed: bool,
}

/// What a seed answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Who it is.
    pub replica: ReplicaId,
    /// Its cluster, if it says one.
    pub cluster: Option<ClusterId>,
    /// Its list of seeds.
    pub seeds: Seeds,
    /// Whether it knows of a committed decision of the meta group.
    pub in_group: bool,
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Write down this cluster id, then ask again.
    Adopt(ClusterId),
    /// Draw a cluster id; write the note, then the id; then ask again.
    Mint,
    /// Initialise the meta group with exactly these replicas.
    Initialise(BTreeMap<ReplicaId, String>),
    /// The group exists, or somebody else sees to it: go on.
    Ready,
    /// Ask again after a while. Why it cannot go on yet.
    Wait(String),
}

/// What a node does that has `standing` on disk, was told `seeds`, and got the answers `heard` from the others this round.
pub fn next(seeds: &Seeds, standing: &Standing, heard: &BTreeMap<NodeId, Heard>) -> Step {
    let me = standing.me.node;
    let lowest = seeds.keys().next().copied();
    match standing.cluster {
        Some(_) if standing.formed || !standing.minting || lowest != Some(me) => Step::Ready,
        Some(cluster) => {
            if heard.values().any(|seed| seed.in_group && seed.cluster == Some(cluster)) {
                return Step::Ready;
            }
            if let Some(obstacle) = obstacle(seeds, me, heard, Some(cluster)) {
                return Step::Wait(obstacle);
            }
            let lives = heard.values().map(|seed| seed.replica).chain([standing.me]);
            let address = |id: ReplicaId| seeds.get(&id.node).map(|address| (id, address.clone()));
            Step::Initialise(lives.filter_map(address).collect())
        }
        None => {
            let told = heard.iter().filter(|(id, seed)| lowest == Some(me) || lowest == Some(**id) || seed.in_group);
            let told: BTreeSet<ClusterId> = told.filter_map(|(_, seed)| seed.cluster).collect();
            match (told.first(), told.len()) {
                (Some(cluster), 1) => return Step::Adopt(*cluster),
                (Some(_), _) => return Step::Wait(format!("the seeds belong to different clusters: {told:?}")),
                (None, _) => {}
            }
            if lowest == Some(me) {
                return obstacle(seeds, me, heard, None).map_or(Step::Mint, Step::Wait);
            }
            let lowest = lowest.map_or_else(String::new, |id| id.to_string());
            Step::Wait(format!(
                "seed {lowest}, or one that is in the cluster already, has not told this node the cluster"
            ))
        }
    }
}

/// Why the group cannot be initialised yet: by the lowest seed, which alone may know the id of the cluster.
fn obstacle(seeds: &Seeds, me: NodeId, heard: &BTreeMap<NodeId, Heard>, cluster: Option<ClusterId>) -> Option<String> {
    let silent: Vec<String> =
        seeds.keys().filter(|id| **id != me && !heard.contains_key(id)).map(ToString::to_string).collect();
    if !silent.is_empty() {
        return Some(format!("to form a cluster every seed must answer; {} did not", silent.join(", ")));
    }
    if let Some(other) = heard.values().find(|seed| seed.seeds != *seeds) {
        let (node, theirs) = (other.replica.node, &other.seeds);
        return Some(format!("node {node} was started with other seeds ({theirs:?}) than this node ({seeds:?})"));
    }
    let foreign = heard.values().find(|seed| seed.cluster.is_some() && seed.cluster != cluster)?;
    Some(format!("node {} belongs to another cluster", foreign.replica.node))
}

/// The note that this life of the lowest seed mints a cluster.
///
/// ```text
/// file `minting` = "nrmint" · format u8 (1) · incarnation u64 · cluster 16 bytes · CRC-32 of all before
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mint {
    /// Which life.
    pub incarnation: Incarnation,
    /// Which cluster.
    pub cluster: ClusterId,
}

impl Mint {
    const FILE: &str = "minting";
    const MAGIC: &[u8; 7] = b"nrmint\x01";

    /// Writes the note. Blocks on the medium.
    ///
    /// # Errors
    /// The medium's.
    pub fn write(&self, medium: &dyn Medium, dir: &Path) -> io::Result<()> {
        let mut bytes = Self::MAGIC.to_vec();
        bytes.extend_from_slice(&self.incarnation.0.to_le_bytes());
        bytes.extend_from_slice(self.cluster.0.as_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        write_durably(medium, &dir.join(Self::FILE), &bytes)
    }

    /// Reads the note. One that cannot be read, or is of a newer format, counts as none: it only ever allows something.
    /// Blocks on the medium.
    ///
    /// # Errors
    /// The medium's.
    pub fn read(medium: &dyn Medium, dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(Self::FILE);
        if !medium.exists(&path)? {
            return Ok(None);
        }
        let bytes = medium.read(&path)?;
        let parse = || {
            let (body, crc) = bytes.split_last_chunk::<4>()?;
            let rest = body.strip_prefix(Self::MAGIC)?;
            let (incarnation, rest) = rest.split_first_chunk::<8>()?;
            let cluster = Uuid::from_slice(rest).ok()?;
            let intact = crc32fast::hash(body) == u32::from_le_bytes(*crc);
            intact.then(|| Self {
                incarnation: Incarnation(u64::from_le_bytes(*incarnation)),
                cluster: ClusterId(cluster),
            })
        };
        Ok(parse())
    }

    /// Removes the note, once the group has come to a decision. Blocks on the medium.
    ///
    /// # Errors
    /// The medium's.
    pub fn remove(medium: &dyn Medium, dir: &Path) -> io::Result<()> {
        let path = dir.join(Self::FILE);
        if medium.exists(&path)? { medium.remove_file(&path).and_then(|()| medium.sync_dir(dir)) } else { Ok(()) }
    }
}

/// How this node introduces itself.
pub fn introduction(me: &Node, cluster: Option<ClusterId>, seeds: &Seeds) -> wire::HelloRequest {
    wire::HelloRequest {
        format: WIRE_FORMAT,
        node: Some(me.clone().into()),
        cluster_id: cluster.map_or_else(Bytes::new, |cluster| Bytes::copy_from_slice(cluster.0.as_bytes())),
        seeds: seeds_to_wire(seeds),
    }
}

/// A list of seeds, in order.
pub fn seeds_to_wire(seeds: &Seeds) -> Vec<wire::SeedNode> {
    seeds.iter().map(|(node, address)| wire::SeedNode { node: node.0, address: address.clone() }).collect()
}

/// Asks every other seed who it is, all at once. Who does not answer, or answers as somebody else, is left out.
pub async fn ask(dial: &Dial, seeds: &Seeds, me: NodeId, request: &wire::HelloRequest) -> BTreeMap<NodeId, Heard> {
    let others = seeds.iter().filter(|(node, _)| **node != me);
    let answers = others.map(|(node, address)| async move {
        match peers::hello(dial, address, request.clone(), HELLO_TIMEOUT).await {
            Ok(reply) => Some((*node, heard(*node, reply)?)),
            Err(error) => {
                tracing::debug!(%node, %error, "no answer from a seed");
                None
            }
        }
    });
    futures::future::join_all(answers).await.into_iter().flatten().collect()
}

fn heard(asked: NodeId, reply: wire::HelloReply) -> Option<Heard> {
    let node = Node::from(reply.node?);
    if node.id != asked {
        tracing::warn!(%asked, answered = %node.id, "another node answers at a seed's address; check the list of seeds");
        return None;
    }
    let cluster = match reply.cluster_id.len() {
        0 => None,
        _ => Some(ClusterId(Uuid::from_slice(&reply.cluster_id).ok()?)),
    };
    Some(Heard {
        replica: ReplicaId { node: node.id, incarnation: node.incarnation },
        cluster,
        seeds: reply.seeds.into_iter().map(|seed| (NodeId(seed.node), seed.address)).collect(),
        in_group: !reply.meta_voters.is_empty(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::medium::OsMedium;

    fn seeds() -> Seeds {
        (1..=3).map(|id| (NodeId(id), format!("node{id}:7000"))).collect()
    }

    /// One node: what is on its disk, and whether it runs.
    #[derive(Clone, Debug)]
    struct Model {
        incarnation: u64,
        cluster: Option<ClusterId>,
        mint: Option<Mint>,
        /// The group's first entry: its members. On one node alone it decides nothing.
        entry: Option<(ClusterId, BTreeSet<ReplicaId>)>,
        up: bool,
    }

    struct World {
        nodes: BTreeMap<NodeId, Model>,
        minted: u64,
        initialised: Vec<ClusterId>,
        lives: u64,
    }

    impl World {
        fn new() -> Self {
            let blank = |id| Model { incarnation: id, cluster: None, mint: None, entry: None, up: false };
            let nodes = (1..=3).map(|id| (NodeId(id), blank(id))).collect();
            Self { nodes, minted: 0, initialised: Vec::new(), lives: 10 }
        }

        fn replica(&self, id: NodeId) -> ReplicaId {
            ReplicaId { node: id, incarnation: Incarnation(self.nodes[&id].incarnation) }
        }

        /// Members of the group's first entry that hold it.
        fn holders(&self, cluster: ClusterId) -> usize {
            let holds = |(id, node): (&NodeId, &Model)| {
                let entry = node.entry.as_ref().filter(|(of, _)| *of == cluster);
                entry.is_some_and(|(_, members)| members.contains(&self.replica(*id)))
            };
            self.nodes.iter().filter(|node| holds(*node)).count()
        }

        fn answer(&self, id: NodeId) -> Heard {
            let node = &self.nodes[&id];
            let cluster = node.cluster.filter(|_| node.entry.is_some() || !self.minting(id));
            let in_group = node.entry.as_ref().is_some_and(|(cluster, _)| self.holders(*cluster) >= 2);
            Heard { replica: self.replica(id), cluster, seeds: seeds(), in_group }
        }

        fn minting(&self, id: NodeId) -> bool {
            let node = &self.nodes[&id];
            let mine = |mint: &Mint| mint.incarnation.0 == node.incarnation && Some(mint.cluster) == node.cluster;
            node.mint.as_ref().is_some_and(mine)
        }

        /// One round of one node: it asks whom it reaches, and takes the step, or half of it and stops.
        fn round(&mut self, id: NodeId, reached: &[bool], crash: bool) {
            if !self.nodes[&id].up {
                return;
            }
            let others =
                self.nodes.iter().filter(|(other, node)| **other != id && node.up && reached[(other.0 - 1) as usize]);
            let heard = others.map(|(other, _)| (*other, self.answer(*other))).collect();
            let standing = Standing {
                me: self.replica(id),
                cluster: self.nodes[&id].cluster,
                minting: self.minting(id),
                formed: self.nodes[&id].entry.is_some(),
            };
            let step = next(&seeds(), &standing, &heard);
            let node = self.nodes.get_mut(&id).unwrap();
            match step {
                Step::Adopt(cluster) => node.cluster = Some(cluster),
                Step::Mint => {
                    self.minted += 1;
                    let cluster = ClusterId(Uuid::from_u128(self.minted.into()));
                    node.mint = Some(Mint { incarnation: standing.me.incarnation, cluster });
                    if !crash {
                        node.cluster = Some(cluster);
                    }
                }
                Step::Initialise(members) if !crash => {
                    assert!(members.contains_key(&standing.me) && members.len() == 3);
                    let cluster = node.cluster.unwrap();
                    node.entry = Some((cluster, members.into_keys().collect()));
                    self.initialised.push(cluster);
                }
                Step::Initialise(_) | Step::Ready | Step::Wait(_) => {}
            }
            if crash {
                node.up = false;
            }
        }

        /// Raft carries the first entry to a node of the same cluster.
        fn replicate(&mut self, from: NodeId, to: NodeId) {
            let (source, target) = (self.nodes[&from].clone(), &self.nodes[&to]);
            if source.up && target.up && source.cluster.is_some() && source.cluster == target.cluster {
                let entry = source.entry;
                let target = self.nodes.get_mut(&to).unwrap();
                target.entry = target.entry.take().or(entry);
            }
        }

        /// A disk is lost. Not while the group's first entry is on this disk alone, nor beyond what leaves a majority: that
        /// no protocol survives.
        fn wipe(&mut self, id: NodeId) {
            let known = self.nodes.values().any(|node| node.cluster.is_some() || node.mint.is_some());
            let safe = match self.initialised.last() {
                Some(_) => self.nodes.iter().filter(|(other, node)| **other != id && node.entry.is_some()).count() >= 2,
                None => !known || self.nodes[&id].mint.is_some(),
            };
            if safe {
                self.lives += 1;
                let life = self.lives;
                let up = self.nodes[&id].up;
                let node = self.nodes.get_mut(&id).unwrap();
                *node = Model { incarnation: life, cluster: None, mint: None, entry: None, up };
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]
        /// Any order of starts, stops in the middle of a step, silent seeds and lost disks: the group is initialised once,
        /// and once all run and reach each other all are in it.
        #[test]
        fn one_cluster_arises_whatever_the_order(
            events in prop::collection::vec(
                (0..6u8, 1..=3u64, 1..=3u64, prop::collection::vec(any::<bool>(), 3), any::<bool>()), 0..120),
        ) {
            let mut world = World::new();
            for (event, at, to, reached, crash) in events {
                let (id, to) = (NodeId(at), NodeId(to));
                match event {
                    0 => world.nodes.get_mut(&id).unwrap().up = true,
                    1 => world.nodes.get_mut(&id).unwrap().up = !crash,
                    2 => world.replicate(id, to),
                    3 if crash => world.wipe(id),
                    _ => world.round(id, &reached, crash && event == 4),
                }
                prop_assert!(world.initialised.len() <= 1, "initialised as {:?}", world.initialised);
                let told: BTreeSet<_> = world.nodes.keys().filter_map(|id| world.answer(*id).cluster).collect();
                prop_assert!(told.len() <= 1, "two clusters are told: {told:?}");
            }
            world.nodes.values_mut().for_each(|node| node.up = true);
            for _ in 0..6 {
                (1..=3).for_each(|id| world.round(NodeId(id), &[true; 3], false));
                for from in 1..=3 {
                    (1..=3).for_each(|to| world.replicate(NodeId(from), NodeId(to)));
                }
            }
            let clusters: BTreeSet<_> = world.nodes.values().map(|node| node.cluster).collect();
            prop_assert_eq!(clusters, BTreeSet::from([Some(world.initialised[0])]));
            prop_assert!(world.nodes.values().all(|node| node.entry.is_some()));
        }
    }

    #[test]
    fn nobody_mints_while_a_seed_is_silent_or_disagrees_or_knows_a_cluster() {
        let me = ReplicaId { node: NodeId(1), incarnation: Incarnation(1) };
        let standing = Standing { me, cluster: None, minting: false, formed: false };
        let blank = |id| Heard {
            replica: ReplicaId { node: NodeId(id), incarnation: Incarnation(1) },
            cluster: None,
            seeds: seeds(),
            in_group: false,
        };
        let both = BTreeMap::from([(NodeId(2), blank(2)), (NodeId(3), blank(3))]);
        assert_eq!(next(&seeds(), &standing, &both), Step::Mint);
        let waits = |heard: &BTreeMap<NodeId, Heard>| match next(&seeds(), &standing, heard) {
            Step::Wait(reason) => reason,
            other => panic!("{other:?}"),
        };
        let mut one = both.clone();
        one.remove(&NodeId(3));
        assert!(waits(&one).contains("n3"));
        let mut other_list = both.clone();
        other_list.get_mut(&NodeId(2)).unwrap().seeds.insert(NodeId(4), "node4:7000".into());
        assert!(waits(&other_list).contains("other seeds"));
        let cluster = |n| Some(ClusterId(Uuid::from_u128(n)));
        let mut known = both.clone();
        known.get_mut(&NodeId(3)).unwrap().cluster = cluster(1);
        assert_eq!(next(&seeds(), &standing, &known), Step::Adopt(cluster(1).unwrap()), "a wiped lowest seed");
        known.get_mut(&NodeId(2)).unwrap().cluster = cluster(2);
        assert!(waits(&known).contains("different clusters"));

        // Another seed believes the lowest, and others only if they are in the group.
        let second = ReplicaId { node: NodeId(2), incarnation: Incarnation(1) };
        let standing = Standing { me: second, ..standing };
        let mut heard = BTreeMap::from([(NodeId(1), blank(1)), (NodeId(3), blank(3))]);
        heard.get_mut(&NodeId(3)).unwrap().cluster = cluster(1);
        assert!(matches!(next(&seeds(), &standing, &heard), Step::Wait(_)));
        heard.get_mut(&NodeId(3)).unwrap().in_group = true;
        assert_eq!(next(&seeds(), &standing, &heard), Step::Adopt(cluster(1).unwrap()));
        let alone = Seeds::from([(NodeId(1), "node1:7000".into())]);
        let standing = Standing { me, cluster: None, minting: false, formed: false };
        assert_eq!(next(&alone, &standing, &BTreeMap::new()), Step::Mint);
        let standing = Standing { cluster: cluster(1), minting: true, ..standing };
        let members = BTreeMap::from([(me, "node1:7000".to_owned())]);
        assert_eq!(next(&alone, &standing, &BTreeMap::new()), Step::Initialise(members));
    }

    #[test]
    fn a_note_that_is_not_intact_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mint::read(&OsMedium, dir.path()).unwrap(), None);
        let mint = Mint { incarnation: Incarnation(7), cluster: ClusterId(Uuid::from_u128(8)) };
        mint.write(&OsMedium, dir.path()).unwrap();
        assert_eq!(Mint::read(&OsMedium, dir.path()).unwrap(), Some(mint));
        let path = dir.path().join(Mint::FILE);
        let intact = std::fs::read(&path).unwrap();
        for at in 0..intact.len() {
            let mut bytes = intact.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(Mint::read(&OsMedium, dir.path()).unwrap(), None, "byte {at}");
        }
        Mint::remove(&OsMedium, dir.path()).unwrap();
        Mint::remove(&OsMedium, dir.path()).unwrap();
        assert_eq!(Mint::read(&OsMedium, dir.path()).unwrap(), None);
    }
}
