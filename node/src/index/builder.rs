//! From a seal's members to a segment file.
//!
//! One replica builds for all. The file is a function of the members and the settings (one thread adds, in the order of writing), up to the instruction set. It is audited before anyone gets it; a graph that fails is built once more, in another
//! order and twice as broad, and then given up.
use super::audit;
use super::graph::{Graph, GraphError};
use super::segment::{FLAG_GRAPH, FOOTER, FORMAT, HEADER, MAGIC, MAGIC_END, SealWork, Sections, Segment};
use super::segment::{metric_tag, scalar_tag};
use nearring_proto::collection::IndexSpec;

/// Members from which on a segment gets a graph where nothing else is said. Below, reading every row is as fast as walking.
pub const GRAPH_FROM: usize = 2_000;

/// Why a seal did not become a file. The shard gives the seal up and its members stay where they are.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum BuildError {
    /// The members are not what a segment can hold.
    #[error("seal {segment}: {reason}")]
    Members {
        /// The seal's number.
        segment: u64,
        /// What is wrong.
        reason: String,
    },
    /// The graph could not be built.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The graph does not find its own members, after two attempts.
    #[error("seal {segment}: the graph misses {missed} of {sampled} sampled members; raise ef_construction or m")]
    Audit {
        /// The seal's number.
        segment: u64,
        /// Members not found.
        missed: usize,
        /// Members looked for.
        sampled: usize,
    },
}

impl Segment {
    /// Builds the file, with a graph from [`GRAPH_FROM`] members on. Takes seconds of CPU for tens of thousands of members and
    /// one thread.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build(work: &SealWork) -> Result<Vec<u8>, BuildError> {
        Self::build_with(work, GRAPH_FROM)
    }

    /// As [`Segment::build`], with a graph from so many members on.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build_with(work: &SealWork, graph_from: usize) -> Result<Vec<u8>, BuildError> {
        let refuse = |reason: &str| BuildError::Members { segment: work.segment, reason: reason.to_owned() };
        let dimension = work.spec.dimension as usize;
        if work.members.iter().any(|member| member.values().len() != dimension) {
            return Err(refuse("a member has another dimension"));
        }
        if work.members.windows(2).any(|pair| pair[0].id >= pair[1].id) {
            return Err(refuse("members are not in the order of their ids"));
        }
        let rows = u32::try_from(work.members.len()).map_err(|_| refuse("too many members for one segment"))?;
        let keys: Vec<Vec<u8>> = work.members.iter().map(|member| member.id.to_key()).collect();
        let key_bytes = keys.iter().map(Vec::len).sum::<usize>();
        if u32::try_from(key_bytes).is_err() || u16::try_from(work.vector.len()).is_err() {
            return Err(refuse("ids or the vector's name are too long for one segment"));
        }
        let graph = if work.members.len() < graph_from { None } else { Some(audited(work)?) };
        let factor = graph.as_ref().map_or(1.0, Graph::factor);
        let graph = graph.map(|graph| graph.save()).transpose()?;
        let graph_bytes = graph.as_ref().map_or(0, Vec::len);
        let sections = Sections::of(work.vector.len(), rows as usize, dimension, key_bytes, graph_bytes)
            .ok_or_else(|| refuse("too large for one file"))?;

        let mut file = Vec::with_capacity(sections.end + FOOTER);
        file.extend_from_slice(MAGIC);
        for word in [FORMAT, if graph.is_some() { FLAG_GRAPH } else { 0 }, rows, work.spec.dimension] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&[metric_tag(work.spec.metric), scalar_tag(work.spec.scalar)]);
        file.extend_from_slice(&(work.vector.len() as u16).to_le_bytes());
        for word in [work.index.m, work.index.ef_construction, factor.to_bits()] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        for word in [work.segment, key_bytes as u64, graph_bytes as u64] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        debug_assert_eq!(file.len(), HEADER);
        file.extend_from_slice(work.vector.as_bytes());
        file.resize(sections.stamps, 0);
        for member in &work.members {
            file.extend_from_slice(&member.stamp.epoch.to_le_bytes());
            file.extend_from_slice(&member.stamp.index.to_le_bytes());
        }
        let mut offset = 0_u32;
        file.extend_from_slice(&offset.to_le_bytes());
        for key in &keys {
            offset += key.len() as u32;
            file.extend_from_slice(&offset.to_le_bytes());
        }
        keys.iter().for_each(|key| file.extend_from_slice(key));
        file.resize(sections.rows, 0);
        for member in &work.members {
            member.values().iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
        }
        file.resize(sections.graph, 0);
        file.extend_from_slice(&graph.unwrap_or_default());
        let hash = blake3::hash(&file);
        file.extend_from_slice(&(sections.end as u64).to_le_bytes());
        file.extend_from_slice(MAGIC_END);
        file.extend_from_slice(hash.as_bytes());
        Ok(file)
    }
}

fn audited(work: &SealWork) -> Result<Graph, BuildError> {
    let mut failed = None;
    for attempt in 0..2 {
        let index = IndexSpec { ef_construction: work.index.ef_construction << attempt, ..work.index };
        let mut order: Vec<u32> = (0..work.members.len() as u32).collect();
        if attempt == 0 {
            // Of equal stamps, by id. On word vectors, which come in the order of their frequency, this finds 1 % more than a
            // random order, and it is what anyone adding to a graph of their own gets.
            order.sort_by_key(|row| work.members[*row as usize].stamp);
        } else {
            shuffle(&mut order, work.segment);
        }
        let graph = Graph::build(&work.spec, &index, &order, |row| work.members[row as usize].values())?;
        let report = audit::audit(work, &graph)?;
        if report.passed() {
            return Ok(graph);
        }
        tracing::warn!(segment = work.segment, attempt, ?report, "a built graph misses members");
        failed = Some(report);
    }
    let (missed, sampled) = failed.map_or((0, 0), |report| (report.missed, report.sampled));
    Err(BuildError::Audit { segment: work.segment, missed, sampled })
}

/// An order drawn from `seed`, for when the order of writing made a bad graph.
fn shuffle(order: &mut [u32], seed: u64) {
    let mut state = seed;
    let mut next = || {
        // SplitMix64: any fixed sequence does, as long as it is the same on every machine.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    for at in (1..order.len()).rev() {
        order.swap(at, (next() % (at as u64 + 1)) as usize);
    }
}
