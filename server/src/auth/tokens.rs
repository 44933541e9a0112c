//! Tokens of the kind that `--auth-token` names.

use std::{collections::BTreeMap, time::Duration};

use proto::{EtcdError, command::AuthInfo};
use sha2::{Digest as _, Sha256};
use storage::AuthChange;

use super::{
    jwt::{Jwt, JwtError},
    simple::SimpleTokens,
};

/// `--auth-token` and `--auth-token-ttl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOptions {
    /// Such as `simple`, or `jwt,sign-method=RS256,…`.
    pub text: String,
    /// Of simple tokens.
    pub ttl: Duration,
}

/// Why there are no such tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// (etcd: ErrInvalidAuthOpts.)
    #[error(
        "--auth-token={0:?}: auth: invalid auth options: it takes simple, or jwt,sign-method=…,priv-key=…,pub-key=…,ttl=…"
    )]
    Options(String),
    #[error("--auth-token={options:?}: {error}")]
    Jwt { options: String, error: JwtError },
}

/// (etcd: `server/auth/store.go`, NewTokenProvider.)
pub enum Tokens {
    Simple(SimpleTokens),
    Jwt(Box<Jwt>),
    /// With an empty `--auth-token` nobody gets one.
    None,
}

impl Tokens {
    pub fn new(options: &TokenOptions) -> Result<Tokens, TokenError> {
        let invalid = || TokenError::Options(options.text.clone());
        let (kind, given) = parse(&options.text).ok_or_else(invalid)?;
        match kind {
            "simple" => Ok(Tokens::Simple(SimpleTokens::new(options.ttl))),
            "jwt" => match Jwt::new(&given) {
                Ok(jwt) => Ok(Tokens::Jwt(Box::new(jwt))),
                Err(error) => Err(TokenError::Jwt { options: options.text.clone(), error }),
            },
            "" => Ok(Tokens::None),
            _ => Err(invalid()),
        }
    }

    /// The entry that assigned a token, where a token names it.
    pub fn assigned_at(&self, token: &str) -> Option<u64> {
        match self {
            Tokens::Simple(_) => SimpleTokens::assigned_at(token),
            Tokens::Jwt(_) | Tokens::None => None,
        }
    }

    /// Whose token it is; None when it is nobody's, or not valid any more.
    pub fn info(&self, token: &str, revision: u64) -> Option<AuthInfo> {
        match self {
            Tokens::Simple(tokens) => Some(AuthInfo { username: tokens.user(token)?, revision }),
            Tokens::Jwt(jwt) => jwt.info(token),
            Tokens::None => None,
        }
    }

    /// The random part of a simple token; empty for other kinds.
    pub fn prefix(&self) -> String {
        match self {
            Tokens::Simple(_) => SimpleTokens::prefix(),
            Tokens::Jwt(_) | Tokens::None => String::new(),
        }
    }

    /// The token of a user who was authenticated at `revision`; `assigned` is what applying it gave.
    pub fn issue(&self, name: &str, revision: u64, assigned: String) -> Result<String, EtcdError> {
        match self {
            Tokens::Simple(_) => Ok(assigned),
            Tokens::Jwt(jwt) => jwt.issue(name, revision),
            Tokens::None => Err(EtcdError::AuthFailed),
        }
    }

    /// Takes changes in, as they are applied.
    pub fn applied(&self, changes: &[AuthChange]) {
        if let Tokens::Simple(tokens) = self {
            changes.iter().for_each(|change| tokens.apply(change));
        }
    }

    /// The store was replaced by another: which tokens were dropped meanwhile is not known.
    pub fn restored(&self) {
        if let Tokens::Simple(tokens) = self {
            tokens.clear();
        }
    }
}

/// What stands for a token in the log.
pub fn fingerprint(token: &str) -> String {
    Sha256::digest(token).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The kind, and what is given with it; None where something is given twice or without a value.
fn parse(text: &str) -> Option<(&str, BTreeMap<&str, &str>)> {
    let mut parts = text.split(',');
    let kind = parts.next()?;
    let mut given = BTreeMap::new();
    for part in parts {
        let (name, value) = part.split_once('=')?;
        if value.contains('=') || given.insert(name, value).is_some() {
            return None;
        }
    }
    Some((kind, given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_pairs_and_each_is_given_once() {
        assert_eq!(parse("simple"), Some(("simple", BTreeMap::new())));
        let given = BTreeMap::from([("sign-method", "RS256"), ("ttl", "5m")]);
        assert_eq!(parse("jwt,sign-method=RS256,ttl=5m"), Some(("jwt", given)));
        for wrong in ["jwt,ttl", "jwt,ttl=1=2", "jwt,ttl=1m,ttl=2m"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let options = |text: &str| TokenOptions { text: text.into(), ttl: Duration::from_secs(1) };
        assert!(Tokens::new(&options("opaque")).is_err_and(|error| error.to_string().contains("invalid auth options")));
        assert!(Tokens::new(&options("simple")).is_ok());
        let none = Tokens::new(&options("")).unwrap();
        assert_eq!(none.issue("u", 1, String::new()), Err(EtcdError::AuthFailed));
    }

    #[test]
    fn a_fingerprint_does_not_hold_the_token() {
        assert_eq!(fingerprint("token"), "3c469e9d6c58");
    }
}
