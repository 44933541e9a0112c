//! What clients ask of the past: reads at older revisions, and watches that begin there.

use std::time::Duration;

use bytes::Bytes;
use proto::{
    EtcdError,
    etcdserverpb::{
        RangeRequest, RangeResponse, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient,
        request_op::Request as Op, response_op::Response as OpResponse, watch_client::WatchClient,
        watch_create_request::FilterType, watch_request::RequestUnion,
    },
    mvccpb::Event,
};
use rand::Rng as _;
use tokio::time::timeout;
use tonic::Status;

use super::{
    super::oracle::{Claim, Version, Wanted},
    ALL, CALL_LIMIT, Client, Told, revision_of,
};

/// So far back the past is asked for.
const REACH: i64 = 60;
/// A watch in the past that is told nothing for so long has been told all.
const SILENCE: Duration = Duration::from_secs(3);

impl Client {
    fn past_revision(&mut self) -> i64 {
        let newest = self.world.oracle().frontier();
        self.rng.random_range((newest - REACH).max(1)..=newest)
    }

    /// All keys as they were, by themselves or in a transaction.
    pub(super) async fn read_past(&mut self) {
        let Some((member, channel)) = self.channel() else { return };
        let at = self.past_revision();
        let floor = self.world.oracle().floor();
        let compacted = self.world.oracle().compacted();
        let (from, to) = (Bytes::from_static(b"k"), Bytes::from_static(b"l"));
        let range = RangeRequest { key: from.clone(), range_end: to.clone(), revision: at, ..Default::default() };
        let what = self.name(&format!("get all at {at}"), member);
        let mut kv = KvClient::new(channel);
        let in_txn = self.rng.random_ratio(1, 3);
        let told = match in_txn {
            false => self.told(kv.range(range), &what).await,
            true => {
                let success = vec![RequestOp { request: Some(Op::RequestRange(range)) }];
                let call = async {
                    let answer = kv.txn(TxnRequest { success, ..Default::default() }).await?.into_inner();
                    let range = answer.responses.into_iter().find_map(|op| match op.response {
                        Some(OpResponse::ResponseRange(range)) => Some(range),
                        _ => None,
                    });
                    let kvs = range.map(|range| range.kvs).unwrap_or_default();
                    Ok(tonic::Response::new(RangeResponse { header: answer.header, kvs, ..Default::default() }))
                };
                self.told(call, &what).await
            }
        };
        let checked = match told {
            Told::Answer(_) if at < compacted => Err(format!("{what}: answered, though compacted at {compacted}")),
            Told::Answer(answer) => {
                let keys = answer.kvs.iter().map(|kv| (kv.key.clone(), Version::of(kv))).collect();
                let mut oracle = self.world.oracle();
                self.world.mark("reads of the past");
                let ordered = oracle.told(revision_of(answer.header.as_ref()), floor, false, &what);
                ordered.and_then(|()| oracle.claim(at, Claim::Holds { from, to, keys }, what))
            }
            Told::Refused(status) if is(&status, EtcdError::Compacted) => {
                self.world.oracle().refused_as_compacted(at, &what)
            }
            Told::Refused(status) if is(&status, EtcdError::FutureRev) => {
                Err(format!("{what}: refused as a revision that is still to come"))
            }
            Told::Refused(_) | Told::Unknown => Ok(()),
        };
        self.world.check(checked);
    }

    /// Watches from an older revision on, until it has been told what is known now.
    pub(super) async fn watch_past(&mut self) {
        let Some((member, channel)) = self.channel() else { return };
        let (from, target) = (self.past_revision(), self.world.oracle().frontier());
        let wanted = Wanted {
            from,
            key: self.rng.random::<bool>().then(|| self.key()),
            puts: self.rng.random_ratio(4, 5),
            deletes: self.rng.random_ratio(4, 5),
        };
        let what = self.name(&format!("watch {wanted:?}"), member);
        let call = watch(channel, create(&wanted, self.rng.random()), target);
        let checked = match timeout(CALL_LIMIT, call).await {
            Ok(Ok(Seen::Events(events))) => {
                self.world.mark("watches of the past");
                self.world.trace(format_args!("{what}: {} events", events.len()));
                self.world.oracle().told_past(&wanted, &events, &what)
            }
            Ok(Ok(Seen::Compacted)) => self.world.oracle().refused_as_compacted(from, &what),
            Ok(Err(_)) | Err(_) => Ok(()),
        };
        self.world.check(checked);
    }
}

fn is(status: &Status, error: EtcdError) -> bool {
    EtcdError::from_message(status.message()) == Some(error)
}

fn create(wanted: &Wanted, prev_kv: bool) -> WatchCreateRequest {
    let filters = [(wanted.puts, FilterType::Noput), (wanted.deletes, FilterType::Nodelete)];
    let (key, range_end) = match &wanted.key {
        Some(key) => (key.clone(), Bytes::new()),
        None => (Bytes::from_static(ALL.0), Bytes::from_static(ALL.1)),
    };
    WatchCreateRequest {
        key,
        range_end,
        start_revision: wanted.from,
        prev_kv,
        filters: filters.into_iter().filter(|(is_wanted, _)| !is_wanted).map(|(_, filter)| filter.into()).collect(),
        ..Default::default()
    }
}

enum Seen {
    Events(Vec<Event>),
    Compacted,
}

async fn watch(channel: raft::PeerChannel, create: WatchCreateRequest, target: i64) -> Result<Seen, Status> {
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::StreamExt::chain(futures::stream::iter([create]), futures::stream::pending());
    let mut answers = WatchClient::new(channel).watch(requests).await?.into_inner();
    let mut events: Vec<Event> = Vec::new();
    while let Ok(answer) = timeout(SILENCE, answers.message()).await {
        let Some(answer) = answer? else { break };
        if answer.compact_revision > 0 {
            return Ok(Seen::Compacted);
        }
        events.extend(answer.events);
        if events.last().and_then(|event| event.kv.as_ref()).is_some_and(|kv| kv.mod_revision >= target) {
            break;
        }
    }
    Ok(Seen::Events(events))
}
