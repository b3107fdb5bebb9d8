//! What goes wrong in a soak: the kinds, the order in which they are drawn, and how each is done.
//!
//! Rules: one fault at a time, the next only when the cluster has healed; so at most one replica of a group is damaged. All
//! kinds come once before any comes again. A flipped bit hits durable bytes: the end of the newest log file is left alone,
//! because damage there cannot be told from the torn end that a crash may leave (see the node's log).
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::cluster::{Cluster, NODES, ROUTER, node_name};
use crate::netns::Topology;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// `kill -9`, started again after a while.
    NodeKilled,
    /// SIGSTOP for longer than an election takes.
    NodePaused,
    /// SIGTERM, which must end the process in order, and a start.
    NodeRestarted,
    /// `kill -9` of the router.
    RouterKilled,
    /// `kill -9` of everything at once.
    AllKilled,
    /// A node's directory is emptied.
    NodeWiped,
    /// A bit of a stopped node's log is flipped.
    LogBitFlipped,
    /// A bit of a stopped node's segment file is flipped.
    SegmentBitFlipped,
    /// A stopped node's key-value stores are removed.
    StoreRemoved,
    /// The small disk of a node is filled to below its reserve.
    DiskFull,
    /// A node's link is down.
    NodeIsolated,
    /// What a node sends to everybody else is lost.
    NodeMute,
    /// What everybody else sends to a node is lost.
    NodeDeaf,
    /// Two nodes are cut from each other; both reach the third.
    Bridge,
    /// What one node sends to another is lost.
    OneWay,
    /// The router is cut from one node.
    RouterCut,
    /// What a node sends goes through a narrow pipe.
    SlowLink,
    /// Loss, delay, reordering and duplicates by netem.
    Netem,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::NodeKilled => "node killed",
            Kind::NodePaused => "node paused",
            Kind::NodeRestarted => "node restarted",
            Kind::RouterKilled => "router killed",
            Kind::AllKilled => "all killed",
            Kind::NodeWiped => "node wiped",
            Kind::LogBitFlipped => "bit of the log flipped",
            Kind::SegmentBitFlipped => "bit of a segment flipped",
            Kind::StoreRemoved => "stores removed",
            Kind::DiskFull => "disk full",
            Kind::NodeIsolated => "node isolated",
            Kind::NodeMute => "node mute (one way)",
            Kind::NodeDeaf => "node deaf (one way)",
            Kind::Bridge => "bridge",
            Kind::OneWay => "one way between two nodes",
            Kind::RouterCut => "router cut from a node",
            Kind::SlowLink => "slow link",
            Kind::Netem => "loss, delay, reordering",
        })
    }
}

impl Kind {
    /// Whether stored bytes are lost, so that everything is judged before the next fault.
    pub fn damages(self) -> bool {
        use Kind::{LogBitFlipped, NodeWiped, SegmentBitFlipped, StoreRemoved};
        matches!(self, NodeWiped | LogBitFlipped | SegmentBitFlipped | StoreRemoved)
    }
}

/// Kinds in an order drawn from the seed, all of them before any comes again.
#[derive(Debug)]
pub struct Deck {
    kinds: Vec<Kind>,
    left: Vec<Kind>,
}

impl Deck {
    /// What the run can do.
    pub fn new(small_disk: bool, network: Option<&Topology>) -> Self {
        use Kind::{
            AllKilled, Bridge, DiskFull, LogBitFlipped, Netem, NodeDeaf, NodeIsolated, NodeKilled, NodeMute,
            NodePaused, NodeRestarted, NodeWiped, OneWay, RouterCut, RouterKilled, SegmentBitFlipped, SlowLink,
            StoreRemoved,
        };
        let mut kinds = match network {
            // Among cuts, so that they meet elections and catching up of other causes.
            Some(_) => {
                vec![NodeKilled, NodePaused, NodeIsolated, NodeMute, NodeDeaf, Bridge, OneWay, RouterCut, SlowLink]
            }
            None => vec![
                NodeKilled,
                NodePaused,
                NodeRestarted,
                RouterKilled,
                AllKilled,
                NodeWiped,
                LogBitFlipped,
                SegmentBitFlipped,
                StoreRemoved,
            ],
        };
        if small_disk {
            kinds.push(DiskFull);
        }
        if network.is_some_and(Topology::has_netem) {
            kinds.push(Netem);
        }
        Self { kinds, left: Vec::new() }
    }

    /// The next one, and whether all have come now.
    pub fn draw(&mut self, random: &mut SmallRng) -> (Kind, bool) {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
            self.left.shuffle(random);
        }
        let kind = self.left.pop().unwrap_or(Kind::NodeKilled);
        (kind, self.left.is_empty())
    }
}

/// What faults are done to.
pub struct Target<'a> {
    /// The processes.
    pub cluster: &'a mut Cluster,
    /// Their network, where it is one of our own.
    pub network: Option<Arc<Topology>>,
    /// The node on a small disk, and where that is.
    pub small_disk: Option<(u64, PathBuf)>,
}

impl Target<'_> {
    /// Does it and takes it back again. Answers what was done, in words.
    ///
    /// # Errors
    /// What should not have happened, or could not be done.
    pub async fn strike(&mut self, kind: Kind, random: &mut SmallRng) -> Result<String, String> {
        let node = random.random_range(1..=NODES);
        let other = node % NODES + 1;
        let away = Duration::from_millis(random.random_range(200..3000));
        // Long enough for an election in every case.
        let long = Duration::from_millis(random.random_range(1500..6000));
        let (cluster, name) = (&mut *self.cluster, node_name(node));
        match kind {
            Kind::NodeKilled => {
                cluster.kill_node(node);
                tokio::time::sleep(away).await;
                cluster.start_node(node)?;
            }
            Kind::NodePaused => {
                cluster.pause_node(node, true);
                tokio::time::sleep(long).await;
                cluster.pause_node(node, false);
            }
            Kind::NodeRestarted => {
                stop(cluster, node)?;
                tokio::time::sleep(away).await;
                cluster.start_node(node)?;
            }
            Kind::RouterKilled => {
                cluster.kill_router();
                tokio::time::sleep(away / 4).await;
                cluster.start_router()?;
                return Ok(ROUTER.to_owned());
            }
            Kind::AllKilled => {
                (1..=NODES).for_each(|node| cluster.kill_node(node));
                cluster.kill_router();
                for node in 1..=NODES {
                    cluster.start_node(node)?;
                }
                cluster.start_router()?;
                return Ok("every node and the router".to_owned());
            }
            Kind::NodeWiped => {
                cluster.kill_node(node);
                cluster.wipe_node(node).map_err(|error| format!("wiping {name}: {error}"))?;
                tokio::time::sleep(away).await;
                cluster.start_node(node)?;
            }
            Kind::LogBitFlipped | Kind::SegmentBitFlipped => {
                stop(cluster, node)?;
                let flipped = flip(&cluster.data(node), kind, random).map_err(|error| error.to_string())?;
                cluster.start_node(node)?;
                return Ok(format!("{name}: {}", flipped.unwrap_or_else(|| "there was no such file yet".to_owned())));
            }
            Kind::StoreRemoved => {
                cluster.kill_node(node);
                let mut removed = 0;
                for (path, is_dir) in walk(&cluster.data(node)) {
                    let is_store = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("store-"));
                    if is_dir && is_store {
                        std::fs::remove_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                        removed += 1;
                    }
                }
                cluster.start_node(node)?;
                return Ok(format!("{name}: {removed} stores"));
            }
            Kind::DiskFull => return self.fill(random, long).await,
            _ => {
                let Some(network) = self.network.clone() else { return Err(format!("{kind} needs namespaces")) };
                cut(&network, kind, &name, &node_name(other))?;
                tokio::time::sleep(long).await;
                network.heal()?;
                let between = matches!(kind, Kind::Bridge | Kind::OneWay).then(|| format!(", {}", node_name(other)));
                return Ok(format!("{name}{}, {:.1} s", between.unwrap_or_default(), long.as_secs_f64()));
            }
        }
        Ok(name)
    }

    async fn fill(&mut self, random: &mut SmallRng, long: Duration) -> Result<String, String> {
        let Some((node, folder)) = self.small_disk.clone() else { return Err("no small disk".to_owned()) };
        let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
        let ballast = folder.join("ballast");
        let to_the_last_byte = random.random_bool(0.5);
        let left = if to_the_last_byte { 0 } else { DISK_RESERVE_BYTES / 2 };
        let mut file = std::fs::File::create(&ballast).map_err(fail)?;
        let piece = vec![0; 1 << 16];
        while free_bytes(&folder).map_err(fail)? > left {
            if std::io::Write::write_all(&mut file, &piece).is_err() {
                break;
            }
        }
        tokio::time::sleep(long).await;
        drop(file);
        std::fs::remove_file(&ballast).map_err(fail)?;
        // A node that could not write has ended, as it must: nothing may be retried after that.
        let ended = self.cluster.node_ended(node);
        if ended {
            self.cluster.kill_node(node);
            self.cluster.start_node(node)?;
        }
        let what = if to_the_last_byte { "to the last byte" } else { "to half of the reserve" };
        Ok(format!("{} filled {what}{}", node_name(node), if ended { "; it ended and was started again" } else { "" }))
    }
}

/// Free disk below which nodes of a soak refuse writes.
pub const DISK_RESERVE_BYTES: u64 = 32 << 20;

/// How long an ordered stop may take.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

fn stop(cluster: &mut Cluster, node: u64) -> Result<(), String> {
    match cluster.stop_node(node, STOP_PATIENCE) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{} ended with {status} after SIGTERM", node_name(node))),
        None => Err(format!("{} did not end within {STOP_PATIENCE:?} of SIGTERM", node_name(node))),
    }
}

fn cut(network: &Topology, kind: Kind, host: &str, other: &str) -> Result<(), String> {
    let names = (1..=NODES).map(node_name).chain([ROUTER.to_owned()]);
    let mut others = names.filter(|name| name != host);
    match kind {
        Kind::NodeIsolated => network.isolate(host),
        Kind::NodeMute => others.try_for_each(|other| network.cut_one_way(host, &other)),
        Kind::NodeDeaf => others.try_for_each(|other| network.cut_one_way(&other, host)),
        Kind::Bridge => network.cut(host, other),
        Kind::OneWay => network.cut_one_way(host, other),
        Kind::RouterCut => network.cut(ROUTER, host),
        Kind::SlowLink => network.slow(host, 512),
        _ => network.netem(host, &["delay", "40ms", "30ms", "loss", "3%", "reorder", "10%", "duplicate", "1%"]),
    }
}

fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Every file and directory below, and whether it is a directory; in the order of their paths.
fn walk(folder: &Path) -> Vec<(PathBuf, bool)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let with_inner = |path: PathBuf| {
        let is_dir = path.is_dir();
        let inner = if is_dir { walk(&path) } else { Vec::new() };
        [(path, is_dir)].into_iter().chain(inner)
    };
    paths.into_iter().flat_map(with_inner).collect()
}

/// Flips one bit and says where; `None` where there is no file of the kind.
fn flip(data: &Path, kind: Kind, random: &mut SmallRng) -> std::io::Result<Option<String>> {
    use std::os::unix::fs::FileExt;
    let ending = if kind == Kind::LogBitFlipped { "log" } else { "seg" };
    let of_kind = |path: &PathBuf| path.extension().is_some_and(|extension| extension == ending);
    let mut files: Vec<PathBuf> = walk(data).into_iter().map(|(path, _)| path).filter(of_kind).collect();
    files.retain(|path| path.metadata().is_ok_and(|metadata| metadata.len() > 0));
    if files.is_empty() {
        return Ok(None);
    }
    let path = files.swap_remove(random.random_range(0..files.len()));
    let length = path.metadata()?.len();
    let within = if kind == Kind::LogBitFlipped { (length / 2).max(1) } else { length };
    let at = random.random_range(0..within);
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << random.random_range(0..8);
    file.write_all_at(&byte, at)?;
    file.sync_all()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Some(format!("byte {at} of {length} in {name}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn all_kinds_come_before_any_comes_again_in_an_order_that_follows_from_the_seed() {
        let order = |seed| {
            let (mut deck, mut random) = (Deck::new(true, None), SmallRng::seed_from_u64(seed));
            (0..20).map(|_| deck.draw(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        let mut first: Vec<Kind> = order(1).into_iter().take(10).map(|(kind, _)| kind).collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 10);
        assert!(order(1)[9].1 && !order(1)[8].1);
    }

    #[test]
    fn one_bit_differs_afterwards_and_not_at_the_end_of_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, [0; 100]).unwrap();
        let mut random = SmallRng::seed_from_u64(3);
        assert!(flip(folder.path(), Kind::SegmentBitFlipped, &mut random).unwrap().is_none());
        assert!(flip(folder.path(), Kind::LogBitFlipped, &mut random).unwrap().is_some());
        let after = std::fs::read(&path).unwrap();
        assert_eq!(after[..50].iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert_eq!(after[50..], [0; 50]);
    }
}
