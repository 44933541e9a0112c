//! WebSocket connections to the gateway, for browsers: each message from the client is a message of the call, in JSON,
//! and each line of the answer is a message to it. A token comes as the second subprotocol after `Bearer`, since a
//! browser lets no page set headers.
//!
//! Sources: RFC 6455; etcd, `server/embed/serve.go`, which passes such connections to grpc-websocket-proxy.

use std::task::Poll;

use axum::{
    body::{Body, BodyDataStream},
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{
    Sink, SinkExt as _, Stream, StreamExt as _,
    stream::{self, SplitStream},
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, handshake::derive_accept_key, protocol::Role, protocol::WebSocketConfig},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Gateway, answer};

const VERSION: &str = "13";
const BEARER: &str = "Bearer";

type Socket = WebSocketStream<TokioIo<Upgraded>>;

pub fn is_asked_for(headers: &HeaderMap) -> bool {
    let names = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    names(header::CONNECTION, "upgrade") && names(header::UPGRADE, "websocket")
}

/// Takes the connection over, and makes the call when the first message comes.
pub fn accept(gateway: Gateway, mut request: Request) -> Response {
    let headers = request.headers();
    let is_of_version = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == VERSION);
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_of_version && request.method() == Method::GET);
    let Some(accepted) = key.map(|key| derive_accept_key(key.as_bytes())) else {
        return answer::refusal(&Status::invalid_argument("a WebSocket connection is asked for as RFC 6455 has it"));
    };
    let token = headers.get(header::SEC_WEBSOCKET_PROTOCOL).and_then(token);
    let head = [
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(accepted).expect("base64 is ASCII")),
    ];
    let protocol = token.is_some().then_some([(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER))]);
    let upgraded = hyper::upgrade::on(&mut request);
    let call = as_post(&request, token);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => talk(gateway, TokioIo::new(upgraded), call).await,
            Err(error) => tracing::debug!(%error, "a connection did not become a WebSocket"),
        }
    });
    (StatusCode::SWITCHING_PROTOCOLS, head, protocol.into_iter().flatten().collect::<HeaderMap>()).into_response()
}

/// `Bearer, TOKEN` among the subprotocols is what the header Authorization would be.
fn token(protocols: &HeaderValue) -> Option<HeaderValue> {
    let (_, token) = protocols.to_str().ok()?.split_once("Bearer,")?;
    HeaderValue::try_from(format!("{BEARER} {}", token.trim())).ok()
}

/// The call that the connection is for, without a body yet. Of its headers, those that browsers set pass.
fn as_post(request: &Request, token: Option<HeaderValue>) -> Request {
    let mut post = Request::new(Body::empty());
    *post.method_mut() = Method::POST;
    *post.uri_mut() = request.uri().clone();
    for name in [header::ORIGIN, header::REFERER] {
        if let Some(value) = request.headers().get(&name) {
            post.headers_mut().insert(name, value.clone());
        }
    }
    if let Some(token) = token {
        post.headers_mut().insert(header::AUTHORIZATION, token);
    }
    post
}

async fn talk(gateway: Gateway, connection: TokioIo<Upgraded>, mut call: Request) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(gateway.json_bytes_max))
        .max_frame_size(Some(gateway.json_bytes_max));
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
    let (mut to_client, from_client) = socket.split();
    let takes_stream = gateway.method(call.uri().path()).is_some_and(|method| method.takes_stream);
    let gone = CancellationToken::new();
    let mut messages = messages(from_client, gone.clone());
    let talked = async {
        if takes_stream {
            *call.body_mut() = Body::from_stream(messages);
            return answer_to(&mut to_client, gateway.answer(call).await).await;
        }
        let Some(Ok(message)) = messages.next().await else { return };
        *call.body_mut() = Body::from(message);
        tokio::join!(
            async { answer_to(&mut to_client, gateway.answer(call).await).await },
            messages.for_each(|_| async {}),
        );
    };
    // A client that goes away ends its call: a watch would wait for the next event.
    gone.run_until_cancelled(talked).await;
    // It fails when the client has closed already.
    let _ = to_client.close().await;
}

/// The client's messages. `gone` is told of their end.
fn messages(
    from_client: SplitStream<Socket>,
    gone: CancellationToken,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static {
    let messages = from_client.filter_map(|message| async {
        match message {
            Ok(Message::Text(text)) => Some(Ok(Bytes::from(text))),
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    });
    let end = stream::poll_fn(move |_| {
        gone.cancel();
        Poll::Ready(None)
    });
    Box::pin(messages.chain(end))
}

async fn answer_to(client: &mut (impl Sink<Message> + Unpin), answer: Response) {
    let mut parts: BodyDataStream = answer.into_body().into_data_stream();
    while let Some(Ok(part)) = parts.next().await {
        for line in part.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = String::from_utf8_lossy(line).into_owned();
            if client.send(Message::text(line)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_second_subprotocol() {
        let token_of = |protocols: &'static str| token(&HeaderValue::from_static(protocols));
        assert_eq!(token_of("Bearer, abc.1").unwrap(), "Bearer abc.1");
        assert_eq!(token_of("Bearer,abc").unwrap(), "Bearer abc");
        assert_eq!(token_of("chat"), None);
    }

    #[test]
    fn an_upgrade_is_asked_for_with_both_headers() {
        let headers = |connection: &'static str, upgrade: &'static str| {
            HeaderMap::from_iter([
                (header::CONNECTION, HeaderValue::from_static(connection)),
                (header::UPGRADE, HeaderValue::from_static(upgrade)),
            ])
        };
        assert!(is_asked_for(&headers("keep-alive, Upgrade", "WebSocket")));
        assert!(!is_asked_for(&headers("keep-alive", "websocket")));
        assert!(!is_asked_for(&headers("upgrade", "h2c")));
    }
}
