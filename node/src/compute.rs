//! Where work that would hold up the async runtime runs.
//!
//! Three lanes that never wait for one another: CPU work bounded by the number of cores, file work (a log sync must not
//! wait behind a graph build), and a lane with one permit for segment builds. A simulator uses no threads, hence has one
//! order of events; it may say how long each piece of work takes, so that much can happen meanwhile.
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Where CPU-bound and blocking work runs. Cheap to clone; clones share their lanes.
#[derive(Clone, Debug)]
pub enum Compute {
    /// On the runtime's blocking threads, bounded by lane.
    Pool(Arc<Lanes>),
    /// On the calling task, at once. Deterministic.
    Inline,
    /// On a task of the same thread, as long before and after the work as drawn each time. Deterministic where the draws are.
    Simulated(Pauses),
}

/// The kinds of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// [`Compute::run`].
    Cpu,
    /// [`Compute::build`].
    Build,
    /// [`Compute::io`].
    Io,
}

/// How long work takes on a simulated machine.
#[derive(Clone)]
pub struct Pauses(Arc<dyn Fn(Lane) -> Duration + Send + Sync>);

impl Pauses {
    /// Asked before every piece of work, and again after it.
    pub fn new(draw: Arc<dyn Fn(Lane) -> Duration + Send + Sync>) -> Self {
        Self(draw)
    }
}

impl fmt::Debug for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pauses").finish_non_exhaustive()
    }
}

/// The bounds of a pool.
#[derive(Debug)]
pub struct Lanes {
    cpu: Arc<Semaphore>,
    build: Arc<Semaphore>,
    /// How many may hold a [`Here`] or be asking for one.
    here_max: usize,
    here: AtomicUsize,
    /// What such work took lately, in microseconds.
    here_took: AtomicU64,
}

/// Work on the calling task that took so many microseconds lately has been too long: its pages may come from disk.
const HERE_MICROS: u64 = 4_000;

/// Leave to work on the calling task; says at its end how long that took.
#[derive(Debug)]
pub struct Here<'a> {
    lanes: &'a Lanes,
    since: Option<Instant>,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.lanes.here.fetch_sub(1, Ordering::Relaxed);
        if let Some(since) = self.since {
            let took = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX).min(1_000_000);
            let lately = self.lanes.here_took.load(Ordering::Relaxed);
            // Two that end at once may lose one measurement.
            self.lanes.here_took.store((lately * 7 + took) / 8, Ordering::Relaxed);
        }
    }
}

impl Compute {
    /// A pool sized to the machine's cores.
    #[allow(clippy::disallowed_methods, reason = "of the pool only")]
    pub fn pool() -> Self {
        Self::pool_of(std::thread::available_parallelism().map_or(1, |cores| cores.get()))
    }

    /// A pool that runs at most `cpu` pieces of CPU work at once; at least 1.
    pub fn pool_of(cpu: usize) -> Self {
        let lanes = Lanes {
            cpu: Arc::new(Semaphore::new(cpu.max(1))),
            build: Arc::new(Semaphore::new(1)),
            here_max: cpu.max(1),
            here: AtomicUsize::new(0),
            here_took: AtomicU64::new(0),
        };
        Compute::Pool(Arc::new(lanes))
    }

    /// Runs CPU-bound work: searches, decoding. Waits while all cores are taken. Work that has started finishes even
    /// if the caller goes away.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Compute::Pool(lanes) => bounded(&lanes.cpu, work).await,
            Compute::Inline => work(),
            Compute::Simulated(pauses) => simulated(pauses, Lane::Cpu, work).await,
        }
    }

    /// Asks to do a piece of work of well under a millisecond on the calling task, without waiting in it for anything. A
    /// hand-over to another thread and back costs more than such work (measured on two cores: as much as the graph walks of
    /// a search), but a task that computes holds up all others; so few at a time do, and none while such work has been taking
    /// too long. `None`: use [`Compute::run`].
    pub async fn here(&self) -> Option<Here<'_>> {
        let Compute::Pool(lanes) = self else { return None };
        let before = lanes.here.fetch_add(1, Ordering::Relaxed);
        let mut here = Here { lanes, since: None };
        let lately = lanes.here_took.load(Ordering::Relaxed);
        if lately > HERE_MICROS {
            // Tried again in a while.
            lanes.here_took.store(lately - lately / 64, Ordering::Relaxed);
            return None;
        }
        // Whoever is ready to run, does; among them everyone who asks as we do.
        tokio::task::yield_now().await;
        if before.max(lanes.here.load(Ordering::Relaxed) - 1) >= lanes.here_max {
            return None;
        }
        #[allow(clippy::disallowed_methods, reason = "of the pool only")]
        let now = Instant::now();
        here.since = Some(now);
        Some(here)
    }

    /// Runs a long build, one at a time.
    pub async fn build<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Compute::Pool(lanes) => bounded(&lanes.build, work).await,
            Compute::Inline => work(),
            Compute::Simulated(pauses) => simulated(pauses, Lane::Build, work).await,
        }
    }

    /// Runs file work at once, beside whatever the other lanes do. For callers that bound themselves, as the log's one
    /// writer does.
    pub async fn io<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Compute::Pool(_) => unbounded(work).await,
            Compute::Inline => work(),
            Compute::Simulated(pauses) => simulated(pauses, Lane::Io, work).await,
        }
    }
}

async fn bounded<T: Send + 'static>(lane: &Arc<Semaphore>, work: impl FnOnce() -> T + Send + 'static) -> T {
    // The permit travels with the work: a caller that goes away does not free a core that is still busy. The lane is
    // never closed, so there is always a permit to wait for.
    let permit = lane.clone().acquire_owned().await.ok();
    unbounded(move || {
        let result = work();
        drop(permit);
        result
    })
    .await
}

async fn simulated<T: Send + 'static>(pauses: &Pauses, lane: Lane, work: impl FnOnce() -> T + Send + 'static) -> T {
    let draw = pauses.0.clone();
    let slow = async move {
        tokio::time::sleep(draw(lane)).await;
        let result = work();
        tokio::time::sleep(draw(lane)).await;
        result
    };
    // A task of its own, since work that has begun finishes even if the caller goes away.
    finished(tokio::spawn(slow)).await
}

#[allow(clippy::disallowed_methods, reason = "the pool's threads")]
async fn unbounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    finished(tokio::task::spawn_blocking(work)).await
}

async fn finished<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down before the work began; nobody will poll the caller again either.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn file_work_does_not_wait_for_a_build_or_a_search() {
        let compute = Compute::pool_of(1);
        let mut held = Vec::new();
        for build in [true, false] {
            let (release, wait) = mpsc::channel::<()>();
            let lane = compute.clone();
            let hold = move || wait.recv().unwrap();
            let task = tokio::spawn(async move { if build { lane.build(hold).await } else { lane.run(hold).await } });
            held.push((release, task));
        }
        tokio::task::yield_now().await;
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), compute.io(|| 7)).await.unwrap(), 7);
        for (release, task) in held {
            release.send(()).unwrap();
            task.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn simulated_work_takes_its_time_and_outlives_its_caller() {
        let compute = Compute::Simulated(Pauses::new(Arc::new(|lane| {
            Duration::from_millis(if lane == Lane::Io { 10 } else { 0 })
        })));
        let began = tokio::time::Instant::now();
        assert_eq!(compute.io(|| 7).await, 7);
        assert_eq!(began.elapsed(), Duration::from_millis(20));
        let (done, is_done) = tokio::sync::oneshot::channel();
        let impatient = tokio::time::timeout(Duration::from_millis(5), compute.io(move || done.send(()).unwrap()));
        assert!(impatient.await.is_err());
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn few_work_on_the_calling_task_and_nobody_while_that_takes_long() {
        let compute = Compute::pool_of(1);
        let all: Vec<_> = futures::future::join_all((0..9).map(|_| compute.here())).await;
        assert_eq!(all.iter().flatten().count(), 0, "too many at once");
        drop(all);
        let long = compute.here().await.unwrap();
        std::thread::sleep(Duration::from_millis(80));
        drop(long);
        assert!(compute.here().await.is_none(), "it took too long");
        let mut refused = 0;
        while compute.here().await.is_none() {
            refused += 1;
        }
        assert!((10..1000).contains(&refused), "{refused}");
        assert!(Compute::Inline.here().await.is_none());
    }

    #[tokio::test]
    async fn inline_uses_no_threads() {
        let here = std::thread::current().id();
        for there in [
            Compute::Inline.run(|| std::thread::current().id()).await,
            Compute::Inline.build(|| std::thread::current().id()).await,
            Compute::Inline.io(|| std::thread::current().id()).await,
        ] {
            assert_eq!(here, there);
        }
    }
}
