//! Runs simulated clusters, one a seed and each in a process of its own, until a seed fails or all are done.
//!
//! ```text
//! cargo run --release -p nearring-sim --bin fuzz -- --seeds 1000 --from 1
//! cargo run --release -p nearring-sim --bin fuzz -- --seed 42 --twice   # one seed again, and whether it repeats itself
//! ```
//! `RUST_LOG=nearring_sim=debug` prints what clients saw as it happens. Exits with 1 where a seed failed.
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use nearring_sim::cluster::{self, Config};

/// Runs simulated clusters and judges them.
#[derive(Parser)]
struct Arguments {
    /// Run this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Run every seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Simulated seconds during which faults begin; 0 for none.
    #[arg(long, default_value_t = 60)]
    faults_for: u64,
    /// Operations of each client.
    #[arg(long, default_value_t = 160)]
    operations: u64,
    /// Disks claim to have synced and have not: the oracles must notice.
    #[arg(long)]
    lie_about_syncs: bool,
}

impl Arguments {
    fn config(&self, seed: u64) -> Config {
        let mut config = Config::new(seed);
        config.faults_for = Duration::from_secs(self.faults_for);
        config.load.operations = self.operations;
        config.disk.lie_about_syncs = self.lie_about_syncs;
        config
    }

    /// What makes another process run this seed.
    fn flags(&self, seed: u64) -> Vec<String> {
        let mut flags = vec![format!("--seed={seed}"), format!("--faults-for={}", self.faults_for)];
        flags.push(format!("--operations={}", self.operations));
        flags.extend(self.lie_about_syncs.then(|| "--lie-about-syncs".to_owned()));
        flags
    }

    /// Runs a seed in a process of its own, or in two that are compared. Whether nothing was wrong.
    fn repeat(&self, seed: u64) -> std::io::Result<bool> {
        let child = || Command::new(std::env::current_exe()?).args(self.flags(seed)).stderr(Stdio::inherit()).output();
        let first = child()?;
        print!("{}", String::from_utf8_lossy(&first.stdout));
        if self.twice && child()?.stdout != first.stdout {
            println!("not deterministic: a second process reports something else");
            return Ok(false);
        }
        Ok(first.status.success())
    }
}

/// Runs one seed here and says what came of it.
fn run(arguments: &Arguments, seed: u64) -> ExitCode {
    let started = Instant::now();
    let report = cluster::run(&arguments.config(seed));
    print!("{report}");
    eprintln!("seed {seed} took {:.1} s of real time", started.elapsed().as_secs_f64());
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    // Where the simulation runs there is no clock to print.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    if let (Some(seed), false) = (arguments.seed, arguments.twice) {
        return run(&arguments, seed);
    }
    let seeds = match arguments.seed {
        Some(seed) => seed..=seed,
        None => arguments.from..=arguments.from.saturating_add(arguments.seeds.saturating_sub(1)),
    };
    let mut failed = 0;
    for seed in seeds {
        match arguments.repeat(seed) {
            Ok(true) => {}
            Ok(false) => {
                failed += 1;
                println!(
                    "replay: cargo run --release -p nearring-sim --bin fuzz -- {}",
                    arguments.flags(seed).join(" ")
                );
                if !arguments.keep_going {
                    break;
                }
            }
            Err(error) => {
                eprintln!("cannot start a process for seed {seed}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
