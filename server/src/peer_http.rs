//! Plain HTTP to other members: JSON on their peer ports, where a member is asked before it is one of Raft's, or without
//! Raft. One connection for each question: they are few.
//!
//! Connections are those of [`Dialer`], encrypted where the URL says so.

use std::{io, sync::Arc, time::Duration};

use axum::body::{Body, Bytes, to_bytes};
use http::{HeaderMap, Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::{tls::Dialer, urls::Url};

/// An answer is a list of members or a hash: whatever is longer comes from something else.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Makes requests to members. Cheap to clone.
#[derive(Clone)]
pub struct PeerHttp {
    dialer: Arc<Dialer>,
}

/// What a member answered, whatever the status.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerHttpError {
    #[error("{url}: this is no URL of a member")]
    Url { url: String },
    #[error("{url}: {error}")]
    Connect { url: String, error: io::Error },
    #[error("{url}: {error}")]
    Http { url: String, error: hyper::Error },
    #[error("{url}: the answer broke off: {error}")]
    Body { url: String, error: axum::Error },
    #[error("{url}: no answer within {} ms", after.as_millis())]
    Timeout { url: String, after: Duration },
}

impl PeerHttp {
    pub fn new(dialer: Arc<Dialer>) -> PeerHttp {
        PeerHttp { dialer }
    }

    /// `peer_url` as members advertise it, `path` with the query.
    pub async fn get(&self, peer_url: &str, path: &str, within: Duration) -> Result<Answer, PeerHttpError> {
        self.get_with(peer_url, path, &[], Bytes::new(), within).await
    }

    /// A question with headers of its own and a body of JSON, as etcd's members ask for hashes.
    pub async fn get_with(
        &self,
        peer_url: &str,
        path: &str,
        headers: &[(&'static str, String)],
        body: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Answer, PeerHttpError> {
        self.send(peer_url, path, headers, body.into(), within).await
    }

    async fn send(
        &self,
        peer_url: &str,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
        within: Duration,
    ) -> Result<Answer, PeerHttpError> {
        let url = format!("{peer_url}{path}");
        match timeout(within, self.exchange(peer_url, path, headers, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(PeerHttpError::Timeout { url, after: within }),
        }
    }

    async fn exchange(
        &self,
        peer_url: &str,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Answer, PeerHttpError> {
        let url = &format!("{peer_url}{path}");
        let no_url = || PeerHttpError::Url { url: url.into() };
        let authority = Url::parse(peer_url).map_err(|_| no_url())?.authority().to_string();
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Body::from(body)).map_err(|_| no_url())?;
        let stream =
            self.dialer.connect(peer_url).await.map_err(|error| PeerHttpError::Connect { url: url.into(), error })?;
        let http = |error| PeerHttpError::Http { url: url.into(), error };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await.map_err(http)?.into_parts();
            let body = to_bytes(Body::new(body), ANSWER_BYTES_MAX).await;
            let body = body.map_err(|error| PeerHttpError::Body { url: url.into(), error })?;
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        let (mut connection, mut exchange) = (std::pin::pin!(connection), std::pin::pin!(exchange));
        tokio::select! {
            answer = &mut exchange => answer,
            // The connection may end just before the answer has been read.
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(http(error)),
            },
        }
    }
}

impl Answer {
    /// Reads the body, where the status says that it is what was asked for.
    ///
    /// # Errors
    /// The reason, in one line.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, String> {
        if !self.status.is_success() {
            return Err(format!("status {}: {}", self.status.as_u16(), self.text()));
        }
        serde_json::from_slice(&self.body).map_err(|error| format!("the answer is not as expected: {error}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_string()
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, http::Uri, routing};
    use tokio::net::TcpListener;

    use super::*;

    async fn serve() -> String {
        let routes = Router::new()
            .route("/list", routing::get(|uri: Uri| async move { Json(uri.query().map(str::to_string)) }))
            .route("/echo", routing::get(|body: String| async move { ([("x-echo", "yes")], body) }))
            .route(
                "/asked",
                routing::get(|headers: HeaderMap, body: String| async move {
                    ([("x-echo", headers["x-asked"].clone())], body)
                }),
            )
            .route("/never", routing::get(std::future::pending::<String>));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        url
    }

    #[tokio::test]
    async fn questions_are_answered() {
        let (http, url, within) = (PeerHttp::new(Arc::new(Dialer::plain())), serve().await, Duration::from_secs(5));
        let list = http.get(&url, "/list?a=1", within).await.unwrap();
        assert_eq!(list.json::<Option<String>>(), Ok(Some("a=1".into())));
        let echo = http.get_with(&url, "/echo", &[], "hello", within).await.unwrap();
        assert_eq!((echo.text(), echo.headers["x-echo"].as_bytes()), ("hello".into(), &b"yes"[..]));
        let asked = http.get_with(&url, "/asked", &[("x-asked", "me".into())], "{}", within).await.unwrap();
        assert_eq!((asked.text(), asked.headers["x-echo"].as_bytes()), ("{}".into(), &b"me"[..]));
        let missing = http.get(&url, "/missing", within).await.unwrap();
        assert_eq!(missing.status, StatusCode::NOT_FOUND);
        assert!(missing.json::<()>().unwrap_err().starts_with("status 404"));
    }

    #[tokio::test]
    async fn a_question_without_an_answer_ends() {
        let (http, url) = (PeerHttp::new(Arc::new(Dialer::plain())), serve().await);
        let late = http.get(&url, "/never", Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(late, PeerHttpError::Timeout { .. }), "{late}");
        let refused = http.get("http://127.0.0.1:1", "/", Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, PeerHttpError::Connect { .. }), "{refused}");
        let no_url = http.get("nothing", "/", Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(no_url, PeerHttpError::Url { .. }), "{no_url}");
    }
}
