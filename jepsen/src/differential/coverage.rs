//! What a run has reached. A run that compares nothing is as quiet as one that finds nothing, so too little is a failure.

use std::{collections::BTreeMap, fmt};

use super::{
    area::Area,
    request::{Answer, Call, Door, Failure, Request},
};

/// Refusals that every run has to meet, by a part of their text, and what may be left out with them.
const FAILURES: &[(&str, Option<Area>)] = &[
    ("key is not provided", None),
    ("key not found", None),
    ("value is provided", None),
    ("lease is provided", None),
    ("too many operations in txn request", None),
    ("duplicate key given in txn request", None),
    ("required revision has been compacted", None),
    ("required revision is a future revision", None),
    ("requested lease not found", None),
    ("lease already exists", None),
    ("too large lease TTL", None),
    ("request is too large", Some(Area::Sizes)),
    ("larger than max", Some(Area::Sizes)),
    ("database space exceeded", Some(Area::Alarms)),
    ("corrupt cluster", Some(Area::Alarms)),
    ("member not found", Some(Area::Members)),
    ("Peer URLs already exists", Some(Area::Members)),
    ("given member URLs are invalid", Some(Area::Members)),
    ("too many learner members in cluster", Some(Area::Members)),
    ("can only promote a learner member", Some(Area::Members)),
    ("bad leader transferee", Some(Area::Members)),
    ("wrong downgrade target version format", Some(Area::Maintenance)),
    ("user name already exists", Some(Area::Auth)),
    ("user name not found", Some(Area::Auth)),
    ("user name is empty", Some(Area::Auth)),
    ("role name already exists", Some(Area::Auth)),
    ("role name not found", Some(Area::Auth)),
    ("role name is empty", Some(Area::Auth)),
    ("role is not granted to the user", Some(Area::Auth)),
    ("permission is not granted to the role", Some(Area::Auth)),
    ("authentication is not enabled", Some(Area::Auth)),
    ("root user does not exist", Some(Area::Auth)),
    ("root user does not have root role", Some(Area::Auth)),
    ("authentication failed", Some(Area::Auth)),
    ("permission denied", Some(Area::Auth)),
    ("invalid auth token", Some(Area::Auth)),
    ("invalid auth management", Some(Area::Auth)),
    ("election: no leader", Some(Area::Elections)),
    ("election: not leader", Some(Area::Elections)),
    ("\"leader\" field must be provided", Some(Area::Elections)),
];

/// Kinds of requests that have to go through the gateway in every run; chance decides which.
const GATEWAY_KINDS_MIN: usize = 15;

/// What happens on watch streams, besides unary answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchFact {
    Created,
    EmptyRange,
    DuplicateId,
    NegativeRevision,
    Canceled,
    CancelUnanswered,
    EndedByCompaction,
    Put,
    Delete,
    PreviousKv,
    Fragment,
    Progress,
}

impl WatchFact {
    const ALL: [WatchFact; 12] = [
        WatchFact::Created,
        WatchFact::EmptyRange,
        WatchFact::DuplicateId,
        WatchFact::NegativeRevision,
        WatchFact::Canceled,
        WatchFact::CancelUnanswered,
        WatchFact::EndedByCompaction,
        WatchFact::Put,
        WatchFact::Delete,
        WatchFact::PreviousKv,
        WatchFact::Fragment,
        WatchFact::Progress,
    ];
}

#[derive(Default)]
pub struct Coverage {
    answered: BTreeMap<&'static str, u64>,
    refused: BTreeMap<Failure, u64>,
    refused_by_kind: BTreeMap<&'static str, u64>,
    watch: BTreeMap<WatchFact, u64>,
    forgiven: BTreeMap<&'static str, u64>,
    /// Answered or refused through the gateway.
    through_gateway: BTreeMap<&'static str, u64>,
    pub expired_keys: usize,
}

impl Coverage {
    pub fn count(&mut self, call: &Call, answer: &Answer) {
        let request = &call.request;
        if call.door == Door::Json {
            *self.through_gateway.entry(request.kind()).or_default() += 1;
        }
        match answer {
            Ok(_) => *self.answered.entry(request.kind()).or_default() += 1,
            Err(failure) => {
                *self.refused.entry(failure.clone()).or_default() += 1;
                *self.refused_by_kind.entry(request.kind()).or_default() += 1;
            }
        }
    }

    pub fn count_watch(&mut self, fact: WatchFact, times: u64) {
        *self.watch.entry(fact).or_default() += times;
    }

    pub fn count_forgiven(&mut self, reason: &'static str) {
        *self.forgiven.entry(reason).or_default() += 1;
    }

    /// What was not reached though it was not left out; empty after a good run.
    pub fn missing(&self, without: &[Area]) -> Vec<String> {
        // The learner never starts, and from what one may downgrade depends on the version.
        let only_refused = ["MemberPromote", "Downgrade"];
        let left_out = |area: Option<Area>| area.is_some_and(|area| without.contains(&area));

        let mut missing = Vec::new();
        for kind in Request::KINDS {
            if !self.answered.contains_key(kind) && !only_refused.contains(kind) && !left_out(Area::of_kind(kind)) {
                missing.push(format!("no answered {kind}"));
            }
        }
        for (text, area) in FAILURES {
            if !self.refused.keys().any(|failure| failure.message.contains(text)) && !left_out(*area) {
                missing.push(format!("no refusal with {text:?}"));
            }
        }
        for fact in WatchFact::ALL {
            let area = (fact == WatchFact::Fragment).then_some(Area::Sizes);
            if self.watch.get(&fact).is_none_or(|times| *times == 0) && !left_out(area) {
                missing.push(format!("no watch with {fact:?}"));
            }
        }
        if self.through_gateway.len() < GATEWAY_KINDS_MIN && !left_out(Some(Area::Gateway)) {
            missing.push(format!("only {} kinds of requests through the gateway", self.through_gateway.len()));
        }
        if self.expired_keys == 0 {
            missing.push("no key of an expired lease".to_owned());
        }
        missing
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "requests (answered, refused, of these through the gateway):")?;
        for kind in Request::KINDS {
            let count = |counts: &BTreeMap<&str, u64>| counts.get(kind).copied().unwrap_or(0);
            let (answered, refused) = (count(&self.answered), count(&self.refused_by_kind));
            writeln!(f, "  {kind:22} {answered:8} {refused:8} {:8}", count(&self.through_gateway))?;
        }
        writeln!(f, "refusals:")?;
        for (failure, count) in &self.refused {
            writeln!(f, "  {count:8} {} {}", failure.code, failure.message)?;
        }
        writeln!(f, "watches:")?;
        for (fact, count) in &self.watch {
            writeln!(f, "  {count:8} {fact:?}")?;
        }
        writeln!(f, "keys of expired leases: {}", self.expired_keys)?;
        for (reason, count) in &self.forgiven {
            writeln!(f, "known difference, {count} times: {reason}")?;
        }
        Ok(())
    }
}
