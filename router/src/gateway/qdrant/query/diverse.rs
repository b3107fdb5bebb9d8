//! Hits that are near, and unlike those before them.
use nearring_proto::vector::{Metric, Vector as Stored};

/// A score as a likeness, of which more is nearer: a distance's negative, of the Euclidean one its square's.
pub(super) fn likeness(metric: Metric, score: f32) -> f32 {
    match metric {
        Metric::Cosine | Metric::Dot => score,
        Metric::L2 => -score * score,
        Metric::L1 => -score,
    }
}

/// How alike two rows are, on the scale of [`likeness`].
fn alike(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    let pairs = a.iter().zip(b);
    match metric {
        Metric::Cosine | Metric::Dot => pairs.map(|(a, b)| a * b).sum(),
        Metric::L2 => -pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f32>(),
        Metric::L1 => -pairs.map(|(a, b)| (a - b).abs()).sum::<f32>(),
    }
}

/// The same of any two vectors; of several rows each one's likest is added up. 0 where they cannot be compared.
fn likeness_of(metric: Metric, a: Option<&Stored>, b: Option<&Stored>) -> f32 {
    match (a, b) {
        (Some(Stored::Dense(a)), Some(Stored::Dense(b))) => alike(metric, a, b),
        (Some(Stored::Sparse(a)), Some(Stored::Sparse(b))) => a.dot(b).unwrap_or(0.0),
        (Some(Stored::Multi(a)), Some(Stored::Multi(b))) => {
            let likest = |row| b.rows().map(|other| alike(metric, row, other)).fold(f32::NEG_INFINITY, f32::max);
            a.rows().map(likest).sum()
        }
        _ => 0.0,
    }
}

/// Maximal marginal relevance (Carbonell and Goldstein, 1998): the places of up to `wanted` candidates, each the one of the
/// greatest `lambda` · relevance − (1 − `lambda`) · likeness to the likest of those before it.
pub(super) fn marginal(
    metric: Metric,
    relevance: &[f32],
    vectors: &[Option<&Stored>],
    lambda: f32,
    wanted: usize,
) -> Vec<usize> {
    let mut left: Vec<usize> = (0..relevance.len()).collect();
    let mut likest = vec![f32::NEG_INFINITY; relevance.len()];
    let mut taken: Vec<usize> = Vec::new();
    while taken.len() < wanted && !left.is_empty() {
        let worth = |at: usize| match taken.is_empty() {
            true => relevance[at],
            false => lambda * relevance[at] - (1.0 - lambda) * likest[at],
        };
        let best = (0..left.len()).reduce(|best, at| if worth(left[at]) > worth(left[best]) { at } else { best });
        let Some(best) = best else { break };
        let next = left.remove(best);
        for at in &left {
            likest[*at] = likest[*at].max(likeness_of(metric, vectors[*at], vectors[next]));
        }
        taken.push(next);
    }
    taken
}
