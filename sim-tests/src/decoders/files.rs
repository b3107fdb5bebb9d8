//! A node's small files, and the files that people import.
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nearring_client::files::{DocumentFile, FileError, JsonPoints, VectorRows};
use nearring_node::bootstrap::Mint;
use nearring_node::identity::Identity;
use nearring_node::medium::Medium;
use nearring_proto::ids::{ClusterId, Incarnation, NodeId};

use super::{choice, chosen, done, put, read};
use crate::disk::SimDisk;

const DIR: &str = "/data";

/// Bytes, with a right CRC-32 behind them where `seal`.
fn sealed(bytes: &[u8], seal: bool) -> Vec<u8> {
    let mut file = bytes.to_vec();
    if seal {
        file.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    }
    file
}

/// Who a node is, and the note of a node that mints a cluster: any bytes, and any bytes with a right checksum.
pub fn node_files(data: &[u8]) -> bool {
    let (which, bytes) = choice(data);
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    done(disk.create_dir_all(dir));
    let file = sealed(bytes, which & 2 != 0);
    if which & 1 == 0 {
        put(&disk, &dir.join("identity"), &file);
        let node = NodeId(bytes.get(5..13).and_then(|node| node.try_into().ok()).map_or(1, u64::from_le_bytes));
        let open = |fresh| Identity::open(&disk, dir, node, || fresh);
        let Ok(mut identity) = open(9) else {
            assert_eq!(read(&disk, &dir.join("identity")), file, "a file that was refused was changed");
            return false;
        };
        let before = identity.replica();
        assert_eq!(done(open(99)), identity);
        if identity.cluster().is_none() {
            done(identity.adopt(&disk, ClusterId(uuid::Uuid::from_u128(3))));
        }
        if identity.renew(&disk, || 5).is_ok() {
            assert!(identity.replica() > before, "a new life with a number of before");
        } else {
            assert_eq!(before.incarnation.0, u64::MAX);
        }
        assert_eq!(done(open(99)), identity);
    } else {
        put(&disk, &dir.join("minting"), &file);
        let Some(mint) = done(Mint::read(&disk, dir)) else { return false };
        done(mint.write(&disk, dir));
        assert_eq!(read(&disk, &dir.join("minting")), file, "a note has two byte forms");
    }
    true
}

pub(super) fn node_seeds() -> Vec<Vec<u8>> {
    let (disk, dir) = (SimDisk::new(1), Path::new(DIR));
    let mut seeds = Vec::new();
    let mut add = |which: u8, name: &str| {
        let file = read(&disk, &dir.join(name));
        seeds.push(chosen(which, &file));
        seeds.push(chosen(which | 2, &file[..file.len() - 4]));
    };
    let mut identity = done(Identity::open(&disk, dir, NodeId(3), || 1_000));
    add(0, "identity");
    let cluster = ClusterId(uuid::Uuid::from_u128(3));
    done(identity.adopt(&disk, cluster));
    add(0, "identity");
    done(Mint { incarnation: Incarnation(7), cluster }.write(&disk, dir));
    add(1, "minting");
    seeds
}

// ---- what people import ----

/// A file of this process alone, removed at its end; readers of files want a path.
fn on_disk(ending: &str, bytes: &[u8]) -> PathBuf {
    thread_local! {
        static DIR: tempfile::TempDir = done(tempfile::tempdir());
    }
    DIR.with(|dir| {
        let path = dir.path().join(format!("file.{ending}"));
        done(std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes)));
        path
    })
}

/// All rows, or none where one is refused.
fn rows(path: &Path) -> Result<Vec<Vec<f32>>, FileError> {
    let rows = VectorRows::open(path)?;
    let (dimension, announced) = (rows.dimension(), rows.rows());
    let rows: Vec<Vec<f32>> = rows.collect::<Result<_, _>>()?;
    assert!(rows.len() as u64 == announced && rows.iter().all(|row| row.len() == dimension));
    Ok(rows)
}

/// Files of vectors, of points as JSON lines, of text.
pub fn client_files(data: &[u8]) -> bool {
    let (which, bytes) = choice(data);
    match which % 4 {
        0 => rows(&on_disk("npy", bytes)).is_ok(),
        1 => {
            let Ok(rows) = rows(&on_disk("fvecs", bytes)) else { return false };
            let again = rows.iter().flat_map(|row| {
                let head = done(u32::try_from(row.len())).to_le_bytes();
                head.into_iter().chain(row.iter().flat_map(|value| value.to_le_bytes())).collect::<Vec<u8>>()
            });
            assert!(again.eq(bytes.iter().copied()), "not what the file says");
            true
        }
        2 => {
            let mut points = done(JsonPoints::open(&on_disk("jsonl", bytes)));
            let mut read = 0;
            while let Some(Ok(point)) = points.next() {
                read += 1;
                assert!(point.id.is_some());
                assert!(nearring_proto::payload::parse(&point.payload_json).is_ok());
            }
            assert!(points.line() <= 1 + bytes.iter().filter(|byte| **byte == b'\n').count() as u64);
            read > 0
        }
        _ => {
            let path = on_disk("md", bytes);
            let found = done(DocumentFile::find(&[path]));
            let text = found.first().map(DocumentFile::read);
            let Some(Ok(text)) = text else { return false };
            assert_eq!(text.as_bytes(), bytes);
            true
        }
    }
}

pub(super) fn client_seeds() -> Vec<Vec<u8>> {
    let npy = |descr: &str, shape: &str, data: &[u8]| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        let padded = format!("{header:117}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend_from_slice(&done(u16::try_from(padded.len())).to_le_bytes());
        file.extend_from_slice(padded.as_bytes());
        file.extend_from_slice(data);
        chosen(0, &file)
    };
    let fvecs: Vec<u8> = (0..2_u32)
        .flat_map(|row| [2_u32.to_le_bytes(), (row as f32).to_le_bytes(), 0.5_f32.to_le_bytes()].concat())
        .collect();
    let lines =
        "{\"id\": 7, \"vector\": [1, 2.5], \"payload\": {\"n\": 1}}\n\n{\"id\": \"a\", \"vectors\": {\"t\": [0]}}\n";
    vec![
        npy("<f4", "(2, 2)", &[0; 16]),
        npy("<f2", "(1, 3)", &[0; 6]),
        npy(">f8", "(2, 1)", &[0; 16]),
        npy("|i1", "(2, 1)", &[0; 2]),
        npy("<f4", "(4,)", &[0; 16]),
        chosen(1, &fvecs),
        chosen(2, lines.as_bytes()),
        chosen(3, "# Title\n\ntext é\n".as_bytes()),
    ]
}
