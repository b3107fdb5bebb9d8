//! Answers written by a model behind OpenAI's `chat/completions`, streamed.
//!
//! The model is sent [`crate::rag::prompt::chat`] with the conversation before the question between the two messages. A reply
//! counts as complete only where the server says so, by a finish reason or `[DONE]`: one that merely ends was cut.
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use nearring_proto::collection::InvalidInput;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Finish, GenerateError, GenerateRequest, Generated, Generator, Role};
use crate::model_server::{Failed, ModelServer, ModelServerSettings};
use crate::rag::prompt;

/// A generator that asks a server.
#[derive(Clone, Debug)]
pub struct OpenAi {
    server: ModelServer,
}

impl OpenAi {
    /// Asks this server; `seed` spreads its repeats.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the field.
    pub fn new(settings: ModelServerSettings, seed: u64) -> Result<Self, InvalidInput> {
        Ok(Self { server: ModelServer::new(settings, seed)? })
    }

    fn body(&self, request: &GenerateRequest) -> Value {
        let prompt = prompt::chat(&request.question, &request.passages);
        let mut messages = vec![json!({"role": "system", "content": prompt.system})];
        messages.extend(request.turns.iter().map(|turn| {
            let role = match turn.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            json!({"role": role, "content": turn.text})
        }));
        messages.push(json!({"role": "user", "content": prompt.user}));
        let mut body = json!({"model": self.server.model(), "messages": messages, "stream": true});
        // A setting that was not given is not sent: servers differ in which they know.
        if let (Value::Object(body), Ok(Value::Object(sampling))) = (&mut body, serde_json::to_value(&request.sampling))
        {
            body.extend(sampling.into_iter().filter(|(_, value)| !value.is_null()));
        }
        body
    }
}

impl Generator for OpenAi {
    fn name(&self) -> &str {
        self.server.model()
    }

    fn generate(&self, request: GenerateRequest) -> BoxStream<'static, Result<Generated, GenerateError>> {
        let (server, body) = (self.server.clone(), self.body(&request));
        let name = self.server.model().to_owned();
        let pieces = stream::once(async move {
            let events = server.stream("/chat/completions", &body).await?;
            let reply = Reply { server, finish: None, ended: false };
            let pieces = stream::unfold((reply, events.boxed()), |(mut reply, mut events)| async move {
                if reply.ended {
                    return None;
                }
                let piece = reply.piece(events.next().await);
                reply.ended = !matches!(piece, Ok(Generated::Text(_)));
                Some((piece, (reply, events)))
            });
            Ok::<_, Failed>(pieces)
        });
        let pieces = pieces.flat_map(|pieces| match pieces {
            Ok(pieces) => pieces.boxed(),
            Err(failed) => stream::iter([Err(failed)]).boxed(),
        });
        let told = move |Failed { failure, reason }| GenerateError { generator: name.clone(), failure, reason };
        pieces.map(move |piece| piece.map_err(&told)).boxed()
    }
}

/// What has been learned of a reply.
struct Reply {
    server: ModelServer,
    finish: Option<Finish>,
    ended: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

impl Reply {
    /// What the next event says; `None` is the end of the stream. A piece may be empty.
    fn piece(&mut self, event: Option<Result<String, Failed>>) -> Result<Generated, Failed> {
        let data = match event {
            Some(event) => event?,
            None => {
                let cut = || Failed::broken("its reply broke off");
                return self.finish.map(Generated::Finished).ok_or_else(cut);
            }
        };
        if data.trim() == "[DONE]" {
            return Ok(Generated::Finished(self.finish.unwrap_or(Finish::Complete)));
        }
        let broken = |error: serde_json::Error| Failed::broken(format!("its reply holds no chunk of a chat: {error}"));
        let value: Value = serde_json::from_str(&data).map_err(broken)?;
        if let Some(failed) = self.server.error_in(&value) {
            return Err(failed);
        }
        let chunk: Chunk = serde_json::from_value(value).map_err(broken)?;
        let mut text = String::new();
        // One answer was asked for.
        if let Some(choice) = chunk.choices.into_iter().next() {
            text = choice.delta.and_then(|delta| delta.content).unwrap_or_default();
            match choice.finish_reason.as_deref() {
                None => {}
                Some("length") => self.finish = Some(Finish::Length),
                Some("content_filter") => self.finish = Some(Finish::Filtered),
                Some(_) => self.finish = Some(Finish::Complete),
            }
        }
        Ok(Generated::Text(text))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::generate::{Sampling, Turn};

    fn reply() -> Reply {
        let settings = ModelServerSettings::new("http://127.0.0.1:1/v1", "m");
        Reply { server: ModelServer::new(settings, 1).unwrap(), finish: None, ended: false }
    }

    fn event(data: &str) -> Option<Result<String, Failed>> {
        Some(Ok(data.to_owned()))
    }

    #[tokio::test]
    async fn a_reply_is_complete_only_where_the_server_says_so() {
        let mut cut = reply();
        let text = cut.piece(event(r#"{"choices":[{"delta":{"content":"An ant"},"finish_reason":null}]}"#));
        assert_eq!(text, Ok(Generated::Text("An ant".into())));
        assert!(cut.piece(None).is_err());
        let mut done = reply();
        assert_eq!(done.piece(event("[DONE]")), Ok(Generated::Finished(Finish::Complete)));
        let mut long = reply();
        let last = long.piece(event(r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#));
        assert_eq!(last, Ok(Generated::Text(String::new())));
        assert_eq!(long.piece(event(r#"{"choices":[],"usage":{}}"#)), Ok(Generated::Text(String::new())));
        assert_eq!(long.piece(None), Ok(Generated::Finished(Finish::Length)));
    }

    #[tokio::test]
    async fn garbage_and_errors_within_a_reply_are_errors() {
        for data in ["<html>", "[1", "7", r#"{"choices":7}"#] {
            assert!(reply().piece(event(data)).is_err(), "{data}");
        }
        let failed = reply().piece(event(r#"{"error":{"message":"out of memory"}}"#)).unwrap_err();
        assert!(failed.reason.contains("out of memory"), "{failed}");
    }

    #[tokio::test]
    async fn the_request_holds_the_conversation_and_only_the_settings_given() {
        let generator = OpenAi::new(ModelServerSettings::new("http://127.0.0.1:1/v1", "m"), 1).unwrap();
        let turns = vec![Turn { role: Role::Assistant, text: "Ants.".into() }];
        let sampling = Sampling { temperature: Some(0.0), max_tokens: Some(7), ..Sampling::default() };
        let request = GenerateRequest { question: "Which?".into(), passages: vec![], turns, sampling };
        let body = generator.body(&request);
        let roles: Vec<_> = body["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "assistant", "user"]);
        let mut keys: Vec<_> = body.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["max_tokens", "messages", "model", "stream", "temperature"]);
    }
}
