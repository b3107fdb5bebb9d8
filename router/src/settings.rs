//! What a router is started with. Tunable values only; replaceable parts (network, embedder, generator, seed) are handed
//! to the builder instead.
use std::time::Duration;

use nearring_proto::collection::InvalidInput;
use nearring_proto::wire::is_host_port;

use crate::model_server::ModelServerSettings;
use crate::snapshot::SnapshotSettings;

/// Everything a router needs to know before it can start. [`Settings::check`] before use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `host:port` of the nodes to start from. One that answers is enough: the others are learned from its table.
    pub nodes: Vec<String>,
    /// How long requests may take.
    pub deadlines: Deadlines,
    /// Bounds on memory.
    pub limits: Limits,
    /// Writes the answers; without it the built-in generator quotes the passages.
    pub generator: Option<ModelServerSettings>,
    /// Embeds where it is named, and first where none is; the built-in embedder stays beside it.
    pub embedder: Option<EmbedderSettings>,
    /// Where snapshots lie; without it there are none.
    pub snapshots: Option<SnapshotSettings>,
}

/// A model server that embeds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmbedderSettings {
    /// Where it is.
    pub server: ModelServerSettings,
    /// Components of its model's vectors.
    pub dimension: usize,
}

/// How long a request may take, where its caller does not say and at the most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadlines {
    /// A read without a deadline of its own.
    pub read: Duration,
    /// A write without a deadline of its own.
    pub write: Duration,
    /// The longest read.
    pub read_max: Duration,
    /// A change to collections; a new collection must serve by then.
    pub change: Duration,
    /// The longest write; imports of documents and large batches need more than reads.
    pub write_max: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            read: Duration::from_secs(5),
            write: Duration::from_secs(10),
            read_max: Duration::from_secs(60),
            change: Duration::from_secs(30),
            write_max: Duration::from_secs(300),
        }
    }
}

/// Bounds that protect the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Points, ids or texts in one request.
    pub batch_points: usize,
    /// Bytes of one request's points or texts.
    pub batch_bytes: usize,
    /// Queries in one request.
    pub batch_queries: usize,
    /// The largest message taken or sent, in bytes.
    pub message_bytes: usize,
    /// Requests under way at once; one more gets `RESOURCE_EXHAUSTED`.
    pub in_flight: usize,
    /// Texts are embedded by so many threads at once.
    pub embedding: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_points: 10_000,
            batch_bytes: 32 << 20,
            batch_queries: 256,
            message_bytes: 64 << 20,
            in_flight: 1024,
            embedding: 2,
        }
    }
}

impl Settings {
    /// Settings with every default filled in.
    pub fn new(nodes: Vec<String>) -> Self {
        Self {
            nodes,
            deadlines: Deadlines::default(),
            limits: Limits::default(),
            generator: None,
            embedder: None,
            snapshots: None,
        }
    }

    /// Checks what can be checked without touching the network.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the setting.
    pub fn check(&self) -> Result<(), InvalidInput> {
        if self.nodes.is_empty() {
            return Err(InvalidInput::new("nodes", "is empty; give at least one node's host:port"));
        }
        if let Some(address) = self.nodes.iter().find(|address| !is_host_port(address)) {
            return Err(InvalidInput::new("nodes", format!("{address:?} is not host:port")));
        }
        let Deadlines { read, write, read_max, write_max, change } = self.deadlines;
        for (field, default, most) in [
            ("deadlines.read", read, read_max),
            ("deadlines.write", write, write_max),
            ("deadlines.change", change, change),
        ] {
            if default.is_zero() || default > most {
                return Err(InvalidInput::new(field, format!("must be above zero and at most {most:?}")));
            }
        }
        let Limits { batch_points, batch_bytes, batch_queries, message_bytes, in_flight, embedding } = self.limits;
        for (field, value) in [
            ("limits.batch_points", batch_points),
            ("limits.batch_bytes", batch_bytes),
            ("limits.batch_queries", batch_queries),
            ("limits.in_flight", in_flight),
            ("limits.embedding", embedding),
        ] {
            if value == 0 {
                return Err(InvalidInput::new(field, "must be at least 1"));
            }
        }
        if message_bytes < batch_bytes {
            return Err(InvalidInput::new("limits.message_bytes", "must be at least limits.batch_bytes"));
        }
        if self.snapshots.as_ref().is_some_and(|snapshots| snapshots.upload_bytes_max == 0) {
            return Err(InvalidInput::new("snapshots.upload_bytes_max", "must be at least 1"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_defaults_hold_and_each_mistake_names_its_setting() {
        let settings = Settings::new(vec!["10.0.0.1:7000".into()]);
        assert_eq!(settings.check(), Ok(()));
        type Break = fn(&mut Settings);
        let cases: [(&str, Break); 6] = [
            ("nodes", |s| s.nodes.clear()),
            ("nodes", |s| s.nodes.push("10.0.0.2".into())),
            ("deadlines.read", |s| s.deadlines.read = Duration::from_secs(61)),
            ("deadlines.write", |s| s.deadlines.write = Duration::ZERO),
            ("limits.in_flight", |s| s.limits.in_flight = 0),
            ("limits.message_bytes", |s| s.limits.message_bytes = 1),
        ];
        for (field, spoil) in cases {
            let mut settings = settings.clone();
            spoil(&mut settings);
            assert_eq!(settings.check().unwrap_err().field, field);
        }
    }
}
