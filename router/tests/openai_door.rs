//! OpenAI's API over HTTP, before a real node: with what ships, and with model servers that work or fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/model_server.rs"]
mod model_server;
#[path = "support/running.rs"]
mod running;

use std::time::Duration;

use base64::Engine;
use http::StatusCode;
use http_body_util::BodyExt;
use nearring_proto::collection::{CollectionSpec, DocumentSpec, IndexSpec, VectorSpec};
use nearring_proto::vector::{Metric, ScalarKind};
use nearring_proto::write::Point;
use nearring_router::model_server::retry::Retries;
use nearring_router::model_server::{ApiKey, ModelServerSettings};
use nearring_router::settings::{EmbedderSettings, Settings};
use serde_json::{Value, json};

use model_server::{Fault, ModelServer};
use running::Running;

const ANTS: &str =
    "# Ants\n\nAnts live in large colonies under the ground. The queen ant lays all the eggs of the colony.";
const SHIPS: &str = "# Ships\n\nShips are steered with a rudder. A sail catches the wind and drives the ship forward.";
const QUESTION: &str = "Which ant lays the eggs?";

fn spec(name: &str, dimension: u32, documents: Option<DocumentSpec>) -> CollectionSpec {
    let vector = VectorSpec { dimension, metric: Metric::Cosine, scalar: ScalarKind::default_for(Metric::Cosine) };
    CollectionSpec {
        name: name.to_owned(),
        vectors: [(String::new(), vector)].into(),
        sparse_vectors: Default::default(),
        multi_vectors: Default::default(),
        payload_indexes: Default::default(),
        shard_count: 1,
        replication_factor: 1,
        routing_separator: if documents.is_some() { "#".to_owned() } else { String::new() },
        index: IndexSpec::default(),
        documents,
    }
}

async fn start(change: impl FnOnce(&mut Settings)) -> Running {
    running::start("/v1", change).await
}

/// What these tests ask of it.
trait OpenAi: Sized {
    async fn create(&self, spec: CollectionSpec);
    async fn with_notes(self, embedder: &str, dimension: u32) -> Self;
    async fn chat(&self, more: Value) -> (StatusCode, Value);
    async fn streamed(&self, more: Value) -> Vec<Value>;
}

impl OpenAi for Running {
    async fn create(&self, spec: CollectionSpec) {
        // The node may still be forming its cluster.
        for _ in 0..200 {
            match self.pipeline.create_collection(spec.clone()).await {
                Ok(_) => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        self.pipeline.create_collection(spec).await.unwrap();
    }

    /// `notes`, with two documents.
    async fn with_notes(self, embedder: &str, dimension: u32) -> Self {
        let documents = DocumentSpec { embedder: embedder.into(), vector: String::new(), text_field: "text".into() };
        self.create(spec("notes", dimension, Some(documents))).await;
        for (id, text) in [("ants", ANTS), ("ships", SHIPS)] {
            let put = self.pipeline.put_document("notes", id, text, "text/markdown", b"", None, None);
            put.await.unwrap();
        }
        self
    }

    async fn chat(&self, more: Value) -> (StatusCode, Value) {
        self.json("POST", "/chat/completions", asking(more)).await
    }

    /// The data of a stream's events, parsed; the last may be `[DONE]`.
    async fn streamed(&self, more: Value) -> Vec<Value> {
        let mut body = asking(more);
        body["stream"] = true.into();
        let (status, headers, body) = self.send("POST", "/chat/completions", body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{body:?}");
        assert!(headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        let text = String::from_utf8(body.to_vec()).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| if data == "[DONE]" { json!(data) } else { serde_json::from_str(data).unwrap() }).collect()
    }
}

fn asking(more: Value) -> Value {
    let mut body = json!({"model": "nearring/notes", "messages": [{"role": "user", "content": QUESTION}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_at_once_and_as_a_stream() {
    let running = start(|_| ()).await.with_notes("static256", 256).await;
    let (status, answer) = running.chat(json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("nearring/notes")));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["role"], &choice["finish_reason"]), (&json!("assistant"), &json!("stop")));
    let content = choice["message"]["content"].as_str().unwrap();
    assert!(content.contains("The queen ant lays all the eggs of the colony. [1]"), "{content}");
    let ours = &answer["nearring"];
    assert_eq!(
        (&ours["cited"], &ours["answered"], &ours["complete_coverage"]),
        (&json!([1]), &json!(true), &json!(true))
    );
    assert_eq!((&ours["passages"][0]["document"], &ours["passages"][0]["number"]), (&json!("ants"), &json!(1)));
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], 6, "cl100k_base has six tokens for the question");
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    let chunks = running.streamed(json!({"stream_options": {"include_usage": true}})).await;
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[0]["nearring"]["passages"], ours["passages"], "passages come first");
    assert_eq!(text(&chunks), content);
    assert!(chunks.iter().any(|chunk| chunk["nearring"]["citations"] == json!([1])), "{chunks:?}");
    let [.., last, counted, done] = chunks.as_slice() else { panic!("{chunks:?}") };
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["nearring"], json!({"cited": [1], "answered": true, "generator": "extractive"}));
    assert_eq!((&counted["choices"], &counted["usage"]), (&json!([]), usage));
    assert_eq!(done, "[DONE]");
    assert!(chunks[..chunks.len() - 2].iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["usage"].is_null()));

    let plain = running.streamed(json!({})).await;
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()), "usage only where it is asked for");
    let ships = json!({"nearring": {"passages": 1, "filter": {"equals": {"path": "document", "value": "ships"}}}});
    let (_, filtered) = running.chat(ships).await;
    assert_eq!(filtered["nearring"]["passages"].as_array().unwrap().len(), 1);
    assert_eq!(filtered["nearring"]["passages"][0]["document"], "ships");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_what_can_be_asked_and_points_of_langchain_can_be() {
    let running = start(|_| ()).await.with_notes("static256", 256).await;
    running.create(spec("langchain", 256, None)).await;
    running.create(spec("elsewhere", 7, None)).await;
    let texts = [ANTS, SHIPS];
    let vectors = running.pipeline.embed("", texts.map(str::to_owned).to_vec()).await.unwrap();
    let points = (1..).zip(texts.iter().zip(vectors)).map(|(id, (text, vector)): (u64, _)| {
        let payload = json!({"page_content": text, "metadata": {"source": format!("{id}.md")}});
        let vectors = [(String::new(), vector.into())].into();
        (Point { id: id.into(), vectors, payload_json: payload.to_string().into() }, None)
    });
    running.pipeline.upsert("langchain", points.collect(), None, None).await.unwrap();

    let (_, models) = running.json("GET", "/models", json!({})).await;
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["nearring/langchain", "nearring/notes", "static256"], "one has no vector that fits");
    for (id, expected) in [
        ("nearring/notes", StatusCode::OK),
        ("nearring%2Fnotes", StatusCode::OK),
        ("static256", StatusCode::OK),
        ("nearring/none", StatusCode::NOT_FOUND),
        ("nearring/elsewhere", StatusCode::BAD_REQUEST),
        ("gpt-4o", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(running.json("GET", &format!("/models/{id}"), json!({})).await.0, expected, "{id}");
    }
    let (_, answer) = running.chat(json!({"model": "nearring/langchain"})).await;
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.contains("The queen ant lays all the eggs of the colony. [1]"), "{answer}");
    assert_eq!(
        (&answer["nearring"]["passages"][0]["id"], &answer["nearring"]["passages"][0]["document"]),
        (&json!(1), &json!("1.md"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_tokens_become_vectors_in_both_encodings() {
    let running = start(|_| ()).await;
    let embed = |body: Value| async {
        let (status, reply) = running.json("POST", "/embeddings", body).await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        reply
    };
    let floats = |reply: &Value, at: usize| -> Vec<f32> {
        reply["data"][at]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let expected = running.pipeline.embed("static256", vec!["hello world".into(), "ants".into()]).await.unwrap();
    let two = embed(json!({"model": "static256", "input": ["hello world", "ants"], "dimensions": 256})).await;
    assert_eq!([floats(&two, 0), floats(&two, 1)], expected[..]);
    assert_eq!((&two["data"][1]["index"], &two["object"]), (&json!(1), &json!("list")));
    assert_eq!(two["usage"]["prompt_tokens"], 3, "hello| world, ants");
    for input in [json!("hello world"), json!([15339, 1917]), json!([[15339, 1917]])] {
        let one = embed(json!({"model": "static256", "input": input})).await;
        assert_eq!(floats(&one, 0), expected[0], "{input}");
    }
    let coded = embed(json!({"model": "static256", "input": "hello world", "encoding_format": "base64"})).await;
    let bytes = base64::engine::general_purpose::STANDARD.decode(coded["data"][0]["embedding"].as_str().unwrap());
    let decoded: Vec<f32> = bytes.unwrap().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(decoded, expected[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_as_openai_tells_it() {
    let running = start(|settings| settings.limits.message_bytes = settings.limits.batch_bytes).await;
    let running = running.with_notes("static256", 256).await;
    for (path, body, status, code, param) in [
        ("/chat/completions", asking(json!({"model": "nearring/none"})), 404, "model_not_found", json!("model")),
        ("/chat/completions", asking(json!({"model": "gpt-4o"})), 404, "model_not_found", json!("model")),
        ("/chat/completions", asking(json!({"n": 3})), 400, "unsupported_parameter", json!("n")),
        ("/chat/completions", asking(json!({"messages": "hi"})), 400, "invalid_type", json!("messages")),
        (
            "/chat/completions",
            asking(json!({"nearring": {"passages": 51}})),
            400,
            "invalid_value",
            json!("nearring.passages"),
        ),
        (
            "/chat/completions",
            asking(json!({"messages": [{"role": "user", "content": "\u{200b}"}]})),
            400,
            "invalid_value",
            json!("messages"),
        ),
        ("/chat/completions", json!({}), 400, "invalid_type", Value::Null),
        ("/embeddings", json!({"model": "ada", "input": "x"}), 404, "model_not_found", json!("model")),
        ("/embeddings", json!({"model": "static256", "input": []}), 400, "invalid_value", json!("input")),
        ("/embeddings", json!({"model": "static256", "input": ["a", " "]}), 400, "invalid_value", json!("input")),
        ("/embeddings", json!({"model": "static256", "input": {}}), 400, "invalid_type", json!("input")),
        ("/embeddings", json!({"model": "static256", "input": [[100_256]]}), 400, "invalid_value", json!("input[0]")),
        (
            "/embeddings",
            json!({"model": "static256", "input": "x", "dimensions": 64}),
            400,
            "unsupported_parameter",
            json!("dimensions"),
        ),
        ("/images/generations", json!({}), 404, "unknown_url", Value::Null),
    ] {
        let (got, reply) = running.json("POST", path, body.clone()).await;
        let error = &reply["error"];
        assert_eq!(
            (got.as_u16(), &error["code"], &error["param"], &error["type"]),
            (status, &json!(code), &param, &json!("invalid_request_error")),
            "{body}: {reply}"
        );
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    let (status, _, body) = running.send("POST", "/embeddings", "{").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(serde_json::from_slice::<Value>(&body).unwrap()["error"]["message"].is_string());
    assert_eq!(running.json("DELETE", "/models", json!({})).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let huge = vec![b' '; running.pipeline.settings().limits.message_bytes + 1];
    let (status, _, body) = running.send("POST", "/embeddings", huge).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["error"]["type"], "invalid_request_error");
    // Qdrant's API beside it answers in its own form.
    let beside = running.url.replace("/v1", "/collections/none").parse().unwrap();
    let (head, body) = running.http.get(beside).await.unwrap().into_parts();
    let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((head.status, body["status"]["error"].is_string()), (StatusCode::NOT_FOUND, true), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_too_many_is_refused_at_once() {
    let model = ModelServer::start(&["An ant."]).await;
    let server = patient(&model);
    let running = start(|settings| {
        settings.limits.in_flight = 1;
        settings.generator = Some(server);
    });
    let running = running.await.with_notes("static256", 256).await;
    model.script(&[Fault::FallsSilent]);
    // The first piece is there, the end is not: the stream holds its place.
    let (first, second) = tokio::join!(running.streamed(json!({})), async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        running.send("GET", "/models", "").await
    });
    assert_eq!(second.0, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(second.1["retry-after"], "1");
    assert_eq!(first.last().unwrap()["error"]["code"], "deadline_exceeded");
    assert_eq!(running.send("GET", "/models", "").await.0, StatusCode::OK, "its place is free again");
}

/// Waits shorter than a test's patience.
fn patient(model: &ModelServer) -> ModelServerSettings {
    ModelServerSettings {
        key: ApiKey::new("sk-s3cret"),
        idle: Duration::from_millis(1_500),
        total: Duration::from_secs(10),
        retries: Retries { attempts: 3, pause: Duration::from_millis(20), pause_max: Duration::from_secs(2) },
        ..ModelServerSettings::new(model.url.clone(), "scribe")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_server_writes_the_answer_and_its_passing_faults_are_not_seen() {
    let model = ModelServer::start(&["The queen", " does [", "1], not", " the king [7]."]).await;
    let server = patient(&model);
    let running = start(|settings| settings.generator = Some(server)).await.with_notes("static256", 256).await;
    let expected = "The queen does [1], not the king .";
    for faults in [&[][..], &[Fault::Broken, Fault::Broken], &[Fault::Busy(0)], &[Fault::Silent]] {
        model.script(faults);
        let (status, answer) = running.chat(json!({"temperature": 0.5, "max_completion_tokens": 99})).await;
        assert_eq!(status, StatusCode::OK, "{faults:?}: {answer}");
        assert_eq!(answer["choices"][0]["message"]["content"], expected, "invented citations are dropped");
        assert_eq!((&answer["nearring"]["cited"], &answer["nearring"]["generator"]), (&json!([1]), &json!("scribe")));
        let requests = model.requests();
        assert_eq!(requests.len(), faults.len() + 1);
        let (_, key, body) = &requests[0];
        assert_eq!(key.as_deref(), Some("Bearer sk-s3cret"));
        assert_eq!(
            (&body["model"], &body["temperature"], &body["max_tokens"]),
            (&json!("scribe"), &json!(0.5), &json!(99))
        );
        assert!(body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().contains(QUESTION));
    }
    model.script(&[Fault::Busy(1)]);
    let began = std::time::Instant::now();
    let chunks = running.streamed(json!({})).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After is honoured");
    assert_eq!((text(&chunks).as_str(), chunks.last().unwrap()), (expected, &json!("[DONE]")));
    model.script(&[Fault::TooLong]);
    assert_eq!(running.chat(json!({})).await.1["choices"][0]["finish_reason"], "length");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_server_that_fails_is_an_error_in_the_middle_of_a_stream_too() {
    let model = ModelServer::start(&["The queen", " does [1]."]).await;
    let server = patient(&model);
    let running = start(|settings| settings.generator = Some(server)).await.with_notes("static256", 256).await;
    // What was tried, what is told, how often it was tried, and whether a piece of text came first.
    for (fault, status, code, attempts, began) in [
        (Fault::Broken, 503, "unavailable", 3, false),
        (Fault::Busy(0), 429, "rate_limit_exceeded", 3, false),
        (Fault::Busy(60), 429, "rate_limit_exceeded", 1, false),
        (Fault::Refuses, 503, "unavailable", 1, false),
        (Fault::Silent, 504, "deadline_exceeded", 3, false),
        (Fault::Garbage, 503, "unavailable", 1, false),
        (Fault::Cut, 503, "unavailable", 1, true),
        (Fault::EndsEarly, 503, "unavailable", 1, true),
        (Fault::ErrorWithin, 503, "unavailable", 1, true),
        (Fault::FallsSilent, 504, "deadline_exceeded", 1, true),
    ] {
        model.script(&[fault; 3]);
        let (got, reply) = running.chat(json!({})).await;
        assert_eq!((got.as_u16(), &reply["error"]["code"]), (status, &json!(code)), "{fault:?}: {reply}");
        assert_eq!(model.requests().len(), attempts, "{fault:?}");
        model.script(&[fault; 3]);
        let chunks = running.streamed(json!({"stream_options": {"include_usage": true}})).await;
        let last = chunks.last().unwrap();
        assert_eq!(last["error"]["code"], code, "{fault:?}: {chunks:?}");
        assert!(chunks[0]["nearring"]["passages"].is_array() && !chunks.contains(&json!("[DONE]")), "{fault:?}");
        assert_eq!(text(&chunks).is_empty(), !began, "{fault:?}: {chunks:?}");
        for told in [&reply, last] {
            let message = told["error"]["message"].as_str().unwrap();
            assert!(message.contains("`scribe`") && !message.contains("s3cret"), "{fault:?}: {message}");
        }
    }
    model.script(&[]);
    assert!(running.streamed(json!({})).await.contains(&json!("[DONE]")), "it works again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_server_embeds_documents_and_questions() {
    let model = ModelServer::start(&[]).await;
    let server = ModelServerSettings { model: "letters".into(), ..patient(&model) };
    let settings = EmbedderSettings { server, dimension: model_server::DIMENSION };
    let running = start(|all| all.embedder = Some(settings)).await;
    let running = running.with_notes("letters", u32::try_from(model_server::DIMENSION).unwrap()).await;
    model.script(&[]);
    assert_eq!(running.chat(json!({})).await.0, StatusCode::OK);
    assert_eq!(model.requests().len(), 1, "one for the question; quoting asks no server");

    let input = json!({"model": "letters", "input": ["ants", "ships"]});
    for faults in [&[][..], &[Fault::Cut], &[Fault::Garbage, Fault::Broken]] {
        model.script(faults);
        let (status, reply) = running.json("POST", "/embeddings", input.clone()).await;
        assert_eq!(status, StatusCode::OK, "{faults:?}: {reply}");
        assert_eq!(model.requests().len(), faults.len() + 1);
        for (at, text) in ["ants", "ships"].into_iter().enumerate() {
            let raw = model_server::vector(text);
            let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
            for (got, wanted) in reply["data"][at]["embedding"].as_array().unwrap().iter().zip(raw) {
                assert!((got.as_f64().unwrap() as f32 - wanted / length).abs() < 1e-6, "{text}");
            }
        }
    }
    for (fault, status) in [(Fault::Refuses, 503), (Fault::Busy(60), 429), (Fault::Broken, 503), (Fault::Silent, 504)] {
        model.script(&[fault; 3]);
        let (got, reply) = running.json("POST", "/embeddings", input.clone()).await;
        assert_eq!(got.as_u16(), status, "{fault:?}: {reply}");
        assert!(!reply.to_string().contains("s3cret"));
        model.script(&[fault; 3]);
        assert_eq!(running.chat(json!({})).await.0.as_u16(), status, "a question has no vector then: {fault:?}");
    }
    // What ships is still there, by name.
    let (status, _) = running.json("POST", "/embeddings", json!({"model": "static256", "input": "ants"})).await;
    assert_eq!(status, StatusCode::OK);
}
