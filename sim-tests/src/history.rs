//! What clients asked and were told, in the order it happened.
//!
//! The order of events is the order in which the simulation ran them: one thread runs all hosts, so nothing can be learned
//! of an event before it has run. An operation that was never answered, or whose answer leaves open whether it took
//! effect, is [`Outcome::Unknown`] and may take effect at any time after it was asked, or never.
//!
//! [`Operation`] is one client's request as far as one point is concerned; [`Look`] is an answer that shows points, with the
//! log position of every shard that it was read at. A linearizable look is also noted as an operation on every point that
//! it covers.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nearring_proto::ids::ShardId;
use nearring_proto::position::ReadLevel;

use crate::model::{Group, Key, Op, Outcome, Seen};

/// One operation on one point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Which client.
    pub client: u64,
    /// Which request; operations of one request were sent together.
    pub request: u64,
    /// Which point.
    pub key: Key,
    /// What it asked.
    pub op: Op,
    /// Position of the question among all events.
    pub asked: u64,
    /// Position of the answer; `None` while there is none.
    pub answered: Option<u64>,
    /// The answer; [`Outcome::Unknown`] while there is none.
    pub outcome: Outcome,
    /// The entry of the log of the point's shard by which a write took effect, as far as the answer says.
    pub entry: Option<u64>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, request, key, op, asked, outcome, entry, .. } = self;
        write!(f, "[{asked:>5}, ")?;
        match self.answered {
            Some(answered) => write!(f, "{answered:>5}]")?,
            None => write!(f, "    -]")?,
        }
        write!(f, " client {client} request {request} point {key}: {op:?} → {outcome:?}")?;
        entry.map_or(Ok(()), |entry| write!(f, " at {entry}"))
    }
}

/// Which kind of question a look answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Points by id.
    Get,
    /// All pages of a scroll. Each page is read at positions of its own.
    Scroll,
    /// A search for more hits than there are points, by the vector of this value, and whether exactly.
    Search(u64, bool),
    /// Only how many there are.
    Count,
    /// A search for so many hits, by the vector of this value.
    Nearest(u64, u32),
    /// A search for more hits than there are points, by the sparse vector of this value; always exact.
    Words(u64),
    /// The same through graphs that are walked as narrowly as can be: what is found need not be the nearest.
    Walked(u64, u32),
}

/// Where a shard was read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct At {
    /// Applied log index.
    pub index: u64,
    /// Node that answered; 0 where the answer does not say.
    pub node: u64,
    /// The segments searched, as the answer names them.
    pub segments: Vec<Vec<u8>>,
}

/// A point as a look showed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// What it was.
    pub seen: Seen,
    /// The index of the log entry that wrote it, from its version.
    pub version: u64,
}

/// One answer that shows points, or counts them.
#[derive(Clone, PartialEq, Debug)]
pub struct Look {
    /// Which client.
    pub client: u64,
    /// What it asked for.
    pub kind: Kind,
    /// At which level.
    pub level: ReadLevel,
    /// Through which filter.
    pub group: Option<Group>,
    /// Which points; `None` = all.
    pub keys: Option<Vec<Key>>,
    /// Position of the question among all events.
    pub asked: u64,
    /// Position of the answer.
    pub answered: u64,
    /// Shards that answered, and where they were read. Of those that are missing here nothing was learnt. Pages of a
    /// scroll: the lowest position of each.
    pub shards: BTreeMap<ShardId, At>,
    /// As `shards`, with the highest position of each; differs only for scrolls of several pages.
    pub upto: BTreeMap<ShardId, u64>,
    /// The points.
    pub found: BTreeMap<Key, Found>,
    /// Their number.
    pub count: u64,
    /// The hits in order, with the bits of their scores: searches only.
    pub hits: Vec<(Key, u32)>,
    /// Of a search that brought as many hits as it asked for, the last one's distance: only what is nearer had to be found.
    pub farthest: Option<f32>,
}

/// Something wrong, and what shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which property does not hold.
    pub property: &'static str,
    /// What is wrong.
    pub what: String,
    /// The operations that show it, in the order asked.
    pub operations: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.what)?;
        self.operations.iter().try_for_each(|operation| write!(f, "\n  {operation}"))
    }
}

/// Where clients write down what they do. Clones are the same history.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Events>>);

#[derive(Default)]
struct Events {
    operations: Vec<Operation>,
    looks: Vec<Look>,
    complaints: Vec<Violation>,
    requests: u64,
    events: u64,
    digest: blake3::Hasher,
}

/// Names a request that was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a request is answered with History::answer"]
pub struct Asked {
    first: usize,
    count: usize,
    /// Position of the question among all events.
    pub at: u64,
}

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a request for one operation on each of some points, before it is sent.
    pub fn ask(&self, client: u64, operations: &[(Key, Op)]) -> Asked {
        let mut events = self.lock();
        let asked = events.next(format_args!("{client} asks {operations:?}"));
        events.requests += 1;
        let request = events.requests;
        let first = events.operations.len();
        for (key, op) in operations {
            events.operations.push(Operation {
                client,
                request,
                key: *key,
                op: *op,
                asked,
                answered: None,
                outcome: Outcome::Unknown,
                entry: None,
            });
        }
        Asked { first, count: operations.len(), at: asked }
    }

    /// Notes the answer: what became of each operation, and the log entry by which.
    pub fn answer(&self, asked: Asked, outcomes: &[(Outcome, Option<u64>)]) {
        let mut events = self.lock();
        let answered = events.next(format_args!("{} gets {outcomes:?}", asked.first));
        for (at, (outcome, entry)) in (asked.first..asked.first + asked.count).zip(outcomes) {
            if let Some(operation) = events.operations.get_mut(at) {
                operation.answered = Some(answered);
                operation.outcome = *outcome;
                operation.entry = *entry;
            }
        }
    }

    /// A group whose points are being deleted at this moment by a request that is not answered yet; the latest such.
    pub fn deleting(&self) -> Option<Group> {
        let events = self.lock();
        let open = events.operations.iter().rev().filter(|operation| operation.answered.is_none());
        open.into_iter().find_map(|operation| match operation.op {
            Op::DeleteGroup(group) => Some(group),
            _ => None,
        })
    }

    /// Notes that a look begins: its position among all events.
    pub fn look(&self, client: u64, what: fmt::Arguments<'_>) -> u64 {
        self.lock().next(format_args!("{client} looks: {what}"))
    }

    /// Notes what a look saw; its `answered` is set here. A linearizable one also counts as a read of
    /// every point of `reads`.
    pub fn saw(&self, mut look: Look, reads: &[Key]) {
        let mut events = self.lock();
        look.answered = events.next(format_args!("{} saw {look:?}", look.client));
        if look.level == ReadLevel::Linearizable {
            events.requests += 1;
            for key in reads {
                let operation = Operation {
                    client: look.client,
                    request: events.requests,
                    key: *key,
                    op: Op::Get(look.group),
                    asked: look.asked,
                    answered: Some(look.answered),
                    outcome: Outcome::Read(look.found.get(key).map(|found| found.seen)),
                    entry: None,
                };
                events.operations.push(operation);
            }
        }
        events.looks.push(look);
    }

    /// Notes an answer that is wrong in itself.
    pub fn complain(&self, property: &'static str, what: fmt::Arguments<'_>) {
        let mut events = self.lock();
        let at = events.next(format_args!("wrong, {property}: {what}"));
        events.complaints.push(Violation { property, what: format!("[{at:>5}] {what}"), operations: Vec::new() });
    }

    /// Notes anything else that happened and must happen again with the same seed: a crash, a partition, an error.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        self.lock().next(what);
    }

    /// Everything so far, in the order asked.
    pub fn operations(&self) -> Vec<Operation> {
        let mut operations = self.lock().operations.clone();
        operations.sort_by_key(|operation| operation.asked);
        operations
    }

    /// Every finished look, in the order answered.
    pub fn looks(&self) -> Vec<Look> {
        self.lock().looks.clone()
    }

    /// Every complaint.
    pub fn complaints(&self) -> Vec<Violation> {
        self.lock().complaints.clone()
    }

    /// A digest of every event so far, in order.
    pub fn digest(&self) -> blake3::Hash {
        self.lock().digest.finalize()
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    fn next(&mut self, what: fmt::Arguments<'_>) -> u64 {
        self.events += 1;
        let line = format!("{} {:?} {what}\n", self.events, turmoil::sim_elapsed());
        tracing::debug!(target: "nearring_sim", "{}", line.trim_end());
        self.digest.update(line.as_bytes());
        self.events
    }
}
