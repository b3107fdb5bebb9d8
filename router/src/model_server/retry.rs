//! Whether a failed request to a model server is tried again, and when. [core]
use std::time::Duration;

use http::{HeaderMap, header};
use nearring_proto::collection::InvalidInput;

use crate::failure::ModelFailure;

/// One failed attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// What can be done about it.
    pub failure: ModelFailure,
    /// What happened, in words.
    pub reason: String,
    /// Whether another attempt may end otherwise.
    pub passing: bool,
    /// How long the server asks to be left alone.
    pub wait: Option<Duration>,
}

impl Attempt {
    /// A failure that another attempt may not meet.
    pub fn passing(failure: ModelFailure, reason: impl Into<String>) -> Self {
        Self { failure, reason: reason.into(), passing: true, wait: None }
    }

    /// A failure that every attempt would meet.
    pub fn lasting(failure: ModelFailure, reason: impl Into<String>) -> Self {
        Self { failure, reason: reason.into(), passing: false, wait: None }
    }
}

/// How often and after which pauses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retries {
    /// Attempts in all, 1 to 10.
    pub attempts: u32,
    /// The first pause; each further one may be twice as long.
    pub pause: Duration,
    /// The longest pause. A server that asks for more by `Retry-After` is not waited for.
    pub pause_max: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 4, pause: Duration::from_millis(250), pause_max: Duration::from_secs(20) }
    }
}

impl Retries {
    pub(crate) fn check(&self) -> Result<(), InvalidInput> {
        if !(1..=10).contains(&self.attempts) {
            return Err(InvalidInput::new("attempts", format!("is {}, must be 1 to 10", self.attempts)));
        }
        Ok(())
    }

    /// The pause before the next attempt, after `made` of them; `None` where there is none. `share`, from 0 to 1, is drawn
    /// at random: callers that failed together do not come back together. Half of a pause is certain.
    pub fn pause(&self, made: u32, failed: &Attempt, share: f64) -> Option<Duration> {
        if !failed.passing || made >= self.attempts {
            return None;
        }
        let doublings = made.saturating_sub(1).min(16);
        let most = self.pause.saturating_mul(1 << doublings).min(self.pause_max);
        let drawn = most.mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0);
        match failed.wait {
            Some(wait) if wait > self.pause_max => None,
            // Never earlier than asked for.
            Some(wait) => Some(wait + drawn.min(self.pause)),
            None => Some(drawn),
        }
    }
}

/// What `Retry-After` asks for: seconds, or a moment, which is compared with the reply's own `Date`: the two clocks need not
/// agree. `retry-after-ms`, as OpenAI sends it, is more exact and goes first.
pub fn wanted_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text(http::HeaderName::from_static("retry-after-ms")).and_then(|ms| ms.parse().ok()) {
        return Some(Duration::from_millis(ms));
    }
    let wanted = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = wanted.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(wanted).ok()?;
    let now = httpdate::parse_http_date(text(header::DATE)?).ok()?;
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn pauses_grow_are_drawn_and_end() {
        let retries = Retries { attempts: 4, pause: MS(100), pause_max: MS(300) };
        let busy = Attempt::passing(ModelFailure::Busy, "429");
        let pauses = |share| (1..=4).map(|made| retries.pause(made, &busy, share)).collect::<Vec<_>>();
        assert_eq!(pauses(1.0), [Some(MS(100)), Some(MS(200)), Some(MS(300)), None]);
        assert_eq!(pauses(0.0), [Some(MS(50)), Some(MS(100)), Some(MS(150)), None]);
        assert_eq!(retries.pause(1, &Attempt::lasting(ModelFailure::Refused, "401"), 1.0), None);
    }

    #[test]
    fn a_server_that_names_its_wait_is_heard_unless_it_asks_too_much() {
        let retries = Retries { attempts: 3, pause: MS(100), pause_max: MS(5_000) };
        let after = |wait| {
            let attempt = Attempt { wait: Some(wait), ..Attempt::passing(ModelFailure::Busy, "429") };
            retries.pause(1, &attempt, 0.0)
        };
        assert_eq!(after(MS(2_000)), Some(MS(2_050)));
        assert_eq!(after(MS(6_000)), None);
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let wait = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)));
            wanted_wait(&headers.collect())
        };
        assert_eq!(wait(&[("retry-after", "7")]), Some(MS(7_000)));
        assert_eq!(wait(&[("retry-after", "7"), ("retry-after-ms", "20")]), Some(MS(20)));
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(wait(&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT"), date]), Some(MS(3_000)));
        assert_eq!(wait(&[("retry-after", "Sun, 06 Nov 1994 08:49:30 GMT"), date]), Some(MS(0)));
        assert_eq!(wait(&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")]), None);
        assert_eq!(wait(&[("retry-after", "soon"), date]), None);
        assert_eq!(wait(&[]), None);
    }
}
