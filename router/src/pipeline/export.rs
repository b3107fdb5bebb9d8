//! All points of a collection, of every shard as of one position, into an archive.
//!
//! A shard is read from one replica in one stream. One that breaks off is begun again at another replica, at that one's position,
//! and what was written of it is taken back. Shards are read one after another, each at or after every write that was acknowledged
//! before the export began; no moment is common to all of them.
use std::io;
use std::time::Duration;

use nearring_proto::WIRE_FORMAT;
use nearring_proto::ids::{NodeId, PointId, ShardId};
use nearring_proto::placement::table::Table;
use nearring_proto::position::{Position, ReadLevel};
use nearring_proto::wire;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Pipeline, cluster_bytes};
use crate::failure::{Error, Kind, Meaning, NodeFailure};
use crate::plan::replicas;
use crate::scatter::node_deadline_ms;
use crate::snapshot::archive::{Target, Writer, Written};
use crate::snapshot::restore::MARK;

/// The longest silence of a replica that has begun.
const IDLE: Duration = Duration::from_secs(30);
/// How often a shard is begun, over all its replicas.
const ATTEMPTS: usize = 9;
/// How long nobody may give a first point before the shard counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts: first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Why one attempt at a shard ended.
enum Ended {
    /// Another replica may do better.
    Node(NodeFailure),
    /// The archive cannot be written.
    Archive(io::Error),
}

impl From<NodeFailure> for Ended {
    fn from(why: NodeFailure) -> Self {
        Ended::Node(why)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Ended::Archive(error)
    }
}

fn not_written(error: io::Error) -> Error {
    Error::new(Kind::Internal, format!("the snapshot cannot be written: {error}"))
}

fn broken(reason: impl std::fmt::Display) -> NodeFailure {
    NodeFailure::new(Meaning::Broken, format!("the node's answer cannot be read: {reason}"))
}

impl Pipeline {
    /// Writes an archive of a collection. Blocks between its awaits, as long as writing does: run it in
    /// [`Compute`](crate::compute::Compute).
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Unavailable`] or [`Kind::Overloaded`] where no replica gave all of a shard, then it can be tried
    /// again; [`Kind::Internal`] where the archive cannot be written.
    pub async fn export<T: Target>(&self, name: &str, target: T, now_ms: u64) -> Result<(T, Written), Error> {
        let found = self.collection(name, self.read_until(None)).await?;
        let shards = &found.collection.shards;
        let attributes = found.table.attributes.get(&found.collection.id).cloned().unwrap_or_default();
        if attributes.contains_key(MARK) {
            let message =
                format!("collection {name:?} is being restored, or that did not end; it has no whole content yet");
            return Err(Error::new(Kind::Precondition, message));
        }
        let header = wire::ArchiveHeader {
            collection: Some(found.collection.spec.clone().into()),
            attributes,
            created_ms: now_ms,
            shards: u32::try_from(shards.len()).unwrap_or(u32::MAX),
        };
        let mut writer = Writer::create(target, &header).map_err(not_written)?;
        for shard in shards {
            self.export_shard(*shard, &found.table, &mut writer).await?;
        }
        writer.finish().map_err(not_written)
    }

    async fn export_shard<T: Target>(
        &self,
        shard: ShardId,
        table: &Table,
        writer: &mut Writer<T>,
    ) -> Result<(), Error> {
        let mark = writer.mark().map_err(not_written)?;
        let first = usize::try_from(self.view().draw() % 1024).unwrap_or(0);
        let (mut since, points) = (Instant::now(), writer.points());
        let mut why = NodeFailure::new(Meaning::WrongShard, "no node holds it");
        for attempt in 0..ATTEMPTS {
            let newest = self.view().table();
            let newest = newest.as_deref().unwrap_or(table);
            let shunned = self.view().loads().1;
            let mut nodes = replicas(newest, shard, None);
            // Those that could not be reached lately come last.
            nodes.sort_by_key(|node| shunned.contains(node));
            let well = nodes.iter().filter(|node| !shunned.contains(node)).count();
            let among = if well > 0 { well } else { nodes.len().max(1) };
            if let Some(node) = nodes.get((first + attempt) % among) {
                match self.export_from(*node, shard, newest, writer).await {
                    Ok(()) => return Ok(()),
                    Err(Ended::Archive(error)) => return Err(not_written(error)),
                    Err(Ended::Node(failure)) => why = failure,
                }
                tracing::info!(%shard, %node, %why, "a shard was not read to its end; it is begun again elsewhere");
                if writer.points() > points {
                    since = Instant::now();
                }
                writer.back_to(&mark).map_err(not_written)?;
            }
            if let Meaning::Refused(kind) = why.meaning {
                return Err(Error::new(kind, why.message));
            }
            if why.meaning.table_is_stale() {
                self.view().refresh();
            }
            if since.elapsed() > PATIENCE {
                break;
            }
            if attempt + 1 < ATTEMPTS {
                sleep((PAUSE.0 * (1 << attempt.min(6))).min(PAUSE.1)).await;
            }
        }
        let kind = if why.meaning == Meaning::Overloaded { Kind::Overloaded } else { Kind::Unavailable };
        let message =
            format!("shard {shard} could not be read to its end, nothing of the snapshot is kept: {why}; try again");
        Err(Error::new(kind, message))
    }

    async fn export_from<T: Target>(
        &self,
        node: NodeId,
        shard: ShardId,
        table: &Table,
        writer: &mut Writer<T>,
    ) -> Result<(), Ended> {
        let patience = self.settings().deadlines.read;
        let read = wire::NodeRead {
            level: wire::ReadLevel::from(ReadLevel::Linearizable).into(),
            after: Vec::new(),
            deadline_ms: node_deadline_ms(patience),
        };
        let request = wire::NodeExportRequest {
            format: WIRE_FORMAT,
            cluster_id: cluster_bytes(table.cluster),
            shard: shard.0,
            read: Some(read),
        };
        let flight = self.view().begin(node);
        let client = self.view().client(node);
        let mut client =
            client.ok_or_else(|| NodeFailure::new(Meaning::WrongShard, format!("{node} has no address")))?;
        let until = Instant::now() + patience;
        let late = || NodeFailure::new(Meaning::Lost, format!("no answer of {node} in time"));
        let begun = async {
            let mut messages = client.export(request).await?.into_inner();
            let first = messages.message().await?;
            Ok::<_, NodeFailure>((messages, first))
        };
        let begun = timeout_at(until, begun).await.unwrap_or_else(|_| Err(late()));
        let (mut messages, first) = match begun {
            Ok(begun) => {
                flight.answered();
                begun
            }
            Err(why) => {
                if why.meaning.node_is_away() {
                    flight.away();
                }
                return Err(why.into());
            }
        };
        let first = first.ok_or_else(|| broken("no position"))?;
        let position: Position = first.position.ok_or_else(|| broken("no position"))?.into();
        if position.shard != shard {
            return Err(broken("the position is of another shard").into());
        }
        writer.shard(position, first.count)?;
        let (mut left, mut before) = (first.count, None::<Vec<u8>>);
        loop {
            let message = timeout(IDLE, messages.message()).await.map_err(|_| late())?;
            let message = message.map_err(NodeFailure::from)?;
            let message = message.ok_or_else(|| NodeFailure::new(Meaning::Lost, "the export broke off"))?;
            for point in message.points {
                let id = point.id.clone().ok_or_else(|| broken("a point has no id"))?;
                let key = PointId::try_from(id).map_err(broken)?.to_key();
                if before.as_ref().is_some_and(|before| *before >= key) {
                    return Err(broken("points are out of order").into());
                }
                before = Some(key);
                left = left.checked_sub(1).ok_or_else(|| broken("more points than it counted"))?;
                writer.point(point)?;
            }
            if message.last {
                return if left == 0 { Ok(()) } else { Err(broken(format_args!("{left} points are missing")).into()) };
            }
        }
    }
}
