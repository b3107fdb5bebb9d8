//! A session: numbers writes so that a repeated one has one effect, and tells the shards which replies they may forget.
//!
//! A sequence number is outstanding from [`Session::begin`] until its [`Ticket`] is dropped, however the call ended:
//! nobody repeats it after that, so `settled_below` may pass it.
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nearring_proto::wire;
use uuid::Uuid;

/// One opened session of one collection. Cheap to clone; clones share the numbering.
#[derive(Clone, Debug)]
pub struct Session {
    id: Uuid,
    /// Guards a counter and a set; never held across an await.
    numbers: Arc<Mutex<Numbers>>,
}

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    outstanding: BTreeSet<u64>,
}

/// One numbered write; dropping it settles the number.
#[derive(Debug)]
pub struct Ticket {
    session: Session,
    seq: u64,
}

impl Session {
    /// A session under `id`, which must be fresh and random: it must never have named another session.
    pub fn new(id: Uuid) -> Self {
        Self { id, numbers: Arc::default() }
    }

    /// The session's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Numbers the next write.
    pub fn begin(&self) -> Ticket {
        let mut numbers = self.numbers();
        let seq = numbers.next;
        numbers.next += 1;
        numbers.outstanding.insert(seq);
        drop(numbers);
        Ticket { session: self.clone(), seq }
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// The request id to send, with what is settled as of now.
    pub fn request_id(&self) -> wire::RequestId {
        let numbers = self.session.numbers();
        let settled_below = numbers.outstanding.first().copied().unwrap_or(numbers.next);
        wire::RequestId { session: self.session.id.as_bytes().to_vec().into(), seq: self.seq, settled_below }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.numbers().outstanding.remove(&self.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_below_never_passes_a_write_that_is_still_out() {
        let session = Session::new(Uuid::from_u128(7));
        let (first, second) = (session.begin(), session.begin());
        assert_eq!((second.request_id().seq, second.request_id().settled_below), (1, 0));
        drop(first);
        assert_eq!(second.request_id().settled_below, 1);
        let third = session.begin();
        drop(second);
        assert_eq!((third.request_id().seq, third.request_id().settled_below), (2, 2));
    }
}
