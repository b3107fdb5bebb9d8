//! The API's table of operations, and the OpenAPI document that describes it.
//!
//! The problem: a document kept beside the handlers is wrong before long. **Rules:** an operation is served only by being
//! [added](Operations::on) here, which describes it as well; bodies and parameters are described by the types that the handler
//! reads them into, found by its signature. What is left to be told by hand is what an operation does and the shape of its
//! result ([`Answers`]). What it deliberately does not do: describe `/v1` (OpenAI's API has a document of its own), the page, and
//! fields of results.
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::snapshots::AskedFor;
use super::{Asked, Body, Door, Given, Parameters};

/// The shape of an operation's result.
#[derive(Clone, Copy)]
pub(super) enum Answers {
    /// Whether it changed anything.
    Flag,
    /// What became of a write.
    Written,
    /// A list.
    List,
    /// An object.
    Object,
    /// An object outside the envelope that results come in.
    Bare,
    /// A line of text, outside the envelope.
    Text,
    /// A file.
    File,
}

/// Routes and their description.
pub(super) struct Operations {
    routes: Router<Door>,
    paths: Map<String, Value>,
    schemas: SchemaGenerator,
}

/// One operation while it is described.
pub(super) struct Described<'a> {
    operation: &'a mut Map<String, Value>,
    schemas: &'a mut SchemaGenerator,
}

/// A part of a request that a handler reads.
pub(super) trait Part {
    /// Adds it to the operation.
    fn describe(to: &mut Described<'_>);
}

impl Part for State<Door> {
    fn describe(_: &mut Described<'_>) {}
}

/// What stands in a path is described from the path.
impl<T> Part for Path<T> {
    fn describe(_: &mut Described<'_>) {}
}

impl Part for Asked {
    fn describe(to: &mut Described<'_>) {
        to.parameters::<Parameters>();
    }
}

impl<T: JsonSchema> Part for Given<T> {
    fn describe(to: &mut Described<'_>) {
        to.parameters::<T>();
    }
}

impl<P: JsonSchema> Part for AskedFor<P> {
    fn describe(to: &mut Described<'_>) {
        to.parameters::<P>();
    }
}

/// A form with a file: nothing else is read piece by piece.
impl Part for Request {
    fn describe(to: &mut Described<'_>) {
        let file = json!({"type": "string", "format": "binary"});
        let schema = json!({"type": "object", "properties": {"snapshot": file}});
        let form = json!({"required": true, "content": {"multipart/form-data": {"schema": schema}}});
        to.operation.insert("requestBody".to_owned(), form);
    }
}

impl Described<'_> {
    /// Each property of the type is a parameter.
    fn parameters<T: JsonSchema>(&mut self) {
        let to = self;
        let schema = T::json_schema(to.schemas);
        let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        let parameters = to.operation.entry("parameters").or_insert_with(|| json!([]));
        for (name, schema) in properties {
            let parameter = json!({"name": name, "in": "query", "required": false, "schema": schema});
            parameters.as_array_mut().into_iter().for_each(|list| list.push(parameter.clone()));
        }
    }
}

impl<B: JsonSchema> Part for Body<B> {
    fn describe(to: &mut Described<'_>) {
        let schema = to.schemas.subschema_for::<B>();
        to.operation.insert("requestBody".to_owned(), body(&schema));
    }
}

fn body(schema: &Schema) -> Value {
    json!({"required": true, "content": {"application/json": {"schema": schema}}})
}

/// What a handler reads, by the type that axum knows its arguments by.
pub(super) trait Takes {
    /// Adds all of it to the operation.
    fn describe(to: &mut Described<'_>);
}

impl Takes for ((),) {
    fn describe(_: &mut Described<'_>) {}
}

macro_rules! takes {
    ($($part:ident),+) => {
        impl<M, $($part: Part),+> Takes for (M, $($part,)+) {
            fn describe(to: &mut Described<'_>) {
                $($part::describe(to);)+
            }
        }
    };
}

takes!(A);
takes!(A, B);
takes!(A, B, C);
takes!(A, B, C, D);

impl Operations {
    /// None yet.
    pub(super) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Self { routes: Router::new(), paths: Map::new(), schemas: settings.into_generator() }
    }

    /// Adds an operation: serves it, and describes it. A path's first operation describes its parameters.
    pub(super) fn on<H, T>(mut self, method: MethodFilter, path: &str, does: &str, answers: Answers, handler: H) -> Self
    where
        H: Handler<T, Door>,
        T: Takes + 'static,
    {
        let mut operation = Map::new();
        operation.insert("summary".to_owned(), json!(does));
        operation.insert("operationId".to_owned(), json!(does.to_lowercase().replace([' ', ',', '\''], "_")));
        operation.insert("responses".to_owned(), responses(answers));
        T::describe(&mut Described { operation: &mut operation, schemas: &mut self.schemas });
        let entry = self.paths.entry(path).or_insert_with(|| json!({"parameters": parameters(path)}));
        entry[name(method)] = Value::Object(operation);
        self.routes = self.routes.route(path, on(method, handler));
        self
    }

    /// Describes the body of the operation by another type than its handler takes it as: some keep what was sent, to tell it
    /// again, and read it into this type afterwards.
    pub(super) fn read_as<B: JsonSchema>(mut self, method: MethodFilter, path: &str) -> Self {
        let schema = self.schemas.subschema_for::<B>();
        if let Some(operation) = self.paths.get_mut(path).and_then(|entry| entry.get_mut(name(method))) {
            operation["requestBody"] = body(&schema);
        }
        self
    }

    /// The operation may answer before it is done, where the request says not to wait.
    pub(super) fn or_accepted(mut self, method: MethodFilter, path: &str) -> Self {
        if let Some(operation) = self.paths.get_mut(path).and_then(|entry| entry.get_mut(name(method))) {
            let schema = json!({
                "type": "object",
                "required": ["status", "time"],
                "properties": {"status": {"const": "accepted"}, "time": {"type": "number"}},
            });
            let content = json!({"application/json": {"schema": schema}});
            operation["responses"]["202"] = json!({"description": "begun", "content": content});
        }
        self
    }

    /// The routes, and the document.
    pub(super) fn finish(mut self, title: &str, version: &str) -> (Router<Door>, Value) {
        let mut schemas = self.schemas.take_definitions(true);
        schemas.insert(
            "Error".to_owned(),
            json!({
                "type": "object",
                "required": ["status", "time"],
                "properties": {
                    "status": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
                    "time": {"type": "number"},
                },
            }),
        );
        let document = json!({
            "openapi": "3.1.0",
            "info": {"title": title, "version": version},
            "paths": self.paths,
            "components": {"schemas": schemas},
        });
        (self.routes, document)
    }
}

/// The method's key in the document.
fn name(method: MethodFilter) -> &'static str {
    match method {
        MethodFilter::GET => "get",
        MethodFilter::PUT => "put",
        MethodFilter::POST => "post",
        MethodFilter::PATCH => "patch",
        _ => "delete",
    }
}

/// What stands in braces.
fn parameters(path: &str) -> Value {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name);
    names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect()
}

fn responses(answers: Answers) -> Value {
    let result = match answers {
        Answers::Flag => json!({"type": "boolean"}),
        Answers::Written => json!({
            "type": "object",
            "required": ["operation_id", "status"],
            "properties": {"operation_id": {"type": "integer"}, "status": {"const": "completed"}},
        }),
        Answers::List => json!({"type": "array"}),
        Answers::Object | Answers::Bare => json!({"type": "object"}),
        Answers::Text => json!({"type": "string"}),
        Answers::File => json!({"type": "string", "format": "binary"}),
    };
    let content = match answers {
        Answers::Bare => json!({"application/json": {"schema": result}}),
        Answers::Text => json!({"text/plain": {"schema": result}}),
        Answers::File => json!({"application/octet-stream": {"schema": result}}),
        _ => json!({"application/json": {"schema": {
            "type": "object",
            "required": ["result", "status", "time"],
            "properties": {"result": result, "status": {"const": "ok"}, "time": {"type": "number"}},
        }}}),
    };
    let error = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
    let wait = json!({"Retry-After": {"schema": {"type": "integer"}, "required": true}});
    json!({
        "200": {"description": "done", "content": content},
        "4XX": {"description": "the request is wrong, or does not fit what there is", "content": error.clone()},
        "413": {"description": "the body is too large", "content": error.clone()},
        "429": {"description": "too much at once; nothing was done", "headers": wait.clone(), "content": error.clone()},
        "501": {"description": "not supported; the message names it", "content": error.clone()},
        "503": {"description": "not done in time, or not enough replicas", "headers": wait, "content": error},
    })
}

/// How a value that conditions compare with is written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes another type")]
pub(super) enum Plain {
    Bool(bool),
    Whole(i64),
    Number(f64),
    Text(String),
}

/// How a place on Earth is written: degrees.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes another type")]
pub(super) struct Degrees {
    lon: f64,
    lat: f64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// Every `$ref` of the document leads somewhere.
    fn references(value: &Value, document: &Value, seen: &mut usize) {
        match value {
            Value::Object(object) => {
                if let Some(to) = object.get("$ref").and_then(Value::as_str) {
                    *seen += 1;
                    assert!(document.pointer(to.strip_prefix('#').unwrap()).is_some(), "{to} is not in the document");
                }
                object.values().for_each(|value| references(value, document, seen));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, document, seen)),
            _ => {}
        }
    }

    #[test]
    fn bodies_are_described_by_what_handlers_read() {
        let (_, document) = super::super::operations().finish("title", "1");
        let mut seen = 0;
        references(&document, &document, &mut seen);
        assert!(seen > 100, "{seen} references");
        let schema = |path: &str, method: &str| {
            let body = &document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"];
            let name = body["$ref"].as_str().unwrap_or_else(|| panic!("{method} {path} has no named body"));
            document.pointer(name.strip_prefix('#').unwrap()).unwrap().clone()
        };
        let has = |schema: &Value, property: &str| schema["properties"].get(property).is_some();
        assert!(has(&schema("/collections/{collection}", "put"), "sparse_vectors"));
        assert!(has(&schema("/collections/{collection}/points/scroll", "post"), "order_by"));
        assert!(has(&schema("/collections/{collection}/points/query", "post"), "prefetch"));
        assert!(has(&schema("/collections/{collection}/points/query/groups", "post"), "group_by"));
        let mut ids = std::collections::BTreeSet::new();
        for (path, entry) in document["paths"].as_object().unwrap() {
            for (method, operation) in entry.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
                assert!(ids.insert(operation["operationId"].to_string()), "{method} {path}: its id is not its own");
                assert!(
                    method == "get"
                        || method == "delete"
                        || operation.get("requestBody").is_some()
                        || path.ends_with("/snapshots"),
                    "{method} {path}"
                );
            }
        }
    }
}
