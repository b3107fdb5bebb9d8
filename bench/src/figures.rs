//! Figures: quantiles of latencies, CPU and disk of processes.
use std::path::Path;
use std::time::Duration;

/// The q-quantile (nearest rank) of some durations, which it sorts. Zero where there are none.
pub fn quantile(durations: &mut [Duration], q: f64) -> Duration {
    durations.sort_unstable();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the slice")]
    let rank = (q * durations.len() as f64).ceil() as usize;
    durations.get(rank.saturating_sub(1).min(durations.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// User and system time of this process so far.
pub fn own_cpu() -> Duration {
    // Fields 14 and 15, counted after the command name, which may hold blanks; in ticks of 1/100 s on Linux.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Bytes that the files under a folder occupy on disk.
pub fn disk_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ranks() {
        let mut hundred: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut hundred, 0.5), Duration::from_millis(50));
        assert_eq!(quantile(&mut hundred, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&mut hundred[..1], 0.99), Duration::from_millis(1));
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }

    #[test]
    fn work_shows_as_cpu_time() {
        let before = own_cpu();
        let end = std::time::Instant::now() + Duration::from_millis(100);
        while std::time::Instant::now() < end {
            std::hint::black_box((0..1000_u64).map(|i| i * i).sum::<u64>());
        }
        assert!(own_cpu() > before);
    }
}
