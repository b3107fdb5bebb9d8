//! Which passages a generator sees, and under which number the answer cites them.

use std::collections::BTreeSet;

use nearring_proto::hit::Hit;
use nearring_proto::ids::{PointId, Version};
use nearring_proto::payload;

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

impl Passage {
    /// Reads a hit's payload; `None` where it holds no text under `text_field`, as a point written without chunking may.
    pub fn from_hit(hit: &Hit, text_field: &str) -> Option<Self> {
        let payload = payload::parse(&hit.payload_json).ok()?;
        let string = |field: &str| payload.get(field).and_then(serde_json::Value::as_str).map(str::to_owned);
        let text = string(text_field).filter(|text| !text.trim().is_empty())?;
        let document = string("document").unwrap_or_else(|| Document::of_chunk(&hit.id.to_string()).to_owned());
        Some(Self {
            number: 0,
            id: hit.id.clone(),
            document,
            title: string("title").unwrap_or_default(),
            heading: string("heading"),
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
        let found = Passage::from_hit(&hit(r#"{"body": "words", "title": "T"}"#), "body").unwrap();
        assert_eq!((found.document.as_str(), found.title.as_str(), found.text.as_str()), ("doc", "T", "words"));
        for payload in [r#"{"body": " "}"#, r#"{"body": 7}"#, "{}", "", "["] {
            assert_eq!(Passage::from_hit(&hit(payload), "body"), None, "{payload}");
        }
    }
}
