//! Finding the nearest: an exact tail, immutable segments, and the strategy between them.
//!
//! A new vector must be found at once, and millions of old ones quickly. So a vector begins in the *tail*, which every search scans,
//! and is taken over by a *segment*: an immutable file with flat f32 rows and an HNSW graph, sealed by a log entry, built by one
//! replica and shipped to the others. [`change`] is what the state machine tells the index, in log order; [`ShardIndex`] holds what
//! follows from it: which points there are, where each of their vectors lies, and the payload indexes. Sparse and multi-vectors
//! are not sealed: they stay in memory, sparse ones with an inverted list for each index, and searches of them are exact.
//!
//! Rules:
//! - The index is derived. It holds nothing that is not in records, log, snapshot or segment files, and writes no file itself.
//! - Replicas at one position, with all files there, answer with the same bytes (the same instruction set provided, as graphs are
//!   walked with what the processor has). A replica that lacks a file of its manifest refuses searches of that vector; it does
//!   everything else.
//! - Scores come from [`kernel`], always over f32. Graphs only pick candidates.
//! - Reads take `&self`, never wait for one another, and never fail because of what is stored.
//!
//! Deliberately not here: deciding when to seal or merge, moving files, durability, and locks (the shard holds one around this).
pub mod change;
pub mod kernel;
pub mod segment;
pub mod strategy;

mod audit;
mod builder;
mod graph;
mod held;
mod multi;
mod named;
mod search;
mod sparse;
mod tail;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use nearring_proto::collection::{CollectionSpec, IndexSpec};
use nearring_proto::examples::Examples;
use nearring_proto::filter::Filter;
use nearring_proto::ids::{PointId, Version};
use nearring_proto::payload::Payload;
use nearring_proto::query::{SearchQuery, Target};
use nearring_proto::vector::{Metric, Vector};
use roaring::RoaringBitmap;

pub use self::builder::{BuildError, GRAPH_FROM};
pub use self::graph::GraphError;
pub use self::segment::{Member, SealWork, Segment, SegmentError};

use self::change::{Components, IndexChange, InstalledSegment};
use self::multi::Multi;
use self::named::{Named, Points};
use self::search::{Ask, Best, Scored};
use self::sparse::Sparse;
use crate::machine::command::SegmentHash;
use crate::machine::record::Stamp;
use crate::payload_index::PayloadIndexes;

/// How a point's payload is read, for filters that the payload indexes cannot answer. `None` where there is no such point.
pub type PayloadOf<'a> = dyn Fn(&PointId) -> Option<Payload> + 'a;

/// A hit.
#[derive(Clone, PartialEq, Debug)]
pub struct Found {
    /// The point.
    pub id: PointId,
    /// Similarity (cosine, dot) or distance (L2).
    pub score: f32,
    /// Its version.
    pub version: Version,
}

/// Why a search was not carried out.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SearchError {
    /// Files of the manifest have not arrived here: ask another replica.
    #[error("segments {segments:?} of vector {vector:?} have not arrived at this replica; ask another one")]
    SegmentMissing {
        /// The named vector.
        vector: String,
        /// The missing segments' numbers.
        segments: Vec<u64>,
    },
    /// The index is being restored: ask another replica.
    #[error("{wanted} vectors of {vector:?} are still being restored at this replica; ask another one")]
    Restoring {
        /// The named vector.
        vector: String,
        /// Vectors without components so far.
        wanted: usize,
    },
    /// The collection has no such vector (yet).
    #[error("the collection has no vector {0:?}")]
    UnknownVector(String),
    /// The query was not checked.
    #[error("the query has {got} components, the collection wants {want}")]
    Dimension {
        /// Components given.
        got: usize,
        /// Components wanted.
        want: usize,
    },
    /// A graph failed.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// The index of one shard replica.
#[derive(Debug, Default)]
pub struct ShardIndex {
    points: Points,
    named: BTreeMap<String, Named>,
    sparse: BTreeMap<String, Sparse>,
    multi: BTreeMap<String, Multi>,
    index: IndexSpec,
    /// Shards of the collection, this one among them.
    shards: u32,
    payloads: PayloadIndexes,
    /// Payload paths whose index does not know the points that were there before it.
    unfilled: Vec<String>,
    /// Files that arrived before the entry that installs them.
    early: BTreeMap<SegmentHash, Arc<Segment>>,
}

impl ShardIndex {
    /// An empty index without settings; [`IndexChange::Configure`] brings them and must come first.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one change. A `Seal` answers its members, fixed as of this change, unless this replica lacks a file or a source of
    /// it, or nothing is there to seal: then it cannot build, and the seal is for another or to be abandoned.
    pub fn apply(&mut self, change: IndexChange) -> Option<SealWork> {
        match change {
            IndexChange::Put { id, version, vectors, payload } => {
                let slot = self.points.put(id.clone(), version);
                for (name, named) in &mut self.named {
                    match vectors.get(name) {
                        Some((stamp, Some(Components::Dense(values)))) => named.set(slot, &id, *stamp, Some(values)),
                        Some((stamp, _)) => named.set(slot, &id, *stamp, None),
                        None => named.clear(slot),
                    }
                }
                for (name, sparse) in &mut self.sparse {
                    match vectors.get(name) {
                        Some((stamp, Some(Components::Sparse(vector)))) => {
                            sparse.set(slot, *stamp, Some(vector.clone()));
                        }
                        Some((stamp, _)) => sparse.set(slot, *stamp, None),
                        None => sparse.clear(slot),
                    }
                }
                for (name, multi) in &mut self.multi {
                    match vectors.get(name) {
                        Some((stamp, Some(Components::Multi(vector)))) => multi.set(slot, *stamp, Some(vector.clone())),
                        Some((stamp, _)) => multi.set(slot, *stamp, None),
                        None => multi.clear(slot),
                    }
                }
                if let Some(payload) = payload {
                    self.payloads.set(slot, &id, &payload);
                }
            }
            IndexChange::Remove { id } => {
                if let Some(slot) = self.points.remove(&id) {
                    self.named.values_mut().for_each(|named| named.clear(slot));
                    self.sparse.values_mut().for_each(|sparse| sparse.clear(slot));
                    self.multi.values_mut().for_each(|multi| multi.clear(slot));
                    self.payloads.remove(slot);
                }
            }
            IndexChange::Seal { segment, vector, sources } => return self.seal(segment, vector, &sources),
            IndexChange::Install(entry) => {
                let file = self.early.remove(&entry.hash);
                self.early.retain(|_, file| file.number() != entry.segment);
                match self.named.get_mut(&entry.vector) {
                    Some(named) => named.install(entry, file, &self.points),
                    None => tracing::error!(vector = entry.vector, "a segment of an unknown vector is left out"),
                }
            }
            IndexChange::Abandon { segment } => self.early.retain(|_, file| file.number() != segment),
            IndexChange::Configure(spec) => self.configure(spec),
        }
        None
    }

    fn configure(&mut self, spec: CollectionSpec) {
        self.index = spec.index;
        self.shards = spec.shard_count;
        for (name, vector) in spec.vectors {
            self.named.entry(name).or_insert_with(|| Named::new(vector));
        }
        for name in spec.sparse_vectors.into_keys() {
            self.sparse.entry(name).or_default();
        }
        for (name, vector) in spec.multi_vectors {
            self.multi.entry(name).or_insert_with(|| Multi::new(vector));
        }
        let added = self.payloads.configure(&spec.payload_indexes);
        self.unfilled.retain(|path| spec.payload_indexes.contains_key(path) && !added.contains(path));
        if self.points.len() > 0 {
            self.unfilled.extend(added);
        }
    }

    fn seal(&mut self, segment: u64, vector: String, sources: &[SegmentHash]) -> Option<SealWork> {
        // A newer seal replaces an unfinished one, whose file nobody will install.
        self.early.retain(|_, file| file.vector() != vector || file.number() >= segment);
        let named = self.named.get(&vector)?;
        let members = named.seal(sources, &self.points).filter(|members| !members.is_empty())?;
        Some(SealWork { segment, vector, spec: named.spec.clone(), index: self.index, members })
    }

    /// Payload paths whose index was added by a `Configure` while points were here. Give every point's payload to
    /// [`ShardIndex::fill_payload`] and then call [`ShardIndex::filled`]; until then filters on them are slow, never wrong.
    pub fn unfilled(&self) -> &[String] {
        &self.unfilled
    }

    /// Tells the indexes of the given paths what a point holds. Unknown points are ignored.
    pub fn fill_payload(&mut self, id: &PointId, payload: &Payload, paths: &[String]) {
        if let Some(slot) = self.points.slot(id) {
            self.payloads.set_paths(slot, payload, paths);
        }
    }

    /// These paths are filled.
    pub fn filled(&mut self, paths: &[String]) {
        self.unfilled.retain(|path| !paths.contains(path));
    }

    /// Restart: a point as its record has it. Its vectors are looked for in the segments and otherwise wanted. Without a payload,
    /// filters on this point are slow, never wrong.
    pub fn restore_record(
        &mut self,
        id: PointId,
        version: Version,
        stamps: &BTreeMap<String, Stamp>,
        payload: Option<&Payload>,
    ) {
        let vectors = stamps.iter().map(|(name, stamp)| (name.clone(), (*stamp, None))).collect();
        self.apply(IndexChange::Put { id, version, vectors, payload: payload.cloned() });
    }

    /// Restart: the manifest, and the files that are here.
    pub fn restore_manifest(&mut self, manifest: &[InstalledSegment], local: BTreeMap<SegmentHash, Arc<Segment>>) {
        self.early.extend(local);
        for entry in manifest {
            self.apply(IndexChange::Install(InstalledSegment { sources: Vec::new(), ..entry.clone() }));
        }
    }

    /// Restart: whether the point has this vector with this stamp and its components are not here yet.
    pub fn wants(&self, id: &PointId, name: &str, stamp: Stamp) -> bool {
        let Some(slot) = self.points.slot(id) else { return false };
        let dense = |named: &Named| named.stamp(slot) == Some(stamp) && named.place(slot) == named::Place::Wanted;
        self.named.get(name).is_some_and(dense)
            || self.sparse.get(name).is_some_and(|sparse| sparse.held.wanted_stamp(slot) == Some(stamp))
            || self.multi.get(name).is_some_and(|multi| multi.held.wanted_stamp(slot) == Some(stamp))
    }

    /// Restart: brings components that are wanted; others are ignored.
    pub fn restore_vector(&mut self, id: &PointId, name: &str, stamp: Stamp, components: Components) {
        if !self.wants(id, name, stamp) {
            return;
        }
        let Some(slot) = self.points.slot(id) else { return };
        match components {
            Components::Dense(values) => {
                if let Some(named) = self.named.get_mut(name) {
                    named.set(slot, id, stamp, Some(&values));
                }
            }
            Components::Sparse(vector) => {
                if let Some(sparse) = self.sparse.get_mut(name) {
                    sparse.set(slot, stamp, Some(vector));
                }
            }
            Components::Multi(vector) => {
                if let Some(multi) = self.multi.get_mut(name) {
                    multi.set(slot, stamp, Some(vector));
                }
            }
        }
    }

    /// Vectors whose components are not here, by kind, name and id: covered only by segments that are missing, or still to be restored.
    pub fn wanted(&self) -> Vec<(PointId, String, Stamp)> {
        let mut wanted = Vec::new();
        let mut collect = |name: &String, stamp_of: &dyn Fn(u32) -> Option<Stamp>| {
            for (id, slot) in self.points.after(None) {
                wanted.extend(stamp_of(slot).map(|stamp| (id.clone(), name.clone(), stamp)));
            }
        };
        for (name, named) in self.named.iter().filter(|(_, named)| named.wanted > 0) {
            collect(name, &|slot| named.stamp(slot).filter(|_| named.place(slot) == named::Place::Wanted));
        }
        for (name, sparse) in self.sparse.iter().filter(|(_, sparse)| sparse.held.wanted > 0) {
            collect(name, &|slot| sparse.held.wanted_stamp(slot));
        }
        for (name, multi) in self.multi.iter().filter(|(_, multi)| multi.held.wanted > 0) {
            collect(name, &|slot| multi.held.wanted_stamp(slot));
        }
        wanted
    }

    /// A segment file is here. One that no entry has installed yet is kept until one does, or until its seal is given up.
    pub fn attach(&mut self, segment: Arc<Segment>) {
        let taken = self.named.get_mut(segment.vector()).is_some_and(|named| named.attach(&segment, &self.points));
        if !taken {
            self.early.insert(segment.hash(), segment);
        }
    }

    /// Entries of the manifest whose file is not here, by number.
    pub fn missing(&self) -> Vec<InstalledSegment> {
        by_number(self.named.values().flat_map(Named::missing))
    }

    /// The installed segments, by number.
    pub fn manifest(&self) -> Vec<InstalledSegment> {
        by_number(self.named.values().flat_map(Named::manifest))
    }

    /// The nearest, best first: at most `limit`, and as many as there are matches. The query has passed
    /// [`CollectionSpec::check_query`] and been prepared. `payload` is asked only where payload indexes do not decide.
    ///
    /// # Errors
    /// [`SearchError`]; `SegmentMissing` and `Restoring` mean that another replica can answer.
    pub fn search(&self, query: &SearchQuery, payload: &PayloadOf<'_>) -> Result<Vec<Found>, SearchError> {
        let unknown = || SearchError::UnknownVector(query.vector_name.clone());
        let wanted = (query.limit.clamp(1, SearchQuery::LIMIT_MAX), query.score_threshold);
        let vector = match &query.target {
            Target::Near(vector) => vector,
            Target::Examples(examples) => {
                let scored = self.search_by_examples(query, examples, wanted, payload)?;
                return Ok(self.found(scored));
            }
        };
        let scored = match vector {
            Vector::Dense(values) => self.search_dense(query, values, payload)?,
            Vector::Sparse(vector) => {
                let sparse = self.sparse.get(&query.vector_name).ok_or_else(unknown)?;
                restored(query, sparse.held.wanted)?;
                match self.candidates(query.filter.as_ref(), &sparse.held.slots) {
                    Candidates::All => sparse.nearest(vector, wanted, None, &self.points),
                    Candidates::Exactly(slots) => sparse.nearest(vector, wanted, Some(&slots), &self.points),
                    Candidates::Within(slots, filter) => {
                        let mut matches = |slot: u32| self.matches(filter, slot, payload);
                        sparse.best_first(vector, wanted, &slots, &self.points, &mut matches)
                    }
                }
            }
            Vector::Multi(vector) => {
                let multi = self.multi.get(&query.vector_name).ok_or_else(unknown)?;
                restored(query, multi.held.wanted)?;
                let (got, want) = (vector.dimension() as usize, multi.spec.dimension as usize);
                if got != want {
                    return Err(SearchError::Dimension { got, want });
                }
                match self.candidates(query.filter.as_ref(), &multi.held.slots) {
                    Candidates::All => multi.nearest(vector, wanted, None, &self.points),
                    Candidates::Exactly(slots) => multi.nearest(vector, wanted, Some(&slots), &self.points),
                    Candidates::Within(slots, filter) => {
                        let mut matches = |slot: u32| self.matches(filter, slot, payload);
                        multi.best_first(vector, wanted, &slots, &self.points, &mut matches)
                    }
                }
            }
        };
        Ok(self.found(scored))
    }

    fn found(&self, scored: Vec<Scored>) -> Vec<Found> {
        let found = scored.into_iter().filter_map(|(score, slot)| {
            self.points.at(slot).map(|(id, version)| Found { id: id.clone(), score, version })
        });
        found.collect()
    }

    /// Compares every vector that the filter leaves with every example.
    fn search_by_examples(
        &self,
        query: &SearchQuery,
        examples: &Examples,
        (k, threshold): (usize, Option<f32>),
        payload: &PayloadOf<'_>,
    ) -> Result<Vec<Scored>, SearchError> {
        let name = &query.vector_name;
        // Likenesses of a stored vector, and whose they are.
        let (slots, score): (&RoaringBitmap, Box<ScoreOf<'_>>) = if let Some(named) = self.named.get(name) {
            named.complete(query)?;
            let want = named.spec.dimension as usize;
            let wrong = |vector: &&Vector| vector.dense().is_none_or(|values| values.len() != want);
            if let Some(vector) = examples.vectors().into_iter().find(wrong) {
                return Err(SearchError::Dimension { got: vector.dense().map_or(0, <[f32]>::len), want });
            }
            let metric = named.spec.metric;
            let score = move |slot| {
                let values = named.components(slot)?;
                Some(examples.score(|example| kernel::likeness(metric, example.dense().unwrap_or_default(), values)))
            };
            (&named.slots, Box::new(score))
        } else if let Some(sparse) = self.sparse.get(name) {
            restored(query, sparse.held.wanted)?;
            let score = move |slot| {
                let stored = sparse.held.get(slot)?;
                let likeness = |example: &Vector| match example {
                    Vector::Sparse(example) => example.dot(stored).unwrap_or(0.0),
                    _ => 0.0,
                };
                Some(examples.score(likeness))
            };
            (&sparse.held.slots, Box::new(score))
        } else if let Some(multi) = self.multi.get(name) {
            restored(query, multi.held.wanted)?;
            let want = multi.spec.dimension as usize;
            let dimension = |vector: &Vector| match vector {
                Vector::Multi(vector) => vector.dimension() as usize,
                _ => 0,
            };
            if let Some(got) = examples.vectors().into_iter().map(dimension).find(|got| *got != want) {
                return Err(SearchError::Dimension { got, want });
            }
            let metric = multi.spec.metric;
            let score = move |slot| {
                let stored = multi.held.get(slot)?;
                let likeness = |example: &Vector| match example {
                    Vector::Multi(example) => kernel::max_likeness(metric, example, stored),
                    _ => 0.0,
                };
                Some(examples.score(likeness))
            };
            (&multi.held.slots, Box::new(score))
        } else {
            return Err(SearchError::UnknownVector(name.clone()));
        };
        // Whatever the metric: see [`SearchQuery::ranking`].
        let ranking = query.ranking(Metric::Dot);
        let best = |slots: &RoaringBitmap| {
            let mut best = Best::new(ranking, &self.points, k, threshold);
            slots.iter().filter_map(|slot| Some((score(slot)?, slot))).for_each(|(score, slot)| best.push(score, slot));
            best.finish()
        };
        Ok(match self.candidates(query.filter.as_ref(), slots) {
            Candidates::All => best(slots),
            Candidates::Exactly(slots) => best(&slots),
            Candidates::Within(slots, filter) => {
                let scored = slots.iter().filter_map(|slot| Some((score(slot)?, slot))).collect();
                let mut matches = |slot: u32| self.matches(filter, slot, payload);
                search::best_first(ranking, &self.points, (k, threshold), scored, &mut matches)
            }
        })
    }

    fn search_dense(
        &self,
        query: &SearchQuery,
        values: &[f32],
        payload: &PayloadOf<'_>,
    ) -> Result<Vec<Scored>, SearchError> {
        let name = &query.vector_name;
        let named = self.named.get(name).ok_or_else(|| SearchError::UnknownVector(name.clone()))?;
        named.complete(query)?;
        let (got, want) = (values.len(), named.spec.dimension as usize);
        if got != want {
            return Err(SearchError::Dimension { got, want });
        }
        let ef = query.ef.unwrap_or(self.index.ef_search as usize).min(SearchQuery::EF_MAX);
        let ef = strategy::shard_share(ef, self.shards);
        let k = query.limit.clamp(1, SearchQuery::LIMIT_MAX);
        let ask = Ask { query: values, k, ef, exact: query.exact, threshold: query.score_threshold };
        Ok(match self.candidates(query.filter.as_ref(), &named.slots) {
            Candidates::All => named.nearest(ask, None, &self.points)?,
            Candidates::Exactly(slots) => named.nearest(ask, Some(&slots), &self.points)?,
            Candidates::Within(slots, filter) => {
                let mut matches = |slot: u32| self.matches(filter, slot, payload);
                named.best_first(ask, &slots, &self.points, &mut matches)
            }
        })
    }

    /// Who of `slots` a filter leaves, as far as payload indexes know.
    fn candidates<'a>(&self, filter: Option<&'a Filter>, slots: &'a RoaringBitmap) -> Candidates<'a> {
        let Some(filter) = filter else { return Candidates::All };
        match self.payloads.narrow(filter, slots, &|id| self.points.slot(id), &|name| self.having(name)) {
            Some(narrowed) if narrowed.exact => Candidates::Exactly(narrowed.slots),
            Some(narrowed) => Candidates::Within(Cow::Owned(narrowed.slots), filter),
            None => Candidates::Within(Cow::Borrowed(slots), filter),
        }
    }

    /// Of a sparse vector: how many points have it, and of each index how many have that. `None` where there is no such vector,
    /// or where it is not all here yet.
    pub fn frequencies(&self, name: &str, indices: &[u32]) -> Option<(u64, Vec<u64>)> {
        let sparse = self.sparse.get(name).filter(|sparse| sparse.held.wanted == 0)?;
        Some(sparse.frequencies(indices))
    }

    /// About how many components a search reads; the most there is where payloads decide.
    pub fn cost(&self, query: &SearchQuery) -> u64 {
        if query.filter.is_some() {
            return u64::MAX;
        }
        let vector = match &query.target {
            Target::Near(vector) => vector,
            // Each example is one more comparison with everything.
            Target::Examples(examples) => {
                let all = self.having(&query.vector_name).map_or(0, RoaringBitmap::len);
                let of = |vector: &Vector| match vector {
                    Vector::Dense(values) => values.len() as u64,
                    Vector::Sparse(vector) => vector.indices().len() as u64,
                    Vector::Multi(vector) => vector.components().len() as u64,
                };
                let components: u64 = examples.vectors().into_iter().map(of).sum();
                return all.saturating_mul(components);
            }
        };
        match vector {
            Vector::Sparse(vector) => {
                // An entry is read for itself, where components come in rows.
                self.sparse.get(&query.vector_name).map_or(0, |sparse| sparse.cost(vector).saturating_mul(8))
            }
            Vector::Multi(vector) => self.multi.get(&query.vector_name).map_or(0, |multi| multi.cost(vector)),
            Vector::Dense(_) => self.cost_dense(query),
        }
    }

    fn cost_dense(&self, query: &SearchQuery) -> u64 {
        let Some(named) = self.named.get(&query.vector_name) else { return 0 };
        let ef = query.ef.unwrap_or(self.index.ef_search as usize).max(query.limit.saturating_mul(2));
        // A walk looks at the neighbours of as many members as it is wide.
        let walk = (ef as u64).saturating_mul(u64::from(self.index.m) * 2);
        let rows = named.holders.values().map(|holder| if query.exact { holder.live } else { holder.live.min(walk) });
        let rows = rows.fold(named.tail.len() as u64, u64::saturating_add);
        rows.saturating_mul(u64::from(named.spec.dimension))
    }

    fn matches(&self, filter: &Filter, slot: u32, payload: &PayloadOf<'_>) -> bool {
        let Some((id, _)) = self.points.at(slot) else { return false };
        let has_vector = |name: &str| self.having(name).is_some_and(|slots| slots.contains(slot));
        payload(id).is_some_and(|payload| filter.matches(id, &payload, &has_vector))
    }

    /// Who has a vector of this name.
    fn having(&self, name: &str) -> Option<&RoaringBitmap> {
        let dense = self.named.get(name).map(|named| &named.slots);
        let sparse = || self.sparse.get(name).map(|sparse| &sparse.held.slots);
        dense.or_else(sparse).or_else(|| self.multi.get(name).map(|multi| &multi.held.slots))
    }

    /// The slots that can match, and whether all of them do.
    fn narrow(&self, filter: &Filter) -> (RoaringBitmap, bool) {
        let all = self.points.used();
        match self.payloads.narrow(filter, all, &|id| self.points.slot(id), &|name| self.having(name)) {
            Some(narrowed) => (narrowed.slots, narrowed.exact),
            None => (all.clone(), false),
        }
    }

    /// The first `limit` points behind `after` that match, in the order of ids.
    pub fn matching(
        &self,
        filter: &Filter,
        after: Option<&PointId>,
        limit: usize,
        payload: &PayloadOf<'_>,
    ) -> Vec<PointId> {
        let (slots, exact) = self.narrow(filter);
        let matches = |slot: u32| exact || self.matches(filter, slot, payload);
        // Few candidates are sorted; many are met soon enough by going through the ids.
        if slots.len() * 16 < self.points.len() as u64 {
            let ids = slots.iter().filter_map(|slot| self.points.at(slot).map(|(id, _)| (id, slot)));
            let mut ids: Vec<_> = ids.filter(|(id, _)| after.is_none_or(|after| *id > after)).collect();
            ids.sort_unstable();
            return ids.into_iter().filter(|(_, slot)| matches(*slot)).take(limit).map(|(id, _)| id.clone()).collect();
        }
        let ids = self.points.after(after).filter(|(_, slot)| slots.contains(*slot) && matches(*slot));
        ids.take(limit).map(|(id, _)| id.clone()).collect()
    }

    /// Calls `each` for every point that matches, or every point there is, in no order.
    pub fn for_each(&self, filter: Option<&Filter>, payload: &PayloadOf<'_>, each: &mut dyn FnMut(&PointId, &Payload)) {
        let (slots, exact) = match filter {
            Some(filter) => self.narrow(filter),
            None => (self.points.used().clone(), true),
        };
        for slot in &slots {
            let Some((id, _)) = self.points.at(slot) else { continue };
            let Some(payload) = payload(id) else { continue };
            let has_vector = |name: &str| self.having(name).is_some_and(|slots| slots.contains(slot));
            if exact || filter.is_none_or(|filter| filter.matches(id, &payload, &has_vector)) {
                each(id, &payload);
            }
        }
    }

    /// How many points match; all without a filter.
    pub fn count(&self, filter: Option<&Filter>, payload: &PayloadOf<'_>) -> u64 {
        let Some(filter) = filter else { return self.points() };
        let (slots, exact) = self.narrow(filter);
        if exact {
            slots.len()
        } else {
            slots.iter().filter(|slot| self.matches(filter, *slot, payload)).count() as u64
        }
    }

    /// A point's components, as they were written (cosine: at unit length); `None` where it lacks them or they are not here.
    pub fn vector(&self, id: &PointId, name: &str) -> Option<Components> {
        let slot = self.points.slot(id)?;
        if let Some(named) = self.named.get(name) {
            return named.components(slot).map(Components::from);
        }
        if let Some(sparse) = self.sparse.get(name) {
            return sparse.held.get(slot).cloned().map(Components::Sparse);
        }
        self.multi.get(name)?.held.get(slot).cloned().map(Components::Multi)
    }

    /// Vectors of this name in the tail. While a file is missing these include the vectors that it will take over.
    pub fn tail_len(&self, name: &str) -> usize {
        self.named.get(name).map_or(0, |named| named.tail.len())
    }

    /// Memory that the tails' components take.
    pub fn tail_bytes(&self) -> u64 {
        self.named.values().map(|named| named.tail.bytes()).sum()
    }

    /// Sparse and multi-vectors that are here: no segment will take them over.
    pub fn resident_len(&self) -> u64 {
        let sparse = self.sparse.values().map(|sparse| sparse.held.len());
        sparse.chain(self.multi.values().map(|multi| multi.held.len())).sum()
    }

    /// About the memory that [`ShardIndex::resident_len`] vectors take.
    pub fn resident_bytes(&self) -> u64 {
        let sparse = self.sparse.values().map(Sparse::bytes);
        sparse.chain(self.multi.values().map(Multi::bytes)).sum()
    }

    /// Members of an installed segment that are current; 0 for one that is not installed or not here.
    pub fn live_members(&self, hash: &SegmentHash) -> u64 {
        self.named.values().find_map(|named| named.live_members(hash)).unwrap_or(0)
    }

    /// Points, with or without vectors.
    pub fn points(&self) -> u64 {
        self.points.len() as u64
    }

    /// Every vector that is here and in no file of the manifest here, by name: what a snapshot must carry.
    pub fn tail_vectors(&self) -> impl Iterator<Item = (PointId, String, Stamp, Components)> {
        let dense = self.named.iter().flat_map(move |(name, named)| {
            let slots = named.slots.iter().filter(|slot| named.outside_files(*slot));
            slots.filter_map(move |slot| {
                let (id, _) = self.points.at(slot)?;
                Some((id.clone(), name.clone(), named.stamp(slot)?, Components::from(named.components(slot)?)))
            })
        });
        dense.chain(self.resident_vectors())
    }

    fn resident_vectors(&self) -> impl Iterator<Item = (PointId, String, Stamp, Components)> {
        let sparse = self.sparse.iter().flat_map(|(name, sparse)| {
            let vectors = sparse.held.iter();
            vectors.map(move |(slot, stamp, vector)| (name, slot, stamp, Components::Sparse(vector.clone())))
        });
        let multi = self.multi.iter().flat_map(|(name, multi)| {
            let vectors = multi.held.iter();
            vectors.map(move |(slot, stamp, vector)| (name, slot, stamp, Components::Multi(vector.clone())))
        });
        sparse.chain(multi).filter_map(move |(name, slot, stamp, components)| {
            let (id, _) = self.points.at(slot)?;
            Some((id.clone(), name.clone(), stamp, components))
        })
    }

    /// A sum over every vector that is here, of blake3(name, id, stamp, components): equal between replicas that hold the same,
    /// wherever it lies. Computed when asked for: reads everything, for a background comparison and for tests.
    pub fn vectors_digest(&self) -> u128 {
        let mut digest = 0_u128;
        for (name, named) in &self.named {
            for slot in &named.slots {
                let Some(((id, _), values)) = self.points.at(slot).zip(named.components(slot)) else { continue };
                let mut hasher = hasher(name, id, named.stamp(slot).unwrap_or_default());
                for value in values {
                    hasher.update(&value.to_le_bytes());
                }
                digest = digest.wrapping_add(sixteen(&hasher));
            }
        }
        for (id, name, stamp, components) in self.resident_vectors() {
            let mut hasher = hasher(&name, &id, stamp);
            // The kind and what gives it its form come first, so that no two vectors have the same bytes.
            match components {
                Components::Dense(values) => values.iter().for_each(|value| {
                    hasher.update(&value.to_le_bytes());
                }),
                Components::Sparse(vector) => {
                    hasher.update(b"s");
                    for (index, value) in vector.entries() {
                        hasher.update(&index.to_le_bytes()).update(&value.to_le_bytes());
                    }
                }
                Components::Multi(vector) => {
                    hasher.update(b"m").update(&vector.dimension().to_le_bytes());
                    for value in vector.components() {
                        hasher.update(&value.to_le_bytes());
                    }
                }
            }
            digest = digest.wrapping_add(sixteen(&hasher));
        }
        digest
    }
}

/// The score of a slot; `None` where it lacks the vector.
type ScoreOf<'a> = dyn Fn(u32) -> Option<f32> + 'a;

/// Whom a search may find.
enum Candidates<'a> {
    /// Everyone.
    All,
    /// These, and they all match.
    Exactly(RoaringBitmap),
    /// Those of these that match the filter.
    Within(Cow<'a, RoaringBitmap>, &'a Filter),
}

impl Named {
    /// A vector that is not all here yet is not searched.
    fn complete(&self, query: &SearchQuery) -> Result<(), SearchError> {
        let segments: Vec<u64> = self.missing().map(|entry| entry.segment).collect();
        if !segments.is_empty() {
            return Err(SearchError::SegmentMissing { vector: query.vector_name.clone(), segments });
        }
        restored(query, self.wanted)
    }
}

/// A vector that is not all here yet is not searched.
fn restored(query: &SearchQuery, wanted: usize) -> Result<(), SearchError> {
    if wanted > 0 {
        return Err(SearchError::Restoring { vector: query.vector_name.clone(), wanted });
    }
    Ok(())
}

fn hasher(name: &str, id: &PointId, stamp: Stamp) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    for part in [name.as_bytes(), &id.to_key()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.update(&stamp.epoch.to_le_bytes()).update(&stamp.index.to_le_bytes());
    hasher
}

fn sixteen(hasher: &blake3::Hasher) -> u128 {
    hasher.finalize().as_bytes().first_chunk().map_or(0, |first| u128::from_le_bytes(*first))
}

fn by_number<'a>(entries: impl Iterator<Item = &'a InstalledSegment>) -> Vec<InstalledSegment> {
    let mut entries: Vec<InstalledSegment> = entries.cloned().collect();
    entries.sort_by_key(|entry| entry.segment);
    entries
}
