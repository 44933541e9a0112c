//! ES512: ECDSA on P-521 with SHA-512. (RFC 7518, 3.4.)

use p521::{
    PublicKey, SecretKey,
    ecdsa::{
        Signature, SigningKey, VerifyingKey,
        signature::{Signer as _, Verifier as _},
    },
    pkcs8::{DecodePrivateKey as _, DecodePublicKey as _},
};

/// Which file is to blame, and why.
#[derive(Debug)]
pub enum KeyError {
    Missing,
    Mismatch,
    Private(String),
    Public(String),
}

pub struct Keys {
    signing: Option<SigningKey>,
    verifying: VerifyingKey,
}

impl Keys {
    /// From the contents of PEM files.
    pub fn new(private: Option<&[u8]>, public: Option<&[u8]>) -> Result<Keys, KeyError> {
        let private = private.map(|pem| private_key(pem).map_err(KeyError::Private)).transpose()?;
        let public = public.map(|pem| public_key(pem).map_err(KeyError::Public)).transpose()?;
        let own = private.as_ref().map(SecretKey::public_key);
        if own.is_some() && public.is_some() && own != public {
            return Err(KeyError::Mismatch);
        }
        let verifying = VerifyingKey::from(own.or(public).ok_or(KeyError::Missing)?);
        Ok(Keys { signing: private.map(|key| SigningKey::from(&key)), verifying })
    }

    /// Both numbers of the signature, one after the other; None without a private key.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signature: Signature = self.signing.as_ref()?.sign(message);
        Some(signature.to_bytes().to_vec())
    }

    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|signature| self.verifying.verify(message, &signature).is_ok())
    }
}

fn private_key(pem: &[u8]) -> Result<SecretKey, String> {
    let pem = std::str::from_utf8(pem).map_err(|error| error.to_string())?;
    if pem.contains("BEGIN EC PRIVATE KEY") {
        // OpenSSL may name the curve before the key.
        let begin = pem.find("-----BEGIN EC PRIVATE KEY").unwrap_or_default();
        return SecretKey::from_sec1_pem(&pem[begin..]).map_err(|error| error.to_string());
    }
    SecretKey::from_pkcs8_pem(pem).map_err(|error| error.to_string())
}

fn public_key(pem: &[u8]) -> Result<PublicKey, String> {
    let pem = std::str::from_utf8(pem).map_err(|error| error.to_string())?;
    PublicKey::from_public_key_pem(pem).map_err(|error| error.to_string())
}
