//! What a router knows of the cluster: the table, who leads, how busy nodes are, and a channel to each.
//!
//! Everything here is a hint except the table's epoch order: a wrong leader or a dead node costs one more attempt, never
//! a wrong answer, because nodes check what they are asked. The table comes by a watch from any node that answers; the
//! watch moves on when it breaks, when a node's answer shows the table to be stale, and now and then anyway, since a
//! node that is cut off from the others keeps its watch open and says nothing. The newest epoch stays, and a table of
//! another cluster is refused.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nearring_proto::WIRE_FORMAT;
use nearring_proto::ids::{NodeId, ShardId};
use nearring_proto::placement::table::Table;
use nearring_proto::wire::{self, Dial, node_data_client::NodeDataClient};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Channel;

use crate::failure::{Error, Kind, NodeFailure};
use crate::scatter::cover::NodeLoad;

/// A client of one node.
pub type NodeClient = NodeDataClient<Channel>;

/// How long a node that could not be reached is asked last.
const SHUNNED: Duration = Duration::from_secs(2);
/// How long a node may take to begin a watch.
const WATCH_BEGINS: Duration = Duration::from_secs(2);
/// How long one node is watched before another takes over.
const WATCH_AT_MOST: Duration = Duration::from_secs(10);
/// Pauses after no node could be watched: first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The least time between two moves of the watch, whatever is learned in between.
const MOVE_PAUSE: Duration = Duration::from_millis(20);
/// What a new latency counts in the average.
const LATENCY_WEIGHT: f64 = 0.2;
/// Latency, in microseconds, that a shunned node is taken to have.
const SHUNNED_LATENCY_US: f64 = 1e9;

/// Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct ClusterView(Arc<Shared>);

struct Shared {
    dial: Dial,
    start: Vec<String>,
    message_bytes: usize,
    table: watch::Sender<Option<Arc<Table>>>,
    move_on: Notify,
    hints: Mutex<Hints>,
}

/// Small and never held across an await.
struct Hints {
    clients: BTreeMap<String, NodeClient>,
    nodes: BTreeMap<NodeId, NodeHint>,
    leaders: BTreeMap<ShardId, NodeId>,
    random: StdRng,
}

#[derive(Clone, Copy, Default)]
struct NodeHint {
    load: NodeLoad,
    shunned_until: Option<Instant>,
    answered_at: Option<Instant>,
}

/// One call under way; counts as in flight until it is dropped.
pub struct InFlight {
    view: ClusterView,
    node: NodeId,
    began: Instant,
}

impl InFlight {
    /// The node answered, well or not.
    pub fn answered(self) {
        let took = self.began.elapsed().as_micros() as f64;
        let mut hints = self.view.hints();
        let hint = hints.nodes.entry(self.node).or_default();
        let before = hint.load.latency_us;
        hint.load.latency_us = if before == 0.0 { took } else { before + LATENCY_WEIGHT * (took - before) };
        hint.shunned_until = None;
        hint.answered_at = Some(Instant::now());
    }

    /// The node did not answer; whether it is taken to be away. Where it has answered others lately it is only slow.
    pub fn away(self) -> bool {
        let mut hints = self.view.hints();
        let hint = hints.nodes.entry(self.node).or_default();
        if hint.answered_at.is_some_and(|at| at > self.began + self.began.elapsed() / 2) {
            return false;
        }
        hint.shunned_until = Some(Instant::now() + SHUNNED);
        true
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut hints = self.view.hints();
        let load = &mut hints.nodes.entry(self.node).or_default().load;
        load.in_flight = load.in_flight.saturating_sub(1);
    }
}

impl ClusterView {
    /// A view that knows nothing yet but where to ask. [`ClusterView::follow`] fills it.
    pub fn new(dial: Dial, start: Vec<String>, message_bytes: usize, seed: u64) -> Self {
        let hints = Hints {
            clients: BTreeMap::new(),
            nodes: BTreeMap::new(),
            leaders: BTreeMap::new(),
            random: StdRng::seed_from_u64(seed),
        };
        Self(Arc::new(Shared {
            dial,
            start,
            message_bytes,
            table: watch::Sender::new(None),
            move_on: Notify::new(),
            hints: Mutex::new(hints),
        }))
    }

    /// A plain lock: what it guards is whole after any panic.
    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.0.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest table known.
    pub fn table(&self) -> Option<Arc<Table>> {
        self.0.table.borrow().clone()
    }

    /// The table's changes.
    pub fn changed(&self) -> watch::Receiver<Option<Arc<Table>>> {
        self.0.table.subscribe()
    }

    /// Waits for a table in which `found` finds what it looks for.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] at the deadline.
    pub async fn wait_for<T>(
        &self,
        until: Instant,
        mut found: impl FnMut(&Arc<Table>) -> Option<T>,
    ) -> Result<T, Error> {
        let mut tables = self.changed();
        let wait = async {
            loop {
                let table = tables.borrow_and_update().clone();
                if let Some(value) = table.as_ref().and_then(&mut found) {
                    return Some(value);
                }
                if tables.changed().await.is_err() {
                    return None;
                }
            }
        };
        match timeout_at(until, wait).await {
            Ok(Some(value)) => Ok(value),
            _ if self.table().is_none() => Err(Error::new(
                Kind::NotDone,
                "no node could be reached; nothing was changed. Check the router's node addresses",
            )),
            _ => Err(Error::new(Kind::NotDone, "the cluster's table did not get there in time; nothing was changed")),
        }
    }

    /// Says that the table may be out of date: the watch moves to another node.
    pub fn refresh(&self) {
        self.0.move_on.notify_one();
    }

    /// Takes over a table where it is newer. Whether it is of this cluster.
    pub fn adopt(&self, table: Table) -> bool {
        let mut ours = true;
        let addresses: BTreeSet<String> = table.nodes.values().map(|node| node.address.clone()).collect();
        let newer = self.0.table.send_if_modified(|known| match known {
            Some(known) if known.cluster != table.cluster => {
                tracing::warn!(ours = %known.cluster, theirs = %table.cluster, "refused the table of another cluster");
                ours = false;
                false
            }
            Some(known) if known.epoch >= table.epoch => false,
            _ => {
                *known = Some(Arc::new(table));
                true
            }
        });
        if newer {
            let (mut hints, table) = (self.hints(), self.table());
            hints.clients.retain(|address, _| addresses.contains(address) || self.0.start.contains(address));
            if let Some(table) = table {
                hints.leaders.retain(|shard, _| table.shards.contains_key(shard));
                hints.nodes.retain(|node, _| table.nodes.contains_key(node));
            }
        }
        ours
    }

    /// The client of an address; connects when it is first used.
    pub fn client_at(&self, address: &str) -> NodeClient {
        let mut hints = self.hints();
        if let Some(client) = hints.clients.get(address) {
            return client.clone();
        }
        let most = self.0.message_bytes;
        let client =
            NodeClient::new((self.0.dial)(address)).max_decoding_message_size(most).max_encoding_message_size(most);
        hints.clients.insert(address.to_owned(), client.clone());
        client
    }

    /// The client of a node, where the table knows its address.
    pub fn client(&self, node: NodeId) -> Option<NodeClient> {
        let address = self.table()?.nodes.get(&node)?.address.clone();
        Some(self.client_at(&address))
    }

    /// Counts a call to a node.
    pub fn begin(&self, node: NodeId) -> InFlight {
        self.hints().nodes.entry(node).or_default().load.in_flight += 1;
        InFlight { view: self.clone(), node, began: Instant::now() }
    }

    /// The load of every node that was asked before, and those that could not be reached just now. The latter's load
    /// looks very high, so that they are drawn last.
    pub fn loads(&self) -> (BTreeMap<NodeId, NodeLoad>, BTreeSet<NodeId>) {
        let now = Instant::now();
        let (mut loads, mut shunned) = (BTreeMap::new(), BTreeSet::new());
        for (node, hint) in &self.hints().nodes {
            let mut load = hint.load;
            if hint.shunned_until.is_some_and(|until| until > now) {
                shunned.insert(*node);
                load.latency_us = SHUNNED_LATENCY_US;
            }
            loads.insert(*node, load);
        }
        (loads, shunned)
    }

    /// Who is taken to lead a shard.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.hints().leaders.get(&shard).copied()
    }

    /// Remembers, or forgets, who leads a shard.
    pub fn set_leader(&self, shard: ShardId, leader: Option<NodeId>) {
        let mut hints = self.hints();
        match leader {
            Some(leader) => hints.leaders.insert(shard, leader),
            None => hints.leaders.remove(&shard),
        };
    }

    /// A seed for one request's choices.
    pub fn draw(&self) -> u64 {
        self.hints().random.next_u64()
    }

    /// Addresses in the order to ask: nodes of the table that are not shunned, shuffled; then the rest.
    pub fn addresses(&self) -> Vec<String> {
        let shunned = self.loads().1;
        let table = self.table();
        let nodes = || table.iter().flat_map(|table| table.nodes.values());
        let mut first: Vec<String> =
            nodes().filter(|node| !shunned.contains(&node.id)).map(|node| node.address.clone()).collect();
        first.shuffle(&mut self.hints().random);
        let rest = self.0.start.iter().cloned().chain(nodes().map(|node| node.address.clone()));
        for address in rest {
            if !first.contains(&address) {
                first.push(address);
            }
        }
        first
    }

    /// Asks nodes for their table until one answers, so that what another router changed a moment ago is seen.
    pub async fn fetch(&self, until: Instant) {
        for address in self.addresses().into_iter().take(3) {
            let first = async {
                let request = wire::WatchTableRequest { format: WIRE_FORMAT, known_epoch: 0 };
                self.client_at(&address).watch_table(request).await?.into_inner().message().await
            };
            let patience = until.min(Instant::now() + Duration::from_millis(500));
            if let Ok(Ok(Some(message))) = timeout_at(patience, first).await
                && let Ok(table) = Table::try_from(message)
            {
                self.adopt(table);
                return;
            }
        }
    }

    /// Keeps the table up to date for as long as it is polled.
    pub async fn follow(self) {
        let mut pause = PAUSE.0;
        let mut last: Option<String> = None;
        loop {
            let mut addresses = self.addresses();
            // Moving on means to another node, where there is one.
            if let Some(at) = last.take().and_then(|last| addresses.iter().position(|address| *address == last)) {
                let address = addresses.remove(at);
                addresses.push(address);
            }
            for address in addresses {
                match self.watch(&address).await {
                    Ok(()) => {
                        last = Some(address);
                        break;
                    }
                    Err(error) => tracing::debug!(%address, %error, "cannot watch the table there"),
                }
            }
            if last.is_some() {
                pause = PAUSE.0;
                sleep(MOVE_PAUSE).await;
            } else {
                let jitter = self.hints().random.random_range(0.5..1.0);
                sleep(pause.mul_f64(jitter)).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }

    /// Watches one node until it is time to move on.
    async fn watch(&self, address: &str) -> Result<(), NodeFailure> {
        let known_epoch = self.table().map_or(0, |table| table.epoch.0);
        let request = wire::WatchTableRequest { format: WIRE_FORMAT, known_epoch };
        let mut client = self.client_at(address);
        let begun = timeout(WATCH_BEGINS, client.watch_table(request)).await;
        let begun = begun.map_err(|_| NodeFailure::new(crate::failure::Meaning::Late, "no answer to a watch"))?;
        let mut tables = begun?.into_inner();
        let ends = Instant::now() + WATCH_AT_MOST;
        loop {
            tokio::select! {
                biased;
                message = tables.message() => match message? {
                    None => return Ok(()),
                    Some(message) => match Table::try_from(message) {
                        Ok(table) => if !self.adopt(table) {
                            return Err(NodeFailure::new(crate::failure::Meaning::WrongShard, "of another cluster"));
                        },
                        Err(error) => return Err(NodeFailure::new(crate::failure::Meaning::Broken, error.to_string())),
                    },
                },
                () = self.0.move_on.notified() => return Ok(()),
                () = tokio::time::sleep_until(ends) => return Ok(()),
            }
        }
    }
}
