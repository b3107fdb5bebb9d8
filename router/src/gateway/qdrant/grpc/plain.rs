//! Settings that have the same keys in protobuf and in JSON, read off the descriptors, in both directions.
//!
//! They differ in how the values of enums are spelt (`OneBit` there, `one_bit` here) and in messages that only choose between a
//! number and a word, or only hold a map, which JSON writes as that.
use std::sync::LazyLock;

use nearring_proto::qdrant as pb;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage,
    Value as Dynamic,
};
use serde_json::{Map, Value, json};

static POOL: LazyLock<DescriptorPool> =
    // What the build wrote; a test decodes it.
    LazyLock::new(|| DescriptorPool::decode(pb::DESCRIPTORS).unwrap_or_default());

/// A message that is spelt alike.
pub(super) trait Plain: Message + Default {
    /// Its full name.
    const NAME: &'static str;
}

macro_rules! plain {
    ($($message:ident),* $(,)?) => {
        $(impl Plain for pb::$message {
            const NAME: &'static str = concat!("qdrant.", stringify!($message));
        })*
    };
}

plain!(
    HnswConfigDiff,
    WalConfigDiff,
    OptimizersConfigDiff,
    StrictModeConfig,
    SparseIndexConfig,
    CollectionParamsDiff,
    ScalarQuantization,
    ProductQuantization,
    BinaryQuantization,
    TurboQuantization,
    KeywordIndexParams,
    IntegerIndexParams,
    FloatIndexParams,
    GeoIndexParams,
    TextIndexParams,
    BoolIndexParams,
    DatetimeIndexParams,
    UuidIndexParams,
);

/// The message as an object of what is set.
pub(super) fn to_json<M: Plain>(message: &M) -> Value {
    let kind = POOL.get_message_by_name(M::NAME);
    let dynamic = kind.and_then(|kind| DynamicMessage::decode(kind, message.encode_to_vec().as_slice()).ok());
    dynamic.map_or_else(|| json!({}), |dynamic| told(&dynamic))
}

/// The object as a message; what the message does not know, or holds otherwise, is left out.
pub(super) fn from_json<M: Plain>(value: &Value) -> M {
    let kind = POOL.get_message_by_name(M::NAME);
    let message = kind.and_then(|kind| M::decode(read(kind, value).encode_to_vec().as_slice()).ok());
    message.unwrap_or_default()
}

/// Whether it only chooses between a number and a word.
fn chooses(kind: &MessageDescriptor) -> bool {
    kind.fields().len() > 0 && kind.fields().all(|field| matches!(field.name(), "value" | "setting"))
}

/// Whether it only holds a map, which JSON writes as that.
fn wraps(kind: &MessageDescriptor) -> Option<FieldDescriptor> {
    let only = kind.fields().next().filter(|field| field.is_map())?;
    (kind.fields().len() == 1).then_some(only)
}

fn told(message: &DynamicMessage) -> Value {
    let mut parts: Map<String, Value> =
        message.fields().map(|(field, value)| (field.name().to_owned(), part(&field.kind(), value))).collect();
    if chooses(&message.descriptor()) {
        return parts.remove("value").or_else(|| parts.remove("setting")).unwrap_or_default();
    }
    if let Some(map) = wraps(&message.descriptor()) {
        return parts.remove(map.name()).unwrap_or_else(|| json!({}));
    }
    Value::Object(parts)
}

fn part(kind: &Kind, value: &Dynamic) -> Value {
    match value {
        Dynamic::Bool(value) => json!(value),
        Dynamic::I32(value) => json!(value),
        Dynamic::I64(value) => json!(value),
        Dynamic::U32(value) => json!(value),
        Dynamic::U64(value) => json!(value),
        Dynamic::F32(value) => json!(value),
        Dynamic::F64(value) => json!(value),
        Dynamic::String(value) => json!(value),
        Dynamic::Bytes(_) => Value::Null,
        Dynamic::EnumNumber(number) => match kind {
            Kind::Enum(names) => names.get_value(*number).map_or(Value::Null, |name| json!(snake(name.name()))),
            _ => json!(number),
        },
        Dynamic::Message(message) => told(message),
        Dynamic::List(items) => items.iter().map(|item| part(kind, item)).collect(),
        Dynamic::Map(entries) => {
            let of = match kind {
                Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
                other => other.clone(),
            };
            let entry = |(key, value): (&MapKey, &Dynamic)| Some((key.as_str()?.to_owned(), part(&of, value)));
            Value::Object(entries.iter().filter_map(entry).collect())
        }
    }
}

/// `OneAndHalfBits` as `one_and_half_bits`, `Scalar4Bits` as `scalar4bits`.
fn snake(name: &str) -> String {
    let mut spelt = String::with_capacity(name.len() + 4);
    let mut before = None;
    for letter in name.chars() {
        if letter.is_uppercase() && before.is_some_and(char::is_lowercase) {
            spelt.push('_');
        }
        spelt.extend(letter.to_lowercase());
        before = Some(letter);
    }
    spelt
}

fn read(kind: MessageDescriptor, value: &Value) -> DynamicMessage {
    let mut message = DynamicMessage::new(kind.clone());
    let mut set = |field: Option<FieldDescriptor>, value: &Value| {
        if let Some(field) = field
            && let Some(value) = whole(&field, value)
        {
            message.set_field(&field, value);
        }
    };
    match value {
        Value::Object(_) if wraps(&kind).is_some() => set(wraps(&kind), value),
        Value::Object(parts) => parts.iter().for_each(|(key, value)| set(kind.get_field_by_name(key), value)),
        Value::Number(_) => set(kind.get_field_by_name("value"), value),
        Value::String(_) => set(kind.get_field_by_name("setting"), value),
        _ => {}
    }
    message
}

fn whole(field: &FieldDescriptor, value: &Value) -> Option<Dynamic> {
    let kind = field.kind();
    if field.is_map() {
        let Kind::Message(entry) = &kind else { return None };
        let of = entry.map_entry_value_field().kind();
        let entry = |(key, value): (&String, &Value)| Some((MapKey::String(key.clone()), single(&of, value)?));
        return Some(Dynamic::Map(value.as_object()?.iter().filter_map(entry).collect()));
    }
    if field.is_list() {
        return Some(Dynamic::List(value.as_array()?.iter().filter_map(|item| single(&kind, item)).collect()));
    }
    single(&kind, value)
}

fn single(kind: &Kind, value: &Value) -> Option<Dynamic> {
    Some(match kind {
        Kind::Bool => Dynamic::Bool(value.as_bool()?),
        Kind::Uint32 => Dynamic::U32(value.as_u64()?.try_into().ok()?),
        Kind::Uint64 => Dynamic::U64(value.as_u64()?),
        Kind::Int32 => Dynamic::I32(value.as_i64()?.try_into().ok()?),
        Kind::Int64 => Dynamic::I64(value.as_i64()?),
        Kind::Float => Dynamic::F32(value.as_f64()? as f32),
        Kind::Double => Dynamic::F64(value.as_f64()?),
        Kind::String => Dynamic::String(value.as_str()?.to_owned()),
        Kind::Enum(names) => Dynamic::EnumNumber(named(names, value.as_str()?)?),
        Kind::Message(kind) if !value.is_null() => Dynamic::Message(read(kind.clone(), value)),
        _ => return None,
    })
}

fn named(names: &EnumDescriptor, spelt: &str) -> Option<i32> {
    names.values().find(|name| snake(name.name()) == spelt.to_lowercase()).map(|name| name.number())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn settings_are_spelt_as_json_spells_them_and_come_back() {
        let threads = |variant| Some(pb::MaxOptimizationThreads { variant: Some(variant) });
        for (variant, told) in [
            (pb::max_optimization_threads::Variant::Value(3), json!(3)),
            (pb::max_optimization_threads::Variant::Setting(0), json!("auto")),
        ] {
            let optimizers = pb::OptimizersConfigDiff {
                deleted_threshold: Some(0.5),
                indexing_threshold: Some(0),
                max_optimization_threads: threads(variant),
                ..Default::default()
            };
            let spelt = to_json(&optimizers);
            assert_eq!(
                spelt,
                json!({"deleted_threshold": 0.5, "indexing_threshold": 0, "max_optimization_threads": told})
            );
            assert_eq!(from_json::<pb::OptimizersConfigDiff>(&spelt), optimizers);
        }
        let setting = pb::binary_quantization_query_encoding::Setting::Scalar4Bits.into();
        let variant = Some(pb::binary_quantization_query_encoding::Variant::Setting(setting));
        let binary = pb::BinaryQuantization {
            encoding: Some(pb::BinaryQuantizationEncoding::OneAndHalfBits.into()),
            query_encoding: Some(pb::BinaryQuantizationQueryEncoding { variant }),
            ..Default::default()
        };
        let spelt = to_json(&binary);
        assert_eq!(spelt, json!({"encoding": "one_and_half_bits", "query_encoding": "scalar4bits"}));
        assert_eq!(from_json::<pb::BinaryQuantization>(&spelt), binary);
        let strict = pb::StrictModeMultivectorConfig {
            multivector_config: [("a".to_owned(), pb::StrictModeMultivector { max_vectors: Some(7) })].into(),
        };
        let strict = pb::StrictModeConfig { multivector_config: Some(strict), ..Default::default() };
        let spelt = json!({"multivector_config": {"a": {"max_vectors": 7}}});
        assert_eq!(to_json(&strict), spelt);
        assert_eq!(from_json::<pb::StrictModeConfig>(&spelt), strict);
        assert_eq!(
            from_json::<pb::HnswConfigDiff>(&json!({"m": "many", "younger": 1, "on_disk": null})),
            Default::default()
        );
    }
}
