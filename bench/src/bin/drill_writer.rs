//! Writes through the Rust SDK until it is told to stop (SIGTERM), then reads all back: a client of the drill in `deploy/`.
//!
//! Prints one JSON line for each operation (`{"at", "ms", "what", "error"?}`; `at` is when it began, in seconds since 1970),
//! and a last one: `{"done", "checked", "lost"}`. Each task owns some points, so what one of them must be read as follows from
//! what was answered: after an error both what was and what was to be are right.
#![allow(clippy::print_stdout, reason = "the lines are the product")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use nearring_client::wire::{self, point_id};
use nearring_client::{Client, Error};
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

const TASKS: u64 = 4;
const POINTS: u64 = 40;
const DIMENSION: u32 = 8;
/// Between two operations of a task.
const PAUSE: Duration = Duration::from_millis(10);

/// Writes until SIGTERM; then reads all back.
#[derive(Parser)]
struct Arguments {
    /// The router's gRPC address, host:port.
    router: String,
    /// The collection to make.
    collection: String,
}

/// What a point may hold: a value, or nothing.
type Held = Option<u64>;

struct Task {
    number: u64,
    client: Client,
    collection: String,
    random: SmallRng,
    may: BTreeMap<u64, BTreeSet<Held>>,
}

fn id(point: u64) -> wire::PointId {
    wire::PointId { id: Some(point_id::Id::Number(point)) }
}

impl Task {
    fn new(number: u64, client: Client, collection: String) -> Self {
        let may = (1..=POINTS).map(|at| (number * POINTS + at, BTreeSet::from([None]))).collect();
        Self { number, client, collection, random: SmallRng::seed_from_u64(number), may }
    }

    async fn run(mut self, stop: watch::Receiver<bool>) -> Self {
        let mut value = 0;
        while !*stop.borrow() {
            value += 1;
            let new = self.number + TASKS * value;
            let Some(point) = self.may.keys().copied().choose(&mut self.random) else { break };
            let (at, began) = (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), Instant::now());
            let (what, end) = match self.random.random_range(0..10) {
                0..=5 => ("upsert", self.write(point, Some(new)).await),
                6..=7 => ("delete", self.write(point, None).await),
                _ => ("read", self.read(point).await),
            };
            let mut line = json!({"at": at.as_secs_f64(), "ms": began.elapsed().as_secs_f64() * 1e3, "what": what});
            if let Err(error) = end {
                line["error"] = Value::from(error);
            }
            println!("{line}");
            tokio::time::sleep(PAUSE).await;
        }
        self
    }

    async fn write(&mut self, point: u64, new: Held) -> Result<(), String> {
        let written = match new {
            Some(value) => {
                let mut random = SmallRng::seed_from_u64(value);
                let values = (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect();
                let vectors = vec![wire::NamedVector { values, ..Default::default() }];
                let payload_json = json!({"value": value}).to_string().into_bytes().into();
                let point = wire::Point { id: Some(id(point)), vectors, payload_json };
                let upsert = wire::UpsertPoint { point: Some(point), precondition: None };
                self.client.upsert(&self.collection, vec![upsert]).await
            }
            None => self.client.delete(&self.collection, vec![id(point)]).await,
        };
        let failed = match written {
            Err(error) => Some(error.to_string()),
            Ok(reply) => reply.errors.first().map(|error| error.message.clone()),
        };
        let may = self.may.entry(point).or_default();
        match failed {
            None => *may = BTreeSet::from([new]),
            Some(_) => drop(may.insert(new)),
        }
        failed.map_or(Ok(()), Err)
    }

    async fn held(&self, points: Vec<u64>) -> Result<BTreeMap<u64, u64>, Error> {
        let request = wire::GetRequest {
            collection: self.collection.clone(),
            ids: points.into_iter().map(id).collect(),
            with_payload: true,
            ..Default::default()
        };
        let reply = self.client.get(request).await?;
        let read = |record: wire::PointRecord| {
            let point_id::Id::Number(point) = record.id?.id? else { return None };
            let payload: Value = serde_json::from_slice(&record.payload_json).ok()?;
            Some((point, payload.get("value")?.as_u64()?))
        };
        Ok(reply.points.into_iter().filter_map(read).collect())
    }

    async fn read(&mut self, point: u64) -> Result<(), String> {
        let found = self.held(vec![point]).await.map_err(|error| error.to_string())?.remove(&point);
        let may = self.may.entry(point).or_default();
        if !may.contains(&found) {
            return Err(format!("WRONG: point {point} holds {found:?}, must be one of {may:?}"));
        }
        *may = BTreeSet::from([found]);
        Ok(())
    }

    /// What is not as it must be.
    async fn check(&self) -> Vec<String> {
        let found = match self.held(self.may.keys().copied().collect()).await {
            Ok(found) => found,
            Err(error) => return vec![format!("cannot be read: {error}")],
        };
        let wrong = self.may.iter().filter(|(point, may)| !may.contains(&found.get(point).copied()));
        wrong
            .map(|(point, may)| format!("point {point} holds {:?}, must be one of {may:?}", found.get(point)))
            .collect()
    }
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

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut told = signal(SignalKind::terminate())?;
    let client = || Client::builder(arguments.router.as_str()).build();
    let spec = wire::CollectionSpec {
        name: arguments.collection.clone(),
        vectors: [(
            String::new(),
            wire::VectorSpec { dimension: DIMENSION, metric: wire::Metric::L2.into(), scalar: 0 },
        )]
        .into(),
        shard_count: 4,
        ..Default::default()
    };
    client()?.create_collection(spec).await?;
    let (stopping, stop) = watch::channel(false);
    let mut tasks = Vec::new();
    for number in 0..TASKS {
        let task = Task::new(number, client()?, arguments.collection.clone());
        tasks.push(tokio::spawn(task.run(stop.clone())));
    }
    told.recv().await;
    stopping.send_replace(true);
    let mut lost = Vec::new();
    for task in tasks {
        match task.await {
            Ok(task) => lost.extend(task.check().await),
            Err(error) => lost.push(error.to_string()),
        }
    }
    println!("{}", json!({"done": true, "checked": TASKS * POINTS, "lost": lost}));
    Ok(())
}
