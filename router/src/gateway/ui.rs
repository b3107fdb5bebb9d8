//! The page at `/ui`: its files, out of the program itself.
//!
//! The problem: whoever runs a cluster wants to look at it, and at what is stored in it, with nothing but a browser. **Rules:**
//! - The files are part of the program and are served as they lie in `router/ui/`: no build step, and nothing comes from
//!   another host, so that the page works where there is no internet.
//! - The browser is told to enforce that, and more: scripts and styles come from files only and requests go to this router only
//!   ([`POLICY`]). Should stored data ever be put in as HTML by mistake, a script in it would still not run.
//! - It may not be shown inside a page of others, which could have it clicked unawares.
//! - Whatever it shows it asks of the same HTTP doors that everybody uses, and of [`super::console`].
//!
//! `/dashboard` leads here, since that is where Qdrant's users look.
//!
//! What it deliberately does not do: change anything. It reads, searches and asks.
use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

/// Where the page is, with the slash at the end, so that its files are beside it. What leads here is not to be remembered: another
/// server may have the address tomorrow.
const PAGE: &str = "/ui/";

/// What the page may load, and who may show it.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                          base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Its name, which is its path below `/ui/`.
    pub name: &'static str,
    /// What it is sent as.
    pub content_type: &'static str,
    /// What is in it.
    pub text: &'static str,
}

macro_rules! file {
    ($name:literal, $content_type:expr) => {
        File { name: $name, content_type: $content_type, text: include_str!(concat!("../../ui/", $name)) }
    };
}

/// Every file of the page; the first is the page itself.
pub const FILES: [File; 10] = [
    file!("index.html", HTML),
    file!("style.css", CSS),
    file!("icon.svg", SVG),
    file!("app.js", SCRIPT),
    file!("api.js", SCRIPT),
    file!("dom.js", SCRIPT),
    file!("cluster.js", SCRIPT),
    file!("collections.js", SCRIPT),
    file!("search.js", SCRIPT),
    file!("ask.js", SCRIPT),
];

/// The page with its files, and the ways that lead to it.
pub fn app() -> Router {
    let to_page = || get(|| async { Redirect::temporary(PAGE) });
    Router::new()
        .route("/ui", to_page())
        .route("/ui/", get(|| async { serve("index.html") }))
        .route("/ui/{*file}", get(|Path(name): Path<String>| async move { serve(&name) }))
        .route("/dashboard", to_page())
        .route("/dashboard/", to_page())
}

fn serve(name: &str) -> Response {
    let safety: [(HeaderName, &str); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the program has another page under the same names.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let mut response = match FILES.iter().find(|file| file.name == name) {
        Some(file) => ([(header::CONTENT_TYPE, file.content_type)], file.text).into_response(),
        None => (StatusCode::NOT_FOUND, "the page has no such file; it begins at /ui/").into_response(),
    };
    response.headers_mut().extend(safety.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}
