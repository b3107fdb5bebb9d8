//! Where work that would hold up the async runtime runs.
//!
//! Three lanes that never wait for one another: CPU work bounded by the number of cores, file work (a log sync must not
//! wait behind a graph build), and a lane with one permit for segment builds. A simulator runs everything inline: no
//! threads, hence one order of events.
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Where CPU-bound and blocking work runs. Cheap to clone; clones share their lanes.
#[derive(Clone, Debug)]
pub enum Compute {
    /// On the runtime's blocking threads, bounded by lane.
    Pool(Arc<Lanes>),
    /// On the calling task, at once. Deterministic.
    Inline,
}

/// The bounds of a pool.
#[derive(Debug)]
pub struct Lanes {
    cpu: Arc<Semaphore>,
    build: Arc<Semaphore>,
}

impl Compute {
    /// A pool sized to the machine's cores.
    pub fn pool() -> Self {
        Self::pool_of(std::thread::available_parallelism().map_or(1, |cores| cores.get()))
    }

    /// A pool that runs at most `cpu` pieces of CPU work at once; at least 1.
    pub fn pool_of(cpu: usize) -> Self {
        let lanes = Lanes { cpu: Arc::new(Semaphore::new(cpu.max(1))), build: Arc::new(Semaphore::new(1)) };
        Compute::Pool(Arc::new(lanes))
    }

    /// Runs CPU-bound work: searches, decoding. Waits while all cores are taken. Work that has started finishes even
    /// if the caller goes away.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Compute::Pool(lanes) => bounded(&lanes.cpu, work).await,
            Compute::Inline => work(),
        }
    }

    /// Runs a long build, one at a time.
    pub async fn build<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Compute::Pool(lanes) => bounded(&lanes.build, work).await,
            Compute::Inline => work(),
        }
    }

    /// Runs file work at once, beside whatever the other lanes do. For callers that bound themselves, as the log's one
    /// writer does.
    pub async fn io<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Compute::Pool(_) => unbounded(work).await,
            Compute::Inline => work(),
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

async fn unbounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
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
