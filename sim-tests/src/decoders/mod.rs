//! What every decoder of bytes from outside must do, as functions over bytes that a fuzzer drives.
//!
//! Outside is everything that this process did not just write itself: a disk that may have damaged what it holds, other
//! nodes, routers and clients, files that people import, texts. There is one function for each family of such bytes, in
//! the list [`ALL`]; `sim-tests/fuzz` has a `cargo fuzz` target for each, and the test `decoders` of this crate replays its
//! seeds and everything that was ever found through the same functions, with plain cargo.
//!
//! Rules:
//! - a check panics where the decoder breaks its word, and answers whether the bytes were accepted, so that a run which
//!   never gets beyond the first length field is noticed;
//! - not panicking is the least: what was accepted must survive being written and read again, damage to bytes that carry a
//!   checksum must be noticed, a damaged log must never be taken for another one;
//! - damage is what disks do (bits, blocks, cuts). Bytes made to harm with a right checksum are given to every decoder all the
//!   same, and must not make it panic, except for the graph inside a segment file, which is covered by the file's
//!   hash only (see `node/src/index/segment.rs`);
//! - a check is deterministic: it has no clock and no randomness of its own, and leaves nothing behind.
//!
//! Not here: settings files and command lines, which the operator writes for the process that reads them; the tables that
//! are compiled into the router; sled's files, which are only a cache and are judged by crash images.
mod documents;
mod files;
mod filters;
mod log;
mod machine;
mod messages;
mod segments;
mod snapshots;

use std::fmt::Debug;
use std::path::Path;

use bytes::Bytes;
use nearring_node::medium::Medium;

pub use self::documents::documents;
pub use self::files::{client_files, node_files};
pub use self::filters::{filters, payload_indexes};
pub use self::log::{log_damage, log_files};
pub use self::machine::{commands, shard_state};
pub use self::messages::{raft_messages, wire_messages};
pub use self::segments::segment_files;
pub use self::snapshots::{meta_group, shard_snapshots};

/// A check: feeds bytes to a decoder and answers whether it accepted them. Panics where the decoder breaks its word.
pub type Check = fn(&[u8]) -> bool;

/// Makes inputs to begin with.
pub type Seeds = fn() -> Vec<Vec<u8>>;

/// Every check under the name of its fuzz target, and the seeds to begin with, made by the real encoders.
pub const ALL: [(&str, Check, Seeds); 14] = [
    ("log_files", log_files, log::files_seeds),
    ("log_damage", log_damage, log::damage_seeds),
    ("raft_messages", raft_messages, messages::raft_seeds),
    ("wire_messages", wire_messages, messages::wire_seeds),
    ("commands", commands, machine::command_seeds),
    ("shard_state", shard_state, machine::state_seeds),
    ("shard_snapshots", shard_snapshots, snapshots::shard_seeds),
    ("meta_group", meta_group, snapshots::meta_seeds),
    ("segment_files", segment_files, segments::seeds),
    ("node_files", node_files, files::node_seeds),
    ("filters", filters, filters::filter_seeds),
    ("payload_indexes", payload_indexes, filters::index_seeds),
    ("client_files", client_files, files::client_seeds),
    ("documents", documents, documents::seeds),
];

/// The first byte says which of several decoders gets the others.
fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// A seed for the decoder that [`choice`] leads to.
fn chosen(which: u8, bytes: &[u8]) -> Vec<u8> {
    let mut seed = vec![which];
    seed.extend_from_slice(bytes);
    seed
}

/// A burst of up to 32 wrong bits, which every CRC-32 must notice: where it begins and what it flips. Its first byte is never
/// 0, so that something is wrong.
#[derive(Clone, Copy, Debug)]
struct Burst {
    at: u32,
    flips: [u8; 4],
}

impl Burst {
    const BYTES: usize = 8;

    /// From the first bytes of an input.
    fn of(data: &[u8]) -> Option<Self> {
        let head: [u8; Self::BYTES] = *data.first_chunk()?;
        let [a, b, c, d, first, flips @ ..] = head;
        Some(Self { at: u32::from_le_bytes([a, b, c, d]), flips: [first.max(1), flips[0], flips[1], flips[2]] })
    }

    /// Damages non-empty bytes; answers where.
    fn strike(self, bytes: &mut [u8]) -> usize {
        let at = self.at as usize % bytes.len();
        bytes[at..].iter_mut().zip(self.flips).for_each(|(byte, flip)| *byte ^= flip);
        at
    }
}

/// Puts a file with these bytes in place of whatever has its name.
fn put(medium: &dyn Medium, path: &Path, bytes: &[u8]) {
    let written = (|| {
        if medium.exists(path)? {
            medium.remove_file(path)?;
        }
        let mut file = medium.open_append(path)?;
        file.append(bytes)?;
        file.sync()
    })();
    done(written);
}

fn read(medium: &dyn Medium, path: &Path) -> Bytes {
    done(medium.read(path))
}

/// What has no reason to fail here.
fn done<T, E: Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("an operation that nothing was to disturb failed: {error:?}"))
}
