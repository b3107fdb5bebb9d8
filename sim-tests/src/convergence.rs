//! When the faults are over, everything heals: within [`HEALS_WITHIN`] of simulated time every node has joined, every group
//! has one leader and the voters that the table wants, replicas are at one position with every segment on their disks, and
//! all questions are answered completely and alike.
use std::time::Duration;

use nearring_client::Client;
use nearring_proto::position::ReadLevel;
use tokio::time::Instant;

use crate::history::History;
use crate::model::GROUPS;
use crate::watch::Watched;
use crate::workload::{COLLECTION, SearchFor, Worker};

/// The simulated time that healing may take. Most of it is for a node that begins with nothing: it is found to be new, gets
/// a snapshot and segments, and becomes a voter, group after group.
pub const HEALS_WITHIN: Duration = Duration::from_secs(45);

/// The property.
const PROPERTY: &str = "a cluster that nothing disturbs heals";

/// Waits until everything is whole, then asks everything of every replica, for the judges to compare. `nodes` is how many
/// there are.
pub async fn converge(worker: &Worker, nodes: usize) {
    let history = &worker.history;
    let until = Instant::now() + HEALS_WITHIN;
    let began = Instant::now();
    let mut why = "nothing was asked".to_owned();
    loop {
        why = match attempt(&worker.client, nodes, history).await {
            Ok(()) => break,
            Err(reason) => reason,
        };
        if Instant::now() >= until {
            history.complain(PROPERTY, format_args!("not within {HEALS_WITHIN:?}: {why}"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    history.note(format_args!("whole after {:?}, last {why}", began.elapsed()));
    let mut asked = Asked { history: history.clone(), unanswered: Vec::new() };
    asked.note(
        "points",
        worker
            .get(
                worker.load.all_keys().into_iter().filter(|key| *key < worker.load.keys).collect(),
                ReadLevel::Linearizable,
            )
            .await
            .is_some(),
    );
    asked.note("scroll", worker.scroll(None, ReadLevel::Linearizable, 1_000).await.is_some());
    asked.note("scroll by pages", worker.scroll(None, ReadLevel::Linearizable, 3).await.is_some());
    asked.note("count", worker.count(None, ReadLevel::Linearizable).await.is_some());
    for group in 0..GROUPS {
        asked.note("scroll of a group", worker.scroll(Some(group), ReadLevel::Linearizable, 1_000).await.is_some());
        asked.note("count of a group", worker.count(Some(group), ReadLevel::Linearizable).await.is_some());
    }
    for exact in [true, false] {
        let search = SearchFor { exact, ..SearchFor::all(1, ReadLevel::Linearizable) };
        let complete = |look: Option<crate::history::Look>| {
            look.is_some_and(|look| look.shards.len() == worker.homes.shards().len())
        };
        asked.note("search", complete(worker.search(search).await));
        asked.note("search of a group", complete(worker.search(SearchFor { group: Some(1), ..search }).await));
        asked.note("search by words", complete(worker.search(SearchFor { words: true, ..search }).await));
        for replica in 1..=nodes as u64 {
            let there = SearchFor { replica, level: ReadLevel::Eventual, ..search };
            // Of more nodes than replicas not each holds every shard.
            let answered = worker.search(there).await;
            asked.note("search of a replica", nodes > 3 || complete(answered));
            let answered = worker.search(SearchFor { words: true, ..there }).await;
            asked.note("search of a replica by words", nodes > 3 || complete(answered));
        }
    }
    // Nothing changes any more, so every replica is asked at one position with one set of segments: the same walk must find
    // the same, which a judge of the history looks at.
    for query in 1..4 {
        for replica in 1..=nodes as u64 {
            let walk =
                SearchFor { replica, limit: Some(2), narrow: true, ..SearchFor::all(query, ReadLevel::Eventual) };
            let answered = worker.search(walk).await;
            asked.note("narrow search of a replica", nodes > 3 || answered.is_some());
        }
    }
    for what in asked.unanswered {
        history.complain(PROPERTY, format_args!("{what} is not answered, or not completely"));
    }
}

struct Asked {
    history: History,
    unanswered: Vec<&'static str>,
}

impl Asked {
    fn note(&mut self, what: &'static str, answered: bool) {
        if !answered {
            self.history.note(format_args!("{what} unanswered"));
            self.unanswered.push(what);
        }
    }
}

/// Whether everything is whole, and all replicas hold the same.
async fn attempt(client: &Client, nodes: usize, history: &History) -> Result<(), String> {
    let status = client.cluster_status().await.map_err(|error| format!("status: {error}"))?;
    let table = status.table.ok_or("no table")?;
    if let Some(why) = Watched::unhealed(&table, &status.nodes, nodes) {
        return Err(why);
    }
    let verified = client.verify_replicas(COLLECTION).await.map_err(|error| format!("verify: {error}"))?;
    if !verified.equal {
        history.complain("replicas at one position hold the same", format_args!("{:?}", verified.digests));
        return Ok(());
    }
    if !verified.uncompared.is_empty() {
        return Err(format!("not compared: {:?} {:?}", verified.uncompared, verified.digests));
    }
    for digest in &verified.digests {
        history.note(format_args!("{digest:?}"));
    }
    Ok(())
}
