//! Formulas.
use nearring_proto::qdrant as pb;
use serde_json::{Map, Value, json};

use super::{condition, list, object, place, single, value};

/// A formula with its defaults. A default that JSON cannot say becomes a list, which is refused
/// wherever a value is wanted.
pub(super) fn formula(of: pb::Formula) -> Value {
    let default = |(name, of): (String, pb::Value)| {
        (name, value(of).unwrap_or_else(|number| json!([format!("{number}, which JSON cannot say")])))
    };
    let defaults: Map<String, Value> = of.defaults.into_iter().map(default).collect();
    json!({"formula": expression(of.expression), "defaults": defaults})
}

fn expression(of: Option<pb::Expression>) -> Value {
    use pb::expression::Variant;
    let boxed = |of: Option<Box<pb::Expression>>| expression(of.map(|of| *of));
    let all = |of: Vec<pb::Expression>| list(of, |one| expression(Some(one)));
    match of.and_then(|of| of.variant) {
        None => Value::Null,
        Some(Variant::Constant(number)) => number_of(number),
        Some(Variant::Variable(name)) => json!(name),
        Some(Variant::Condition(of)) => condition(of),
        Some(Variant::GeoDistance(of)) => json!({"geo_distance": {"origin": place(of.origin), "to": of.to}}),
        Some(Variant::Datetime(text)) => json!({"datetime": text}),
        Some(Variant::DatetimeKey(path)) => json!({"datetime_key": path}),
        Some(Variant::Mult(of)) => json!({"mult": all(of.mult)}),
        Some(Variant::Sum(of)) => json!({"sum": all(of.sum)}),
        Some(Variant::Div(of)) => json!({"div": object([
            ("left", Some(boxed(of.left))),
            ("right", Some(boxed(of.right))),
            ("by_zero_default", of.by_zero_default.map(single)),
        ])}),
        Some(Variant::Neg(of)) => json!({"neg": expression(Some(*of))}),
        Some(Variant::Abs(of)) => json!({"abs": expression(Some(*of))}),
        Some(Variant::Sqrt(of)) => json!({"sqrt": expression(Some(*of))}),
        Some(Variant::Pow(of)) => json!({"pow": {"base": boxed(of.base), "exponent": boxed(of.exponent)}}),
        Some(Variant::Exp(of)) => json!({"exp": expression(Some(*of))}),
        Some(Variant::Log10(of)) => json!({"log10": expression(Some(*of))}),
        Some(Variant::Ln(of)) => json!({"ln": expression(Some(*of))}),
        Some(Variant::Acosh(of)) => json!({"acosh": expression(Some(*of))}),
        Some(Variant::Max(of)) => json!({"max": all(of.max)}),
        Some(Variant::Min(of)) => json!({"min": all(of.min)}),
        Some(Variant::ExpDecay(of)) => json!({"exp_decay": decay(*of)}),
        Some(Variant::GaussDecay(of)) => json!({"gauss_decay": decay(*of)}),
        Some(Variant::LinDecay(of)) => json!({"lin_decay": decay(*of)}),
    }
}

/// A constant. One that is no number must not pass for the name of a variable.
fn number_of(constant: f32) -> Value {
    if constant.is_nan() { json!([]) } else { single(constant) }
}

fn decay(of: pb::DecayParamsExpression) -> Value {
    object([
        ("x", Some(expression(of.x.map(|x| *x)))),
        ("target", of.target.map(|target| expression(Some(*target)))),
        ("scale", of.scale.map(single)),
        ("midpoint", of.midpoint.map(single)),
    ])
}
