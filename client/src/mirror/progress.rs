//! How far a mirror is, written in the destination together with what it speaks of.
//!
//! Each transaction has the condition that the record is as this mirror wrote it last, by its mod revision, and changes
//! it. One that is sent twice because nobody knew what became of it is therefore carried out once, however late the first
//! comes to be; and of two mirrors with the same destination one finds that it is not alone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Failure, Mirror, Result};
use crate::{
    Client, Compare, Delete, Get, Op, Put, Txn,
    pb::{TxnResponse, response_op::Response},
};

/// The key in the destination that holds a mirror's progress. It goes with the cut-over.
pub const PROGRESS_KEY: &[u8] = b"\0pintle-mirror";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// The source's cluster id: another cluster's revisions mean nothing here.
    source_cluster: u64,
    /// The revision of the source that the destination has, or is being given.
    pub revision: i64,
    /// While keys are being copied: the last key that was, in hexadecimal digits.
    copied_up_to: Option<String>,
    /// How often keys of leases were put back, so that each change makes another record.
    restored: u64,
    /// How often a mirror has begun, for the same reason.
    #[serde(default)]
    begun: u64,
}

impl Progress {
    /// Whether the destination has all of the revision.
    pub fn is_copied(&self) -> bool {
        self.revision > 0 && self.copied_up_to.is_none()
    }

    pub fn copying(&self, revision: i64, up_to: &[u8]) -> Progress {
        Progress { revision, copied_up_to: Some(hex(up_to)), ..self.clone() }
    }

    pub fn at(&self, revision: i64) -> Progress {
        Progress { revision, copied_up_to: None, ..self.clone() }
    }

    pub fn restored(&self) -> Progress {
        Progress { restored: self.restored + 1, ..self.clone() }
    }

    pub fn taken_over(&self) -> Progress {
        Progress { begun: self.begun + 1, ..self.clone() }
    }

    /// The last key that was copied, while keys are being copied.
    pub fn copied_up_to(&self) -> Option<Vec<u8>> {
        self.copied_up_to.as_deref().and_then(unhex)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// The progress as it stands in the destination.
#[derive(Debug)]
pub(super) struct Record {
    pub progress: Progress,
    /// 0: it is not there yet.
    mod_revision: i64,
}

impl Record {
    pub fn new(source_cluster: u64) -> Record {
        let progress = Progress { source_cluster, revision: 0, copied_up_to: None, restored: 0, begun: 0 };
        Record { progress, mod_revision: 0 }
    }

    pub async fn load(destination: &Client) -> crate::Result<Result<Option<Record>>> {
        let answer = destination.get(Get::key(PROGRESS_KEY)).await?;
        let Some(kv) = answer.kvs.first() else { return Ok(Ok(None)) };
        Ok(match serde_json::from_slice(&kv.value) {
            Ok(progress) => Ok(Some(Record { progress, mod_revision: kv.mod_revision })),
            Err(error) => Err(Failure::Refused(format!(
                "the destination's key {:?} holds no mirror's progress: {error}",
                String::from_utf8_lossy(PROGRESS_KEY)
            ))),
        })
    }

    /// Whether the source is the one that was mirrored.
    pub fn check(&self, cluster: u64, source_revision: i64) -> Result<()> {
        let Progress { source_cluster, revision, .. } = self.progress;
        let reason = if source_cluster != cluster {
            format!(
                "the destination mirrors the cluster {source_cluster:x}, and the source is the cluster {cluster:x}."
            )
        } else if revision > source_revision {
            format!("revision {revision} was mirrored, and the source is at {source_revision}: was it restored?")
        } else {
            return Ok(());
        };
        Err(Failure::Refused(format!("{reason} Begin anew with an empty destination")))
    }

    /// All is compared again, and copied where it differs.
    pub fn copy_again(&mut self) {
        self.progress.revision = 0;
        self.progress.copied_up_to = None;
    }
}

impl Mirror {
    /// Does all this in one transaction, exactly once, and the record says so. `ops` are in the order of their effects.
    pub(super) async fn commit(&self, record: &mut Record, ops: Vec<Op>, next: Progress) -> Result<()> {
        assert_ne!(record.progress, next, "only a change can be told from no change");
        let value = serde_json::to_vec(&next).expect("numbers and texts can be written as JSON");
        let txn = Txn::new()
            .when(Compare::mod_revision(PROGRESS_KEY).equals(record.mod_revision))
            .then(Op::txn(Txn::all_of(ops)))
            .then(Op::put(Put::new(PROGRESS_KEY, value)))
            .otherwise(Op::get(Get::key(PROGRESS_KEY)));
        let mut outcome_unknown = false;
        loop {
            match self.destination.txn(txn.clone()).await {
                Ok(answer) if answer.succeeded => {
                    record.mod_revision = answer.header.as_ref().map_or(0, |header| header.revision);
                    break;
                }
                Ok(answer) => {
                    let (found, mod_revision) = recorded(&answer);
                    if !outcome_unknown || found.as_ref() != Some(&next) {
                        let reason = "another mirror writes to it, or somebody has changed its record of progress";
                        return Err(Failure::Diverged(reason.to_string()));
                    }
                    record.mod_revision = mod_revision;
                    break;
                }
                Err(error) => {
                    outcome_unknown |= error.may_have_happened();
                    self.wait_out(Failure::Destination(error)).await?;
                }
            }
        }
        record.progress = next;
        Ok(())
    }

    pub(super) async fn forget_progress(&self, record: &Record) -> Result<()> {
        let txn = Txn::new()
            .when(Compare::mod_revision(PROGRESS_KEY).equals(record.mod_revision))
            .then(Op::delete(Delete::key(PROGRESS_KEY)));
        // Sent twice it does nothing the second time.
        self.to_destination(|| self.destination.txn(txn.clone())).await.map(|_| ())
    }
}

fn recorded(answer: &TxnResponse) -> (Option<Progress>, i64) {
    let found = answer.responses.first().and_then(|response| response.response.as_ref());
    let Some(Response::ResponseRange(range)) = found else { return (None, 0) };
    let Some(kv) = range.kvs.first() else { return (None, 0) };
    (serde_json::from_slice(&kv.value).ok(), kv.mod_revision)
}

/// The key right after this one.
pub(super) fn after(key: &[u8]) -> Bytes {
    [key, b"\0"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_as_it_was_written() {
        let new = Record::new(7).progress;
        assert!(!new.is_copied());
        let copying = new.copying(9, b"\0k\xff");
        assert_eq!(copying.copied_up_to().unwrap(), b"\0k\xff");
        assert!(!copying.is_copied());
        let bytes = serde_json::to_vec(&copying).unwrap();
        assert_eq!(serde_json::from_slice::<Progress>(&bytes).unwrap(), copying);
        assert!(copying.at(9).is_copied());
        assert_ne!(copying.restored(), copying);
        assert_ne!(copying.taken_over(), copying);
    }

    #[test]
    fn another_cluster_and_an_older_one_are_refused() {
        let mut record = Record::new(7);
        record.progress = record.progress.at(9);
        assert!(record.check(7, 9).is_ok());
        assert!(record.check(8, 9).unwrap_err().to_string().contains("cluster"));
        assert!(record.check(7, 8).unwrap_err().to_string().contains("restored"));
    }
}
