//! Counters of RPCs, one set for each method that there is: a path that belongs to none counts nowhere, so that clients
//! cannot make series. All begin at zero, as etcd's do.
//! Source: etcd, `server/etcdserver/api/v3rpc/{metrics,grpc}.go`, and the Prometheus middleware that it uses.

use std::{collections::HashMap, sync::Arc};

use prometheus::{DEFAULT_BUCKETS, Error, Histogram, IntCounter, IntCounterVec};
use prost_reflect::DescriptorPool;
use tonic::{Code, Status};

use super::families::Families;

/// Services that are no client's.
const OURS: &str = "pintle.";

/// In the order of their numbers, as Go prints them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The counters of one method.
pub struct Method {
    pub path: String,
    pub is_unary: bool,
    pub started: IntCounter,
    pub received: IntCounter,
    pub sent: IntCounter,
    /// Of all methods together.
    pub received_bytes: IntCounter,
    pub sent_bytes: IntCounter,
    handled: Vec<IntCounter>,
    /// Seconds; with `--metrics=extensive`.
    pub handling: Option<Histogram>,
}

impl Method {
    pub fn handled(&self, code: Code) -> &IntCounter {
        &self.handled[code as usize]
    }
}

pub struct RpcMetrics {
    /// By path.
    methods: HashMap<String, Arc<Method>>,
    requests: IntCounterVec,
    stream_failures: IntCounterVec,
}

impl RpcMetrics {
    pub fn new(make: &Families<'_>, is_extensive: bool) -> Result<RpcMetrics, Error> {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let with_code = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let started = make.counters("grpc_server_started_total", "RPCs begun.", &labels)?;
        let handled = make.counters("grpc_server_handled_total", "RPCs ended, by code.", &with_code)?;
        let received = make.counters("grpc_server_msg_received_total", "Messages received from clients.", &labels)?;
        let sent = make.counters("grpc_server_msg_sent_total", "Messages sent to clients.", &labels)?;
        let handling = match is_extensive {
            true => Some(make.histograms(
                "grpc_server_handling_seconds",
                "How long RPCs took.",
                &labels,
                DEFAULT_BUCKETS.to_vec(),
            )?),
            false => None,
        };
        let received_bytes =
            make.counter("etcd_network_client_grpc_received_bytes_total", "Bytes of messages from clients.")?;
        let sent_bytes = make.counter("etcd_network_client_grpc_sent_bytes_total", "Bytes of messages to clients.")?;
        let mut methods = HashMap::new();
        for set in [proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET] {
            let pool = DescriptorPool::decode(set).map_err(|error| Error::Msg(error.to_string()))?;
            for service in pool.services().filter(|service| !service.full_name().starts_with(OURS)) {
                for method in service.methods() {
                    let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
                        (false, false) => "unary",
                        (true, false) => "client_stream",
                        (false, true) => "server_stream",
                        (true, true) => "bidi_stream",
                    };
                    let labels = [kind, service.full_name(), method.name()];
                    let of_code =
                        |code: &&str| handled.with_label_values(&[kind, service.full_name(), method.name(), code]);
                    let path = format!("/{}/{}", service.full_name(), method.name());
                    let counters = Method {
                        path: path.clone(),
                        is_unary: kind == "unary",
                        started: started.with_label_values(&labels),
                        received: received.with_label_values(&labels),
                        sent: sent.with_label_values(&labels),
                        received_bytes: received_bytes.clone(),
                        sent_bytes: sent_bytes.clone(),
                        handled: CODES.iter().map(of_code).collect(),
                        handling: handling.as_ref().map(|handling| handling.with_label_values(&labels)),
                    };
                    methods.insert(path, Arc::new(counters));
                }
            }
        }
        Ok(RpcMetrics {
            methods,
            requests: make.counters(
                "etcd_server_client_requests_total",
                "Calls by the version that the client names.",
                &["type", "client_api_version"],
            )?,
            stream_failures: make.counters(
                "etcd_network_server_stream_failures_total",
                "Streams that broke, other than by the client's leave.",
                &["Type", "API"],
            )?,
        })
    }

    /// Counts a stream of `api` (`watch`, `lease-keepalive`) from which no request could be received.
    pub fn receive_failed(&self, api: &str, status: &Status) {
        if status.code() != Code::Cancelled {
            self.stream_failures.with_label_values(&["receive", api]).inc();
        }
    }

    /// None where the path is none of an RPC.
    pub fn method(&self, path: &str) -> Option<Arc<Method>> {
        self.methods.get(path).cloned()
    }

    /// Counts the calls of clients that say they are of this version, such as `3.7`.
    pub fn clients(&self, is_unary: bool, version: Option<&str>) -> IntCounter {
        // What is no version would make a series of its own each time.
        let is_version = |text: &&str| text.len() <= 16 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let version = version.filter(is_version).unwrap_or("unknown");
        self.requests.with_label_values(&[if is_unary { "unary" } else { "stream" }, version])
    }
}
