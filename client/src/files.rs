//! Readers of what people have on disk: NumPy and fvecs vectors, JSON lines with points, folders of texts.
//!
//! All read from front to back in bounded memory, so a file may be larger than the machine. An error names the file
//! and the row or line; rows before it have been handed out already. What is read is checked for its form only: whether
//! a vector suits its collection is the servers' to say.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use half::f16;
use nearring_proto::ids::PointId;
use nearring_proto::vector::{MultiVector, SparseVector, Vector, VectorError};
use nearring_proto::wire;
use npyz::{DType, NpyFile, NpyReader, Order};
use serde::Deserialize;

/// Why a file cannot be read, and where.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not what its name says.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

impl FileError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    fn content(path: &Path, reason: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), reason: reason.into() }
    }
}

/// What a file holds, by its name's ending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// Vectors: `.npy` (f16, f32 or f64, two-dimensional, C order) or `.fvecs`.
    Vectors,
    /// Points: `.jsonl`, `.ndjson`.
    JsonLines,
    /// A document: `.md`, `.markdown`, `.txt`, `.text`; or a folder of them.
    Documents,
}

impl FileKind {
    /// By name, without opening it; a folder holds documents. `None` for an ending that means nothing here.
    pub fn of(path: &Path) -> Option<Self> {
        if path.is_dir() {
            return Some(Self::Documents);
        }
        match ending(path).as_str() {
            "npy" | "fvecs" => Some(Self::Vectors),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            other => content_type(other).map(|_| Self::Documents),
        }
    }
}

fn ending(path: &Path) -> String {
    path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

fn content_type(ending: &str) -> Option<&'static str> {
    match ending {
        "md" | "markdown" => Some("text/markdown"),
        "txt" | "text" => Some("text/plain"),
        _ => None,
    }
}

/// The rows of a file of vectors, in order.
pub struct VectorRows {
    path: PathBuf,
    dimension: usize,
    rows: u64,
    next: u64,
    source: Source,
}

enum Source {
    F16(NpyReader<f16, BufReader<File>>),
    F32(NpyReader<f32, BufReader<File>>),
    F64(NpyReader<f64, BufReader<File>>),
    Fvecs(BufReader<File>),
}

impl VectorRows {
    /// The longest row accepted, in components: a bound on memory for files that are not what they say.
    pub const DIMENSION_MAX: usize = 1 << 20;

    /// Opens `.npy` or `.fvecs`.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be opened or its header is not that of a table of floats.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|error| FileError::io(path, error))?;
        let length = file.metadata().map_err(|error| FileError::io(path, error))?.len();
        let reader = BufReader::with_capacity(1 << 18, file);
        let (dimension, rows, source) = match ending(path).as_str() {
            "npy" => Self::open_npy(path, reader)?,
            "fvecs" => Self::open_fvecs(path, reader, length)?,
            other => {
                let reason = format!("the ending {other:?} names no format of vectors; use .npy or .fvecs");
                return Err(FileError::content(path, reason));
            }
        };
        Ok(Self { path: path.to_owned(), dimension, rows, next: 0, source })
    }

    fn open_npy(path: &Path, reader: BufReader<File>) -> Result<(usize, u64, Source), FileError> {
        let npy =
            NpyFile::new(reader).map_err(|error| FileError::content(path, format!("not a NumPy file: {error}")))?;
        let (rows, dimension) = match *npy.shape() {
            [rows, dimension] => (rows, usize::try_from(dimension).unwrap_or(usize::MAX)),
            ref shape => {
                let reason = format!("has shape {shape:?}; rows of vectors have two dimensions");
                return Err(FileError::content(path, reason));
            }
        };
        if npy.order() != Order::C {
            return Err(FileError::content(path, "is stored column by column; save it with numpy.ascontiguousarray"));
        }
        check_dimension(path, dimension)?;
        let dtype = npy.dtype();
        let source = match &dtype {
            DType::Plain(kind) => match kind.to_string().trim_start_matches(['<', '>', '=', '|']) {
                "f2" => npy.data().map(Source::F16),
                "f4" => npy.data().map(Source::F32),
                "f8" => npy.data().map(Source::F64),
                other => {
                    let reason = format!("holds elements of type {other:?}; float16, float32 and float64 are read");
                    return Err(FileError::content(path, reason));
                }
            },
            _ => return Err(FileError::content(path, "holds records; float16, float32 and float64 are read")),
        };
        let source = source.map_err(|error| FileError::content(path, error.to_string()))?;
        Ok((dimension, rows, source))
    }

    fn open_fvecs(path: &Path, mut reader: BufReader<File>, length: u64) -> Result<(usize, u64, Source), FileError> {
        let head = reader.fill_buf().map_err(|error| FileError::io(path, error))?;
        let Some(head) = head.first_chunk::<4>() else {
            return Err(FileError::content(path, "is shorter than one row"));
        };
        let dimension = usize::try_from(i32::from_le_bytes(*head)).unwrap_or(0);
        check_dimension(path, dimension)?;
        let row = 4 + 4 * dimension as u64;
        if !length.is_multiple_of(row) {
            let reason = format!("has {length} bytes, not a multiple of the {row} of one row: cut off, or not fvecs");
            return Err(FileError::content(path, reason));
        }
        Ok((dimension, length / row, Source::Fvecs(reader)))
    }

    /// Components of every row.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Rows in the file.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn read_row(&mut self) -> Result<Vec<f32>, FileError> {
        let (path, row, dimension) = (&self.path, self.next, self.dimension);
        let mut values = Vec::with_capacity(dimension);
        let cut = |error: Option<std::io::Error>| {
            let why = error.map_or_else(|| "the file ends".to_owned(), |error| error.to_string());
            FileError::content(path, format!("row {row}: {why}"))
        };
        match &mut self.source {
            Source::F16(elements) => {
                for _ in 0..dimension {
                    values.push(
                        elements.next().transpose().map_err(|e| cut(Some(e)))?.ok_or_else(|| cut(None))?.to_f32(),
                    );
                }
            }
            Source::F32(elements) => {
                for _ in 0..dimension {
                    values.push(elements.next().transpose().map_err(|e| cut(Some(e)))?.ok_or_else(|| cut(None))?);
                }
            }
            Source::F64(elements) => {
                for _ in 0..dimension {
                    #[allow(clippy::cast_possible_truncation, reason = "collections hold f32")]
                    values
                        .push(elements.next().transpose().map_err(|e| cut(Some(e)))?.ok_or_else(|| cut(None))? as f32);
                }
            }
            Source::Fvecs(reader) => {
                let mut bytes = vec![0; 4 + 4 * dimension];
                reader.read_exact(&mut bytes).map_err(|error| cut(Some(error)))?;
                let (words, _) = bytes.as_chunks::<4>();
                let mut words = words.iter();
                let stated = words.next().map_or(0, |word| i32::from_le_bytes(*word));
                if usize::try_from(stated) != Ok(dimension) {
                    let reason = format!("row {row}: has {stated} components, the first row has {dimension}");
                    return Err(FileError::content(path, reason));
                }
                values.extend(words.map(|word| f32::from_le_bytes(*word)));
            }
        }
        Ok(values)
    }
}

fn check_dimension(path: &Path, dimension: usize) -> Result<(), FileError> {
    if dimension == 0 || dimension > VectorRows::DIMENSION_MAX {
        let reason = format!("rows of {dimension} components; want 1 to {}", VectorRows::DIMENSION_MAX);
        return Err(FileError::content(path, reason));
    }
    Ok(())
}

impl Iterator for VectorRows {
    type Item = Result<Vec<f32>, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.rows {
            return None;
        }
        let row = self.read_row();
        // After an error the position in the file means nothing.
        self.next = if row.is_ok() { self.next + 1 } else { self.rows };
        Some(row)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.rows - self.next).ok();
        (0, left)
    }
}

/// The points of a file of JSON lines: `{"id": 7, "vector": […], "payload": {…}}`, or `"vectors": {"name": …}`, where a
/// vector is `[0.5, …]`, sparse `{"indices": [3, …], "values": [0.5, …]}`, or multi `[[0.5, …], …]`. `payload` may be left out, and so may the vectors of points that carry none. Blank lines are skipped.
pub struct JsonPoints {
    path: PathBuf,
    reader: BufReader<File>,
    line: u64,
    text: Vec<u8>,
    ended: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonPoint {
    id: serde_json::Value,
    #[serde(default)]
    vector: Option<JsonVector>,
    #[serde(default)]
    vectors: BTreeMap<String, JsonVector>,
    #[serde(default)]
    payload: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a list of numbers, a list of such lists, or an object of `indices` and `values`")]
enum JsonVector {
    Dense(Vec<f32>),
    Multi(Vec<Vec<f32>>),
    Sparse { indices: Vec<u32>, values: Vec<f32> },
}

/// A vector in JSON, in one of the forms that [`JsonPoints`] reads.
///
/// # Errors
/// What is wrong with it.
pub fn parse_vector(json: &str) -> Result<Vector, String> {
    let vector: JsonVector = serde_json::from_str(json).map_err(|error| error.to_string())?;
    vector.read().map_err(|error| error.to_string())
}

impl JsonVector {
    fn read(self) -> Result<Vector, VectorError> {
        Ok(match self {
            Self::Dense(values) => values.into(),
            Self::Multi(rows) => MultiVector::from_rows(&rows)?.into(),
            Self::Sparse { indices, values } => SparseVector::new(indices, values)?.into(),
        })
    }
}

impl JsonPoints {
    /// The longest line accepted, in bytes.
    pub const LINE_BYTES_MAX: u64 = 32 << 20;

    /// Opens the file.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|error| FileError::io(path, error))?;
        let reader = BufReader::with_capacity(1 << 18, file);
        Ok(Self { path: path.to_owned(), reader, line: 0, text: Vec::new(), ended: false })
    }

    /// The line read last, counted from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    fn read(&mut self) -> Result<Option<wire::Point>, FileError> {
        loop {
            self.text.clear();
            let mut limited = (&mut self.reader).take(Self::LINE_BYTES_MAX + 1);
            let read = limited.read_until(b'\n', &mut self.text).map_err(|error| FileError::io(&self.path, error))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let wrong = |reason: String| FileError::content(&self.path, format!("line {}: {reason}", self.line));
            if read as u64 > Self::LINE_BYTES_MAX {
                return Err(wrong(format!("is longer than {} bytes", Self::LINE_BYTES_MAX)));
            }
            if self.text.trim_ascii().is_empty() {
                continue;
            }
            let point: JsonPoint = serde_json::from_slice(&self.text).map_err(|error| wrong(error.to_string()))?;
            return point_of(point).map(Some).map_err(wrong);
        }
    }
}

fn point_of(point: JsonPoint) -> Result<wire::Point, String> {
    let id = match point.id {
        serde_json::Value::Number(number) => match number.as_u64() {
            Some(number) => PointId::Number(number),
            None => return Err(format!("id: {number} is not a whole number from 0 to {}", u64::MAX)),
        },
        // Quoted digits stay text, as in every other JSON door; a quoted UUID is one.
        serde_json::Value::String(text) => match PointId::parse(&text) {
            PointId::Number(_) => PointId::Text(text),
            id => id,
        },
        other => return Err(format!("id: {other} is neither a number nor a string")),
    };
    let mut vectors = point.vectors;
    if let Some(vector) = point.vector
        && vectors.insert(String::new(), vector).is_some()
    {
        return Err("the unnamed vector stands in both `vector` and `vectors`".to_owned());
    }
    let payload_json = match point.payload {
        Some(payload) => serde_json::to_vec(&payload).map_err(|error| format!("payload: {error}"))?,
        None => Vec::new(),
    };
    let mut named = Vec::with_capacity(vectors.len());
    for (name, vector) in vectors {
        let vector = vector.read().map_err(|error| format!("vector {name:?} {error}"))?;
        named.push(wire::NamedVector::from((name, vector)));
    }
    Ok(wire::Point { id: Some(id.into()), vectors: named, payload_json: payload_json.into() })
}

impl Iterator for JsonPoints {
    type Item = Result<wire::Point, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let point = self.read().transpose();
        self.ended = !matches!(point, Some(Ok(_)));
        point
    }
}

/// A text file to be imported as a document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DocumentFile {
    /// The document's id: its path below the folder given, with `/` between, without the ending.
    pub id: String,
    /// Where it lies.
    pub path: PathBuf,
    /// `text/plain` or `text/markdown`.
    pub content_type: &'static str,
}

impl DocumentFile {
    /// The largest document read, in bytes.
    pub const BYTES_MAX: u64 = 16 << 20;

    /// Every text under the given files and folders, in the order of their ids. Names that begin with a dot, links to
    /// folders, and files of other endings inside a folder are passed over.
    ///
    /// # Errors
    /// [`FileError`] where something cannot be listed, a file given by name is no text, or two have one id.
    pub fn find(paths: &[PathBuf]) -> Result<Vec<Self>, FileError> {
        let mut found: BTreeMap<String, Self> = BTreeMap::new();
        for path in paths {
            if path.is_dir() {
                Self::walk(path, "", &mut found)?;
            } else {
                let Some(content_type) = content_type(&ending(path)) else {
                    return Err(FileError::content(path, "is no text; .md, .markdown, .txt and .text are read"));
                };
                let id = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                Self::add(Self { id, path: path.clone(), content_type }, &mut found)?;
            }
        }
        Ok(found.into_values().collect())
    }

    fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Self>) -> Result<(), FileError> {
        let fail = |error| FileError::io(folder, error);
        for entry in std::fs::read_dir(folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str() else {
                return Err(FileError::content(&path, "its name is not UTF-8, so it has no id; rename it"));
            };
            if name.starts_with('.') {
                continue;
            }
            if entry.file_type().map_err(fail)?.is_dir() {
                Self::walk(&path, &format!("{prefix}{name}/"), found)?;
            } else if path.is_file()
                && let Some(content_type) = content_type(&ending(&path))
                && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
            {
                let id = format!("{prefix}{stem}");
                Self::add(Self { id, path, content_type }, found)?;
            }
        }
        Ok(())
    }

    fn add(file: Self, found: &mut BTreeMap<String, Self>) -> Result<(), FileError> {
        if let Some(other) = found.get(&file.id)
            && other.path != file.path
        {
            let reason = format!("would have the same id {:?} as {}; rename one", file.id, other.path.display());
            return Err(FileError::content(&file.path, reason));
        }
        found.insert(file.id.clone(), file);
        Ok(())
    }

    /// Its text.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be read, is larger than [`DocumentFile::BYTES_MAX`], or is not UTF-8.
    pub fn read(&self) -> Result<String, FileError> {
        let file = File::open(&self.path).map_err(|error| FileError::io(&self.path, error))?;
        let mut bytes = Vec::new();
        file.take(Self::BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| FileError::io(&self.path, error))?;
        if bytes.len() as u64 > Self::BYTES_MAX {
            let reason = format!("is larger than {} bytes; split it", Self::BYTES_MAX);
            return Err(FileError::content(&self.path, reason));
        }
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            FileError::content(&self.path, format!("is not UTF-8 at byte {at}; convert it first"))
        })
    }
}
