//! The soak: real processes under a mixed workload and one fault after the other, for as long as is asked, judged all along.
//!
//! ```text
//! clients ── each knows what it wrote and judges what it reads ──┐
//! faults  ── one, wait until healed, after damage a quiet point ─┼─► violations, figures ─► report
//! sampler ── memory, disk, descriptors, threads of each process ─┘
//! ```
//! A fault is healed when every node answers, every replica votes, and each has applied what its leader had when the fault
//! ended. At a quiet point no operation is under way, and everything is read through every replica ([`quiet`]).
//!
//! One seed decides operations and faults; the processes' timing is real, so a second run does the same things at other
//! moments. A killed process keeps what the page cache holds: lost unsynced bytes are for the simulator.
pub mod clients;
pub mod faults;
pub mod model;
pub mod points;
pub mod quiet;
pub mod report;
pub mod resources;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nearring_client::{Client, RetryPolicy, wire};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use self::clients::{DEADLINE, DOCUMENTS, POINTS, Shared, Worker, Written, lock};
use self::faults::{Deck, Kind, Target};
use self::quiet::Findings;
use self::resources::{Bounds, Curves};
use crate::cluster::{Cluster, NODES, node_name};
use crate::netns::Topology;

/// How a soak is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For how long; the last fault and the last quiet point come on top.
    pub duration: Duration,
    /// What is drawn.
    pub seed: u64,
    /// Clients at once.
    pub clients: u64,
    /// Keys of each.
    pub keys: u64,
    /// The longest pause between two operations of a client.
    pub pause: Duration,
    /// Shards of the collection of points.
    pub shards: u32,
    /// Tail size at which a segment is sealed.
    pub seal_points: u32,
    /// How long healing may take after a fault.
    pub heal_within: Duration,
    /// What a process may use.
    pub bounds: Bounds,
    /// The node on a small disk, and where that is.
    pub small_disk: Option<(u64, PathBuf)>,
}

/// One fault that was done.
#[derive(Clone, Debug)]
pub struct Struck {
    /// What.
    pub kind: Kind,
    /// To whom, in words.
    pub detail: String,
    /// Seconds after the start at which it began.
    pub at: f64,
    /// From its end until everything was healed.
    pub healed_after: Option<Duration>,
    /// The longest time without an acknowledged write, from its beginning until it was healed: on any shard, and on the
    /// shard where it was longest.
    pub stall: (Duration, Duration),
}

/// What came of a soak.
#[derive(Debug)]
pub struct Outcome {
    /// Whether it was ended early, by a signal or an error.
    pub ended_early: Option<String>,
    /// How long it ran.
    pub took: Duration,
    /// Faults.
    pub struck: Vec<Struck>,
    /// Quiet points.
    pub quiet: Vec<Findings>,
    /// What servers used.
    pub curves: Curves,
    /// Everything else.
    pub shared: Arc<Shared>,
}

fn client(router: &str) -> Result<Client, String> {
    let retry = RetryPolicy::OneEffect { attempts: 40, pause: Duration::from_millis(20) };
    Client::builder(router).retry(retry).deadline(DEADLINE).build().map_err(|error| error.to_string())
}

fn collections(settings: &Settings) -> [wire::CollectionSpec; 2] {
    let kinds = [
        ("owner", wire::FieldKind::Integer),
        ("group", wire::FieldKind::Integer),
        ("name", wire::FieldKind::Keyword),
        ("weight", wire::FieldKind::Float),
        ("even", wire::FieldKind::Bool),
    ];
    let vectors = |dimension, metric: wire::Metric| {
        let spec = wire::VectorSpec { dimension, metric: metric as i32, scalar: 0 };
        [(String::new(), spec)].into()
    };
    let index = Some(wire::IndexSpec { seal_points: settings.seal_points, ..Default::default() });
    let points = wire::CollectionSpec {
        name: POINTS.to_owned(),
        vectors: vectors(points::DIMENSION as u32, wire::Metric::L2), // stored as given
        // `mark` has no index, so that conditions on it are judged by scanning.
        payload_indexes: kinds.map(|(path, kind)| (path.to_owned(), kind as i32)).into(),
        shard_count: settings.shards,
        replication_factor: 3,
        index,
        ..Default::default()
    };
    let embedder = "static256".to_owned();
    let documents = wire::CollectionSpec {
        name: DOCUMENTS.to_owned(),
        vectors: vectors(256, wire::Metric::Cosine),
        payload_indexes: [("document".to_owned(), wire::FieldKind::Keyword as i32)].into(),
        shard_count: 2,
        replication_factor: 3,
        routing_separator: "#".to_owned(),
        index,
        documents: Some(wire::DocumentSpec { embedder, vector: String::new(), text_field: "text".to_owned() }),
        ..Default::default()
    };
    [points, documents]
}

/// Runs a soak on a cluster that has been started. `network` is the cluster's own, where it has one; `interrupted` ends it
/// early.
///
/// # Errors
/// Where it could not even begin. Everything later is part of the outcome.
pub async fn run(
    cluster: &mut Cluster,
    network: Option<Arc<Topology>>,
    settings: &Settings,
    interrupted: impl Future<Output = ()>,
) -> Result<Outcome, String> {
    cluster.ready(Duration::from_secs(60)).await?;
    let admin = client(&cluster.router())?;
    for spec in collections(settings) {
        admin.create_collection(spec).await.map_err(|error| error.to_string())?;
    }
    let shared = Arc::new(Shared::new());
    let curves = Arc::new(Mutex::new(Curves::new()));
    let data: BTreeMap<String, PathBuf> = (1..=NODES).map(|node| (node_name(node), cluster.data(node))).collect();
    let sampling = resources::sample(cluster.pids(), data, settings.bounds, shared.clone(), curves.clone());
    let sampler = tokio::spawn(sampling);
    let mut written = Vec::new();
    let mut workers = Vec::new();
    for number in 0..settings.clients {
        let client = client(&cluster.router())?;
        let worker = Worker::new(number, settings.seed, client, shared.clone(), settings.keys, settings.pause);
        written.push(worker.written.clone());
        workers.push(tokio::spawn(worker.run()));
    }
    let target = Target { cluster, network, small_disk: settings.small_disk.clone() };
    let mut course = Course { target, admin, shared: shared.clone(), written, settings, struck: vec![], quiet: vec![] };
    let ended_early = tokio::select! {
        ended = course.run() => ended.err(),
        () = interrupted => Some("interrupted".to_owned()),
    };
    shared.stop.store(true, Ordering::SeqCst);
    if ended_early.as_deref() == Some("interrupted") {
        workers.iter().for_each(tokio::task::JoinHandle::abort);
    } else if let Some(reason) = &ended_early {
        shared.violation(reason);
    }
    for worker in workers {
        if let Err(error) = worker.await
            && error.is_panic()
        {
            shared.violation(format_args!("a client of the soak failed: {error}"));
        }
    }
    sampler.abort();
    let curves = lock(&curves).clone();
    let (struck, quiet) = (course.struck, course.quiet);
    Ok(Outcome { ended_early, took: shared.start.elapsed(), struck, quiet, curves, shared })
}

/// What happens one after the other.
struct Course<'a> {
    target: Target<'a>,
    admin: Client,
    shared: Arc<Shared>,
    written: Vec<Written>,
    settings: &'a Settings,
    struck: Vec<Struck>,
    quiet: Vec<Findings>,
}

impl Course<'_> {
    async fn run(&mut self) -> Result<(), String> {
        let mut random = SmallRng::seed_from_u64(self.settings.seed);
        let mut deck = Deck::new(self.target.small_disk.is_some(), self.target.network.as_deref());
        loop {
            tokio::time::sleep(Duration::from_millis(random.random_range(1000..4000))).await;
            if self.shared.start.elapsed() >= self.settings.duration {
                return self.be_quiet(&mut random).await;
            }
            let (kind, all_have_come) = deck.draw(&mut random);
            self.strike(kind, &mut random).await?;
            if kind.damages() || all_have_come {
                self.be_quiet(&mut random).await?;
            }
        }
    }

    async fn strike(&mut self, kind: Kind, random: &mut SmallRng) -> Result<(), String> {
        let begun = Instant::now();
        let at = self.shared.start.elapsed().as_secs_f64();
        let struck = self.target.strike(kind, random).await;
        let detail = struck.map_err(|error| format!("{kind}: {error}"))?;
        eprintln!("{at:>7.1} s  {kind:<26} {detail}");
        let ended = Instant::now();
        let healed_after = match self.healed(ended).await {
            Ok(()) => Some(ended.elapsed()),
            Err(reason) => {
                self.shared.violation(format_args!("after {kind} ({detail}): {reason}"));
                None
            }
        };
        let stall = stalls(&lock(&self.shared.acknowledgements), begun, Instant::now());
        // What is older than the next fault is no longer needed.
        lock(&self.shared.acknowledgements).clear();
        self.struck.push(Struck { kind, detail, at, healed_after, stall });
        if healed_after.is_none() {
            return Err(format!("the cluster did not heal after {kind}"));
        }
        Ok(())
    }

    /// Waits until every node answers, every replica votes, and each has applied what its leader had at the beginning.
    async fn healed(&mut self, since: Instant) -> Result<(), String> {
        // The highest applied index seen in the first whole look, by shard.
        let mut goal: Option<BTreeMap<u64, u64>> = None;
        loop {
            let ended = self.target.cluster.ended();
            if !ended.is_empty() {
                return Err(ended.join("\n"));
            }
            let last = match self.admin.cluster_status().await {
                Err(error) => error.to_string(),
                Ok(status) => match healthy(&status) {
                    Err(reason) => reason,
                    Ok(positions) => {
                        let goal = goal.get_or_insert_with(|| highest(&positions));
                        let behind: Vec<_> = positions
                            .iter()
                            .filter(|(shard, _, applied)| goal.get(shard).is_some_and(|goal| applied < goal))
                            .collect();
                        if behind.is_empty() {
                            return Ok(());
                        }
                        format!("behind (shard, node, applied): {behind:?}")
                    }
                },
            };
            if since.elapsed() > self.settings.heal_within {
                return Err(format!("not healed within {} s: {last}", self.settings.heal_within.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn be_quiet(&mut self, random: &mut SmallRng) -> Result<(), String> {
        let shared = self.shared.clone();
        let _closed = shared.gate.write().await;
        let (since, patience) = (Instant::now(), self.settings.heal_within);
        let findings = quiet::judge(&self.admin, &shared, &self.written, random, since, patience).await?;
        let Findings { points, settled, recall } = findings;
        let at = shared.start.elapsed().as_secs_f64();
        eprintln!("{at:>7.1} s  quiet: {points} points, {settled} settled, recall {recall:.3}");
        self.quiet.push(findings);
        Ok(())
    }
}

/// (shard, node, applied index) of every replica where all is in order, else what is not.
fn healthy(status: &wire::ClusterStatusReply) -> Result<Vec<(u64, u64, u64)>, String> {
    let table = status.table.as_ref().ok_or("no table")?;
    if let Some(down) = status.nodes.iter().find(|node| !node.reachable) {
        return Err(format!("node {} does not answer: {}", down.node, down.error));
    }
    let mut positions = Vec::new();
    for row in &table.shards {
        for replica in &row.replicas {
            let node = status.nodes.iter().find(|node| node.node == replica.node);
            let found = node.and_then(|node| node.replicas.iter().find(|found| found.shard == row.shard));
            let found = found.ok_or_else(|| format!("shard {} does not run on node {}", row.shard, replica.node))?;
            let lives: Vec<&wire::SegmentStatus> = found.segments.iter().filter(|segment| !segment.local).collect();
            if found.leader_node == 0 || found.voters.len() as u64 != NODES || !found.learners.is_empty() {
                return Err(format!(
                    "shard {} on node {}: leader {}, voters {:?}, learners {:?}",
                    row.shard, replica.node, found.leader_node, found.voters, found.learners
                ));
            }
            if !lives.is_empty() {
                return Err(format!("shard {} on node {} lacks {} segments", row.shard, replica.node, lives.len()));
            }
            positions.push((row.shard, replica.node, found.applied_index));
        }
    }
    Ok(positions)
}

fn highest(positions: &[(u64, u64, u64)]) -> BTreeMap<u64, u64> {
    let mut highest = BTreeMap::new();
    for (shard, _, applied) in positions {
        let entry = highest.entry(*shard).or_insert(0);
        *entry = (*entry).max(*applied);
    }
    highest
}

/// The longest time without an acknowledgement between two moments: on any shard, and on the shard where it was longest.
fn stalls(acknowledgements: &[(Instant, u64)], from: Instant, to: Instant) -> (Duration, Duration) {
    let longest = |times: &mut dyn Iterator<Item = Instant>| {
        let (mut last, mut longest) = (from, Duration::ZERO);
        for at in times.filter(|at| (from..=to).contains(at)).chain([to]) {
            longest = longest.max(at.saturating_duration_since(last));
            last = last.max(at);
        }
        longest
    };
    let any = longest(&mut acknowledgements.iter().map(|(at, _)| *at));
    let mut shards: Vec<u64> = acknowledgements.iter().map(|(_, shard)| *shard).collect();
    shards.sort_unstable();
    shards.dedup();
    let of =
        |wanted: u64| longest(&mut acknowledgements.iter().filter(|(_, shard)| *shard == wanted).map(|(at, _)| *at));
    (any, shards.into_iter().map(of).max().unwrap_or(any))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_the_longest_gap_between_the_fault_and_its_healing() {
        let from = Instant::now();
        let at = |ms| from + Duration::from_millis(ms);
        let times = [(at(100), 1), (at(150), 2), (at(900), 1), (at(950), 2), (at(5000), 1)];
        let (any, one) = stalls(&times, from, at(1000));
        assert_eq!((any, one), (Duration::from_millis(750), Duration::from_millis(800)));
        assert_eq!(stalls(&[], from, at(70)).0, Duration::from_millis(70));
    }
}
