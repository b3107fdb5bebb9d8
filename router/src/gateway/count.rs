//! Counts what the doors answer, as layers around them. What is counted, and what is not, is for [`crate::traffic`] to say.
use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use nearring_proto::{qdrant, wire};
use prost_reflect::DescriptorPool;
use tokio::time::Instant;
use tonic::Code;

use crate::pipeline::Pipeline;
use crate::traffic::{Door, Endpoint, OTHER};

/// The name that Qdrant gives to the part of a path that names a collection; routes here leave out its last word.
const COLLECTION: (&str, &str) = ("{collection}", "{collection_name}");

/// Every gRPC method that is served, as it stands in paths. Health and reflection are others.
static METHODS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let mut methods = BTreeSet::new();
    for descriptors in [qdrant::DESCRIPTORS, wire::DESCRIPTORS] {
        // What the build wrote; a test decodes it.
        let pool = DescriptorPool::decode(descriptors).unwrap_or_default();
        for service in pool.services() {
            methods.extend(service.methods().map(|method| format!("/{}/{}", service.full_name(), method.name())));
        }
    }
    methods
});

/// Counts an HTTP request.
pub(crate) async fn rest(State(pipeline): State<Pipeline>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = verb(request.method());
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().replace(COLLECTION.0, COLLECTION.1));
    let (mut parts, body) = request.into_parts();
    let collection = match RawPathParams::from_request_parts(&mut parts, &()).await {
        Ok(params) => params.iter().find(|(name, _)| *name == "collection").map(|(_, value)| value.to_owned()),
        Err(_) => None,
    };
    let response = next.run(Request::from_parts(parts, body)).await;
    let table = pipeline.view().table();
    let own_name = |name: String| Some(table.as_ref()?.collection(&name)?.spec.name.clone());
    let endpoint = Endpoint {
        door: Door::Rest,
        method,
        path: path.unwrap_or_else(|| OTHER.to_owned()),
        status: response.status().as_u16(),
    };
    pipeline.traffic().answered(endpoint, collection.and_then(own_name), began.elapsed());
    response
}

/// Counts a gRPC request.
pub(crate) async fn grpc(State(pipeline): State<Pipeline>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let path = request.uri().path();
    let path = if METHODS.contains(path) { path } else { OTHER }.to_owned();
    let response = next.run(request).await;
    // What succeeds says so behind its body.
    let code = response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    let status = u16::try_from(code as i32).unwrap_or(u16::MAX);
    pipeline.traffic().answered(Endpoint { door: Door::Grpc, method: "", path, status }, None, began.elapsed());
    response
}

/// The verbs that routes have; any word can stand there.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_those_of_the_services() {
        assert!(METHODS.contains("/qdrant.Points/Upsert"));
        assert!(METHODS.contains("/qdrant.Collections/CollectionClusterInfo"));
        assert!(METHODS.iter().any(|path| path.starts_with("/nearring.")), "{METHODS:?}");
    }
}
