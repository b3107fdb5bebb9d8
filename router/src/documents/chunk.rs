//! Cutting a document where its structure allows, and what a chunk's point carries.

use nearring_proto::ids::PointId;
use nearring_proto::payload::Payload;
use text_splitter::{ChunkConfig, MarkdownSplitter, TextSplitter};

use super::{Document, DocumentError, Format, markdown};

/// How long chunks are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkSettings {
    /// Characters of the longest chunk. Longer chunks give answers more context and vectors less focus.
    pub characters: usize,
    /// Characters that a chunk repeats from its predecessor's end, so that a statement cut in two is found whole; below
    /// half of `characters`. Cuts fall on sentences and words, so it is a most, and 0 on neat paragraphs.
    pub overlap: usize,
}

impl ChunkSettings {
    /// The shortest chunks.
    pub const CHARACTERS_MIN: usize = 50;
}

impl Default for ChunkSettings {
    fn default() -> Self {
        Self { characters: 900, overlap: 120 }
    }
}

/// A piece of a document: one point.
#[derive(Clone, PartialEq, Debug)]
pub struct Chunk {
    /// `document#0000`; four digits or more.
    pub id: PointId,
    /// Its place in the document, from 0.
    pub number: u32,
    /// The heading it stands under, where that is not the document's title.
    pub heading: Option<String>,
    /// Its text.
    pub text: String,
}

impl Document {
    /// Cuts the document at headings, paragraphs, sentences or words, the largest unit that fits. Every word of the text
    /// is in at least one chunk, except headings with nothing under them.
    ///
    /// # Errors
    /// [`DocumentError::Settings`].
    pub fn chunks(&self, settings: &ChunkSettings) -> Result<Vec<Chunk>, DocumentError> {
        let ChunkSettings { characters, overlap } = *settings;
        let refused = DocumentError::Settings { characters, overlap };
        if characters < ChunkSettings::CHARACTERS_MIN || overlap >= characters.div_ceil(2) {
            return Err(refused);
        }
        let config = ChunkConfig::new(characters).with_overlap(overlap).map_err(|_| refused)?;
        let pieces: Vec<(usize, &str)> = match self.format {
            Format::Text => TextSplitter::new(config).chunk_indices(&self.text).collect(),
            Format::Markdown => MarkdownSplitter::new(config).chunk_indices(&self.text).collect(),
        };
        let headings = match self.format {
            Format::Text => Vec::new(),
            Format::Markdown => markdown::headings(&self.text),
        };
        let bare = |text: &str| self.format == Format::Markdown && is_only_headings(text);
        let all_bare = pieces.iter().all(|(_, text)| bare(text));
        let kept = pieces.into_iter().filter(|(_, text)| !text.trim().is_empty() && (all_bare || !bare(text)));
        Ok((0_u32..)
            .zip(kept)
            .map(|(number, (start, text))| Chunk {
                id: PointId::Text(format!("{}{}{number:04}", self.id, Self::SEPARATOR)),
                number,
                heading: headings
                    .iter()
                    .take_while(|heading| heading.start <= start)
                    .last()
                    .map(|heading| heading.text.clone())
                    .filter(|heading| !heading.is_empty() && *heading != self.title),
                text: text.to_owned(),
            })
            .collect())
    }
}

impl Chunk {
    /// What is embedded: title and heading before the text, since a chunk from a document's middle often does not name
    /// what it is about.
    pub fn embedded_text(&self, document: &Document) -> String {
        let mut parts = Vec::with_capacity(3);
        for name in [Some(document.title.as_str()), self.heading.as_deref()].into_iter().flatten() {
            if !self.text.trim_start_matches(['#', ' ']).starts_with(name) {
                parts.push(name);
            }
        }
        parts.push(&self.text);
        parts.join("\n\n")
    }

    /// The point's payload: the document's metadata, `document`, `chunk` (its number), `title`, `heading` where there is
    /// one, and the text under `text_field`.
    ///
    /// # Errors
    /// [`DocumentError::ReservedField`] where metadata or `text_field` would overwrite one of these.
    pub fn payload(&self, document: &Document, text_field: &str) -> Result<Payload, DocumentError> {
        let mut payload = document.metadata.clone();
        let mut put = |field: &str, value: serde_json::Value| match payload.insert(field.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(DocumentError::ReservedField { field: field.to_owned() }),
        };
        put("document", document.id.as_str().into())?;
        put("chunk", self.number.into())?;
        put("title", document.title.as_str().into())?;
        if let Some(heading) = &self.heading {
            put("heading", heading.as_str().into())?;
        } else if text_field == "heading" {
            return Err(DocumentError::ReservedField { field: text_field.to_owned() });
        }
        put(text_field, self.text.as_str().into())?;
        Ok(payload)
    }
}

fn is_only_headings(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    const GUIDE: &str = "# Guide\n\nFirst words here.\n\n## Install\n\nRun the installer and wait until it is done.\n\n\
                         ## Empty\n\n## Use\n\nCall it often, since practice makes the difference in the end.\n";

    fn document(text: &str, format: Format) -> Document {
        Document::parse("guide", text, format, Payload::new()).unwrap()
    }

    #[test]
    fn chunks_know_their_place_and_heading() {
        let document = document(GUIDE, Format::Markdown);
        let chunks = document.chunks(&ChunkSettings { characters: 70, overlap: 0 }).unwrap();
        let seen: Vec<_> = chunks.iter().map(|c| (c.id.to_string(), c.heading.as_deref())).collect();
        assert_eq!(
            seen,
            [("guide#0000".into(), None), ("guide#0001".into(), Some("Install")), ("guide#0002".into(), Some("Use"))]
        );
        assert_eq!(chunks[1].embedded_text(&document), format!("Guide\n\n{}", chunks[1].text));
        assert_eq!(Document::of_chunk("guide#0002"), "guide");
    }

    #[test]
    fn a_payload_carries_metadata_and_refuses_to_lose_any() {
        let metadata = Payload::from_iter([("lang".to_owned(), "en".into())]);
        let document = Document::parse("d", "words", Format::Text, metadata).unwrap();
        let chunk = document.chunks(&ChunkSettings::default()).unwrap().remove(0);
        let expected =
            serde_json::json!({"document": "d", "chunk": 0, "title": "words", "text": "words", "lang": "en"});
        assert_eq!(serde_json::Value::Object(chunk.payload(&document, "text").unwrap()), expected);
        for field in ["lang", "title", "chunk", "heading"] {
            let error = chunk.payload(&document, field).unwrap_err();
            assert_eq!(error, DocumentError::ReservedField { field: field.into() });
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let document = document("words", Format::Text);
        for (characters, overlap) in [(0, 0), (49, 0), (100, 50), (100, 200)] {
            let error = document.chunks(&ChunkSettings { characters, overlap }).unwrap_err();
            assert_eq!(error, DocumentError::Settings { characters, overlap });
        }
    }

    proptest! {
        #[test]
        fn no_word_is_lost_and_no_chunk_too_long(text in "([a-zé]{1,9}[ .\n]{1,2}){1,200}", overlap in 0_usize..40) {
            for format in [Format::Text, Format::Markdown] {
                let document = document(&text, format);
                let chunks = document.chunks(&ChunkSettings { characters: 80, overlap }).unwrap();
                prop_assert!(chunks.iter().all(|c| c.text.chars().count() <= 80));
                let split = |text: &str| -> Vec<String> {
                    text.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()).map(str::to_owned).collect()
                };
                let all: std::collections::BTreeSet<_> = chunks.iter().flat_map(|c| split(&c.text)).collect();
                prop_assert!(split(&text).iter().all(|word| all.contains(word)));
            }
        }
    }
}
