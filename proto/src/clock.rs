//! The one place that reads wall time, for every crate. Everything that waits uses `tokio::time`; wall time is only written
//! down (into log entries by leaders, into a session's beginning by clients), never compared between nodes.
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Reads wall time. A host with a skewed clock gets [`Clock::with`].
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The operating system's clock.
    #[allow(clippy::disallowed_methods, reason = "this is the place")]
    pub fn system() -> Self {
        Self::with(Arc::new(|| {
            // A clock before 1970 reads as 0: logged time never goes back, so it merely stands still.
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        }))
    }

    /// A clock that answers what `now_ms` does: milliseconds since 1970, UTC.
    pub fn with(now_ms: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        Self(now_ms)
    }

    /// Milliseconds since 1970, UTC. May jump, in both directions.
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}
