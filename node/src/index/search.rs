//! Finding the nearest of one named dense vector, and the ranking that the other kinds share.
//!
//! The answer must not depend on how vectors came to lie where they lie: every candidate, from the tail, from a graph or from a
//! scan, is scored by the one kernel over its f32 components, and all are ranked by (score, id). Slots and rows never decide.
//!
//! Filters come in two kinds. Where payload indexes know the matches exactly, those are searched among ([`super::strategy`]
//! chooses how). Where they do not, everything that may match is scored and the payloads are read best first, until enough match:
//! reading a payload costs far more than a score, and this reads the fewest.
use std::cmp::Ordering;
use std::collections::BTreeMap;

use nearring_proto::hit::rank;
use nearring_proto::vector::Metric;
use roaring::RoaringBitmap;

use super::graph::{Bits, GraphError};
use super::kernel;
use super::named::{Holder, Named, Place, Points};
use super::strategy::{Plan, after, choose, share};
use super::tail::NO_SLOT;

/// What is asked of one named vector.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) query: &'a [f32],
    pub(super) k: usize,
    pub(super) ef: usize,
    pub(super) exact: bool,
    pub(super) threshold: Option<f32>,
}

/// A candidate: score and slot.
pub(super) type Scored = (f32, u32);

/// Keeps the best k of what it is given.
pub(super) struct Best<'a> {
    metric: Metric,
    points: &'a Points,
    k: usize,
    threshold: Option<f32>,
    /// Nothing worse can be among the best.
    bar: Option<f32>,
    found: Vec<Scored>,
}

/// Nearer first, by score alone.
#[inline]
fn by_score(metric: Metric, a: f32, b: f32) -> Ordering {
    if metric.higher_is_nearer() { b.total_cmp(&a) } else { a.total_cmp(&b) }
}

fn by_rank(metric: Metric, points: &Points, a: Scored, b: Scored) -> Ordering {
    match (points.at(a.1), points.at(b.1)) {
        (Some((a_id, _)), Some((b_id, _))) => rank(metric, (a.0, a_id), (b.0, b_id)),
        // Slots of candidates are in use; were one not, it would rank by number.
        _ => by_score(metric, a.0, b.0).then(a.1.cmp(&b.1)),
    }
}

impl<'a> Best<'a> {
    pub(super) fn new(metric: Metric, points: &'a Points, k: usize, threshold: Option<f32>) -> Self {
        Self { metric, points, k, threshold, bar: None, found: Vec::new() }
    }

    #[inline]
    pub(super) fn push(&mut self, score: f32, slot: u32) {
        if self.bar.is_some_and(|bar| by_score(self.metric, score, bar) == Ordering::Greater) {
            return;
        }
        self.found.push((score, slot));
        if self.found.len() >= self.k * 2 + 256 {
            self.prune();
        }
    }

    fn prune(&mut self) {
        let (metric, points) = (self.metric, self.points);
        if self.found.len() > self.k {
            let (_, last, _) =
                self.found.select_nth_unstable_by(self.k.saturating_sub(1), |a, b| by_rank(metric, points, *a, *b));
            self.bar = Some(last.0);
            self.found.truncate(self.k);
        }
    }

    pub(super) fn finish(mut self) -> Vec<Scored> {
        let (metric, points) = (self.metric, self.points);
        if let Some(threshold) = self.threshold {
            self.found.retain(|(score, _)| by_score(metric, *score, threshold) != Ordering::Greater);
        }
        self.prune();
        self.found.sort_unstable_by(|a, b| by_rank(metric, points, *a, *b));
        self.found
    }
}

impl Named {
    /// The best k of all, or of `among`. Slots in `among` that lack the vector do not count.
    ///
    /// # Errors
    /// Where a graph fails.
    pub(super) fn nearest(
        &self,
        ask: Ask<'_>,
        among: Option<&RoaringBitmap>,
        points: &Points,
    ) -> Result<Vec<Scored>, GraphError> {
        let metric = self.spec.metric;
        let mut best = Best::new(metric, points, ask.k, ask.threshold);
        match among {
            None => {
                for (_, slot, values) in self.tail.iter() {
                    best.push(kernel::score(metric, ask.query, values), slot);
                }
                for holder in self.holders.values() {
                    self.search_segment(ask, holder, None, &mut best)?;
                }
            }
            Some(among) => {
                let mut rows: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
                let mut last: Option<(u32, Vec<u32>)> = None;
                for slot in among {
                    match self.place(slot) {
                        Place::Absent | Place::Wanted => {}
                        Place::Tail(row) => best.push(kernel::score(metric, ask.query, self.tail.row(row)), slot),
                        Place::Segment { holder, row } => match &mut last {
                            Some((key, list)) if *key == holder => list.push(row),
                            _ => {
                                if let Some((key, list)) = last.take() {
                                    rows.insert(key, list);
                                }
                                let mut list = rows.remove(&holder).unwrap_or_default();
                                list.push(row);
                                last = Some((holder, list));
                            }
                        },
                    }
                }
                rows.extend(last);
                for (key, rows) in &rows {
                    if let Some(holder) = self.holders.get(key) {
                        self.search_segment(ask, holder, Some(rows), &mut best)?;
                    }
                }
            }
        }
        Ok(best.finish())
    }

    /// `among`: live rows of this segment; `None` = all that are live.
    fn search_segment(
        &self,
        ask: Ask<'_>,
        holder: &Holder,
        among: Option<&[u32]>,
        best: &mut Best<'_>,
    ) -> Result<(), GraphError> {
        let Some(file) = &holder.file else { return Ok(()) };
        let matches = among.map_or(holder.live, |rows| rows.len() as u64);
        let size = file.len() as u64;
        let graph = file.graph().filter(|_| !ask.exact && matches > 0);
        let mut plan =
            graph.map_or(Plan::Scan, |_| choose(matches, size, ask.k, share(ask.ef, holder.live, self.slots.len())));
        let first = if let Plan::Walk { breadth } = plan { breadth } else { 0 };
        let metric = self.spec.metric;
        let (components, dimension) = (file.components(), self.spec.dimension as usize);
        let mut score = |row: usize| {
            let slot = holder.slots[row];
            best.push(kernel::score(metric, ask.query, &components[row * dimension..][..dimension]), slot);
        };
        let mut bits: Option<Bits> = None;
        while let (Plan::Walk { breadth }, Some(graph)) = (plan, graph) {
            let found = match among {
                _ if matches == size => graph.walk(ask.query, breadth)?,
                None => graph.walk_among(ask.query, breadth, |row| is_live(holder, row))?,
                Some(rows) => {
                    let bits = bits.get_or_insert_with(|| Bits::of(rows, holder.slots.len()));
                    graph.walk_among(ask.query, breadth, |row| bits.get(row))?
                }
            };
            match after(plan, first, found.keys.len(), matches, ask.k) {
                Some(next) => plan = next,
                None => {
                    // Keys are live rows; anything else would be a damaged graph.
                    found.keys.into_iter().filter(|row| is_live(holder, *row)).for_each(|row| score(row as usize));
                    return Ok(());
                }
            }
        }
        match among {
            Some(rows) => rows.iter().for_each(|row| score(*row as usize)),
            None => (0..holder.slots.len()).filter(|row| holder.slots[*row] != NO_SLOT).for_each(&mut score),
        }
        Ok(())
    }

    /// The best k of those in `upper` that `matches`, asked of as few as possible.
    pub(super) fn best_first(
        &self,
        ask: Ask<'_>,
        upper: &RoaringBitmap,
        points: &Points,
        matches: &mut dyn FnMut(u32) -> bool,
    ) -> Vec<Scored> {
        let metric = self.spec.metric;
        let mut scored: Vec<Scored> = Vec::with_capacity(upper.len() as usize);
        for slot in upper {
            if let Some(values) = self.components(slot) {
                scored.push((kernel::score(metric, ask.query, values), slot));
            }
        }
        best_first(metric, points, (ask.k, ask.threshold), scored, matches)
    }
}

/// The best k of `scored` that `matches`, asked of as few as possible.
pub(super) fn best_first(
    metric: Metric,
    points: &Points,
    (k, threshold): (usize, Option<f32>),
    mut scored: Vec<Scored>,
    matches: &mut dyn FnMut(u32) -> bool,
) -> Vec<Scored> {
    if let Some(threshold) = threshold {
        scored.retain(|(score, _)| by_score(metric, *score, threshold) != Ordering::Greater);
    }
    let mut found = Vec::new();
    let mut rest = &mut scored[..];
    let mut next = k.saturating_mul(2).max(64);
    while found.len() < k && !rest.is_empty() {
        let take = next.min(rest.len());
        if take < rest.len() {
            rest.select_nth_unstable_by(take, |a, b| by_rank(metric, points, *a, *b));
        }
        let (nearest, others) = rest.split_at_mut(take);
        nearest.sort_unstable_by(|a, b| by_rank(metric, points, *a, *b));
        found.extend(nearest.iter().filter(|(_, slot)| matches(*slot)).take(k - found.len()));
        rest = others;
        next = next.saturating_mul(2);
    }
    found
}

/// False for rows that do not exist; does not panic.
#[inline]
fn is_live(holder: &Holder, row: u64) -> bool {
    usize::try_from(row).is_ok_and(|row| holder.slots.get(row).is_some_and(|slot| *slot != NO_SLOT))
}
