//! What a router does with each request, one function an operation: the functions a newcomer reads first.
//!
//! Every function takes domain types, sets a deadline, finds the collection in the table, and hands the work to
//! [`crate::scatter`] or [`crate::write`]. Doors (see [`crate::gateway`]) decode, call, encode, and decide nothing.
use std::sync::Arc;
use std::time::Duration;

use nearring_proto::clock::Clock;
use nearring_proto::collection::Collection;
use nearring_proto::ids::ClusterId;
use nearring_proto::placement::table::{ShardState, Table};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::cluster_view::ClusterView;
use crate::compute::Compute;
use crate::embed::Embedders;
use crate::failure::{Error, Kind};
use crate::generate::Generator;
use crate::settings::Settings;
use crate::snapshot::Snapshots;
use crate::strict::Strict;
use crate::traffic::Traffic;
use crate::write::Writer;

mod collections;
mod documents;
mod export;
mod operations;
mod reads;
mod writes;

pub use documents::{AskAnswer, DocumentWritten};
pub(crate) use operations::own_use;
pub use operations::{ClusterStatus, Verified};
pub use reads::{CountAnswer, FacetAnswer, GetAnswer, ScrollAnswer, ScrollWanted, SearchAnswer, Wants};
pub use writes::{ShardWriteError, WriteAnswer};

/// Everything that requests need. Cheap to clone.
#[derive(Clone)]
pub struct Pipeline(Arc<Parts>);

struct Parts {
    view: ClusterView,
    writer: Writer,
    settings: Settings,
    embedders: Embedders,
    generator: Arc<dyn Generator>,
    embedding: Semaphore,
    compute: Compute,
    clock: Clock,
    traffic: Traffic,
    strict: Strict,
    snapshots: Snapshots,
}

/// A collection that serves, and the table it was found in.
struct Found {
    table: Arc<Table>,
    collection: Collection,
}

impl Pipeline {
    /// Puts the parts together.
    pub fn new(
        view: ClusterView,
        settings: Settings,
        embedders: Embedders,
        generator: Arc<dyn Generator>,
        compute: Compute,
        clock: Clock,
        snapshots: Snapshots,
    ) -> Self {
        let embedding = Semaphore::new(settings.limits.embedding);
        let writer = Writer::new(view.clone(), clock.clone());
        let (traffic, strict) = (Traffic::new(clock.clone()), Strict::default());
        Self(Arc::new(Parts {
            view,
            writer,
            settings,
            embedders,
            generator,
            embedding,
            compute,
            clock,
            traffic,
            strict,
            snapshots,
        }))
    }

    /// What it was started with.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What it can embed with.
    pub fn embedders(&self) -> &Embedders {
        &self.0.embedders
    }

    /// Where work that holds up the runtime goes.
    pub fn compute(&self) -> Compute {
        self.0.compute
    }

    /// Wall time, to be told: milliseconds since 1970, UTC.
    pub fn now_ms(&self) -> u64 {
        self.0.clock.now_ms()
    }

    /// What it answered.
    pub fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    /// What collections allow.
    pub fn strict(&self) -> &Strict {
        &self.0.strict
    }

    /// Where snapshots lie.
    pub fn snapshots(&self) -> &Snapshots {
        &self.0.snapshots
    }

    /// What it knows of the cluster.
    pub fn view(&self) -> &ClusterView {
        &self.0.view
    }

    fn writer(&self) -> &Writer {
        &self.0.writer
    }

    fn read_until(&self, wanted: Option<Duration>) -> Instant {
        let deadlines = &self.0.settings.deadlines;
        Instant::now() + wanted.unwrap_or(deadlines.read).min(deadlines.read_max)
    }

    fn write_until(&self, wanted: Option<Duration>) -> Instant {
        let deadlines = &self.0.settings.deadlines;
        Instant::now() + wanted.unwrap_or(deadlines.write).min(deadlines.write_max)
    }

    /// The collection of this name. One that is not in the table is looked for in a fresh one before it is declared
    /// missing: it may just have been created through another router.
    async fn described(&self, name: &str, until: Instant) -> Result<Found, Error> {
        let find = |table: &Arc<Table>| {
            let collection = table.collection(name)?.clone();
            Some(Found { table: table.clone(), collection })
        };
        let table = self.0.view.wait_for(until, |table| Some(table.clone())).await?;
        if let Some(found) = find(&table) {
            return Ok(found);
        }
        self.0.view.fetch(until).await;
        self.0
            .view
            .table()
            .as_ref()
            .and_then(find)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("collection {name:?} does not exist; create it first")))
    }

    /// The collection of this name, once all its shards serve.
    async fn collection(&self, name: &str, until: Instant) -> Result<Found, Error> {
        let found = self.described(name, until).await?;
        if serves(&found.table, &found.collection) {
            return Ok(found);
        }
        let id = found.collection.id;
        let ready = self.0.view.wait_for(until, |table| match table.collections.get(&id) {
            None => Some(None),
            Some(collection) => {
                serves(table, collection).then(|| Some(Found { table: table.clone(), collection: collection.clone() }))
            }
        });
        match ready.await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(Error::new(Kind::NotFound, format!("collection {name:?} was deleted"))),
            Err(_) => Err(Error::new(
                Kind::NotDone,
                format!("collection {name:?} is still being created; nothing was changed, try again in a moment"),
            )),
        }
    }
}

fn serves(table: &Table, collection: &Collection) -> bool {
    let active = |shard| table.shards.get(shard).is_some_and(|row| row.state == ShardState::Active);
    collection.shards.iter().all(active)
}

fn cluster_bytes(cluster: ClusterId) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(cluster.0.as_bytes())
}
