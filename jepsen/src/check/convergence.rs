//! Whether all members hold the same in the end.
//!
//! HashKV at one revision and one compaction is the same on every member, always. At the end of a run, when everything
//! has healed, each member must have told one for a revision that all have.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::{
    history::{Answer, History},
    verdict::Verdict,
};

/// `members`: all that must have come together, named as in the history; there may be others, such as a log that was
/// replayed into an empty store.
pub fn check(history: &History, members: &[String]) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut told: BTreeMap<(i64, i64), BTreeMap<u32, Vec<(usize, String)>>> = BTreeMap::new();
    for operation in history.operations()? {
        let (Some(node), Some(response)) = (&operation.node, operation.response()) else { continue };
        let Answer::HashKv { hash, hash_revision, compact_revision } = response.answer else { continue };
        verdict.count("hashes", 1);
        let same = told.entry((hash_revision, compact_revision)).or_default();
        same.entry(hash).or_default().push((operation.invoked, node.clone()));
    }
    for ((revision, compacted), hashes) in told.iter().filter(|(_, hashes)| hashes.len() > 1) {
        let shown: Vec<String> = hashes
            .iter()
            .map(|(hash, by)| {
                let nodes: BTreeSet<&str> = by.iter().map(|(_, node)| node.as_str()).collect();
                format!("{hash:08x} on {nodes:?}")
            })
            .collect();
        let entries: Vec<usize> = hashes.values().flatten().map(|(entry, _)| *entry).collect();
        let explanation = format!("at revision {revision}, compacted to {compacted}: {}", shown.join(", "));
        verdict.found("diverged", entries, explanation);
    }
    let last = told.last_key_value().map(|(_, hashes)| hashes);
    let there: BTreeSet<&String> =
        last.into_iter().flat_map(BTreeMap::values).flatten().map(|(_, node)| node).collect();
    let missing: Vec<&String> = members.iter().filter(|member| !there.contains(member)).collect();
    if !missing.is_empty() {
        verdict.found("not converged", [], format!("{missing:?} did not come to the last revision of the others"));
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::{Entry, Event, Header, Request, Response},
            tape::Tape,
        },
        *,
    };

    fn names(hashes: &[(&str, i64, u32)]) -> Vec<&'static str> {
        let mut tape = Tape::default();
        for (node, revision, hash) in hashes {
            let answer = Answer::HashKv { hash: *hash, hash_revision: *revision, compact_revision: 1 };
            let ends = [
                Event::Invoke(Request::HashKv { revision: 0 }),
                Event::Ok(Response { header: Header::default(), answer }),
            ];
            for event in ends {
                let time_ns = tape.history.entries().len() as u64;
                tape.history.push(Entry { time_ns, process: 1, node: Some((*node).to_owned()), event });
            }
        }
        check(&tape.history, &["n1".to_owned(), "n2".to_owned()]).unwrap().names()
    }

    #[test]
    fn members_that_come_together_are_accepted() {
        assert!(names(&[("n1", 9, 7), ("n2", 8, 6), ("n2", 9, 7), ("replayed log", 9, 7)]).is_empty());
    }

    #[test]
    fn members_that_differ_are_found() {
        assert_eq!(names(&[("n1", 9, 7), ("n2", 9, 8)]), ["diverged"]);
        assert_eq!(names(&[("n1", 5, 7), ("n2", 5, 8), ("n1", 9, 7), ("n2", 9, 7)]), ["diverged"]);
        assert_eq!(names(&[("n1", 9, 7), ("n2", 9, 7), ("replayed log", 9, 8)]), ["diverged"]);
    }

    #[test]
    fn a_member_that_stays_behind_is_found() {
        assert_eq!(names(&[("n1", 9, 7), ("n2", 8, 6)]), ["not converged"]);
        assert_eq!(names(&[("n1", 9, 7)]), ["not converged"]);
        assert_eq!(names(&[]), ["not converged"]);
    }
}
