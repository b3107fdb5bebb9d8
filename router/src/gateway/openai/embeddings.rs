//! `POST /v1/embeddings`: texts, or their tokens, to vectors.
use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Body, Door, Refused, models, tokens};
use crate::failure::{Error, Kind};

#[derive(Deserialize, Debug)]
pub(super) struct Request {
    model: String,
    input: Input,
    #[serde(default)]
    encoding_format: Option<Encoding>,
    #[serde(default)]
    dimensions: Option<usize>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged, expecting = "a text, a list of texts, a list of tokens, or a list of lists of tokens")]
enum Input {
    One(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    /// Little-endian f32, in base64: what OpenAI's Python client asks for, and undoes.
    Base64,
}

/// The answer. Not a [`serde_json::Value`]: one would take ten times a vector's memory.
#[derive(Serialize, Debug)]
pub(super) struct List {
    object: &'static str,
    data: Vec<One>,
    model: String,
    usage: Usage,
}

#[derive(Serialize, Debug)]
struct One {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize, Debug, PartialEq)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, Debug)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

pub(super) async fn embed(State(door): State<Door>, Body(request): Body<Request>) -> Result<Json<List>, Refused> {
    let Request { model, input, encoding_format, dimensions } = request;
    let embedder = models::embedder(&door, &model)?;
    let gives = embedder.dimension();
    if dimensions.is_some_and(|wanted| wanted != gives) {
        let reason = format!("{model} gives vectors of {gives} components, which mean nothing when they are cut");
        return Err(Refused::unsupported("dimensions", reason));
    }
    let limits = door.pipeline.settings().limits;
    let read = door.pipeline.compute().run(move || async move {
        let texts = texts(input, limits.batch_points)?;
        let count: usize = texts.iter().map(|text| tokens::count(text)).sum();
        Ok::<_, Refused>((texts, count))
    });
    let (texts, count) = read.await.map_err(|error| Error::new(Kind::Internal, error.to_string()))??;
    let vectors = door.pipeline.embed(&model, texts).await.map_err(told)?;
    let encoding = encoding_format.unwrap_or(Encoding::Float);
    let one = |(index, vector)| One { object: "embedding", index, embedding: encoded(vector, encoding) };
    let data = vectors.into_iter().enumerate().map(one).collect();
    Ok(Json(List { object: "list", data, model, usage: Usage { prompt_tokens: count, total_tokens: count } }))
}

/// The texts meant, at most so many.
fn texts(input: Input, most: usize) -> Result<Vec<String>, Refused> {
    let decode = |at: Option<usize>, list: &[u32]| {
        let param = at.map_or("input".to_owned(), |at| format!("input[{at}]"));
        tokens::decode(list).map_err(|error| Refused::field(param, error))
    };
    // `[]` reads as a list of texts; it is refused as one.
    let texts = match input {
        Input::One(text) => vec![text],
        Input::Texts(texts) => texts,
        Input::Tokens(list) => vec![decode(None, &list)?],
        Input::ManyTokens(lists) if lists.len() > most => {
            return Err(Refused::field("input", format!("has {} entries, give 1 to {most}", lists.len())));
        }
        Input::ManyTokens(lists) => {
            lists.iter().enumerate().map(|(at, list)| decode(Some(at), list)).collect::<Result<_, _>>()?
        }
    };
    match texts.iter().position(String::is_empty) {
        Some(at) => Err(Refused::field(format!("input[{at}]"), "is empty")),
        None => Ok(texts),
    }
}

fn encoded(vector: Vec<f32>, encoding: Encoding) -> Vector {
    match encoding {
        Encoding::Float => Vector::Float(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    }
}

/// What the pipeline calls texts is the input here.
fn told(error: Error) -> Refused {
    let message = match error.message.strip_prefix("texts") {
        Some(rest) => format!("input{rest}"),
        None => error.message,
    };
    let mut refused = Refused::from(Error::new(error.kind, message));
    if error.kind == Kind::Invalid {
        refused.param = Some("input".to_owned());
    }
    refused
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde_json::{Value, json};

    use super::*;

    fn read(input: Value) -> Result<Vec<String>, Refused> {
        texts(serde_json::from_value(input).unwrap(), 3)
    }

    #[test]
    fn every_form_of_input_means_its_texts() {
        assert_eq!(read(json!("hello world")).unwrap(), ["hello world"]);
        assert_eq!(read(json!(["a", "b"])).unwrap(), ["a", "b"]);
        assert_eq!(read(json!([15339, 1917])).unwrap(), ["hello world"]);
        assert_eq!(read(json!([[15339], [15339, 1917]])).unwrap(), ["hello", "hello world"]);
        assert_eq!(read(json!([])).unwrap(), Vec::<String>::new());
        assert_eq!(read(json!(["a", ""])).unwrap_err().param.unwrap(), "input[1]");
        assert_eq!(read(json!([[15339], [100_256]])).unwrap_err().param.unwrap(), "input[1]");
        assert_eq!(read(json!([[1], [1], [1], [1]])).unwrap_err().param.unwrap(), "input");
        for odd in [json!(7), json!([1, "a"]), json!([-1]), json!({"text": "a"}), json!([[["a"]]])] {
            assert!(serde_json::from_value::<Input>(odd.clone()).is_err(), "{odd}");
        }
    }

    #[test]
    fn base64_holds_the_little_endian_bytes() {
        let json = |encoding| serde_json::to_string(&encoded(vec![1.0, -0.1], encoding)).unwrap();
        assert_eq!(json(Encoding::Base64), "\"AACAP83MzL0=\"");
        assert_eq!(json(Encoding::Float), "[1.0,-0.1]");
    }
}
