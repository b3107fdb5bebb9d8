//! Documents: what a text is called, and how it is cut into the chunks that become points.
//!
//! A document's chunks are points `document#0000`, `document#0001`, … With `#` as the collection's routing separator
//! they share a home shard, so that the document appears, changes and disappears as one. Everything here is a pure
//! function of its arguments: the same text gives the same chunks on every router.

mod chunk;
mod markdown;

pub use chunk::{Chunk, ChunkSettings};

use nearring_proto::ids::PointId;
use nearring_proto::payload::Payload;

/// How a text is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Plain text; blank lines separate paragraphs.
    Text,
    /// CommonMark with tables; a YAML front matter is skipped, its `title:` is used.
    Markdown,
}

impl Format {
    /// From a media type, parameters ignored; "" means plain text.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "" | "text/plain" => Some(Self::Text),
            "text/markdown" | "text/x-markdown" => Some(Self::Markdown),
            _ => None,
        }
    }

    /// From a file's ending; `None` for a file that is not a text.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (_, ending) = name.rsplit_once('.')?;
        match ending.to_ascii_lowercase().as_str() {
            "md" | "markdown" => Some(Self::Markdown),
            "txt" | "text" => Some(Self::Text),
            _ => None,
        }
    }

    /// The media type on the wire.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain",
            Self::Markdown => "text/markdown",
        }
    }
}

/// A text under its id, ready to be cut.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    id: String,
    title: String,
    text: String,
    format: Format,
    metadata: Payload,
}

impl Document {
    /// Between a document's id and a chunk's number; the routing separator of a document collection.
    pub const SEPARATOR: char = '#';
    /// The longest id, in bytes: leaves room for separator and number in a point id.
    pub const ID_BYTES_MAX: usize = PointId::TEXT_BYTES_MAX - 16;
    /// The longest title kept, in characters.
    pub const TITLE_CHARACTERS_MAX: usize = 200;

    /// Takes a text under an id. Line ends become `\n`, NUL characters and a byte order mark go; the title is
    /// `metadata.title` if that is a string, else the first heading, else the first line that says anything.
    ///
    /// # Errors
    /// [`DocumentError`] naming the field.
    pub fn parse(id: &str, text: &str, format: Format, mut metadata: Payload) -> Result<Self, DocumentError> {
        if id.is_empty() || id.len() > Self::ID_BYTES_MAX {
            return Err(DocumentError::IdLength { got: id.len() });
        }
        if id.chars().any(|c| c == Self::SEPARATOR || c.is_control()) {
            return Err(DocumentError::IdCharacters);
        }
        let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace('\r', "\n").replace('\0', "");
        let (front_title, text) = match format {
            Format::Markdown => markdown::without_front_matter(&text),
            Format::Text => (None, text.as_str()),
        };
        if text.trim().is_empty() {
            return Err(DocumentError::Empty);
        }
        let given = match metadata.remove("title") {
            Some(serde_json::Value::String(title)) if !title.trim().is_empty() => Some(title),
            Some(_) => return Err(DocumentError::Title),
            None => front_title,
        };
        let heading = || match format {
            Format::Markdown => markdown::headings(text).into_iter().map(|h| h.text).find(|t| !t.is_empty()),
            Format::Text => None,
        };
        let first_line = || text.lines().map(str::trim).find(|line| line.chars().any(char::is_alphanumeric));
        let title = given.or_else(heading).or_else(|| first_line().map(str::to_owned)).unwrap_or_else(|| id.to_owned());
        let title = title.trim().chars().take(Self::TITLE_CHARACTERS_MAX).collect();
        Ok(Self { id: id.to_owned(), title, text: text.to_owned(), format, metadata })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is called.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Its text, without front matter.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How it is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The id of the document that a chunk's id names; the whole id where it names none.
    pub fn of_chunk(chunk_id: &str) -> &str {
        chunk_id.split_once(Self::SEPARATOR).map_or(chunk_id, |(document, _)| document)
    }
}

/// Why a text cannot be a document.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DocumentError {
    /// No id, or one too long.
    #[error("document: the id has {got} bytes; give 1 to {}", Document::ID_BYTES_MAX)]
    IdLength {
        /// Its bytes.
        got: usize,
    },
    /// The id holds the separator or a control character.
    #[error("document: the id holds `{}` or a control character; leave them out", Document::SEPARATOR)]
    IdCharacters,
    /// Nothing to store.
    #[error("text: is blank; give a text, or delete the document")]
    Empty,
    /// A title that is no text.
    #[error("metadata.title: must be a string that is not blank")]
    Title,
    /// Metadata, or the collection's text field, would overwrite what every chunk carries.
    #[error("metadata.{field}: the field is written by chunking; rename it")]
    ReservedField {
        /// The field.
        field: String,
    },
    /// Chunk settings that cannot work.
    #[error(
        "chunks: {characters} characters with an overlap of {overlap}; give at least {} characters and an overlap below half of them",
        ChunkSettings::CHARACTERS_MIN
    )]
    Settings {
        /// The size asked for.
        characters: usize,
        /// The overlap asked for.
        overlap: usize,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parse(text: &str, format: Format) -> Result<Document, DocumentError> {
        Document::parse("doc", text, format, Payload::new())
    }

    #[test]
    fn a_title_comes_from_metadata_front_matter_heading_or_first_line() {
        let title = |text, format| parse(text, format).unwrap().title().to_owned();
        assert_eq!(title("\n***\nThe Ant\nand more", Format::Text), "The Ant");
        assert_eq!(title("intro\n\n## A *fine* day ##\n\ntext", Format::Markdown), "A *fine* day");
        assert_eq!(title("Big one\n=======\n\ntext", Format::Markdown), "Big one");
        assert_eq!(title("---\ntitle: \"Of foxes\"\nx: 1\n---\n# Other\n", Format::Markdown), "Of foxes");
        assert_eq!(title("```\n# not me\n```\n\n# me\n", Format::Markdown), "me");
        let metadata = Payload::from_iter([("title".to_owned(), "Given".into())]);
        assert_eq!(Document::parse("doc", "# h", Format::Markdown, metadata).unwrap().title(), "Given");
    }

    #[test]
    fn what_cannot_be_stored_is_refused_by_field() {
        assert_eq!(parse("\u{feff} \n", Format::Text).unwrap_err(), DocumentError::Empty);
        let id = |id: &str| Document::parse(id, "x", Format::Text, Payload::new()).unwrap_err();
        assert_eq!(id(""), DocumentError::IdLength { got: 0 });
        assert_eq!(id("a#b"), DocumentError::IdCharacters);
        assert_eq!(id(&"x".repeat(2_000)), DocumentError::IdLength { got: 2_000 });
        let metadata = Payload::from_iter([("title".to_owned(), 7.into())]);
        assert_eq!(Document::parse("d", "x", Format::Text, metadata).unwrap_err(), DocumentError::Title);
    }

    #[test]
    fn formats_are_told_by_type_and_ending() {
        assert_eq!(Format::from_content_type("text/Markdown; charset=utf-8"), Some(Format::Markdown));
        assert_eq!(Format::from_content_type("application/pdf"), None);
        assert_eq!(Format::from_file_name("a.b.TXT"), Some(Format::Text));
        assert_eq!(Format::from_file_name("README"), None);
    }
}
