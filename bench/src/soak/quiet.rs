//! Quiet points: nothing is under way, every server runs; now everything can be told, and every replica is held to it.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use nearring_client::{Client, wire};
use rand::Rng;
use rand::rngs::SmallRng;

use super::clients::{
    DEADLINE, DOCUMENTS, POINTS, Shared, Written, check_document, count, decode_hits, get, lock, read_document, scroll,
    search,
};
use super::model::Model;
use super::points::{Condition, Contents, decode, vector};
use crate::cluster::NODES;

/// What a quiet point found that is no violation.
#[derive(Clone, Copy, Default, Debug)]
pub struct Findings {
    /// Points that are there.
    pub points: usize,
    /// Keys whose state was not known and is now.
    pub settled: usize,
    /// Of the true ten nearest, the share that searches by the graphs found.
    pub recall: f64,
}

/// Judges everything. The caller holds the gate, and has held it since `since`.
///
/// # Errors
/// Where it cannot be judged: replicas that do not become equal within `patience`, or reads that fail.
pub async fn judge(
    client: &Client,
    shared: &Shared,
    written: &[Written],
    random: &mut SmallRng,
    since: Instant,
    patience: Duration,
) -> Result<Findings, String> {
    for collection in [POINTS, DOCUMENTS] {
        until_equal(client, collection, since, patience).await?;
    }
    // A write without an answer is over on the servers when its deadline is.
    tokio::time::sleep_until((since + DEADLINE + Duration::from_secs(1)).into()).await;
    let mut findings = Findings::default();
    let mut all = Model::default();
    for written in written {
        let uncertain = lock(&written.points).uncertain();
        findings.settled += uncertain.len();
        for part in uncertain.chunks(500) {
            let found = read_points(client, part, wire::ReadLevel::Linearizable, 0).await?;
            let mut model = lock(&written.points);
            for key in part {
                let state = found.get(key).map(|(contents, _)| *contents);
                if let Some(wrong) = model.check(*key, state) {
                    shared.violation(format_args!("of unknown outcome: {wrong}"));
                }
                model.settle(*key, state);
            }
        }
        all.join(&lock(&written.points));
    }
    findings.points = all.live().count();
    // Late effects would have to show on the replicas too: settled states are read again below.
    for collection in [POINTS, DOCUMENTS] {
        until_equal(client, collection, Instant::now(), patience).await?;
    }
    let keys: Vec<u64> = all.keys().collect();
    let mut versions: BTreeMap<u64, Option<wire::Version>> = BTreeMap::new();
    let (mut nearest, mut met) = (0, 0);
    for node in 1..=NODES {
        for part in keys.chunks(500) {
            let found = read_points(client, part, wire::ReadLevel::Eventual, node).await?;
            for key in part {
                let (state, version) = found.get(key).map_or((None, None), |(at, version)| (Some(*at), *version));
                if let Some(wrong) = all.check(*key, state) {
                    shared.violation(format_args!("replica on node {node}: {wrong}"));
                }
                let first = *versions.entry(*key).or_insert(version);
                if first != version {
                    shared
                        .violation(format_args!("key {key}: version {version:?} on node {node}, {first:?} on node 1"));
                }
            }
        }
        let conditions = [Condition::Any].into_iter().chain((0..6).map(|_| Condition::draw(random, 3)));
        for condition in conditions.collect::<Vec<_>>() {
            let level = wire::ReadLevel::Eventual;
            let fail = |error: nearring_client::Error| format!("quiet point, node {node}: {error}");
            let counted = client.count(count(condition.filter(None), level, node)).await.map_err(fail)?;
            let wrong = all.check_count(&condition, counted.count);
            wrong.into_iter().for_each(|wrong| shared.violation(format_args!("count, node {node}: {wrong}")));
            let request = scroll(POINTS, condition.filter(None), level, node);
            let points: Vec<_> = client.scroll_all(request).try_collect().await.map_err(fail)?;
            let mut found = BTreeMap::new();
            for point in &points {
                match decode(point.id.as_ref(), &point.payload_json, &point.vectors) {
                    Ok((key, contents)) => drop(found.insert(key, contents)),
                    Err(wrong) => shared.violation(format_args!("scroll, node {node}: {wrong}")),
                }
            }
            if found.len() != points.len() {
                shared.violation(format_args!("scroll, node {node}: a point came twice"));
            }
            for wrong in all.check_matches(&condition, &found) {
                shared.violation(format_args!("scroll, node {node}: {wrong}"));
            }
            let query = vector(random.random());
            let mut truth: Vec<u64> = Vec::new();
            for exact in [true, false] {
                let request = search(&query, 10, condition.filter(None), exact, level, node);
                let reply = client.search(request).await.map_err(fail)?;
                let (hits, wrong) = decode_hits(&reply);
                let judged = all.check_hits(&query, 10, &condition, &hits, exact);
                for wrong in wrong.into_iter().chain(judged) {
                    shared.violation(format_args!("search, exact {exact}, node {node}: {wrong}"));
                }
                let found: Vec<u64> = hits.iter().map(|(key, _, _)| *key).collect();
                if exact {
                    nearest += found.len();
                    truth = found;
                } else {
                    met += truth.iter().filter(|key| found.contains(key)).count();
                }
            }
        }
    }
    findings.recall = met as f64 / f64::from(u32::try_from(nearest.max(1)).unwrap_or(u32::MAX));
    if nearest > 0 && findings.recall < RECALL_MIN {
        shared.violation(format_args!("recall at a quiet point is {:.3}, below {RECALL_MIN}", findings.recall));
    }
    judge_documents(client, shared, written).await?;
    Ok(findings)
}

/// Less than this of the ten nearest, found by the graphs, is a fault of the index.
pub const RECALL_MIN: f64 = 0.9;

async fn judge_documents(client: &Client, shared: &Shared, written: &[Written]) -> Result<(), String> {
    for written in written {
        let names: Vec<String> = lock(&written.documents).keys().cloned().collect();
        for name in names {
            let level = wire::ReadLevel::Linearizable;
            let found = read_document(client, &name, level, 0).await.map_err(|error| format!("{name}: {error}"))?;
            let states = {
                let mut documents = lock(&written.documents);
                if let Some(wrong) = check_document(&documents, &name, &found) {
                    shared.violation(wrong);
                }
                documents.insert(name.clone(), vec![found.first().map(|revision| (*revision, found.len()))]);
                documents.clone()
            };
            for node in 1..=NODES {
                let level = wire::ReadLevel::Eventual;
                let found =
                    read_document(client, &name, level, node).await.map_err(|error| format!("{name}: {error}"))?;
                if let Some(wrong) = check_document(&states, &name, &found) {
                    shared.violation(format_args!("replica on node {node}: {wrong}"));
                }
            }
        }
    }
    Ok(())
}

async fn read_points(
    client: &Client,
    keys: &[u64],
    level: wire::ReadLevel,
    node: u64,
) -> Result<BTreeMap<u64, (Contents, Option<wire::Version>)>, String> {
    let reply = client.get(get(keys.to_vec(), level, node)).await;
    let reply = reply.map_err(|error| format!("reading, node {node}: {error}"))?;
    let decoded = reply.points.iter().map(|point| {
        let (key, contents) = decode(point.id.as_ref(), &point.payload_json, &point.vectors)?;
        Ok((key, (contents, point.version)))
    });
    decoded.collect()
}

/// Waits until all replicas of a collection were compared and are equal.
async fn until_equal(client: &Client, collection: &str, since: Instant, patience: Duration) -> Result<(), String> {
    loop {
        let last = match client.verify_replicas(collection).await {
            Ok(reply) => {
                let mut replicas: BTreeMap<u64, u64> = BTreeMap::new();
                let sound = reply.digests.iter().filter(|digest| digest.error.is_empty());
                sound.for_each(|digest| *replicas.entry(digest.shard).or_default() += 1);
                let all = !replicas.is_empty() && replicas.values().all(|count| *count == NODES);
                if reply.equal && reply.uncompared.is_empty() && all {
                    return Ok(());
                }
                let unlike: Vec<String> = reply
                    .digests
                    .iter()
                    .map(|digest| {
                        let wire::ReplicaDigest { shard, node, index, points, error, .. } = digest;
                        format!("shard {shard} node {node} at {index}: {points} points {error}")
                    })
                    .collect();
                format!("equal {}, uncompared {:?}; {}", reply.equal, reply.uncompared, unlike.join("; "))
            }
            Err(error) => error.to_string(),
        };
        if since.elapsed() > patience {
            return Err(format!("replicas of {collection} not equal within {} s: {last}", patience.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
