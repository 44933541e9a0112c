//! Whether the destination has what the source has.

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::{Failure, Mirror, POLL_INTERVAL, PROGRESS_KEY, Phase, Result, Way, copy::Pages, header, progress::hex};
use crate::{
    Client, Error, EtcdError, Get, Watch,
    mvccpb::{KeyValue, event::EventType},
    pb::HashKvResponse,
};

const FIRST: Bytes = Bytes::from_static(b"\0");

/// For what reads a whole store, which takes minutes where that is large. A connection that is dead is found by its pings.
const WHOLE_STORE_TIMEOUT: Duration = Duration::from_secs(3600);

const KEYS_COMPARED: &str = "SHA-256 of all keys, values and leases";

/// What was found when both stores were compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The source's revision, up to which both were compared.
    pub source_revision: i64,
    /// The destination's, which is the same where revisions are kept.
    pub destination_revision: i64,
    /// How many keys the source has.
    pub keys: i64,
    /// What the hashes are of.
    pub method: &'static str,
    /// As a number or in hexadecimal digits.
    pub source_hash: String,
    /// As `source_hash`.
    pub destination_hash: String,
    /// The first thing that differs.
    pub difference: Option<String>,
}

impl Verdict {
    /// Whether nothing was lost, added or changed.
    pub fn is_equal(&self) -> bool {
        self.difference.is_none() && self.source_hash == self.destination_hash
    }
}

/// A key's value, and everything else that is to be the same.
fn seen(kv: &KeyValue, with_revisions: bool) -> (&[u8], i64, [i64; 3]) {
    let revisions = if with_revisions { [kv.create_revision, kv.mod_revision, kv.version] } else { [0; 3] };
    (&kv.value, kv.lease, revisions)
}

impl Mirror {
    /// Compares both stores. The source's revision was `revision` when all of it was mirrored.
    pub(super) async fn verify(&self, way: &Way, revision: i64) -> Result<Verdict> {
        let (_, destination_revision) = self.to_destination(|| header(&self.destination)).await?;
        let keys = self.patient(|| count(&self.source, revision)).await?;
        let mut verdict = Verdict {
            source_revision: revision,
            destination_revision,
            keys,
            method: KEYS_COMPARED,
            source_hash: String::new(),
            destination_hash: String::new(),
            difference: None,
        };
        let with_revisions = matches!(way, Way::SameRevisions(_));
        let mut has_history = with_revisions;
        if with_revisions {
            self.status.send_modify(|status| status.phase = Phase::Hashing);
            let [source, destination] = self.hashes_kv(revision).await?;
            verdict.method = "HashKV, which is of all keys and their history";
            verdict.source_hash = source.hash.to_string();
            verdict.destination_hash = destination.hash.to_string();
            if verdict.is_equal() {
                return Ok(verdict);
            }
            // For the compacted revision itself etcd may tell the hash of before the compaction, and there are keys only.
            has_history = destination.compact_revision < revision;
        }
        let mut compared = Compared::default();
        let sides = [(&self.source, revision), (&self.destination, destination_revision)];
        self.compare(sides, with_revisions, &mut compared).await?;
        verdict.difference = compared.difference;
        if !has_history {
            verdict.method = KEYS_COMPARED;
            let [source, destination] = compared.hashes.map(|hash| hex(&hash.finalize()));
            verdict.source_hash = source;
            verdict.destination_hash = destination;
        }
        Ok(verdict)
    }

    /// Reads all keys of both, and hashes them.
    async fn compare(&self, sides: [(&Client, i64); 2], with_revisions: bool, compared: &mut Compared) -> Result<()> {
        let mut readers = sides.map(|(client, revision)| Reader {
            pages: Pages::new(client, revision, FIRST, FIRST),
            page: Vec::new().into_iter(),
        });
        let [source, destination] = &mut readers;
        let mut next = (self.read(source, true).await?, self.read(destination, false).await?);
        let mut keys = 0;
        loop {
            let (from_source, from_destination) = match next {
                (None, None) => return Ok(()),
                (Some(a), Some(b)) if a.key == b.key => (Some(a), Some(b)),
                (Some(a), Some(b)) if a.key > b.key => {
                    compared.see(None, Some(&b), with_revisions);
                    next = (Some(a), self.read(destination, false).await?);
                    continue;
                }
                (Some(a), b) => {
                    compared.see(Some(&a), None, with_revisions);
                    next = (self.read(source, true).await?, b);
                    continue;
                }
                (None, b) => (None, b),
            };
            compared.see(from_source.as_ref(), from_destination.as_ref(), with_revisions);
            keys += 1;
            if keys % 1000 == 0 {
                self.status.send_modify(|status| status.phase = Phase::Verifying { keys });
            }
            next = (self.read(source, true).await?, self.read(destination, false).await?);
        }
    }

    async fn read(&self, reader: &mut Reader, is_source: bool) -> Result<Option<KeyValue>> {
        loop {
            if let Some(kv) = reader.page.find(|kv| kv.key != PROGRESS_KEY) {
                return Ok(Some(kv));
            }
            if reader.pages.is_over {
                return Ok(None);
            }
            match reader.pages.next().await {
                Ok(page) => reader.page = page.into_iter(),
                Err(error) if is_source => self.wait_out(Failure::Source(error)).await?,
                Err(error) => self.wait_out(Failure::Destination(error)).await?,
            }
        }
    }

    /// HashKV of both, which is of what is not compacted: so the destination is compacted as the source is.
    async fn hashes_kv(&self, revision: i64) -> Result<[HashKvResponse; 2]> {
        let destination = self.destination.with_request_timeout(WHOLE_STORE_TIMEOUT);
        loop {
            let source = self.patient(|| hash_kv(&self.source, revision)).await?;
            let compacted = source.compact_revision;
            if compacted > 0 {
                match self.to_destination(|| destination.compact(compacted, true)).await {
                    Ok(_) | Err(Failure::Destination(Error::Etcd(EtcdError::Compacted))) => {}
                    Err(failure) => return Err(failure),
                }
            }
            let there = self.to_destination(|| hash_kv(&self.destination, revision)).await?;
            // Where the destination has compacted more, the source may do so meanwhile; else they differ.
            if there.compact_revision >= compacted {
                return Ok([source, there]);
            }
        }
    }

    /// What differs in the keys that were changed at the destination's revision, which is to be one of the source's.
    pub(super) async fn last_change_differs(&self, revision: i64) -> Result<Option<String>> {
        let at_source = || async { Ok((put_at(&self.source, revision).await?, count(&self.source, revision).await?)) };
        let (at_source, source_count) = match self.patient(at_source).await {
            Err(Failure::Source(Error::Etcd(EtcdError::Compacted) | Error::WatchCompacted { .. })) => {
                return Err(Failure::Refused(format!(
                    "--keep-revisions: the source has compacted revision {revision}, which the destination has; import a \
                     new snapshot"
                )));
            }
            answer => answer?,
        };
        let there = self.to_destination(|| put_at(&self.destination, revision)).await?;
        let there_count = self.to_destination(|| count(&self.destination, revision)).await?;
        Ok(if source_count != there_count {
            Some(format!("the source had {source_count} keys, the destination has {there_count}"))
        } else if at_source != there {
            Some("other keys were changed then".to_string())
        } else {
            None
        })
    }
}

/// How many keys there were.
async fn count(client: &Client, revision: i64) -> crate::Result<i64> {
    let client = client.with_request_timeout(WHOLE_STORE_TIMEOUT);
    Ok(client.get(Get::all().revision(revision).count_only()).await?.count)
}

/// What was put at this revision, in the order of keys.
///
/// A watch tells it at once, whereas etcd reads the values of all keys into its memory for a list by revisions. Only where
/// nothing is left of the newest revision, since it was a deletion and is compacted, a watch has nothing to tell.
async fn put_at(client: &Client, revision: i64) -> crate::Result<Vec<KeyValue>> {
    let mut watcher = client.watch(Watch::all().from_revision(revision).on_its_own_stream()).await?;
    let events = loop {
        // etcd leaves it unanswered while the watch is behind.
        watcher.request_progress();
        if let Ok(response) = timeout(POLL_INTERVAL, watcher.next()).await {
            break response?.events;
        }
    };
    if events.is_empty() {
        let put_then = Get::all().revision(revision).min_mod_revision(revision);
        return Ok(client.with_request_timeout(WHOLE_STORE_TIMEOUT).get(put_then).await?.kvs);
    }
    let put = events.into_iter().filter(|event| event.r#type() == EventType::Put).filter_map(|event| event.kv);
    let mut put: Vec<KeyValue> = put.filter(|kv| kv.mod_revision == revision).collect();
    put.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(put)
}

struct Reader {
    pages: Pages,
    page: std::vec::IntoIter<KeyValue>,
}

#[derive(Default)]
struct Compared {
    hashes: [Sha256; 2],
    difference: Option<String>,
}

impl Compared {
    fn see(&mut self, source: Option<&KeyValue>, destination: Option<&KeyValue>, with_revisions: bool) {
        for (hash, kv) in self.hashes.iter_mut().zip([source, destination]) {
            let Some(kv) = kv else { continue };
            let (value, lease, _) = seen(kv, false);
            for part in [&kv.key[..], value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
            hash.update(lease.to_be_bytes());
        }
        let what = match (source, destination) {
            (Some(_), None) => "only the source has it",
            (None, Some(_)) => "only the destination has it",
            (Some(a), Some(b)) if a.value != b.value => "the values differ",
            (Some(a), Some(b)) if a.lease != b.lease => "the leases differ",
            (Some(a), Some(b)) if seen(a, with_revisions) != seen(b, with_revisions) => "the revisions differ",
            _ => return,
        };
        let key = source.or(destination).map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).unwrap_or_default();
        self.difference.get_or_insert_with(|| format!("key {key:?}: {what}"));
    }
}

/// Of the first member that answers, which must have all up to the revision.
async fn hash_kv(client: &Client, revision: i64) -> crate::Result<HashKvResponse> {
    let mut last = Error::Timeout;
    for endpoint in client.endpoints() {
        let member = client.at(&endpoint)?;
        let hash = async {
            // A linearizable read ends when the member has caught up.
            header(&member).await?;
            member.with_request_timeout(WHOLE_STORE_TIMEOUT).hash_kv(&endpoint, revision).await
        };
        match hash.await {
            Ok(hash) => return Ok(hash),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::{
        rt::{TokioExecutor, TokioIo},
        server::conn::auto,
        service::TowerToHyperService,
    };
    use tokio::{net::TcpListener, time::sleep};
    use tonic::body::Body;

    use super::*;
    use crate::Options;

    const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

    /// A message without a field that is not zero, behind the length that gRPC puts before it. Hashes come late.
    async fn answer<B>(request: Request<B>) -> std::result::Result<Response<Body>, Infallible> {
        if request.uri().path().ends_with("/HashKV") {
            // A delay: a member that takes longer than a request may is what the test is about.
            sleep(REQUEST_TIMEOUT * 3 / 2).await;
        }
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
        Ok(Response::builder().header("content-type", "application/grpc").body(Body::new(body)).unwrap())
    }

    #[tokio::test]
    async fn the_hash_of_a_large_store_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (connection, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(tower::service_fn(answer));
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(connection), service).await
        });
        let options = Options { request_timeout: REQUEST_TIMEOUT, ..Options::default() };
        let client = Client::with_options([url], options).unwrap();
        assert_eq!(hash_kv(&client, 1).await.unwrap(), HashKvResponse::default());
        server.abort();
    }
}
