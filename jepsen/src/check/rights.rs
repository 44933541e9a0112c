//! Rights: nobody does what the rights of the time forbid, and nobody is refused what they allow.
//!
//! What is known of the rights comes from the acknowledged changes of one administrator. A change takes effect somewhere
//! between its invocation and its end; one of unknown outcome at any time from its invocation on, as long as a request
//! can live. So at each moment there are several rights that may be in force. An operation must fit one of them.
//!
//! | found | meaning |
//! |---|---|
//! | acted without the right | done, when the user cannot have had the right at any moment of the operation |
//! | refused in spite of the right | refused for want of a right that the user had all the while |
//!
//! Serializable reads are not judged: they go by the rights that their member knows of, which may be old.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use proto::EtcdError;

use super::{
    history::{AuthChange, History, Keys, Operation, Outcome, Permission, Request},
    verdict::Verdict,
};

/// How long after its invocation a change of unknown outcome may still be made: by then every member has given it up.
const REQUEST_LIFE_NS: u64 = 30_000_000_000;

/// One thing that the administrator sets, and to what, in order.
struct Settings<T> {
    initial: T,
    made: Vec<Setting<T>>,
}

struct Setting<T> {
    value: T,
    invoked: usize,
    invoked_ns: u64,
    /// None: nobody knows whether it was made.
    ended: Option<usize>,
}

impl<T: Copy> Settings<T> {
    fn new(initial: T) -> Settings<T> {
        Settings { initial, made: Vec::new() }
    }

    fn set(&mut self, value: T, change: &Operation) {
        let ended = change.response().map(|_| change.ended());
        self.made.push(Setting { value, invoked: change.invoked, invoked_ns: change.invoked_ns, ended });
    }

    /// What it may have been at some moment of the operation.
    fn during(&self, operation: &Operation) -> Vec<T> {
        let (begin, end) = (operation.invoked, operation.ended());
        let before = self.made.iter().rev().find(|setting| setting.ended.is_some_and(|ended| ended < begin));
        let meanwhile = self.made.iter().filter(|setting| {
            setting.invoked < end
                && match setting.ended {
                    Some(ended) => ended > begin,
                    None => !self.is_settled(setting, begin),
                }
        });
        let first = before.map_or(self.initial, |setting| setting.value);
        [first].into_iter().chain(meanwhile.map(|setting| setting.value)).collect()
    }

    /// Whether a setting that may have been made late was certainly overwritten before this entry.
    fn is_settled(&self, unsure: &Setting<T>, before: usize) -> bool {
        let latest = unsure.invoked_ns + REQUEST_LIFE_NS;
        self.made.iter().any(|setting| setting.invoked_ns > latest && setting.ended.is_some_and(|ended| ended < before))
    }
}

struct Rights {
    enabled: Settings<bool>,
    /// Whether a user has a role.
    granted: BTreeMap<(String, String), Settings<bool>>,
    /// What a role may do with keys.
    permitted: BTreeMap<(String, Vec<u8>), (Keys, Settings<Option<Permission>>)>,
}

/// Judges what users did and were refused.
pub fn check(history: &History) -> Result<Verdict> {
    let operations = history.operations()?;
    let mut rights = Rights { enabled: Settings::new(false), granted: BTreeMap::new(), permitted: BTreeMap::new() };
    for operation in operations.iter().filter(|operation| operation.may_have_happened()) {
        if let Request::Auth(change) = inner(&operation.request) {
            rights.take(change, operation)?;
        }
    }
    let mut verdict = Verdict::default();
    for operation in &operations {
        rights.judge(operation, &mut verdict);
    }
    for what in ["acts", "refusals"] {
        if verdict.looked_at.get(what).is_none_or(|count| *count == 0) {
            verdict.undecided.push(format!("there were no {what}"));
        }
    }
    Ok(verdict)
}

fn inner(request: &Request) -> &Request {
    match request {
        Request::As { request, .. } => request,
        request => request,
    }
}

impl Rights {
    fn take(&mut self, change: &AuthChange, operation: &Operation) -> Result<()> {
        match change {
            AuthChange::Enable => self.enabled.set(true, operation),
            AuthChange::Disable => self.enabled.set(false, operation),
            AuthChange::UserGrantRole { user, role } => self.role_of(user, role).set(true, operation),
            AuthChange::UserRevokeRole { user, role } => self.role_of(user, role).set(false, operation),
            AuthChange::RoleGrantPermission { role, keys, permission } => {
                self.permission_of(role, keys).set(Some(*permission), operation);
            }
            AuthChange::RoleRevokePermission { role, keys } => self.permission_of(role, keys).set(None, operation),
            AuthChange::UserAdd { .. } | AuthChange::UserChangePassword { .. } | AuthChange::RoleAdd { .. } => {}
            AuthChange::UserDelete { .. } | AuthChange::RoleDelete { .. } => {
                bail!("entry {}: what becomes of rights with their user or role is not known here", operation.invoked)
            }
        }
        Ok(())
    }

    fn role_of(&mut self, user: &str, role: &str) -> &mut Settings<bool> {
        self.granted.entry((user.to_owned(), role.to_owned())).or_insert_with(|| Settings::new(false))
    }

    fn permission_of(&mut self, role: &str, keys: &Keys) -> &mut Settings<Option<Permission>> {
        let place = self.permitted.entry((role.to_owned(), keys.key.to_vec()));
        &mut place.or_insert_with(|| (keys.clone(), Settings::new(None))).1
    }

    fn judge(&self, operation: &Operation, verdict: &mut Verdict) {
        let Request::As { user, request } = &operation.request else { return };
        let (key, writes) = match &**request {
            Request::Put(put) => (&put.key, true),
            Request::Range(range) if !range.serializable && range.keys.is_one() => (&range.keys.key, false),
            _ => return,
        };
        let what = if writes { "write" } else { "read" };
        match &operation.outcome {
            Outcome::Ok { .. } => {
                verdict.count("acts", 1);
                if !self.may_have_had(user, key, writes, operation) {
                    let explanation = format!("{user} could {what} {key} and had no right to, all the while");
                    verdict.found("acted without the right", [operation.invoked], explanation);
                }
            }
            Outcome::Failed { error, .. } if error.ends_with(EtcdError::PermissionDenied.message()) => {
                verdict.count("refusals", 1);
                if !self.may_have_lacked(user, key, writes, operation) {
                    let explanation = format!("{user} could not {what} {key} and had the right to, all the while");
                    verdict.found("refused in spite of the right", [operation.invoked], explanation);
                }
            }
            _ => {}
        }
    }

    /// Of each way to the right: whether there may have been one, and whether it may have been missing.
    fn ways<'a>(
        &'a self,
        user: &'a str,
        key: &'a [u8],
        writes: bool,
        operation: &'a Operation,
    ) -> impl Iterator<Item = (bool, bool)> + 'a {
        let roles = self.granted.iter().filter(move |((of, _), _)| of == user);
        roles.flat_map(move |((_, role), granted)| {
            let granted = granted.during(operation);
            let permitted = self.permitted.iter().filter(move |((of, _), (keys, _))| of == role && keys.contains(key));
            permitted.map(move |(_, (_, permission))| {
                let permission = permission.during(operation);
                let suffices = |permission: Permission| if writes { permission.writes() } else { permission.reads() };
                let is_enough = |permission: &Option<Permission>| permission.is_some_and(suffices);
                let may_be = granted.contains(&true) && permission.iter().any(is_enough);
                let may_not_be = granted.contains(&false) || !permission.iter().all(is_enough);
                (may_be, may_not_be)
            })
        })
    }

    fn may_have_had(&self, user: &str, key: &[u8], writes: bool, operation: &Operation) -> bool {
        self.enabled.during(operation).contains(&false)
            || self.ways(user, key, writes, operation).any(|(may_be, _)| may_be)
    }

    fn may_have_lacked(&self, user: &str, key: &[u8], writes: bool, operation: &Operation) -> bool {
        self.enabled.during(operation).contains(&true)
            && self.ways(user, key, writes, operation).all(|(_, may_not_be)| may_not_be)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::{Answer, Range},
            tape::{Tape, get, put, range_of},
        },
        *,
    };

    const DENIED: &str = "etcdserver: permission denied";

    fn change(change: AuthChange) -> Request {
        Request::Auth(change)
    }

    fn grant(permission: Permission) -> Request {
        change(AuthChange::RoleGrantPermission { role: "r".into(), keys: Keys::prefix("k"), permission })
    }

    fn revoke() -> Request {
        change(AuthChange::RoleRevokePermission { role: "r".into(), keys: Keys::prefix("k") })
    }

    fn alice(request: Request) -> Request {
        Request::As { user: "alice".into(), request: Box::new(request) }
    }

    /// Alice has the role `r`, which may read `k…`, and was refused a write once.
    fn tape() -> Tape {
        let mut tape = Tape::default();
        let role = change(AuthChange::UserGrantRole { user: "alice".into(), role: "r".into() });
        for request in [role, grant(Permission::Read), change(AuthChange::Enable)] {
            tape.done(0, request, 1, Answer::Auth);
        }
        tape.ask(1, alice(put("k1", "x"))).failed(1, DENIED);
        tape.done(1, alice(get("k1")), 1, range_of(vec![]));
        tape
    }

    fn names(tape: &Tape) -> Vec<&'static str> {
        check(&tape.history).unwrap().names()
    }

    #[test]
    fn what_the_rights_allow_is_accepted() {
        assert!(check(&tape().history).unwrap().passes());
        assert!(!check(&Tape::default().history).unwrap().passes(), "nothing proves nothing");
    }

    #[test]
    fn an_act_without_the_right_is_found() {
        let mut written = tape();
        written.done(1, alice(put("k1", "x")), 2, Answer::Put { prev_kv: None });
        assert_eq!(names(&written), ["acted without the right"]);
        let mut elsewhere = tape();
        elsewhere.done(1, alice(get("x")), 2, range_of(vec![]));
        assert_eq!(names(&elsewhere), ["acted without the right"]);
        let mut revoked = tape();
        revoked.done(0, revoke(), 2, Answer::Auth).done(1, alice(get("k1")), 2, range_of(vec![]));
        assert_eq!(names(&revoked), ["acted without the right"]);
    }

    #[test]
    fn a_refusal_in_spite_of_the_right_is_found() {
        let mut refused = tape();
        refused.ask(1, alice(get("k1"))).failed(1, DENIED);
        assert_eq!(names(&refused), ["refused in spite of the right"]);
        let mut disabled = tape();
        disabled.done(0, change(AuthChange::Disable), 2, Answer::Auth);
        disabled.ask(1, alice(put("k1", "x"))).failed(1, DENIED);
        assert_eq!(names(&disabled), ["refused in spite of the right"]);
    }

    #[test]
    fn while_a_change_is_made_both_rights_count() {
        let mut tape = tape();
        tape.ask(0, revoke());
        tape.done(1, alice(get("k1")), 1, range_of(vec![])).ask(2, alice(get("k1"))).failed(2, DENIED);
        tape.told(0, 1, Answer::Auth);
        assert!(names(&tape).is_empty());
        tape.done(1, alice(get("k1")), 1, range_of(vec![]));
        assert_eq!(names(&tape), ["acted without the right"]);
    }

    #[test]
    fn a_change_of_unknown_outcome_counts_until_it_cannot_come_any_more() {
        let mut tape = tape();
        tape.ask(0, revoke()).lost(0);
        tape.done(3, grant(Permission::Read), 1, Answer::Auth);
        tape.ask(2, alice(get("k1"))).failed(2, DENIED);
        assert!(names(&tape).is_empty());
        tape.at_ms(31_000).done(3, grant(Permission::Read), 1, Answer::Auth);
        tape.ask(2, alice(get("k1"))).failed(2, DENIED);
        assert_eq!(names(&tape), ["refused in spite of the right"]);
    }

    #[test]
    fn serializable_reads_may_go_by_older_rights() {
        let mut tape = tape();
        let read = Range { keys: Keys::one("k1"), serializable: true, ..Range::default() };
        tape.done(0, revoke(), 2, Answer::Auth).done(1, alice(Request::Range(read)), 2, range_of(vec![]));
        assert!(names(&tape).is_empty());
    }
}
