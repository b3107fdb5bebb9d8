//! Which payload indexes there are, and what each can answer, as Qdrant's settings of an index say.
use std::collections::BTreeMap;

use nearring_proto::collection::FieldKind;
use serde_json::Value;

/// What an index can do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ability {
    /// Whole strings.
    Keyword,
    /// Beginnings of strings.
    Prefix,
    /// UUIDs.
    Uuid,
    /// Whole numbers that equal one.
    IntegerLookup,
    /// Whole numbers within bounds.
    IntegerRange,
    /// Numbers within bounds.
    Float,
    /// Truth.
    Bool,
    /// Moments within bounds.
    Datetime,
    /// Places.
    Geo,
    /// Words of texts.
    Text,
    /// Words of texts, one behind the other.
    Phrase,
}

impl Ability {
    /// All of them: what a condition about missing values can be answered by.
    pub const ALL: [Self; 11] = [
        Self::Keyword,
        Self::Prefix,
        Self::Uuid,
        Self::IntegerLookup,
        Self::IntegerRange,
        Self::Float,
        Self::Bool,
        Self::Datetime,
        Self::Geo,
        Self::Text,
        Self::Phrase,
    ];

    /// The kind of index that has it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Keyword | Self::Prefix => "keyword",
            Self::Uuid => "uuid",
            Self::IntegerLookup | Self::IntegerRange => "integer",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::Datetime => "datetime",
            Self::Geo => "geo",
            Self::Text | Self::Phrase => "text",
        }
    }
}

/// Indexes by path, without the brackets of arrays.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Declared(BTreeMap<String, (String, Vec<Ability>)>);

impl Declared {
    /// Of the indexes there are, and the settings that they were declared with, which say more.
    pub fn new(indexes: &BTreeMap<String, FieldKind>, settings: Option<&Value>) -> Self {
        let kind = |kind: &FieldKind| match kind {
            FieldKind::Keyword => "keyword",
            FieldKind::Integer => "integer",
            FieldKind::Float => "float",
            FieldKind::Bool => "bool",
            FieldKind::Datetime => "datetime",
        };
        let mut declared = BTreeMap::new();
        for (path, of) in indexes {
            declared.insert(plain(path), abilities(kind(of), &Value::Null));
        }
        for (path, settings) in settings.and_then(Value::as_object).into_iter().flatten() {
            let kind = settings["type"].as_str().unwrap_or_default();
            declared.insert(plain(path), abilities(kind, settings));
        }
        Self(declared)
    }

    /// Whether the field has an index with one of these abilities.
    pub fn serves(&self, field: &str, wanted: &[Ability]) -> bool {
        self.0.get(&plain(field)).is_some_and(|(_, has)| wanted.iter().any(|ability| has.contains(ability)))
    }

    /// What kind of index the field has, capitalised.
    pub fn kind(&self, field: &str) -> Option<String> {
        let (kind, _) = self.0.get(&plain(field))?;
        let mut letters = kind.chars();
        Some(letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect())
    }

    /// Whether the field's index finds points by a value.
    pub fn matches(&self, field: &str) -> bool {
        self.serves(field, &[Ability::Keyword, Ability::Uuid, Ability::IntegerLookup, Ability::Bool])
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the field has any.
    pub fn has(&self, field: &str) -> bool {
        self.0.contains_key(&plain(field))
    }
}

/// An index holds what stands in arrays, however the path is written.
fn plain(path: &str) -> String {
    path.replace("[]", "")
}

fn abilities(kind: &str, settings: &Value) -> (String, Vec<Ability>) {
    let unless_off = |setting: &str, ability| (settings[setting] != Value::Bool(false)).then_some(ability);
    let if_on = |setting: &str, ability| (settings[setting] == Value::Bool(true)).then_some(ability);
    let has: Vec<Option<Ability>> = match kind {
        "keyword" => vec![Some(Ability::Keyword), if_on("prefix", Ability::Prefix)],
        "uuid" => vec![Some(Ability::Uuid)],
        "integer" => vec![unless_off("lookup", Ability::IntegerLookup), unless_off("range", Ability::IntegerRange)],
        "float" => vec![Some(Ability::Float)],
        "bool" => vec![Some(Ability::Bool)],
        "datetime" => vec![Some(Ability::Datetime)],
        "geo" => vec![Some(Ability::Geo)],
        "text" => vec![Some(Ability::Text), if_on("phrase_matching", Ability::Phrase)],
        _ => Vec::new(),
    };
    (kind.to_owned(), has.into_iter().flatten().collect())
}
