//! `POST /v1/chat/completions`: the last question of a conversation, answered from a collection, at once or as a stream.
//!
//! The user's last message is the question: the search is for it alone. What else was said goes to the generator.
//! Content may be a list of text parts, which are joined by lines.
//!
//! A stream's first chunk has the role and, in `nearring`, the passages; a chunk that cites names them; the last has the reason
//! why it ends. Then the usage, where it is asked for, and `[DONE]`.
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream::{self, Stream, StreamExt};
use nearring_proto::coverage::Coverage;
use nearring_proto::filter::Filter;
use nearring_proto::ids::PointId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Body, Door, Permit, Refused, models, tokens};
use crate::compute::Compute;
use crate::failure::{Error, Kind};
use crate::generate::{Finish, Role, Sampling, Turn};
use crate::pipeline::AskAnswer;
use crate::plan::ReadOptions;
use crate::rag::answer::{AnswerEvent, Question};
use crate::rag::context::Passage;

/// The most bytes of what was said before the question.
const TURNS_BYTES_MAX: usize = 256 << 10;

#[derive(Deserialize, Debug)]
pub(super) struct Request {
    model: String,
    messages: Vec<Message>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    stop: Option<Stop>,
    #[serde(flatten)]
    sampling: GivenSampling,
    /// What OpenAI's API does not have.
    #[serde(default)]
    nearring: Option<Ours>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// As [`Sampling`], of which `stop` comes in two forms.
#[derive(Deserialize, Debug, Default)]
struct GivenSampling {
    temperature: Option<f64>,
    top_p: Option<f64>,
    max_tokens: Option<u32>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    seed: Option<i64>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize, Debug, Default)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
struct Ours {
    /// How many passages the answer is written from; 0 = the default.
    #[serde(default)]
    passages: u32,
    /// Only from points that match.
    #[serde(default)]
    filter: Option<Filter>,
}

#[derive(Deserialize, Debug)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged, expecting = "a text or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize, Debug)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

/// What has to be known of a request to answer it.
#[derive(Debug)]
struct Asked {
    model: String,
    collection: String,
    question: Question,
    stream: bool,
    usage: bool,
    passages: u32,
    filter: Option<Filter>,
}

impl Request {
    /// What is meant, or what is wrong with it.
    fn read(self) -> Result<Asked, Refused> {
        for (field, value) in &self.others {
            if let Some(reason) = refusal(field, value) {
                return Err(Refused::unsupported(field.as_str(), reason));
            }
        }
        let stop = self.stop.map(|stop| match stop {
            Stop::One(one) => vec![one],
            Stop::Many(many) => many,
        });
        if stop.as_ref().is_some_and(|stop| stop.len() > 4) {
            return Err(Refused::field("stop", "has more than four entries"));
        }
        let given = self.sampling;
        for (field, value, least, most) in [
            ("temperature", given.temperature, 0.0, 2.0),
            ("top_p", given.top_p, 0.0, 1.0),
            ("presence_penalty", given.presence_penalty, -2.0, 2.0),
            ("frequency_penalty", given.frequency_penalty, -2.0, 2.0),
        ] {
            if value.is_some_and(|value| !(least..=most).contains(&value)) {
                return Err(Refused::field(field, format!("must be from {least} to {most}")));
            }
        }
        for (field, value) in [("max_tokens", given.max_tokens), ("max_completion_tokens", self.max_completion_tokens)]
        {
            if value == Some(0) {
                return Err(Refused::field(field, "must be at least 1"));
            }
        }
        let sampling = Sampling {
            temperature: given.temperature,
            top_p: given.top_p,
            // The one is the other's new name; servers of others know the old one.
            max_tokens: self.max_completion_tokens.or(given.max_tokens),
            presence_penalty: given.presence_penalty,
            frequency_penalty: given.frequency_penalty,
            seed: given.seed,
            stop,
        };
        let question = question(self.messages, sampling)?;
        let collection = models::collection(&self.model).map(str::to_owned);
        let collection = collection.ok_or_else(|| {
            Refused::no_model(
                &self.model,
                "models that answer are called nearring/<collection>; GET /v1/models lists them",
            )
        })?;
        let ours = self.nearring.unwrap_or_default();
        Ok(Asked {
            model: self.model,
            collection,
            question,
            stream: self.stream.unwrap_or(false),
            usage: self.stream_options.unwrap_or_default().include_usage.unwrap_or(false),
            passages: ours.passages,
            filter: ours.filter,
        })
    }
}

/// Why a setting cannot be honoured, if it asks for anything. What only describes the request (`user`, `metadata`, `store`) or
/// how fast it is wanted does not.
fn refusal(field: &str, value: &Value) -> Option<&'static str> {
    let asks_nothing = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    match field {
        _ if asks_nothing => None,
        "n" if value != 1 => Some("one answer is given to a question"),
        "tools" | "functions" => Some("answers come from stored passages; no tools are called"),
        "tool_choice" | "function_call" if value != "none" && value != "auto" => Some("no tools are called"),
        "response_format" if value.get("type").is_none_or(|kind| kind != "text") => Some("answers are text"),
        "modalities" if value != &json!(["text"]) => Some("answers are text"),
        "audio" => Some("answers are text"),
        "logprobs" | "top_logprobs" => Some("answers have no token probabilities"),
        "logit_bias" => Some("answers are not chosen by tokens"),
        "web_search_options" => Some("answers come from stored passages only"),
        _ => None,
    }
}

/// The user's last message, and what else was said.
fn question(messages: Vec<Message>, sampling: Sampling) -> Result<Question, Refused> {
    let mut turns = Vec::with_capacity(messages.len());
    for (at, message) in messages.into_iter().enumerate() {
        let role = match message.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" | "function" => {
                return Err(Refused::unsupported(format!("messages[{at}].role"), "no tools are called"));
            }
            other => {
                let reason = format!("is {other:?}; give system, developer, user or assistant");
                return Err(Refused::field(format!("messages[{at}].role"), reason));
            }
        };
        turns.push(Turn { role, text: text(at, message.content)? });
    }
    let last = turns.iter().rposition(|turn| turn.role == Role::User);
    let Some(last) = last else {
        return Err(Refused::field("messages", "has no message of the user, and so no question"));
    };
    let question = turns.remove(last);
    if question.text.trim().is_empty() {
        return Err(Refused::field(format!("messages[{last}].content"), "is empty; it is the question"));
    }
    let bytes: usize = turns.iter().map(|turn| turn.text.len()).sum();
    if bytes > TURNS_BYTES_MAX {
        let reason = format!(
            "have {bytes} bytes before the question, at most {TURNS_BYTES_MAX} are allowed; leave out the oldest"
        );
        return Err(Refused { code: Some("context_length_exceeded"), ..Refused::field("messages", reason) });
    }
    turns.retain(|turn| !turn.text.trim().is_empty());
    Ok(Question { text: question.text, turns, sampling })
}

fn text(message: usize, content: Option<Content>) -> Result<String, Refused> {
    match content {
        // An assistant's message of tool calls has none.
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (at, part) in parts.into_iter().enumerate() {
                let field = || format!("messages[{message}].content[{at}]");
                match (part.kind.as_str(), part.text) {
                    ("text", Some(text)) => texts.push(text),
                    ("text", None) => return Err(Refused::field(field(), "has no text")),
                    (other, _) => {
                        return Err(Refused::unsupported(field(), format!("{other:?} is not read, only text")));
                    }
                }
            }
            Ok(texts.join("\n"))
        }
    }
}

pub(super) async fn complete(
    State(door): State<Door>,
    Extension(permit): Extension<Permit>,
    Body(request): Body<Request>,
) -> Result<Response, Refused> {
    let asked = request.read()?;
    let prompt: Vec<String> =
        asked.question.turns.iter().map(|turn| turn.text.clone()).chain([asked.question.text.clone()]).collect();
    let options = ReadOptions::default();
    let answer = door.pipeline.ask(&asked.collection, asked.question, asked.passages, asked.filter, options).await;
    let mut answer = answer.map_err(|error| match error.kind {
        Kind::Invalid if error.message.starts_with("passages:") => {
            Error::new(error.kind, format!("nearring.{}", error.message)).into()
        }
        _ => models::not_answerable(&asked.model, error),
    })?;
    // Until the passages are there, what goes wrong has a status of its own.
    let (found, coverage) = loop {
        match answer.next().await {
            Some(Ok(AnswerEvent::Passages { passages, coverage })) => break (passages, coverage),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(wrong_question(error)),
            None => return Err(Error::new(Kind::Internal, "an answer without passages").into()),
        }
    };
    let view = door.pipeline.view();
    let head = Head {
        id: format!("chatcmpl-{}", Uuid::from_u64_pair(view.draw(), view.draw()).simple()),
        created: door.clock.now_ms() / 1000,
        model: asked.model,
        compute: door.pipeline.compute(),
        prompt,
    };
    let sources = sources(&found, &coverage);
    if asked.stream {
        let chunks = chunks(head, sources, answer, asked.usage).map(move |data| {
            let _held = &permit; // an answer counts as under way until its stream is dropped
            Ok::<_, std::convert::Infallible>(Event::default().data(data))
        });
        return Ok(Sse::new(chunks).keep_alive(KeepAlive::default()).into_response());
    }
    whole(head, sources, answer).await.map(|body| Json(body).into_response())
}

/// What the pipeline calls the question is a message here.
fn wrong_question(error: Error) -> Refused {
    let mut refused = Refused::from(error);
    if refused.param.as_deref() == Some("question") {
        refused.param = Some("messages".to_owned());
    }
    refused
}

/// What all parts of an answer have in common.
#[derive(Clone)]
struct Head {
    id: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    compute: Compute,
    /// The texts that the caller sent.
    prompt: Vec<String>,
}

impl Head {
    async fn usage(&self, answer: String) -> Result<Value, Error> {
        let prompt = self.prompt.clone();
        let counted = self.compute.run(move || async move {
            (prompt.iter().map(|text| tokens::count(text)).sum::<usize>(), tokens::count(&answer))
        });
        let (prompt, answer) = counted.await.map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
        Ok(json!({"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}))
    }

    /// A chunk; `usage` is there, and null, in the chunks of a stream that ends with it.
    fn chunk(&self, choices: Value, usage: Option<Value>, ours: Option<Value>) -> String {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model, "choices": choices,
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        if let Some(ours) = ours {
            chunk["nearring"] = ours;
        }
        chunk.to_string()
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Complete => "stop",
        Finish::Length => "length",
        Finish::Filtered => "content_filter",
    }
}

/// The passages, as the field `nearring` tells them.
fn sources(passages: &[Passage], coverage: &Coverage) -> Value {
    let passages: Vec<Value> = passages
        .iter()
        .map(|passage| {
            let id = match &passage.id {
                PointId::Number(number) => json!(number),
                other => json!(other.to_string()),
            };
            json!({
                "number": passage.number, "id": id, "document": passage.document, "title": passage.title,
                "heading": passage.heading, "text": passage.text, "score": passage.score,
            })
        })
        .collect();
    json!({"passages": passages, "complete_coverage": coverage.is_full()})
}

async fn whole(head: Head, mut ours: Value, mut answer: AskAnswer) -> Result<Value, Refused> {
    let (mut text, mut ended) = (String::new(), Finish::default());
    while let Some(event) = answer.next().await {
        match event? {
            AnswerEvent::Delta { text: piece, .. } => text.push_str(&piece),
            AnswerEvent::Done { cited, answered, generator, finish } => {
                ended = finish;
                (ours["cited"], ours["answered"], ours["generator"]) =
                    (json!(cited), json!(answered), json!(generator));
            }
            AnswerEvent::Stage { .. } | AnswerEvent::Passages { .. } => {}
        }
    }
    let usage = head.usage(text.clone()).await?;
    let message = json!({"role": "assistant", "content": text, "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": reason(ended)});
    Ok(json!({
        "id": head.id, "object": "chat.completion", "created": head.created, "model": head.model, "choices": [choice],
        "usage": usage, "nearring": ours,
    }))
}

/// The data of a stream's events.
fn chunks(head: Head, sources: Value, answer: AskAnswer, usage: bool) -> impl Stream<Item = String> + Send + use<> {
    let none = || usage.then_some(Value::Null);
    let delta = json!({"role": "assistant", "content": ""});
    let first = head.chunk(choice(delta, None), none(), Some(sources));
    let state = Streaming { head: Arc::new(head), answer, usage, text: String::new(), step: Step::Answer };
    stream::iter([first]).chain(stream::unfold(state, |mut state| async move {
        let data = state.next().await?;
        Some((data, state))
    }))
}

fn choice(delta: Value, finish: Option<&str>) -> Value {
    json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}])
}

struct Streaming {
    head: Arc<Head>,
    answer: AskAnswer,
    usage: bool,
    /// What was sent, to be counted.
    text: String,
    step: Step,
}

/// What comes next.
enum Step {
    Answer,
    Usage,
    Done,
    Ended,
}

impl Streaming {
    async fn next(&mut self) -> Option<String> {
        let none = self.usage.then_some(Value::Null);
        match self.step {
            Step::Answer => loop {
                match self.answer.next().await {
                    Some(Ok(AnswerEvent::Delta { text, citations })) => {
                        if self.usage {
                            self.text.push_str(&text);
                        }
                        let ours = (!citations.is_empty()).then(|| json!({"citations": citations}));
                        return Some(self.head.chunk(choice(json!({"content": text}), None), none, ours));
                    }
                    Some(Ok(AnswerEvent::Done { cited, answered, generator, finish })) => {
                        self.step = if self.usage { Step::Usage } else { Step::Done };
                        let ours = json!({"cited": cited, "answered": answered, "generator": generator});
                        return Some(self.head.chunk(choice(json!({}), Some(reason(finish))), none, Some(ours)));
                    }
                    Some(Ok(AnswerEvent::Stage { .. } | AnswerEvent::Passages { .. })) => {}
                    Some(Err(error)) => return Some(self.failed(error)),
                    None => return Some(self.failed(Error::new(Kind::Internal, "the answer has no end"))),
                }
            },
            Step::Usage => match self.head.usage(std::mem::take(&mut self.text)).await {
                Ok(usage) => {
                    self.step = Step::Done;
                    Some(self.head.chunk(json!([]), Some(usage), None))
                }
                Err(error) => Some(self.failed(error)),
            },
            Step::Done => {
                self.step = Step::Ended;
                Some("[DONE]".to_owned())
            }
            Step::Ended => None,
        }
    }

    /// The last event of a stream that failed; clients raise it.
    fn failed(&mut self, error: Error) -> String {
        self.step = Step::Ended;
        Refused::from(error).body().to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn read(body: Value) -> Result<Asked, Refused> {
        let mut whole = json!({"model": "nearring/notes", "messages": [{"role": "user", "content": "Which ant?"}]});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        serde_json::from_value::<Request>(whole).unwrap().read()
    }

    #[test]
    fn the_last_message_of_the_user_is_the_question() {
        let parts = json!([{"type": "text", "text": "Which ant"}, {"type": "text", "text": "lays eggs?"}]);
        let asked = read(json!({"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": null}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": parts},
        ], "max_tokens": 9, "stop": "."}))
        .unwrap();
        assert_eq!(asked.question.text, "Which ant\nlays eggs?");
        let turns: Vec<_> = asked.question.turns.iter().map(|turn| (turn.role, turn.text.as_str())).collect();
        assert_eq!(turns, [(Role::System, "Be brief."), (Role::User, "Hello"), (Role::Assistant, "Hi.")]);
        let stop = Some(vec![".".to_owned()]);
        assert_eq!(asked.question.sampling, Sampling { max_tokens: Some(9), stop, ..Sampling::default() });
        assert_eq!((asked.collection.as_str(), asked.stream, asked.usage), ("notes", false, false));
    }

    #[test]
    fn what_clients_send_by_habit_is_taken() {
        let habits = json!({
            "n": 1, "user": "u", "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": false,
            "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "parallel_tool_calls": true, "temperature": 0,
            "stream_options": {"include_usage": true}, "stream": true, "logit_bias": {}, "reasoning_effort": "low",
            "nearring": {"passages": 3, "filter": {"equals": {"path": "lang", "value": "en"}}},
        });
        let asked = read(habits).unwrap();
        assert_eq!((asked.stream, asked.usage, asked.passages, asked.filter.is_some()), (true, true, 3, true));
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let image = json!([{"type": "image_url", "image_url": {"url": "http://x"}}]);
        for (body, param) in [
            (json!({"n": 2}), "n"),
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"temperature": 2.5}), "temperature"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "assistant", "content": "Hi."}]}), "messages"),
            (json!({"messages": [{"role": "user", "content": " "}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": image}]}), "messages[0].content[0]"),
            (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
            (json!({"model": "gpt-4o"}), "model"),
        ] {
            let refused = read(body.clone()).unwrap_err();
            assert_eq!(refused.param.as_deref(), Some(param), "{body}");
        }
        let long = "x".repeat(TURNS_BYTES_MAX + 1);
        let messages = json!([{"role": "system", "content": long}, {"role": "user", "content": "?"}]);
        assert_eq!(read(json!({"messages": messages})).unwrap_err().code, Some("context_length_exceeded"));
    }
}
