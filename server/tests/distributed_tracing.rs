//! Spans reach a collector.

mod member;

use std::time::Duration;

use member::{Member, free_ports};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
};
use proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, transport::Channel};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const PATIENCE: Duration = Duration::from_secs(30);

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_a_span_of_the_trace_that_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let [port] = free_ports();
    let (sender, mut exported) = mpsc::channel(16);
    let collector = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(collector.serve(([127, 0, 0, 1], port).into()));
    let member = Member::start(
        dir.path(),
        &[
            "--enable-distributed-tracing",
            &format!("--distributed-tracing-address=127.0.0.1:{port}"),
            "--distributed-tracing-service-name=of-a-test",
            "--distributed-tracing-instance-id=one",
        ],
    );
    let channel = Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap();
    let mut kv = KvClient::new(channel);
    // In no trace: with a rate of 0 it is not sampled.
    kv.range(RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    let mut put = Request::new(PutRequest { key: "a".into(), ..Default::default() });
    put.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    kv.put(put).await.unwrap();
    // The last spans go out before the process ends.
    assert_eq!(tokio::task::spawn_blocking(|| member.stop()).await.unwrap(), Some(0));

    let request = tokio::time::timeout(PATIENCE, exported.recv()).await.unwrap().unwrap();
    let spans = &request.resource_spans[0];
    let resource = &spans.resource.as_ref().unwrap().attributes;
    assert_eq!(attribute(resource, "service.name"), Some(Value::StringValue("of-a-test".into())));
    assert_eq!(attribute(resource, "service.instance.id"), Some(Value::StringValue("one".into())));
    let spans = &spans.scope_spans[0].spans;
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_eq!(spans[0].name, "etcdserverpb.KV/Put");
    assert_eq!((hex(&spans[0].trace_id).as_str(), hex(&spans[0].parent_span_id).as_str()), (TRACE, PARENT));
    assert_eq!(attribute(&spans[0].attributes, "rpc.method"), Some(Value::StringValue("Put".into())));
    assert_eq!(attribute(&spans[0].attributes, "rpc.grpc.status_code"), Some(Value::IntValue(0)));
}
