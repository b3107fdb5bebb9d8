//! The HNSW graph of one segment: the only file that names usearch.
//!
//! usearch has edges that this file keeps everyone away from: adding from several threads loses members, so one thread adds and
//! nothing is ever removed; a search beyond the reserved number of threads fails, so a gate lets no more in; the breadth of a
//! search is shared state, so it is fixed at 1 and every search passes its breadth as the number of candidates wanted (usearch
//! takes the larger); a panic in a predicate ends the process, so predicates here only look into bits.
//!
//! What the graph sees is rounded, after it was multiplied by one factor for the whole segment, which is kept in the file:
//! - i8 (cosine only): the factor takes the largest component to 127, and the distance is the inner product, which at unit length
//!   ranks as cosine does. Measured, it finds as much as usearch's own cosine over i8 for three quarters of the time, and since sums
//!   of integers are exact the walk is the same on every processor.
//! - f16: holds little beyond 65,504 and little below 0.0001, so the factor is the power of two that takes the largest component to
//!   512 or a little more; nearness keeps its order under that.
//!
//! A query beyond what the segment holds is clamped. Graphs pick candidates; scores come from the kernel.
use std::borrow::Cow;
use std::sync::{Condvar, Mutex, PoisonError};

use nearring_proto::collection::{IndexSpec, VectorSpec};
use nearring_proto::vector::{Metric, ScalarKind};
use usearch::ffi::Matches;
use usearch::{Index, IndexOptions, MetricKind, VectorType};

const F16_MAX: f32 = 65_504.0;

/// What usearch said, or what it would have got wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("graph: {0}")]
pub struct GraphError(String);

/// A graph over the rows of a segment; its keys are row numbers.
pub(super) struct Graph {
    index: Index,
    scalar: ScalarKind,
    /// Everything it sees is times this.
    factor: f32,
    gate: Gate,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({} rows)", self.index.size())
    }
}

impl Graph {
    /// Adds the rows in the given order, on this thread. Answers a graph that can be searched and saved.
    pub(super) fn build<'a>(
        spec: &VectorSpec,
        index: &IndexSpec,
        order: &[u32],
        row: impl Fn(u32) -> &'a [f32],
    ) -> Result<Self, GraphError> {
        let most = order.iter().flat_map(|number| row(*number)).fold(0.0_f32, |most, value| most.max(value.abs()));
        let graph = Self::empty(spec, index, factor_for(spec.scalar, most))?;
        graph.reserve(order.len())?;
        for number in order {
            match graph.seen(row(*number)) {
                Seen::Floats(values) => graph.index.add(u64::from(*number), &values),
                Seen::Integers(values) => graph.index.add(u64::from(*number), &values),
            }
            .map_err(error)?;
        }
        Ok(graph)
    }

    /// Reads a saved graph, which must be over `rows` rows of this kind.
    pub(super) fn load(
        spec: &VectorSpec,
        index: &IndexSpec,
        factor: f32,
        rows: usize,
        bytes: &[u8],
    ) -> Result<Self, GraphError> {
        if !(factor.is_finite() && factor > 0.0) {
            return Err(GraphError(format!("was built with the factor {factor}")));
        }
        let mut graph = Self::empty(spec, index, factor)?;
        graph.index.load_from_buffer(bytes).map_err(error)?;
        // Loading brings back the metric of the header.
        measure(&mut graph.index, spec)?;
        let found = (graph.index.size(), graph.index.dimensions(), graph.index.connectivity());
        let wanted = (rows, spec.dimension as usize, index.m as usize);
        if found != wanted {
            return Err(GraphError(format!("has (rows, dimension, m) = {found:?}, its segment has {wanted:?}")));
        }
        graph.reserve(rows)?;
        Ok(graph)
    }

    pub(super) fn save(&self) -> Result<Vec<u8>, GraphError> {
        let mut bytes = vec![0; self.index.serialized_length()];
        self.index.save_to_buffer(&mut bytes).map_err(error)?;
        Ok(bytes)
    }

    /// What a saved graph must be loaded with again.
    pub(super) fn factor(&self) -> f32 {
        self.factor
    }

    fn empty(spec: &VectorSpec, index: &IndexSpec, factor: f32) -> Result<Self, GraphError> {
        let options = IndexOptions {
            dimensions: spec.dimension as usize,
            metric: match spec.metric {
                Metric::Cosine if spec.scalar == ScalarKind::I8 => MetricKind::IP,
                Metric::Cosine => MetricKind::Cos,
                Metric::Dot => MetricKind::IP,
                Metric::L2 => MetricKind::L2sq,
                // usearch has no such metric: the name in its header is this one's, the distances are `manhattan`'s.
                Metric::L1 => MetricKind::L2sq,
            },
            quantization: match spec.scalar {
                ScalarKind::F32 => usearch::ScalarKind::F32,
                ScalarKind::F16 => usearch::ScalarKind::F16,
                ScalarKind::I8 => usearch::ScalarKind::I8,
            },
            connectivity: index.m as usize,
            expansion_add: index.ef_construction as usize,
            expansion_search: 1,
            multi: false,
        };
        let mut index = Index::new(&options).map_err(error)?;
        measure(&mut index, spec)?;
        Ok(Self { index, scalar: spec.scalar, factor, gate: Gate::new() })
    }

    fn reserve(&self, rows: usize) -> Result<(), GraphError> {
        self.index.reserve_capacity_and_threads(rows, self.gate.width).map_err(error)
    }

    fn seen<'a>(&self, values: &'a [f32]) -> Seen<'a> {
        let scaled = values.iter().map(|value| value * self.factor);
        match self.scalar {
            ScalarKind::I8 => Seen::Integers(scaled.map(|value| value.round().clamp(-127.0, 127.0) as i8).collect()),
            ScalarKind::F16 => Seen::Floats(Cow::Owned(scaled.map(|value| value.clamp(-F16_MAX, F16_MAX)).collect())),
            ScalarKind::F32 => Seen::Floats(Cow::Borrowed(values)),
        }
    }

    /// The rows nearest to `query` by the graph's own distances, nearest first; at most `breadth`.
    pub(super) fn walk(&self, query: &[f32], breadth: usize) -> Result<Matches, GraphError> {
        let query = self.seen(query);
        let _entered = self.gate.enter();
        match &query {
            Seen::Floats(query) => self.index.search(query, breadth),
            Seen::Integers(query) => self.index.search(query, breadth),
        }
        .map_err(error)
    }

    /// The same among some rows. `counts` must not panic: that would end the process.
    pub(super) fn walk_among(
        &self,
        query: &[f32],
        breadth: usize,
        counts: impl Fn(u64) -> bool,
    ) -> Result<Matches, GraphError> {
        let query = self.seen(query);
        let _entered = self.gate.enter();
        match &query {
            Seen::Floats(query) => self.index.filtered_search(query, breadth, counts),
            Seen::Integers(query) => self.index.filtered_search(query, breadth, counts),
        }
        .map_err(error)
    }

    /// The distance at which a walk finds the very vector it looks for, or one that looks the same. Not for dot.
    pub(super) fn own_distance(&self, values: &[f32]) -> f32 {
        match self.seen(values) {
            Seen::Integers(values) => 1.0 - values.iter().map(|value| i32::from(*value).pow(2)).sum::<i32>() as f32,
            Seen::Floats(_) => 0.0,
        }
    }
}

/// Has the index measure by what usearch itself does not know.
fn measure(index: &mut Index, spec: &VectorSpec) -> Result<(), GraphError> {
    if spec.metric != Metric::L1 {
        return Ok(());
    }
    if spec.scalar != ScalarKind::F32 {
        return Err(GraphError("holds f32 only, where distances are Manhattan's".to_owned()));
    }
    let dimension = spec.dimension as usize;
    f32::change_metric(index, Box::new(move |a, b| manhattan(a, b, dimension))).map_err(error)
}

/// The sum of absolute differences. Never panics: usearch calls this.
fn manhattan(a: *const f32, b: *const f32, dimension: usize) -> f32 {
    // Sums of their own for a register's worth of lanes, which the compiler may not make of one.
    let mut sums = [0.0_f32; 8];
    for at in 0..dimension {
        // SAFETY: usearch passes vectors of the index's scalars (f32, see `measure`) and dimension; it does not promise that
        // they are aligned.
        let (x, y) = unsafe { (a.add(at).read_unaligned(), b.add(at).read_unaligned()) };
        sums[at % 8] += (x - y).abs();
    }
    sums.iter().sum()
}

/// A vector as a graph is given it.
enum Seen<'a> {
    Floats(Cow<'a, [f32]>),
    Integers(Vec<i8>),
}

/// The factor for rows whose largest component is `most`.
fn factor_for(scalar: ScalarKind, most: f32) -> f32 {
    match scalar {
        _ if most == 0.0 => 1.0,
        ScalarKind::F32 => 1.0,
        ScalarKind::F16 => 2.0_f32.powi((9 - (most.log2().floor() as i32)).clamp(-120, 120)),
        ScalarKind::I8 => (127.0 / most).min(f32::MAX),
    }
}

fn error(error: impl std::fmt::Display) -> GraphError {
    GraphError(error.to_string())
}

/// One bit a row.
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// The bits of `rows`, all below `size`.
    pub(super) fn of(rows: &[u32], size: usize) -> Self {
        let mut bits = vec![0_u64; size.div_ceil(64)];
        for row in rows {
            if let Some(word) = bits.get_mut(*row as usize / 64) {
                *word |= 1 << (row % 64);
            }
        }
        Self(bits)
    }

    /// False for rows that do not exist. Never panics: usearch calls this.
    #[inline]
    pub(super) fn get(&self, row: u64) -> bool {
        self.0.get((row / 64) as usize).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }
}

/// Lets only so many searches in at once as usearch has contexts for.
struct Gate {
    width: usize,
    free: Mutex<usize>,
    left: Condvar,
}

impl Gate {
    fn new() -> Self {
        #[allow(clippy::disallowed_methods, reason = "a bound on searches at once; it changes no answer")]
        let width = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        Self { width, free: Mutex::new(width), left: Condvar::new() }
    }

    fn enter(&self) -> Entered<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.left.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Entered(self)
    }
}

struct Entered<'a>(&'a Gate);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.left.notify_one();
    }
}
