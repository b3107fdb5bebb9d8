//! When to seal the tail and what to merge: pure decisions of a shard's leader.
//!
//! Rules: a tail is sealed when it is full, or when writing has paused and it is worth a graph. Segments are merged when
//! [`FANOUT`] of them are of one size class (the largest at most [`FANOUT`] times the smallest), or when half of one is dead.
//! So a point is built into a graph about 1 + log₄(shard ÷ seal size) times, and a shard of n seals has at most about
//! 3·log₄(n) segments. One seal of a vector is pending at a time.
use crate::machine::command::SegmentHash;

/// Segments of one size class that are merged into one.
pub const FANOUT: usize = 4;
/// A paused tail below this many vectors stays: the exact scan costs less than another graph.
pub const PAUSE_POINTS: usize = 256;

/// One installed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Names it.
    pub hash: SegmentHash,
    /// Vectors in the file.
    pub members: u64,
    /// Those that are live.
    pub live: u64,
}

/// What to seal next, if anything: `Some(vec![])` the tail, otherwise the segments to merge.
pub fn next_seal(tail: usize, seal_points: usize, paused: bool, segments: &[Size]) -> Option<Vec<SegmentHash>> {
    if tail >= seal_points || (paused && tail >= PAUSE_POINTS) {
        return Some(Vec::new());
    }
    let mut by_size: Vec<Size> = segments.to_vec();
    by_size.sort_by_key(|segment| (segment.live, segment.hash));
    for window in by_size.windows(FANOUT) {
        let (Some(smallest), Some(largest)) = (window.first(), window.last()) else { continue };
        // Nothing can be built of nothing: sealed, it would be given up and sealed again, for ever.
        if largest.live > 0 && largest.live <= smallest.live.max(1) * FANOUT as u64 {
            return Some(window.iter().map(|segment| segment.hash).collect());
        }
    }
    let worn = by_size.iter().find(|segment| segment.live * 2 < segment.members)?;
    if worn.live > 0 {
        return Some(vec![worn.hash]);
    }
    // The dead segment goes when the next smallest is rewritten.
    let next = by_size.iter().find(|segment| segment.live > 0)?;
    Some(vec![worn.hash, next.hash])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn size(number: u8, members: u64, live: u64) -> Size {
        Size { hash: [number; 32], members, live }
    }

    #[test]
    fn a_full_tail_or_a_paused_one_is_sealed_first() {
        assert_eq!(next_seal(100, 100, false, &[]), Some(vec![]));
        assert_eq!(next_seal(99, 100, false, &[]), None);
        assert_eq!(next_seal(PAUSE_POINTS, 32_768, true, &[]), Some(vec![]));
        assert_eq!(next_seal(PAUSE_POINTS - 1, 32_768, true, &[]), None);
    }

    #[test]
    fn the_number_of_segments_stays_logarithmic_and_every_point_is_rebuilt_few_times() {
        let (mut segments, mut built, mut next) = (Vec::<Size>::new(), 0u64, 0u8);
        for _ in 0..64 {
            next += 1;
            segments.push(size(next, 1000, 1000));
            built += 1000;
            while let Some(sources) = next_seal(0, 1000, false, &segments) {
                let members: u64 = segments.iter().filter(|s| sources.contains(&s.hash)).map(|s| s.live).sum();
                segments.retain(|segment| !sources.contains(&segment.hash));
                next += 1;
                segments.push(size(next, members, members));
                built += members;
            }
            assert!(segments.len() <= 9, "{} segments", segments.len());
        }
        assert!(built <= 64_000 * 4, "{built} built for 64,000");
    }

    #[test]
    fn a_segment_that_is_mostly_dead_is_rewritten_and_a_dead_one_with_the_next() {
        assert_eq!(next_seal(0, 100, false, &[size(1, 100, 60), size(2, 100, 40)]), Some(vec![[2; 32]]));
        assert_eq!(next_seal(0, 100, false, &[size(1, 100, 0)]), None);
        assert_eq!(next_seal(0, 100, false, &[size(1, 100, 0), size(2, 100, 90)]), Some(vec![[1; 32], [2; 32]]));
        let dead: Vec<Size> = (0..6).map(|number| size(number, 100, 0)).collect();
        assert_eq!(next_seal(0, 100, false, &dead), None, "however many they are");
        let with_one = [dead, vec![size(9, 1, 1)]].concat();
        assert_eq!(next_seal(0, 100, false, &with_one), Some(vec![[3; 32], [4; 32], [5; 32], [9; 32]]));
    }
}
