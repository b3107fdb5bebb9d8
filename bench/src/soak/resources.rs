//! What the servers use while a soak runs: memory, disk, file descriptors and threads of each, sampled and bounded.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::clients::{Shared, lock};
use crate::cluster::Pids;
use crate::figures::disk_bytes;

/// What one process may use; more is a violation.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Resident memory in bytes, mapped files included.
    pub rss: u64,
    /// Bytes on disk.
    pub disk: u64,
    /// File descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// Names of what is sampled, in the order of a sample's values.
pub const NAMES: [&str; 4] = ["RSS, MiB", "disk, MiB", "descriptors", "threads"];

/// Seconds since the start, and a value.
pub type Curve = Vec<(f64, f64)>;

/// By server, a curve for each of [`NAMES`].
pub type Curves = BTreeMap<String, [Curve; 4]>;

/// Samples until it is aborted.
pub async fn sample(
    pids: Pids,
    data: BTreeMap<String, std::path::PathBuf>,
    bounds: Bounds,
    shared: std::sync::Arc<Shared>,
    curves: std::sync::Arc<std::sync::Mutex<Curves>>,
) {
    loop {
        for (name, pid) in pids.get() {
            let Some([rss, descriptors, threads]) = of_process(pid) else { continue };
            let disk = data.get(&name).map_or(0, |folder| disk_bytes(folder));
            let limits = [bounds.rss, bounds.disk, bounds.descriptors, bounds.threads];
            for ((what, used), limit) in NAMES.into_iter().zip([rss, disk, descriptors, threads]).zip(limits) {
                if used > limit {
                    shared.violation(format_args!("{name} uses {used} (bytes or pieces) of {what}, bound {limit}"));
                }
            }
            let at = shared.start.elapsed().as_secs_f64();
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let values = [mib(rss), mib(disk), descriptors as f64, threads as f64];
            let mut curves = lock(&curves);
            let curve = curves.entry(name).or_default();
            curve.iter_mut().zip(values).for_each(|(curve, value)| curve.push((at, value)));
        }
        tokio::time::sleep_until((Instant::now() + Duration::from_secs(2)).into()).await;
    }
}

/// Resident bytes, descriptors and threads; `None` for a process that is gone.
fn of_process(pid: u32) -> Option<[u64; 3]> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some([field("VmRSS:")? * 1024, descriptors, field("Threads:")?])
}

/// The least, the middle, the greatest and the last value, and by how much it grows an hour (least squares over the second
/// half, so that filling up at the start does not count).
pub fn summary(curve: &[(f64, f64)]) -> Option<[f64; 5]> {
    let last = curve.last()?.1;
    let mut sorted: Vec<f64> = curve.iter().map(|(_, value)| *value).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let half = &curve[curve.len() / 2..];
    let mean = |of: fn(&(f64, f64)) -> f64| half.iter().map(of).sum::<f64>() / half.len() as f64;
    let (at, value) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = half.iter().map(|(x, y)| (x - at) * (y - value)).sum();
    let variance: f64 = half.iter().map(|(x, _)| (x - at).powi(2)).sum();
    let slope = if variance > 0.0 { covariance / variance * 3600.0 } else { 0.0 };
    Some([*sorted.first()?, sorted[sorted.len() / 2], *sorted.last()?, last, slope])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_curve_that_grows_by_one_a_second_grows_by_3600_an_hour() {
        let curve: Curve = (0..100).map(|at| (f64::from(at), f64::from(at) + 7.0)).collect();
        let [least, middle, most, last, slope] = summary(&curve).unwrap();
        assert_eq!((least, middle, most, last), (7.0, 57.0, 106.0, 106.0));
        assert!((slope - 3600.0).abs() < 1e-6);
        assert!(summary(&[]).is_none());
    }

    #[test]
    fn this_process_uses_something() {
        let [rss, descriptors, threads] = of_process(std::process::id()).unwrap();
        assert!(rss > 1 << 20 && descriptors > 2 && threads > 0);
    }
}
