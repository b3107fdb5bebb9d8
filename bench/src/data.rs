//! Vectors and ground truth from NumPy files.
use std::path::Path;

use nearring_client::files::{FileError, VectorRows};
use npyz::NpyFile;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Every row of a file, scaled to unit length: f16 files are so only to rounding.
///
/// # Errors
/// [`FileError`].
pub fn unit_rows(path: &Path) -> Result<Vec<Vec<f32>>, FileError> {
    VectorRows::open(path)?.map(|row| row.map(unit)).collect()
}

/// The vector at length 1; a zero vector stays what it is.
pub fn unit(mut values: Vec<f32>) -> Vec<f32> {
    let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        #[allow(clippy::cast_possible_truncation, reason = "components are f32")]
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
    values
}

/// Row `at` of a set that repeats `base` without end. The first round is the set itself; later ones are moved by
/// uniform noise of the given amplitude, the same for the same row, so that no two vectors are equal.
pub fn repeated(base: &[Vec<f32>], at: usize, amplitude: f32) -> Vec<f32> {
    let row = &base[at % base.len()];
    if at < base.len() {
        return row.clone();
    }
    let mut random = SmallRng::seed_from_u64(at as u64);
    unit(row.iter().map(|value| value + amplitude * random.random_range(-1.0..1.0)).collect())
}

/// The nearest rows of every query, nearest first: a table of int32.
///
/// # Errors
/// A message that names the file.
pub fn truth(path: &Path) -> Result<Vec<Vec<u64>>, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = std::fs::read(path).map_err(|error| fail(&error))?;
    let file = NpyFile::new(&bytes[..]).map_err(|error| fail(&error))?;
    let [_, width] = *file.shape() else { return Err(fail(&"is not a table")) };
    let width = usize::try_from(width).map_err(|error| fail(&error))?;
    let ids: Vec<i32> = file.into_vec().map_err(|error| fail(&error))?;
    Ok(ids.chunks(width.max(1)).map(|row| row.iter().map(|id| id.unsigned_abs().into()).collect()).collect())
}

/// The share of the true nearest `k` that was found, over all queries.
pub fn recall(found: &[Vec<u64>], truth: &[Vec<u64>], k: usize) -> f64 {
    let hits: usize = found
        .iter()
        .zip(truth)
        .map(|(found, truth)| truth.iter().take(k).filter(|id| found.iter().take(k).any(|hit| hit == *id)).count())
        .sum();
    hits as f64 / (k * found.len().min(truth.len())).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_counts_what_was_found_among_the_first_k_only() {
        let truth = [vec![1, 2, 3], vec![4, 5, 6]];
        assert_eq!(recall(&[vec![2, 1, 9], vec![6, 7, 4]], &truth, 2), 0.5);
        assert_eq!(recall(&[vec![1, 2], vec![5, 4]], &truth, 2), 1.0);
    }

    #[test]
    fn a_repeated_row_is_near_its_origin_and_always_the_same() {
        let base = [unit(vec![1.0, 2.0, 3.0]), unit(vec![-1.0, 0.5, 0.0])];
        assert_eq!(repeated(&base, 1, 0.1), base[1]);
        let again = repeated(&base, 3, 0.1);
        assert_eq!(again, repeated(&base, 3, 0.1));
        let cosine: f32 = again.iter().zip(&base[1]).map(|(a, b)| a * b).sum();
        assert!(again != base[1] && cosine > 0.9, "{cosine}");
    }
}
