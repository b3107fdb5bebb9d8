//! What a router remembers of collections with strict mode: their rules, buckets, and sizes measured lately.
//!
//! A collection without strict mode costs a look-up. Rules are read anew when the table changes; buckets begin anew when the
//! rates do.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nearring_proto::ids::CollectionId;
use tokio::time::Instant;

use super::{Access, Bucket, Declared, Limits};
use crate::failure::Error;

/// A measured size is good for so long,
const FRESH: Duration = Duration::from_secs(1);
/// and for so many writes.
const WRITES: u32 = 16;
/// What a bucket takes to fill.
const MINUTE: Duration = Duration::from_secs(60);

/// Limits that are in force, and the indexes that there are.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rules {
    /// What is allowed.
    pub limits: Limits,
    /// What is indexed.
    pub declared: Declared,
}

/// How large a collection is, counting one copy of each point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// Points.
    pub points: u64,
    /// Bytes of their vectors.
    pub vector_bytes: u64,
}

/// All of it; shared by the doors of a router.
#[derive(Default)]
pub struct Strict(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Of the table.
    epoch: u64,
    /// Those looked at since; `None` without strict mode.
    rules: BTreeMap<CollectionId, Option<Arc<Rules>>>,
    buckets: BTreeMap<(CollectionId, bool), Bucket>,
    sizes: BTreeMap<CollectionId, (Instant, u32, Sizes)>,
}

impl Strict {
    /// A plain lock: what it guards is whole after any panic, and it is never held across an await.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules of a collection, which `read` finds in the table of this epoch; `None` where none is in force.
    pub fn rules(
        &self,
        collection: CollectionId,
        epoch: u64,
        now: Instant,
        read: impl FnOnce() -> Option<Rules>,
    ) -> Option<Arc<Rules>> {
        let mut known = self.lock();
        if known.epoch != epoch {
            known.epoch = epoch;
            known.rules.clear();
            // A bucket that nobody took from for a minute is full, as a new one is; its collection may be gone.
            known.buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < MINUTE);
            known.sizes.retain(|_, (at, ..)| now.saturating_duration_since(*at) < FRESH);
        }
        if let Some(rules) = known.rules.get(&collection) {
            return rules.clone();
        }
        let rules = read().filter(|rules| rules.limits.in_force()).map(Arc::new);
        if rules.is_none() {
            known.buckets.retain(|(of, _), _| *of != collection);
            known.sizes.remove(&collection);
        }
        known.rules.insert(collection, rules.clone());
        rules
    }

    /// Takes tokens of a minute's, where there is a rate.
    ///
    /// # Errors
    /// As [`Bucket::take`].
    pub fn take(
        &self,
        collection: CollectionId,
        limits: &Limits,
        access: Access,
        tokens: u64,
        now: Instant,
    ) -> Result<(), Error> {
        let mut known = self.lock();
        let key = (collection, access == Access::Write);
        let Some(most) = limits.rate(access) else {
            known.buckets.remove(&key);
            return Ok(());
        };
        let bucket = known.buckets.entry(key).or_insert_with(|| Bucket::new(most, now));
        if bucket.most != most {
            *bucket = Bucket::new(most, now);
        }
        bucket.take(tokens, access, now)
    }

    /// What was measured lately, for one more write.
    pub fn sizes(&self, collection: CollectionId, now: Instant) -> Option<Sizes> {
        let mut known = self.lock();
        let (at, writes, sizes) = known.sizes.get_mut(&collection)?;
        *writes += 1;
        (*writes < WRITES && now.saturating_duration_since(*at) < FRESH).then_some(*sizes)
    }

    /// Remembers what was measured.
    pub fn measured(&self, collection: CollectionId, sizes: Sizes, now: Instant) {
        self.lock().sizes.insert(collection, (now, 0, sizes));
    }
}
