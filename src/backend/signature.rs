//! Standard Webhooks 1.0.0 signatures: who receives an activity can tell that it is ours, whole, and fresh.
//!
//! In: secrets as `whsec_…`, and the exact bytes of a request body, piece by piece. Out: the header
//! `webhook-signature`, with one `v1,…` for each secret, so that a secret can be changed without a gap.
//! Fails: a secret that is none; reading the body.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use std::io;

/// Bytes of a secret that the specification allows.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The key of a `whsec_…` text.
/// # Errors
/// What is wrong with it; never the text itself.
pub fn key_of(secret: &str) -> Result<Vec<u8>, String> {
    let encoded = secret.strip_prefix("whsec_").ok_or("a signing secret begins with whsec_")?;
    let key = STANDARD.decode(encoded).map_err(|_| "what follows whsec_ must be base64")?;
    if SECRET_BYTES.contains(&key.len()) {
        Ok(key)
    } else {
        Err(format!("a signing secret has 24 to 64 bytes, and this one {}", key.len()))
    }
}

/// Signs a body with each key. `read` is given a sink and writes the whole body to it.
/// # Errors
/// Those of `read`.
pub(super) fn sign(
    keys: &[Vec<u8>],
    id: &str,
    timestamp: u64,
    read: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
) -> io::Result<String> {
    let start = format!("{id}.{timestamp}.");
    let begin = |key: &Vec<u8>| {
        let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.chain_update(start.as_bytes())
    };
    let mut macs: Vec<_> = keys.iter().map(begin).collect();
    read(&mut |piece| {
        macs.iter_mut().for_each(|mac| mac.update(piece));
        Ok(())
    })?;
    let signature = |mac: Hmac<Sha256>| format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    Ok(macs.into_iter().map(signature).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// By the library of the specification's authors, which takes text only.
    #[test]
    fn the_authors_library_says_the_same() {
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let key = key_of(SECRET).unwrap();
        let ours = sign(std::slice::from_ref(&key), id, 1_614_265_330, |sink| sink(body)).unwrap();
        assert_eq!(ours, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let theirs = standardwebhooks::Webhook::new(SECRET).unwrap();
        assert_eq!(theirs.sign(id, 1_614_265_330, body).unwrap(), ours);
        // In pieces, and with two secrets.
        let two =
            sign(&[key, vec![7; 32]], id, 1_614_265_330, |sink| body.chunks(3).try_for_each(sink)).unwrap();
        assert!(two.starts_with(&format!("{ours} v1,")), "{two}");
    }

    #[test]
    fn the_worked_example_of_the_contract() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/backend-api.yaml");
        let page: serde_json::Value =
            serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let example = &page["x-signature-example"];
        let text = |name: &str| example[name].as_str().unwrap();
        let key = key_of(text("secret")).unwrap();
        let timestamp = example["webhook-timestamp"].as_u64().unwrap();
        let signed = sign(&[key], text("webhook-id"), timestamp, |sink| sink(text("body").as_bytes()));
        assert_eq!(signed.unwrap(), text("webhook-signature"));
    }

    #[test]
    fn secrets_are_checked_and_never_shown() {
        for bad in [
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_???",
            "whsec_AAAA",
            &format!("whsec_{}", "A".repeat(88)),
        ] {
            let error = key_of(bad).unwrap_err();
            assert!(!error.contains(bad) && !error.contains("AAAA"), "{error}");
        }
    }
}
