use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;

const METHODS: [&str; 13] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
];

/// Keys that `openssl` made, and what a token signed by them with each method looks like.
fn key(name: &str) -> PathBuf {
    Path::new("src/auth/jwt/keys").join(name)
}

fn jwt(options: &[(&str, &str)]) -> Result<Jwt, JwtError> {
    Jwt::new(&options.iter().copied().collect())
}

/// Names of the private and the public key for a method.
fn keys_of(method: &str) -> (&'static str, Option<&'static str>) {
    match &method[..2] {
        "HS" => ("hmac", None),
        "RS" | "PS" => ("rsa.pem", Some("rsa.pub.pem")),
        "Ed" => ("ed25519.pem", Some("ed25519.pub.pem")),
        _ => match method {
            "ES256" => ("p256.pem", Some("p256.pub.pem")),
            "ES384" => ("p384.pem", Some("p384.pub.pem")),
            _ => ("p521.pem", Some("p521.pub.pem")),
        },
    }
}

fn whole(method: &str) -> Jwt {
    let (private, public) = keys_of(method);
    let private = key(private);
    let mut options = vec![("sign-method", method), ("priv-key", private.to_str().unwrap())];
    let public = public.map(key);
    options.extend(public.as_ref().map(|public| ("pub-key", public.to_str().unwrap())));
    jwt(&options).unwrap_or_else(|error| panic!("{method}: {error}"))
}

#[test]
fn a_token_of_each_method_says_who_and_at_which_revision() {
    for method in METHODS {
        let jwt = whole(method);
        let token = jwt.issue("alice", 7).unwrap();
        assert_eq!(jwt.info(&token), Some(AuthInfo { username: "alice".into(), revision: 7 }), "{method}");
        let header = decode(token.split('.').next().unwrap()).unwrap();
        assert_eq!(header, json!({"alg": method, "typ": "JWT"}));
    }
}

#[test]
fn what_was_changed_or_signed_by_another_is_refused() {
    for method in METHODS {
        let jwt = whole(method);
        let token = jwt.issue("alice", 7).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let claims = encode(&json!({"username": "root", "revision": 7}));
        assert_eq!(jwt.info(&[parts[0], &claims, parts[2]].join(".")), None, "{method}");
        let header = encode(&json!({"alg": "none", "typ": "JWT"}));
        assert_eq!(jwt.info(&[&header, parts[1], parts[2]].join(".")), None, "{method}");
        assert_eq!(jwt.info(&[&header, parts[1], ""].join(".")), None, "{method}");
        assert_eq!(jwt.info(&[parts[0], parts[1], ""].join(".")), None, "{method}");
        for other in METHODS.into_iter().filter(|other| *other != method) {
            assert_eq!(whole(other).info(&token), None, "{method} as {other}");
        }
    }
}

#[test]
fn a_token_is_good_until_it_runs_out() {
    let jwt = whole("HS256");
    let token = |claims: Value| {
        let message = [encode(&json!({"alg": "HS256", "typ": "JWT"})), encode(&claims)].join(".");
        format!("{message}.{}", jwt.keys.sign(&message).unwrap())
    };
    let at = |token: &str, seconds| jwt.info_at(token, Duration::from_secs(seconds)).is_some();
    let timed = token(json!({"username": "u", "revision": 1, "exp": 100, "nbf": 50}));
    assert_eq!([49, 50, 99, 100].map(|now| at(&timed, now)), [false, true, true, false]);
    assert!(at(&token(json!({"username": "u", "revision": 1})), 100));
    for incomplete in [
        json!({"revision": 1}),
        json!({"username": "u"}),
        json!({"username": 1, "revision": 1}),
        json!({"username": "u", "revision": "1"}),
        json!({"username": "u", "revision": 1, "exp": "soon"}),
    ] {
        assert!(!at(&token(incomplete), 1));
    }
}

#[test]
fn with_a_public_key_alone_tokens_are_taken_and_not_made() {
    for method in METHODS {
        let (_, Some(public)) = keys_of(method) else { continue };
        let public = key(public);
        let verifying = jwt(&[("sign-method", method), ("pub-key", public.to_str().unwrap())]).unwrap();
        assert_eq!(verifying.issue("u", 1), Err(EtcdError::VerifyOnly));
        assert!(verifying.info(&whole(method).issue("u", 1).unwrap()).is_some(), "{method}");
    }
}

#[test]
fn a_private_key_alone_is_enough_and_openssl_s_older_form_is_taken() {
    for (method, private) in
        [("ES256", "p256.pem"), ("ES256", "p256.sec1.pem"), ("ES384", "p384.sec1.pem"), ("ES512", "p521.sec1.pem")]
    {
        let private = key(private);
        let jwt = jwt(&[("sign-method", method), ("priv-key", private.to_str().unwrap())]).unwrap();
        assert!(whole(method).info(&jwt.issue("u", 1).unwrap()).is_some(), "{method}");
        assert!(jwt.info(&whole(method).issue("u", 1).unwrap()).is_some(), "{method}");
    }
}

#[test]
fn keys_that_are_missing_wrong_or_of_two_pairs_are_refused() {
    let path = |name: &str| key(name).to_str().unwrap().to_string();
    let refusal = |options: &[(&str, &str)]| jwt(options).err().expect("a refusal").to_string();
    for method in METHODS {
        assert_eq!(refusal(&[("sign-method", method)]), "auth: missing key data");
    }
    for (method, private, public) in [
        ("RS256", "rsa.pem", "rsa2.pub.pem"),
        ("ES256", "p256.pem", "p256b.pub.pem"),
        ("ES512", "p521.pem", "p521b.pub.pem"),
    ] {
        let options = [("sign-method", method), ("priv-key", &path(private)), ("pub-key", &path(public))];
        assert_eq!(refusal(&options), "auth: public and private keys don't match");
    }
    assert!(refusal(&[("sign-method", "ES256"), ("priv-key", &path("rsa.pem"))]).contains("rsa.pem"));
    assert!(
        refusal(&[("sign-method", "RS1"), ("priv-key", &path("rsa.pem"))]).contains("invalid auth signature method")
    );
    assert!(refusal(&[("sign-method", "HS256"), ("priv-key", "/nowhere")]).contains("/nowhere"));
    assert!(refusal(&[("sign-method", "HS256"), ("priv-key", &path("hmac")), ("ttl", "x")]).contains("ttl=x"));
    let empty = TempDir::new().unwrap();
    let empty = empty.path().join("key");
    fs::write(&empty, "").unwrap();
    assert_eq!(refusal(&[("sign-method", "HS256"), ("priv-key", empty.to_str().unwrap())]), "auth: missing key data");
}
