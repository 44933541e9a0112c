//! Clients that do harm, on a small scale; `pintle-jepsen flood` does it on a large one.

mod member;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures::{StreamExt as _, future::join_all, stream};
use member::{Member, command, free_ports};
use proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use tonic::{Code, Request, metadata::AsciiMetadataValue, transport::Channel};
use tower::{Service as _, ServiceExt as _};

const MIB: usize = 1 << 20;

fn connect(member: &Member) -> Channel {
    Channel::from_shared(member.endpoint()).unwrap().connect_lazy()
}

fn put(key: &str, bytes: usize) -> PutRequest {
    PutRequest { key: key.to_string().into(), value: vec![b'x'; bytes].into(), ..Default::default() }
}

/// A call whose answer is left where it is.
async fn call(
    mut channel: Channel,
    path: &'static str,
    body: Body,
) -> Result<http::StatusCode, tonic::transport::Error> {
    let request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    let request = request.body(tonic::body::Body::new(body)).unwrap();
    let response = channel.ready().await?.call(request).await?;
    let status = response.status();
    // The answer's body is kept, and not read.
    std::mem::forget(response);
    Ok(status)
}

fn prefixed(length: usize, message: &[u8]) -> Bytes {
    [&[0][..], &u32::try_from(length).unwrap().to_be_bytes(), message].concat().into()
}

#[test]
fn a_client_that_pings_too_often_is_sent_away() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--grpc-keepalive-min-time=1h"]);
    let mut client = TcpStream::connect(("127.0.0.1", member.client)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.write_all(&[PREFACE, &SETTINGS].concat()).unwrap();
    for _ in 0..4 {
        client.write_all(&PING).unwrap();
    }
    let mut told = Vec::new();
    client.read_to_end(&mut told).unwrap();
    // GOAWAY with ENHANCE_YOUR_CALM and gRPC's text.
    let goaway = [&[0, 0, 22, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11][..], b"too_many_pings"].concat();
    assert!(told.ends_with(&goaway), "{told:?}");
    assert_eq!(member.get("/health").0, 200);
}

#[tokio::test]
async fn connections_leave_files_for_the_store() {
    const FILES: u64 = 400;
    let dir = tempfile::tempdir().unwrap();
    let [client, peer] = free_ports();
    let mut command = command(dir.path(), client, peer);
    // SAFETY: setrlimit may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: FILES, rlim_max: FILES };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let member = Member::start_command(dir.path(), client, peer, command);
    let mut kv = KvClient::new(connect(&member));
    kv.put(put("before", 1)).await.unwrap();
    let idle: Vec<TcpStream> = (0..FILES).map(|_| TcpStream::connect(("127.0.0.1", client)).unwrap()).collect();
    for i in 0..100 {
        kv.put(put(&format!("meanwhile/{i}"), 1000)).await.unwrap();
    }
    drop(idle);
    assert_eq!(member.get("/health").0, 200, "there is room again");
    assert_eq!(member.stop(), Some(0));
}

#[tokio::test]
async fn requests_that_never_end_keep_nobody_from_putting() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let mut kv = KvClient::new(connect(&member));
    let half = prefixed(MIB, &vec![b'x'; MIB / 2]);
    let clients: Vec<Channel> = (0..4).map(|_| connect(&member)).collect();
    let flood = (0..200).map(|i| {
        let body = stream::iter([Ok::<_, std::io::Error>(half.clone())]).chain(stream::pending());
        call(clients[i % clients.len()].clone(), "/etcdserverpb.KV/Put", Body::from_stream(body))
    });
    let flood = tokio::spawn(join_all(flood.collect::<Vec<_>>()));
    for i in 0..100 {
        kv.put(put(&format!("meanwhile/{i}"), 1000)).await.unwrap();
    }
    flood.abort();
    assert_eq!(member.get("/health").0, 200);
}

#[tokio::test]
async fn a_client_that_takes_no_answers_keeps_nobody_from_reading() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let mut kv = KvClient::new(connect(&member));
    for i in 0..16 {
        kv.put(put(&format!("large/{i}"), MIB)).await.unwrap();
    }
    let range = RangeRequest { key: "large/".into(), range_end: "large0".into(), ..Default::default() };
    let message = prost::Message::encode_to_vec(&range);
    let body = prefixed(message.len(), &message);
    let deaf = connect(&member);
    let flood = (0..200).map(|_| call(deaf.clone(), "/etcdserverpb.KV/Range", Body::from(body.clone())));
    let flood = tokio::spawn(join_all(flood.collect::<Vec<_>>()));
    let mut reader = KvClient::new(connect(&member)).max_decoding_message_size(usize::MAX);
    for _ in 0..5 {
        assert_eq!(reader.range(range.clone()).await.unwrap().into_inner().count, 16);
    }
    let resident = member.resident_bytes() / MIB;
    assert!(resident < 1500, "200 answers of 16 MiB are held: {resident} MiB");
    flood.abort();
}

#[tokio::test]
async fn large_headers_and_large_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let mut kv = KvClient::new(connect(&member));
    let mut request = Request::new(RangeRequest { key: "k".into(), ..Default::default() });
    request.metadata_mut().insert("huge", AsciiMetadataValue::try_from("x".repeat(MIB)).unwrap());
    assert!(kv.range(request).await.is_err());
    let status = kv.put(put("k", 4 * MIB)).await.unwrap_err();
    assert!(matches!(status.code(), Code::ResourceExhausted | Code::InvalidArgument), "{status:?}");
    kv.put(put("k", MIB)).await.unwrap();
}
