//! Real server processes under `kill -9`, pauses, one wiped directory and one end of everything at once, while clients
//! write through sessions. Afterwards every acknowledged write must be readable through every replica, deleted points
//! must stay deleted, and the replicas' digests must agree. Exit code 0 only then.
//!
//! A killed process keeps what the page cache holds, so this does not test the disk: the simulator forgets unsynced bytes.
#![allow(clippy::print_stdout, reason = "the report is the product")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use nearring_bench::cluster::{Cluster, NODES};
use nearring_bench::figures::quantile;
use nearring_bench::oracle::{Oracle, State};
use nearring_client::{Client, ErrorKind, RetryPolicy, wire};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

/// Kills and pauses servers while clients write, then looks for every acknowledged write on every replica.
#[derive(Parser, Clone)]
struct Arguments {
    /// Acknowledged write requests to reach.
    #[arg(long, default_value_t = 10_000)]
    writes: u64,
    /// Clients that write at once.
    #[arg(long, default_value_t = 8)]
    clients: u64,
    /// Faults at least, however soon the writes are done.
    #[arg(long, default_value_t = 12)]
    faults: u32,
    /// Shards.
    #[arg(long, default_value_t = 6)]
    shards: u32,
    /// Components of the vectors.
    #[arg(long, default_value_t = 16)]
    dimension: u32,
    /// Vectors in a tail at which a segment is built; small, so that segments come and go during the run.
    #[arg(long, default_value_t = 500)]
    seal_points: u32,
    /// What is drawn: operations and faults. The processes' timing is not.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where servers keep their data; without it a temporary folder that is removed after success.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Where nearring-node and nearring-router lie; without it, beside this program.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// The router's port; the nodes take the next three.
    #[arg(long, default_value_t = 17334)]
    port_base: u16,
    /// Give up when the run takes longer, in seconds.
    #[arg(long, default_value_t = 900)]
    patience: u64,
    /// JSON on stdout instead of text.
    #[arg(long)]
    json: bool,
}

const COLLECTION: &str = "chaos";
/// Ids of one client lie below this; the next client's begin here.
const IDS_PER_CLIENT: u64 = 1 << 32;

/// What all tasks see.
struct Shared {
    arguments: Arguments,
    start: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// When which shard acknowledged.
    acknowledgements: Mutex<Vec<(Instant, u64)>>,
}

/// What one client did.
#[derive(Default)]
struct Written {
    oracle: Oracle,
    acknowledged: u64,
    upserted: u64,
    deleted: u64,
    overwritten: u64,
    unknown: u64,
    refused: u64,
    last_error: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn client(router: &str) -> Result<Client, String> {
    let retry = RetryPolicy::OneEffect { attempts: 40, pause: Duration::from_millis(20) };
    Client::builder(router).retry(retry).deadline(Duration::from_secs(5)).build().map_err(|error| error.to_string())
}

/// A vector that follows from the value: readers can tell any other.
fn vector(value: u64, dimension: u32) -> Vec<f32> {
    let mut random = SmallRng::seed_from_u64(value);
    (0..dimension).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn wire_id(id: u64) -> wire::PointId {
    wire::PointId { id: Some(wire::point_id::Id::Number(id)) }
}

fn point(id: u64, value: u64, dimension: u32) -> wire::UpsertPoint {
    let vectors = vec![wire::NamedVector { name: String::new(), values: vector(value, dimension) }];
    let payload_json = json!({ "value": value }).to_string().into_bytes().into();
    let point = wire::Point { id: Some(wire_id(id)), vectors, payload_json };
    wire::UpsertPoint { point: Some(point), precondition: None }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let temporary = match &arguments.folder {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|error| error.to_string())?),
    };
    let folder = match (&arguments.folder, &temporary) {
        (Some(folder), _) => folder.clone(),
        (None, Some(folder)) => folder.path().to_owned(),
        (None, None) => return Err("no folder".to_owned()),
    };
    let mut cluster = Cluster::start(arguments.binaries.clone(), &folder, arguments.port_base)?;
    let result = drive(&mut cluster, arguments).await;
    drop(cluster);
    if result.is_err()
        && let Some(temporary) = temporary
    {
        eprintln!("the servers' data and output stay in {}", temporary.keep().display());
    }
    result
}

async fn drive(cluster: &mut Cluster, arguments: Arguments) -> Result<(), String> {
    cluster.ready(Duration::from_secs(60)).await?;
    let admin = client(&cluster.router())?;
    let vector = wire::VectorSpec {
        dimension: arguments.dimension,
        metric: wire::Metric::L2 as i32, // stored as given, so that what comes back can be compared bit by bit
        scalar: wire::ScalarKind::Unspecified as i32,
    };
    let spec = wire::CollectionSpec {
        name: COLLECTION.to_owned(),
        vectors: [(String::new(), vector)].into(),
        shard_count: arguments.shards,
        replication_factor: 3,
        index: Some(wire::IndexSpec { seal_points: arguments.seal_points, ..Default::default() }),
        ..Default::default()
    };
    admin.create_collection(spec).await.map_err(|error| error.to_string())?;

    let shared = Arc::new(Shared {
        start: Instant::now(),
        stop: AtomicBool::new(false),
        acknowledged: AtomicU64::new(0),
        acknowledgements: Mutex::default(),
        arguments: arguments.clone(),
    });
    let writers: Vec<_> = (0..arguments.clients)
        .map(|number| Ok(tokio::spawn(write(client(&cluster.router())?, number, shared.clone()))))
        .collect::<Result<_, String>>()?;
    let faults = break_things(cluster, &shared).await;
    shared.stop.store(true, Ordering::SeqCst);
    let mut total = Written::default();
    for writer in writers {
        let written = writer.await.map_err(|error| error.to_string())?;
        total.oracle.join(written.oracle);
        total.acknowledged += written.acknowledged;
        total.upserted += written.upserted;
        total.deleted += written.deleted;
        total.overwritten += written.overwritten;
        total.unknown += written.unknown;
        total.refused += written.refused;
        total.last_error = total.last_error.or(written.last_error);
    }
    let (faults, healed) = faults?;
    let (any_gap, shard_gap) = gaps(&shared, &faults);
    // Replicas that stay different are read all the same: which points differ is what has to be known then.
    let equal_after = until_equal(&admin, healed, Duration::from_secs(60)).await;
    let losses = read_back(cluster, &total.oracle, arguments.dimension).await?;
    let verify = admin.verify_replicas(COLLECTION).await.map_err(|error| error.to_string())?;

    let (live, deleted, unknown) = total.oracle.counts();
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    faults.iter().for_each(|fault| *kinds.entry(fault.kind).or_default() += 1);
    let report = json!({
        "seed": arguments.seed,
        "seconds": shared.start.elapsed().as_secs_f64(),
        "acknowledged_writes": total.acknowledged,
        "points_upserted": total.upserted, "points_overwritten": total.overwritten, "points_deleted": total.deleted,
        "writes_of_unknown_outcome": total.unknown, "writes_refused": total.refused, "an_error_seen": total.last_error,
        "faults": kinds,
        "longest_gap_any_shard_ms": any_gap.as_millis() as u64,
        "longest_gap_one_shard_ms": shard_gap.as_millis() as u64,
        "equal_after_last_fault_ms": equal_after.as_ref().ok().map(|after| after.as_millis() as u64),
        "ids_live": live, "ids_deleted": deleted, "ids_unknown": unknown, "replicas_read": NODES,
        "losses_and_differences": losses.len(), "digests_equal": verify.equal && verify.uncompared.is_empty(),
    });
    if arguments.json {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    if let Err(reason) = &equal_after {
        eprintln!("{reason}");
    }
    if !losses.is_empty() {
        losses.iter().take(20).for_each(|loss| eprintln!("{loss}"));
        return Err(format!(
            "{} times a replica shows what was not acknowledged, or not what another shows",
            losses.len()
        ));
    }
    if equal_after.is_err() || !verify.equal || !verify.uncompared.is_empty() {
        return Err("replicas differ, or could not be compared".to_owned());
    }
    if total.acknowledged < arguments.writes {
        return Err(format!("only {} of {} writes were acknowledged", total.acknowledged, arguments.writes));
    }
    Ok(())
}

/// One client: batches of upserts, overwrites and deletes on ids of its own.
async fn write(client: Client, number: u64, shared: Arc<Shared>) -> Written {
    let arguments = &shared.arguments;
    let mut random = SmallRng::seed_from_u64(arguments.seed.wrapping_mul(1_000_003) + number);
    let mut written = Written::default();
    let (mut next_id, mut value) = (number * IDS_PER_CLIENT, number * IDS_PER_CLIENT);
    let mut known: Vec<u64> = Vec::new();
    while !shared.stop.load(Ordering::SeqCst) {
        let size = random.random_range(1..=8);
        let delete = random.random_bool(0.2) && known.len() > 100;
        let mut batch: BTreeMap<u64, State> = BTreeMap::new();
        for _ in 0..size {
            let overwrite = delete || (random.random_bool(0.4) && !known.is_empty());
            let id = if overwrite {
                known[random.random_range(0..known.len())]
            } else {
                next_id += 1;
                next_id
            };
            // A deleted id may be written again, an unknown one may not.
            if written.oracle.usable(id) && (!delete || written.oracle.live(id)) {
                value += 1;
                batch.insert(id, (!delete).then_some(value));
            }
        }
        if batch.is_empty() {
            continue;
        }
        let reply = if delete {
            client.delete(COLLECTION, batch.keys().map(|id| wire_id(*id)).collect()).await
        } else {
            let points = batch.iter().filter_map(|(id, value)| Some(point(*id, (*value)?, arguments.dimension)));
            client.upsert(COLLECTION, points.collect()).await
        };
        match reply {
            Ok(reply) => {
                let failed: BTreeMap<u32, bool> = reply
                    .errors
                    .iter()
                    .flat_map(|error| error.positions.iter().map(|position| (*position, error.unknown_outcome)))
                    .collect();
                for (position, (id, state)) in (0..).zip(&batch) {
                    match failed.get(&position) {
                        // Even where a shard says that nothing happened, an earlier send may have.
                        Some(_) => written.oracle.unknown(*id, *state),
                        None => {
                            let before = written.oracle.live(*id);
                            match state {
                                Some(_) if before => written.overwritten += 1,
                                Some(_) => written.upserted += 1,
                                None => written.deleted += 1,
                            }
                            written.oracle.acknowledged(*id, *state);
                            known.push(*id);
                        }
                    }
                }
                if let Some(error) = reply.errors.first() {
                    written.unknown += 1;
                    written.last_error = Some(error.message.clone());
                } else {
                    written.acknowledged += 1;
                    shared.acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                let now = Instant::now();
                let mut times = shared.acknowledgements.lock().unwrap_or_else(PoisonError::into_inner);
                times.extend(reply.positions.iter().map(|position| (now, position.shard)));
            }
            Err(error) => {
                batch.iter().for_each(|(id, state)| written.oracle.unknown(*id, *state));
                match error.kind {
                    ErrorKind::InvalidInput | ErrorKind::NotFound | ErrorKind::FailedPrecondition => {
                        written.refused += 1;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    _ => written.unknown += 1,
                }
                written.last_error = Some(error.message);
            }
        }
    }
    written
}

struct Fault {
    at: Instant,
    kind: &'static str,
}

/// Faults, one after the other, until there were enough of them and of writes; then everything runs. Also answers when
/// the last server was running again.
async fn break_things(cluster: &mut Cluster, shared: &Shared) -> Result<(Vec<Fault>, Instant), String> {
    let arguments = &shared.arguments;
    let mut random = SmallRng::seed_from_u64(arguments.seed);
    let mut faults = Vec::new();
    let (mut wiped, mut all_killed) = (false, false);
    let mut healed = Instant::now();
    // What a fault needs to itself before the next one. Not part of `healed`, which is when the last server ran again.
    let mut settle = Duration::ZERO;
    loop {
        let done = shared.acknowledged.load(Ordering::SeqCst);
        let enough = faults.len() >= arguments.faults as usize && wiped && all_killed;
        if enough && done >= arguments.writes {
            return Ok((faults, healed));
        }
        if shared.start.elapsed() > Duration::from_secs(arguments.patience) {
            return Err(format!("{done} writes were acknowledged within {} s", arguments.patience));
        }
        let ended = cluster.ended();
        if !ended.is_empty() {
            return Err(ended.join("\n"));
        }
        tokio::time::sleep(settle + Duration::from_millis(random.random_range(1000..2500))).await;
        settle = Duration::ZERO;
        let node = random.random_range(1..=NODES);
        let away = Duration::from_millis(random.random_range(200..3000));
        // These two come in the middle, so that there is something to lose and something left to do.
        let half = faults.len() as u32 >= arguments.faults / 2;
        let kind = match random.random_range(0..10) {
            _ if half && !wiped => "node wiped",
            _ if half && !all_killed => "everything killed",
            0..5 => "node killed",
            5..9 => "node paused",
            _ => "router killed",
        };
        eprintln!("{:>6.1} s  {done:>7} writes  {kind} ({node})", shared.start.elapsed().as_secs_f64());
        faults.push(Fault { at: Instant::now(), kind });
        match kind {
            "node wiped" => {
                cluster.kill_node(node);
                cluster.wipe_node(node).map_err(|error| format!("wiping node {node}: {error}"))?;
                tokio::time::sleep(away).await;
                cluster.start_node(node)?;
                // It holds no vote until it has caught up: until then another loss could stop writes, and a second one
                // of the others' disks is not what three replicas are for.
                settle = Duration::from_secs(5);
                wiped = true;
            }
            "everything killed" => {
                (1..=NODES).for_each(|node| cluster.kill_node(node));
                cluster.kill_router();
                for node in 1..=NODES {
                    cluster.start_node(node)?;
                }
                cluster.start_router()?;
                all_killed = true;
                settle = Duration::from_secs(3);
            }
            "node killed" => {
                cluster.kill_node(node);
                tokio::time::sleep(away).await;
                cluster.start_node(node)?;
            }
            "node paused" => {
                cluster.pause_node(node, true);
                tokio::time::sleep(away).await;
                cluster.pause_node(node, false);
            }
            _ => {
                cluster.kill_router();
                cluster.start_router()?;
            }
        }
        healed = Instant::now();
    }
}

/// The longest time without an acknowledgement that overlaps the seconds after a single node was killed: over all
/// shards together, and on the shard where it was longest.
fn gaps(shared: &Shared, faults: &[Fault]) -> (Duration, Duration) {
    let mut times = shared.acknowledgements.lock().unwrap_or_else(PoisonError::into_inner).clone();
    times.sort_unstable();
    let mut by_shard: BTreeMap<u64, Vec<Instant>> = BTreeMap::new();
    times.iter().for_each(|(at, shard)| by_shard.entry(*shard).or_default().push(*at));
    let longest = |times: &[Instant]| {
        let mut gaps: Vec<Duration> = times
            .windows(2)
            .filter(|pair| {
                let near = |fault: &&Fault| pair[1] >= fault.at && pair[0] <= fault.at + Duration::from_secs(3);
                faults.iter().filter(|fault| fault.kind == "node killed").any(|fault| near(&fault))
            })
            .map(|pair| pair[1] - pair[0])
            .collect();
        quantile(&mut gaps, 1.0)
    };
    let all: Vec<Instant> = times.iter().map(|(at, _)| *at).collect();
    (longest(&all), by_shard.values().map(|times| longest(times)).max().unwrap_or_default())
}

/// How long after `healed` all replicas agreed, all of them present.
async fn until_equal(admin: &Client, healed: Instant, patience: Duration) -> Result<Duration, String> {
    loop {
        let last = match admin.verify_replicas(COLLECTION).await {
            Ok(reply) => {
                let mut replicas: BTreeMap<u64, u64> = BTreeMap::new();
                let sound = reply.digests.iter().filter(|digest| digest.error.is_empty());
                sound.for_each(|digest| *replicas.entry(digest.shard).or_default() += 1);
                let all = !replicas.is_empty() && replicas.values().all(|count| *count == NODES);
                if reply.equal && reply.uncompared.is_empty() && all {
                    return Ok(healed.elapsed());
                }
                let mut by_position: BTreeMap<(u64, u64), Vec<&wire::ReplicaDigest>> = BTreeMap::new();
                for digest in &reply.digests {
                    by_position.entry((digest.shard, digest.index)).or_default().push(digest);
                }
                let unlike: Vec<String> = by_position
                    .iter()
                    .filter(|(_, digests)| {
                        let state = |digest: &wire::ReplicaDigest| (digest.digest.clone(), digest.vectors.clone());
                        digests.windows(2).any(|pair| state(pair[0]) != state(pair[1]))
                    })
                    .map(|((shard, index), digests)| {
                        let points: Vec<_> = digests.iter().map(|digest| (digest.node, digest.points)).collect();
                        format!("shard {shard} at {index}: (node, points) {points:?}")
                    })
                    .collect();
                let errors: Vec<_> = reply.digests.iter().filter(|digest| !digest.error.is_empty()).collect();
                format!("differing {unlike:?}, uncompared {:?}, errors {errors:?}", reply.uncompared)
            }
            Err(error) => error.to_string(),
        };
        if healed.elapsed() > patience {
            return Err(format!("replicas did not become equal within {} s: {last}", patience.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads every id through every node's replica and says what is not as it must be.
async fn read_back(cluster: &Cluster, oracle: &Oracle, dimension: u32) -> Result<Vec<String>, String> {
    let reader = client(&cluster.router())?;
    let ids: Vec<u64> = oracle.ids().collect();
    let mut losses = Vec::new();
    // Versions as the first node has them: the same value under another version is a difference too.
    let mut versions: BTreeMap<u64, Option<wire::Version>> = BTreeMap::new();
    for node in 1..=NODES {
        for part in ids.chunks(500) {
            let request = wire::GetRequest {
                collection: COLLECTION.to_owned(),
                ids: part.iter().map(|id| wire_id(*id)).collect(),
                with_payload: true,
                with_vectors: true,
                read: Some(wire::ReadOptions {
                    level: wire::ReadLevel::Eventual as i32,
                    replica_node: node,
                    full_coverage: true,
                    ..Default::default()
                }),
                ..Default::default()
            };
            let reply = reader.get(request).await.map_err(|error| format!("reading through node {node}: {error}"))?;
            let mut found: BTreeMap<u64, wire::PointRecord> = BTreeMap::new();
            for record in reply.points {
                if let Some(wire::point_id::Id::Number(id)) = record.id.as_ref().and_then(|id| id.id.clone()) {
                    found.insert(id, record);
                }
            }
            for id in part {
                let state = found.get(id).map(|record| value_of(record, dimension)).transpose();
                let wrong = match state {
                    Ok(state) => oracle.check(*id, state),
                    Err(reason) => Some(format!("point {id}: {reason}")),
                };
                losses.extend(wrong.map(|wrong| format!("node {node}: {wrong}")));
                let version = found.get(id).and_then(|record| record.version);
                let first = *versions.entry(*id).or_insert(version);
                if first != version {
                    losses.push(format!("node {node}: point {id}: version {version:?}, node 1 has {first:?}"));
                }
            }
        }
    }
    Ok(losses)
}

/// The value in a point's payload, whose vector must be the one that follows from it.
fn value_of(record: &wire::PointRecord, dimension: u32) -> Result<u64, String> {
    let payload: serde_json::Value = serde_json::from_slice(&record.payload_json).map_err(|error| error.to_string())?;
    let value = payload["value"].as_u64().ok_or_else(|| format!("payload is {payload}"))?;
    match record.vectors.as_slice() {
        [found] if found.values == vector(value, dimension) => Ok(value),
        other => Err(format!("has value {value}, but vectors {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_point_whose_vector_belongs_to_another_value_is_noticed() {
        let record = |value, vector_of| {
            let made = point(1, value, 4).point.unwrap();
            let other = point(1, vector_of, 4).point.unwrap();
            wire::PointRecord { payload_json: made.payload_json, vectors: other.vectors, ..Default::default() }
        };
        assert_eq!(value_of(&record(7, 7), 4), Ok(7));
        assert!(value_of(&record(7, 8), 4).is_err());
    }
}
