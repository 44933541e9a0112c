//! JSON web tokens: who the user is and the auth revision stand in the token, signed, so that no member has to remember
//! it. (etcd: `server/auth/jwt.go`, `server/auth/options.go`.)
//!
//! ```text
//! {"alg":"ES256","typ":"JWT"} . {"username":"u","revision":7,"exp":1700000000} . signature
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    str::FromStr as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, jwk::Jwk};
use proto::{EtcdError, command::AuthInfo};
use serde_json::{Value, json};

use super::ecdsa_p521;
use crate::duration;

const TTL_DEFAULT: Duration = Duration::from_secs(5 * 60);
const OPTIONS: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];
/// The one method that the library for the others does not have.
const ES512: &str = "ES512";

/// Why there are no such tokens.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    #[error("auth: invalid auth options: ttl={0} is no duration")]
    Ttl(String),
    #[error("auth: invalid auth options: {path}: {error}")]
    File { path: String, error: io::Error },
    #[error("auth: invalid auth options: sign-method={0:?}: auth: invalid auth signature method")]
    Method(String),
    #[error("auth: missing key data")]
    MissingKey,
    #[error("auth: public and private keys don't match")]
    KeyMismatch,
    #[error("{path}: no key for {method}: {detail}")]
    Key { path: String, method: String, detail: String },
}

pub struct Jwt {
    method: String,
    keys: Keys,
    ttl: Duration,
}

/// Without the signing half, tokens that others made are taken, and none are made.
enum Keys {
    Library { algorithm: Algorithm, signing: Option<EncodingKey>, verifying: DecodingKey },
    P521(ecdsa_p521::Keys),
}

/// A key file, read.
struct KeyFile {
    path: String,
    content: Vec<u8>,
}

impl Jwt {
    /// `options` are those behind `jwt`, by name.
    pub fn new(options: &BTreeMap<&str, &str>) -> Result<Jwt, JwtError> {
        for name in options.keys().filter(|name| !OPTIONS.contains(name)) {
            tracing::warn!(option = name, "unknown JWT option");
        }
        let given = |name: &str| options.get(name).copied().filter(|value| !value.is_empty());
        let ttl = match given("ttl") {
            Some(text) => duration::parse(text).ok_or_else(|| JwtError::Ttl(text.into()))?,
            None => TTL_DEFAULT,
        };
        let public = given("pub-key").map(KeyFile::read).transpose()?;
        let private = given("priv-key").map(KeyFile::read).transpose()?;
        let method = given("sign-method").unwrap_or_default();
        let keys = if method == ES512 {
            Keys::P521(p521_keys(private.as_ref(), public.as_ref())?)
        } else {
            let algorithm = Algorithm::from_str(method).map_err(|_| JwtError::Method(method.into()))?;
            library_keys(algorithm, method, private.as_ref(), public.as_ref())?
        };
        Ok(Jwt { method: method.into(), keys, ttl })
    }

    /// Whose token it is; None when it is not signed by the right key, is no token of etcd's, or has run out.
    pub fn info(&self, token: &str) -> Option<AuthInfo> {
        self.info_at(token, now())
    }

    fn info_at(&self, token: &str, now: Duration) -> Option<AuthInfo> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        if decode(header)?.get("alg")?.as_str()? != self.method || !self.keys.verify(message, signature) {
            return None;
        }
        let claims = decode(claims)?;
        let time = |name: &str| match claims.get(name) {
            None => Some(None),
            Some(time) => time.as_f64().map(Some),
        };
        let now = now.as_secs_f64();
        if time("exp")?.is_some_and(|exp| now >= exp) || time("nbf")?.is_some_and(|nbf| now < nbf) {
            return None;
        }
        let username = claims.get("username")?.as_str()?.to_string();
        Some(AuthInfo { username, revision: claims.get("revision")?.as_f64()? as u64 })
    }

    pub fn issue(&self, name: &str, revision: u64) -> Result<String, EtcdError> {
        let header = json!({"alg": self.method, "typ": "JWT"});
        let claims = json!({"username": name, "revision": revision, "exp": (now() + self.ttl).as_secs()});
        let message = [encode(&header), encode(&claims)].join(".");
        let signature = self.keys.sign(&message).ok_or(EtcdError::VerifyOnly)?;
        Ok(format!("{message}.{signature}"))
    }
}

impl Keys {
    /// The signature in base64; None without a key to sign with.
    fn sign(&self, message: &str) -> Option<String> {
        match self {
            Keys::Library { algorithm, signing, .. } => {
                let signed = jsonwebtoken::crypto::sign(message.as_bytes(), signing.as_ref()?, *algorithm);
                signed.inspect_err(|error| tracing::error!(%error, "cannot sign a token")).ok()
            }
            Keys::P521(keys) => Some(URL_SAFE_NO_PAD.encode(keys.sign(message.as_bytes())?)),
        }
    }

    fn verify(&self, message: &str, signature: &str) -> bool {
        match self {
            Keys::Library { algorithm, verifying, .. } => {
                jsonwebtoken::crypto::verify(signature, message.as_bytes(), verifying, *algorithm).unwrap_or(false)
            }
            Keys::P521(keys) => {
                URL_SAFE_NO_PAD.decode(signature).is_ok_and(|signature| keys.verify(message.as_bytes(), &signature))
            }
        }
    }
}

impl KeyFile {
    fn read(path: &str) -> Result<KeyFile, JwtError> {
        let content = fs::read(path).map_err(|error| JwtError::File { path: path.into(), error })?;
        Ok(KeyFile { path: path.into(), content })
    }

    fn wrong(&self, method: &str, detail: impl std::fmt::Display) -> JwtError {
        JwtError::Key { path: self.path.clone(), method: method.into(), detail: detail.to_string() }
    }
}

fn library_keys(
    algorithm: Algorithm,
    method: &str,
    private: Option<&KeyFile>,
    public: Option<&KeyFile>,
) -> Result<Keys, JwtError> {
    let family = algorithm.family();
    if family == AlgorithmFamily::Hmac {
        let secret = private.filter(|file| !file.content.is_empty()).ok_or(JwtError::MissingKey)?;
        let (signing, verifying) =
            (EncodingKey::from_secret(&secret.content), DecodingKey::from_secret(&secret.content));
        return Ok(Keys::Library { algorithm, signing: Some(signing), verifying });
    }
    let of_private = |file: &KeyFile| {
        let key = match family {
            AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(&file.content),
            AlgorithmFamily::Ec => match sec1_to_pkcs8(&file.content) {
                Some(der) => Ok(EncodingKey::from_ec_der(&der)),
                None => EncodingKey::from_ec_pem(&file.content),
            },
            AlgorithmFamily::Ed | AlgorithmFamily::Hmac => EncodingKey::from_ed_pem(&file.content),
        };
        let key = key.map_err(|error| file.wrong(method, error))?;
        // Its public half: a key that does not fit the method has none.
        let public = Jwk::from_encoding_key(&key, algorithm).map_err(|error| file.wrong(method, error))?;
        Ok::<_, JwtError>((key, public))
    };
    let of_public = |file: &KeyFile| {
        let key = match family {
            AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(&file.content),
            AlgorithmFamily::Ec => DecodingKey::from_ec_pem(&file.content),
            AlgorithmFamily::Ed | AlgorithmFamily::Hmac => DecodingKey::from_ed_pem(&file.content),
        };
        let key = key.map_err(|error| file.wrong(method, error))?;
        let public = Jwk::from_decoding_key(&key, Some(algorithm)).map_err(|error| file.wrong(method, error))?;
        Ok::<_, JwtError>((key, public))
    };
    match (private.map(of_private).transpose()?, public.map(of_public).transpose()?) {
        (None, None) => Err(JwtError::MissingKey),
        (Some((_, own)), Some((_, given))) if own.algorithm != given.algorithm => Err(JwtError::KeyMismatch),
        (None, Some((verifying, _))) => Ok(Keys::Library { algorithm, signing: None, verifying }),
        (Some((signing, own)), _) => {
            let wrong =
                |error| JwtError::Key { path: String::new(), method: method.into(), detail: format!("{error}") };
            let verifying = DecodingKey::from_jwk(&own).map_err(wrong)?;
            Ok(Keys::Library { algorithm, signing: Some(signing), verifying })
        }
    }
}

fn p521_keys(private: Option<&KeyFile>, public: Option<&KeyFile>) -> Result<ecdsa_p521::Keys, JwtError> {
    let (private_pem, public_pem) = (private.map(|file| &*file.content), public.map(|file| &*file.content));
    ecdsa_p521::Keys::new(private_pem, public_pem).map_err(|error| match error {
        ecdsa_p521::KeyError::Missing => JwtError::MissingKey,
        ecdsa_p521::KeyError::Mismatch => JwtError::KeyMismatch,
        ecdsa_p521::KeyError::Private(detail) => private.expect("it was read").wrong(ES512, detail),
        ecdsa_p521::KeyError::Public(detail) => public.expect("it was read").wrong(ES512, detail),
    })
}

/// OpenSSL writes keys of elliptic curves as `EC PRIVATE KEY` (SEC 1); the library takes `PRIVATE KEY` (PKCS #8), which
/// holds the same with the curve's name before it. None when the file is no such key.
fn sec1_to_pkcs8(pem: &[u8]) -> Option<Vec<u8>> {
    const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
    let text = std::str::from_utf8(pem).ok()?;
    let (_, rest) = text.split_once("-----BEGIN EC PRIVATE KEY-----")?;
    let (body, _) = rest.split_once("-----END EC PRIVATE KEY-----")?;
    let body: String = body.split_whitespace().collect();
    let key = base64::engine::general_purpose::STANDARD.decode(body).ok()?;
    let curve = [P256, P384].into_iter().find(|curve| key.windows(curve.len()).any(|window| window == *curve))?;
    let algorithm = der(0x30, &[EC_PUBLIC_KEY, curve].concat());
    Some(der(0x30, &[&[0x02, 0x01, 0x00][..], &algorithm, &der(0x04, &key)].concat()))
}

/// One value in DER.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match content.len() {
        length @ ..=0x7f => vec![length as u8],
        length @ ..=0xff => vec![0x81, length as u8],
        length => vec![0x82, (length >> 8) as u8, length as u8],
    };
    [&[tag][..], &length, content].concat()
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
