//! Which models there are: a pipeline for each collection that questions can be asked of, and the embedders.
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::{Door, Refused};
use crate::failure::{Error, Kind};

/// What the names of pipelines begin with.
const PREFIX: &str = "nearring/";

/// The collection that a model's name stands for.
pub(super) fn collection(model: &str) -> Option<&str> {
    model.strip_prefix(PREFIX).filter(|name| !name.is_empty())
}

/// Models have no date of birth here.
fn model(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": "nearring"})
}

pub(super) async fn list(State(door): State<Door>) -> Result<Json<Value>, Refused> {
    let collections = door.pipeline.answerable().await?;
    let pipelines = collections.iter().map(|collection| model(&format!("{PREFIX}{}", collection.spec.name)));
    let embedders = door.pipeline.embedders().iter().map(|embedder| model(embedder.name()));
    let data: Vec<Value> = pipelines.chain(embedders).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

pub(super) async fn one(State(door): State<Door>, Path(id): Path<String>) -> Result<Json<Value>, Refused> {
    match collection(&id) {
        Some(collection) => {
            let told = door.pipeline.check_answerable(collection).await;
            told.map_err(|error| not_answerable(&id, error))?;
        }
        None => drop(embedder(&door, &id)?),
    }
    Ok(Json(model(&id)))
}

/// Whether the embedder of this name is here.
pub(super) fn embedder<'a>(
    door: &'a Door,
    model: &str,
) -> Result<&'a std::sync::Arc<dyn crate::embed::Embedder>, Refused> {
    let known = Some(model).filter(|model| !model.is_empty()).and_then(|model| door.pipeline.embedders().get(model));
    known.ok_or_else(|| {
        let names = door.pipeline.embedders().names();
        Refused::no_model(model, format!("this router embeds with {names} and answers as {PREFIX}<collection>"))
    })
}

/// A model whose collection does not exist is one that does not exist.
pub(super) fn not_answerable(model: &str, error: Error) -> Refused {
    match error.kind {
        Kind::NotFound => Refused::no_model(model, error.message),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_is_named_after_its_collection() {
        assert_eq!(collection("nearring/notes"), Some("notes"));
        assert_eq!((collection("nearring/"), collection("notes"), collection("static256")), (None, None, None));
    }
}
