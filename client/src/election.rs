//! Elections. Source: etcd, `client/v3/concurrency/election.go`, with whose elections these are shared.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use proto::mvccpb::{Event, KeyValue, event::EventType};

use crate::{
    Client, Comparison, Error, Get, Op, Put, Result, Session, Txn, Watch, Watcher,
    queue::{self, Place},
    revision,
};

/// To lead. Dropping it resigns a little later; [`Leadership::resign`] tells when that is done.
#[derive(Debug)]
pub struct Leadership {
    place: Place,
}

impl Session {
    /// Waits to be the leader, and says `value` of it. When the returned future is dropped, the candidacy is withdrawn.
    ///
    /// # Errors
    /// [`Error::LeaseGone`] when the session ends meanwhile.
    pub async fn campaign(&self, name: &str, value: impl Into<Bytes>) -> Result<Leadership> {
        let value = value.into();
        let (place, found) = Place::take(self, name, value.clone()).await?;
        let leadership = Leadership { place };
        if found.is_some_and(|found| found.value != value) {
            leadership.proclaim(value).await?;
        }
        leadership.place.wait().await?;
        Ok(leadership)
    }
}

impl Leadership {
    /// The key that stands for it. Its value is what the leader proclaims.
    pub fn key(&self) -> &Bytes {
        &self.place.key
    }

    /// The revision at which the key was created. It grows from leader to leader.
    pub fn revision(&self) -> i64 {
        self.place.revision
    }

    /// Holds as long as this is the leader: for transactions that only the leader may make.
    pub fn is_leader(&self) -> Comparison {
        self.place.is_held()
    }

    /// Says something else to those who observe.
    ///
    /// # Errors
    /// [`Error::NotLeader`] when the leadership was lost.
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<()> {
        let session = self.place.session();
        let put = Put::new(self.place.key.clone(), value).lease(session.lease());
        let answer = session.client().txn(Txn::new().when(self.is_leader()).then(Op::put(put))).await?;
        if answer.succeeded { Ok(()) } else { Err(Error::NotLeader) }
    }

    /// Waits until the leadership is lost, because the session is over.
    pub async fn lost(&self) {
        self.place.session().over().await;
    }

    /// Lets another lead.
    pub async fn resign(self) -> Result<()> {
        self.place.leave().await
    }
}

impl Client {
    /// Who leads, and what the leader says. None: nobody.
    pub async fn leader(&self, name: &str) -> Result<Option<KeyValue>> {
        Ok(self.get(queue::first(name)).await?.kvs.into_iter().next())
    }

    /// Follows an election: first who leads now, then each leader, however short the time it leads, and each thing that
    /// it proclaims.
    pub async fn observe(&self, name: &str) -> Result<Observer> {
        let mut observer = Observer {
            client: self.clone(),
            name: name.to_string(),
            watcher: None,
            candidates: Candidates::default(),
            news: VecDeque::new(),
        };
        observer.begin().await?;
        Ok(observer)
    }
}

/// Sees each leader of an election, and what it says.
#[derive(Debug)]
pub struct Observer {
    client: Client,
    name: String,
    /// None: history was compacted, and the candidates are to be read again.
    watcher: Option<Watcher>,
    candidates: Candidates,
    /// What was not handed over yet.
    news: VecDeque<KeyValue>,
}

impl Observer {
    /// The next leader, or the next thing that the leader says. Waits as long as nobody leads. May be cancelled (dropped)
    /// without loss.
    pub async fn next(&mut self) -> Result<KeyValue> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            let Some(watcher) = &mut self.watcher else {
                self.begin().await?;
                continue;
            };
            match watcher.next().await {
                Ok(response) => {
                    let candidates = &mut self.candidates;
                    let mod_revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                    let revisions = response.events.chunk_by(|a, b| mod_revision(a) == mod_revision(b));
                    self.news.extend(revisions.filter_map(|changes| candidates.apply(changes)));
                }
                Err(Error::WatchCompacted { .. }) => self.watcher = None,
                Err(error) => return Err(error),
            }
        }
    }

    async fn begin(&mut self) -> Result<()> {
        let prefix = queue::prefix(&self.name);
        let answer = self.client.get(Get::prefix(prefix.clone())).await?;
        let from = revision(&answer.header) + 1;
        self.watcher = Some(self.client.watch(Watch::prefix(prefix).from_revision(from)).await?);
        self.news.extend(self.candidates.replace(answer.kvs));
        Ok(())
    }
}

/// Who is in the queue.
#[derive(Debug, Default)]
struct Candidates {
    by_age: BTreeMap<i64, KeyValue>,
    /// The mod revision of what was last said of the leader.
    told: i64,
}

impl Candidates {
    fn replace(&mut self, all: Vec<KeyValue>) -> Option<KeyValue> {
        self.by_age = all.into_iter().map(|kv| (kv.create_revision, kv)).collect();
        self.news()
    }

    /// All changes of one revision.
    fn apply(&mut self, changes: &[Event]) -> Option<KeyValue> {
        for change in changes {
            let Some(kv) = &change.kv else { continue };
            match change.r#type() {
                EventType::Put => {
                    self.by_age.insert(kv.create_revision, kv.clone());
                }
                EventType::Delete => self.by_age.retain(|_, candidate| candidate.key != kv.key),
            }
        }
        self.news()
    }

    /// The leader, unless it and what it says are known.
    fn news(&mut self) -> Option<KeyValue> {
        let leader = self.by_age.values().next()?;
        if leader.mod_revision == self.told {
            return None;
        }
        self.told = leader.mod_revision;
        Some(leader.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(r#type: EventType, key: &'static str, create_revision: i64, mod_revision: i64) -> Event {
        let kv = KeyValue { key: key.into(), create_revision, mod_revision, ..Default::default() };
        Event { r#type: r#type.into(), kv: Some(kv), prev_kv: None }
    }

    #[test]
    fn each_leader_is_news_once() {
        let mut candidates = Candidates::default();
        let mut apply = |changes: &[Event]| candidates.apply(changes).map(|kv| kv.key);
        assert_eq!(apply(&[change(EventType::Put, "a", 1, 1)]).unwrap(), "a");
        assert_eq!(apply(&[change(EventType::Put, "b", 2, 2)]), None, "it waits");
        assert_eq!(apply(&[change(EventType::Put, "b", 2, 3)]), None, "nobody listens to who waits");
        assert_eq!(apply(&[change(EventType::Put, "a", 1, 4)]).unwrap(), "a", "it says something else");
        assert_eq!(apply(&[change(EventType::Delete, "a", 0, 5)]).unwrap(), "b");
        assert_eq!(apply(&[change(EventType::Delete, "b", 0, 6)]), None);
        assert_eq!(apply(&[change(EventType::Put, "a", 7, 7)]).unwrap(), "a");
    }
}
