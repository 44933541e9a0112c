//! For the fuzzers in `jepsen/fuzz`: what reads text, messages and frames from clients, flags and files. Not part of
//! any build but theirs.

use std::path::Path;

use futures::StreamExt as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use crate::{
    checks,
    config::{self, Config},
    config_file, duration,
    flags::Flags,
    gateway, guard,
    identity::Identity,
    tls, urls, version,
};

/// Arguments and environment, one word or assignment to a line.
pub fn flags(text: &str) {
    let (arguments, environment) = text.split_once("\n\n").unwrap_or((text, ""));
    let environment = environment.lines().filter_map(|line| line.split_once('='));
    let environment = environment.map(|(name, value)| (name.to_string(), value.to_string()));
    if let Ok(flags) = Flags::read(arguments.lines().map(String::from), environment) {
        let _ = config::logging(&flags);
        let _ = Config::from_flags(&flags);
    }
}

pub fn config_file(path: &Path) {
    if let Ok(flags) = config_file::read(path.to_str().expect("the fuzzer's own path")) {
        let _ = Config::from_flags(&flags);
    }
}

/// Durations, URLs, members, versions.
pub fn texts(text: &str) {
    let _ = duration::parse(text);
    if let Ok(url) = urls::Url::parse(text) {
        assert_eq!(
            urls::Url::parse(url.as_str()).as_ref().ok(),
            Some(&url),
            "what a URL is written as is the same URL"
        );
        let _ = (url.bind_address(), url.check_reachable(), url.is_tls(), url.host().is_some());
    }
    let _ = urls::Url::parse_list(text);
    let _ = urls::parse_cluster(text);
    version::fuzzing(text);
}

pub fn identity(path: &Path) {
    if let Ok(Some(identity)) = Identity::read(path) {
        identity.write(path).expect("the folder is the fuzzer's");
        let again = Identity::read(path).expect("what was written is read").expect("it is there");
        assert_eq!((again.member, again.cluster, again.name), (identity.member, identity.cluster, identity.name));
    }
}

/// A body of one message, and the same as a stream of messages, for each kind of request.
pub fn json(data: &[u8]) {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("the descriptors are our own");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let Some((&kind, body)) = data.split_first() else { return };
    let requests: Vec<MessageDescriptor> =
        pool.all_messages().filter(|message| message.name().ends_with("Request")).collect();
    let descriptor = &requests[usize::from(kind) % requests.len()];
    runtime.block_on(async {
        let one = gateway::json::message(axum::body::Body::from(body.to_vec()), descriptor, 1 << 20).await;
        if let Ok(message) = one {
            assert_same(&message, descriptor).await;
        }
        let all = gateway::json::messages(axum::body::Body::from(body.to_vec()), descriptor.clone(), 1 << 20);
        let mut all = std::pin::pin!(all);
        while all.next().await.is_some() {}
    });
}

/// What is written as JSON is read as the same message. (A default that is given and one that is not are the same.)
async fn assert_same(message: &DynamicMessage, descriptor: &MessageDescriptor) {
    let text = |message: &DynamicMessage| {
        let mut text = Vec::new();
        gateway::json::encode(message, &mut text).expect("what was read can be written");
        text
    };
    let written = text(message);
    let again = gateway::json::message(axum::body::Body::from(written.clone()), descriptor, usize::MAX).await;
    assert_eq!(text(&again.expect("what was written can be read")), written);
}

/// Bytes of an HTTP/2 connection: how they are cut does not matter.
pub fn frames(data: &[u8], cuts: &[u8]) {
    let (mut rest, mut pieces) = (data, Vec::new());
    for cut in cuts {
        let (piece, behind) = rest.split_at(usize::from(*cut).min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces.push(rest);
    assert_eq!(guard::fuzzing(&[data]), guard::fuzzing(&pieces));
}

/// Files of certificates and of revoked ones.
pub fn certificates(path: &Path, data: &[u8]) {
    tls::fuzzing(path, data);
}

/// The checks of a request that need no state.
pub fn checks(data: &[u8]) {
    use prost::Message as _;
    use proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
    if let Ok(request) = RangeRequest::decode(data) {
        let _ = (checks::range(&request), checks::range_stream(&request));
    }
    if let Ok(request) = PutRequest::decode(data) {
        let _ = checks::put(&request);
    }
    if let Ok(request) = DeleteRangeRequest::decode(data) {
        let _ = checks::delete_range(&request);
    }
    if let Ok(request) = TxnRequest::decode(data) {
        let _ = checks::txn(&request, 128);
        let _ = (checks::is_read_only(&request), checks::is_serializable(&request), checks::ranges(&request).count());
    }
}
