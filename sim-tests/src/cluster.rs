//! A whole cluster in one thread: nodes, a router and clients, run through faults and judged afterwards.
//!
//! A run has three parts. Clients work while faults come and go; then everything is repaired and started again and the
//! remaining operations finish; then one client reads everything, and the oracles judge the history. Everything that is
//! drawn comes from [`Config::seed`], and [`Report::trace`] is a digest of what the clients saw and of every byte that
//! reached a disk, so two runs of one configuration either have equal traces or differ somewhere that matters.
//!
//! A seed repeats itself only as the first run of a process: tokio counts the runtimes it seeds, process-wide. The program
//! `fuzz` therefore gives every seed a process of its own, and so do the tests.
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
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
use nearring_router::router::RouterBuilder;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Faults, SimDisk};
use crate::entropy;
use crate::faults::{self, Fault, Host, Kind};
use crate::history::History;
use crate::net;
use crate::oracle::{self, Violation};
use crate::workload::{self, Load};

const DATA_DIR: &str = "/data";
const NODE_PORT: u16 = 7000;
const ROUTER_PORT: u16 = 6334;
/// How far one step of the simulation moves time.
const TICK: Duration = Duration::from_millis(1);
/// How long a process that ended by itself stays down.
const RESTART: Duration = Duration::from_millis(700);
/// How long a healed cluster may take to answer everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is run.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Decides everything that is drawn.
    pub seed: u64,
    /// Nodes, an odd number; all are seeds of the meta group.
    pub nodes: u64,
    /// What clients do.
    pub load: Load,
    /// How long faults are started; zero for none.
    pub faults_for: Duration,
    /// One fault about every so often.
    pub fault_every: Duration,
    /// What every node's disk does wrong, beside what the faults do to it.
    pub disk: Faults,
}

impl Config {
    /// Three nodes, three clients, a minute of faults.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 3,
            load: Load {
                clients: 3,
                operations: 160,
                keys: 6,
                pause: Duration::from_millis(1500),
                shards: 2,
                seal_points: 16,
            },
            faults_for: Duration::from_secs(60),
            fault_every: Duration::from_secs(4),
            disk: Faults { torn_blocks: true, ..Faults::default() },
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
    /// Simulated time from start to end.
    pub simulated: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, faults, violations, trace, operations, unknown, simulated } = self;
        writeln!(
            f,
            "seed {}: {operations} operations, {unknown} of unknown outcome, {:.1} s simulated, trace {trace}",
            config.seed,
            simulated.as_secs_f64()
        )?;
        if !violations.is_empty() {
            faults.iter().try_for_each(|fault| writeln!(f, "  {fault}"))?;
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
struct Shared {
    history: History,
    /// Whether the faults are over and everything runs.
    healed: Rc<Cell<bool>>,
    /// Clients that have finished.
    finished: Rc<Cell<u64>>,
    /// Hosts whose process ended by itself, and when.
    ended: Rc<RefCell<BTreeMap<Host, Duration>>>,
    /// Starts of each host, so that a later life does not draw what an earlier one did.
    starts: Rc<RefCell<BTreeMap<Host, u64>>>,
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

struct Cluster<'a> {
    config: &'a Config,
    sim: turmoil::Sim<'a>,
    disks: BTreeMap<u64, SimDisk>,
    skews: BTreeMap<u64, Arc<AtomicI64>>,
    shared: Shared,
    faults: Vec<Fault>,
}

fn address(host: Host) -> String {
    match host {
        Host::Node(_) => format!("{host}:{NODE_PORT}"),
        Host::Router => format!("{host}:{ROUTER_PORT}"),
    }
}

/// As an operator does, before the node is started.
fn make_data_dir(disk: &SimDisk) {
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
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(15))
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let shared = Shared::default();
        let (mut disks, mut skews) = (BTreeMap::new(), BTreeMap::new());
        let seeds: Vec<_> = (1..=config.nodes).map(|node| (NodeId(node), address(Host::Node(node)))).collect();
        for node in 1..=config.nodes {
            let (disk, skew) = (SimDisk::new(rng.random()), Arc::new(AtomicI64::new(0)));
            make_data_dir(&disk);
            disk.set_faults(config.disk);
            add_node(&mut sim, node, rng.random(), seeds.clone(), &disk, &skew, &shared);
            disks.insert(node, disk);
            skews.insert(node, skew);
        }
        add_router(&mut sim, rng.random(), seeds.iter().map(|(_, address)| address.clone()).collect(), &shared);
        for client in 0..config.load.clients {
            add_client(&mut sim, client, rng.random(), config.load, &shared);
        }
        add_judge(&mut sim, config.seed, config.load, &shared);
        let from = Duration::from_secs(3);
        let faults = faults::draw(&mut rng, config.nodes, from, from + config.faults_for, config.fault_every);
        Self { config, sim, disks, skews, shared, faults }
    }

    fn run(mut self) -> Report {
        let mut violations = Vec::new();
        if let Err(stopped) = self.steps() {
            violations.push(stopped);
        }
        violations.extend(PANICS.take().into_iter().map(|panic| format!("a panic: {panic}")));
        let history = &self.shared.history;
        violations.extend(history.complaints());
        let operations = history.operations();
        let judged: [Vec<Violation>; 2] =
            [oracle::linearizable(&operations), oracle::looks(&operations, &history.looks())];
        violations.extend(judged.iter().flatten().map(Violation::to_string));
        let mut trace = blake3::Hasher::new();
        trace.update(history.digest().as_bytes());
        for disk in self.disks.values() {
            trace.update(disk.digest().as_bytes());
        }
        Report {
            config: self.config.clone(),
            faults: self.faults,
            violations,
            trace: trace.finalize(),
            unknown: operations
                .iter()
                .filter(|operation| operation.outcome == crate::history::Outcome::Unknown)
                .count(),
            operations: operations.len(),
            simulated: self.sim.elapsed(),
        }
    }

    /// Steps until the judge is done.
    ///
    /// # Errors
    /// What ended the simulation early.
    fn steps(&mut self) -> Result<(), String> {
        let mut events: Vec<(Duration, bool, Fault)> =
            self.faults.iter().flat_map(|fault| [(fault.from, true, *fault), (fault.until, false, *fault)]).collect();
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
                    self.apply(fault.kind, begins);
                }
            }
            self.restart_ended();
            if events.is_empty() && !self.shared.healed.get() && now >= last + Duration::from_secs(1) {
                self.heal();
            }
            if self.shared.finished.get() == self.config.load.clients && self.shared.healed.get() {
                let since = *healed_at.get_or_insert(now);
                if now > since + PATIENCE * 3 {
                    return Err("the healed cluster does not let itself be judged".to_owned());
                }
            }
            if now > limit {
                return Err(format!("clients had not finished after {limit:?}"));
            }
        }
    }

    fn apply(&mut self, kind: Kind, begins: bool) {
        self.shared.history.note(format_args!("{} {kind:?}", if begins { "begins" } else { "ends" }));
        let name = |host: Host| host.to_string();
        match kind {
            Kind::Crash(host) if begins => self.crash(host),
            Kind::Crash(host) => self.start(host),
            Kind::Part(a, b) if begins => self.sim.partition(name(a), name(b)),
            Kind::Part(a, b) => self.sim.repair(name(a), name(b)),
            Kind::PartOneWay(a, b) if begins => self.sim.partition_oneway(name(a), name(b)),
            Kind::PartOneWay(a, b) => self.sim.repair_oneway(name(a), name(b)),
            Kind::Isolate(host) => {
                for other in self.hosts().into_iter().filter(|other| *other != host) {
                    match begins {
                        true => self.sim.partition(name(host), name(other)),
                        false => self.sim.repair(name(host), name(other)),
                    }
                }
            }
            Kind::Hold(a, b) if begins => self.sim.hold(name(a), name(b)),
            Kind::Hold(a, b) => self.sim.release(name(a), name(b)),
            Kind::Slow(a, b, ms) => {
                let ms = if begins { ms } else { 2 };
                self.sim.set_link_latency(name(a), name(b), Duration::from_millis(ms));
            }
            Kind::FailSync(node) if begins => {
                if let Some(disk) = self.disks.get(&node) {
                    disk.fail_syncs(1);
                }
            }
            Kind::FailSync(node) => {
                // It may have had nothing to sync.
                if let Some(disk) = self.disks.get(&node) {
                    disk.fail_syncs(0);
                }
            }
            Kind::FillDisk(node, room) => {
                if let Some(disk) = self.disks.get(&node) {
                    disk.set_capacity(if begins { disk.used() + room } else { u64::MAX });
                }
            }
            Kind::Wipe(node) if begins => {
                self.crash(Host::Node(node));
                if let Some(disk) = self.disks.get(&node) {
                    disk.wipe();
                    make_data_dir(disk);
                }
            }
            Kind::Wipe(node) => self.start(Host::Node(node)),
            Kind::Skew(node, ms) => {
                if let Some(skew) = self.skews.get(&node) {
                    skew.store(if begins { ms } else { 0 }, Ordering::Relaxed);
                }
            }
        }
    }

    fn hosts(&self) -> Vec<Host> {
        self.disks.keys().map(|node| Host::Node(*node)).chain([Host::Router]).collect()
    }

    fn crash(&mut self, host: Host) {
        self.sim.crash(host.to_string());
        if let Host::Node(node) = host
            && let Some(disk) = self.disks.get(&node)
        {
            disk.crash();
        }
        self.shared.ended.borrow_mut().remove(&host);
    }

    fn start(&mut self, host: Host) {
        if !self.sim.is_host_running(host.to_string()) {
            self.sim.bounce(host.to_string());
        }
    }

    /// A process that ended by itself is started again after a while, as a supervisor does. What it had not synced is gone
    /// all the same, for it may have ended because a sync failed.
    fn restart_ended(&mut self) {
        let now = self.sim.elapsed();
        let due = |(host, at): (&Host, &Duration)| (now >= *at + RESTART).then_some(*host);
        let ended: Vec<Host> = self.shared.ended.borrow().iter().filter_map(due).collect();
        for host in ended {
            self.crash(host);
            self.start(host);
        }
    }

    fn heal(&mut self) {
        for host in self.hosts() {
            for other in self.hosts().into_iter().filter(|other| *other > host) {
                self.sim.release(host.to_string(), other.to_string());
                self.sim.repair(host.to_string(), other.to_string());
            }
            self.start(host);
        }
        self.shared.history.note(format_args!("healed"));
        self.shared.healed.set(true);
    }
}

fn add_node(
    sim: &mut turmoil::Sim<'_>,
    node: u64,
    seed: u64,
    seeds: Vec<(NodeId, String)>,
    disk: &SimDisk,
    skew: &Arc<AtomicI64>,
    shared: &Shared,
) {
    let host = Host::Node(node);
    let (disk, skew, shared) = (disk.clone(), skew.clone(), shared.clone());
    sim.host(host.to_string(), move || {
        let (disk, skew, shared, seeds) = (disk.clone(), skew.clone(), shared.clone(), seeds.clone());
        let seed = seed.wrapping_add(shared.start(host));
        let mut settings = nearring_node::settings::Settings::new(NodeId(node), DATA_DIR, address(host), seeds);
        settings.limits.log_bytes = 2 << 20; // two files, so that snapshots are taken
        settings.limits.disk_reserve_bytes = 1 << 20;
        let clock = clock(skew);
        async move {
            let incoming = net::listen(NODE_PORT).await?;
            let served = NodeBuilder::new(settings)
                .medium(Arc::new(disk))
                .dial(net::dial())
                .compute(Compute::Simulated(pauses(seed)))
                .clock(clock)
                .engine(EngineKind::Memory)
                .seed(seed)
                .serve(incoming, std::future::pending())
                .await;
            shared.end(host, format_args!("{served:?}"));
            Ok(())
        }
    });
}

/// Most work is quick, some takes as long as a message, and now and then a disk hangs: between a message that is sent and
/// the sync that should cover it, everything can happen.
fn pauses(seed: u64) -> Pauses {
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
        Duration::from_micros(micros)
    }))
}

fn add_router(sim: &mut turmoil::Sim<'_>, seed: u64, nodes: Vec<String>, shared: &Shared) {
    let shared = shared.clone();
    sim.host(Host::Router.to_string(), move || {
        let (shared, nodes) = (shared.clone(), nodes.clone());
        let seed = seed.wrapping_add(shared.start(Host::Router));
        async move {
            let incoming = net::listen(ROUTER_PORT).await?;
            let served = RouterBuilder::new(nearring_router::settings::Settings::new(nodes))
                .dial(net::dial())
                .seed(seed)
                .compute(nearring_router::compute::Compute::Inline)
                .serve(incoming, std::future::pending())
                .await;
            shared.end(Host::Router, format_args!("{served:?}"));
            Ok(())
        }
    });
}

/// Wall time of a host whose clock is so many milliseconds ahead.
fn clock(skew: Arc<AtomicI64>) -> Clock {
    Clock::with(Arc::new(move || {
        let now = entropy::EPOCH + turmoil::sim_elapsed().unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        now.saturating_add_signed(skew.load(Ordering::Relaxed))
    }))
}

fn client(seed: u64) -> Result<Client, nearring_client::Error> {
    let builder = Client::builder(address(Host::Router)).dial(net::dial()).deadline(Duration::from_secs(3));
    builder.clock(clock(Arc::default())).seed(seed).build()
}

fn add_client(sim: &mut turmoil::Sim<'_>, number: u64, seed: u64, load: Load, shared: &Shared) {
    let shared = shared.clone();
    sim.client(format!("client-{number}"), async move {
        let client = client(seed)?;
        workload::create_collection(&client, &load, &shared.history).await;
        workload::run(number, seed, client, load, shared.history.clone()).await;
        shared.finished.set(shared.finished.get() + 1);
        Ok(())
    });
}

fn add_judge(sim: &mut turmoil::Sim<'_>, seed: u64, load: Load, shared: &Shared) {
    let shared = shared.clone();
    sim.client("judge", async move {
        while !(shared.healed.get() && shared.finished.get() == load.clients) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        workload::judge(load.clients, client(seed)?, load, shared.history.clone(), PATIENCE).await;
        Ok(())
    });
}
