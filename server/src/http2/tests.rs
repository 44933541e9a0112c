//! Against hyper's client, and frame by frame.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body as AnyBody;
use http::Method;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::http2::{
    PREFACE,
    frame::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Head as FrameHead, PADDED, PING,
        PRIORITIZED, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
};
use tokio::{io::DuplexStream, sync::Notify};

use super::*;

const CONNECTIONS: Connections = Connections {
    max_concurrent_streams: 1000,
    keepalive_interval: None,
    keepalive_timeout: Duration::from_secs(1),
    ping_min_time: None,
    reuse_port: false,
};

/// Gives back what it gets: as a message in one, or as it comes, with trailers. `/wait` waits for ever.
#[derive(Clone, Default)]
struct Echo {
    at_once: Arc<AtomicUsize>,
    dropped: Arc<Notify>,
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Handler for Echo {
    type Unary = ();

    fn unary(&self, head: &Head) -> Option<()> {
        (head.uri.path() == "/message").then_some(())
    }

    fn carry_out<O: Send + 'static>(
        &self,
        (): (),
        message: Bytes,
        end: impl FnOnce(Message) -> O + Send + 'static,
    ) -> BoxFuture<'static, O> {
        self.at_once.fetch_add(1, Ordering::Relaxed);
        let prefix = [&[0][..], &(message.len() as u32).to_be_bytes()].concat();
        let answer = async move {
            tokio::task::yield_now().await;
            match message.starts_with(b"refuse") {
                true => Err(Status::not_found("refused")),
                false => Ok((Bytes::from([&prefix[..], &message].concat()), None)),
            }
        };
        answer.map(end).boxed()
    }

    fn answer(&self, request: Request<Body>) -> impl Future<Output = Response<Content>> + Send + 'static {
        let dropped = self.dropped.clone();
        async move {
            if request.uri().path() == "/wait" {
                let _dropped = NotifyOnDrop(dropped);
                std::future::pending::<()>().await;
            }
            let trailers = futures::stream::once(async {
                Ok(Frame::trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())])))
            });
            let body = http_body_util::BodyStream::new(request.into_body().map_err(BoxError::from));
            let body = http_body_util::StreamBody::new(futures::StreamExt::chain(body, trailers));
            Response::builder().header("content-type", "application/grpc").body(body.boxed_unsync()).unwrap()
        }
    }
}

fn start(handler: Echo, connections: Connections) -> (DuplexStream, CancellationToken) {
    let (client, mut server) = tokio::io::duplex(100_000);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let mut preface = [0; PREFACE.len()];
        server.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, PREFACE);
        serve(server, BytesMut::new(), handler, &connections, &stopped).await;
    });
    (client, stop)
}

type Client = hyper::client::conn::http2::SendRequest<AnyBody>;

async fn connect(io: DuplexStream, window: u32) -> Client {
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window).initial_connection_window_size(4 * window);
    let (client, connection) = builder.handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    client
}

fn post(path: &str, body: impl Into<AnyBody>) -> Request<AnyBody> {
    Request::builder().method(Method::POST).uri(format!("http://server{path}")).body(body.into()).unwrap()
}

fn message(bytes: usize, seed: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..bytes).map(|i| (i * 31 + seed) as u8).collect();
    [&[0][..], &(bytes as u32).to_be_bytes(), &content].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_any_size_come_back_whatever_the_windows() {
    for window in [1, 100, 16_384, 65_535, 1 << 20] {
        let echo = Echo::default();
        let (io, _stop) = start(echo.clone(), CONNECTIONS);
        let client = connect(io, window).await;
        let sizes =
            if window < 1000 { vec![0, 1, 10, 2000] } else { vec![0, 1, 4090, 16_379, 16_380, 100_000, 3_000_000] };
        let calls = sizes.into_iter().cycle().take(40).enumerate().map(|(i, size)| {
            let mut client = client.clone();
            async move {
                let path = ["/message", "/stream"][i % 2];
                let sent = message(size, i);
                // Piece by piece, which does not suit a message in one, or whole.
                let pieces: Vec<_> =
                    sent.chunks(7000).map(|piece| Ok::<_, BoxError>(Bytes::copy_from_slice(piece))).collect();
                let body =
                    if i % 3 == 0 { AnyBody::from_stream(futures::stream::iter(pieces)) } else { sent.clone().into() };
                client.ready().await.unwrap();
                let answer = client.send_request(post(path, body)).await.unwrap();
                assert_eq!(answer.headers()["content-type"], "application/grpc");
                let answer = answer.into_body().collect().await.unwrap();
                assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
                assert!(answer.to_bytes() == sent, "{path} of {size} bytes, window of {window}");
            }
        });
        futures::future::join_all(calls).await;
        assert!(echo.at_once.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test]
async fn a_refusal_is_all_in_the_headers() {
    let (io, _stop) = start(Echo::default(), CONNECTIONS);
    let mut client = connect(io, 65_535).await;
    let refused = [&[0, 0, 0, 0, 6][..], b"refuse"].concat();
    for _ in 0..3 {
        let answer = client.send_request(post("/message", refused.clone())).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "5");
        assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn who_is_given_up_is_dropped_and_others_go_on() {
    let echo = Echo::default();
    let (io, _stop) = start(echo.clone(), CONNECTIONS);
    let mut client = connect(io, 65_535).await;
    let waiting = client.send_request(post("/wait", AnyBody::empty()));
    let answer = client.clone().send_request(post("/stream", "a")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "a");
    assert!(tokio::time::timeout(Duration::from_millis(50), echo.dropped.notified()).await.is_err());
    drop(waiting);
    echo.dropped.notified().await;
}

#[tokio::test]
async fn a_server_that_stops_answers_what_it_has_taken() {
    let (io, stop) = start(Echo::default(), CONNECTIONS);
    let mut client = connect(io, 65_535).await;
    let (sender, body) = futures::channel::mpsc::unbounded::<Result<Bytes, BoxError>>();
    let answer = client.send_request(post("/stream", AnyBody::from_stream(body)));
    sender.unbounded_send(Ok("a".into())).unwrap();
    let answer = answer.await.unwrap();
    stop.cancel();
    sender.unbounded_send(Ok("b".into())).unwrap();
    assert!(!client.is_closed());
    drop(sender);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ab");
    while !client.is_closed() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_pings_is_given_up() {
    let interval = Some(Duration::from_secs(10));
    let (mut client, _stop) = start(Echo::default(), Connections { keepalive_interval: interval, ..CONNECTIONS });
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let mut received = Vec::new();
    let began = tokio::time::Instant::now();
    client.read_to_end(&mut received).await.unwrap();
    // What was heard at the beginning counts for the first interval.
    assert_eq!(began.elapsed().as_secs(), 21);
    assert_eq!(kinds(&received).last(), Some(&(PING, 0)));
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    [&FrameHead { length: content.len(), kind, flags, stream }.bytes()[..], content].concat()
}

/// Kind and stream of each frame.
fn kinds(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut kinds = Vec::new();
    while let Some(head) = FrameHead::read(bytes) {
        kinds.push((head.kind, head.stream));
        bytes = &bytes[9 + head.length..];
    }
    kinds
}

fn head(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", "POST"), (":scheme", "http"), (":path", path)] {
        hpack::put_field(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

/// What a connection answers to frames: the code that it ends with, or the codes of streams that it ends.
async fn refusal(frames: &[Vec<u8>]) -> Result<Vec<u32>, u32> {
    let (mut client, _stop) = start(Echo::default(), Connections { max_concurrent_streams: 2, ..CONNECTIONS });
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&frames.concat()).await.unwrap();
    client.write_all(&frame(PING, 0, 0, b"the end.")).await.unwrap();
    let (mut received, mut codes) = (Vec::new(), Vec::new());
    loop {
        let Some(head) = FrameHead::read(&received).filter(|head| received.len() >= 9 + head.length) else {
            assert!(client.read_buf(&mut received).await.unwrap() > 0, "the connection ended without a reason");
            continue;
        };
        let content: Vec<u8> = received.drain(..9 + head.length).skip(9).collect();
        match head.kind {
            RST_STREAM => codes.push(u32::from_be_bytes(content.try_into().unwrap())),
            GOAWAY => return Err(u32::from_be_bytes(content[4..8].try_into().unwrap())),
            PING if head.has(ACK) && content == b"the end." => return Ok(codes),
            _ => {}
        }
    }
}

#[tokio::test]
async fn frames_that_must_not_be_are_refused() {
    let settings = || frame(SETTINGS, 0, 0, &[]);
    let setting =
        |name: u16, value: u32| frame(SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let open = |stream| frame(HEADERS, END_HEADERS, stream, &head("/wait"));
    let ended = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("/wait"));
    let window = |stream, more: u32| frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    let cases: Vec<(&str, Vec<Vec<u8>>, Result<Vec<u32>, u32>)> = vec![
        ("nothing wrong", vec![settings(), open(1), frame(DATA, END_STREAM, 1, b"x")], Ok(vec![])),
        ("no settings", vec![open(1)], Err(frame::PROTOCOL_ERROR)),
        ("a long frame", vec![settings(), frame(DATA, 0, 1, &[0; 16_385])], Err(frame::FRAME_SIZE_ERROR)),
        ("a stream of the server's", vec![settings(), open(2)], Err(frame::PROTOCOL_ERROR)),
        ("headers without a stream", vec![settings(), open(0)], Err(frame::PROTOCOL_ERROR)),
        ("settings on a stream", vec![settings(), frame(SETTINGS, 0, 1, &[])], Err(frame::PROTOCOL_ERROR)),
        ("half a setting", vec![frame(SETTINGS, 0, 0, &[0; 5])], Err(frame::FRAME_SIZE_ERROR)),
        ("a wrong push", vec![setting(2, 2)], Err(frame::PROTOCOL_ERROR)),
        ("a large window", vec![setting(4, 1 << 31)], Err(frame::FLOW_CONTROL_ERROR)),
        ("a small frame size", vec![setting(5, 100)], Err(frame::PROTOCOL_ERROR)),
        ("a body of nothing", vec![settings(), frame(DATA, 0, 1, b"x")], Err(frame::PROTOCOL_ERROR)),
        ("a body after the end", vec![settings(), ended(1), frame(DATA, 0, 1, b"x")], Ok(vec![frame::STREAM_CLOSED])),
        ("headers twice", vec![settings(), ended(1), ended(1)], Ok(vec![frame::STREAM_CLOSED])),
        ("trailers that are no end", vec![settings(), open(1), open(1)], Ok(vec![frame::PROTOCOL_ERROR])),
        ("too many streams", vec![settings(), open(1), open(3), open(5)], Ok(vec![frame::REFUSED_STREAM])),
        (
            "an older stream",
            vec![settings(), open(5), frame(RST_STREAM, 0, 5, &[0; 4]), open(3)],
            Err(frame::STREAM_CLOSED),
        ),
        (
            "a block that stops",
            vec![settings(), frame(HEADERS, 0, 1, &head("/wait")), open(3)],
            Err(frame::PROTOCOL_ERROR),
        ),
        (
            "a block from nowhere",
            vec![settings(), frame(CONTINUATION, END_HEADERS, 1, b"")],
            Err(frame::PROTOCOL_ERROR),
        ),
        (
            "a block without end",
            [vec![settings(), frame(HEADERS, 0, 1, b"")], vec![frame(CONTINUATION, 0, 1, b""); 70]].concat(),
            Err(frame::ENHANCE_YOUR_CALM),
        ),
        (
            "no header block",
            vec![settings(), frame(HEADERS, END_HEADERS, 1, &[0xff; 9])],
            Err(frame::COMPRESSION_ERROR),
        ),
        ("no request", vec![settings(), frame(HEADERS, END_HEADERS, 1, &[0x83])], Ok(vec![frame::PROTOCOL_ERROR])),
        ("long padding", vec![settings(), open(1), frame(DATA, PADDED, 1, &[5, 0])], Err(frame::PROTOCOL_ERROR)),
        ("a reset of nothing", vec![settings(), frame(RST_STREAM, 0, 1, &[0; 4])], Err(frame::PROTOCOL_ERROR)),
        ("a short reset", vec![settings(), open(1), frame(RST_STREAM, 0, 1, &[0; 3])], Err(frame::FRAME_SIZE_ERROR)),
        ("a short ping", vec![settings(), frame(PING, 0, 0, &[0; 7])], Err(frame::FRAME_SIZE_ERROR)),
        ("a promise", vec![settings(), frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 8])], Err(frame::PROTOCOL_ERROR)),
        ("no room more", vec![settings(), window(0, 0)], Err(frame::PROTOCOL_ERROR)),
        ("no room more on a stream", vec![settings(), open(1), window(1, 0)], Ok(vec![frame::PROTOCOL_ERROR])),
        ("too much room", vec![settings(), window(0, (1 << 31) - 1)], Err(frame::FLOW_CONTROL_ERROR)),
        (
            "too much room on a stream",
            vec![settings(), open(1), window(1, (1 << 31) - 1)],
            Ok(vec![frame::FLOW_CONTROL_ERROR]),
        ),
        ("a short priority", vec![settings(), frame(PRIORITY, 0, 1, &[0; 4])], Err(frame::FRAME_SIZE_ERROR)),
        (
            "a stream before itself",
            vec![
                settings(),
                frame(HEADERS, END_HEADERS | PRIORITIZED, 1, &[&[0, 0, 0, 1, 9][..], &head("/wait")].concat()),
            ],
            Ok(vec![frame::PROTOCOL_ERROR]),
        ),
        ("a kind that is not known", vec![settings(), frame(99, 255, 7, b"?")], Ok(vec![])),
        ("a short GOAWAY", vec![settings(), frame(GOAWAY, 0, 0, &[0; 7])], Err(frame::FRAME_SIZE_ERROR)),
        (
            "more than there is room for",
            [vec![settings(), open(1)], vec![frame(DATA, 0, 1, &[0; 16_384]); 65]].concat(),
            Ok(vec![frame::FLOW_CONTROL_ERROR]),
        ),
    ];
    for (name, frames, expected) in cases {
        assert_eq!(refusal(&frames).await, expected, "{name}");
    }
}

#[tokio::test]
async fn a_client_that_pings_too_often_is_told_so() {
    let ping_min_time = Some(Duration::from_secs(5));
    let (mut client, _stop) = start(Echo::default(), Connections { ping_min_time, ..CONNECTIONS });
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    client.write_all(&[frame(PING, 0, 0, &[1; 8]), frame(PING, 0, 0, &[1; 8])].concat().repeat(2)).await.unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert!(received.ends_with(b"too_many_pings"), "{:?}", kinds(&received));
}

#[tokio::test]
async fn fields_are_kept_only_as_far_as_the_client_keeps_them() {
    for (table, sizes) in [(None, [true, true]), (Some(4096), [true, true]), (Some(0), [false, false])] {
        let (mut client, _stop) = start(Echo::default(), CONNECTIONS);
        client.write_all(PREFACE).await.unwrap();
        let setting = table.map(|bytes: u32| [&1_u16.to_be_bytes()[..], &bytes.to_be_bytes()].concat());
        client.write_all(&frame(SETTINGS, 0, 0, &setting.unwrap_or_default())).await.unwrap();
        let mut decoder = hpack::Decoder::default();
        let (mut received, mut lengths) = (Vec::new(), Vec::new());
        for stream in [1, 3] {
            client.write_all(&frame(HEADERS, END_HEADERS, stream, &head("/message"))).await.unwrap();
            client.write_all(&frame(DATA, END_STREAM, stream, &message(3, 0))).await.unwrap();
            let mut fields = Vec::new();
            while fields.last() != Some(&"grpc-status=0".to_string()) {
                let Some(head) = FrameHead::read(&received).filter(|head| received.len() >= 9 + head.length) else {
                    assert!(client.read_buf(&mut received).await.unwrap() > 0);
                    continue;
                };
                let content: Vec<u8> = received.drain(..9 + head.length).skip(9).collect();
                if head.kind == HEADERS {
                    lengths.push(content.len());
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    decoder
                        .decode(&content, |name, value| fields.push(format!("{}={}", text(name), text(value))))
                        .unwrap();
                }
            }
            assert_eq!(fields, [":status=200", "content-type=application/grpc", "grpc-status=0"]);
        }
        assert_eq!([lengths[2] == 2, lengths[3] == 1], sizes, "{lengths:?}");
    }
}

/// What a connection makes of bytes, in pieces: its events, how it ends, and what it writes.
fn outcome(pieces: &[&[u8]]) -> (Vec<String>, Option<Broken>, usize) {
    let mut connection = Connection::<u32>::new(10, Some(Pings::new(Duration::ZERO)));
    let (mut input, mut events, mut ended) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        input.extend_from_slice(piece);
        while ended.is_none() {
            match connection.receive(&mut input) {
                Ok(Some(event)) => {
                    events.push(format!("{event:?}"));
                    match event {
                        Event::Request { stream, .. } if stream % 3 == 0 => connection.begin_success(stream),
                        Event::Data { stream, bytes, .. } => {
                            connection.read(stream, bytes.len());
                            connection.begin_success(stream);
                            connection.send_last(stream, bytes);
                        }
                        Event::End { stream } => connection.finish(stream, End::Plain),
                        _ => {}
                    }
                    connection.pump();
                }
                Ok(None) => break,
                Err(broken) => ended = Some(broken),
            }
        }
    }
    (events, ended, connection.out.len())
}

proptest::proptest! {
    /// Frames of any kind, with any content, are taken or refused, and it does not matter how they are cut.
    #[test]
    fn any_frames_are_taken_or_refused(
        frames in proptest::collection::vec(
            (0_u8..11, proptest::prelude::any::<u8>(), 0_u32..8, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), 0..3),
            0..40,
        ),
        cuts in proptest::collection::vec(1_usize..200, 0..10),
    ) {
        let mut bytes = frame(SETTINGS, 0, 0, &[]);
        for (kind, flags, stream, content, lawful) in frames {
            bytes.extend(match lawful {
                0 => frame(kind, flags, stream, &content),
                1 => frame(HEADERS, END_HEADERS | (flags & END_STREAM), stream | 1, &head("/stream")),
                _ => frame(DATA, flags & END_STREAM, stream | 1, &content),
            });
        }
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        proptest::prop_assert_eq!(outcome(&pieces), outcome(&[&bytes]));
    }
}
