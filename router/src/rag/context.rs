//! Which passages a generator sees, and under which number the answer cites them.

use std::collections::BTreeSet;

use nearring_proto::hit::Hit;
use nearring_proto::ids::{PointId, Version};
use nearring_proto::payload::{self, Payload};
use serde_json::Value;

use crate::documents::Document;

/// A chunk that a search found.
#[derive(Clone, PartialEq, Debug)]
pub struct Passage {
    /// The `[n]` that the answer cites; from 1 once packed, 0 before.
    pub number: u32,
    /// The point.
    pub id: PointId,
    /// The document it is a piece of.
    pub document: String,
    /// The document's title; empty where the payload names none.
    pub title: String,
    /// The heading above it.
    pub heading: Option<String>,
    /// Its text.
    pub text: String,
    /// Similarity as the search gave it; more is nearer.
    pub score: f32,
    /// The point's version where it was read.
    pub version: Version,
}

/// Where a point's payload holds its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TextField {
    /// In this field: the collection records it.
    Named(String),
    /// Where other programs put it, for points that were not written as documents: the first of [`TextField::USUAL`] that is
    /// text and not blank, otherwise `text` within the JSON that LlamaIndex keeps in `_node_content`.
    Usual,
}

impl TextField {
    /// LangChain's field, then what is common, Haystack's, and that of `QdrantClient.add`.
    pub const USUAL: [&str; 4] = ["page_content", "text", "content", "document"];
    /// LlamaIndex's field: a whole node, as JSON in a string.
    pub const NODE: &str = "_node_content";

    /// The field's name and its text.
    fn read(&self, payload: &Payload) -> Option<(&str, String)> {
        let full = |text: &&str| !text.trim().is_empty();
        let read = |field: &str| payload.get(field).and_then(Value::as_str).filter(full).map(str::to_owned);
        match self {
            Self::Named(field) => Some((field.as_str(), read(field)?)),
            Self::Usual => Self::USUAL.iter().find_map(|field| Some((*field, read(field)?))).or_else(|| {
                let node: Value = serde_json::from_str(payload.get(Self::NODE)?.as_str()?).ok()?;
                let text = node.get("text")?.as_str().filter(full)?;
                Some((Self::NODE, text.to_owned()))
            }),
        }
    }
}

impl From<&str> for TextField {
    fn from(field: &str) -> Self {
        Self::Named(field.to_owned())
    }
}

impl Passage {
    /// Reads a hit's payload; `None` where it holds no text, as a point written without chunking may.
    ///
    /// The names of document and title stand in the payload, or where frameworks keep what is known of a text: in `metadata`
    /// (LangChain) or `meta` (Haystack). A point that names no document is one.
    pub fn from_hit(hit: &Hit, text_field: &TextField) -> Option<Self> {
        let payload = payload::parse(&hit.payload_json).ok()?;
        let (field, text) = text_field.read(&payload)?;
        let inner = ["metadata", "meta"].into_iter().filter_map(|field| payload.get(field)?.as_object());
        let places: Vec<&Payload> = std::iter::once(&payload).chain(inner).collect();
        let string = |names: &[&str]| {
            let named = names.iter().filter(|name| **name != field);
            let text = named.flat_map(|name| places.iter().filter_map(|place| place.get(*name)?.as_str()));
            text.map(str::to_owned).find(|text| !text.trim().is_empty())
        };
        let document = string(&["document", "source", "file_name", "file_path", "ref_doc_id"]);
        Some(Self {
            number: 0,
            id: hit.id.clone(),
            document: document.unwrap_or_else(|| Document::of_chunk(&hit.id.to_string()).to_owned()),
            title: string(&["title"]).unwrap_or_default(),
            heading: string(&["heading"]),
            text,
            score: hit.score,
            version: hit.version,
        })
    }
}

/// How much text a generator is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// The most passages.
    pub passages: usize,
    /// The most characters of text, all passages together.
    pub characters: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { passages: 6, characters: 8_000 }
    }
}

/// Takes passages in the order given while they fit, leaves out any whose text an earlier one already holds (chunks
/// overlap, and documents are stored twice), and numbers the rest from 1. The first is cut where it alone is too long.
pub fn pack(ranked: Vec<Passage>, budget: Budget) -> Vec<Passage> {
    let mut packed: Vec<Passage> = Vec::new();
    let mut seen: BTreeSet<PointId> = BTreeSet::new();
    let mut texts: Vec<String> = Vec::new();
    let mut left = budget.characters;
    for mut passage in ranked {
        if packed.len() == budget.passages {
            break;
        }
        let plain = passage.text.split_whitespace().collect::<Vec<_>>().join(" ");
        if texts.iter().any(|text| text.contains(&plain)) || !seen.insert(passage.id.clone()) {
            continue;
        }
        let characters = passage.text.chars().count();
        if characters > left {
            if !packed.is_empty() {
                continue; // a shorter one further down may fit
            }
            passage.text = passage.text.chars().take(left).collect();
            if passage.text.trim().is_empty() {
                break;
            }
        }
        left -= characters.min(left);
        passage.number = u32::try_from(packed.len() + 1).unwrap_or(u32::MAX);
        texts.push(plain);
        packed.push(passage);
    }
    packed
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// A passage for tests, as a search would return it.
    pub(crate) fn passage(id: &str, text: &str) -> Passage {
        Passage {
            number: 0,
            id: id.into(),
            document: Document::of_chunk(id).to_owned(),
            title: String::new(),
            heading: None,
            text: text.to_owned(),
            score: 0.5,
            version: Version { epoch: 1, index: 1 },
        }
    }

    fn ids(passages: &[Passage]) -> Vec<(u32, String)> {
        passages.iter().map(|p| (p.number, p.id.to_string())).collect()
    }

    #[test]
    fn the_budget_holds_and_repeated_texts_are_left_out() {
        let ranked = vec![
            passage("a#0", "one two three"),
            passage("a#0", "one two three"),
            passage("b#0", "two   three"),
            passage("c#0", "a passage that is longer than the rest of the budget"),
            passage("d#0", "four"),
            passage("e#0", "five"),
        ];
        let packed = pack(ranked.clone(), Budget { passages: 2, characters: 30 });
        assert_eq!(ids(&packed), [(1, "a#0".to_owned()), (2, "d#0".to_owned())]);
        let packed = pack(ranked, Budget { passages: 9, characters: 7 });
        assert_eq!((packed.len(), packed[0].text.as_str()), (1, "one two"));
        assert!(pack(vec![passage("a", "x")], Budget { passages: 0, characters: 9 }).is_empty());
        assert!(pack(vec![passage("a", "x")], Budget { passages: 9, characters: 0 }).is_empty());
    }

    #[test]
    fn a_hit_without_text_is_no_passage() {
        let hit = |payload: &'static str| Hit {
            id: "doc#0003".into(),
            score: 0.25,
            version: Version { epoch: 1, index: 7 },
            payload_json: bytes::Bytes::from_static(payload.as_bytes()),
            vectors: Default::default(),
        };
        let found = Passage::from_hit(&hit(r#"{"body": "words", "title": "T"}"#), &"body".into()).unwrap();
        assert_eq!((found.document.as_str(), found.title.as_str(), found.text.as_str()), ("doc", "T", "words"));
        for payload in [r#"{"body": " "}"#, r#"{"body": 7}"#, "{}", "", "["] {
            assert_eq!(Passage::from_hit(&hit(payload), &"body".into()), None, "{payload}");
            assert_eq!(Passage::from_hit(&hit(payload), &TextField::Usual), None, "{payload}");
        }
    }

    #[test]
    fn points_of_other_programs_are_read_where_these_put_their_texts() {
        let read = |payload: serde_json::Value| {
            let hit = Hit {
                id: "7".into(),
                score: 0.25,
                version: Version { epoch: 1, index: 7 },
                payload_json: payload.to_string().into(),
                vectors: Default::default(),
            };
            let passage = Passage::from_hit(&hit, &TextField::Usual)?;
            Some([passage.text, passage.document, passage.title])
        };
        let json = |value| read(value).map(|found| found.join("|"));
        let langchain = serde_json::json!({"page_content": "ants", "metadata": {"source": "a.md", "title": "On ants"}});
        assert_eq!(json(langchain).unwrap(), "ants|a.md|On ants");
        let node = serde_json::json!({"id_": "n", "text": "bees", "metadata": {}}).to_string();
        let llama_index = serde_json::json!({"_node_content": node, "_node_type": "TextNode", "file_name": "b.md"});
        assert_eq!(json(llama_index).unwrap(), "bees|b.md|");
        let haystack = serde_json::json!({"content": "wasps", "meta": {"file_path": "c.md"}});
        assert_eq!(json(haystack).unwrap(), "wasps|c.md|");
        // Here `document` is the text, and the point names no document.
        assert_eq!(json(serde_json::json!({"document": "flies"})).unwrap(), "flies|7|");
        // Ours, read without the collection's settings; a blank field is passed over.
        assert_eq!(json(serde_json::json!({"page_content": " ", "text": "x", "document": "d"})).unwrap(), "x|d|");
        for odd in ["{", "[]", "{}", r#"{"text": ""}"#, r#"{"text": 7}"#] {
            assert_eq!(json(serde_json::json!({"_node_content": odd})), None, "{odd}");
        }
    }
}
