//! The placement table, and changes to it.
use super::{DecodeError, check_format, each, required, unknown_enum, uuid, uuid_bytes};
use crate::collection::Collection;
use crate::ids::{ClusterId, CollectionId, Epoch, Incarnation, NodeId, ReplicaId, ShardId};
use crate::placement::table::{AliasAction, Change, Node, Shard, ShardState, Table};
use crate::wire::propose_meta_request as propose;
use crate::{WIRE_FORMAT, wire};

impl From<wire::Replica> for ReplicaId {
    fn from(message: wire::Replica) -> Self {
        Self { node: NodeId(message.node), incarnation: Incarnation(message.incarnation) }
    }
}

impl From<ReplicaId> for wire::Replica {
    fn from(replica: ReplicaId) -> Self {
        Self { node: replica.node.0, incarnation: replica.incarnation.0 }
    }
}

impl From<wire::NodeInfo> for Node {
    fn from(message: wire::NodeInfo) -> Self {
        Self {
            id: NodeId(message.node),
            incarnation: Incarnation(message.incarnation),
            address: message.address,
            zone: message.zone,
        }
    }
}

impl From<Node> for wire::NodeInfo {
    fn from(node: Node) -> Self {
        Self { node: node.id.0, incarnation: node.incarnation.0, address: node.address, zone: node.zone }
    }
}

impl TryFrom<wire::ShardInfo> for Shard {
    type Error = DecodeError;

    fn try_from(message: wire::ShardInfo) -> Result<Self, DecodeError> {
        let state = match wire::ShardState::try_from(message.state) {
            Ok(wire::ShardState::Creating) => ShardState::Creating,
            Ok(wire::ShardState::Active) => ShardState::Active,
            Ok(wire::ShardState::Unspecified) => return Err(DecodeError::new("state", "is missing")),
            Err(_) => return Err(unknown_enum(message.state, "state")),
        };
        Ok(Self {
            id: ShardId(message.shard),
            collection: CollectionId(message.collection),
            state,
            replicas: message.replicas.into_iter().map(Into::into).collect(),
            home_epoch: message.home_epoch,
        })
    }
}

impl From<Shard> for wire::ShardInfo {
    fn from(shard: Shard) -> Self {
        let state = match shard.state {
            ShardState::Creating => wire::ShardState::Creating,
            ShardState::Active => wire::ShardState::Active,
        };
        Self {
            shard: shard.id.0,
            collection: shard.collection.0,
            state: state.into(),
            replicas: shard.replicas.into_iter().map(Into::into).collect(),
            home_epoch: shard.home_epoch,
        }
    }
}

impl TryFrom<wire::ClusterTable> for Table {
    type Error = DecodeError;

    fn try_from(message: wire::ClusterTable) -> Result<Self, DecodeError> {
        check_format(message.format)?;
        let collections: Vec<Collection> = each(message.collections, "collections")?;
        let shards: Vec<Shard> = each(message.shards, "shards")?;
        let dropped = |row: wire::DroppedShard| {
            (ShardId(row.shard), row.replicas.into_iter().map(Into::into).collect::<Vec<ReplicaId>>())
        };
        Ok(Self {
            cluster: ClusterId(uuid(&message.cluster_id, "cluster_id")?),
            epoch: Epoch(message.epoch),
            nodes: message.nodes.into_iter().map(Node::from).map(|node| (node.id, node)).collect(),
            collections: collections.into_iter().map(|collection| (collection.id, collection)).collect(),
            shards: shards.into_iter().map(|shard| (shard.id, shard)).collect(),
            dropped: message.dropped.into_iter().map(dropped).collect(),
            next_id: message.next_id,
            aliases: message.aliases.into_iter().map(|(alias, id)| (alias, CollectionId(id))).collect(),
            attributes: message
                .attributes
                .into_iter()
                .map(|row| (CollectionId(row.collection), row.values.into_iter().collect()))
                .collect(),
        })
    }
}

impl From<Table> for wire::ClusterTable {
    fn from(table: Table) -> Self {
        let dropped = |(shard, replicas): (ShardId, Vec<ReplicaId>)| wire::DroppedShard {
            shard: shard.0,
            replicas: replicas.into_iter().map(Into::into).collect(),
        };
        Self {
            format: WIRE_FORMAT,
            cluster_id: uuid_bytes(table.cluster.0),
            epoch: table.epoch.0,
            nodes: table.nodes.into_values().map(Into::into).collect(),
            collections: table.collections.into_values().map(Into::into).collect(),
            shards: table.shards.into_values().map(Into::into).collect(),
            dropped: table.dropped.into_iter().map(dropped).collect(),
            next_id: table.next_id,
            aliases: table.aliases.into_iter().map(|(alias, id)| (alias, id.0)).collect(),
            attributes: table
                .attributes
                .into_iter()
                .map(|(id, values)| wire::CollectionAttributes {
                    collection: id.0,
                    values: values.into_iter().collect(),
                })
                .collect(),
        }
    }
}

impl TryFrom<propose::Change> for Change {
    type Error = DecodeError;

    fn try_from(message: propose::Change) -> Result<Self, DecodeError> {
        Ok(match message {
            propose::Change::CreateCollection(spec) => Change::CreateCollection(spec.try_into()?),
            propose::Change::UpdateCollection(update) => Change::UpdateCollection(update.try_into()?),
            propose::Change::DeleteCollection(name) => Change::DeleteCollection(name),
            propose::Change::Join(join) => Change::Join(required(join.node, "node")?.into()),
            propose::Change::ShardReady(ready) => Change::ShardReady(ShardId(ready.shard)),
            propose::Change::ChangeAliases(change) => Change::ChangeAliases(each(change.actions, "actions")?),
            propose::Change::SetAttributes(set) => {
                Change::SetAttributes { collection: set.collection, values: set.values.into_iter().collect() }
            }
        })
    }
}

impl From<Change> for propose::Change {
    fn from(change: Change) -> Self {
        match change {
            Change::CreateCollection(spec) => propose::Change::CreateCollection(spec.into()),
            Change::UpdateCollection(update) => propose::Change::UpdateCollection(update.into()),
            Change::DeleteCollection(name) => propose::Change::DeleteCollection(name),
            Change::Join(node) => propose::Change::Join(propose::Join { node: Some(node.into()) }),
            Change::ShardReady(shard) => propose::Change::ShardReady(propose::ShardReady { shard: shard.0 }),
            Change::ChangeAliases(actions) => propose::Change::ChangeAliases(wire::ChangeAliases {
                actions: actions.into_iter().map(Into::into).collect(),
            }),
            Change::SetAttributes { collection, values } => {
                propose::Change::SetAttributes(wire::SetAttributes { collection, values: values.into_iter().collect() })
            }
        }
    }
}

impl TryFrom<wire::AliasAction> for AliasAction {
    type Error = DecodeError;

    fn try_from(message: wire::AliasAction) -> Result<Self, DecodeError> {
        use wire::alias_action::Kind;
        Ok(match required(message.kind, "kind")? {
            Kind::Assign(assign) => Self::Assign { alias: assign.alias, collection: assign.collection },
            Kind::Remove(alias) => Self::Remove(alias),
            Kind::Rename(rename) => Self::Rename { from: rename.from, to: rename.to },
        })
    }
}

impl From<AliasAction> for wire::AliasAction {
    fn from(action: AliasAction) -> Self {
        use wire::alias_action::{Assign, Kind, Rename};
        let kind = match action {
            AliasAction::Assign { alias, collection } => Kind::Assign(Assign { alias, collection }),
            AliasAction::Remove(alias) => Kind::Remove(alias),
            AliasAction::Rename { from, to } => Kind::Rename(Rename { from, to }),
        };
        Self { kind: Some(kind) }
    }
}
