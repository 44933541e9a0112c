//! The floods.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use axum::body::{Body, Bytes};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use proto::etcdserverpb::{
    PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Request, metadata::AsciiMetadataValue, transport::Channel};
use tower::{Service as _, ServiceExt as _};

use crate::process::{Node, channel};

const MIB: usize = 1 << 20;
/// How long a flood stands once it has been made: a delay, so that its memory and its neighbour can be looked at.
const STAND: Duration = Duration::from_secs(5);
/// Requests of a flood that are under way at once, where nothing else is said.
const AT_ONCE: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    IdleWatches,
    IdleConnections,
    DeafWatchers,
    DeafReaders,
    HugeHeaders,
    HugeRequests,
    LargePuts,
    SlowClients,
    UnfinishedPuts,
}

/// What there was of a flood.
pub struct Flooded {
    count: usize,
    of: &'static str,
    more: String,
}

impl Flooded {
    pub fn note(&self, bytes: u64) -> String {
        let each = bytes / 1024 / self.count.max(1) as u64;
        format!("{} {} ({each} KiB each){}", self.count, self.of, self.more)
    }
}

fn flooded(count: usize, of: &'static str) -> Result<Flooded> {
    Ok(Flooded { count, of, more: String::new() })
}

impl Case {
    pub const ALL: [Case; 9] = [
        Case::IdleWatches,
        Case::IdleConnections,
        Case::DeafWatchers,
        Case::DeafReaders,
        Case::HugeHeaders,
        Case::HugeRequests,
        Case::LargePuts,
        Case::SlowClients,
        Case::UnfinishedPuts,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Case::IdleWatches => "idle-watches",
            Case::IdleConnections => "idle-connections",
            Case::DeafWatchers => "deaf-watchers",
            Case::DeafReaders => "deaf-readers",
            Case::HugeHeaders => "huge-headers",
            Case::HugeRequests => "huge-requests",
            Case::LargePuts => "large-puts",
            Case::SlowClients => "slow-clients",
            Case::UnfinishedPuts => "unfinished-puts",
        }
    }

    /// Puts what the flood reads.
    pub async fn prepare(self, node: &Node) -> Result<()> {
        if self == Case::DeafReaders {
            let mut kv = KvClient::new(node.channel());
            for i in 0..16 {
                kv.put(put(format!("large/{i}"), MIB)).await?;
            }
        }
        Ok(())
    }

    /// `smaller` divides the numbers.
    pub async fn flood(self, node: &Node, smaller: usize) -> Result<Flooded> {
        match self {
            Case::IdleWatches => idle_watches(node, 10_000 / smaller).await,
            Case::IdleConnections => idle_connections(node, 5_000 / smaller).await,
            Case::DeafWatchers => deaf_watchers(node, 50, 512 / smaller).await,
            Case::DeafReaders => deaf_readers(node, 500 / smaller).await,
            Case::HugeHeaders => huge_headers(node, 200 / smaller).await,
            Case::HugeRequests => huge_requests(node, 500 / smaller).await,
            Case::LargePuts => large_puts(node, 1_000 / smaller).await,
            Case::SlowClients => slow_clients(node, 1_000 / smaller).await,
            Case::UnfinishedPuts => unfinished_puts(node, 2_000 / smaller).await,
        }
    }
}

fn put(key: String, bytes: usize) -> PutRequest {
    PutRequest { key: key.into(), value: vec![b'x'; bytes].into(), ..Default::default() }
}

fn clients(node: &Node, count: usize) -> Vec<Channel> {
    (0..count).map(|_| channel(&node.endpoint())).collect()
}

async fn watch(channel: Channel, key: String) -> Result<tonic::Streaming<proto::etcdserverpb::WatchResponse>> {
    let create = WatchCreateRequest { key: key.into(), ..Default::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = stream::iter([request]).chain(stream::pending());
    let mut answers = WatchClient::new(channel).watch(requests).await?.into_inner();
    ensure!(answers.message().await?.context("the stream has ended")?.created, "the watch is not created");
    Ok(answers)
}

/// Each watch has a stream of its own, over a few connections.
async fn idle_watches(node: &Node, count: usize) -> Result<Flooded> {
    let clients = clients(node, 4);
    let made = stream::iter(0..count).map(|i| watch(clients[i % clients.len()].clone(), format!("idle/{i}")));
    let watches: Vec<_> = made.buffer_unordered(AT_ONCE).try_collect().await?;
    // A delay: what stands idle costs the node something for as long as it stands, and nothing tells of that.
    tokio::time::sleep(STAND).await;
    flooded(watches.len(), "watch streams")
}

async fn connect(node: &Node) -> Result<TcpStream> {
    Ok(TcpStream::connect(node.endpoint().trim_start_matches("http://")).await?)
}

async fn idle_connections(node: &Node, count: usize) -> Result<Flooded> {
    let made = stream::iter(0..count).map(|_| connect(node));
    let idle: Vec<_> = made.buffer_unordered(AT_ONCE).try_collect().await?;
    // A delay: what stands idle costs the node something for as long as it stands, and nothing tells of that.
    tokio::time::sleep(STAND).await;
    flooded(idle.len(), "connections")
}

/// Watchers that take none of the events of large puts.
async fn deaf_watchers(node: &Node, count: usize, puts: usize) -> Result<Flooded> {
    let clients = clients(node, count);
    let made = stream::iter(&clients).map(|client| watch(client.clone(), "events/1".into()));
    let watches: Vec<_> = made.buffer_unordered(AT_ONCE).try_collect().await?;
    let mut kv = KvClient::new(node.channel());
    for _ in 0..puts {
        kv.put(put("events/1".into(), MIB)).await?;
    }
    // A delay: what nobody takes grows on the node for a while, and its memory is looked at meanwhile.
    tokio::time::sleep(STAND).await;
    drop(watches);
    Ok(Flooded { count, of: "watchers", more: format!(", {puts} events of 1 MiB") })
}

/// A call whose answer's body is left where it is.
async fn call(mut channel: Channel, path: &'static str, body: Body) -> Result<http::Response<tonic::body::Body>> {
    let request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    Ok(channel.ready().await?.call(request.body(tonic::body::Body::new(body))?).await?)
}

/// The five bytes before a message.
fn prefix(bytes: usize) -> Vec<u8> {
    let length = u32::try_from(bytes).expect("a message of a few MiB");
    [&[0][..], &length.to_be_bytes()].concat()
}

/// Asks for 16 MiB each time, over one connection whose window is soon full, and takes nothing.
async fn deaf_readers(node: &Node, count: usize) -> Result<Flooded> {
    let range = RangeRequest { key: "large/".into(), range_end: "large0".into(), ..Default::default() };
    let message = prost::Message::encode_to_vec(&range);
    let body = Bytes::from([prefix(message.len()), message].concat());
    let client = node.channel();
    let calls = (0..count).map(|_| call(client.clone(), "/etcdserverpb.KV/Range", Body::from(body.clone())));
    let calls = futures::future::join_all(calls);
    // What is not answered stays so: the answers wait for a client that takes none.
    let begun = tokio::time::timeout(4 * STAND, calls).await.is_ok();
    Ok(Flooded { count, of: "reads of 16 MiB", more: format!(", all begun: {begun}") })
}

async fn huge_headers(node: &Node, count: usize) -> Result<Flooded> {
    let huge = AsciiMetadataValue::try_from("x".repeat(MIB)).context("a header value")?;
    let calls = stream::iter(clients(node, count)).map(|client| {
        let mut request = Request::new(RangeRequest { key: "k".into(), ..Default::default() });
        request.metadata_mut().insert("huge", huge.clone());
        async move { KvClient::new(client).range(request).await.is_err() }
    });
    let refused = calls.buffer_unordered(AT_ONCE).filter(|refused| std::future::ready(*refused)).count().await;
    Ok(Flooded { count, of: "calls", more: format!(", {refused} refused") })
}

async fn huge_requests(node: &Node, count: usize) -> Result<Flooded> {
    let clients = clients(node, 8);
    let calls = stream::iter(0..count).map(|i| {
        let mut kv = KvClient::new(clients[i % clients.len()].clone());
        async move { kv.put(put(format!("huge/{i}"), 4 * MIB)).await.map_err(|status| status.code()) }
    });
    let codes: Vec<_> = calls.buffer_unordered(AT_ONCE).collect().await;
    let refused = codes.iter().filter(|code| matches!(code, Err(Code::ResourceExhausted | Code::InvalidArgument)));
    let refused = refused.count();
    Ok(Flooded { count, of: "puts of 4 MiB", more: format!(", {refused} refused as too large") })
}

/// All at once.
async fn large_puts(node: &Node, count: usize) -> Result<Flooded> {
    let clients = clients(node, 10);
    let begin = Instant::now();
    let calls = stream::iter(0..count).map(|i| {
        let mut kv = KvClient::new(clients[i % clients.len()].clone());
        async move { kv.put(put(format!("large/{}", i % 100), MIB)).await }
    });
    let done = calls.buffer_unordered(count.max(1)).filter(|done| std::future::ready(done.is_ok())).count().await;
    let took = begin.elapsed().as_secs_f64();
    Ok(Flooded { count, of: "puts of 1 MiB", more: format!(", {done} done, in {took:.1} s") })
}

/// Sends a request one byte a second, and counts how many have been cut off.
async fn slow_clients(node: &Node, count: usize) -> Result<Flooded> {
    const SENDS: u64 = 40;
    let begins = [
        &b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"[..],
        b"PRI * HTTP/2.0\r\n",
    ];
    let slow = stream::iter(0..count).map(|i| async move {
        let mut stream = connect(node).await?;
        for byte in begins[i % begins.len()].iter().chain(std::iter::repeat(&b'a')).take(SENDS as usize) {
            if i % begins.len() == 0 && stream.write_all(&[*byte]).await.is_err() {
                return Ok(true);
            }
            let mut answer = [0; 64];
            let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                return Ok(true);
            }
        }
        anyhow::Ok(false)
    });
    let cut: Vec<bool> = slow.buffer_unordered(count.max(1)).try_collect().await?;
    let cut = cut.iter().filter(|cut| **cut).count();
    Ok(Flooded { count, of: "slow clients", more: format!(", {cut} cut off within {SENDS} s") })
}

/// Begins puts of 1 MiB and leaves out the second half of each.
async fn unfinished_puts(node: &Node, count: usize) -> Result<Flooded> {
    let clients = clients(node, count.div_ceil(100));
    let half = Bytes::from([prefix(MIB), vec![b'x'; MIB / 2]].concat());
    let calls = (0..count).map(|i| {
        let first = stream::iter([Ok::<_, std::io::Error>(half.clone())]);
        let body = Body::from_stream(first.chain(stream::pending()));
        call(clients[i % clients.len()].clone(), "/etcdserverpb.KV/Put", body)
    });
    let calls = futures::future::join_all(calls);
    let ended = tokio::time::timeout(3 * STAND, calls).await.is_ok();
    Ok(Flooded { count, of: "halves of 1 MiB puts", more: format!(", all ended: {ended}") })
}
