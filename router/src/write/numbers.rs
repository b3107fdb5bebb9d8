//! The router's own sessions: numbers for writes that come without one.
//!
//! The problem: most clients (Qdrant's, OpenAI's) send a write once and take an error for what it is. If the node that has
//! it dies, sending it again might make it take effect twice, or bring back what was deleted in between; not sending it again
//! makes every such death an error. **Rules:**
//! - A number belongs to a session of one shard, for shards commit by themselves, and to one write there: from
//!   [`Numbers::begin`] until its [`Ticket`] is dropped. After that nobody sends it again, and the shard may forget its reply.
//! - A session that holds up many replies, since one of its writes takes long, gets no further writes until that one has ended;
//!   others are used meanwhile, up to eight of a shard. Past that there is no number: better a write that is not
//!   repeated than one that is refused.
//! - One that has not been used for twenty minutes is given up, long before the shard would.
//!
//! Nothing of it is kept: a router that starts again has other sessions. What it deliberately does not do: number writes
//! for callers that number them themselves.
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nearring_proto::ids::{RequestId, SessionId, ShardId};
use tokio::time::Instant;
use uuid::Uuid;

/// Sessions of one shard at the most.
const SESSIONS: usize = 8;
/// Numbers of a session from the first that is out to the last, and items of their writes. A shard keeps a thousand replies of
/// a session, and a mebibyte.
const WINDOW: (usize, usize) = (512, 8192);
/// How long a session may lie unused. A shard keeps it for an hour by its leader's clock.
const IDLE: Duration = Duration::from_secs(20 * 60);
/// How long a shard that took no session is asked to open none.
const REFUSED: Duration = Duration::from_secs(30);

/// Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub struct Numbers(Arc<Mutex<BTreeMap<ShardId, OfShard>>>);

#[derive(Default)]
struct OfShard {
    sessions: Vec<Session>,
    refused_until: Option<Instant>,
}

struct Session {
    id: SessionId,
    open: bool,
    /// When the last write began that the shard has answered.
    used: Instant,
    next: u64,
    /// From the first number that is out to the last given: how many items it is for, and whether it is out.
    window: VecDeque<(usize, bool)>,
    items: usize,
}

impl Session {
    fn first(&self) -> u64 {
        self.next - self.window.len() as u64
    }

    fn has_room(&self, items: usize) -> bool {
        self.window.is_empty() || (self.window.len() < WINDOW.0 && self.items + items <= WINDOW.1)
    }

    fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) > IDLE
    }

    /// Takes a number that is no longer out from the window, with all before it that are not either.
    fn settle(&mut self, seq: u64) {
        let at = seq.checked_sub(self.first()).and_then(|at| usize::try_from(at).ok());
        if let Some((_, out)) = at.and_then(|at| self.window.get_mut(at)) {
            *out = false;
        }
        while let Some((items, false)) = self.window.front() {
            self.items -= items;
            self.window.pop_front();
        }
    }
}

impl Numbers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardId, OfShard>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a write of so many items; `None` where there is none to be had. A new session is called what `draw` says,
    /// which must be random.
    pub fn begin(&self, shard: ShardId, items: usize, now: Instant, draw: impl FnOnce() -> u128) -> Option<Ticket> {
        let mut shards = self.lock();
        let of_shard = shards.entry(shard).or_default();
        of_shard.sessions.retain(|session| !session.is_stale(now) || !session.window.is_empty());
        let usable = |session: &Session| session.has_room(items) && !session.is_stale(now);
        let at = match of_shard.sessions.iter().position(usable) {
            Some(at) => at,
            None if of_shard.sessions.len() >= SESSIONS => return None,
            None if of_shard.refused_until.is_some_and(|until| now < until) => return None,
            None => {
                let id = SessionId(Uuid::from_u128(draw()));
                let window = VecDeque::new();
                of_shard.sessions.push(Session { id, open: false, used: now, next: 0, window, items: 0 });
                of_shard.sessions.len() - 1
            }
        };
        let session = of_shard.sessions.get_mut(at)?;
        let seq = session.next;
        session.next += 1;
        session.window.push_back((items, true));
        session.items += items;
        Some(Ticket { numbers: self.clone(), shard, session: session.id, seq })
    }

    /// Forgets shards that are gone.
    pub fn retain(&self, there: impl Fn(ShardId) -> bool) {
        self.lock().retain(|shard, of_shard| there(*shard) || of_shard.sessions.iter().any(|s| !s.window.is_empty()));
    }
}

/// One number; dropping it settles it.
pub struct Ticket {
    numbers: Numbers,
    shard: ShardId,
    session: SessionId,
    seq: u64,
}

impl Ticket {
    fn with<T>(&self, what: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let mut shards = self.numbers.lock();
        let sessions = &mut shards.get_mut(&self.shard)?.sessions;
        sessions.iter_mut().find(|session| session.id == self.session).map(what)
    }

    /// Its session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Whether the shard knows the session; `None` where it has expired meanwhile. Such a session must not be opened again: a
    /// shard that has forgotten it would take the numbers of those who are still under way for new ones.
    pub fn is_open(&self) -> Option<bool> {
        self.with(|session| session.open)
    }

    /// The request id to send, with what is settled as of now.
    pub fn request_id(&self) -> RequestId {
        // Where the session has expired meanwhile, nothing more is said to be settled.
        let settled_below = self.with(|session| session.first()).unwrap_or(0);
        RequestId { session: self.session, seq: self.seq, settled_below }
    }

    /// The shard has opened the session; it was asked to at this time.
    pub fn opened(&self, asked: Instant) {
        self.with(|session| (session.open, session.used) = (true, session.used.max(asked)));
    }

    /// The shard has answered a write that began at this time.
    pub fn used(&self, began: Instant) {
        self.with(|session| session.used = session.used.max(began));
    }

    /// The shard does not know the session any more.
    pub fn expired(&self) {
        if let Some(of_shard) = self.numbers.lock().get_mut(&self.shard) {
            of_shard.sessions.retain(|session| session.id != self.session);
        }
    }

    /// The shard does not open the session.
    pub fn refused(&self, now: Instant) {
        self.expired();
        if let Some(of_shard) = self.numbers.lock().get_mut(&self.shard) {
            of_shard.refused_until = Some(now + REFUSED);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.with(|session| session.settle(self.seq));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const SHARD: ShardId = ShardId(7);

    fn begin(numbers: &Numbers, items: usize, now: Instant, name: u128) -> Option<Ticket> {
        numbers.begin(SHARD, items, now, || name)
    }

    fn told(ticket: &Ticket) -> (u128, u64, u64) {
        let RequestId { session, seq, settled_below } = ticket.request_id();
        (session.0.as_u128(), seq, settled_below)
    }

    #[test]
    fn a_number_is_settled_once_it_and_all_before_it_are_dropped() {
        let (numbers, now) = (Numbers::default(), Instant::now());
        let tickets: Vec<Ticket> = (0..4).map(|_| begin(&numbers, 1, now, 1).unwrap()).collect();
        let [first, second, third, fourth] = <[Ticket; 4]>::try_from(tickets).ok().unwrap();
        assert_eq!(told(&fourth), (1, 3, 0));
        drop(second);
        assert_eq!(told(&fourth), (1, 3, 0), "the first is still out");
        drop(first);
        assert_eq!(told(&fourth), (1, 3, 2));
        drop(third);
        drop(fourth);
        assert_eq!(told(&begin(&numbers, 1, now, 2).unwrap()), (1, 4, 4), "the session goes on");
        let other = numbers.begin(ShardId(8), 1, now, || 3).unwrap();
        assert_eq!(told(&other), (3, 0, 0), "a shard has sessions of its own");
    }

    #[test]
    fn a_straggler_moves_the_others_to_other_sessions_until_there_are_none() {
        let (numbers, now) = (Numbers::default(), Instant::now());
        let mut stragglers = Vec::new();
        for name in 0..SESSIONS as u128 {
            stragglers.push(begin(&numbers, 1, now, name).unwrap());
            assert_eq!(told(stragglers.last().unwrap()), (name, 0, 0));
            for _ in 1..WINDOW.0 {
                assert_eq!(told(&begin(&numbers, 1, now, 99).unwrap()).0, name);
            }
        }
        assert!(begin(&numbers, 1, now, 99).is_none());
        stragglers.remove(3);
        let freed = begin(&numbers, 1, now, 99).unwrap();
        assert_eq!(told(&freed), (3, WINDOW.0 as u64, WINDOW.0 as u64));
        // Writes of many items fill one sooner; one write goes whatever it holds.
        let numbers = Numbers::default();
        let large = begin(&numbers, 3 * WINDOW.1, now, 1).unwrap();
        assert_eq!(told(&begin(&numbers, 1, now, 2).unwrap()).0, 2);
        drop(large);
        assert_eq!(told(&begin(&numbers, 1, now, 3).unwrap()).0, 1);
    }

    #[test]
    fn a_session_is_opened_kept_while_it_is_used_and_given_up_before_the_shard_does() {
        let (numbers, mut now) = (Numbers::default(), Instant::now());
        let ticket = begin(&numbers, 1, now, 1).unwrap();
        assert_eq!(ticket.is_open(), Some(false));
        ticket.opened(now);
        assert_eq!(ticket.is_open(), Some(true));
        for _ in 0..3 {
            now += IDLE;
            let ticket = begin(&numbers, 1, now, 2).unwrap();
            assert_eq!((ticket.is_open(), told(&ticket).0), (Some(true), 1));
            ticket.used(now);
        }
        now += IDLE + Duration::from_secs(1);
        let next = begin(&numbers, 1, now, 2).unwrap();
        assert_eq!((next.is_open(), told(&next).0), (Some(false), 2), "what did not end keeps no session alive");
        // What a shard does not know is forgotten, also by those who are under way in it.
        next.expired();
        assert_eq!((next.is_open(), told(&next)), (None, (2, 0, 0)));
        assert_eq!(told(&begin(&numbers, 1, now, 3).unwrap()), (3, 0, 0));
        begin(&numbers, 1, now, 4).unwrap().refused(now);
        assert!(begin(&numbers, 1, now, 5).is_none());
        assert!(numbers.begin(ShardId(8), 1, now, || 6).is_some());
        assert_eq!(told(&begin(&numbers, 1, now + REFUSED, 5).unwrap()).0, 5);
        numbers.retain(|_| false);
        assert_eq!(numbers.lock().len(), 1, "the first session still has a number out");
        drop((ticket, next));
        numbers.retain(|_| false);
        assert!(numbers.lock().is_empty());
    }
}
