//! Several lists of hits made one.
use std::collections::BTreeMap;

use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;

use crate::failure::Error;

/// Reciprocal rank fusion: Σ 1 / (k − 1 + (rank + 1) / weight), ranks from 0. A weight of 0 leaves a list's hits without a share.
pub(super) fn reciprocal(lists: Vec<Vec<Hit>>, k: f32, weights: Option<&[f32]>) -> Result<Vec<Hit>, Error> {
    if k < 1.0 {
        return Err(Error::invalid("query.rrf.k", "is 0, must be at least 1"));
    }
    if let Some(weights) = weights {
        if weights.len() != lists.len() {
            let reason = format!("has {} numbers for {} prefetches", weights.len(), lists.len());
            return Err(Error::invalid("query.rrf.weights", reason));
        }
        if let Some(weight) = weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
            return Err(Error::invalid("query.rrf.weights", format!("has {weight}, must be 0 or more")));
        }
    }
    let share = |list: usize, rank: usize| match weights.and_then(|weights| weights.get(list)).copied().unwrap_or(1.0) {
        weight if weight > 0.0 => 1.0 / (k - 1.0 + (rank + 1) as f32 / weight),
        _ => 0.0,
    };
    Ok(fused(
        lists
            .into_iter()
            .enumerate()
            .map(|(at, list)| list.into_iter().enumerate().map(|(rank, hit)| (share(at, rank), hit)).collect()),
    ))
}

/// Distribution-based score fusion: scores of each list between its mean ± 3 standard deviations, summed.
pub(super) fn distribution(lists: Vec<Vec<Hit>>) -> Vec<Hit> {
    fused(lists.into_iter().map(|list| {
        let count = list.len() as f32;
        let mean = list.iter().map(|hit| hit.score).sum::<f32>() / count.max(1.0);
        let variance = list.iter().map(|hit| (hit.score - mean).powi(2)).sum::<f32>() / (count - 1.0).max(1.0);
        let (low, span) = (mean - 3.0 * variance.sqrt(), 6.0 * variance.sqrt());
        let scaled = |score: f32| if span > 0.0 { (score - low) / span } else { 0.5 };
        list.into_iter().map(|hit| (scaled(hit.score), hit)).collect()
    }))
}

fn fused(lists: impl Iterator<Item = Vec<(f32, Hit)>>) -> Vec<Hit> {
    let mut by_id: BTreeMap<PointId, Hit> = BTreeMap::new();
    for (score, hit) in lists.flatten() {
        by_id.entry(hit.id.clone()).and_modify(|known| known.score += score).or_insert(Hit { score, ..hit });
    }
    let mut hits: Vec<Hit> = by_id.into_values().collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
    hits
}
