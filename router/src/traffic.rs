//! What this router answered: how many requests of each kind, with which status, how long they took.
//!
//! The problem: figures by endpoint are only worth keeping where nobody outside can make up endpoints. **Rules:**
//! - An endpoint is the template of a route (`/collections/{collection_name}/points`) or the name of a gRPC method that is
//!   served; all else is [`OTHER`]. A collection is named only if there is one of that name.
//! - So the number of entries is bounded by routes × statuses × collections; those of a dropped collection go with it
//!   ([`Traffic::keep`]).
//! - The time of an answer is that until its head is there. A stream goes on after that, and may still break off.
//!
//! It deliberately does not sample, average over windows, or survive a restart: what reads it does all that.
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nearring_proto::clock::Clock;

/// Stands for every path and method that is not served.
pub const OTHER: &str = "other";

/// Upper bounds of the histogram's buckets, in seconds, ascending. What takes longer is only counted.
pub const BUCKETS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// Where a request came in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Door {
    /// HTTP.
    Rest,
    /// gRPC.
    Grpc,
}

/// What was asked, and how it ended.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    /// Where.
    pub door: Door,
    /// HTTP's verb; "" over gRPC.
    pub method: &'static str,
    /// The template of the route, or `/package.Service/Method`.
    pub path: String,
    /// HTTP's status, or gRPC's code.
    pub status: u16,
}

impl Endpoint {
    /// Whether the request was refused, or failed.
    pub fn failed(&self) -> bool {
        match self.door {
            Door::Rest => self.status >= 400,
            Door::Grpc => self.status != 0,
        }
    }
}

/// How long the answers of one kind took. Durations in microseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Durations {
    /// Answers.
    pub count: u64,
    /// Their time together.
    pub total_us: u64,
    /// The quickest.
    pub min_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// When the last was given, in milliseconds since 1970, UTC.
    pub last_ms: u64,
    /// How many fell into each of [`BUCKETS`] and not into the one before it.
    pub buckets: [u64; BUCKETS.len()],
}

impl Durations {
    fn first(took_us: u64, now_ms: u64) -> Self {
        let none = Self { count: 0, total_us: 0, min_us: took_us, max_us: 0, last_ms: 0, buckets: [0; BUCKETS.len()] };
        none.and(took_us, now_ms)
    }

    fn and(mut self, took_us: u64, now_ms: u64) -> Self {
        self.count += 1;
        self.total_us = self.total_us.saturating_add(took_us);
        self.min_us = self.min_us.min(took_us);
        self.max_us = self.max_us.max(took_us);
        self.last_ms = now_ms;
        let seconds = Duration::from_micros(took_us).as_secs_f64();
        if let Some((_, bucket)) = BUCKETS.iter().zip(&mut self.buckets).find(|(most, _)| seconds <= **most) {
            *bucket += 1;
        }
        self
    }
}

/// Answers by kind.
pub type Counted = BTreeMap<Endpoint, Durations>;

/// What is counted, at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Every answer.
    pub all: Counted,
    /// Those of requests that named a collection, by its name.
    pub of_collection: BTreeMap<String, Counted>,
}

/// Counts answers; shared by all doors of a router.
pub struct Traffic {
    seen: Mutex<Seen>,
    clock: Clock,
    started_ms: u64,
}

impl Traffic {
    /// Nothing yet; `clock` says when it began, and when each answer was given.
    pub fn new(clock: Clock) -> Self {
        Self { seen: Mutex::default(), started_ms: clock.now_ms(), clock }
    }

    /// When it began, in milliseconds since 1970, UTC.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// A plain lock: what it guards is whole after any panic, and it is never held across an await.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer. `collection` is the name of one that exists.
    pub fn answered(&self, endpoint: Endpoint, collection: Option<String>, took: Duration) {
        let (took_us, now_ms) = (u64::try_from(took.as_micros()).unwrap_or(u64::MAX), self.clock.now_ms());
        let mut seen = self.lock();
        if let Some(collection) = collection {
            count(seen.of_collection.entry(collection).or_default(), endpoint.clone(), took_us, now_ms);
        }
        count(&mut seen.all, endpoint, took_us, now_ms);
    }

    /// Forgets collections that are no more; what their requests add to all answers stays.
    pub fn keep(&self, exists: impl Fn(&str) -> bool) {
        self.lock().of_collection.retain(|name, _| exists(name));
    }

    /// All of it.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }
}

fn count(counted: &mut Counted, endpoint: Endpoint, took_us: u64, now_ms: u64) {
    let before = counted.remove(&endpoint);
    let now = before.map_or_else(|| Durations::first(took_us, now_ms), |before| before.and(took_us, now_ms));
    counted.insert(endpoint, now);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::Arc;

    use super::*;

    fn get(status: u16) -> Endpoint {
        Endpoint { door: Door::Rest, method: "GET", path: "/collections/{collection_name}".into(), status }
    }

    #[test]
    fn answers_are_counted_by_endpoint_status_and_collection() {
        let traffic = Traffic::new(Clock::with(Arc::new(|| 77)));
        for (status, collection, ms) in [(200, Some("a"), 1), (200, Some("b"), 3), (200, None, 40_000), (404, None, 0)]
        {
            traffic.answered(get(status), collection.map(str::to_owned), Duration::from_millis(ms));
        }
        let seen = traffic.seen();
        assert_eq!(seen.all.len(), 2);
        let ok = &seen.all[&get(200)];
        assert_eq!((ok.count, ok.min_us, ok.max_us, ok.last_ms), (3, 1000, 40_000_000, 77));
        assert_eq!((ok.buckets[0], ok.buckets[2], ok.buckets.iter().sum::<u64>()), (1, 1, 2), "the slow one has none");
        assert!(get(404).failed() && !get(200).failed());
        assert_eq!(seen.of_collection["b"][&get(200)].count, 1);
        traffic.keep(|name| name == "a");
        assert_eq!(traffic.seen().of_collection.into_keys().collect::<Vec<_>>(), ["a"]);
    }
}
