//! Where work that would hold up the async runtime runs: embedding. A node's counterpart has lanes and bounds; here the
//! pipeline bounds how many texts are embedded at once.
use std::future::Future;

use tokio::runtime::Handle;

/// Where CPU work runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Compute {
    /// On the runtime's blocking threads.
    #[default]
    Pool,
    /// On the calling task, at once. Deterministic.
    Inline,
}

/// The work panicked, or the runtime is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the work ended early: {0}")]
pub struct EndedEarly(String);

impl Compute {
    /// Runs work that may compute for long between its awaits. With a pool it goes on though the caller goes away.
    ///
    /// # Errors
    /// [`EndedEarly`].
    pub async fn run<T, W>(self, work: impl FnOnce() -> W + Send + 'static) -> Result<T, EndedEarly>
    where
        T: Send + 'static,
        W: Future<Output = T>,
    {
        match self {
            Compute::Inline => Ok(work().await),
            Compute::Pool => {
                let runtime = Handle::current();
                #[allow(clippy::disallowed_methods, reason = "this is the place")]
                let done = tokio::task::spawn_blocking(move || runtime.block_on(work()));
                done.await.map_err(|error| EndedEarly(error.to_string()))
            }
        }
    }
}
