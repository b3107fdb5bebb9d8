//! Plants every mistake of `planted/` in turn in a simulated cluster, and tells which seed catches it.
//!
//! ```text
//! cargo run --release -p nearring-sim --bin planted                     # all, each up to the seeds that it names
//! cargo run --release -p nearring-sim --bin planted -- --only NAME --seeds 500
//! cargo run --release -p nearring-sim --bin planted -- --refresh NAME   # its patch does not fit any more
//! ```
//! A copy of the tree with all mistakes in it, each behind its switch, is made and built beside the other build products
//! (`target/planted`); the repository is not touched. Exits with 1 where a mistake escapes the seeds that it names, unless
//! it is marked as open, and where the copy without any mistake does not behave as the real simulator does.
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use nearring_sim::planted::{self, Mistake, SWITCH, Tree, VARIABLE};

/// How often a running seed is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Plants mistakes and tells which seeds catch them.
#[derive(Parser)]
struct Arguments {
    /// Only this mistake; may be given more than once.
    #[arg(long)]
    only: Vec<String>,
    /// Print the mistakes, and do nothing else.
    #[arg(long)]
    list: bool,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Seeds for each mistake at the most, in place of what it names.
    #[arg(long)]
    seeds: Option<u64>,
    /// Mistakes that are tried at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Seeds that must be clean without any mistake.
    #[arg(long, default_value_t = 5)]
    control: u64,
    /// Seconds of real time after which a seed counts as hanging, which is a way of being caught.
    #[arg(long, default_value_t = 300)]
    patience: u64,
    /// Make this patch fit again: writes the files it changes for you to edit, and in a second run the patch.
    #[arg(long)]
    refresh: Option<String>,
    /// Further arguments of `fuzz`, behind `--`.
    #[arg(last = true)]
    fuzz: Vec<String>,
}

/// Where things are.
struct Places {
    repository: PathBuf,
    patches: PathBuf,
    /// Build products of the repository.
    target: PathBuf,
    /// Everything of this program.
    own: PathBuf,
}

impl Places {
    fn find() -> Result<Self, String> {
        let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let repository = crate_dir.parent().ok_or("the crate is not in a workspace")?.to_owned();
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let target = program.ancestors().nth(2).ok_or("this program is not among build products")?.to_owned();
        let own = target.join("planted");
        Ok(Self { patches: crate_dir.join("planted"), repository, target, own })
    }

    fn tree(&self) -> PathBuf {
        self.own.join("tree")
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    fs::write(path, bytes).map_err(failed(path))
}

/// The files of the repository that are not ignored.
fn sources(repository: &Path) -> Result<BTreeSet<String>, String> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(repository);
    let output = git.output().map_err(|error| format!("git cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let there = |name: &&str| !name.is_empty() && repository.join(name).is_file();
    Ok(names.split('\0').filter(there).map(str::to_owned).collect())
}

/// Makes the copy. What is as it was keeps its time, so that a second build is short.
fn copy(places: &Places, mistakes: &[Mistake]) -> Result<(), String> {
    let mut tree = Tree::new(&places.repository);
    mistakes.iter().try_for_each(|mistake| tree.apply(mistake))?;
    let (to, wanted) = (places.tree(), sources(&places.repository)?);
    for name in &wanted {
        let from = places.repository.join(name);
        let bytes = match tree.changed().get(name) {
            Some(text) => text.clone().into_bytes(),
            None => fs::read(&from).map_err(failed(&from))?,
        };
        let path = to.join(name);
        if fs::read(&path).ok().as_ref() != Some(&bytes) {
            write(&path, &bytes)?;
        }
    }
    // What is no source any more must not be one of the copy's either.
    let mut open = vec![to.clone()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).map_err(failed(&dir))? {
            let path = entry.map_err(failed(&dir))?.path();
            let name = path.strip_prefix(&to).unwrap_or(&path).to_string_lossy().into_owned();
            if path.is_dir() {
                open.push(path);
            } else if !wanted.contains(&name) {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
    }
    Ok(())
}

/// Dependencies that are built for the repository are the copy's too: the first build takes them over.
fn take_over_dependencies(places: &Places) -> Result<(), String> {
    let (from, to) = (places.target.join("release"), places.own.join("target/release"));
    if to.exists() || !from.exists() {
        return Ok(());
    }
    for part in ["build", "deps", ".fingerprint"] {
        let mut open = vec![from.join(part)];
        while let Some(dir) = open.pop().filter(|dir| dir.exists()) {
            for entry in fs::read_dir(&dir).map_err(failed(&dir))? {
                let path = entry.map_err(failed(&dir))?.path();
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let ours = ["nearring", "libnearring", "fuzz-", "planted-"].iter().any(|ours| name.starts_with(ours));
                if ours {
                    continue;
                }
                if path.is_dir() {
                    open.push(path);
                    continue;
                }
                let copy = to.join(path.strip_prefix(&from).unwrap_or(&path));
                let parent = copy.parent().unwrap_or(&to);
                fs::create_dir_all(parent).map_err(failed(parent))?;
                fs::copy(&path, &copy).map_err(failed(&copy))?;
                // cargo compares times.
                let time = fs::metadata(&path).and_then(|metadata| metadata.modified()).map_err(failed(&path))?;
                let file = File::options().write(true).open(&copy);
                file.and_then(|file| file.set_modified(time)).map_err(failed(&copy))?;
            }
        }
    }
    Ok(())
}

/// Builds `fuzz` of a workspace; where it is then.
fn build(workspace: &Path, target: &Path) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "-p", "nearring-sim", "--bin", "fuzz", "--target-dir"]);
    let built = build.arg(target).current_dir(workspace).stdout(Stdio::null()).status();
    match built {
        Ok(status) if status.success() => Ok(target.join("release/fuzz")),
        Ok(_) => Err(format!("the tree in {} does not build", workspace.display())),
        Err(error) => Err(format!("cargo cannot be run: {error}")),
    }
}

/// How one seed went.
struct Run {
    /// What it reported.
    report: String,
    /// The first thing that was wrong.
    wrong: Option<String>,
    /// Whether the switch of the mistake was asked where it matters.
    reached: bool,
}

struct Runner<'a> {
    arguments: &'a Arguments,
    out: PathBuf,
}

impl Runner<'_> {
    /// Runs one seed in a process of its own. What it prints stays in a file while something is wrong.
    fn run(&self, fuzz: &Path, mistake: &str, seed: u64) -> Result<Run, String> {
        let named = |kind: &str| self.out.join(format!("{mistake}-{seed}.{kind}"));
        let (report, errors) = (named("report"), named("errors"));
        write(&report, b"")?;
        let file = |path: &Path| File::create(path).map_err(failed(path));
        let mut command = Command::new(fuzz);
        command.arg(format!("--seed={seed}")).args(&self.arguments.fuzz).env("RUST_LOG", "off").env(VARIABLE, mistake);
        let child = command.stdout(file(&report)?).stderr(file(&errors)?).stdin(Stdio::null()).spawn();
        let mut child = child.map_err(failed(fuzz))?;
        let until = Instant::now() + Duration::from_secs(self.arguments.patience);
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed(fuzz))? {
                break Some(status);
            }
            if Instant::now() >= until {
                // It may have ended in this moment; either way it is over.
                let _ = child.kill();
                child.wait().map_err(failed(fuzz))?;
                break None;
            }
            std::thread::sleep(LOOK);
        };
        let read = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let (text, said) = (read(&report).map_err(failed(&report))?, read(&errors).map_err(failed(&errors))?);
        let wrong = match status {
            None => Some(format!("it did not end within {} s", self.arguments.patience)),
            Some(status) if status.success() => None,
            Some(status) => Some(first_violation(&text).unwrap_or_else(|| format!("no report, {status}"))),
        };
        if wrong.is_none() {
            fs::remove_file(&report).and_then(|()| fs::remove_file(&errors)).map_err(failed(&report))?;
        }
        Ok(Run { report: text, wrong, reached: said.contains(&format!("planted: {mistake} is reached")) })
    }

    /// Runs seeds until one shows the mistake.
    fn hunt(&self, fuzz: &Path, mistake: &Mistake) -> Result<Row, String> {
        let began = Instant::now();
        let most = self.arguments.seeds.unwrap_or(mistake.seeds);
        let mut row = Row { tried: 0, reached: 0, caught: None, took: Duration::ZERO };
        for seed in (self.arguments.from..).take(usize::try_from(most).unwrap_or(usize::MAX)) {
            let run = self.run(fuzz, &mistake.name, seed)?;
            row.tried += 1;
            row.reached += u64::from(run.reached);
            if let Some(wrong) = run.wrong {
                row.caught = Some((seed, wrong));
                break;
            }
        }
        row.took = began.elapsed();
        Ok(row)
    }
}

/// The first line of a report that says what must not be.
fn first_violation(report: &str) -> Option<String> {
    report.lines().skip(1).find(|line| !line.starts_with("  ")).map(str::to_owned)
}

/// What came of one mistake.
struct Row {
    tried: u64,
    reached: u64,
    /// Seed and violation.
    caught: Option<(u64, String)>,
    took: Duration,
}

impl Row {
    /// Whether it is as the patch says.
    fn is_as_stated(&self, mistake: &Mistake) -> bool {
        match &self.caught {
            Some(_) => mistake.open.is_some() || self.tried <= mistake.seeds,
            // With fewer seeds than it names nothing is shown.
            None => mistake.open.is_some() || self.tried < mistake.seeds,
        }
    }

    fn text(&self, mistake: &Mistake) -> String {
        let (result, by) = match &self.caught {
            Some((seed, violation)) => {
                let violation: String = violation.chars().take(110).collect();
                let news = if mistake.open.is_some() { " (was open: strike that)" } else { "" };
                (format!("{} (seed {seed}){news}", self.tried), violation.replace('|', "/"))
            }
            None if mistake.open.is_some() => (format!("open after {}", self.tried), String::new()),
            None => (format!("escaped {}", self.tried), String::new()),
        };
        let Self { tried, reached, took, .. } = self;
        let Mistake { name, what, seeds, .. } = mistake;
        format!("| {name} | {what} | {result} | {seeds} | {reached} of {tried} | {by} | {:.0} s |", took.as_secs_f64())
    }
}

/// Without a mistake the copy is the real simulator.
fn control(runner: &Runner<'_>, real: &Path, copy: &Path) -> Result<(), String> {
    let Arguments { from, control, .. } = runner.arguments;
    for seed in (*from..).take(usize::try_from(*control).unwrap_or(usize::MAX)) {
        if let Some(wrong) = runner.run(copy, "none", seed)?.wrong {
            return Err(format!("seed {seed} fails without any mistake: {wrong}"));
        }
    }
    let (real, copy) = (runner.run(real, "none", *from)?.report, runner.run(copy, "none", *from)?.report);
    if real != copy {
        return Err(format!("without a mistake the copy is another program:\n{real}\n{copy}"));
    }
    println!("control: {control} seeds clean, and seed {from} as in the real build: {}", real.trim());
    Ok(())
}

/// Makes a patch fit again, in two runs: files to edit, then the patch from what they hold.
fn refresh(places: &Places, mistakes: &[Mistake], name: &str) -> Result<(), String> {
    let mistake = mistakes.iter().find(|mistake| mistake.name == name).ok_or_else(|| format!("no mistake {name:?}"))?;
    let mut before = Tree::new(&places.repository);
    // Those that do not fit either are not in the way: each is refreshed in its turn.
    let earlier = mistakes.iter().take_while(|other| other.name != name);
    earlier.for_each(|other| drop(before.apply(other)));
    let edit = places.own.join("refresh").join(name);
    let patch = places.patches.join(format!("{name}.patch"));
    if !edit.exists() {
        for path in mistake.files() {
            write(&edit.join(&path), before.read(&path)?.as_bytes())?;
            println!("make the mistake in {}", edit.join(&path).display());
        }
        println!("then run the same command again; {} shows how it was made before", patch.display());
        return Ok(());
    }
    let mut after = BTreeMap::new();
    for path in mistake.files() {
        after.insert(path.clone(), fs::read_to_string(edit.join(&path)).map_err(failed(&edit))?);
    }
    let refreshed = mistake.refreshed(&before, &after)?;
    if Mistake::parse(name, &refreshed)?.files().is_empty() {
        return Err(format!("nothing is changed in {} yet; make the mistake there", edit.display()));
    }
    write(&patch, refreshed.as_bytes())?;
    fs::remove_dir_all(&edit).map_err(failed(&edit))?;
    println!("{} is written", patch.display());
    Ok(())
}

fn run(arguments: &Arguments) -> Result<bool, String> {
    let places = Places::find()?;
    let mistakes = planted::load(&places.patches)?;
    if let Some(name) = &arguments.refresh {
        return refresh(&places, &mistakes, name).map(|()| true);
    }
    let chosen = |mistake: &&Mistake| {
        mistake.name != SWITCH && (arguments.only.is_empty() || arguments.only.contains(&mistake.name))
    };
    let chosen: Vec<&Mistake> = mistakes.iter().filter(chosen).collect();
    if let Some(unknown) = arguments.only.iter().find(|name| !chosen.iter().any(|mistake| mistake.name == **name)) {
        return Err(format!("no mistake {unknown:?}; --list names them"));
    }
    if arguments.list {
        for Mistake { name, what, like, judge, seeds, open, .. } in chosen {
            println!("{name}: {what}\n  judged by: {judge}; within {seeds} seeds");
            like.iter().for_each(|like| println!("  like: {like}"));
            open.iter().for_each(|open| println!("  open, needs: {open}"));
        }
        return Ok(true);
    }
    copy(&places, &mistakes)?;
    take_over_dependencies(&places)?;
    let copy = build(&places.tree(), &places.own.join("target"))?;
    let real = build(&places.repository, &places.target)?;
    let runner = Runner { arguments, out: places.own.join("out") };
    control(&runner, &real, &copy)?;
    println!(
        "| mistake | what | seeds needed | stated | reached in | caught by | time |\n|---|---|---|---|---|---|---|"
    );
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || -> Result<(), String> {
        while let Some(mistake) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let row = runner.hunt(&copy, mistake)?;
            let mut rows = rows.lock().map_err(|error| error.to_string())?;
            println!("{}", row.text(mistake));
            rows.insert(mistake.name.clone(), row.is_as_stated(mistake).then_some(row.caught.is_some()));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err("a worker panicked".into())));
        ends.collect::<Result<Vec<()>, String>>()
    })?;
    let rows = rows.into_inner().map_err(|error| error.to_string())?;
    let escaped: Vec<&String> = rows.iter().filter(|(_, stated)| stated.is_none()).map(|(name, _)| name).collect();
    let caught = rows.values().filter(|stated| **stated == Some(true)).count();
    println!("{caught} of {} caught within what they state; escaped: {escaped:?}", rows.len());
    Ok(escaped.is_empty())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
