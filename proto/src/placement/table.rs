//! The placement table and the changes that lead from one epoch to the next.
//!
//! [`Table::apply`] is a pure function of table and change: the meta group logs changes, and every replica of it reaches
//! the same table or the same [`Rejected`]. The table is *intent*; each group's own membership is the truth, and nodes
//! work towards the table.
//!
//! **A shard's group is initialised once.** The first replica to see a `Creating` row may initialise the group with
//! exactly the members listed. Were the list of such a row edited because one member lost its data directory, one node
//! could have initialised with the old list and another with the new one: two groups under one id, each with a majority
//! of its own. So a row that is still `Creating` is never edited: it is dropped, and a fresh shard id, which no node has
//! ever initialised, takes its ordinal in the collection. An `Active` group exists, and changes members by consensus.
//!
//! **Data is deleted by name only.** A shard that leaves is listed in [`Table::dropped`] with the replicas that held it;
//! absence from the table deletes nothing.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::collection::{Collection, CollectionSpec, CollectionUpdate, InvalidInput, check_name};
use crate::ids::{ClusterId, CollectionId, Epoch, Incarnation, NodeId, PointId, ReplicaId, ShardId};
use crate::placement::ring::{HomeRing, NodeRing};

/// A storage node as the cluster knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Which life of its data directory is the current one.
    pub incarnation: Incarnation,
    /// `host:port` of its gRPC server.
    pub address: String,
    /// Failure domain; "" where none is given.
    pub zone: String,
}

/// How far a shard's life has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ShardState {
    /// Its group may be initialised, with exactly the replicas listed; it takes no requests yet.
    Creating,
    /// It serves.
    Active,
}

/// One shard's row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// Whose shard it is.
    pub collection: CollectionId,
    /// How far it has come.
    pub state: ShardState,
    /// Who is to hold it: intent. The group's own membership is the truth.
    pub replicas: Vec<ReplicaId>,
    /// The epoch its versions carry.
    pub home_epoch: u64,
}

/// Everything the meta group decides, as of one of its log positions. Cheap to share behind an `Arc`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Whose table it is.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub epoch: Epoch,
    /// By id.
    pub nodes: BTreeMap<NodeId, Node>,
    /// By id.
    pub collections: BTreeMap<CollectionId, Collection>,
    /// By id.
    pub shards: BTreeMap<ShardId, Shard>,
    /// Shards that are gone, with the replicas that may delete what they hold of them. The oldest are forgotten beyond
    /// [`Table::DROPPED_MAX`]; a replica that was away for so long keeps files that an operator may remove.
    pub dropped: BTreeMap<ShardId, Vec<ReplicaId>>,
    /// The next shard or collection id.
    pub next_id: u64,
    /// Further names of collections.
    #[serde(default)]
    pub aliases: BTreeMap<String, CollectionId>,
    /// What doors keep of a collection for their own clients, by key; the store gives it no meaning.
    #[serde(default)]
    pub attributes: BTreeMap<CollectionId, BTreeMap<String, String>>,
}

/// One thing the meta group decides.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// A node is there: new, with a new address or zone, or in a new life.
    Join(Node),
    /// Creates a collection and its shards.
    CreateCollection(CollectionSpec),
    /// Changes a collection's settings.
    UpdateCollection(CollectionUpdate),
    /// Drops a collection by name, with its shards. One that does not exist is no error.
    DeleteCollection(String),
    /// The shard's group is initialised and has a leader.
    ShardReady(ShardId),
    /// Gives collections further names, all in one step or none.
    ChangeAliases(Vec<AliasAction>),
    /// Replaces attributes of a collection; an empty value removes one.
    SetAttributes {
        /// The collection's name.
        collection: String,
        /// By key.
        values: BTreeMap<String, String>,
    },
}

/// One change to the aliases.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AliasAction {
    /// The alias stands for this collection, whatever it stood for.
    Assign {
        /// The further name.
        alias: String,
        /// The collection's own name, or an alias of it.
        collection: String,
    },
    /// The alias is gone. One that does not exist is no error.
    Remove(String),
    /// The alias has another name.
    Rename {
        /// The old one.
        from: String,
        /// The new one.
        to: String,
    },
}

/// What a change did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// The table's epoch afterwards. It stands still where the table already was as the change asks.
    pub epoch: Epoch,
    /// The collection created or updated.
    pub collection: Option<Collection>,
    /// Whether there was a collection to delete.
    pub existed: bool,
}

/// Why a change was refused; the table is as before. Every replica of the meta group reaches the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Rejected {
    /// A setting is out of bounds.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// The name is taken.
    #[error("collection {name:?} exists already")]
    AlreadyExists {
        /// The name.
        name: String,
    },
    /// There is no such collection.
    #[error("collection {name:?} does not exist")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Replicas need distinct nodes.
    #[error("replication_factor: {wanted} replicas need {wanted} nodes, the cluster has {have}; lower it or add nodes")]
    NotEnoughNodes {
        /// Replicas a shard.
        wanted: u32,
        /// Nodes that have joined.
        have: usize,
    },
    /// Word of a life that has ended. Taken, it would turn intent back to replicas that are gone.
    #[error("node: {node} has begun life {known:x}; {offered:x} is an earlier one, its data directory is no longer in use",
        known = known.0, offered = offered.0)]
    EarlierLife {
        /// The node.
        node: NodeId,
        /// Its current life.
        known: Incarnation,
        /// The life that was to join.
        offered: Incarnation,
    },
    /// There is no such shard, or no longer.
    #[error("shard {shard} does not exist")]
    UnknownShard {
        /// The shard.
        shard: ShardId,
    },
}

impl Table {
    /// How many dropped shards are remembered.
    pub const DROPPED_MAX: usize = 65_536;
    /// The most shards a collection gets by default.
    pub const DEFAULT_SHARDS_MAX: usize = 16;
    /// The most aliases.
    pub const ALIASES_MAX: usize = 65_536;
    /// The most bytes of one collection's attributes, keys and values.
    pub const ATTRIBUTE_BYTES_MAX: usize = 262_144;
    /// Replicas of a shard by default, where there are as many nodes.
    pub const DEFAULT_REPLICAS: usize = 3;

    /// The empty table of a new cluster, at epoch 0. Ids count from 1: 0 is the meta group's.
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            epoch: Epoch(0),
            nodes: BTreeMap::new(),
            collections: BTreeMap::new(),
            shards: BTreeMap::new(),
            dropped: BTreeMap::new(),
            next_id: 1,
            aliases: BTreeMap::new(),
            attributes: BTreeMap::new(),
        }
    }

    /// The collection of this name or alias.
    pub fn collection(&self, name: &str) -> Option<&Collection> {
        self.named(name).or_else(|| self.collections.get(self.aliases.get(name)?))
    }

    /// The collection whose own name this is.
    pub fn named(&self, name: &str) -> Option<&Collection> {
        self.collections.values().find(|collection| collection.spec.name == name)
    }

    /// An attribute of a collection; "" where it has none of this key.
    pub fn attribute(&self, collection: CollectionId, key: &str) -> &str {
        self.attributes.get(&collection).and_then(|values| values.get(key)).map_or("", String::as_str)
    }

    /// The home shard of a point. Callers with many ids make one [`HomeRing`] of `collection.shards` and ask that.
    pub fn home(&self, collection: &Collection, id: &PointId) -> ShardId {
        HomeRing::new(&collection.shards).home_of(id, &collection.spec.routing_separator)
    }

    /// Carries out one change, or refuses it and leaves the table as it was. Every change to the table raises its
    /// epoch by one; a change that finds its work done leaves it, so that a repeated one wakes nobody.
    ///
    /// # Errors
    /// [`Rejected`], a deterministic function of table and change.
    pub fn apply(&mut self, change: &Change) -> Result<Applied, Rejected> {
        let mut applied = Applied { epoch: self.epoch, collection: None, existed: false };
        let changed = match change {
            Change::Join(node) => self.join(node)?,
            Change::CreateCollection(spec) => {
                applied.collection = Some(self.create_collection(spec)?);
                true
            }
            Change::UpdateCollection(update) => {
                let (collection, changed) = self.update_collection(update)?;
                applied.collection = Some(collection);
                changed
            }
            Change::DeleteCollection(name) => {
                applied.existed = self.delete_collection(name);
                applied.existed
            }
            Change::ShardReady(shard) => self.shard_ready(*shard)?,
            Change::ChangeAliases(actions) => self.change_aliases(actions)?,
            Change::SetAttributes { collection, values } => self.set_attributes(collection, values)?,
        };
        if changed {
            self.epoch.0 += 1;
        }
        applied.epoch = self.epoch;
        Ok(applied)
    }

    fn join(&mut self, node: &Node) -> Result<bool, Rejected> {
        if node.id.0 == 0 {
            return Err(InvalidInput::new("node", "is 0; nodes are numbered from 1").into());
        }
        if node.address.is_empty() {
            return Err(InvalidInput::new("address", "is empty; give host:port as others dial it").into());
        }
        // Incarnations of a node only grow, so a smaller one is a message that was long on its way.
        if let Some(Node { incarnation: known, .. }) = self.nodes.get(&node.id)
            && node.incarnation < *known
        {
            return Err(Rejected::EarlierLife { node: node.id, known: *known, offered: node.incarnation });
        }
        let before = self.nodes.insert(node.id, node.clone());
        if let Some(before) = &before
            && before.incarnation != node.incarnation
        {
            self.replace_life(node.id, before.incarnation, node.incarnation);
        }
        Ok(before.as_ref() != Some(node))
    }

    /// Points intent at a node's new life; see the module's rule for shards that are still being created.
    fn replace_life(&mut self, node: NodeId, old: Incarnation, new: Incarnation) {
        let (old, new) = (ReplicaId { node, incarnation: old }, ReplicaId { node, incarnation: new });
        let mut unfinished = Vec::new();
        for shard in self.shards.values_mut().filter(|shard| shard.replicas.contains(&old)) {
            match shard.state {
                ShardState::Creating => unfinished.push(shard.id),
                ShardState::Active => repoint(&mut shard.replicas, old, new),
            }
        }
        for id in unfinished {
            let Some(mut shard) = self.drop_shard(id) else { continue };
            shard.id = ShardId(self.take_id());
            repoint(&mut shard.replicas, old, new);
            if let Some(collection) = self.collections.get_mut(&shard.collection) {
                collection.shards.iter_mut().filter(|ordinal| **ordinal == id).for_each(|ordinal| *ordinal = shard.id);
            }
            self.shards.insert(shard.id, shard);
        }
    }

    fn create_collection(&mut self, spec: &CollectionSpec) -> Result<Collection, Rejected> {
        spec.check()?;
        if self.named(&spec.name).is_some() {
            return Err(Rejected::AlreadyExists { name: spec.name.clone() });
        }
        if self.aliases.contains_key(&spec.name) {
            let reason = format!("{:?} is an alias of another collection; remove the alias first", spec.name);
            return Err(InvalidInput::new("name", reason).into());
        }
        let spec = self.with_defaults(spec);
        let replicas = spec.replication_factor as usize;
        if replicas > self.nodes.len() {
            return Err(Rejected::NotEnoughNodes { wanted: spec.replication_factor, have: self.nodes.len() });
        }
        let ring = NodeRing::new(self.nodes.values().map(|node| (node.id, node.zone.as_str())));
        let id = CollectionId(self.take_id());
        let shards: Vec<ShardId> = (0..spec.shard_count).map(|_| ShardId(self.take_id())).collect();
        for shard in &shards {
            let replicas = ring.replicas(*shard, replicas).into_iter().filter_map(|node| self.nodes.get(&node));
            let replicas = replicas.map(|node| ReplicaId { node: node.id, incarnation: node.incarnation }).collect();
            let row = Shard { id: *shard, collection: id, state: ShardState::Creating, replicas, home_epoch: 1 };
            self.shards.insert(*shard, row);
        }
        let collection = Collection { id, spec, shards };
        self.collections.insert(id, collection.clone());
        Ok(collection)
    }

    /// Replicas: three, which survive one death; one where fewer than three nodes could not survive any.
    ///
    /// Shards: one a node, at most 16. Under hash placement every query asks every shard, and each shard walks its own
    /// graph, at a cost that grows with the logarithm of its size only: fewer shards cost less CPU a query. One a node
    /// is the least that gives every node a leader to carry its part of the writes.
    fn with_defaults(&self, spec: &CollectionSpec) -> CollectionSpec {
        let mut spec = spec.clone();
        if spec.replication_factor == 0 {
            let replicas = if self.nodes.len() < Self::DEFAULT_REPLICAS { 1 } else { Self::DEFAULT_REPLICAS };
            spec.replication_factor = replicas as u32;
        }
        if spec.shard_count == 0 {
            spec.shard_count = self.nodes.len().clamp(1, Self::DEFAULT_SHARDS_MAX) as u32;
        }
        spec
    }

    fn update_collection(&mut self, update: &CollectionUpdate) -> Result<(Collection, bool), Rejected> {
        let id = self.collection(&update.name).map(|collection| collection.id);
        let collection = id.and_then(|id| self.collections.get_mut(&id));
        let collection = collection.ok_or_else(|| Rejected::NotFound { name: update.name.clone() })?;
        let mut spec = collection.spec.clone();
        for path in &update.drop_payload_indexes {
            spec.payload_indexes.remove(path);
        }
        for (path, kind) in &update.add_payload_indexes {
            let before = spec.payload_indexes.insert(path.clone(), *kind);
            if before.is_some_and(|before| before != *kind) {
                let field = format!("add_payload_indexes[{path:?}]");
                return Err(InvalidInput::new(field, "is indexed as another kind; drop that index as well").into());
            }
        }
        for (name, sparse) in &update.sparse_vectors {
            let Some(known) = spec.sparse_vectors.get_mut(name) else {
                let field = format!("sparse_vectors[{name:?}]");
                return Err(InvalidInput::new(field, "is no sparse vector of the collection; none can be added").into());
            };
            *known = sparse.clone();
        }
        add(&mut spec.vectors, &update.add_vectors, "add_vectors")?;
        add(&mut spec.sparse_vectors, &update.add_sparse_vectors, "add_sparse_vectors")?;
        add(&mut spec.multi_vectors, &update.add_multi_vectors, "add_multi_vectors")?;
        let settings = [
            (update.m, &mut spec.index.m),
            (update.ef_construction, &mut spec.index.ef_construction),
            (update.ef_search, &mut spec.index.ef_search),
            (update.seal_points, &mut spec.index.seal_points),
        ];
        for (new, setting) in settings {
            if new != 0 {
                *setting = new;
            }
        }
        spec.check()?;
        let changed = spec != collection.spec;
        collection.spec = spec;
        Ok((collection.clone(), changed))
    }

    fn delete_collection(&mut self, name: &str) -> bool {
        // By its own name only: who drops an alias's collection by mistake loses data that has another name.
        let Some(id) = self.named(name).map(|collection| collection.id) else { return false };
        let shards = self.collections.remove(&id).map(|collection| collection.shards).unwrap_or_default();
        self.aliases.retain(|_, collection| *collection != id);
        self.attributes.remove(&id);
        for shard in shards {
            self.drop_shard(shard);
        }
        true
    }

    fn change_aliases(&mut self, actions: &[AliasAction]) -> Result<bool, Rejected> {
        let mut aliases = self.aliases.clone();
        for (at, action) in actions.iter().enumerate() {
            let free = |alias: &str, field: &str| -> Result<(), Rejected> {
                let field = format!("actions[{at}].{field}");
                check_name(alias, &field)?;
                if self.named(alias).is_some() {
                    return Err(InvalidInput::new(field, format!("{alias:?} is the name of a collection")).into());
                }
                Ok(())
            };
            let missing = |name: &str| Rejected::NotFound { name: name.to_owned() };
            match action {
                AliasAction::Assign { alias, collection } => {
                    free(alias, "alias")?;
                    let named = self.named(collection).map(|collection| collection.id);
                    let id = named.or_else(|| aliases.get(collection).copied()).ok_or_else(|| missing(collection))?;
                    aliases.insert(alias.clone(), id);
                }
                AliasAction::Remove(alias) => drop(aliases.remove(alias)),
                AliasAction::Rename { from, to } => {
                    free(to, "to")?;
                    let id = aliases.remove(from).ok_or_else(|| missing(from))?;
                    aliases.insert(to.clone(), id);
                }
            }
        }
        if aliases.len() > Self::ALIASES_MAX {
            let reason = format!("make {} aliases, at most {} are kept", aliases.len(), Self::ALIASES_MAX);
            return Err(InvalidInput::new("actions", reason).into());
        }
        let changed = aliases != self.aliases;
        self.aliases = aliases;
        Ok(changed)
    }

    fn set_attributes(&mut self, name: &str, values: &BTreeMap<String, String>) -> Result<bool, Rejected> {
        let id = self.collection(name).map(|collection| collection.id);
        let id = id.ok_or_else(|| Rejected::NotFound { name: name.to_owned() })?;
        let mut attributes = self.attributes.get(&id).cloned().unwrap_or_default();
        attributes.extend(values.iter().map(|(key, value)| (key.clone(), value.clone())));
        attributes.retain(|_, value| !value.is_empty());
        let bytes: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > Self::ATTRIBUTE_BYTES_MAX {
            let reason = format!("have {bytes} bytes together, at most {} are kept", Self::ATTRIBUTE_BYTES_MAX);
            return Err(InvalidInput::new("attributes", reason).into());
        }
        if self.attributes.get(&id).unwrap_or(&BTreeMap::new()) == &attributes {
            return Ok(false);
        }
        match attributes.is_empty() {
            true => self.attributes.remove(&id),
            false => self.attributes.insert(id, attributes),
        };
        Ok(true)
    }

    fn shard_ready(&mut self, shard: ShardId) -> Result<bool, Rejected> {
        let row = self.shards.get_mut(&shard).ok_or(Rejected::UnknownShard { shard })?;
        let changed = row.state != ShardState::Active;
        row.state = ShardState::Active;
        Ok(changed)
    }

    fn drop_shard(&mut self, id: ShardId) -> Option<Shard> {
        let shard = self.shards.remove(&id)?;
        self.dropped.insert(id, shard.replicas.clone());
        while self.dropped.len() > Self::DROPPED_MAX {
            self.dropped.pop_first();
        }
        Some(shard)
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}

fn repoint(replicas: &mut [ReplicaId], old: ReplicaId, new: ReplicaId) {
    replicas.iter_mut().filter(|replica| **replica == old).for_each(|replica| *replica = new);
}

/// Adds settings under names of their own. What is there already as it is to be stays: who did not hear an answer repeats.
fn add<T: Clone + PartialEq>(
    into: &mut BTreeMap<String, T>,
    given: &BTreeMap<String, T>,
    field: &str,
) -> Result<(), Rejected> {
    for (name, settings) in given {
        let known = into.entry(name.clone()).or_insert_with(|| settings.clone());
        if known != settings {
            let reason = "is a vector of the collection already, with other settings";
            return Err(InvalidInput::new(format!("{field}[{name:?}]"), reason).into());
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::collection::tests::spec;
    use crate::collection::{FieldKind, Modifier, SparseSpec, VectorSpec};
    use crate::vector::{Metric, ScalarKind};

    fn node(id: u64, incarnation: u64) -> Node {
        Node {
            id: NodeId(id),
            incarnation: Incarnation(incarnation),
            address: format!("node{id}:7000"),
            zone: String::new(),
        }
    }

    pub(crate) fn table(nodes: u64) -> Table {
        let mut table = Table::new(ClusterId(uuid::Uuid::from_u128(9)));
        (1..=nodes).for_each(|id| drop(table.apply(&Change::Join(node(id, id * 100))).unwrap()));
        table
    }

    fn create(table: &mut Table, spec: CollectionSpec) -> Collection {
        table.apply(&Change::CreateCollection(spec)).unwrap().collection.unwrap()
    }

    #[test]
    fn defaults_follow_the_number_of_nodes() {
        for (nodes, replicas, shards) in [(1, 1, 1), (2, 1, 2), (3, 3, 3), (5, 3, 5), (20, 3, 16)] {
            let collection = create(&mut table(nodes), spec("books"));
            assert_eq!((collection.spec.replication_factor, collection.spec.shard_count), (replicas, shards));
            assert_eq!(collection.shards.len() as u32, shards);
        }
    }

    #[test]
    fn a_new_collection_gets_shards_on_distinct_living_nodes() {
        let mut table = table(5);
        let collection = create(&mut table, CollectionSpec { shard_count: 7, ..spec("books") });
        assert_eq!(table.epoch, Epoch(6));
        for id in &collection.shards {
            let shard = &table.shards[id];
            assert_eq!((shard.state, shard.home_epoch, shard.collection), (ShardState::Creating, 1, collection.id));
            assert_eq!(shard.replicas.iter().map(|replica| replica.node).collect::<BTreeSet<_>>().len(), 3);
            assert!(shard.replicas.iter().all(|replica| replica.incarnation.0 == replica.node.0 * 100));
        }
        assert_eq!(table.collection("books"), Some(&collection));
        let home = table.home(&collection, &PointId::from("doc#1"));
        assert_eq!(home, table.home(&collection, &PointId::from("doc#2")));
        assert!(collection.shards.contains(&home));
    }

    #[test]
    fn an_alias_stands_for_its_collection_until_that_is_gone() {
        let mut table = table(3);
        let (old, new) = (create(&mut table, spec("books-1")), create(&mut table, spec("books-2")));
        let assign =
            |alias: &str, collection: &str| AliasAction::Assign { alias: alias.into(), collection: collection.into() };
        let change = |table: &mut Table, actions: &[AliasAction]| table.apply(&Change::ChangeAliases(actions.to_vec()));
        change(&mut table, &[assign("books", "books-1")]).unwrap();
        assert_eq!(table.collection("books").unwrap().id, old.id);
        // Switched in one step, and seen by the actions behind it.
        let rename = AliasAction::Rename { from: "books".into(), to: "library".into() };
        change(&mut table, &[assign("books", "books-2"), rename, assign("shelf", "library")]).unwrap();
        assert_eq!((table.collection("books"), table.collection("shelf").unwrap().id), (None, new.id));
        let epoch = table.epoch;
        change(&mut table, &[AliasAction::Remove("books".into())]).unwrap();
        assert_eq!(table.epoch, epoch, "nothing to remove");
        let before = table.clone();
        assert!(
            change(&mut table, &[assign("new", "books-1"), assign("books-1", "books-2")]).is_err(),
            "a collection's name"
        );
        assert!(
            change(&mut table, &[assign("new", "books-1"), assign("other", "films")]).is_err(),
            "no such collection"
        );
        assert!(change(&mut table, &[assign("a/b", "books-1")]).is_err());
        assert!(table.apply(&Change::CreateCollection(spec("shelf"))).is_err(), "an alias");
        assert!(!table.apply(&Change::DeleteCollection("shelf".into())).unwrap().existed, "by its own name only");
        assert_eq!(table, before);
        assert!(table.apply(&Change::DeleteCollection("books-2".into())).unwrap().existed);
        assert!(table.aliases.is_empty());
    }

    #[test]
    fn attributes_are_replaced_by_key_and_go_with_their_collection() {
        let mut table = table(3);
        let books = create(&mut table, spec("books")).id;
        let set = |table: &mut Table, key: &str, value: &str| {
            let values = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            table.apply(&Change::SetAttributes { collection: "books".into(), values }).map(|applied| applied.epoch)
        };
        let first = set(&mut table, "door", "{}").unwrap();
        assert_eq!(set(&mut table, "door", "{}").unwrap(), first, "as it was");
        set(&mut table, "other", "x").unwrap();
        assert_eq!((table.attribute(books, "door"), table.attribute(books, "none")), ("{}", ""));
        set(&mut table, "other", "").unwrap();
        assert_eq!(table.attributes[&books].len(), 1);
        assert!(set(&mut table, "door", &"x".repeat(Table::ATTRIBUTE_BYTES_MAX)).is_err());
        table.apply(&Change::DeleteCollection("books".into())).unwrap();
        assert!(table.attributes.is_empty());
        assert!(set(&mut table, "door", "{}").is_err());
    }

    #[test]
    fn refusals_leave_the_table_as_it_was() {
        let mut table = table(3);
        create(&mut table, spec("books"));
        let before = table.clone();
        let missing = CollectionUpdate { name: "none".into(), ..Default::default() };
        let kind = BTreeMap::from([("lang".to_owned(), FieldKind::Integer)]);
        let other_kind =
            CollectionUpdate { name: "books".into(), add_payload_indexes: kind, ef_search: 64, ..Default::default() };
        let out_of_bounds = CollectionUpdate { name: "books".into(), m: 1000, ..Default::default() };
        let sparse_vectors = BTreeMap::from([("l2".to_owned(), SparseSpec::default())]);
        let not_sparse = CollectionUpdate { name: "books".into(), sparse_vectors, ..Default::default() };
        for change in [
            Change::CreateCollection(spec("books")),
            Change::CreateCollection(spec("no/slash")),
            Change::CreateCollection(CollectionSpec { replication_factor: 5, ..spec("more") }),
            Change::UpdateCollection(missing),
            Change::UpdateCollection(other_kind),
            Change::UpdateCollection(out_of_bounds),
            Change::UpdateCollection(not_sparse),
            Change::ShardReady(ShardId(999)),
            Change::Join(node(0, 1)),
            Change::Join(Node { address: String::new(), ..node(1, 107) }),
            Change::Join(node(1, 99)),
        ] {
            assert!(table.apply(&change).is_err(), "{change:?}");
            assert_eq!(table, before);
        }
        let none = Table::new(before.cluster).apply(&Change::CreateCollection(spec("books")));
        assert_eq!(none, Err(Rejected::NotEnoughNodes { wanted: 1, have: 0 }));
    }

    #[test]
    fn repeated_changes_do_nothing() {
        let mut table = table(3);
        let collection = create(&mut table, spec("books"));
        table.apply(&Change::ShardReady(collection.shards[0])).unwrap();
        let before = table.clone();
        for change in [
            Change::Join(node(2, 200)),
            Change::ShardReady(collection.shards[0]),
            Change::DeleteCollection("none".into()),
            Change::UpdateCollection(CollectionUpdate { name: "books".into(), ..Default::default() }),
        ] {
            let applied = table.apply(&change).unwrap();
            assert_eq!((applied.epoch, applied.existed), (before.epoch, false));
            assert_eq!(table, before);
        }
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let mut table = table(3);
        create(&mut table, spec("books"));
        let update = CollectionUpdate {
            name: "books".into(),
            add_payload_indexes: BTreeMap::from([("lang".to_owned(), FieldKind::Integer)]),
            drop_payload_indexes: vec!["lang".into()],
            ef_search: 64,
            sparse_vectors: BTreeMap::from([("words".to_owned(), SparseSpec { modifier: Modifier::None })]),
            ..Default::default()
        };
        let epoch = table.epoch;
        let applied = table.apply(&Change::UpdateCollection(update)).unwrap();
        let spec = applied.collection.unwrap().spec;
        assert_eq!(applied.epoch, Epoch(epoch.0 + 1));
        assert_eq!((spec.index.ef_search, spec.index.m), (64, 16));
        assert_eq!(spec.payload_indexes["lang"], FieldKind::Integer);
        assert_eq!(spec.sparse_vectors["words"].modifier, Modifier::None);
        assert_eq!(table.collection("books").unwrap().spec, spec);
    }

    #[test]
    fn vectors_are_added_once() {
        let mut table = table(3);
        create(&mut table, spec("books"));
        let dense = |dimension| VectorSpec { dimension, metric: Metric::Dot, scalar: ScalarKind::F16 };
        let add = |name: &str, dimension| CollectionUpdate {
            name: "books".into(),
            add_vectors: BTreeMap::from([(name.to_owned(), dense(dimension))]),
            ..Default::default()
        };
        let first = table.apply(&Change::UpdateCollection(add("image", 8))).unwrap();
        assert_eq!(first.collection.unwrap().spec.vectors["image"], dense(8));
        let again = table.apply(&Change::UpdateCollection(add("image", 8))).unwrap();
        assert_eq!(again.epoch, first.epoch, "nothing is left to do");
        let before = table.clone();
        for (name, dimension, expected) in [
            ("image", 9, "add_vectors[\"image\"]"),
            ("words", 8, "sparse_vectors[\"words\"]"),
            ("large", 0, "dimension"),
        ] {
            let refused = table.apply(&Change::UpdateCollection(add(name, dimension))).unwrap_err();
            assert!(refused.to_string().contains(expected), "{refused}");
            assert_eq!(table, before);
        }
    }

    #[test]
    fn a_new_life_is_repointed_where_active_and_replaced_where_creating() {
        let mut table = table(3);
        let collection = create(&mut table, spec("books"));
        let (active, creating) = (collection.shards[0], collection.shards[2]);
        table.apply(&Change::ShardReady(active)).unwrap();
        table.apply(&Change::ShardReady(collection.shards[1])).unwrap();
        let next = table.next_id;
        table.apply(&Change::Join(node(2, 201))).unwrap();

        let lives = |shard: &Shard| shard.replicas.iter().map(|r| (r.node.0, r.incarnation.0)).collect::<BTreeSet<_>>();
        let expected = BTreeSet::from([(1, 100), (2, 201), (3, 300)]);
        assert_eq!(
            (table.shards[&active].state, lives(&table.shards[&active])),
            (ShardState::Active, expected.clone())
        );
        let after = &table.collection("books").unwrap().shards;
        assert_eq!(after[..], [active, collection.shards[1], ShardId(next)]);
        let fresh = &table.shards[&ShardId(next)];
        assert_eq!((fresh.state, lives(fresh)), (ShardState::Creating, expected));
        assert!(!table.shards.contains_key(&creating));
        assert!(table.dropped[&creating].contains(&ReplicaId { node: NodeId(2), incarnation: Incarnation(200) }));
        let late = table.apply(&Change::ShardReady(creating));
        assert_eq!(late, Err(Rejected::UnknownShard { shard: creating }), "word of the old group comes too late");
    }

    #[test]
    fn a_delayed_join_of_an_earlier_life_turns_nothing_back() {
        let mut table = table(3);
        let collection = create(&mut table, spec("books"));
        collection.shards.iter().for_each(|shard| drop(table.apply(&Change::ShardReady(*shard)).unwrap()));
        table.apply(&Change::Join(node(2, 201))).unwrap();
        let before = table.clone();
        let (known, offered) = (Incarnation(201), Incarnation(200));
        let late = table.apply(&Change::Join(node(2, 200)));
        assert_eq!(late, Err(Rejected::EarlierLife { node: NodeId(2), known, offered }));
        assert_eq!(table, before);
    }

    #[test]
    fn a_new_address_moves_nothing() {
        let mut table = table(3);
        create(&mut table, spec("books"));
        let (shards, epoch) = (table.shards.clone(), table.epoch);
        table.apply(&Change::Join(Node { address: "elsewhere:1".into(), ..node(1, 100) })).unwrap();
        assert_eq!(table.nodes[&NodeId(1)].address, "elsewhere:1");
        assert_eq!((table.shards, table.epoch), (shards, Epoch(epoch.0 + 1)));
    }

    #[test]
    fn a_deleted_collection_names_what_may_be_removed() {
        let mut table = table(3);
        let old = create(&mut table, spec("books"));
        let applied = table.apply(&Change::DeleteCollection("books".into())).unwrap();
        assert!(applied.existed);
        assert!(table.shards.is_empty() && table.collections.is_empty());
        assert_eq!(table.dropped.keys().copied().collect::<Vec<_>>(), old.shards);
        assert!(table.dropped.values().all(|replicas| replicas.len() == 3));
        let new = create(&mut table, spec("books"));
        assert_ne!(new.id, old.id);
        assert!(new.shards.iter().all(|shard| !old.shards.contains(shard)), "shard ids are never used again");
    }

    #[test]
    fn a_table_survives_serde() {
        let mut table = table(3);
        create(&mut table, spec("books"));
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), table);
    }
}
