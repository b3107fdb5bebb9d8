//! Runs simulated clusters, one a seed and each in a process of its own, until a seed fails or all are done.
//!
//! ```text
//! cargo run --release -p nearring-sim --bin fuzz -- --seeds 1000 --from 1
//! cargo run --release -p nearring-sim --bin fuzz -- --seed 42 --twice    # one seed again, and whether it repeats itself
//! cargo run --release -p nearring-sim --bin fuzz -- --seed 42 --shrink   # fewer faults and operations, while it fails
//! cargo run --release -p nearring-sim --bin fuzz -- --campaign 10000     # what the ledger lacks for this very code
//! ```
//! `RUST_LOG=nearring_sim=debug` prints what clients saw as it happens. Exits with 1 where a seed failed.
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use nearring_sim::cluster::{self, Config};
use nearring_sim::shrink::{self, Without};

/// Seeds of one line of the ledger.
const BLOCK: u64 = 100;
/// The most resident memory of a run: the whole cluster, its disks and the history.
const MEMORY_KIB_MAX: u64 = 1 << 20;
/// How long one run may take in real time before it counts as hanging.
const HANGS_AFTER: Duration = Duration::from_secs(600);
/// The code that this program simulates.
const CODE: &str = env!("NEARRING_SIM_CODE");

/// Runs simulated clusters and judges them.
#[derive(Parser, Clone)]
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
    /// Run all seeds from 1 to this one that the ledger does not name for this code yet, and write them down.
    #[arg(long)]
    campaign: Option<u64>,
    /// Where campaigns are written down.
    #[arg(long, default_value = "sim-tests/campaign/ledger.tsv")]
    ledger: PathBuf,
    /// Stop a campaign after so many minutes; it goes on from there the next time.
    #[arg(long)]
    minutes: Option<u64>,
    /// Seeds at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Run every seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Leave out faults and operations of a failing seed as long as it fails.
    #[arg(long)]
    shrink: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Simulated seconds during which faults begin; 0 for none.
    #[arg(long, default_value_t = 30)]
    faults_for: u64,
    /// Steps of each client.
    #[arg(long, default_value_t = Config::STEPS)]
    operations: u64,
    /// Faults to leave out, by number: 3,4,7-9.
    #[arg(long, default_value = "")]
    without_faults: String,
    /// Steps of clients to leave out, each client's after its number: 0:3,4,7-9;2:0-5.
    #[arg(long, default_value = "")]
    without_steps: String,
    /// Disks claim to have synced and have not: the judges must notice.
    #[arg(long)]
    lie_about_syncs: bool,
}

impl Arguments {
    fn config(&self, seed: u64) -> Result<Config, String> {
        let mut config = Config::new(seed);
        config.faults_for = Duration::from_secs(self.faults_for);
        config.load.operations = self.operations;
        config.disk.lie_about_syncs = self.lie_about_syncs;
        let without = Without::parse(&self.without_faults, &self.without_steps)?;
        (config.skipped_faults, config.skipped_steps) = (without.faults, without.steps);
        Ok(config)
    }

    /// What makes another process run this seed.
    fn flags(&self, seed: u64) -> Vec<String> {
        let mut flags = vec![format!("--seed={seed}")];
        let mut flag = |given: bool, text: String| flags.extend(given.then_some(text));
        flag(self.faults_for != 30, format!("--faults-for={}", self.faults_for));
        flag(self.operations != Config::STEPS, format!("--operations={}", self.operations));
        flag(!self.without_faults.is_empty(), format!("--without-faults={}", self.without_faults));
        flag(!self.without_steps.is_empty(), format!("--without-steps={}", self.without_steps));
        flag(self.lie_about_syncs, "--lie-about-syncs".to_owned());
        flags
    }

    fn replay(&self, seed: u64) -> String {
        format!("replay: cargo run --release -p nearring-sim --bin fuzz -- '{}'", self.flags(seed).join("' '"))
    }
}

/// How a run in another process ended.
struct Ran {
    stdout: String,
    stderr: String,
    success: bool,
}

impl Ran {
    fn simulated_secs(&self) -> f64 {
        let before = self.stdout.split_once(" s simulated").map(|(before, _)| before);
        before.and_then(|before| before.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }
}

/// Runs a seed in a process of its own.
fn child(arguments: &Arguments, seed: u64) -> io::Result<Ran> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments.flags(seed))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let read = |from: Option<&mut dyn Read>| {
        let mut bytes = Vec::new();
        let read = from.map_or(Ok(0), |from| from.read_to_end(&mut bytes));
        read.map(|_| String::from_utf8_lossy(&bytes).into_owned())
    };
    let (done, is_done) = mpsc::channel::<()>();
    let id = child.id();
    thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(HANGS_AFTER) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Whoever reads its output then sees its end.
                let _ = Command::new("kill").arg("-9").arg(id.to_string()).status();
            }
        });
        let stderr = scope.spawn(move || read(err.as_mut().map(|err| err as &mut dyn Read)));
        let stdout = read(out.as_mut().map(|out| out as &mut dyn Read))?;
        let stderr = stderr.join().unwrap_or_else(|_| Ok(String::new()))?;
        let status = child.wait()?;
        drop(done);
        let mut stderr = stderr;
        if status.code().is_none() {
            stderr.push_str("the run was killed: it hung, or the system has no memory left\n");
        }
        Ok(Ran { stdout, stderr, success: status.success() })
    })
}

/// Runs a seed, or runs it twice and compares. What was wrong, if anything.
fn repeat(arguments: &Arguments, seed: u64) -> io::Result<(Ran, bool)> {
    let first = child(arguments, seed)?;
    let mut success = first.success;
    if arguments.twice && child(arguments, seed)?.stdout != first.stdout {
        println!("seed {seed} is not deterministic: a second process reports something else");
        success = false;
    }
    Ok((first, success))
}

/// What a number of seeds came to.
#[derive(Default)]
struct Tally {
    done: u64,
    failed: Vec<u64>,
    simulated_secs: f64,
}

/// Runs many seeds, several at once. Stops early at a failure, unless asked to go on.
fn run_all(arguments: &Arguments, seeds: &[u64]) -> io::Result<Tally> {
    let (next, tally) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    let work = || -> io::Result<()> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let seed = usize::try_from(at).ok().and_then(|at| seeds.get(at));
            let stop = !arguments.keep_going && !lock(&tally).failed.is_empty();
            let Some(seed) = seed.filter(|_| !stop) else { return Ok(()) };
            let (ran, success) = repeat(arguments, *seed)?;
            let mut tally = lock(&tally);
            tally.done += 1;
            tally.simulated_secs += ran.simulated_secs();
            if arguments.campaign.is_none() || !success {
                print!("{}", ran.stdout);
            }
            if !success {
                tally.failed.push(*seed);
                eprint!("{}", ran.stderr);
                println!("{}", arguments.replay(*seed));
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))?;
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The blocks of seeds that the ledger names for this code. A line is
/// `code · commit · first seed · last seed · failed seeds, or "none" · seconds of real time · seconds simulated`.
fn done_blocks(ledger: &Path) -> io::Result<BTreeSet<u64>> {
    let text = match fs::read_to_string(ledger) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let block = |line: &str| {
        let mut fields = line.split('\t');
        (fields.next() == Some(CODE)).then(|| fields.nth(1)?.parse::<u64>().ok()).flatten()
    };
    Ok(text.lines().filter_map(block).collect())
}

fn campaign(arguments: &Arguments, last: u64) -> io::Result<bool> {
    let done = done_blocks(&arguments.ledger)?;
    let commit = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output()?;
    let commit = String::from_utf8_lossy(&commit.stdout).trim().to_owned();
    let until = arguments.minutes.map(|minutes| Instant::now() + Duration::from_secs(minutes * 60));
    let arguments = Arguments { keep_going: true, ..arguments.clone() };
    let blocks = (1..=last).step_by(BLOCK as usize);
    let (all, mut clean) = (blocks.clone().count(), true);
    println!("code {CODE}: {} of {all} blocks of {BLOCK} seeds are in the ledger", done.len());
    for first in blocks.filter(|first| !done.contains(first)) {
        if until.is_some_and(|until| Instant::now() >= until) {
            println!("time is up; run the same command again to go on");
            break;
        }
        let started = Instant::now();
        let end = (first + BLOCK - 1).min(last);
        let seeds: Vec<u64> = (first..=end).collect();
        let tally = run_all(&arguments, &seeds)?;
        clean &= tally.failed.is_empty();
        let failed: Vec<String> = tally.failed.iter().map(u64::to_string).collect();
        let failed = if failed.is_empty() { "none".to_owned() } else { failed.join(",") };
        let (real, simulated) = (started.elapsed().as_secs(), tally.simulated_secs as u64);
        if let Some(dir) = arguments.ledger.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut ledger = fs::OpenOptions::new().create(true).append(true).open(&arguments.ledger)?;
        writeln!(ledger, "{CODE}\t{commit}\t{first}\t{end}\t{failed}\t{real}\t{simulated}")?;
        println!("seeds {first} to {end}: failed {failed}, {real} s of real time, {simulated} s simulated");
    }
    Ok(clean)
}

/// Leaves out what a failing seed does not need, and says what is left.
fn shrink(arguments: &Arguments, seed: u64) -> io::Result<bool> {
    let first = child(arguments, seed)?;
    if first.success {
        println!("seed {seed} does not fail");
        return Ok(true);
    }
    let config = arguments.config(seed).map_err(io::Error::other)?;
    let property = shrink::property_of(&first.stdout);
    println!("shrinking while this stays: {property}");
    let with = |without: &Without| {
        let (without_faults, without_steps) = without.print();
        Arguments { without_faults, without_steps, ..arguments.clone() }
    };
    let faults = shrink::faults_in(&first.stdout);
    let start = Without { faults: config.skipped_faults.clone(), steps: config.skipped_steps.clone() };
    let mut error = None;
    let smallest =
        shrink::shrink(start, &faults, config.load.clients, config.load.operations, &mut |without| match child(
            &with(without),
            seed,
        ) {
            Ok(ran) => !ran.success && shrink::property_of(&ran.stdout) == property,
            Err(other) => {
                error = Some(other);
                false
            }
        });
    if let Some(error) = error {
        return Err(error);
    }
    let smallest = with(&smallest);
    print!("{}", child(&smallest, seed)?.stdout);
    println!("{}", smallest.replay(seed));
    Ok(false)
}

/// Runs one seed here and says what came of it.
fn run(arguments: &Arguments, seed: u64) -> ExitCode {
    let config = match arguments.config(seed) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let started = Instant::now();
    let mut report = cluster::run(&config);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let peak: u64 = peak.unwrap_or(0);
    if peak > MEMORY_KIB_MAX {
        report.violations.push(format!("memory is bounded: {peak} KiB, at most {MEMORY_KIB_MAX} are allowed"));
    }
    print!("{report}");
    let real = started.elapsed().as_secs_f64();
    eprintln!("seed {seed} took {real:.1} s of real time and {} MiB at the most", peak >> 10);
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    // Where the simulation runs there is no clock to print.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .without_time()
        .with_writer(io::stderr)
        .init();
    let arguments = Arguments::parse();
    let ended = match (arguments.campaign, arguments.seed) {
        (Some(last), _) => campaign(&arguments, last),
        (None, Some(seed)) if arguments.shrink => shrink(&arguments, seed),
        (None, Some(seed)) if !arguments.twice => return run(&arguments, seed),
        (None, seed) => {
            let seeds: Vec<u64> = match seed {
                Some(seed) => vec![seed],
                None => (arguments.from..).take(usize::try_from(arguments.seeds).unwrap_or(usize::MAX)).collect(),
            };
            let started = Instant::now();
            run_all(&arguments, &seeds).map(|tally| {
                let Tally { done, failed, simulated_secs } = &tally;
                let real = started.elapsed().as_secs_f64();
                // Not part of any run's report, which must not depend on real time.
                eprintln!(
                    "{done} seeds in {real:.0} s, {:.0} an hour; {:.1} simulated hours a real hour; failed: {failed:?}",
                    *done as f64 * 3600.0 / real,
                    simulated_secs / real
                );
                failed.is_empty()
            })
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot run seeds: {error}");
            ExitCode::FAILURE
        }
    }
}
