//! How near two vectors are: the one place where scores come from.
//!
//! Replicas on different machines must give the same bits, and so must tail, segments and exact scans. Floating-point
//! addition is not associative, so the order is fixed here: 32 lanes, element `i` in lane `i mod 32`, one multiplication and
//! then one addition (never fused), lanes summed pairwise at the end. The compiler may not reorder float operations, so the
//! wide version below computes the same bits with wider registers.
//!
//! Deliberately not here: quantised distances. Those belong to the graphs and only pick candidates.
use nearring_proto::vector::{Metric, MultiVector};

const LANES: usize = 32;

#[inline(always)]
fn lanes_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let length = a.len().min(b.len());
    let (a, b) = (&a[..length], &b[..length]);
    let (mut a_chunks, mut b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (x, y) in (&mut a_chunks).zip(&mut b_chunks) {
        for lane in 0..LANES {
            sums[lane] += term(x[lane], y[lane]);
        }
    }
    // The rest goes into the lanes of its positions, as if the vectors went on.
    for ((sum, x), y) in sums.iter_mut().zip(a_chunks.remainder()).zip(b_chunks.remainder()) {
        *sum += term(*x, *y);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

#[inline(always)]
fn product(x: f32, y: f32) -> f32 {
    x * y
}

#[inline(always)]
fn squared_difference(x: f32, y: f32) -> f32 {
    let difference = x - y;
    difference * difference
}

#[inline(always)]
fn absolute_difference(x: f32, y: f32) -> f32 {
    (x - y).abs()
}

/// The portable version, which the others must equal bit for bit.
mod portable {
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        super::lanes_of(a, b, super::product)
    }
    pub(super) fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
        super::lanes_of(a, b, super::squared_difference)
    }
    pub(super) fn l1(a: &[f32], b: &[f32]) -> f32 {
        super::lanes_of(a, b, super::absolute_difference)
    }
}

/// The same with AVX2 registers of 8 lanes, four of them. Left to itself the compiler splits the lanes unevenly and is three times
/// slower.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_ps,
        _mm256_andnot_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_loadu_ps, _mm256_loadu_si256,
        _mm256_maskload_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_sub_ps,
    };

    /// Eight integers from place 8 − n on select the first n lanes.
    static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline]
    #[target_feature(enable = "avx2")]
    fn lanes_of(a: &[f32], b: &[f32], term: impl Fn(__m256, __m256) -> __m256) -> f32 {
        let length = a.len().min(b.len());
        let (a, b) = (a.as_ptr(), b.as_ptr());
        let mut sums = [_mm256_setzero_ps(); 4];
        let mut at = 0;
        while at + 32 <= length {
            for (group, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the eight floats at `at + 8 · group` are below `length`, hence within both slices.
                let (x, y) =
                    unsafe { (_mm256_loadu_ps(a.add(at + 8 * group)), _mm256_loadu_ps(b.add(at + 8 * group))) };
                *sum = _mm256_add_ps(*sum, term(x, y));
            }
            at += 32;
        }
        // What is left, filled up with zeros: adding a term of zeros to a sum does not change its bits, since a sum that began
        // at +0 is never −0.
        for sum in &mut sums {
            if at >= length {
                break;
            }
            let count = (length - at).min(8);
            // SAFETY: `count` is 1 to 8, so the mask lies within MASKS; a masked load touches only the `count` floats selected,
            // which are below `length`.
            let (x, y) = unsafe {
                let mask: __m256i = _mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast());
                (_mm256_maskload_ps(a.add(at), mask), _mm256_maskload_ps(b.add(at), mask))
            };
            *sum = _mm256_add_ps(*sum, term(x, y));
            at += count;
        }
        // Pairwise: lane + 16, + 8, + 4, + 2, + 1.
        let eight = _mm256_add_ps(_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3]));
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
        lanes_of(a, b, |x, y| _mm256_mul_ps(x, y))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn squared_l2_avx2(a: &[f32], b: &[f32]) -> f32 {
        lanes_of(a, b, |x, y| {
            let difference = _mm256_sub_ps(x, y);
            _mm256_mul_ps(difference, difference)
        })
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn l1_avx2(a: &[f32], b: &[f32]) -> f32 {
        // All bits but the sign's.
        let sign = _mm256_set1_ps(-0.0);
        lanes_of(a, b, |x, y| _mm256_andnot_ps(sign, _mm256_sub_ps(x, y)))
    }
}

/// Inner product. Slices of different lengths count to the shorter one.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all the function asks for.
        return unsafe { wide::dot_avx2(a, b) };
    }
    portable::dot(a, b)
}

/// Squared Euclidean distance. Slices of different lengths count to the shorter one.
#[inline]
pub fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all the function asks for.
        return unsafe { wide::squared_l2_avx2(a, b) };
    }
    portable::squared_l2(a, b)
}

/// The sum of absolute differences. Slices of different lengths count to the shorter one.
#[inline]
pub fn l1(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all the function asks for.
        return unsafe { wide::l1_avx2(a, b) };
    }
    portable::l1(a, b)
}

/// The score of a stored vector for a query: similarity for cosine (both at unit length) and dot, distance for L2 and L1.
#[inline]
pub fn score(metric: Metric, query: &[f32], stored: &[f32]) -> f32 {
    match metric {
        Metric::Cosine | Metric::Dot => dot(query, stored),
        Metric::L2 => squared_l2(query, stored).sqrt(),
        Metric::L1 => l1(query, stored),
    }
}

/// How alike two vectors are, more being nearer: their product, or for L2 the squared distance and for L1 the distance, negative.
#[inline]
pub fn likeness(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    match metric {
        Metric::Cosine | Metric::Dot => dot(a, b),
        Metric::L2 => -squared_l2(a, b),
        Metric::L1 => -l1(a, b),
    }
}

/// The same of multi-vectors: of each row of the first the likest row of the second, added up.
pub fn max_likeness(metric: Metric, query: &MultiVector, stored: &MultiVector) -> f32 {
    let likest = |row| stored.rows().map(|other| likeness(metric, row, other)).max_by(f32::total_cmp).unwrap_or(0.0);
    query.rows().map(likest).sum()
}

/// The score of a stored multi-vector for a query: for cosine and dot the sum over the query's rows of the largest product with
/// any stored row; for L2 the root of the sum of the smallest squared distances, for L1 the sum of the smallest. Added up in the order of the query's rows.
pub fn max_sim(metric: Metric, query: &MultiVector, stored: &MultiVector) -> f32 {
    let mut sum = 0.0_f32;
    for row in query.rows() {
        // By the total order: which of two equal zeros is taken is not left to the processor.
        let best = match metric {
            Metric::Cosine | Metric::Dot => stored.rows().map(|other| dot(row, other)).max_by(f32::total_cmp),
            Metric::L2 => stored.rows().map(|other| squared_l2(row, other)).min_by(f32::total_cmp),
            Metric::L1 => stored.rows().map(|other| l1(row, other)).min_by(f32::total_cmp),
        };
        sum += best.unwrap_or(0.0);
    }
    if metric == Metric::L2 { sum.sqrt() } else { sum }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    /// The rule of the module's documentation, element by element.
    fn by_the_rule(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
        let mut sums = vec![0.0_f32; LANES];
        for at in 0..a.len() {
            let addend = term(a[at], b[at]);
            sums[at % LANES] += addend;
        }
        while sums.len() > 1 {
            let (low, high) = sums.split_at(sums.len() / 2);
            sums = low.iter().zip(high).map(|(low, high)| low + high).collect();
        }
        sums[0]
    }

    proptest! {
        #[test]
        fn every_version_follows_the_rule_to_the_bit(
            pairs in prop::collection::vec((-1e3_f32..1e3, -1e3_f32..1e3), 0..300)
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let wanted = by_the_rule(&a, &b, product).to_bits();
            prop_assert_eq!(dot(&a, &b).to_bits(), wanted);
            prop_assert_eq!(portable::dot(&a, &b).to_bits(), wanted);
            let wanted = by_the_rule(&a, &b, squared_difference).to_bits();
            prop_assert_eq!(squared_l2(&a, &b).to_bits(), wanted);
            prop_assert_eq!(portable::squared_l2(&a, &b).to_bits(), wanted);
            let wanted = by_the_rule(&a, &b, absolute_difference).to_bits();
            prop_assert_eq!(l1(&a, &b).to_bits(), wanted);
            prop_assert_eq!(portable::l1(&a, &b).to_bits(), wanted);
        }
    }

    #[test]
    fn max_sim_is_the_sum_of_each_query_rows_best() {
        let rows = |rows: &[[f32; 2]]| MultiVector::new(2, rows.concat()).unwrap();
        let (query, stored) = (rows(&[[1.0, 0.0], [0.0, 2.0]]), rows(&[[3.0, 0.0], [0.0, 1.0], [-1.0, 5.0]]));
        assert_eq!(max_sim(Metric::Dot, &query, &stored), 3.0 + 10.0);
        assert_eq!(max_sim(Metric::L2, &query, &stored), (2.0_f32 + 1.0).sqrt());
        assert_eq!(max_sim(Metric::Dot, &stored, &query), 3.0 + 2.0 + 10.0, "it is not symmetric");
    }

    #[test]
    fn bits_are_these_on_every_machine() {
        let a: Vec<f32> = (0..100_u32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 71.0).collect();
        let b: Vec<f32> = (0..100_u32).map(|i| ((i * 53 % 97) as f32 - 48.0) / 67.0).collect();
        assert_eq!((dot(&a, &b).to_bits(), squared_l2(&a, &b).to_bits()), (1_070_013_945, 1_107_127_898));
        assert_eq!(score(Metric::L2, &[0.0, 3.0], &[4.0, 0.0]), 5.0);
        assert_eq!(score(Metric::L1, &[0.0, 3.0], &[4.0, 0.0]), 7.0);
    }
}
