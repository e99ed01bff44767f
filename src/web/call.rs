//! What comes of a call over HTTP, whoever makes it: the words for failure, and bounded answers.

use crate::mail::one_line;
use reqwest::{Response, header::RETRY_AFTER};
use std::time::{Duration, SystemTime};

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// No connection: others would fail alike.
    #[error("{0}")]
    Unreachable(String),
    /// A connection, and no answer in time.
    #[error("{0}")]
    Silent(String),
    /// The connection broke, or what came is no answer. It may be this request's doing: a server that refuses early and
    /// closes is seen so.
    #[error("{0}")]
    Broken(String),
    /// The place that gives tokens has too much to do: nothing was asked, and nobody asks for so long.
    #[error("too many calls: a pause of {0:.1?}")]
    Busy(Duration),
    /// TLS ended it: perhaps it refuses our certificate, which TLS 1.3 says when the connection seems to stand; perhaps it
    /// broke in the midst of an answer.
    #[error("{0}")]
    Severed(String),
    /// We have no credential to show: our settings.
    #[error("{0}")]
    Credentials(String),
    /// Our own disk, our own fault: it says nothing of the other side.
    #[error("{0}")]
    Ours(String),
}

impl CallError {
    /// What reqwest says, with host and port, and without the rest of the URL: that may hold what is nobody's business.
    pub(super) fn of(error: reqwest::Error) -> Self {
        let (connects, is_tls, late) = (error.is_connect(), is_tls(&error), error.is_timeout());
        let place = error.url().map_or("the server".to_owned(), place);
        let why = root(&error.without_url());
        match (connects, is_tls, late) {
            (true, _, true) => Self::Unreachable(format!("no connection to {place} in time")),
            (true, _, _) => Self::Unreachable(format!("no connection to {place}: {why}")),
            (false, true, _) => Self::Severed(format!("TLS with {place} ended: {why}")),
            (false, false, true) => Self::Silent(format!("{place} does not answer in time")),
            (false, false, false) => Self::Broken(format!("the connection to {place} broke: {why}")),
        }
    }
}

/// Whether the cause is TLS itself: a certificate, an alert.
fn is_tls(error: &dyn std::error::Error) -> bool {
    let inner = |error: &(dyn std::error::Error + 'static)| {
        let io = error.downcast_ref::<std::io::Error>()?;
        Some(io.get_ref()?.is::<rustls::Error>())
    };
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.into_iter().any(|cause| cause.is::<rustls::Error>() || inner(cause) == Some(true))
}

/// The first bytes of an answer; whatever goes wrong, what came so far.
pub async fn body_of(mut response: Response, most: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < most
        && let Ok(Some(piece)) = response.chunk().await
    {
        body.extend_from_slice(&piece);
    }
    body.truncate(most);
    body
}

/// A whole answer.
/// # Errors
/// It broke off, or is longer than `most` bytes.
pub async fn read_whole(mut response: Response, most: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| chain(&error.without_url()))? {
        if body.len() + piece.len() > most {
            return Err(format!("it is longer than {most} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Why a document is not what was expected, without what stands in it: that may be a token, or somebody's mail.
pub fn misread(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Io => "it broke off",
        serde_json::error::Category::Syntax => "it is no JSON",
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Data => "it has something else where we expect something",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

/// Host and port.
fn place(url: &reqwest::Url) -> String {
    let port = url.port_or_known_default().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", url.host_str().unwrap_or("the server"))
}

/// The first cause of an error, in one line: what libraries say above it names their own parts only.
pub(super) fn root(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    one_line(without_number(&text))
}

/// What the system says, without its number.
fn without_number(text: &str) -> &str {
    text.split_once(" (os error ").map_or(text, |(text, _)| text)
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = without_number(&error.to_string()).to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {}", without_number(&error.to_string()));
        cause = error.source();
    }
    one_line(&text)
}

/// `Retry-After` of an answer (RFC 9110, section 10.2.3).
pub fn retry_after(response: &Response) -> Option<Duration> {
    span_of(response.headers().get(RETRY_AFTER)?.to_str().ok()?)
}

/// In both forms: seconds, or a date.
fn span_of(value: &str) -> Option<Duration> {
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value.trim()).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        assert_eq!(span_of("120"), Some(Duration::from_secs(120)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        let after = span_of(&date).unwrap();
        assert!(after > Duration::from_secs(3590) && after <= Duration::from_secs(3600));
        assert_eq!(span_of("Mon, 01 Jan 2024 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(span_of("soon"), None);
    }
}
