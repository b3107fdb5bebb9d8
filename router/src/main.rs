//! The process `nearring-router`: settings from flags or the environment, then serve until told to stop.
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nearring_router::arguments::{ModelServers, SnapshotPlace};
use nearring_router::router::RouterBuilder;
use nearring_router::settings::Settings;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Router of a nearring cluster: takes clients' requests and asks the nodes.
#[derive(Parser, Debug)]
#[command(name = "nearring-router", version)]
struct Arguments {
    /// Nodes to start from, host:port, separated by commas.
    #[arg(long, env = "NEARRING_NODES", value_delimiter = ',', required = true)]
    nodes: Vec<String>,
    /// Where clients connect.
    #[arg(long, env = "NEARRING_LISTEN", default_value = "0.0.0.0:6334")]
    listen: String,
    /// Where Qdrant's and OpenAI's clients connect (HTTP; the latter under /v1); "" = nowhere.
    #[arg(long, env = "NEARRING_REST_LISTEN", default_value = "0.0.0.0:6333")]
    rest_listen: String,
    #[command(flatten)]
    models: ModelServers,
    #[command(flatten)]
    snapshots: SnapshotPlace,
    /// Deadline of reads that give none, in milliseconds.
    #[arg(long, env = "NEARRING_READ_DEADLINE_MS", default_value_t = 5_000)]
    read_deadline_ms: u64,
    /// Deadline of writes that give none, in milliseconds.
    #[arg(long, env = "NEARRING_WRITE_DEADLINE_MS", default_value_t = 10_000)]
    write_deadline_ms: u64,
    /// Requests under way at once; more are refused.
    #[arg(long, env = "NEARRING_IN_FLIGHT", default_value_t = 1024)]
    in_flight: usize,
    /// Threads; 0 = one less than there are cores. More than are busy cost: every thread that waits is woken for nothing at
    /// times.
    #[arg(long, env = "NEARRING_THREADS", default_value_t = 0)]
    threads: usize,
    /// What to log, as in `info` or `nearring_router=debug`.
    #[arg(long, env = "NEARRING_LOG", default_value = "info")]
    log: String,
}

/// One less than there are cores, unless told otherwise.
fn threads(wanted: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    if wanted > 0 { wanted } else { cores.saturating_sub(1).max(1) }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_new(&arguments.log).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let threads = threads(arguments.threads);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut settings = Settings::new(arguments.nodes.iter().map(|node| node.trim().to_owned()).collect());
    settings.deadlines.read = Duration::from_millis(arguments.read_deadline_ms);
    settings.deadlines.write = Duration::from_millis(arguments.write_deadline_ms);
    settings.limits.in_flight = arguments.in_flight;
    arguments.models.apply(&mut settings, |name| std::env::var(name).ok())?;
    arguments.snapshots.apply(&mut settings, None);
    let listener = tokio::net::TcpListener::bind(&arguments.listen).await;
    let listener = listener.map_err(|error| format!("cannot listen on {}: {error}", arguments.listen))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let incoming = TcpListenerStream::new(listener).map(|connection| {
        connection.inspect(|stream| {
            // Without it every small answer waits some 40 ms for the client's delayed acknowledgement. A connection
            // that cannot be told so works all the same.
            let _ = stream.set_nodelay(true);
        })
    });
    let router = RouterBuilder::new(settings).more_embedders(arguments.models.local()?).start()?;
    let stop = CancellationToken::new();
    let rest = rest(&arguments.rest_listen, router.rest(), stop.clone()).await?;
    let stopping = {
        let stop = stop.clone();
        async move {
            tokio::select! {
                () = told_to_stop() => stop.cancel(),
                () = stop.cancelled() => {}
            }
        }
    };
    // One door that fails closes the other.
    let _closes = stop.clone().drop_guard();
    tokio::try_join!(async { router.serve(incoming, stopping).await.map_err(Into::into) }, rest)?;
    tracing::info!("stopped");
    Ok(())
}

/// Serves the REST API until `stop`; does nothing without an address.
async fn rest(
    address: &str,
    app: axum::Router,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), Box<dyn std::error::Error>>>, String> {
    let listener = match address {
        "" => None,
        address => {
            let listener = tokio::net::TcpListener::bind(address).await;
            Some(listener.map_err(|error| format!("cannot listen on {address}: {error}"))?)
        }
    };
    if let Some(address) = listener.as_ref().and_then(|listener| listener.local_addr().ok()) {
        tracing::info!(%address, "listening for REST");
    }
    Ok(async move {
        match listener {
            Some(listener) => {
                let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned());
                served.await.map_err(|error| format!("the REST server failed: {error}").into())
            }
            None => Ok(()),
        }
    })
}

/// Ends at SIGINT or SIGTERM.
async fn told_to_stop() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ended = interrupt.await;
}
