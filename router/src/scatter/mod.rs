//! Asking replicas: [`state`] decides whom and when, [`cover`] groups shards by node, and [`scatter`] carries it out.
//!
//! The driver sends the calls, times them, tells the view what it learned of nodes and leaders, and follows a table that
//! changes on the way. It spawns nothing: dropping the future drops every call.
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use nearring_proto::ids::{NodeId, ShardId};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::{Instant, timeout};

use crate::cluster_view::{ClusterView, NodeClient};
use crate::failure::{Error, Kind, Meaning, NodeFailure};
use crate::plan::{Plan, replicas};

pub mod cover;
pub mod state;

use state::{Nodes, Scatter};

/// One call to one node.
pub struct Call {
    /// Its client.
    pub client: NodeClient,
    /// The shards asked about; the plan's.
    pub shards: Vec<ShardId>,
    /// What the node is told it may take: a little less than the router waits.
    pub deadline_ms: u32,
}

/// A node's answer to one call: each shard's own, or why there is none.
pub type Answers<T> = Result<BTreeMap<ShardId, Result<T, NodeFailure>>, NodeFailure>;

/// How a scattered request ended, by shard.
#[derive(Debug)]
pub struct Reached<T> {
    /// The answers, with who gave them.
    pub answers: BTreeMap<ShardId, (NodeId, T)>,
    /// The others, with why.
    pub failed: BTreeMap<ShardId, NodeFailure>,
}

impl<T> Reached<T> {
    /// The error of a request that needs every shard.
    ///
    /// # Errors
    /// Where a shard failed.
    pub fn complete(self) -> Result<BTreeMap<ShardId, (NodeId, T)>, Error> {
        match self.missing() {
            Some(error) => Err(error),
            None => Ok(self.answers),
        }
    }

    /// What to say of the shards that failed, if any did.
    pub fn missing(&self) -> Option<Error> {
        let (shard, why) = self.failed.first_key_value()?;
        let kinds: Vec<Kind> = self.failed.values().map(|why| why.meaning.kind()).collect();
        let kind = if kinds.contains(&Kind::Unavailable) {
            Kind::Unavailable
        } else {
            kinds.first().copied().unwrap_or(Kind::Unavailable)
        };
        let kind = if kind == Kind::Internal { Kind::Unavailable } else { kind };
        let (failed, all) = (self.failed.len(), self.failed.len() + self.answers.len());
        Some(Error::new(kind, format!("{failed} of {all} shards did not answer; shard {shard}: {why}")))
    }
}

/// The deadline that a node is told for a call that is given up after `timeout`.
pub fn node_deadline_ms(timeout: Duration) -> u32 {
    u32::try_from((timeout.mul_f64(0.9)).as_millis()).unwrap_or(u32::MAX).max(1)
}

/// Asks until every shard of the plan has answered or failed, at the latest until `until`.
///
/// # Errors
/// Where a node refuses the request itself: then every other would too.
pub async fn scatter<T, F, A>(view: &ClusterView, plan: &Plan, until: Instant, ask: F) -> Result<Reached<T>, Error>
where
    F: Fn(Call) -> A,
    A: Future<Output = Answers<T>>,
{
    let began = Instant::now();
    let mut random = SmallRng::seed_from_u64(view.draw());
    let mut state = Scatter::start(plan.shards.clone(), until.saturating_duration_since(began));
    let mut epoch = None;
    let mut answers: BTreeMap<ShardId, (NodeId, T)> = BTreeMap::new();
    let mut calls = FuturesUnordered::new();
    loop {
        if let Some(table) = view.table().filter(|table| epoch != Some(table.epoch)) {
            epoch = Some(table.epoch);
            let open: Vec<ShardId> = state.open().collect();
            open.into_iter().for_each(|shard| state.set_replicas(shard, replicas(&table, shard, plan.pinned)));
        }
        let (loads, shunned) = view.loads();
        for due in state.due(began.elapsed(), &Nodes { loads, shunned }, &mut random) {
            let flight = view.begin(due.node);
            let call = view.client(due.node).map(|client| {
                ask(Call { client, shards: due.shards.clone(), deadline_ms: node_deadline_ms(due.timeout) })
            });
            calls.push(async move {
                let answers = match call {
                    None => Err(NodeFailure::new(Meaning::WrongShard, format!("{} has no address", due.node))),
                    Some(call) => timeout(due.timeout, call).await.unwrap_or_else(|_| {
                        // Silent to the end: to be asked last for a while.
                        Err(NodeFailure::new(
                            Meaning::Lost,
                            format!("no answer of {} within {:?}", due.node, due.timeout),
                        ))
                    }),
                };
                (due, flight, answers)
            });
        }
        if state.is_over() {
            break;
        }
        let wake = state.wakes_at().map_or(until, |at| until.min(began + at));
        tokio::select! {
                   biased;
                   Some((due, flight, reply)) = calls.next(), if !calls.is_empty() => {
                       let now = began.elapsed();
                       match reply {
                           Err(why) => {
                               if why.meaning.node_is_away() {
        let _ = flight.away();
        } else {
        flight.answered();
        }
                               learn(view, &due.shards, &why);
                               if let Meaning::Refused(kind) = why.meaning {
                                   return Err(Error::new(kind, why.message));
                               }
                               state.on_failure(now, due.call, &why, &mut random);
                           }
                           Ok(mut given) => {
                               flight.answered();
                               let mut verdicts = BTreeMap::new();
                               for (shard, answer) in &given {
                                   if let Err(why) = answer {
                                       learn(view, &[*shard], why);
                                       if let Meaning::Refused(kind) = why.meaning {
                                           return Err(Error::new(kind, why.message.clone()));
                                       }
                                   }
                                   verdicts.insert(*shard, answer.as_ref().map(|_| ()).map_err(Clone::clone));
                               }
                               for shard in state.on_reply(now, due.call, verdicts, &mut random) {
                                   if let Some(Ok(answer)) = given.remove(&shard) {
                                       answers.insert(shard, (due.node, answer));
                                   }
                               }
                           }
                       }
                   }
                   () = tokio::time::sleep_until(wake) => {
                       if Instant::now() >= until {
                           state.on_deadline();
                       }
                   }
               }
    }
    let failed =
        plan.shards.keys().filter_map(|shard| state.failure(*shard).map(|why| (*shard, why.clone()))).collect();
    Ok(Reached { answers, failed })
}

fn learn(view: &ClusterView, shards: &[ShardId], why: &NodeFailure) {
    if let Meaning::NotLeader(Some(leader)) = why.meaning {
        shards.iter().for_each(|shard| view.set_leader(*shard, Some(leader)));
    }
    if why.meaning.table_is_stale() {
        view.refresh();
    }
}
