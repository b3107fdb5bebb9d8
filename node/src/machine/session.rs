//! Sessions: what makes a repeated request have one effect.
//!
//! A writer opens a session and numbers its requests. The shard keeps each reply until the writer says that it has seen
//! it (`settled_below`), and answers a repeated request from memory. Rules:
//! * Time is logged time. A session lives [`TTL_MS`] after its last request; then it is refused, never executed.
//! * A session that has expired stays refused until no copy of the message that opened it can open it again.
//! * Sessions, replies and their bytes are bounded. At a bound a request is refused before it has any effect.
//! * A deletion by filter takes several entries. While it has begun and not ended, its reply says since when and how many
//!   points it removed, and whoever repeats the request carries on from there; once it has ended, no part of it, however
//!   late, does anything.
//!
//! It does not tell requests of one number apart: a number reused for something else answers the first reply.
use std::collections::BTreeMap;
use std::sync::Arc;

use nearring_proto::ids::{RequestId, SessionId};

use super::command::{Refusal, Reply};
use super::record::{FORMAT, StateError, check_format, malformed};

/// How long a session lives after its last request, in milliseconds of logged time.
pub const TTL_MS: u64 = 3_600_000;
/// The most sessions of a shard.
pub const SESSIONS_MAX: usize = 4096;
/// The most unsettled replies of a session.
pub const REPLIES_MAX: usize = 1024;
/// A session that holds so many bytes of unsettled replies takes no further request.
pub const SESSION_BYTES_MAX: u64 = 1 << 20;
/// A shard that holds so many bytes of unsettled replies takes no further request with a number.
pub const BYTES_MAX: u64 = 32 << 20;

/// One session.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Session {
    opened_at_ms: u64,
    last_used_ms: u64,
    settled_below: u64,
    replies: BTreeMap<u64, Reply>,
    bytes: u64,
}

/// A shard's sessions. Cloning shares them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Sessions {
    open: BTreeMap<SessionId, Arc<Session>>,
    bytes: u64,
}

/// What is to be done with a request.
pub(super) enum Admission {
    /// Carry it out.
    Execute,
    /// It was carried out before, with this reply.
    Replay(Reply),
    /// Do nothing.
    Refuse(Refusal),
}

impl Sessions {
    /// Sessions kept, expired ones among them.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// A session's bytes; `None` where it is not known.
    pub fn encode(&self, session: &SessionId) -> Option<Vec<u8>> {
        self.open.get(session).map(|session| session.encode())
    }

    /// Every session, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.open.iter().map(|(id, session)| (id, session.as_ref()))
    }

    /// Puts a session back that was kept elsewhere.
    pub fn restore(&mut self, id: SessionId, session: Session) {
        self.bytes += session.bytes;
        if let Some(old) = self.open.insert(id, Arc::new(session)) {
            self.bytes -= old.bytes;
        }
    }

    /// What to do with a further part of what `request` began, and how much it has removed so far; changes nothing.
    pub(super) fn admit_part(&self, request: &RequestId, now_ms: u64) -> (Admission, u64) {
        match self.admit(request, now_ms) {
            Admission::Replay(Reply::Begun { removed, .. }) => (Admission::Execute, removed),
            Admission::Execute => {
                let reason = "has begun nothing that could be carried on".to_owned();
                (Admission::Refuse(Refusal::Invalid { field: "request".to_owned(), reason }), 0)
            }
            other => (other, 0),
        }
    }

    /// What to do with `request`; changes nothing.
    pub(super) fn admit(&self, request: &RequestId, now_ms: u64) -> Admission {
        let Some(session) = self.open.get(&request.session).filter(|session| !session.expired(now_ms)) else {
            return Admission::Refuse(Refusal::SessionExpired);
        };
        let floor = session.settled_below.max(request.settled_below);
        if request.seq < floor {
            return Admission::Refuse(Refusal::Settled { seq: request.seq });
        }
        if let Some(reply) = session.replies.get(&request.seq) {
            return Admission::Replay(reply.clone());
        }
        let settled: u64 = session.replies.range(..floor).map(|(_, reply)| size(reply)).sum();
        let unsettled = session.replies.range(floor..).count();
        if unsettled >= REPLIES_MAX || session.bytes - settled >= SESSION_BYTES_MAX {
            let reason = format!("leaves {unsettled} replies unsettled, at most {REPLIES_MAX} are kept; raise it");
            return Admission::Refuse(Refusal::Invalid { field: "request.settled_below".to_owned(), reason });
        }
        if self.bytes - settled >= BYTES_MAX {
            return Admission::Refuse(Refusal::TooManySessions);
        }
        Admission::Execute
    }

    /// Notes that a request came, and the reply to remember if it was carried out. Answers the sessions that changed.
    pub(super) fn note(&mut self, request: &RequestId, reply: Option<&Reply>, now_ms: u64) -> Vec<SessionId> {
        let Some(session) = self.open.get_mut(&request.session).filter(|session| !session.expired(now_ms)) else {
            return Vec::new();
        };
        let session = Arc::make_mut(session);
        let before = session.bytes;
        session.last_used_ms = now_ms;
        if request.settled_below > session.settled_below {
            session.settled_below = request.settled_below;
            session.replies = session.replies.split_off(&request.settled_below);
            session.bytes = session.replies.values().map(size).sum();
        }
        if let Some(reply) = reply {
            session.bytes += size(reply);
            if let Some(old) = session.replies.insert(request.seq, reply.clone()) {
                session.bytes -= size(&old);
            }
        }
        self.bytes = self.bytes - before + session.bytes;
        let mut changed = vec![request.session];
        if self.bytes >= BYTES_MAX {
            changed.extend(self.evict(now_ms)); // so that a later request finds room
        }
        changed
    }

    /// Opens a session, or finds it open. Answers the sessions that changed.
    pub(super) fn open(&mut self, id: SessionId, opened_at_ms: u64, now_ms: u64) -> (Reply, Vec<SessionId>) {
        let mut changed = self.evict(now_ms);
        if opened_at_ms.saturating_add(TTL_MS) < now_ms {
            return (Reply::Refused(Refusal::SessionExpired), changed);
        }
        if opened_at_ms > now_ms.saturating_add(TTL_MS) {
            let reason = format!("is {} ms ahead of this shard's clock; set the clock", opened_at_ms - now_ms);
            return (Reply::Refused(Refusal::Invalid { field: "opened_at_ms".to_owned(), reason }), changed);
        }
        let full = self.open.len() >= SESSIONS_MAX;
        match self.open.get_mut(&id) {
            Some(session) if session.expired(now_ms) => return (Reply::Refused(Refusal::SessionExpired), changed),
            Some(session) => {
                let session = Arc::make_mut(session);
                session.last_used_ms = now_ms;
                session.opened_at_ms = session.opened_at_ms.max(opened_at_ms);
            }
            None if full => return (Reply::Refused(Refusal::TooManySessions), changed),
            None => {
                let session = Session { opened_at_ms, last_used_ms: now_ms, ..Session::default() };
                self.open.insert(id, Arc::new(session));
            }
        }
        changed.push(id);
        (Reply::Session { ttl_ms: TTL_MS }, changed)
    }

    /// Forgets sessions that have expired and that no message on its way can open again.
    fn evict(&mut self, now_ms: u64) -> Vec<SessionId> {
        let gone = |session: &Session| session.expired(now_ms) && session.opened_at_ms.saturating_add(TTL_MS) < now_ms;
        let evicted: Vec<SessionId> =
            self.open.iter().filter(|(_, session)| gone(session)).map(|(id, _)| *id).collect();
        for id in &evicted {
            if let Some(session) = self.open.remove(id) {
                self.bytes -= session.bytes;
            }
        }
        evicted
    }
}

/// About what a remembered reply takes in memory.
fn size(reply: &Reply) -> u64 {
    let more = match reply {
        Reply::Written { outcomes, .. } => outcomes.len() * 40,
        Reply::Refused(Refusal::Invalid { field, reason }) => field.len() + reason.len(),
        _ => 0,
    };
    128 + more as u64
}

/// A session as it is kept: `format u8 · rkyv`.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Kept {
    opened_at_ms: u64,
    last_used_ms: u64,
    settled_below: u64,
    replies: Vec<(u64, Reply)>,
}

impl Session {
    fn expired(&self, now_ms: u64) -> bool {
        self.last_used_ms.saturating_add(TTL_MS) < now_ms
    }

    /// The session's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let kept = Kept {
            opened_at_ms: self.opened_at_ms,
            last_used_ms: self.last_used_ms,
            settled_below: self.settled_below,
            replies: self.replies.iter().map(|(seq, reply)| (*seq, reply.clone())).collect(),
        };
        // Far below 2 GiB, so this cannot fail; empty bytes would be refused when read.
        rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Failure>(&kept, vec![FORMAT]).unwrap_or_default()
    }

    /// Reads a session.
    ///
    /// # Errors
    /// Where the bytes are not a session of a format that is understood.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let kept = rkyv::from_bytes::<Kept, rkyv::rancor::Error>(check_format(bytes)?).map_err(malformed)?;
        let Kept { opened_at_ms, last_used_ms, settled_below, replies } = kept;
        let replies: BTreeMap<u64, Reply> = replies.into_iter().collect();
        let bytes = replies.values().map(size).sum();
        Ok(Self { opened_at_ms, last_used_ms, settled_below, replies, bytes })
    }
}
