//! Retry policies, named by what they promise. Pure: the caller sleeps, and hands in the randomness.
use std::time::Duration;

use crate::error::ErrorKind;

/// When a failed call is repeated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RetryPolicy {
    /// Every call is sent once.
    Never,
    /// Repeats only what has one effect however often it arrives: reads, and writes that carry a session's request id.
    OneEffect {
        /// Sends at the most, the first included. At least 1.
        attempts: u32,
        /// The first pause; it doubles up to [`RetryPolicy::PAUSE_MAX`], and each is drawn from its upper half.
        pause: Duration,
    },
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy::OneEffect { attempts: 5, pause: Duration::from_millis(50) }
    }
}

impl RetryPolicy {
    /// The longest pause between two sends.
    pub const PAUSE_MAX: Duration = Duration::from_secs(2);

    /// How long to wait before sending again after `sent` sends ended in `kind`; `None` = give up. `repeatable` says
    /// that a second arrival would have no second effect; `draw` is uniform in [0, 1).
    pub fn next_pause(self, sent: u32, kind: ErrorKind, repeatable: bool, draw: f64) -> Option<Duration> {
        match self {
            RetryPolicy::OneEffect { attempts, pause } if repeatable && kind.is_transient() && sent < attempts => {
                let doubled = pause.saturating_mul(1_u32 << sent.saturating_sub(1).min(16)).min(Self::PAUSE_MAX);
                Some(doubled.mul_f64(0.5 + draw / 2.0))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_one_effect_is_repeated_and_only_so_often() {
        let policy = RetryPolicy::OneEffect { attempts: 3, pause: Duration::from_millis(100) };
        assert_eq!(policy.next_pause(1, ErrorKind::Unavailable, false, 0.0), None);
        assert_eq!(policy.next_pause(1, ErrorKind::InvalidInput, true, 0.0), None);
        assert_eq!(policy.next_pause(1, ErrorKind::Unavailable, true, 0.0), Some(Duration::from_millis(50)));
        assert_eq!(policy.next_pause(2, ErrorKind::Unavailable, true, 0.0), Some(Duration::from_millis(100)));
        assert_eq!(policy.next_pause(3, ErrorKind::Unavailable, true, 0.0), None);
        assert_eq!(RetryPolicy::Never.next_pause(1, ErrorKind::Unavailable, true, 0.0), None);
    }

    #[test]
    fn pauses_stay_bounded_however_long_it_lasts() {
        let policy = RetryPolicy::OneEffect { attempts: u32::MAX, pause: Duration::from_secs(1) };
        for sent in [1, 2, 40, u32::MAX - 1] {
            let pause = policy.next_pause(sent, ErrorKind::Overloaded, true, 0.999);
            assert!(pause.is_some_and(|pause| pause <= RetryPolicy::PAUSE_MAX), "{sent}: {pause:?}");
        }
    }
}
