//! What the node takes on: bytes of writes in flight, bytes of vectors in memory, free disk. Over a bound a write is
//! refused before anything of it is proposed, so that the caller may simply send it again.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::settings::Limits;

/// The node's bounds and how much of them is used.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    in_flight: AtomicU64,
    tail: AtomicU64,
    resident: AtomicU64,
    disk_full: AtomicBool,
}

/// A write that was let in; what it holds is given back when this is dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Admission {
    /// Nothing used.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            in_flight: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            resident: AtomicU64::new(0),
            disk_full: AtomicBool::new(false),
        })
    }

    /// Lets a write of `bytes` in. One that is larger than the whole bound is let in when nothing else is in flight.
    ///
    /// # Errors
    /// Which bound is reached, and what to do.
    pub fn admit(self: &Arc<Self>, bytes: u64) -> Result<Permit, String> {
        if self.disk_full() {
            return Err(
                "the node's disk is full: it takes no writes until space is freed; nothing was written".to_owned()
            );
        }
        let tail = self.tail.load(Ordering::Relaxed);
        if tail > self.limits.tail_bytes {
            return Err(format!(
                "{tail} bytes of vectors wait for a segment on this node, the limit is {}; send more slowly",
                self.limits.tail_bytes
            ));
        }
        let before = self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before + bytes > self.limits.inflight_write_bytes {
            self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
            return Err(format!(
                "{before} bytes of writes are in flight on this node, the limit is {}; send more slowly",
                self.limits.inflight_write_bytes
            ));
        }
        Ok(Permit { admission: self.clone(), bytes })
    }

    /// A shard's tail was `before` bytes and is `now`.
    pub fn tail_changed(&self, before: u64, now: u64) {
        if now >= before {
            self.tail.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.tail.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Whether a write may bring sparse or multi-vectors. Nothing but deletion makes room for them, so only such writes are
    /// refused.
    ///
    /// # Errors
    /// Which bound is reached, and what to do.
    pub fn admit_resident(&self) -> Result<(), String> {
        let (held, most) = (self.resident.load(Ordering::Relaxed), self.limits.resident_vector_bytes);
        if held > most {
            return Err(format!(
                "sparse and multi-vectors take {held} bytes of this node's memory, the limit is {most}; delete some, raise \
                 the limit or spread the collection over more nodes"
            ));
        }
        Ok(())
    }

    /// A shard's sparse and multi-vectors took `before` bytes and take `now`.
    pub fn resident_changed(&self, before: u64, now: u64) {
        if now >= before {
            self.resident.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.resident.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Whether free disk is below the reserve.
    pub fn disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }

    /// Notes what the last look at the disk showed.
    pub fn set_disk_full(&self, full: bool) {
        self.disk_full.store(full, Ordering::Relaxed);
    }

    /// Bytes of writes let in and not yet answered.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn bounds_hold_and_are_given_back() {
        let limits =
            Limits { inflight_write_bytes: 100, tail_bytes: 1000, resident_vector_bytes: 500, ..Limits::default() };
        let admission = Admission::new(limits);
        let large = admission.admit(500).unwrap();
        assert!(admission.admit(1).unwrap_err().contains("in flight"));
        drop(large);
        let (_a, _b) = (admission.admit(60).unwrap(), admission.admit(40).unwrap());
        assert!(admission.admit(1).is_err());
        drop((_a, _b));
        admission.tail_changed(0, 1001);
        assert!(admission.admit(1).unwrap_err().contains("segment"));
        admission.tail_changed(1001, 10);
        admission.resident_changed(0, 501);
        assert!(admission.admit_resident().unwrap_err().contains("delete"));
        assert!(admission.admit(1).is_ok(), "a deletion must be possible");
        admission.resident_changed(501, 500);
        assert!(admission.admit_resident().is_ok());
        admission.set_disk_full(true);
        assert!(admission.admit(1).unwrap_err().contains("disk"));
        admission.set_disk_full(false);
        assert!(admission.admit(1).is_ok());
        assert_eq!(admission.in_flight_bytes(), 0);
    }
}
