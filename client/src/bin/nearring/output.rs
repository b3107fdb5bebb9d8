//! What goes to stdout, and how a failure is worded.
use std::fmt;
use std::io::Write;

use nearring_client::files::FileError;
use nearring_client::{Error, wire};
use nearring_proto::ids::{PointId, Version};
use serde_json::{Map, Value, json};

/// Why a command failed, in words for a person.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The same, said of something: `what: message`.
    pub(crate) fn of(what: impl fmt::Display, error: impl Into<Failure>) -> Self {
        Self(format!("{what}: {}", error.into().0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(format!("{error}\n  to do: {}", error.kind.advice()))
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Where results go.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Writes the JSON value as one line, or the text.
    pub(crate) fn write(self, value: &Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let line = if self.json { value.to_string() } else { text() };
        self.raw(&format!("{line}\n"))
    }

    /// Writes text as it is and shows it at once. A reader that has gone away is a failure, not a panic.
    pub(crate) fn raw(self, text: &str) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::of("stdout", error))
    }
}

/// An id as the wire carries it, for people and JSON.
pub(crate) fn id_of(id: Option<wire::PointId>) -> PointId {
    id.and_then(|id| PointId::try_from(id).ok()).unwrap_or_else(|| PointId::Text("?".to_owned()))
}

pub(crate) fn id_json(id: &PointId) -> Value {
    match id {
        PointId::Number(number) => json!(number),
        other => json!(other.to_string()),
    }
}

pub(crate) fn version_json(version: Option<wire::Version>) -> Value {
    version.map_or(Value::Null, |version| json!(Version::from(version).to_string()))
}

/// A payload as it came, or the bytes' fault as a string.
pub(crate) fn payload_json(bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        return json!({});
    }
    serde_json::from_slice(bytes).unwrap_or_else(|error| json!(format!("not JSON: {error}")))
}

pub(crate) fn vectors_json(vectors: &[wire::NamedVector]) -> Value {
    vectors.iter().map(|vector| (vector.name.clone(), vector_json(vector))).collect::<Map<_, _>>().into()
}

/// As `nearring import` reads it.
fn vector_json(vector: &wire::NamedVector) -> Value {
    if let Some(sparse) = &vector.sparse {
        return json!({ "indices": sparse.indices, "values": sparse.values });
    }
    match &vector.multi {
        Some(multi) => json!(multi.values.chunks((multi.dimension as usize).max(1)).collect::<Vec<_>>()),
        None => json!(vector.values),
    }
}

pub(crate) fn coverage_json(coverage: Option<&wire::Coverage>) -> Value {
    let shards = coverage.map(|coverage| coverage.shards.as_slice()).unwrap_or_default();
    shards
        .iter()
        .map(|shard| match wire::shard_coverage::State::try_from(shard.state) {
            Ok(wire::shard_coverage::State::Searched) => json!({
                "shard": shard.shard, "state": "searched", "node": shard.node, "index": shard.index,
                "segments": shard.segments.iter().map(|hash| hex(hash)).collect::<Vec<_>>(),
            }),
            Ok(wire::shard_coverage::State::Skipped) => json!({
                "shard": shard.shard, "state": "skipped", "reason": shard.reason, "estimated_loss": shard.estimated_loss,
            }),
            _ => json!({ "shard": shard.shard, "state": "failed", "reason": shard.reason }),
        })
        .collect()
}

/// The shards that did not answer, in words; `None` where all did.
pub(crate) fn coverage_gap(coverage: Option<&wire::Coverage>) -> Option<String> {
    let missing: Vec<String> = coverage?
        .shards
        .iter()
        .filter(|shard| shard.state != wire::shard_coverage::State::Searched as i32)
        .map(|shard| format!("shard {} ({})", shard.shard, shard.reason))
        .collect();
    (!missing.is_empty()).then(|| format!("not covered: {}", missing.join(", ")))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One line of text, at most `characters` of it.
pub(crate) fn short(text: &str, characters: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(characters) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

/// What a write did, and a failure if a shard did not take its part or a point was refused.
pub(crate) fn written(output: Output, reply: &wire::WriteReply, verb: &str) -> Result<(), Failure> {
    let kind = |outcome: &wire::PointOutcome| match wire::point_outcome::Kind::try_from(outcome.kind) {
        Ok(kind) => kind.as_str_name().to_ascii_lowercase(),
        Err(_) => "unknown".to_owned(),
    };
    let outcomes: Vec<Value> = reply
        .outcomes
        .iter()
        .map(|outcome| json!({ "position": outcome.position, "outcome": kind(outcome), "current": version_json(outcome.current) }))
        .collect();
    let errors: Vec<Value> = reply
        .errors
        .iter()
        .map(|error| json!({ "shard": error.shard, "message": error.message, "unknown_outcome": error.unknown_outcome, "positions": error.positions }))
        .collect();
    let value = json!({ "applied": reply.applied, "outcomes": outcomes, "errors": errors });
    output.write(&value, || {
        let mut text = format!("{verb} {} points", reply.applied);
        for outcome in &reply.outcomes {
            text.push_str(&format!("\n  item {}: {}", outcome.position, kind(outcome)));
        }
        text
    })?;
    match reply.errors.first() {
        None => Ok(()),
        Some(error) => {
            let outcome = if error.unknown_outcome { "; whether it happened is unknown" } else { "" };
            Err(Failure::new(format!("shard {} did not take its part: {}{outcome}", error.shard, error.message)))
        }
    }
}
