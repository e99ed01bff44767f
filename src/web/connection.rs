//! The connection to a system outside: TLS, proxy, base URL.
//!
//! In: [`Settings`]. Out: requests below the base URL, and their answers.
//! Promise: TLS 1.2 or newer by rustls; no redirect is followed; no proxy but a configured one.
//! Fails: [`ClientError`] for settings that cannot work, [`CallError`] for a request without an answer.

use super::call::{CallError, root};
use crate::source::unreadable;
use reqwest::{
    Certificate, ClientBuilder, Identity, RequestBuilder, Response, Url,
    header::{AUTHORIZATION, HeaderValue},
    redirect, tls,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Settings of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Base URL; `v1/…` is appended.
    pub url: Url,
    /// Time for connecting and for the answer; large requests get more, by their size.
    pub timeout: Duration,
    /// Authorities to trust besides the system's, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key for mutual TLS, PEM files.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A proxy; none: straight, whatever the environment says.
    pub proxy: Option<Url>,
}

impl Settings {
    /// A connection with nothing special.
    pub fn new(url: Url, timeout: Duration) -> Self {
        Self { url, timeout, ca_file: None, identity: None, proxy: None }
    }
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("backend: {0}")]
pub struct ClientError(String);

impl ClientError {
    /// In words for an administrator.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// The connection.
#[derive(Debug)]
pub struct Connection {
    http: reqwest::Client,
    base: Url,
    identity: Option<(PathBuf, PathBuf)>,
}

impl Connection {
    /// Prepares the connection; connects to nobody yet.
    /// # Errors
    /// Files that cannot be read or are not what they should be; an URL that cannot be a base.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        // reqwest takes the process's provider; the first one installed stays, and it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = match builder(settings)?.build() {
            Ok(http) => http,
            // A machine without authorities to trust can speak HTTP without TLS.
            Err(error) if trusts_nobody(&error) && settings.url.scheme() == "http" => {
                let builder = builder(settings)?.tls_certs_only([]);
                builder.build().map_err(|error| ClientError::new(root(&error)))?
            }
            Err(error) if trusts_nobody(&error) => {
                let text = "this machine trusts no certificate authority: install ca-certificates, or name one with ca_file";
                return Err(ClientError::new(format!("{}: {text}", settings.url)));
            }
            Err(error) => return Err(ClientError::new(root(&error))),
        };
        if settings.url.cannot_be_a_base() {
            return Err(ClientError::new(format!("{} cannot be a base URL", settings.url)));
        }
        Ok(Self { http, base: settings.url.clone(), identity: settings.identity.clone() })
    }

    /// True if both go to the same system, with the same certificate.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.base == other.base && self.identity == other.identity
    }

    /// What requests are built with.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// The URL of a path below the base, each segment percent-encoded.
    pub fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }
}

/// A client's settings.
fn builder(settings: &Settings) -> Result<ClientBuilder, ClientError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("activity-milter/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(settings.timeout)
        .timeout(settings.timeout)
        .tls_version_min(tls::Version::TLS_1_2)
        // A redirected POST is a wrong URL of ours; it must not carry mail to whoever answered.
        .redirect(redirect::Policy::none())
        .no_proxy();
    if let Some(path) = &settings.ca_file {
        let pem = read(path)?;
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| in_file(path, &error))?;
        if authorities.is_empty() {
            return Err(ClientError::new(format!("{} holds no certificate in PEM form", path.display())));
        }
        builder = builder.tls_certs_merge(authorities);
    }
    if let Some((certificate, key)) = &settings.identity {
        let pem = identity(certificate, key)?;
        builder = builder.identity(Identity::from_pem(&pem).map_err(|error| in_file(certificate, &error))?);
    }
    if let Some(proxy) = &settings.proxy {
        let proxy = reqwest::Proxy::all(proxy.clone());
        builder = builder.proxy(proxy.map_err(|error| ClientError::new(root(&error)))?);
    }
    Ok(builder)
}

/// A certificate and its key. Which of the files lacks what the library does not say.
fn identity(certificate: &Path, key: &Path) -> Result<Vec<u8>, ClientError> {
    let (chain, own) = (read(certificate)?, read(key)?);
    let has = |pem: &[u8], label: &str| {
        let begin = format!("{label}-----");
        pem.windows(begin.len()).any(|text| text == begin.as_bytes())
    };
    if !has(&chain, "BEGIN CERTIFICATE") {
        return Err(ClientError::new(format!("{} holds no certificate in PEM form", certificate.display())));
    }
    if has(&own, "BEGIN ENCRYPTED PRIVATE KEY") || has(&own, "Proc-Type: 4,ENCRYPTED") {
        let key = key.display();
        return Err(ClientError::new(format!(
            "{key} is encrypted, and nobody is asked for its password: write it without"
        )));
    }
    if !has(&own, "PRIVATE KEY") {
        return Err(ClientError::new(format!("{} holds no private key in PEM form", key.display())));
    }
    Ok([own, b"\n".to_vec(), chain].concat())
}

/// True if a client cannot be made because there are no certificates of authorities; reqwest has only words for it.
fn trusts_nobody(error: &reqwest::Error) -> bool {
    root(error).contains("No CA certificates")
}

/// Sends a request once, with a bearer token (RFC 6750).
/// # Errors
/// [`CallError`]; an answer with an error status is none.
pub async fn send_once(request: RequestBuilder, credential: Option<&str>) -> Result<Response, CallError> {
    let request = match credential {
        None => request,
        Some(token) => {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                CallError::Credentials("the bearer token cannot stand in a header".to_owned())
            })?;
            value.set_sensitive(true);
            request.header(AUTHORIZATION, value)
        }
    };
    request.send().await.map_err(CallError::of)
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(path).map_err(|error| ClientError::new(format!("{} {}", path.display(), unreadable(&error))))
}

fn in_file(path: &Path, error: &reqwest::Error) -> ClientError {
    ClientError::new(format!("{} is no PEM file that can be used: {}", path.display(), root(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_and_encoded() {
        for (base, expected) in [
            ("https://crm.test", "https://crm.test/v1/tenants/a%2Fb%20%C3%A5/resolve"),
            ("https://crm.test/base/", "https://crm.test/base/v1/tenants/a%2Fb%20%C3%A5/resolve"),
            ("https://crm.test/base", "https://crm.test/base/v1/tenants/a%2Fb%20%C3%A5/resolve"),
        ] {
            let client =
                Connection::new(&Settings::new(base.parse().unwrap(), Duration::from_secs(1))).unwrap();
            assert_eq!(client.url(&["v1", "tenants", "a/b å", "resolve"]).as_str(), expected);
        }
    }
}
