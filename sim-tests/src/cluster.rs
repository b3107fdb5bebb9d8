//! A whole cluster in one thread: nodes, a router and clients, run through faults and judged afterwards.
//!
//! A run has three parts. Clients work while faults come and go; then everything is repaired and started again and the
//! remaining operations finish; then one client waits until all has healed and reads everything, and the judges look at the history. Everything that is
//! drawn comes from [`Config::seed`], and [`Report::trace`] is a digest of what the clients saw and of every byte that
//! reached a disk, so two runs of one configuration either have equal traces or differ somewhere that matters.
//!
//! A seed repeats itself only as the first run of a process: tokio counts the runtimes it seeds, process-wide. The program
//! `fuzz` therefore gives every seed a process of its own, and so do the tests.
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use nearring_client::Client;
use nearring_node::clock::Clock;
use nearring_node::compute::{Compute, Lane, Pauses};
use nearring_node::medium::Medium as _;
use nearring_node::node::NodeBuilder;
use nearring_node::store::EngineKind;
use nearring_proto::ids::NodeId;
use nearring_proto::wire::nearring_client::NearringClient;
use nearring_router::router::RouterBuilder;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::convergence;
use crate::disk::{Faults, SimDisk};
use crate::entropy;
use crate::faults::{self, Fault, Host};
use crate::history::{History, Violation};
use crate::inject::Injector;
use crate::invariants::{self, Evidence};
use crate::knobs::{Counts, Knobs};
use crate::model::Outcome;
use crate::net;
use crate::watch::{self, Bounds, Watched};
use crate::whole;
use crate::workload::{self, Homes, Load, Worker};

const DATA_DIR: &str = "/data";
const NODE_PORT: u16 = 7000;
const ROUTER_PORT: u16 = 6334;
/// How far one step of the simulation moves time: messages arrive at its ends, timers within a host are exact. What a run
/// costs is mostly its steps, so some seeds have coarse ones.
const TICKS: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(2), Duration::from_millis(4)];
/// How long a process that ended by itself stays down.
pub(crate) const RESTART: Duration = Duration::from_millis(700);
/// How long a message takes, at the least and at the most, where nothing is wrong.
pub(crate) const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(15));
/// How long after its last fault a run is watched that was damaged beyond what it promises to survive.
const BEYOND: Duration = Duration::from_secs(20);
/// How often nodes are asked whether all is whole, while somebody wants to know.
const WHOLE_EVERY: Duration = Duration::from_millis(250);
/// What nodes may hold with the settings that [`add_node`] gives them.
const BOUNDS: Bounds = Bounds { log_bytes: 12 << 20, tail_vectors: 400, inflight_bytes: 64 << 20 };

/// What is run.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Decides everything that is drawn.
    pub seed: u64,
    /// Nodes, an odd number; all are seeds of the meta group.
    pub nodes: u64,
    /// How far one step of the simulation moves time.
    pub tick: Duration,
    /// What clients do.
    pub load: Load,
    /// How long faults are started; zero for none.
    pub faults_for: Duration,
    /// One fault about every so often.
    pub fault_every: Duration,
    /// Members from which on a segment gets a graph.
    pub graph_from: usize,
    /// What every node's disk does wrong, beside what the faults do to it.
    pub disk: Faults,
    /// Faults, by number, that are left out: for shrinking a failure.
    pub skipped_faults: BTreeSet<usize>,
    /// Steps of clients, (client, step), that are left out.
    pub skipped_steps: BTreeSet<(u64, u64)>,
}

impl Config {
    /// Steps of each client.
    pub const STEPS: u64 = 75;

    /// Three nodes, three clients, half a minute of faults. How many points there are, how large they are and how soon
    /// they are sealed is drawn from the seed: some runs purge their logs often, some build and merge many segments.
    pub fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x7368_6170_6500);
        Self {
            seed,
            nodes: 3,
            tick: TICKS.choose(&mut rng).copied().unwrap_or(Duration::from_millis(1)),
            load: Load {
                clients: 3,
                operations: Self::STEPS,
                keys: rng.random_range(6..=14),
                documents: rng.random_range(1..=2),
                pause: Duration::from_millis(600),
                shards: 2,
                seal_points: rng.random_range(1..=4),
                payload_bytes: [2_000, 12_000, 24_000].choose(&mut rng).copied().unwrap_or(24_000),
            },
            faults_for: Duration::from_secs(30),
            fault_every: Duration::from_millis(2500),
            // With graphs, without, and both as segments grow.
            graph_from: [2, 6, usize::MAX].choose(&mut rng).copied().unwrap_or(2),
            disk: Faults { torn_blocks: true, ..Faults::default() },
            skipped_faults: BTreeSet::new(),
            skipped_steps: BTreeSet::new(),
        }
    }
}

/// How a run went.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// What was run.
    pub config: Config,
    /// What went wrong on purpose.
    pub faults: Vec<Fault>,
    /// Everything that must not be.
    pub violations: Vec<String>,
    /// A digest of everything clients saw and disks got, in order.
    pub trace: blake3::Hash,
    /// Operations asked.
    pub operations: usize,
    /// Operations whose outcome stayed unknown.
    pub unknown: usize,
    /// How often what was reached inside the nodes.
    pub reached: BTreeMap<&'static str, u64>,
    /// Simulated time from start to end.
    pub simulated: Duration,
    /// How often each thing was made to go wrong, by name.
    pub injected: Counts,
    /// Whether more was damaged than the cluster promises to survive.
    pub beyond: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, faults, violations, trace, operations, unknown, reached, simulated, injected, beyond } =
            self;
        writeln!(
            f,
            "seed {}: {operations} operations, {unknown} of unknown outcome, {:.1} s simulated, trace {trace}",
            config.seed,
            simulated.as_secs_f64()
        )?;
        let list = |counts: &mut dyn Iterator<Item = String>| counts.collect::<Vec<_>>().join(", ");
        let beyond = if *beyond { ", beyond the budget" } else { "" };
        writeln!(
            f,
            "  injected{beyond}: {}",
            list(&mut injected.iter().map(|(name, count)| format!("{name} {count}")))
        )?;
        writeln!(f, "  reached: {}", list(&mut reached.iter().map(|(name, count)| format!("{name} {count}"))))?;
        if !violations.is_empty() {
            (0..).zip(faults).try_for_each(|(number, fault): (usize, _)| writeln!(f, "  {number:>3} {fault}"))?;
        }
        violations.iter().try_for_each(|violation| writeln!(f, "{violation}"))
    }
}

/// Runs a cluster and judges it.
///
/// # Panics
/// Where the simulator itself cannot go on; a panic of a node's own future is reported as a violation.
pub fn run(config: &Config) -> Report {
    note_panics();
    entropy::on_thread(config.seed, || Cluster::new(config).run())
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Writes down every panic beside what is done about it: a runtime swallows those of spawned tasks.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // A panic within a panic, or while the thread ends, is printed all the same.
            let _ = PANICS.try_with(|panics| {
                if let Ok(mut panics) = panics.try_borrow_mut() {
                    panics.push(panic.to_string());
                }
            });
            before(panic);
        }));
    });
}

/// What hosts share with whoever drives them. One thread runs them all.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    pub(crate) history: History,
    /// Whether the faults are over and everything runs.
    pub(crate) healed: Rc<Cell<bool>>,
    /// Whether all clients have finished.
    pub(crate) finished: Rc<Cell<bool>>,
    /// Where keys live; known once the collection is made.
    homes: Rc<RefCell<Rc<Homes>>>,
    /// What nodes said of themselves.
    watched: Rc<RefCell<Watched>>,
    /// Hosts whose process ended by itself, and when.
    pub(crate) ended: Rc<RefCell<BTreeMap<Host, Duration>>>,
    /// Starts of each host, so that a later life does not draw what an earlier one did.
    pub(crate) starts: Rc<RefCell<BTreeMap<Host, u64>>>,
    /// Whether somebody waits for the cluster to be whole.
    pub(crate) wants_whole: Rc<Cell<bool>>,
    /// Whether it has just been seen whole (see [`crate::whole`]).
    pub(crate) whole: Rc<Cell<bool>>,
    /// Whether more was damaged than the cluster promises to survive: then it owes no answers, only true ones.
    pub(crate) beyond: Rc<Cell<bool>>,
}

impl Shared {
    fn end(&self, host: Host, how: fmt::Arguments<'_>) {
        self.history.note(format_args!("{host} ended: {how}"));
        self.ended.borrow_mut().insert(host, turmoil::sim_elapsed().unwrap_or_default());
    }

    fn start(&self, host: Host) -> u64 {
        let mut starts = self.starts.borrow_mut();
        let count = starts.entry(host).or_default();
        *count += 1;
        *count
    }
}

pub(crate) struct Cluster<'a> {
    pub(crate) config: &'a Config,
    pub(crate) sim: turmoil::Sim<'a>,
    pub(crate) disks: BTreeMap<u64, SimDisk>,
    pub(crate) skews: BTreeMap<u64, Arc<AtomicI64>>,
    pub(crate) shared: Shared,
    pub(crate) faults: Vec<Fault>,
    pub(crate) injector: Injector,
}

fn address(host: Host) -> String {
    match host {
        Host::Node(_) => format!("{host}:{NODE_PORT}"),
        Host::Router => format!("{host}:{ROUTER_PORT}"),
    }
}

/// As an operator does, before the node is started.
pub(crate) fn make_data_dir(disk: &SimDisk) {
    let made = disk.create_dir_all(Path::new(DATA_DIR)).and_then(|()| disk.sync_dir(Path::new("/")));
    made.unwrap_or_else(|error| panic!("a new disk: {error}"));
}

impl<'a> Cluster<'a> {
    fn new(config: &'a Config) -> Self {
        let mut rng = SmallRng::seed_from_u64(config.seed);
        let mut sim = turmoil::Builder::new()
            .rng_seed(rng.random())
            .epoch(std::time::UNIX_EPOCH + entropy::EPOCH)
            .simulation_duration(Duration::from_secs(24 * 3600)) // our own limit comes first, and explains itself
            .tick_duration(config.tick)
            .min_message_latency(LATENCY.0)
            .max_message_latency(LATENCY.1)
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let shared = Shared::default();
        let (mut disks, mut skews, mut injector) = (BTreeMap::new(), BTreeMap::new(), Injector::default());
        let seeds: Vec<_> = (1..=config.nodes).map(|node| (NodeId(node), address(Host::Node(node)))).collect();
        for node in 1..=config.nodes {
            let (disk, skew) = (SimDisk::new(rng.random()), Arc::new(AtomicI64::new(0)));
            make_data_dir(&disk);
            disk.set_faults(config.disk);
            let knobs = injector.knobs.entry(Host::Node(node)).or_default();
            disk.attach(knobs);
            add_node(&mut sim, node, rng.random(), seeds.clone(), config.graph_from, &disk, &skew, knobs, &shared);
            disks.insert(node, disk);
            skews.insert(node, skew);
        }
        let addresses: Vec<String> = seeds.iter().map(|(_, address)| address.clone()).collect();
        add_router(&mut sim, rng.random(), addresses, injector.knobs.entry(Host::Router).or_default(), &shared);
        let clients = (0..config.load.clients).map(|_| rng.random()).collect();
        add_clients(&mut sim, config, clients, &shared);
        let from = Duration::from_secs(3);
        let faults = faults::draw(&mut rng, config.nodes, from, from + config.faults_for, config.fault_every);
        Self { config, sim, disks, skews, shared, faults, injector }
    }

    fn run(mut self) -> Report {
        let mut violations = Vec::new();
        if let Err(stopped) = self.steps() {
            violations.push(stopped);
        }
        violations.extend(PANICS.take().into_iter().map(|panic| format!("a panic: {panic}")));
        let history = &self.shared.history;
        let (operations, looks) = (history.operations(), history.looks());
        let (homes, keys) = (self.shared.homes.borrow().clone(), self.config.load.all_keys());
        let evidence = Evidence { operations: &operations, looks: &looks, homes: &homes, keys: &keys };
        let judged = [history.complaints(), invariants::judge(&evidence)].concat();
        violations.extend(judged.iter().map(Violation::to_string));
        let mut trace = blake3::Hasher::new();
        trace.update(history.digest().as_bytes());
        for disk in self.disks.values() {
            trace.update(disk.digest().as_bytes());
        }
        Report {
            injected: self.injected(),
            beyond: self.shared.beyond.get(),
            config: self.config.clone(),
            faults: self.faults,
            violations,
            trace: trace.finalize(),
            unknown: operations.iter().filter(|operation| operation.outcome == Outcome::Unknown).count(),
            operations: operations.len() + looks.len(),
            reached: self.shared.watched.borrow().reached.clone(),
            simulated: self.sim.elapsed(),
        }
    }

    /// Steps until the judge is done.
    ///
    /// # Errors
    /// What ended the simulation early.
    fn steps(&mut self) -> Result<(), String> {
        let kept = (0..).zip(&self.faults).filter(|(number, _)| !self.config.skipped_faults.contains(number));
        let mut events: Vec<(Duration, bool, Fault)> =
            kept.flat_map(|(_, fault)| [(fault.from, true, *fault), (fault.until, false, *fault)]).collect();
        events.sort_by_key(|(at, begins, _)| (std::cmp::Reverse(*at), *begins)); // popped from the end
        let last = self.faults.iter().map(|fault| fault.until).max().unwrap_or_default();
        // Every operation ends by its deadline, and retries are few.
        let patience = self.config.load.pause + Duration::from_secs(60);
        let limit = last + patience * u32::try_from(self.config.load.operations).unwrap_or(u32::MAX);
        let mut healed_at = None;
        loop {
            entropy::set_elapsed(self.sim.elapsed());
            let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.sim.step()));
            match step {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => return Ok(()),
                Ok(Err(error)) => return Err(format!("a host failed: {error}")),
                Err(_) => return Err("a host panicked".to_owned()),
            }
            let now = self.sim.elapsed();
            while events.last().is_some_and(|(at, ..)| *at <= now) {
                if let Some((_, begins, fault)) = events.pop() {
                    self.apply(&fault, begins);
                }
            }
            self.tend();
            if events.is_empty() && !self.shared.healed.get() && now >= last + Duration::from_secs(1) {
                self.heal();
            }
            if self.shared.finished.get() && self.shared.healed.get() {
                let since = *healed_at.get_or_insert(now);
                if now > since + convergence::HEALS_WITHIN * 3 {
                    return Err("the healed cluster does not let itself be judged".to_owned());
                }
            }
            // Whoever has no majority any more answers nothing, for ever; what was answered is judged.
            if self.shared.beyond.get() && self.shared.healed.get() && now > last + BEYOND {
                self.shared.history.note(format_args!("not waited for any longer"));
                return Ok(());
            }
            if now > limit {
                return Err(format!("clients had not finished after {limit:?}"));
            }
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "one for each part of a host")]
fn add_node(
    sim: &mut turmoil::Sim<'_>,
    node: u64,
    seed: u64,
    seeds: Vec<(NodeId, String)>,
    graph_from: usize,
    disk: &SimDisk,
    skew: &Arc<AtomicI64>,
    knobs: &Knobs,
    shared: &Shared,
) {
    let host = Host::Node(node);
    let (disk, skew, knobs, shared) = (disk.clone(), skew.clone(), knobs.clone(), shared.clone());
    sim.host(host.to_string(), move || {
        let (disk, skew, shared, seeds) = (disk.clone(), skew.clone(), shared.clone(), seeds.clone());
        let knobs = knobs.clone();
        let seed = seed.wrapping_add(shared.start(host));
        let mut settings = nearring_node::settings::Settings::new(NodeId(node), DATA_DIR, address(host), seeds);
        settings.limits.log_bytes = 2 << 20; // two files, so that snapshots are taken
        settings.limits.disk_reserve_bytes = 1 << 20;
        settings.graph_from = graph_from;
        let clock = clock(skew);
        async move {
            let incoming = net::listen(NODE_PORT, &knobs).await?;
            let serving = NodeBuilder::new(settings)
                .medium(Arc::new(disk))
                .dial(net::dial_as(&knobs))
                .compute(Compute::Simulated(pauses(seed, &knobs)))
                .clock(clock)
                .engine(EngineKind::Memory)
                .seed(seed)
                .serve(incoming, std::future::pending());
            let served = beside_leaps(serving, &knobs).await;
            shared.end(host, format_args!("{served:?}"));
            Ok(())
        }
    });
}

/// Most work is quick, some takes as long as a message, and now and then a disk hangs: between a message that is sent and
/// the sync that should cover it, everything can happen.
fn pauses(seed: u64, knobs: &Knobs) -> Pauses {
    let knobs = knobs.clone();
    let rng = Mutex::new(SmallRng::seed_from_u64(seed ^ 0x7061_7573_6573));
    Pauses::new(Arc::new(move |lane| {
        let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = match (lane, rng.random_range(0..1000)) {
            (Lane::Cpu, _) => rng.random_range(0..500),
            (Lane::Build, _) => rng.random_range(0..500_000),
            (Lane::Io, 0..=899) => rng.random_range(0..3_000),
            (Lane::Io, 900..=996) => rng.random_range(3_000..40_000),
            (Lane::Io, _) => rng.random_range(40_000..400_000),
        };
        knobs.work(lane, Duration::from_micros(micros))
    }))
}

/// Runs a host's process while its monotonic clock may jump.
async fn beside_leaps<T>(serving: impl Future<Output = T>, knobs: &Knobs) -> T {
    let mut serving = std::pin::pin!(serving);
    let mut leaps = std::pin::pin!(knobs.leaps());
    std::future::poll_fn(|cx| {
        let served = serving.as_mut().poll(cx);
        if served.is_pending() {
            let _ = leaps.as_mut().poll(cx); // it never ends
        }
        served
    })
    .await
}

fn add_router(sim: &mut turmoil::Sim<'_>, seed: u64, nodes: Vec<String>, knobs: &Knobs, shared: &Shared) {
    let (shared, knobs) = (shared.clone(), knobs.clone());
    sim.host(Host::Router.to_string(), move || {
        let (shared, nodes, knobs) = (shared.clone(), nodes.clone(), knobs.clone());
        let seed = seed.wrapping_add(shared.start(Host::Router));
        async move {
            let incoming = net::listen(ROUTER_PORT, &knobs).await?;
            let serving = RouterBuilder::new(nearring_router::settings::Settings::new(nodes))
                .dial(net::dial_as(&knobs))
                .seed(seed)
                .clock(clock(Arc::default()))
                .compute(nearring_router::compute::Compute::Inline)
                .serve(incoming, std::future::pending());
            let served = beside_leaps(serving, &knobs).await;
            shared.end(Host::Router, format_args!("{served:?}"));
            Ok(())
        }
    });
}

/// Wall time of a host whose clock is so many milliseconds ahead.
fn clock(skew: Arc<AtomicI64>) -> Clock {
    Clock::with(Arc::new(move || {
        // Not the host's own time, which a fault may make jump.
        let now = entropy::EPOCH + entropy::elapsed();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        now.saturating_add_signed(skew.load(Ordering::Relaxed))
    }))
}

fn client(seed: u64) -> Result<Client, nearring_client::Error> {
    let builder = Client::builder(address(Host::Router)).dial(net::dial()).deadline(Duration::from_secs(2));
    builder.clock(clock(Arc::default())).seed(seed).build()
}

/// All clients are one host: turmoil's cost is by host and tick, and nothing that happens to a client alone is simulated.
fn add_clients(sim: &mut turmoil::Sim<'_>, config: &Config, seeds: Vec<u64>, shared: &Shared) {
    let (config, shared) = (config.clone(), shared.clone());
    sim.client("clients", async move {
        let nodes: Vec<String> = (1..=config.nodes).map(|node| address(Host::Node(node))).collect();
        let (history, load) = (shared.history.clone(), config.load);
        let watching = watch::watch(nodes.clone(), net::dial(), BOUNDS, history.clone(), shared.watched.clone());
        let looking = look_whether_whole(nodes, shared.clone());
        let working = async {
            let homes = workload::create_collection(&client(config.seed)?, &load, &history).await;
            let homes = Rc::new(Homes::new(homes));
            *shared.homes.borrow_mut() = homes.clone();
            let worker = |number: u64, seed: u64| -> Result<Worker, nearring_client::Error> {
                let skipped = config.skipped_steps.iter().filter(|(client, _)| *client == number);
                Ok(Worker {
                    number,
                    seed,
                    client: client(seed)?,
                    bare: NearringClient::new(net::dial()(&address(Host::Router))),
                    load,
                    homes: homes.clone(),
                    history: history.clone(),
                    skipped: skipped.map(|(_, step)| *step).collect(),
                    nodes: config.nodes,
                })
            };
            let workers: Result<Vec<Worker>, _> =
                (0..).zip(seeds.iter().copied()).map(|(number, seed)| worker(number, seed)).collect();
            let workers = workers?;
            futures::future::join_all(workers.iter().map(Worker::run)).await;
            shared.finished.set(true);
            while !shared.healed.get() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if shared.beyond.get() {
                return Ok(());
            }
            convergence::converge(&worker(config.load.clients, 0)?, nodes_of(&config)).await;
            Ok::<_, nearring_client::Error>(())
        };
        tokio::select! {
            worked = working => worked?,
            () = watching => {}
            () = looking => {}
        }
        Ok(())
    });
}

fn nodes_of(config: &Config) -> usize {
    usize::try_from(config.nodes).unwrap_or(usize::MAX)
}

/// Looks whether the cluster is whole, while somebody wants to know; never ends.
async fn look_whether_whole(addresses: Vec<String>, shared: Shared) {
    let mut before = None;
    loop {
        tokio::time::sleep(WHOLE_EVERY).await;
        if !shared.wants_whole.get() {
            before = None;
            continue;
        }
        let Some(statuses) = whole::ask(&addresses).await else {
            before = None;
            continue;
        };
        if let Some(before) = before.replace(whole::applied(&statuses))
            && whole::check(&before, &statuses).is_ok()
        {
            shared.whole.set(true);
        }
    }
}
