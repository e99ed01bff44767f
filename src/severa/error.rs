//! What goes wrong with a call, by what may have been done and who can mend it.

use crate::mail::one_line;
use serde::Deserialize;
use std::time::Duration;

/// Characters of an error's message that are kept.
const MAX_MESSAGE_CHARS: usize = 200;

/// Types of errors that an administrator of the company, or of Severa, must mend: they say nothing of the request.
const ACCOUNT_TYPES: [&str; 7] = [
    "InsufficientApiScope",
    "AddonMissing",
    "FeatureIsNotEnabled",
    "TermsOfServiceNotApproved",
    "OrganizationNotActive",
    "TrialExpired",
    "ConfigurationError",
];

/// Why there is no answer that could be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failed {
    /// Nothing was done: no connection, or no token now.
    #[error("{0}")]
    NotSent(String),
    /// Nothing was done: the place that gives tokens answers, and gives this company none now.
    #[error("{0}")]
    NoToken(String),
    /// 429: nothing was done, and the company's calls pause for this long.
    #[error("too many calls: a pause of {0:.1?}")]
    Busy(Duration),
    /// Nobody was asked: the company's calls pause for this long, after a 429.
    #[error("too many calls: a pause of {0:.1?}")]
    Paused(Duration),
    /// No answer, half an answer, 408, 5xx: what was asked for may have been done.
    #[error("{0}")]
    Lost(String),
    /// The company's settings, or what it has bought; nothing was done.
    #[error("{0}")]
    Account(String),
    /// The same, said by an answer that leaves open whether anything was done (5xx).
    #[error("{0}")]
    AccountOrLost(String),
    /// This request; nothing was done.
    #[error("{0}")]
    Refused(Refusal),
    /// Our own disk; what was sent was not complete.
    #[error("{0}")]
    Ours(String),
}

/// A request that the API does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}{}{}", word(.kind), word(.message))]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// The API's word for it, `InvalidParameter` for one; empty if it has none.
    pub kind: String,
    /// What it says, in one line of 200 characters.
    pub message: String,
}

fn word(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" {text}") }
}

/// An error as the API writes it: `{"error": {"type": …, "details": [{"message": …}]}}`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorAnswer {
    error: ErrorObject,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorObject {
    #[serde(rename = "type")]
    kind: Option<String>,
    details: Option<Vec<ErrorDetail>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorDetail {
    message: Option<String>,
}

/// True if it may be the API that says so: its errors have no body, or their own form.
pub(super) fn is_of_the_api(body: &[u8]) -> bool {
    let is_form = |value: serde_json::Value| value.get("error").is_some_and(serde_json::Value::is_object);
    body.trim_ascii().is_empty() || serde_json::from_slice(body).is_ok_and(is_form)
}

/// Type and message of an error, each in one line; empty where there is none.
fn parts_of(body: &[u8]) -> (String, String) {
    let ErrorAnswer { error } = serde_json::from_slice(body).unwrap_or_default();
    let details = error.details.unwrap_or_default().into_iter().filter_map(|detail| detail.message);
    let message = one_line(&details.collect::<Vec<_>>().join("; "));
    let kind = one_line(&error.kind.unwrap_or_default());
    (kind.chars().take(60).collect(), message.chars().take(MAX_MESSAGE_CHARS).collect())
}

/// What an error's body says, to be put behind its status.
pub(super) fn said(body: &[u8]) -> String {
    let (kind, message) = parts_of(body);
    format!("{}{}", word(&kind), word(&message))
}

/// What an answer other than success means.
pub(super) fn failed(status: u16, body: &[u8]) -> Failed {
    let (kind, message) = parts_of(body);
    let refusal = Refusal { status, kind, message };
    let text = || format!("Severa answers {refusal}");
    let is_account = ACCOUNT_TYPES.contains(&refusal.kind.as_str());
    match status {
        300..=407 | 409..=499 if is_account => Failed::Account(text()),
        _ if is_account => Failed::AccountOrLost(text()),
        401 | 407 => Failed::Account(text()),
        403 if refusal.kind.is_empty() => Failed::Account(text()),
        300..=399 => Failed::Account(format!("{}: a redirect is not followed, see backend.url", text())),
        400..=407 | 409..=499 => Failed::Refused(refusal),
        _ => Failed::Lost(text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_mean() {
        let error = |kind: &str| {
            format!(
                "{{\"error\":{{\"httpStatusCode\":400,\"type\":\"{kind}\",\"details\":[{{\"message\":\"a\\r\\nb\",\"url\":null}}]}}}}"
            )
        };
        let cases: &[(u16, String, &str)] = &[
            (400, error("InvalidParameter"), "Refused 400 InvalidParameter a  b"),
            (400, error("TypeOfNextYear"), "Refused 400 TypeOfNextYear a  b"),
            (400, error("ConfigurationError"), "Account Severa answers 400 ConfigurationError a  b"),
            (403, error("PermissionDenied"), "Refused 403 PermissionDenied a  b"),
            (403, error("InsufficientApiScope"), "Account Severa answers 403 InsufficientApiScope a  b"),
            (403, "<html>".to_owned(), "Account Severa answers 403"),
            (403, "{\"error\":{\"type\":null}}".to_owned(), "Account Severa answers 403"),
            (401, error("AuthenticationRequired"), "Account Severa answers 401 AuthenticationRequired a  b"),
            (302, String::new(), "Account Severa answers 302: a redirect is not followed, see backend.url"),
            (500, error("TrialExpired"), "AccountOrLost Severa answers 500 TrialExpired a  b"),
            (408, error("AddonMissing"), "AccountOrLost Severa answers 408 AddonMissing a  b"),
            (404, String::new(), "Refused 404"),
            (404, "[]".to_owned(), "Refused 404"),
            (408, String::new(), "Lost Severa answers 408"),
            (500, error("Unknown"), "Lost Severa answers 500 Unknown a  b"),
            (503, "gone".to_owned(), "Lost Severa answers 503"),
            (199, String::new(), "Lost Severa answers 199"),
        ];
        for (status, body, expected) in cases {
            let failed = failed(*status, body.as_bytes());
            let name = format!("{failed:?}");
            let name = name.split(['(', ' ']).next().unwrap();
            assert_eq!(&format!("{name} {failed}"), expected, "{status} {body}");
        }
    }
}
