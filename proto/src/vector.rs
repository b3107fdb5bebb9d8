//! Vectors and metrics.
use serde::{Deserialize, Serialize};

/// How nearness is measured.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Cosine similarity, in [−1, 1]; vectors are stored at unit length, and must not be zero.
    Cosine,
    /// Inner product; higher is nearer.
    Dot,
    /// Euclidean distance; lower is nearer.
    L2,
}

impl Metric {
    /// Whether a larger score is a nearer hit.
    pub fn higher_is_nearer(self) -> bool {
        !matches!(self, Metric::L2)
    }
}

/// What a segment's graph stores per component. Scores always come from the f32 values beside it.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ScalarKind {
    /// 32-bit float.
    F32,
    /// 16-bit float; the default for dot and L2.
    F16,
    /// 8-bit integer over [−1, 1]; the default for cosine, refused for others.
    I8,
}

impl ScalarKind {
    /// The default for a metric (measured in the storage notes: i8 halves the build at equal re-scored recall).
    pub fn default_for(metric: Metric) -> Self {
        match metric {
            Metric::Cosine => ScalarKind::I8,
            Metric::Dot | Metric::L2 => ScalarKind::F16,
        }
    }
}

/// Why a vector cannot be stored or searched with.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
pub enum VectorError {
    /// Its length is not the collection's.
    #[error("has {got} components, the collection wants {want}")]
    Dimension {
        /// Components given.
        got: usize,
        /// Components wanted.
        want: usize,
    },
    /// It holds a NaN or an infinity.
    #[error("component {at} is not finite")]
    NotFinite {
        /// The first such component.
        at: usize,
    },
    /// Cosine has no meaning for it.
    #[error("is zero, which has no direction for cosine")]
    Zero,
}

/// Checks a vector against dimension and metric: right length, all finite, not zero for cosine. A cosine vector whose
/// squared length underflows to zero or overflows counts as zero or not finite.
///
/// # Errors
/// [`VectorError`] saying which rule it breaks.
pub fn check(values: &[f32], dimension: usize, metric: Metric) -> Result<(), VectorError> {
    if values.len() != dimension {
        return Err(VectorError::Dimension { got: values.len(), want: dimension });
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(VectorError::NotFinite { at });
    }
    if metric == Metric::Cosine {
        let length: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        if length < f64::from(f32::MIN_POSITIVE) {
            return Err(VectorError::Zero);
        }
    }
    Ok(())
}

/// Scales to unit length, in f64 and in order, so that every replica and every client gets the same bits.
pub fn normalize(values: &mut [f32]) {
    let length = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
    if length > 0.0 {
        for value in values {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}
