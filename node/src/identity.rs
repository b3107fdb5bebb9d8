//! Who this node is: its number, which life of its data directory this is, and the cluster it belongs to.
//!
//! The problem: a voter that forgot its vote must never be taken for the one that cast it. So Raft knows a node by
//! number and incarnation, and the incarnation is minted together with the data directory: a directory that was wiped,
//! or whose log turned out damaged, comes back as somebody else, who is admitted anew.
//!
//! ```text
//! file `identity` = "nrid" · format u8 (1) · node u64 · incarnation u64 · 0 | 1 · cluster 16 bytes · CRC-32 of all before
//! ```
//! Numbers are little-endian. **Rules:** incarnations of one directory only grow; a new one is durable before anything
//! of the old life is set aside; a directory never changes its node or its cluster. It is not decided here when a life
//! ends, nor what is done with what the old one left behind.
use std::io;
use std::path::{Path, PathBuf};

use nearring_proto::ids::{ClusterId, Incarnation, NodeId, ReplicaId};
use uuid::Uuid;

use crate::medium::{Medium, write_durably};

const FILE: &str = "identity";
const MAGIC: &[u8; 4] = b"nrid";
const FORMAT: u8 = 1;
const LEN: usize = 4 + 1 + 8 + 8 + 1 + 16 + 4;

/// A directory's identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The medium failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the medium said.
        source: io::Error,
    },
    /// Not what was once written.
    #[error(
        "{path} is damaged ({reason}). Restore this file from a backup of the same life, or move the whole data directory \
         away: the node then starts empty, as a new life, and its replicas are copied from the others"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Written by a newer version.
    #[error("{path} has format {found}, this version understands up to {FORMAT}; start the newer version")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u8,
    },
    /// Another node's directory.
    #[error("{path} belongs to node {found}, this is node {expected}; check the node number and the data directory")]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// A member of another cluster.
    #[error("{path} belongs to cluster {found}, not to {offered}; a data directory never changes its cluster")]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// Where it belongs.
        found: ClusterId,
        /// Where it was to go.
        offered: ClusterId,
    },
    /// Another process is using the directory.
    #[error("{path} is locked: another process uses this data directory; stop it first")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

/// A data directory's identity, as it is on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    path: PathBuf,
    node: NodeId,
    incarnation: Incarnation,
    cluster: Option<ClusterId>,
}

impl Identity {
    /// Reads the identity of `dir`, which must be `node`'s. A directory without one gets one, in no cluster, with the
    /// incarnation `fresh` gives: wall-clock milliseconds, so that a directory that was wiped gets a larger one too.
    /// Blocks on the medium.
    ///
    /// # Errors
    /// The medium failed; the file is damaged, of a newer format, or another node's.
    pub fn open(
        medium: &dyn Medium,
        dir: &Path,
        node: NodeId,
        fresh: impl FnOnce() -> u64,
    ) -> Result<Self, IdentityError> {
        let path = dir.join(FILE);
        let io = |source| IdentityError::Io { path: path.clone(), source };
        medium.create_dir_all(dir).map_err(io)?;
        if medium.exists(&path).map_err(io)? {
            let identity = Self::decode(&path, &medium.read(&path).map_err(io)?)?;
            if identity.node != node {
                return Err(IdentityError::OtherNode { path, found: identity.node, expected: node });
            }
            return Ok(identity);
        }
        let identity = Self { path, node, incarnation: Incarnation(fresh().max(1)), cluster: None };
        identity.write(medium)?;
        Ok(identity)
    }

    /// Joins a cluster, durably. Does nothing where it is this one's already. Blocks on the medium.
    ///
    /// # Errors
    /// The medium failed, or the directory belongs to another cluster. The identity is then as it was.
    pub fn adopt(&mut self, medium: &dyn Medium, cluster: ClusterId) -> Result<(), IdentityError> {
        match self.cluster {
            Some(found) if found == cluster => Ok(()),
            Some(found) => Err(IdentityError::OtherCluster { path: self.path.clone(), found, offered: cluster }),
            None => self.replace(medium, Self { cluster: Some(cluster), ..self.clone() }),
        }
    }

    /// Begins a new life in the same cluster, durably, with a larger incarnation than the one that ends. To be called
    /// **before** anything of the old life is set aside. Blocks on the medium.
    ///
    /// # Errors
    /// The medium failed: the old life goes on, or ends at the next start.
    pub fn renew(&mut self, medium: &dyn Medium, fresh: impl FnOnce() -> u64) -> Result<(), IdentityError> {
        let Some(next) = self.incarnation.0.checked_add(1) else {
            return Err(IdentityError::Damaged { path: self.path.clone(), reason: "no larger incarnation exists" });
        };
        self.replace(medium, Self { incarnation: Incarnation(next.max(fresh())), ..self.clone() })
    }

    /// The node in this life.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId { node: self.node, incarnation: self.incarnation }
    }

    /// The cluster, once it has joined one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    fn replace(&mut self, medium: &dyn Medium, next: Self) -> Result<(), IdentityError> {
        next.write(medium)?;
        *self = next;
        Ok(())
    }

    fn write(&self, medium: &dyn Medium) -> Result<(), IdentityError> {
        write_durably(medium, &self.path, &self.encode())
            .map_err(|source| IdentityError::Io { path: self.path.clone(), source })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.node.0.to_le_bytes());
        bytes.extend_from_slice(&self.incarnation.0.to_le_bytes());
        bytes.push(u8::from(self.cluster.is_some()));
        bytes.extend_from_slice(self.cluster.map_or(Uuid::nil(), |cluster| cluster.0).as_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self, IdentityError> {
        let damaged = |reason| IdentityError::Damaged { path: path.to_owned(), reason };
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged("too short"))?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(damaged("its checksum does not match"));
        }
        let rest = body.strip_prefix(MAGIC).ok_or_else(|| damaged("it is no identity file"))?;
        let (format, rest) = rest.split_first().ok_or_else(|| damaged("too short"))?;
        if *format > FORMAT {
            return Err(IdentityError::NewerFormat { path: path.to_owned(), found: *format });
        }
        let fields = || {
            let (node, rest) = rest.split_first_chunk::<8>()?;
            let (incarnation, rest) = rest.split_first_chunk::<8>()?;
            let (joined, rest) = rest.split_first()?;
            let cluster: [u8; 16] = rest.try_into().ok()?;
            let cluster = match joined {
                0 => None,
                1 => Some(ClusterId(Uuid::from_bytes(cluster))),
                _ => return None,
            };
            Some((u64::from_le_bytes(*node), u64::from_le_bytes(*incarnation), cluster))
        };
        let (node, incarnation, cluster) = fields().ok_or_else(|| damaged("its fields are not an identity's"))?;
        Ok(Self { path: path.to_owned(), node: NodeId(node), incarnation: Incarnation(incarnation), cluster })
    }
}

/// A data directory held by this process. Gives it back when dropped, or when the process ends however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: std::fs::File,
}

/// Takes `dir` for this process alone; creates it where it does not exist. For the operating system's files only: a
/// simulated medium belongs to one node anyway.
///
/// # Errors
/// [`IdentityError::Locked`] where another process has it; the file system's errors.
#[allow(
    clippy::disallowed_methods,
    reason = "a lock of the operating system, taken by the program before a node begins"
)]
pub fn lock(dir: &Path) -> Result<Lock, IdentityError> {
    let path = dir.join("lock");
    let io = |source| IdentityError::Io { path: path.clone(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(IdentityError::Locked { path }),
        Err(error) => Err(IdentityError::Io { path: path.clone(), source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::medium::OsMedium;

    fn cluster(n: u128) -> ClusterId {
        ClusterId(Uuid::from_u128(n))
    }

    #[test]
    fn lives_of_one_directory_only_grow_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = |fresh| Identity::open(&OsMedium, dir.path(), NodeId(3), || fresh).unwrap();
        let mut identity = open(1000);
        assert_eq!(identity.replica(), ReplicaId { node: NodeId(3), incarnation: Incarnation(1000) });
        assert_eq!(identity.cluster(), None);
        identity.adopt(&OsMedium, cluster(7)).unwrap();
        assert_eq!(open(9999), identity);
        // A clock that went back still gives a larger one, a clock that went on gives its own.
        identity.renew(&OsMedium, || 5).unwrap();
        assert_eq!(identity.replica().incarnation, Incarnation(1001));
        identity.renew(&OsMedium, || 2000).unwrap();
        assert_eq!(identity.replica().incarnation, Incarnation(2000));
        assert_eq!((open(1), open(1).cluster()), (identity, Some(cluster(7))));
    }

    #[test]
    fn another_nodes_directory_another_cluster_and_a_newer_format_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::open(&OsMedium, dir.path(), NodeId(1), || 10).unwrap();
        identity.adopt(&OsMedium, cluster(1)).unwrap();
        identity.adopt(&OsMedium, cluster(1)).unwrap();
        let before = OsMedium.read(&dir.path().join(FILE)).unwrap();
        assert!(matches!(identity.adopt(&OsMedium, cluster(2)), Err(IdentityError::OtherCluster { .. })));
        assert!(matches!(
            Identity::open(&OsMedium, dir.path(), NodeId(2), || 10),
            Err(IdentityError::OtherNode { found: NodeId(1), expected: NodeId(2), .. })
        ));
        assert_eq!(OsMedium.read(&dir.path().join(FILE)).unwrap(), before);

        let mut newer = before[..LEN - 4].to_vec();
        newer[4] = FORMAT + 1;
        newer.extend_from_slice(b"fields of tomorrow");
        newer.extend_from_slice(&crc32fast::hash(&newer).to_le_bytes());
        write_durably(&OsMedium, &dir.path().join(FILE), &newer).unwrap();
        let error = Identity::open(&OsMedium, dir.path(), NodeId(1), || 10).unwrap_err();
        assert!(matches!(error, IdentityError::NewerFormat { found: 2, .. }), "{error}");
    }

    #[test]
    fn a_directory_is_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(IdentityError::Locked { .. })));
        drop(held);
        lock(dir.path()).unwrap();
    }

    proptest! {
        #[test]
        fn any_identity_survives_and_any_damage_is_noticed(
            node in any::<u64>(), incarnation in any::<u64>(), joined in prop::option::of(any::<u128>()),
            at in 0..LEN, flip in 1..=255u8, cut in 0..LEN,
        ) {
            let path = PathBuf::from("identity");
            let identity = Identity {
                path: path.clone(), node: NodeId(node), incarnation: Incarnation(incarnation), cluster: joined.map(cluster),
            };
            let bytes = identity.encode();
            prop_assert_eq!(bytes.len(), LEN);
            prop_assert_eq!(Identity::decode(&path, &bytes).unwrap(), identity);
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let is_damaged = |bytes: &[u8]| matches!(Identity::decode(&path, bytes), Err(IdentityError::Damaged { .. }));
            prop_assert!(is_damaged(&damaged));
            prop_assert!(is_damaged(&bytes[..cut]));
        }
    }
}
