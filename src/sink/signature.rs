//! Checks Standard Webhooks signatures while a body streams past; by ring, where the sender uses another implementation.

use super::Problem;
use axum::{
    body::{Body, BodyDataStream, Bytes},
    http::{HeaderMap, StatusCode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{Stream, StreamExt, stream};
use ring::hmac;
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::SystemTime,
};
use subtle::{Choice, ConstantTimeEq};

/// Seconds that clocks may differ, and that a request may take to be sent: as the libraries of the specification.
const TOLERANCE: u64 = 300;

/// Reads the keys of `whsec_…` texts.
/// # Errors
/// A text that is none.
pub(super) fn keys(secrets: &[String]) -> Result<Vec<hmac::Key>, String> {
    let key = |secret: &String| {
        let encoded = secret.strip_prefix("whsec_").unwrap_or_default();
        match STANDARD.decode(encoded) {
            Ok(key) if !key.is_empty() => Ok(hmac::Key::new(hmac::HMAC_SHA256, &key)),
            _ => Err("a signing secret is whsec_ and base64".to_owned()),
        }
    };
    secrets.iter().map(key).collect()
}

/// A body on its way to whoever reads it.
#[derive(Clone)]
pub(super) struct Tap(Arc<Mutex<Inner>>);

struct Inner {
    body: BodyDataStream,
    macs: Vec<hmac::Context>,
    expected: Vec<Vec<u8>>,
}

impl Tap {
    /// Begins to check; without keys everything is right.
    /// # Errors
    /// Headers that are missing or malformed, a timestamp out of bounds: 401.
    pub(super) fn new(headers: &HeaderMap, body: Body, keys: &[hmac::Key]) -> Result<Self, Problem> {
        let inner = match keys {
            [] => Inner { body: body.into_data_stream(), macs: Vec::new(), expected: Vec::new() },
            keys => {
                let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
                let (Some(id), Some(timestamp), Some(signatures)) =
                    (text("webhook-id"), text("webhook-timestamp"), text("webhook-signature"))
                else {
                    return Err(unsigned("webhook-id, webhook-timestamp or webhook-signature is missing"));
                };
                let now =
                    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                if !timestamp.parse::<u64>().is_ok_and(|then| then.abs_diff(now) <= TOLERANCE) {
                    return Err(unsigned("webhook-timestamp is more than five minutes away from our clock"));
                }
                let start = format!("{id}.{timestamp}.");
                let begin = |key| {
                    let mut mac = hmac::Context::with_key(key);
                    mac.update(start.as_bytes());
                    mac
                };
                let decode = |signature: &str| STANDARD.decode(signature.strip_prefix("v1,")?).ok();
                let expected = signatures.split(' ').filter_map(decode).collect();
                Inner { body: body.into_data_stream(), macs: keys.iter().map(begin).collect(), expected }
            }
        };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    /// The body, for whoever reads it.
    pub(super) fn body(&self) -> Body {
        let this = self.clone();
        Body::from_stream(stream::poll_fn(move |cx| this.poll(cx)))
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Pin::new(&mut inner.body).poll_next(cx);
        if let Poll::Ready(Some(Ok(piece))) = &next {
            inner.macs.iter_mut().for_each(|mac| mac.update(piece));
        }
        next
    }

    /// Reads what nobody has read, and says whether the whole was signed with one of the keys. Also for a request that
    /// is answered without looking at it: a client that is still sending when the connection closes would see a reset
    /// and not the answer.
    /// # Errors
    /// 401.
    pub(super) async fn finish(&self) -> Result<(), Problem> {
        let mut rest = self.body().into_data_stream();
        while let Some(Ok(_)) = rest.next().await {}
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let macs = std::mem::take(&mut inner.macs);
        // Each signature with each key, in a time that does not tell how much of one is right.
        let is_right = |mac: hmac::Context| {
            let tag = mac.sign();
            let right = |found, expected: &Vec<u8>| found | expected.ct_eq(tag.as_ref());
            inner.expected.iter().fold(Choice::from(0), right)
        };
        let without_keys = Choice::from(u8::from(macs.is_empty()));
        if macs.into_iter().fold(without_keys, |found, mac| found | is_right(mac)).into() {
            Ok(())
        } else {
            Err(unsigned("webhook-signature is not of these bytes and this secret"))
        }
    }
}

fn unsigned(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a panic is the answer of a test

    use super::*;

    #[tokio::test]
    async fn one_signature_must_be_right_to_its_last_byte() {
        let secrets = ["first", "second"].map(|key| format!("whsec_{}", STANDARD.encode(key)));
        let keys = keys(&secrets).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let tag = |key: &hmac::Key| hmac::sign(key, format!("id.{now}.body").as_bytes()).as_ref().to_vec();
        let (first, second) = (tag(&keys[0]), tag(&keys[1]));
        let (mut begins_wrong, mut ends_wrong) = (first.clone(), first.clone());
        begins_wrong[0] ^= 1;
        ends_wrong[31] ^= 1;
        let long = [first.clone(), vec![0]].concat();
        for (given, right) in [
            (vec![&first], true),
            (vec![&second], true),
            (vec![&begins_wrong, &second], true),
            (vec![&first, &begins_wrong], true),
            (vec![&begins_wrong], false),
            (vec![&ends_wrong, &begins_wrong], false),
            (vec![&first[..31].to_vec()], false),
            (vec![&long], false),
            (vec![&Vec::new()], false),
        ] {
            let given: Vec<String> =
                given.iter().map(|tag| format!("v1,{}", STANDARD.encode(tag.as_slice()))).collect();
            let mut headers = HeaderMap::new();
            headers.insert("webhook-id", "id".parse().unwrap());
            headers.insert("webhook-timestamp", now.to_string().parse().unwrap());
            headers.insert("webhook-signature", given.join(" ").parse().unwrap());
            let tap = Tap::new(&headers, Body::from("body"), &keys).unwrap();
            assert_eq!(tap.finish().await.is_ok(), right, "{given:?}");
        }
    }
}
