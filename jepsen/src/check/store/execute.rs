//! Doing a request, and taking it back.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::{
    super::history::{
        Answer, Blob, Compare, CompareResult, CompareTarget, DeleteRange, KeyValue, Put, Range, Request, Txn, TxnOp,
        TxnResult,
    },
    Lease, Store, Version,
};

/// What a request led to.
#[derive(Debug)]
pub struct Executed {
    /// `None`: it is refused, and nothing has changed.
    pub answer: Option<Answer>,
    pub undo: Undo,
}

/// The way back to the state before a request.
#[derive(Debug)]
pub struct Undo {
    revision: i64,
    compacted: i64,
    fingerprint: u128,
    written: Vec<Blob>,
    lease: Option<(i64, Option<Lease>)>,
}

impl Undo {
    /// Goes back further: to this revision.
    pub fn back_to(&mut self, revision: i64) {
        self.revision = revision;
    }

    /// The keys that the request wrote or deleted.
    pub fn written(&self) -> &[Blob] {
        &self.written
    }
}

/// A request that a store refuses.
struct Refused;

impl Store {
    /// Does what a store does on this request when its next revision is this one. Requests without effect on keys and
    /// leases are refused.
    pub fn execute(&mut self, request: &Request, next_revision: i64) -> Executed {
        assert!(next_revision > self.revision, "revisions go up");
        let mut undo = Undo {
            revision: self.revision,
            compacted: self.compacted,
            fingerprint: self.fingerprint,
            written: Vec::new(),
            lease: None,
        };
        let answer = self.answer(request, next_revision, &mut undo);
        if answer.is_ok() && !undo.written.is_empty() {
            self.revision = next_revision;
        }
        let Ok(answer) = answer else {
            let written = std::mem::take(&mut undo.written);
            self.forget(&written);
            self.fingerprint = undo.fingerprint;
            return Executed { answer: None, undo };
        };
        Executed { answer: Some(answer), undo }
    }

    /// Lets other keys' writes pass, which this store knows nothing of.
    pub fn skip_to(&mut self, revision: i64) {
        assert!(revision >= self.revision, "revisions go up");
        self.revision = revision;
    }

    pub fn undo(&mut self, undo: Undo) {
        self.forget(&undo.written);
        self.revision = undo.revision;
        self.compacted = undo.compacted;
        self.fingerprint = undo.fingerprint;
        match undo.lease {
            Some((lease, Some(state))) => drop(self.leases.insert(lease, state)),
            Some((lease, None)) => drop(self.leases.remove(&lease)),
            None => {}
        }
    }

    fn forget(&mut self, written: &[Blob]) {
        for key in written {
            let versions = self.versions.get_mut(key).expect("a written key has versions");
            let version = versions.pop().expect("a written key has versions");
            self.log.remove(&(version.revision, key.clone()));
            if versions.is_empty() {
                self.versions.remove(key);
            }
        }
    }

    fn answer(&mut self, request: &Request, next: i64, undo: &mut Undo) -> Result<Answer, Refused> {
        match request {
            Request::As { request, .. } => self.answer(request, next, undo),
            Request::Put(put) => Ok(Answer::Put { prev_kv: self.put(put, next, undo)? }),
            Request::Range(range) => self.read(range, self.revision),
            Request::DeleteRange(delete) => {
                let (deleted, prev_kvs) = self.delete(delete, next, undo);
                Ok(Answer::DeleteRange { deleted, prev_kvs })
            }
            Request::Txn(txn) => {
                let (succeeded, results) = self.txn(txn, self.revision, next, undo)?;
                Ok(Answer::Txn { succeeded, results })
            }
            Request::Compact { revision } => {
                if *revision <= self.compacted || *revision > self.revision {
                    return Err(Refused);
                }
                self.compacted = *revision;
                self.fingerprint ^= fingerprint(&("compacted", undo.compacted)) ^ fingerprint(&("compacted", revision));
                Ok(Answer::Compact)
            }
            Request::LeaseGrant { lease, ttl_s } => {
                if self.leases.get(lease) == Some(&Lease::Granted) {
                    return Err(Refused);
                }
                self.set_lease(*lease, Lease::Granted, undo);
                Ok(Answer::LeaseGrant { lease: *lease, ttl_s: *ttl_s })
            }
            Request::LeaseRevoke { lease } => {
                if !matches!(self.leases.get(lease), Some(Lease::Granted | Lease::Possible)) {
                    return Err(Refused);
                }
                self.set_lease(*lease, Lease::Revoked, undo);
                for key in self.attached(*lease) {
                    self.write(key, None, next, undo);
                }
                Ok(Answer::LeaseRevoke)
            }
            _ => Err(Refused),
        }
    }

    fn attached(&self, lease: i64) -> Vec<Blob> {
        let holds = |versions: &[Version]| {
            versions.last().and_then(|newest| newest.kv.as_ref()).is_some_and(|kv| kv.lease == lease)
        };
        self.versions.iter().filter(|(_, versions)| holds(versions)).map(|(key, _)| key.clone()).collect()
    }

    fn set_lease(&mut self, lease: i64, state: Lease, undo: &mut Undo) {
        let before = self.leases.insert(lease, state);
        self.fingerprint ^= fingerprint(&("lease", lease, before.map(|state| state as u8)));
        self.fingerprint ^= fingerprint(&("lease", lease, Some(state as u8)));
        undo.lease = Some((lease, before));
    }

    fn write(&mut self, key: Blob, kv: Option<KeyValue>, revision: i64, undo: &mut Undo) {
        let told = kv.as_ref().map(|kv| (&kv.value, kv.create_revision, kv.version, kv.lease));
        self.fingerprint ^= fingerprint(&(&key, revision, told));
        undo.written.push(key.clone());
        self.log.insert((revision, key.clone()));
        self.versions.entry(key).or_default().push(Version { revision, kv });
    }

    fn newest(&self, key: &[u8]) -> Option<&KeyValue> {
        self.at(key, i64::MAX)
    }

    fn put(&mut self, put: &Put, revision: i64, undo: &mut Undo) -> Result<Option<KeyValue>, Refused> {
        let before = self.newest(&put.key);
        if (put.ignore_value || put.ignore_lease) && before.is_none() {
            return Err(Refused);
        }
        let lease = match before {
            Some(before) if put.ignore_lease => before.lease,
            _ => put.lease,
        };
        if lease != 0 && !matches!(self.leases.get(&lease), Some(Lease::Granted | Lease::Possible)) {
            return Err(Refused);
        }
        let kv = KeyValue {
            key: put.key.clone(),
            value: match before {
                Some(before) if put.ignore_value => before.value.clone(),
                _ => put.value.clone(),
            },
            create_revision: before.map_or(revision, |before| before.create_revision),
            mod_revision: revision,
            version: before.map_or(0, |before| before.version) + 1,
            lease,
        };
        let prev_kv = put.prev_kv.then(|| before.cloned()).flatten();
        self.write(put.key.clone(), Some(kv), revision, undo);
        Ok(prev_kv)
    }

    /// `newest`: what revision 0 means, which within a transaction is that of its writes so far.
    fn read(&self, range: &Range, newest: i64) -> Result<Answer, Refused> {
        if range.revision > self.revision || (range.revision > 0 && range.revision < self.compacted) {
            return Err(Refused);
        }
        Ok(self.read_at(range, newest))
    }

    fn delete(&mut self, delete: &DeleteRange, revision: i64, undo: &mut Undo) -> (i64, Vec<KeyValue>) {
        let deleted: Vec<KeyValue> = self.range(&delete.keys, i64::MAX).cloned().collect();
        for kv in &deleted {
            self.write(kv.key.clone(), None, revision, undo);
        }
        (deleted.len() as i64, if delete.prev_kv { deleted } else { Vec::new() })
    }

    /// All comparisons, nested ones too, are made with the state before the transaction.
    fn txn(&mut self, txn: &Txn, before: i64, next: i64, undo: &mut Undo) -> Result<(bool, Vec<TxnResult>), Refused> {
        let succeeded = txn.compares.iter().all(|compare| self.compare(compare, before));
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let mut results = Vec::with_capacity(branch.len());
        for op in branch {
            results.push(match op {
                TxnOp::Put(put) => TxnResult::Put { prev_kv: self.put(put, next, undo)? },
                TxnOp::Range(range) => match self.read(range, next)? {
                    Answer::Range { kvs, count, more } => TxnResult::Range { kvs, count, more },
                    _ => unreachable!("a range is answered with a range"),
                },
                TxnOp::DeleteRange(delete) => {
                    let (deleted, prev_kvs) = self.delete(delete, next, undo);
                    TxnResult::DeleteRange { deleted, prev_kvs }
                }
                TxnOp::Txn(txn) => {
                    let (succeeded, results) = self.txn(txn, before, next, undo)?;
                    TxnResult::Txn { succeeded, results }
                }
            });
        }
        Ok((succeeded, results))
    }

    fn compare(&self, compare: &Compare, revision: i64) -> bool {
        let mut kvs = self.range(&compare.keys, revision).peekable();
        if kvs.peek().is_none() {
            return holds(compare, None);
        }
        kvs.all(|kv| holds(compare, Some(kv)))
    }
}

/// A missing key has no value that anything could be compared with, and 0 for everything else.
fn holds(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    let number = |of: fn(&KeyValue) -> i64, with: &i64| kv.map_or(0, of).cmp(with);
    let ordering = match &compare.target {
        CompareTarget::Value(value) => match kv {
            Some(kv) => kv.value.cmp(value),
            None => return false,
        },
        CompareTarget::Version(version) => number(|kv| kv.version, version),
        CompareTarget::CreateRevision(revision) => number(|kv| kv.create_revision, revision),
        CompareTarget::ModRevision(revision) => number(|kv| kv.mod_revision, revision),
        CompareTarget::Lease(lease) => number(|kv| kv.lease, lease),
    };
    match compare.result {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::NotEqual => ordering.is_ne(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
    }
}

/// Two hashes of 64 bits with different beginnings: among 2^30 states, two that agree by chance are not to be
/// expected.
fn fingerprint(what: &impl std::hash::Hash) -> u128 {
    let half = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        what.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}
