//! Simple tokens: sixteen random letters, a dot, and the index of the entry that assigned it.
//!
//! Every member has them in memory, since it has applied that entry; none outlives a restart. A token is good for a
//! time after its last use on this member. (etcd: `server/auth/simple_token.go`.)

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::Rng as _;
use storage::AuthChange;

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const PREFIX_LENGTH: usize = 16;
/// What 0 stands for.
const TTL_DEFAULT: Duration = Duration::from_secs(300);
/// The time between two looks for tokens that have run out.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

pub struct SimpleTokens {
    ttl: Duration,
    assigned: Mutex<Assigned>,
}

struct Assigned {
    tokens: HashMap<String, Token>,
    swept: Instant,
}

struct Token {
    user: String,
    expires: Instant,
}

impl SimpleTokens {
    pub fn new(ttl: Duration) -> Self {
        let ttl = if ttl.is_zero() { TTL_DEFAULT } else { ttl };
        SimpleTokens { ttl, assigned: Mutex::new(Assigned { tokens: HashMap::new(), swept: Instant::now() }) }
    }

    pub fn prefix() -> String {
        let mut random = rand::rng();
        (0..PREFIX_LENGTH).map(|_| LETTERS[random.random_range(0..LETTERS.len())] as char).collect()
    }

    /// None when it cannot be a simple token.
    pub fn assigned_at(token: &str) -> Option<u64> {
        let (_, index) = token.split_once('.')?;
        index.parse().ok()
    }

    /// Whose token it is. It is good for its whole time again.
    pub fn user(&self, token: &str) -> Option<String> {
        self.user_at(token, Instant::now())
    }

    fn user_at(&self, token: &str, now: Instant) -> Option<String> {
        let mut assigned = self.assigned.lock();
        let token = assigned.tokens.get_mut(token).filter(|token| token.expires >= now)?;
        token.expires = now + self.ttl;
        Some(token.user.clone())
    }

    pub fn apply(&self, change: &AuthChange) {
        self.apply_at(change, Instant::now());
    }

    fn apply_at(&self, change: &AuthChange, now: Instant) {
        let mut assigned = self.assigned.lock();
        match change {
            AuthChange::Enabled => {}
            AuthChange::Disabled => assigned.tokens.clear(),
            AuthChange::UserInvalidated { name } => assigned.tokens.retain(|_, token| token.user != *name),
            AuthChange::TokenAssigned { name, token } => {
                if now >= assigned.swept + SWEEP_INTERVAL {
                    assigned.tokens.retain(|_, token| token.expires >= now);
                    assigned.swept = now;
                }
                assigned.tokens.insert(token.clone(), Token { user: name.clone(), expires: now + self.ttl });
            }
        }
    }

    pub fn clear(&self) {
        self.assigned.lock().tokens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn assign(tokens: &SimpleTokens, name: &str, token: &str, now: Instant) {
        tokens.apply_at(&AuthChange::TokenAssigned { name: name.into(), token: token.into() }, now);
    }

    #[test]
    fn a_token_is_good_for_a_time_after_its_last_use() {
        let (tokens, start) = (SimpleTokens::new(10 * SECOND), Instant::now());
        assign(&tokens, "u", "a.1", start);
        assert_eq!(tokens.user_at("a.1", start + 9 * SECOND).as_deref(), Some("u"));
        assert_eq!(tokens.user_at("a.1", start + 18 * SECOND).as_deref(), Some("u"));
        assert_eq!(tokens.user_at("a.1", start + 29 * SECOND), None);
        assign(&tokens, "v", "b.2", start + 29 * SECOND);
        assert_eq!(tokens.assigned.lock().tokens.len(), 1, "what has run out is not kept");
    }

    #[test]
    fn a_user_s_tokens_go_when_the_user_or_its_password_does_and_all_go_with_authentication() {
        let (tokens, now) = (SimpleTokens::new(SECOND), Instant::now());
        assign(&tokens, "u", "a.1", now);
        assign(&tokens, "v", "b.2", now);
        tokens.apply_at(&AuthChange::UserInvalidated { name: "u".into() }, now);
        assert_eq!((tokens.user_at("a.1", now), tokens.user_at("b.2", now)), (None, Some("v".into())));
        tokens.apply_at(&AuthChange::Disabled, now);
        assert_eq!(tokens.user_at("b.2", now), None);
    }

    #[test]
    fn a_token_names_its_entry() {
        assert_eq!(SimpleTokens::assigned_at("abc.17"), Some(17));
        for other in ["abc", "abc.", "abc.x", "abc.1.2", ""] {
            assert_eq!(SimpleTokens::assigned_at(other), None, "{other}");
        }
        assert_eq!(SimpleTokens::prefix().len(), PREFIX_LENGTH);
    }
}
