//! `GET /metrics`: what this router knows, in the text format of Prometheus.
//!
//! The problem: figures are watched by programs that know Qdrant's, and by people who want to see this store's own parts.
//! **Rules:** what Qdrant has a name for has that name; everything else begins with `nearring_`. Figures of nodes and replicas
//! are asked of the nodes at each call, since nodes have no door for it: one scrape of one router shows the whole cluster. What
//! nobody knows is left out rather than told as 0. Vectors are counted by collection: nodes do not count them by name.
use std::borrow::Cow;
use std::fmt;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Door, Given, Refused};
use crate::failure::{Error, Kind};
use crate::gateway::console::{META, furthest, groups};
use crate::pipeline::{ClusterStatus, Pipeline, own_use};
use crate::traffic::{BUCKETS, Counted, Door as In, Durations, Seen};

/// What may be asked for.
#[derive(Deserialize, JsonSchema, Debug, Default)]
pub(super) struct Wanted {
    /// Answers by collection, in place of all together.
    #[serde(default)]
    per_collection: bool,
    /// Names of collections in digests.
    #[serde(default)]
    anonymize: bool,
}

pub(super) async fn metrics(State(door): State<Door>, Given(wanted): Given<Wanted>) -> Result<Response, Refused> {
    let name = |name: &str| shown(name, wanted.anonymize);
    let status = status(&door.pipeline).await;
    let seen = super::telemetry::seen(&door.pipeline);
    let mut figures = process();
    figures.extend(status.as_ref().map(|status| cluster(status, &name)).unwrap_or_default());
    figures.extend(answers(&seen, wanted.per_collection, &name));
    let text = text(figures).map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text).into_response())
}

/// The cluster as it is now; `None` where no node was reached yet, which is no reason to wait.
pub(super) async fn status(pipeline: &Pipeline) -> Option<ClusterStatus> {
    pipeline.view().table()?;
    pipeline.cluster_status().await.ok()
}

/// A name, or a digest of it that is the same every time.
pub(super) fn shown(name: &str, anonymize: bool) -> String {
    match anonymize {
        true => blake3::hash(name.as_bytes()).to_hex().chars().take(16).collect(),
        false => name.to_owned(),
    }
}

type Labels = Vec<(&'static str, String)>;

/// A name, and what is told under it. Without samples nothing is.
#[derive(Debug)]
struct Figure {
    name: Cow<'static, str>,
    help: &'static str,
    samples: Samples,
}

#[derive(Debug)]
enum Samples {
    Gauges(Vec<(Labels, f64)>),
    Counters(Vec<(Labels, f64)>),
    Histograms(Vec<(Labels, Durations)>),
}

fn gauges(name: impl Into<Cow<'static, str>>, help: &'static str, samples: Vec<(Labels, f64)>) -> Figure {
    Figure { name: name.into(), help, samples: Samples::Gauges(samples) }
}

/// `name` without its ending `_total`.
fn counters(name: impl Into<Cow<'static, str>>, help: &'static str, samples: Vec<(Labels, f64)>) -> Figure {
    Figure { name: name.into(), help, samples: Samples::Counters(samples) }
}

fn one(value: f64) -> Vec<(Labels, f64)> {
    vec![(Labels::new(), value)]
}

/// What is handed to the library, which spells it.
#[derive(Debug)]
struct Figures(Vec<Figure>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Figure { name, help, samples } in &self.0 {
            match samples {
                Samples::Gauges(samples) if !samples.is_empty() => {
                    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                    for (labels, value) in samples {
                        family.encode_family(labels)?.encode_gauge(value)?;
                    }
                }
                Samples::Counters(samples) if !samples.is_empty() => {
                    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                    for (labels, value) in samples {
                        family.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(value, None)?;
                    }
                }
                Samples::Histograms(samples) if !samples.is_empty() => {
                    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
                    for (labels, durations) in samples {
                        let slow = durations.count - durations.buckets.iter().sum::<u64>();
                        let buckets: Vec<(f64, u64)> =
                            BUCKETS.into_iter().zip(durations.buckets).chain([(f64::INFINITY, slow)]).collect();
                        let sum = durations.total_us as f64 / 1e6;
                        let mut family = family.encode_family(labels)?;
                        family.encode_histogram::<NoLabelSet>(sum, durations.count, &buckets, None)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn text(figures: Vec<Figure>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures(figures)));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

/// What this process is and uses.
fn process() -> Vec<Figure> {
    let (rss_bytes, cpu_ms) = own_use();
    let app = vec![("name", "nearring".to_owned()), ("version", env!("CARGO_PKG_VERSION").to_owned())];
    let mut figures = vec![gauges("app_info", "information about this server", vec![(app, 1.0)])];
    // The system does not tell everywhere.
    if rss_bytes > 0 {
        figures.push(gauges("memory_resident_bytes", "resident memory of this router", one(rss_bytes as f64)));
        figures.push(gauges("process_resident_memory_bytes", "the same by its usual name", one(rss_bytes as f64)));
        figures.push(counters("process_cpu_seconds", "processor time of this router", one(cpu_ms as f64 / 1e3)));
    }
    figures
}

/// The cluster, its collections, shards and replicas.
fn cluster(status: &ClusterStatus, shown: &dyn Fn(&str) -> String) -> Vec<Figure> {
    let all = groups(status);
    let mut figures = vec![
        gauges("cluster_enabled", "is cluster support enabled", one(1.0)),
        gauges("cluster_peers_total", "total number of cluster peers", one(status.nodes.len() as f64)),
    ];
    let meta = all.iter().find(|group| group.shard == META);
    if let Some((node, replica)) = meta.and_then(|meta| Some((meta.leader()?, (*meta.replicas.get(&meta.leader()?)?)?)))
    {
        let pending = replica.last_index.saturating_sub(replica.applied_index);
        figures.extend([
            gauges("cluster_term", "current term of the meta group", one(replica.term as f64)),
            gauges(
                "cluster_commit",
                "index of last committed operation of the meta group",
                vec![(vec![("peer_id", node.to_string())], replica.committed_index as f64)],
            ),
            gauges("cluster_pending_operations_total", "operations of the meta group not applied", one(pending as f64)),
        ]);
    }
    figures.extend(collections(status, shown));
    figures.extend(nodes(status));
    figures.extend(shards(status, shown));
    figures
}

fn collections(status: &ClusterStatus, shown: &dyn Fn(&str) -> String) -> Vec<Figure> {
    let (mut points, mut vectors, mut running) = (Vec::new(), Vec::new(), Vec::new());
    for collection in status.table.collections.values() {
        let replicas = furthest(status, collection);
        // A shard that nobody reports is not an empty one.
        if replicas.len() < collection.shards.len() {
            continue;
        }
        let name = shown(&collection.spec.name);
        let sum = |of: &dyn Fn(&nearring_proto::wire::ReplicaStatus) -> u64| {
            replicas.iter().map(|replica| of(replica)).sum::<u64>() as f64
        };
        points.push((vec![("id", name.clone())], sum(&|replica| replica.points)));
        vectors.push((vec![("collection", name.clone())], sum(&vectors_of)));
        running.push((vec![("id", name)], sum(&|replica| u64::from(replica.pending_seals))));
    }
    let total = vectors.iter().map(|(_, count)| count).sum();
    let mut active = (u64::MAX, 0);
    let mut dead = 0;
    for group in groups(status).iter().filter(|group| group.shard != META && !group.creating) {
        let up = group.replicas.values().flatten().filter(|replica| replica.role != "stopped").count();
        active = (active.0.min(up as u64), active.1.max(up as u64));
        dead += u64::from(up < group.replicas.len());
    }
    vec![
        gauges("collections_total", "number of collections", one(status.table.collections.len() as f64)),
        gauges("collections_vector_total", "total number of vectors in all collections", one(total)),
        gauges("collection_vectors", "vectors of each collection", vectors),
        gauges("collection_points", "points of each collection", points),
        gauges("collection_running_optimizations", "segments being built", running),
        gauges("collection_active_replicas_min", "least replicas of any shard that are there", {
            one(if active.0 == u64::MAX { 0.0 } else { active.0 as f64 })
        }),
        gauges("collection_active_replicas_max", "most replicas of any shard that are there", one(active.1 as f64)),
        gauges("collection_dead_replicas", "shards with replicas that are not there", one(dead as f64)),
    ]
}

/// Vectors in segments, in the tail, and those that stay in memory.
pub(super) fn vectors_of(replica: &nearring_proto::wire::ReplicaStatus) -> u64 {
    let in_segments: u64 = replica.segments.iter().map(|segment| segment.live).sum();
    in_segments + replica.tail_vectors + replica.resident_vectors
}

fn nodes(status: &ClusterStatus) -> Vec<Figure> {
    let of = |value: &dyn Fn(&nearring_proto::wire::NodeStatus) -> f64| {
        let there = status.nodes.iter().filter(|node| node.reachable);
        there.map(|node| (vec![("node", node.node.to_string())], value(node))).collect::<Vec<_>>()
    };
    let up = |node: &nearring_proto::wire::NodeStatus| f64::from(u8::from(node.reachable));
    let up = status.nodes.iter().map(|node| (vec![("node", node.node.to_string())], up(node))).collect();
    vec![
        gauges("nearring_node_up", "whether the node answers", up),
        gauges("nearring_node_resident_memory_bytes", "resident memory", of(&|node| node.rss_bytes as f64)),
        counters("nearring_node_cpu_seconds", "processor time", of(&|node| node.cpu_ms as f64 / 1e3)),
        gauges("nearring_node_log_bytes", "bytes of the log on disk", of(&|node| node.log_bytes as f64)),
        gauges("nearring_node_disk_free_bytes", "bytes left on the disk", of(&|node| node.disk_free_bytes as f64)),
        gauges(
            "nearring_node_refusing_writes",
            "whether the disk is too full for writes",
            of(&|node| f64::from(u8::from(node.refusing_writes))),
        ),
        gauges(
            "nearring_node_inflight_write_bytes",
            "bytes of writes under way",
            of(&|node| f64::from(node.inflight_write_bytes)),
        ),
    ]
}

fn shards(status: &ClusterStatus, shown: &dyn Fn(&str) -> String) -> Vec<Figure> {
    let all = groups(status);
    let labels = |group: &crate::gateway::console::Group<'_>| {
        vec![("collection", group.collection.map(shown).unwrap_or_default()), ("shard", group.shard.to_string())]
    };
    let of_shard = |value: &dyn Fn(&crate::gateway::console::Group<'_>) -> f64| {
        all.iter().map(|group| (labels(group), value(group))).collect::<Vec<_>>()
    };
    let of_replica = |value: &dyn Fn(&nearring_proto::wire::ReplicaStatus, u64) -> f64| {
        let mut samples = Vec::new();
        for group in &all {
            let last = group.replicas.values().flatten().map(|replica| replica.last_index).max().unwrap_or(0);
            for (node, replica) in &group.replicas {
                let Some(replica) = replica else { continue };
                let mut labels = labels(group);
                labels.push(("node", node.to_string()));
                samples.push((labels, value(replica, last)));
            }
        }
        samples
    };
    let bytes = |replica: &nearring_proto::wire::ReplicaStatus| {
        replica.segments.iter().map(|segment| segment.bytes).sum::<u64>()
    };
    vec![
        gauges(
            "nearring_shard_leader",
            "the node that leads; 0 for none. Shard 0 is the meta group",
            of_shard(&|group| group.leader().unwrap_or(0) as f64),
        ),
        gauges(
            "nearring_shard_majority",
            "whether a majority of the voters is there",
            of_shard(&|group| f64::from(u8::from(group.has_majority()))),
        ),
        gauges(
            "nearring_replica_applied_index",
            "log position that the replica has applied",
            of_replica(&|replica, _| replica.applied_index as f64),
        ),
        gauges(
            "nearring_replica_last_index",
            "last position of the replica's log",
            of_replica(&|replica, _| replica.last_index as f64),
        ),
        gauges(
            "nearring_replica_lag_entries",
            "entries behind the longest log of the shard",
            of_replica(&|replica, last| last.saturating_sub(replica.applied_index) as f64),
        ),
        gauges("nearring_replica_points", "points", of_replica(&|replica, _| replica.points as f64)),
        gauges(
            "nearring_replica_tail_vectors",
            "vectors that no segment holds yet",
            of_replica(&|replica, _| replica.tail_vectors as f64),
        ),
        gauges("nearring_replica_segments", "segments", of_replica(&|replica, _| replica.segments.len() as f64)),
        gauges("nearring_replica_segment_bytes", "bytes of segments", of_replica(&|replica, _| bytes(replica) as f64)),
        gauges(
            "nearring_replica_resident_vector_bytes",
            "bytes of vectors that stay in memory",
            of_replica(&|replica, _| replica.resident_vector_bytes as f64),
        ),
    ]
}

/// Answers by door, endpoint and status.
fn answers(seen: &Seen, per_collection: bool, shown: &dyn Fn(&str) -> String) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (door, prefix) in [(In::Rest, "rest"), (In::Grpc, "grpc")] {
        let mut all: Vec<(Labels, &Durations, bool)> = Vec::new();
        if per_collection {
            for (name, counted) in &seen.of_collection {
                collect(door, counted, Some(shown(name)), &mut all);
            }
        } else {
            collect(door, &seen.all, None, &mut all);
        }
        let seconds = |of: fn(&Durations) -> f64| {
            all.iter().map(|(labels, durations, _)| (labels.clone(), of(durations) / 1e6)).collect::<Vec<_>>()
        };
        let total = all.iter().map(|(labels, durations, _)| (labels.clone(), durations.count as f64)).collect();
        let failed = all.iter().filter(|(.., failed)| *failed);
        let failed = failed.map(|(labels, durations, _)| (labels.clone(), durations.count as f64)).collect();
        let histograms = all.iter().map(|(labels, durations, _)| (labels.clone(), (*durations).clone())).collect();
        let name = |rest: &str| format!("{prefix}_responses{rest}");
        figures.extend([
            counters(name(""), "total number of responses", total),
            counters(name("_fail"), "number of responses that are errors", failed),
            gauges(
                name("_avg_duration_seconds"),
                "average response duration",
                seconds(|of| of.total_us as f64 / of.count.max(1) as f64),
            ),
            gauges(name("_min_duration_seconds"), "minimum response duration", seconds(|of| of.min_us as f64)),
            gauges(name("_max_duration_seconds"), "maximum response duration", seconds(|of| of.max_us as f64)),
            Figure {
                name: name("_duration_seconds").into(),
                help: "response duration histogram",
                samples: Samples::Histograms(histograms),
            },
        ]);
    }
    figures
}

fn collect<'a>(
    door: In,
    counted: &'a Counted,
    collection: Option<String>,
    all: &mut Vec<(Labels, &'a Durations, bool)>,
) {
    for (endpoint, durations) in counted.iter().filter(|(endpoint, _)| endpoint.door == door) {
        let mut labels = Labels::new();
        if door == In::Rest {
            labels.push(("method", endpoint.method.to_owned()));
        }
        labels.extend([("endpoint", endpoint.path.clone()), ("status", endpoint.status.to_string())]);
        labels.extend(collection.clone().map(|name| ("collection", name)));
        all.push((labels, durations, endpoint.failed()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use nearring_proto::clock::Clock;

    use super::*;
    use crate::traffic::{Endpoint, Traffic};

    #[test]
    fn answers_are_told_in_the_text_format() {
        let traffic = Traffic::new(Clock::with(std::sync::Arc::new(|| 0)));
        let endpoint =
            |status| Endpoint { door: In::Rest, method: "PUT", path: "/collections/{x}/points".into(), status };
        for (status, ms) in [(200, 1), (200, 40_000), (404, 3)] {
            traffic.answered(endpoint(status), Some("a \"b\"".into()), Duration::from_millis(ms));
        }
        let told = text(answers(&traffic.seen(), false, &|name| name.to_owned())).unwrap();
        for line in [
            "# HELP rest_responses_total total number of responses",
            "# TYPE rest_responses_total counter",
            "rest_responses_total{method=\"PUT\",endpoint=\"/collections/{x}/points\",status=\"200\"} 2",
            "rest_responses_fail_total{method=\"PUT\",endpoint=\"/collections/{x}/points\",status=\"404\"} 1",
            "# TYPE rest_responses_duration_seconds histogram",
        ] {
            assert!(told.lines().any(|told| told.starts_with(line)), "{line}: {told}");
        }
        let buckets: Vec<&str> = told
            .lines()
            .filter(|line| {
                line.starts_with("rest_responses_duration_seconds_bucket") && line.contains("status=\"200\"")
            })
            .collect();
        assert_eq!(buckets.len(), BUCKETS.len() + 1);
        assert!(buckets[0].ends_with(" 1") && buckets.last().unwrap().ends_with(" 2"), "{buckets:?}");
        assert!(buckets.last().unwrap().contains("le=\"+Inf\""));
        assert!(!told.contains("collection=") && !told.contains("grpc_"));
        let told = text(answers(&traffic.seen(), true, &|name| name.to_owned())).unwrap();
        assert!(told.contains(r#"collection="a \"b\"""#), "{told}");
    }

    #[test]
    fn a_process_tells_what_it_is() {
        let told = text(process()).unwrap();
        assert!(told.contains("app_info{name=\"nearring\",version=\""), "{told}");
    }
}
