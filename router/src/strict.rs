//! Strict mode: what a collection allows a request to ask, so that none of its users can slow it down for the others.
//!
//! The problem: whoever runs a collection for many sets limits, and a request over a limit is to be refused before it costs
//! anything. **Rules:**
//! - [`Limits`] are what was set, [`Facts`] what a request asks; [`Limits::verdict`] compares the two and knows nothing else.
//!   Doors gather facts, and only for collections whose limits are in force.
//! - The names of limits, the order in which they are looked at, and the first words of a refusal are Qdrant's, whose clients
//!   show them.
//! - Reads and writes of a minute are counted by a [`Bucket`] each, in tokens: a vector compared, a condition, an id, a point.
//!   Buckets are a router's own: with several routers each allows the whole rate.
//!
//! It deliberately does not know payload bytes or the memory of nodes: `max_collection_payload_size_bytes` and
//! `max_resident_memory_percent` are kept and have no effect.
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use crate::failure::{Error, Kind};

pub mod index;
mod kept;

pub use index::{Ability, Declared};
pub use kept::{Rules, Sizes, Strict};

/// What a collection allows. Absent limits do not limit; none does unless `enabled`.
#[derive(Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
#[serde(default)]
pub struct Limits {
    /// Whether the others are in force.
    pub enabled: Option<bool>,
    /// The most hits, or points of a page.
    pub max_query_limit: Option<NonZeroU64>,
    /// The longest `timeout`, in seconds.
    pub max_timeout: Option<NonZeroU64>,
    /// Whether reads may filter by fields without an index.
    pub unindexed_filtering_retrieve: Option<bool>,
    /// Whether writes may.
    pub unindexed_filtering_update: Option<bool>,
    /// The greatest `hnsw_ef` of a search.
    pub search_max_hnsw_ef: Option<u64>,
    /// Whether searches may be `exact`.
    pub search_allow_exact: Option<bool>,
    /// The greatest `quantization.oversampling` of a search.
    pub search_max_oversampling: Option<f64>,
    /// The most points of one write.
    pub upsert_max_batchsize: Option<u64>,
    /// The most searches of one request.
    pub search_max_batchsize: Option<u64>,
    /// Bytes of vectors, of one copy, from which on none is added.
    pub max_collection_vector_size_bytes: Option<u64>,
    /// Kept only.
    pub max_collection_payload_size_bytes: Option<u64>,
    /// Points from which on none is added.
    pub max_points_count: Option<NonZeroU64>,
    /// Tokens of reads a minute.
    pub read_rate_limit: Option<NonZeroU64>,
    /// Tokens of writes a minute.
    pub write_rate_limit: Option<NonZeroU64>,
    /// The most conditions of a filter, however deep.
    pub filter_max_conditions: Option<u64>,
    /// The most values or ids of a condition.
    pub condition_max_size: Option<u64>,
    /// Of multi-vectors, by name.
    pub multivector_config: Option<BTreeMap<String, MultivectorLimits>>,
    /// Of sparse vectors, by name.
    pub sparse_config: Option<BTreeMap<String, SparseLimits>>,
    /// Payload indexes from which on none is created.
    pub max_payload_index_count: Option<u64>,
    /// Kept only.
    pub max_resident_memory_percent: Option<u8>,
}

/// Limits of one multi-vector.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub struct MultivectorLimits {
    /// The most rows.
    pub max_vectors: Option<NonZeroU64>,
}

/// Limits of one sparse vector.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub struct SparseLimits {
    /// The most indices.
    pub max_length: Option<NonZeroU64>,
}

/// Whether a request reads or writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Access {
    /// It changes nothing.
    #[default]
    Read,
    /// It may.
    Write,
}

/// What a request asks.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Facts {
    /// Reads or writes.
    pub access: Access,
    /// Seconds, where it says.
    pub timeout: Option<u64>,
    /// Searches that came together, where they could.
    pub batch: Option<u64>,
    /// The searches.
    pub searches: Vec<Search>,
    /// What points are chosen by, beside searches.
    pub filter: Option<Filter>,
    /// Hits or points, of what is no search.
    pub limit: Option<u64>,
    /// What it writes.
    pub written: Option<Written>,
    /// What it costs beside searches and filter, in tokens.
    pub cost: u64,
}

/// One search, with those that it builds on.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Search {
    /// Hits.
    pub limit: u64,
    /// Which points.
    pub filter: Option<Filter>,
    /// Compares every vector.
    pub exact: bool,
    /// The breadth of the walk.
    pub hnsw_ef: Option<u64>,
    /// How many more candidates quantized vectors bring.
    pub oversampling: Option<f64>,
    /// The field that hits are grouped by.
    pub group_by: Option<String>,
    /// Vectors that others are compared with, and points that are looked up for them, in tokens.
    pub cost: u64,
    /// Searches whose hits this one ranks.
    pub prefetches: Vec<Search>,
}

/// What a filter asks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Conditions, however deep.
    pub conditions: u64,
    /// Values or ids of the largest.
    pub largest: u64,
    /// Fields, as they were named, each with the abilities one of which its index must have.
    pub fields: Vec<(String, Vec<Ability>)>,
}

/// Points that are written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// How many.
    pub points: u64,
    /// Whether they replace points, rather than vectors of points.
    pub whole: bool,
    /// The most rows of each multi-vector.
    pub rows: BTreeMap<String, u64>,
    /// The most indices of each sparse vector.
    pub indices: BTreeMap<String, u64>,
}

/// A refusal, and what helps.
fn refused(reason: String, help: &str) -> Error {
    Error::new(Kind::Invalid, format!("{reason}. Help: {help}"))
}

fn within<T: PartialOrd + std::fmt::Display>(value: Option<T>, most: Option<T>, name: &str) -> Result<(), Error> {
    match (value, most) {
        (Some(value), Some(most)) if value > most => Err(refused(
            format!("Limit exceeded {value} > {most} for \"{name}\""),
            &format!("Reduce the \"{name}\" parameter to or below {most}."),
        )),
        _ => Ok(()),
    }
}

impl Limits {
    /// Whether the limits are in force.
    pub fn in_force(&self) -> bool {
        self.enabled == Some(true)
    }

    /// Whether a write needs to know how large the collection is.
    pub fn need_sizes(&self) -> bool {
        self.max_collection_vector_size_bytes.is_some() || self.max_points_count.is_some()
    }

    /// Whether the request keeps within the limits, rates and sizes aside.
    ///
    /// # Errors
    /// The first limit that it exceeds, by name.
    pub fn verdict(&self, facts: &Facts, declared: &Declared) -> Result<(), Error> {
        within(facts.batch, self.search_max_batchsize, "search batch size")?;
        if let Some(written) = &facts.written {
            self.writes(written)?;
        }
        for search in &facts.searches {
            self.searches(search, declared)?;
        }
        within(facts.limit, self.max_query_limit.map(NonZeroU64::get), "limit")?;
        let unindexed = match facts.access {
            Access::Read => self.unindexed_filtering_retrieve,
            Access::Write => self.unindexed_filtering_update,
        };
        if let Some(filter) = &facts.filter {
            self.filters(filter, unindexed, declared)?;
        }
        within(facts.timeout, self.max_timeout.map(NonZeroU64::get), "timeout")
    }

    fn searches(&self, search: &Search, declared: &Declared) -> Result<(), Error> {
        for prefetch in &search.prefetches {
            self.searches(prefetch, declared)?;
        }
        if let Some(field) = &search.group_by
            && self.unindexed_filtering_retrieve == Some(false)
        {
            let why = match declared.kind(field) {
                None => format!("Index required but not found for \"{field}\""),
                Some(kind) if !declared.matches(field) => format!("Index of type \"{kind}\" found for \"{field}\""),
                Some(_) => String::new(),
            };
            if !why.is_empty() {
                return Err(refused(why, "Create an index supporting `match` for this key."));
            }
        }
        within(Some(search.limit), self.max_query_limit.map(NonZeroU64::get), "limit")?;
        if let Some(filter) = &search.filter {
            self.filters(filter, self.unindexed_filtering_retrieve, declared)?;
        }
        within(search.oversampling, self.search_max_oversampling, "oversampling")?;
        within(search.hnsw_ef, self.search_max_hnsw_ef, "hnsw_ef")?;
        if search.exact && self.search_allow_exact == Some(false) {
            return Err(refused("Exact search disabled!".into(), "Set exact=false."));
        }
        Ok(())
    }

    fn filters(&self, filter: &Filter, unindexed: Option<bool>, declared: &Declared) -> Result<(), Error> {
        let missing =
            || filter.fields.iter().find(|(field, wanted)| !wanted.is_empty() && !declared.serves(field, wanted));
        if unindexed == Some(false)
            && let Some((field, wanted)) = missing()
        {
            let kinds: std::collections::BTreeSet<&str> = wanted.iter().map(|ability| ability.kind()).collect();
            let kinds: Vec<&str> = kinds.into_iter().collect();
            let kinds = kinds.join(", ");
            return Err(refused(
                format!("Index required but not found for \"{field}\" of one of the following types: [{kinds}]"),
                "Create an index for this key or use a different filter.",
            ));
        }
        let Filter { conditions, largest, fields: _ } = filter;
        if let Some(most) = self.filter_max_conditions.filter(|most| conditions > most) {
            let reason = format!("Filter condition limit reached ({conditions} > {most})");
            return Err(refused(reason, "Reduce the amount of conditions of your filter."));
        }
        if let Some(most) = self.condition_max_size.filter(|most| largest > most) {
            let reason = format!("Condition size limit reached ({largest} > {most})");
            return Err(refused(reason, "Reduce the size of your condition."));
        }
        Ok(())
    }

    fn writes(&self, written: &Written) -> Result<(), Error> {
        let what = if written.whole { "upsert limit" } else { "update limit" };
        within(Some(written.points), self.upsert_max_batchsize, what)?;
        for (name, limits) in self.multivector_config.iter().flatten() {
            if let (Some(most), Some(rows)) = (limits.max_vectors, written.rows.get(name))
                && *rows > most.get()
            {
                let reason = format!("Multivector '{name}' has a limit of {most} vectors, but {rows} were provided!");
                return Err(Error::new(Kind::Invalid, reason));
            }
        }
        for (name, limits) in self.sparse_config.iter().flatten() {
            if let (Some(most), Some(indices)) = (limits.max_length, written.indices.get(name))
                && *indices > most.get()
            {
                let reason =
                    format!("Sparse vector '{name}' has a limit of {most} indices, but {indices} were provided!");
                return Err(Error::new(Kind::Invalid, reason));
            }
        }
        Ok(())
    }

    /// Whether a collection of this size may still grow.
    ///
    /// # Errors
    /// The limit that it has reached.
    pub fn may_grow(&self, sizes: Sizes) -> Result<(), Error> {
        if let Some(most) = self.max_collection_vector_size_bytes.filter(|most| sizes.vector_bytes >= *most) {
            let mib = most as f64 / (1024.0 * 1024.0);
            return Err(Error::new(Kind::Invalid, format!("Max vector storage size limit of {mib}MB reached!")));
        }
        if let Some(most) = self.max_points_count.filter(|most| sizes.points >= most.get()) {
            return Err(Error::new(Kind::Invalid, format!("Max points count limit of {most} reached!")));
        }
        Ok(())
    }

    /// Whether one more payload index may be created beside `there`.
    ///
    /// # Errors
    /// Where there are as many as there may be.
    pub fn may_index(&self, there: usize) -> Result<(), Error> {
        match self.max_payload_index_count {
            Some(most) if self.in_force() && there as u64 >= most => Err(refused(
                format!("Collection already has the maximum number of payload indices ({most})"),
                "Please delete an existing index before creating a new one.",
            )),
            _ => Ok(()),
        }
    }

    /// Tokens a minute.
    pub fn rate(&self, access: Access) -> Option<NonZeroU64> {
        match access {
            Access::Read => self.read_rate_limit,
            Access::Write => self.write_rate_limit,
        }
    }
}

impl Facts {
    /// What the request costs, in tokens.
    pub fn tokens(&self) -> u64 {
        let conditions = match self.access {
            Access::Read => self.filter.as_ref().map_or(0, |filter| filter.conditions),
            // A write costs the points that it changes.
            Access::Write => 0,
        };
        let searches: u64 = self.searches.iter().map(Search::tokens).sum();
        (self.cost + searches + conditions).max(1)
    }
}

impl Search {
    fn tokens(&self) -> u64 {
        let conditions = self.filter.as_ref().map_or(0, |filter| filter.conditions);
        self.cost + conditions + self.prefetches.iter().map(Self::tokens).sum::<u64>()
    }
}

/// Tokens that fill up over a minute, and are taken by requests.
#[derive(Clone, PartialEq, Debug)]
pub struct Bucket {
    /// Its size, which is also what it is filled with in a minute.
    most: NonZeroU64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(most: NonZeroU64, now: Instant) -> Self {
        Self { most, tokens: most.get() as f64, at: now }
    }

    /// Takes tokens, or none.
    ///
    /// # Errors
    /// [`Kind::Overloaded`], with the seconds after which there are enough; 0 where there never are.
    pub fn take(&mut self, tokens: u64, access: Access, now: Instant) -> Result<(), Error> {
        let what = match access {
            Access::Read => "Read",
            Access::Write => "Write",
        };
        let exceeded = format!("Rate limiting exceeded: {what} rate limit exceeded");
        if tokens > self.most.get() {
            let why = "request larger than rate limiter capacity, please try to split your request";
            return Err(Error::new(Kind::Overloaded, format!("{exceeded}, {why}")).retry_after(0));
        }
        let most = self.most.get() as f64;
        let a_second = most / 60.0;
        self.tokens = (self.tokens + a_second * now.saturating_duration_since(self.at).as_secs_f64()).min(most);
        self.at = now;
        if self.tokens >= tokens as f64 {
            self.tokens -= tokens as f64;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((tokens as f64 - self.tokens) / a_second).as_secs_f64().ceil() as u32;
        let why = format!("Operation requires {tokens} tokens but only {:.1} were available", self.tokens);
        let message = format!("{exceeded}: {why}. Retry after {wait}s");
        Err(Error::new(Kind::Overloaded, message).retry_after(wait.max(1)))
    }
}

#[cfg(test)]
mod tests;
