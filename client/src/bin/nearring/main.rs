//! The command line `nearring`. One file per command; [`output`] decides what goes to stdout and how a failure ends.
//!
//! Results go to stdout, as text for people or with `--json` as one JSON value or JSON lines; progress and errors go to
//! stderr. The exit code is 0 only where the command did what it was asked.

mod arguments;
mod ask;
mod cluster;
mod collection;
mod delete;
mod dev;
mod get;
mod health;
mod import;
mod output;
mod search;
mod snapshot;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nearring_client::{Client, RetryPolicy};

use output::{Failure, Output};

/// nearring: a distributed vector store that answers questions from documents.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// The router to talk to.
    #[arg(long, global = true, env = "NEARRING_ROUTER", default_value = "127.0.0.1:6334", value_name = "HOST:PORT")]
    router: String,

    /// Write JSON to stdout: one value, or one line per item.
    #[arg(long, global = true)]
    json: bool,

    /// How long one request may take.
    #[arg(long, global = true, default_value_t = 10_000, value_name = "MS")]
    deadline_ms: u32,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start three nodes and a router in this process, on a data directory.
    Dev(dev::Dev),
    /// Write vectors, points or documents from files into a collection.
    Import(import::Import),
    /// Find the nearest points to a vector or a text.
    Search(search::Search),
    /// Read points by id, from a named replica too.
    Get(get::Get),
    /// Delete points by id or by filter, or a document.
    Delete(delete::Delete),
    /// Ask a question; the answer cites its passages.
    Ask(ask::Ask),
    /// Create, list, describe or delete collections.
    #[command(subcommand)]
    Collection(collection::Collection),
    /// Write snapshots of collections, and restore them.
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Ask one server, a node or a router, whether it serves. Fails where it does not.
    Health(health::Health),
    /// Look at the nodes and replicas.
    #[command(subcommand)]
    Cluster(cluster::Cluster),
}

/// What every command that talks to a router gets.
struct Context {
    client: Client,
    output: Output,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output { json: cli.json };
    // A person waits a moment for a router that is coming up; an import meets overload as a matter of course.
    let attempts = if matches!(cli.command, Command::Import(_)) { 15 } else { 6 };
    let retry = RetryPolicy::OneEffect { attempts, pause: Duration::from_millis(50) };
    let client = |router: &str| {
        Client::builder(router).retry(retry).deadline(Duration::from_millis(u64::from(cli.deadline_ms))).build()
    };
    let context = || Ok::<_, Failure>(Context { client: client(&cli.router)?, output });
    match cli.command {
        Command::Dev(command) => command.run(output, client).await,
        Command::Import(command) => command.run(context()?).await,
        Command::Search(command) => command.run(context()?).await,
        Command::Get(command) => command.run(context()?).await,
        Command::Delete(command) => command.run(context()?).await,
        Command::Ask(command) => command.run(context()?).await,
        Command::Collection(command) => command.run(context()?).await,
        Command::Snapshot(command) => command.run(context()?).await,
        Command::Health(command) => {
            command.run(&cli.router, Duration::from_millis(u64::from(cli.deadline_ms)), output).await
        }
        Command::Cluster(command) => command.run(context()?).await,
    }
}
