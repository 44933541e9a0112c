//! The page's files, compiled in.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Redirect},
    routing::get,
};

/// Nothing but this origin's files; no script in the page's text, no frames, no forms that go anywhere.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; \
                      require-trusted-types-for 'script'";

const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    // Another version of the server has other files.
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path below `/console/`, kind, content.
const FILES: &[(&str, &str, &str)] = &[
    ("", HTML, include_str!("page/index.html")),
    ("style.css", CSS, include_str!("page/style.css")),
    ("icon.svg", SVG, include_str!("page/icon.svg")),
    ("app.js", SCRIPT, include_str!("page/app.js")),
    ("api.js", SCRIPT, include_str!("page/api.js")),
    ("bytes.js", SCRIPT, include_str!("page/bytes.js")),
    ("cluster.js", SCRIPT, include_str!("page/cluster.js")),
    ("diff.js", SCRIPT, include_str!("page/diff.js")),
    ("dom.js", SCRIPT, include_str!("page/dom.js")),
    ("keys.js", SCRIPT, include_str!("page/keys.js")),
    ("plot.js", SCRIPT, include_str!("page/plot.js")),
    ("sizes.js", SCRIPT, include_str!("page/sizes.js")),
    ("value.js", SCRIPT, include_str!("page/value.js")),
    ("watch.js", SCRIPT, include_str!("page/watch.js")),
];

pub fn routes() -> Router {
    let mut routes = Router::new().route("/console", get(|| async { Redirect::permanent("/console/") }));
    for &(path, kind, content) in FILES {
        let file = move || async move { (HEADERS, [(header::CONTENT_TYPE, kind)], content).into_response() };
        routes = routes.route(&format!("/console/{path}"), get(file));
    }
    routes
}
