//! Texts: documents and their chunks, what is embedded of them, and citations in an answer.
use std::collections::BTreeSet;

use nearring_proto::ids::PointId;
use nearring_proto::payload::Payload;
use nearring_router::documents::{ChunkSettings, Document, Format};
use nearring_router::embed::Static256;
use nearring_router::rag::citations::Citations;

use super::{chosen, done};

/// Any text as a document, cut into chunks and embedded; and as an answer whose citations arrive in pieces.
pub fn documents(data: &[u8]) -> bool {
    let [mode, size, text @ ..] = data else { return false };
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let format = if mode & 1 == 0 { Format::Text } else { Format::Markdown };
    if mode & 2 == 0 { chunks(text, format, *size) } else { cited(text, (*size).into()) }
}

fn chunks(text: &str, format: Format, size: u8) -> bool {
    let Ok(document) = Document::parse("doc", text, format, Payload::new()) else { return false };
    assert!(!document.text().trim().is_empty());
    assert!(document.title().chars().count() <= Document::TITLE_CHARACTERS_MAX);
    let characters = ChunkSettings::CHARACTERS_MIN + usize::from(size);
    let settings = ChunkSettings { characters, overlap: usize::from(size) / 4 };
    let chunks = done(document.chunks(&settings));
    assert_eq!(chunks, done(document.chunks(&settings)), "not the same chunks of the same text");
    let embedder = done(Static256::shared());
    for (number, chunk) in (0_u32..).zip(&chunks) {
        assert_eq!(chunk.number, number);
        assert!(chunk.text.chars().count() <= characters, "a chunk is too long");
        assert!(document.text().contains(&chunk.text), "a chunk says what the document does not");
        let PointId::Text(id) = &chunk.id else { panic!("{:?} is no chunk's id", chunk.id) };
        assert_eq!(Document::of_chunk(id), "doc");
        assert!(chunk.payload(&document, "text").is_ok());
        let text = chunk.embedded_text(&document);
        if let Some(vector) = done(embedder.embed_one(&text)) {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((length - 1.0).abs() < 1e-3, "a vector of length {length}");
        }
    }
    if format == Format::Text {
        let words = |text: &str| -> BTreeSet<String> {
            let plain = |word: &&str| word.len() <= 25 && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
            text.split_whitespace().filter(plain).map(str::to_owned).collect()
        };
        let kept: BTreeSet<String> = chunks.iter().flat_map(|chunk| words(&chunk.text)).collect();
        assert!(words(document.text()).is_subset(&kept), "a word is in no chunk");
    }
    true
}

/// Where a text is cut on its way changes nothing, and only passages that exist are cited.
fn cited(text: &str, cut: usize) -> bool {
    const PASSAGES: u32 = 3;
    let run = |pieces: &[&str]| {
        let mut citations = Citations::new(PASSAGES);
        let (mut all, mut numbers) = (String::new(), Vec::new());
        for piece in pieces {
            let ready = citations.push(piece);
            all.push_str(&ready.text);
            numbers.extend(ready.citations);
        }
        all.push_str(&citations.finish().text);
        (all, numbers, citations.cited())
    };
    let whole = run(&[text]);
    assert!(whole.1.iter().all(|number| (1..=PASSAGES).contains(number)));
    let cut = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (one, other) = text.split_at(cut);
    assert_eq!(run(&[one, other]), whole);
    !whole.1.is_empty()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let guide = "---\ntitle: \"A guide\"\n---\n# Guide\n\nFirst words.\n\n## Install\n\n```\n# not me\n```\n\nRun it, and \
                 wait until it is done.\n\nBig one\n=======\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n* item\n* item\n";
    let plain = "A first line\r\n\r\nA paragraph of words that is longer than one chunk may be, so that it must be cut \
                 somewhere. Dr. J. Smith came, e.g. by train.\n\n\u{65e5}\u{672c}\u{8a9e} \u{1f600} e\u{301}\n";
    let answer = "Ants work [1]. Bees [3, 1] too [9], a[i] and [x [2] [] [";
    vec![
        chosen(0, &chosen(30, plain.as_bytes())),
        chosen(1, &chosen(30, guide.as_bytes())),
        chosen(2, &chosen(11, answer.as_bytes())),
    ]
}
