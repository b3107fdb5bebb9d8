//! What clients asked and were told, in the order it happened.
//!
//! Every write carries a value of its own, so a read names the write it saw. An operation that was never answered, or whose
//! answer leaves open whether it took effect, is [`Outcome::Unknown`] and may take effect at any time after it was asked,
//! or never. The order of events is the order in which the simulation ran them: one thread runs all hosts, so nothing
//! can be learned of an event before it has run.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is written; unique in a history.
pub type Value = u64;
/// A point's number.
pub type Key = u64;

/// What a client asks of one point.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Write, whether it exists or not.
    Put(Value),
    /// Write if it does not exist.
    Insert(Value),
    /// Remove, whether it exists or not.
    Delete,
    /// Read, linearizably.
    Get,
}

/// What the client was told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// A write took effect.
    Done,
    /// An insert did not take effect: the point existed.
    Exists,
    /// A read saw this; `None`: no such point.
    Read(Option<Value>),
    /// It certainly had no effect.
    Failed,
    /// Anything may be true.
    Unknown,
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Which client.
    pub client: u64,
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
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, key, op, asked, outcome, .. } = self;
        write!(f, "[{asked:>5}, ")?;
        match self.answered {
            Some(answered) => write!(f, "{answered:>5}]")?,
            None => write!(f, "    -]")?,
        }
        write!(f, " client {client} point {key}: {op:?} → {outcome:?}")
    }
}

/// A read of all points at once, a search for everything: what it saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    /// Which client.
    pub client: u64,
    /// Position of the question among all events.
    pub asked: u64,
    /// Position of the answer.
    pub answered: u64,
    /// Whether it had to see everything acknowledged before it was asked, or only what this client was told.
    pub linearizable: bool,
    /// Whether every shard was searched; otherwise absence means nothing.
    pub complete: bool,
    /// The points.
    pub found: BTreeMap<Key, Value>,
}

/// Where clients write down what they do. Clones are the same history.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Events>>);

#[derive(Default)]
struct Events {
    operations: Vec<Operation>,
    looks: Vec<Look>,
    complaints: Vec<String>,
    events: u64,
    values: Value,
    digest: blake3::Hasher,
}

/// Names an operation that was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an operation is answered with History::answer"]
pub struct Asked(usize);

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// A value that no other write has.
    pub fn fresh_value(&self) -> Value {
        let mut events = self.lock();
        events.values += 1;
        events.values
    }

    /// Notes a question, before it is sent.
    pub fn ask(&self, client: u64, key: Key, op: Op) -> Asked {
        let mut events = self.lock();
        let asked = events.next(format_args!("{client} asks {op:?} of {key}"));
        let outcome = Outcome::Unknown;
        events.operations.push(Operation { client, key, op, asked, answered: None, outcome });
        Asked(events.operations.len() - 1)
    }

    /// Notes the answer.
    pub fn answer(&self, asked: Asked, outcome: Outcome) {
        let mut events = self.lock();
        let answered = events.next(format_args!("{} gets {outcome:?}", asked.0));
        if let Some(operation) = events.operations.get_mut(asked.0) {
            operation.answered = Some(answered);
            operation.outcome = outcome;
        }
    }

    /// Notes that a look begins; hand its position to [`History::saw`].
    pub fn look(&self, client: u64) -> u64 {
        self.lock().next(format_args!("{client} looks"))
    }

    /// Notes what a look saw.
    pub fn saw(&self, client: u64, asked: u64, linearizable: bool, complete: bool, found: BTreeMap<Key, Value>) {
        let mut events = self.lock();
        let answered = events.next(format_args!("{client} saw {found:?}, linearizable {linearizable}, {complete}"));
        events.looks.push(Look { client, asked, answered, linearizable, complete, found });
    }

    /// Notes an answer that is wrong in itself.
    pub fn complain(&self, what: fmt::Arguments<'_>) {
        let mut events = self.lock();
        let at = events.next(format_args!("wrong: {what}"));
        events.complaints.push(format!("[{at:>5}] {what}"));
    }

    /// Notes anything else that happened and must happen again with the same seed: a crash, a partition, a search's hits.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        self.lock().next(what);
    }

    /// Everything so far, in the order asked.
    pub fn operations(&self) -> Vec<Operation> {
        self.lock().operations.clone()
    }

    /// Every finished look, in the order answered.
    pub fn looks(&self) -> Vec<Look> {
        self.lock().looks.clone()
    }

    /// Every complaint.
    pub fn complaints(&self) -> Vec<String> {
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
