//! usearch in this process, built by one thread and searched by one: what a cluster's figures are divided by.
use std::time::Instant;

use serde::Serialize;
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

use crate::data::recall;
use crate::figures::{disk_bytes, own_cpu};

/// What one scalar type costs.
#[derive(Clone, Debug, Serialize)]
pub struct Baseline {
    /// `f32`, `f16` or `i8`.
    pub scalar: &'static str,
    /// CPU-seconds to build the graph.
    pub build_cpu_s: f64,
    /// Seconds to build the graph.
    pub build_s: f64,
    /// Recall of the first 10.
    pub recall_at_10: f64,
    /// Queries a second, one after the other.
    pub qps: f64,
    /// CPU-microseconds a query.
    pub query_us: f64,
    /// Bytes in memory, as the library counts them.
    pub memory_bytes: u64,
    /// Bytes of the saved file.
    pub disk_bytes: u64,
}

/// How graphs are built and searched.
#[derive(Clone, Copy, Debug)]
pub struct Graph {
    /// Neighbours of a point.
    pub m: usize,
    /// Breadth when building.
    pub ef_construction: usize,
    /// Breadth when searching.
    pub ef_search: usize,
}

/// Measures f32, f16 and i8 under cosine. `rows` gives a row by its number, `count` of them.
///
/// # Errors
/// What usearch says.
pub fn measure(
    rows: &dyn Fn(usize) -> Vec<f32>,
    count: usize,
    queries: &[Vec<f32>],
    truth: Option<&[Vec<u64>]>,
    graph: Graph,
) -> Result<Vec<Baseline>, String> {
    let kinds = [("f32", ScalarKind::F32), ("f16", ScalarKind::F16), ("i8", ScalarKind::I8)];
    kinds.into_iter().map(|(name, kind)| one(name, kind, rows, count, queries, truth, graph)).collect()
}

fn one(
    scalar: &'static str,
    kind: ScalarKind,
    rows: &dyn Fn(usize) -> Vec<f32>,
    count: usize,
    queries: &[Vec<f32>],
    truth: Option<&[Vec<u64>]>,
    graph: Graph,
) -> Result<Baseline, String> {
    let fail = |error: &dyn std::fmt::Display| format!("usearch {scalar}: {error}");
    let options = IndexOptions {
        dimensions: rows(0).len(),
        metric: MetricKind::Cos,
        quantization: kind,
        connectivity: graph.m,
        expansion_add: graph.ef_construction,
        expansion_search: graph.ef_search,
        multi: false,
    };
    let index = Index::new(&options).map_err(|error| fail(&error))?;
    index.reserve(count).map_err(|error| fail(&error))?;
    let (cpu, start) = (own_cpu(), Instant::now());
    for at in 0..count {
        index.add(at as u64, &rows(at)).map_err(|error| fail(&error))?;
    }
    let (build_s, build_cpu_s) = (start.elapsed().as_secs_f64(), (own_cpu() - cpu).as_secs_f64());
    // The first round warms the caches and gives the answers, the later ones the time.
    let mut found = Vec::with_capacity(queries.len());
    for query in queries {
        found.push(index.search(query, 10).map_err(|error| fail(&error))?.keys);
    }
    let (cpu, start) = (own_cpu(), Instant::now());
    let mut asked = 0_u32;
    while start.elapsed().as_secs_f64() < 2.0 && !queries.is_empty() {
        for query in queries {
            std::hint::black_box(index.search(query, 10).map_err(|error| fail(&error))?.keys.len());
            asked += 1;
        }
    }
    let asked = f64::from(asked.max(1));
    let (search_s, search_cpu_s) = (start.elapsed().as_secs_f64(), (own_cpu() - cpu).as_secs_f64());
    let folder = tempfile::tempdir().map_err(|error| fail(&error))?;
    let file = folder.path().join("graph");
    index.save(&file.to_string_lossy()).map_err(|error| fail(&error))?;
    Ok(Baseline {
        scalar,
        build_cpu_s,
        build_s,
        recall_at_10: truth.map_or(f64::NAN, |truth| recall(&found, truth, 10)),
        qps: asked / search_s,
        query_us: search_cpu_s * 1e6 / asked,
        memory_bytes: index.memory_usage() as u64,
        disk_bytes: disk_bytes(folder.path()),
    })
}
