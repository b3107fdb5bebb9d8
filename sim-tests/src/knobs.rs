//! What the simulator holds of one running host: the strings by which faults reach its disk, connections and work.
//!
//! **The fuse.** A crash can come at any await and at any file operation. But whatever a process does between two of its
//! effects, nobody can see: a crash anywhere in there is the same crash. So it is enough to crash before the n-th effect,
//! for every n, where an effect is an operation that changes the disk or a write to a connection. [`Knobs::effect`]
//! is asked before each. When the fuse burns, the disk stays as it is at that very operation, nothing leaves the host any
//! more, and the driver takes the host down in the same step of the simulation. What the process still computes in
//! that step has no effect and is thrown away with it. What a crash in the middle of one operation leaves (part of an append, some
//! of the changed names), [`SimDisk::crash`](crate::disk::SimDisk::crash) draws from what was not durable.
//!
//! **The stop.** turmoil cannot leave a host out: it gives every host its tick, timers included. A host that is stopped here reads
//! nothing from its connections, writes nothing, opens and accepts none, and its work ([`Compute`] on every lane) does not
//! come back, until the end; then all of it goes on at once. That is a stopped process to everybody else, and it wakes to
//! what has piled up. It is not one to itself: its timers run meanwhile, so it knows when it wakes that time has
//! passed, and work that had begun ends. The other half of a stop is [`Knobs::leap`]: the host's monotonic clock jumps, so that all
//! timers are due at once and it cannot have done anything in between, as when a process is stopped and continued while
//! the network delivers nothing. Both together, which the end of a stop may draw, give timers and messages at one moment.
//!
//! [`Compute`]: nearring_node::compute::Compute
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use nearring_node::compute::Lane;
use tokio::sync::Notify;

use crate::entropy;

/// The longest that one piece of file work takes on a slow disk, before and again after it.
const HANGS_AT_MOST: Duration = Duration::from_secs(5);

/// How often each thing was done to somebody, by name.
pub type Counts = BTreeMap<&'static str, u64>;

/// Cuts connections of a host after so many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Bytes that one connection may still carry; those of the message that exceeds it are carried in part.
    pub after: u64,
    /// Whether bytes are counted that the host sends, or those it receives.
    pub sent: bool,
    /// How many connections are cut.
    pub times: u32,
}

/// The strings of one host. Clones are the same.
#[derive(Clone, Default, Debug)]
pub struct Knobs(Arc<Shared>);

#[derive(Default, Debug)]
struct Shared {
    state: Mutex<State>,
    leap: Notify,
}

#[derive(Default, Debug)]
struct State {
    /// Effects that are left.
    fuse: Option<u64>,
    burnt: bool,
    cut: Option<Cut>,
    /// Counts the cuts that were set, so that connections know when to count anew.
    cuts: u64,
    stopped_until: Option<Duration>,
    waiting: Vec<Waker>,
    leap: Duration,
    /// What file work takes is multiplied by this.
    io_factor: Option<u32>,
    counts: Counts,
}

impl Knobs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the host do `effects` more effects; `None`: as many as it likes.
    pub fn set_fuse(&self, effects: Option<u64>) {
        self.lock().fuse = effects;
    }

    /// Ends the host's effects now, as if its fuse had burnt.
    pub fn burn(&self) {
        self.lock().burnt = true;
    }

    /// Whether the host has had its last effect and must be taken down.
    pub fn is_burnt(&self) -> bool {
        self.lock().burnt
    }

    /// The host is down; its next life may have effects, has no fuse and is not stopped.
    pub fn reset(&self) {
        let mut state = self.lock();
        (state.fuse, state.burnt, state.stopped_until) = (None, false, None);
        state.waiting.clear(); // they belonged to the life that is over
    }

    /// Asked before every effect.
    ///
    /// # Errors
    /// Where the fuse has burnt: the effect must not happen.
    pub fn effect(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.burnt {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process has crashed"));
        }
        if state.fuse == Some(0) {
            state.burnt = true;
            *state.counts.entry("fuses burnt").or_default() += 1;
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process crashes here"));
        }
        state.fuse = state.fuse.map(|left| left - 1);
        Ok(())
    }

    /// Sets which connections are cut from now on.
    pub fn set_cut(&self, cut: Option<Cut>) {
        let mut state = self.lock();
        state.cut = cut;
        state.cuts += 1;
    }

    /// Asked before a connection of the host carries `len` bytes more, `carried` being what it has carried since this
    /// said to count anew. How many of them it carries before it is cut; `None`: it is not.
    pub(crate) fn cut(&self, carried: &mut Carried, sent: bool, len: usize) -> Option<usize> {
        let mut state = self.lock();
        if carried.cuts != state.cuts {
            *carried = Carried { cuts: state.cuts, bytes: 0 };
        }
        let cut = state.cut.as_mut().filter(|cut| cut.sent == sent && cut.times > 0)?;
        if carried.bytes + len as u64 <= cut.after {
            return None;
        }
        cut.times -= 1;
        let left = usize::try_from(cut.after.saturating_sub(carried.bytes)).unwrap_or(len).min(len);
        *state.counts.entry("connections cut").or_default() += 1;
        Some(left)
    }

    /// Stops the host until so long after the simulation's begin, or lets it go on.
    pub fn stop(&self, until: Option<Duration>) {
        let waiting = {
            let mut state = self.lock();
            state.stopped_until = until;
            if until.is_some() { Vec::new() } else { std::mem::take(&mut state.waiting) }
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether the host is stopped; then whoever asks is woken when it is not any more.
    pub(crate) fn is_stopped(&self, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        if state.stopped_until.is_some() {
            state.waiting.push(cx.waker().clone());
            *state.counts.entry("network calls of a stopped host").or_default() += 1;
        }
        state.stopped_until.is_some()
    }

    /// Multiplies what the host's file work takes; `None`: as usual.
    pub fn slow_io(&self, factor: Option<u32>) {
        self.lock().io_factor = factor;
    }

    /// How long a piece of work takes that usually takes `usual`.
    pub fn work(&self, lane: Lane, usual: Duration) -> Duration {
        let mut state = self.lock();
        let mut takes = usual;
        if lane == Lane::Io
            && let Some(factor) = state.io_factor
        {
            // What hangs for longer is a disk that has failed, and it would hang on behind the end of the fault.
            takes = (takes * factor).min(HANGS_AT_MOST);
            *state.counts.entry("slow file work").or_default() += 1;
        }
        if let Some(until) = state.stopped_until {
            takes += until.saturating_sub(entropy::elapsed());
            *state.counts.entry("work of a stopped host").or_default() += 1;
        }
        takes
    }

    /// Makes the host's monotonic clock jump ahead, in the next step.
    pub fn leap(&self, by: Duration) {
        self.lock().leap += by;
        self.0.leap.notify_one();
    }

    /// Does what [`Knobs::leap`] asks for; runs on the host, for ever.
    pub async fn leaps(&self) {
        loop {
            self.0.leap.notified().await;
            let by = std::mem::take(&mut self.lock().leap);
            if !by.is_zero() {
                *self.lock().counts.entry("leaps of a monotonic clock").or_default() += 1;
                tokio::time::advance(by).await;
            }
        }
    }

    /// What was done to this host.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }
}

/// What one direction of a connection has carried.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Carried {
    cuts: u64,
    bytes: u64,
}

impl Carried {
    /// So many bytes more.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_fuse_lets_exactly_so_many_effects_pass() {
        let knobs = Knobs::default();
        knobs.set_fuse(Some(3));
        assert_eq!((0..9).filter(|_| knobs.effect().is_ok()).count(), 3);
        assert!(knobs.is_burnt());
        assert_eq!(knobs.counts()["fuses burnt"], 1);
        knobs.reset();
        assert!(knobs.effect().is_ok() && !knobs.is_burnt());
    }

    #[test]
    fn a_cut_counts_what_each_connection_carries_from_then_on() {
        let knobs = Knobs::default();
        let (mut one, mut two) = (Carried::default(), Carried::default());
        let send = |carried: &mut Carried, len: usize| {
            let cut = knobs.cut(carried, true, len);
            carried.add(cut.unwrap_or(len));
            cut
        };
        assert_eq!(send(&mut one, 1000), None);
        knobs.set_cut(Some(Cut { after: 10, sent: true, times: 2 }));
        assert_eq!(send(&mut one, 7), None, "what came before does not count");
        assert_eq!(send(&mut two, 7), None, "and neither do others' bytes");
        assert_eq!(knobs.cut(&mut one, false, 99), None, "nor those of the other direction");
        assert_eq!(send(&mut one, 5), Some(3));
        assert_eq!(send(&mut two, 50), Some(3));
        assert_eq!(send(&mut Carried::default(), 50), None, "two were asked for");
        assert_eq!(knobs.counts()["connections cut"], 2);
    }

    #[test]
    fn work_of_a_stopped_host_ends_with_the_stop_and_slow_disks_are_slow() {
        entropy::on_thread(1, || {
            let (knobs, millis) = (Knobs::default(), Duration::from_millis);
            entropy::set_elapsed(millis(1000));
            knobs.slow_io(Some(20));
            assert_eq!([Lane::Cpu, Lane::Io].map(|lane| knobs.work(lane, millis(2))), [millis(2), millis(40)]);
            assert_eq!(knobs.work(Lane::Io, millis(400)), HANGS_AT_MOST);
            knobs.slow_io(None);
            knobs.stop(Some(millis(3000)));
            assert_eq!(knobs.work(Lane::Io, millis(2)), millis(2002));
            knobs.stop(None);
            assert_eq!(knobs.work(Lane::Io, millis(2)), millis(2));
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_leap_makes_all_timers_due_at_once() {
        let knobs = Knobs::default();
        let began = tokio::time::Instant::now();
        knobs.leap(Duration::from_secs(5));
        tokio::select! {
            () = knobs.leaps() => unreachable!("it never ends"),
            () = tokio::time::sleep(Duration::from_secs(4)) => {}
        }
        assert!(began.elapsed() >= Duration::from_secs(5));
        assert_eq!(knobs.counts()["leaps of a monotonic clock"], 1);
    }
}
