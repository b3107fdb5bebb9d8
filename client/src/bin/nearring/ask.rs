//! `nearring ask`: a question, its answer as it is written, and the passages it cites.
use std::collections::BTreeMap;
use std::pin::pin;

use clap::Args;
use futures::TryStreamExt;
use nearring_client::wire::answer_event::{Event, Passage};
use nearring_client::{Client, wire};
use serde_json::{Value, json};

use crate::Context;
use crate::arguments::{Read, filter};
use crate::output::{Failure, Output, coverage_gap, coverage_json, id_json, id_of, short, version_json};

#[derive(Args)]
pub(crate) struct Ask {
    /// The collection.
    #[arg(long, short)]
    collection: String,

    /// The question.
    question: String,

    /// Passages the answer is written from; 0 = the default.
    #[arg(long, default_value_t = 0)]
    passages: u32,

    /// Only from chunks that match, in JSON.
    #[arg(long, value_name = "JSON", value_parser = filter)]
    filter: Option<wire::Filter>,

    #[command(flatten)]
    read: Read,
}

impl Ask {
    pub(crate) async fn run(self, context: Context) -> Result<(), Failure> {
        let request = wire::AskRequest {
            collection: self.collection,
            question: self.question,
            passages: self.passages,
            filter: self.filter,
            read: Some(self.read.options()),
            ..Default::default()
        };
        ask(&context.client, context.output, request).await
    }
}

/// Asks, and writes the answer as it comes.
pub(crate) async fn ask(client: &Client, output: Output, request: wire::AskRequest) -> Result<(), Failure> {
    let mut events = pin!(client.ask(request).await?);
    let mut passages: BTreeMap<u32, Passage> = BTreeMap::new();
    let mut done = None;
    while let Some(event) = events.try_next().await? {
        let Some(event) = event.event else { continue };
        if output.json {
            output.raw(&format!("{}\n", event_json(&event)))?;
        }
        match event {
            Event::Stage(_) => {}
            Event::Passages(found) => {
                if let Some(gap) = coverage_gap(found.coverage.as_ref()) {
                    eprintln!("warning: {gap}");
                }
                passages = found.passages.into_iter().map(|passage| (passage.number, passage)).collect();
            }
            Event::Delta(delta) if !output.json => output.raw(&delta.text)?,
            Event::Delta(_) => {}
            Event::Done(end) => done = Some(end),
        }
    }
    let Some(done) = done else { return Err(Failure::new("the answer broke off")) };
    if output.json {
        return Ok(());
    }
    let mut text = "\n".to_owned();
    for number in &done.cited {
        if let Some(passage) = passages.get(number) {
            let id = id_of(passage.id.clone());
            let title = if passage.title.is_empty() { &passage.document } else { &passage.title };
            text.push_str(&format!("\n  [{number}] {title} ({id}): {}", short(&passage.text, 120)));
        }
    }
    if !done.answered {
        text.push_str("\n  Nothing in this collection answers the question.");
    }
    output.raw(&format!("{text}\n"))
}

fn event_json(event: &Event) -> Value {
    match event {
        Event::Stage(stage) => json!({ "stage": stage.name, "elapsed_us": stage.elapsed_us }),
        Event::Passages(found) => {
            let passages: Vec<Value> = found
                .passages
                .iter()
                .map(|passage| {
                    json!({
                        "number": passage.number, "id": id_json(&id_of(passage.id.clone())), "title": passage.title,
                        "document": passage.document, "text": passage.text, "score": passage.score,
                        "version": version_json(passage.version),
                    })
                })
                .collect();
            json!({ "passages": passages, "coverage": coverage_json(found.coverage.as_ref()) })
        }
        Event::Delta(delta) => json!({ "delta": delta.text, "citations": delta.citations }),
        Event::Done(done) => json!({
            "done": { "cited": done.cited, "answered": done.answered, "generator": done.generator },
        }),
    }
}
