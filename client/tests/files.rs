//! The readers of vector files, JSON lines and folders, on files made here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use nearring_client::files::{DocumentFile, FileError, FileKind, JsonPoints, VectorRows};
use nearring_client::wire;

fn npy(path: &Path, descr: &str, shape: &str, data: &[u8]) {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    fs::write(path, bytes).unwrap();
}

fn rows(path: &Path) -> Result<Vec<Vec<f32>>, FileError> {
    VectorRows::open(path)?.collect()
}

const WANTED: [[f32; 3]; 2] = [[1.0, -2.5, 0.125], [0.0, 3.0, -0.5]];

#[test]
fn vectors_of_every_width_are_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let flat: Vec<f32> = WANTED.concat();
    let f16: Vec<u8> =
        [0x3c00_u16, 0xc100, 0x3000, 0x0000, 0x4200, 0xb800].iter().flat_map(|v| v.to_le_bytes()).collect();
    let f32s: Vec<u8> = flat.iter().flat_map(|v| v.to_le_bytes()).collect();
    let f64s: Vec<u8> = flat.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let big: Vec<u8> = flat.iter().flat_map(|v| v.to_be_bytes()).collect();
    let fvecs: Vec<u8> = WANTED
        .iter()
        .flat_map(|row| 3_i32.to_le_bytes().into_iter().chain(row.iter().flat_map(|v| v.to_le_bytes())))
        .collect();
    for (name, descr, data) in
        [("a.npy", "<f2", f16), ("b.npy", "<f4", f32s), ("c.npy", "<f8", f64s), ("d.npy", ">f4", big)]
    {
        let path = folder.path().join(name);
        npy(&path, descr, "(2, 3)", &data);
        assert_eq!(rows(&path).unwrap(), WANTED, "{descr}");
    }
    let path = folder.path().join("e.fvecs");
    fs::write(&path, &fvecs).unwrap();
    let open = VectorRows::open(&path).unwrap();
    assert_eq!((open.dimension(), open.rows()), (3, 2));
    assert_eq!(rows(&path).unwrap(), WANTED);
}

#[test]
fn a_file_that_is_cut_or_of_another_kind_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.npy");
    npy(&path, "<f4", "(3, 2)", &[0; 20]);
    let read: Vec<_> = VectorRows::open(&path).unwrap().collect();
    assert_eq!(read.len(), 3, "two rows and the error");
    assert!(read[2].as_ref().unwrap_err().to_string().contains("row 2"), "{read:?}");

    npy(&path, "<i4", "(1, 2)", &[0; 8]);
    assert!(rows(&path).unwrap_err().to_string().contains("i4"));
    npy(&path, "<f4", "(4,)", &[0; 16]);
    assert!(rows(&path).unwrap_err().to_string().contains("shape"));
    fs::write(&path, b"PK\x03\x04").unwrap();
    assert!(rows(&path).unwrap_err().to_string().contains("not a NumPy file"));

    let path = folder.path().join("cut.fvecs");
    let mut bytes = 2_i32.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 7]);
    fs::write(&path, &bytes).unwrap();
    assert!(rows(&path).unwrap_err().to_string().contains("cut off"));
    bytes.truncate(4);
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&5_i32.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    fs::write(&path, &bytes).unwrap();
    assert!(rows(&path).unwrap_err().to_string().contains("row 1: has 5 components"));
    assert!(matches!(rows(&folder.path().join("none.npy")), Err(FileError::Io { .. })));
}

#[test]
fn json_lines_become_points_and_a_bad_line_is_named() {
    use wire::point_id::Id;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("points.jsonl");
    let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let text = format!(
        "{{\"id\": 7, \"vector\": [1, 2.5], \"payload\": {{\"b\": 1, \"a\": [null]}}}}\n\n\
         {{\"id\": \"7\", \"vectors\": {{\"title\": [0.5]}}}}\r\n{{\"id\": \"{uuid}\"}}\n{{\"id\": 8, \"vectr\": [1]}}\n{{\"id\": 9}}\n"
    );
    fs::write(&path, text).unwrap();
    let points: Vec<_> = JsonPoints::open(&path).unwrap().collect();
    let read: Vec<_> = points.iter().filter_map(|point| point.as_ref().ok()).collect();
    let ids: Vec<_> = read.iter().map(|point| point.id.clone().unwrap().id.unwrap()).collect();
    assert_eq!(ids[0], Id::Number(7));
    assert_eq!(ids[1], Id::Text("7".into()));
    assert!(matches!(ids[2], Id::Uuid(_)));
    assert_eq!(
        read[0].vectors,
        [wire::NamedVector { name: String::new(), values: vec![1.0, 2.5], ..Default::default() }]
    );
    assert_eq!(read[1].vectors, [wire::NamedVector { name: "title".into(), values: vec![0.5], ..Default::default() }]);
    let payload: serde_json::Value = serde_json::from_slice(&read[0].payload_json).unwrap();
    assert_eq!(payload, serde_json::json!({"a": [null], "b": 1}));
    // The reader stops at the bad line.
    let error = points.last().unwrap().as_ref().unwrap_err().to_string();
    assert_eq!((points.len(), read.len()), (4, 3));
    assert!(error.contains("line 5") && error.contains("vectr"), "{error}");

    let kinds =
        r#"{"id": 1, "vectors": {"tokens": [[1, 2], [3, 4.5]], "words": {"indices": [9, 3], "values": [0.5, 1]}}}"#;
    fs::write(&path, kinds).unwrap();
    let vectors = JsonPoints::open(&path).unwrap().next().unwrap().unwrap().vectors;
    let tokens = wire::MultiVector { dimension: 2, values: vec![1.0, 2.0, 3.0, 4.5] };
    assert_eq!((vectors[0].name.as_str(), vectors[0].multi.as_ref()), ("tokens", Some(&tokens)));
    let words = wire::SparseVector { indices: vec![3, 9], values: vec![1.0, 0.5] };
    assert_eq!((vectors[1].name.as_str(), vectors[1].sparse.as_ref()), ("words", Some(&words)), "by index");

    for (line, wanted) in [
        ("{\"id\": -1}", "id: -1"),
        ("{\"id\": [1]}", "neither"),
        ("{\"id\": 1", "EOF"),
        ("{}", "id"),
        ("{\"id\": 1, \"vector\": \"text\"}", "list of numbers"),
        ("{\"id\": 1, \"vector\": [[1], [2, 3]]}", "row 1 has 2 components"),
        (r#"{"id": 1, "vectors": {"w": {"indices": [3, 3], "values": [1, 2]}}}"#, "\"w\" names the index 3 twice"),
    ] {
        fs::write(&path, line).unwrap();
        let error = JsonPoints::open(&path).unwrap().next().unwrap().unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains(wanted), "{error}");
    }
}

#[test]
fn a_folder_gives_its_texts_under_their_paths() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("deep/er")).unwrap();
    fs::create_dir(at(".git")).unwrap();
    for name in ["b.md", "a.txt", "deep/er/c.markdown", ".git/d.md", ".hidden.md", "table.csv"] {
        fs::write(at(name), name).unwrap();
    }
    let found = DocumentFile::find(&[folder.path().to_owned()]).unwrap();
    let ids: Vec<_> = found.iter().map(|file| (file.id.as_str(), file.content_type)).collect();
    assert_eq!(ids, [("a", "text/plain"), ("b", "text/markdown"), ("deep/er/c", "text/markdown")]);
    assert_eq!(found[2].read().unwrap(), "deep/er/c.markdown");

    let single: Vec<PathBuf> = vec![at("b.md")];
    assert_eq!(DocumentFile::find(&single).unwrap()[0].id, "b");
    assert!(DocumentFile::find(&[at("table.csv")]).unwrap_err().to_string().contains("no text"));
    fs::write(at("b.txt"), [0xff, 0xfe]).unwrap();
    assert!(DocumentFile::find(&[folder.path().to_owned()]).unwrap_err().to_string().contains("same id \"b\""));
    assert!(DocumentFile::find(&[at("b.txt")]).unwrap()[0].read().unwrap_err().to_string().contains("byte 0"));

    let kinds = ["x.NPY", "x.fvecs", "x.jsonl", "x.md", "x.pdf"].map(|name| FileKind::of(&at(name)));
    use FileKind::{Documents, JsonLines, Vectors};
    assert_eq!(kinds, [Some(Vectors), Some(Vectors), Some(JsonLines), Some(Documents), None]);
    assert_eq!(FileKind::of(folder.path()), Some(Documents));
}
