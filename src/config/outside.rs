//! The world outside, by type: the business system, and the directory that says who is who.
//!
//! In: `[backend]` and `[directory]`. Out: both, made: the connection first, which they share.
//! Promise: nobody else names a type; what a directory knows outlives a reload, as long as it is the same directory.
//! Fails: [`SourceError`] for what is written wrong, [`OutsideError`] for what cannot be made.

use super::{Delivery, Size, Span, Text, readable, secret};
use crate::backend::{Backend, HttpBackend, HttpSettings, signing_key_of};
use crate::directory::{self, Directory, FileDirectory, HttpDirectory};
use crate::intake::END_TIME;
use crate::source::{Source, SourceError};
use crate::web::{
    AuthMethod, Client, ClientError, ClientSettings, ConnectionSettings, Credentials, OAuthSettings,
};
use miette::Diagnostic;
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc, time::Duration};
use toml::Spanned;

/// What business system, with its settings.
#[derive(Clone, Debug)]
pub enum BackendKind {
    /// Any, over our HTTP contract.
    Http(HttpSettings),
}

/// What directory, with its settings.
#[derive(Clone, Debug)]
pub enum DirectoryKind {
    /// A TOML file (DESIGN appendix B).
    File {
        /// Its path.
        path: PathBuf,
    },
    /// The backend's look-ups, with a cache before them.
    Http(directory::CacheSettings),
}

/// The world outside, as configured.
#[derive(Clone, Debug)]
pub struct OutsideSettings {
    /// The connection.
    pub client: ClientSettings,
    /// The business system.
    pub backend: BackendKind,
    /// Who is who.
    pub directory: DirectoryKind,
}

/// Why the world outside cannot be used as it is configured.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum OutsideError {
    /// The connection, or the business system.
    #[error(transparent)]
    Backend(#[from] ClientError),
    /// The directory file.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Directory(#[from] SourceError),
}

/// The world outside.
#[derive(Clone)]
pub struct Outside {
    backend: Arc<dyn Backend>,
    directory: Known,
}

/// A directory, by the type that is needed to take it along into another configuration.
#[derive(Clone)]
enum Known {
    File(PathBuf, Arc<FileDirectory>),
    Http(Arc<HttpDirectory>),
}

impl OutsideSettings {
    /// Makes both; a directory file is read once. For commands. Connects to nobody.
    /// # Errors
    /// [`OutsideError`].
    pub fn open(&self) -> Result<Outside, OutsideError> {
        let client = Arc::new(Client::new(&self.client)?);
        let directory = match &self.directory {
            DirectoryKind::File { path } => Known::File(path.clone(), Arc::new(FileDirectory::open(path)?)),
            DirectoryKind::Http(cache) => Known::http(HttpDirectory::new(Arc::clone(&client), cache.clone())),
        };
        Ok(Outside { backend: self.backend(client)?, directory })
    }

    /// Makes the business system alone.
    /// # Errors
    /// Settings that cannot work.
    pub fn open_backend(&self) -> Result<Arc<dyn Backend>, ClientError> {
        self.backend(Arc::new(Client::new(&self.client)?))
    }

    /// Makes both for the service; a directory file is waited for until nobody writes it, and read again when it changes.
    /// `before`: what is in use so far; its directory stays, with what it knows, if it is the same one.
    /// # Errors
    /// [`OutsideError`]; nothing has changed then.
    pub async fn start(&self, before: Option<&Outside>) -> Result<Outside, OutsideError> {
        let client = Arc::new(Client::new(&self.client)?);
        let backend = self.backend(Arc::clone(&client))?;
        let directory = match (&self.directory, before.map(|before| &before.directory)) {
            (DirectoryKind::File { path }, Some(Known::File(same, file))) if path == same => {
                file.reload().await?;
                Known::File(path.clone(), Arc::clone(file))
            }
            (DirectoryKind::File { path }, _) => {
                let file = Arc::new(FileDirectory::settled(path).await?);
                if before.is_some() && file.names_nobody() {
                    let message =
                        "names no tenant, so that all mail would be refused: write its tenants first";
                    return Err(SourceError::about(path, message).into());
                }
                tokio::spawn(file.watch());
                Known::File(path.clone(), file)
            }
            (DirectoryKind::Http(cache), Some(Known::Http(http))) => {
                Known::http(http.renewed(client, cache.clone()))
            }
            (DirectoryKind::Http(cache), _) => Known::http(HttpDirectory::new(client, cache.clone())),
        };
        Ok(Outside { backend, directory })
    }

    fn backend(&self, client: Arc<Client>) -> Result<Arc<dyn Backend>, ClientError> {
        match &self.backend {
            BackendKind::Http(settings) => Ok(Arc::new(HttpBackend::new(client, settings.clone())?)),
        }
    }
}

impl Known {
    fn http(directory: HttpDirectory) -> Self {
        Self::Http(Arc::new(directory))
    }
}

impl Outside {
    /// The business system.
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend)
    }

    /// Who is who.
    pub fn directory(&self) -> Arc<dyn Directory> {
        match &self.directory {
            Known::File(_, file) => Arc::clone(file) as Arc<dyn Directory>,
            Known::Http(http) => Arc::clone(http) as Arc<dyn Directory>,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectoryText {
    /// `file` (default) or `http`: the backend's look-ups.
    #[serde(rename = "type", default)]
    kind: DirectoryType,
    /// The directory file, for `file`.
    path: Option<Spanned<PathBuf>>,
    /// How long what the backend says counts, unless its Cache-Control says otherwise; default 5 min.
    #[serde(default = "five_minutes")]
    cache_hits: Text<Span>,
    /// The same for "there is none"; default 30 s.
    #[serde(default = "thirty_seconds")]
    cache_misses: Text<Span>,
    /// How long an answer is used past its time while the backend is down; default 24 h.
    #[serde(default = "one_day")]
    cache_stale: Text<Span>,
    /// Memory for answers; default 16 MiB.
    #[serde(default = "sixteen_mebibytes")]
    cache_size: Text<Size>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DirectoryType {
    #[default]
    File,
    Http,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendText {
    /// `http`.
    #[serde(rename = "type", default)]
    _type: BackendType,
    /// Base URL; `v1/…` is appended.
    url: Spanned<String>,
    /// Allow `http:` to hosts other than this one; default false.
    #[serde(default)]
    allow_plain_http: bool,
    /// File with the bearer token; read again when it changes.
    token_file: Option<Spanned<PathBuf>>,
    /// OAuth 2 client credentials instead of a token.
    oauth: Option<Spanned<OAuthText>>,
    /// File with one or two signing secrets (`whsec_…`, a line each, the newest first); read again when it changes.
    signing_secret_file: Option<Spanned<PathBuf>>,
    /// PEM file with authorities to trust besides the system's.
    ca_file: Option<Spanned<PathBuf>>,
    /// PEM file with our certificate, for mutual TLS.
    client_certificate_file: Option<Spanned<PathBuf>>,
    /// PEM file with its key.
    client_key_file: Option<Spanned<PathBuf>>,
    /// Proxy for all requests to the backend; default none, whatever the environment says.
    proxy: Option<Spanned<String>>,
    /// `queued` (default) or `direct`: delivered at end of message, and the outcome is the SMTP reply.
    #[serde(default)]
    pub(super) delivery: Delivery,
    /// Time for connecting and for an answer; default 30 s.
    #[serde(default = "backend_timeout")]
    timeout: Spanned<Text<Span>>,
    /// Attempts at a time; default 32.
    #[serde(default = "thirty_two")]
    pub(super) max_in_flight: Spanned<usize>,
    /// Send the raw message too; default false.
    #[serde(default)]
    include_raw_message: bool,
    /// Delay before the second attempt; default 1 s. Each further one waits twice as long.
    #[serde(default = "one_second")]
    pub(super) retry_first: Text<Span>,
    /// Longest delay between attempts; default 10 min.
    #[serde(default = "ten_minutes")]
    pub(super) retry_max: Text<Span>,
}

/// `[backend.oauth]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OAuthText {
    /// The token endpoint.
    token_url: Spanned<String>,
    /// Our name there.
    client_id: String,
    /// File with our secret; read anew for each token.
    client_secret_file: Spanned<PathBuf>,
    /// What to ask for; default nothing in particular.
    #[serde(default)]
    scopes: Vec<String>,
    /// For whom the token shall be, where the endpoint wants to know (`audience`); default nobody in particular.
    audience: Option<String>,
    /// How the endpoint is told name and secret: `client_secret_basic` (default, HTTP Basic) or `client_secret_post` (in
    /// the request's body).
    #[serde(default)]
    auth_method: AuthMethod,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BackendType {
    #[default]
    Http,
}

fn thirty_seconds() -> Text<Span> {
    Text(Span(Duration::from_secs(30)))
}

fn backend_timeout() -> Spanned<Text<Span>> {
    Spanned::new(0..0, thirty_seconds())
}

fn five_minutes() -> Text<Span> {
    Text(Span(Duration::from_secs(300)))
}

fn one_day() -> Text<Span> {
    Text(Span(Duration::from_secs(24 * 3600)))
}

fn sixteen_mebibytes() -> Text<Size> {
    Text(Size(16 * 1024 * 1024))
}

fn one_second() -> Text<Span> {
    Text(Span(Duration::from_secs(1)))
}

fn ten_minutes() -> Text<Span> {
    Text(Span(Duration::from_secs(600)))
}

fn thirty_two() -> Spanned<usize> {
    Spanned::new(0..0, 32)
}

impl DirectoryText {
    pub(super) fn validate(self, source: &Source) -> Result<DirectoryKind, SourceError> {
        match (self.kind, self.path) {
            (DirectoryType::File, Some(path)) => {
                readable(source, &path)?;
                Ok(DirectoryKind::File { path: path.into_inner() })
            }
            (DirectoryType::File, None) => Err(source
                .error(0..0, "directory.path is missing: name the directory file, or set type = \"http\"")),
            (DirectoryType::Http, Some(path)) => {
                Err(source
                    .error(path.span(), "type = \"http\" asks the backend (backend.url) and reads no file"))
            }
            (DirectoryType::Http, None) => Ok(DirectoryKind::Http(directory::CacheSettings {
                hits: self.cache_hits.0.0,
                misses: self.cache_misses.0.0,
                stale: self.cache_stale.0.0,
                size: self.cache_size.0.0,
            })),
        }
    }
}

/// Time that a direct delivery leaves for everything else at end of message.
const DIRECT_MARGIN: Duration = Duration::from_secs(10);

impl BackendText {
    pub(super) fn validate(self, source: &Source) -> Result<(ClientSettings, BackendKind), SourceError> {
        let url = web_address(source, &self.url, self.allow_plain_http)?;
        without_password(source, &self.url, &url, "backend.token_file")?;
        let credentials = match (&self.token_file, self.oauth) {
            (None, None) => Credentials::None,
            (Some(file), None) => {
                secret(source, file)?;
                Credentials::Token(file.get_ref().clone())
            }
            (None, Some(oauth)) => {
                Credentials::OAuth(oauth.into_inner().validate(source, self.allow_plain_http)?)
            }
            (Some(_), Some(oauth)) => {
                return Err(source.error(oauth.span(), "either oauth or token_file: both are bearer tokens"));
            }
        };
        if let Some(file) = &self.signing_secret_file {
            for text in secret(source, file)?.all().iter() {
                let wrong =
                    |error| source.error(file.span(), format!("{}: {error}", file.get_ref().display()));
                signing_key_of(text).map_err(wrong)?;
            }
        }
        for file in
            [&self.ca_file, &self.client_certificate_file, &self.client_key_file].into_iter().flatten()
        {
            readable(source, file)?;
        }
        let path = |file: &Option<Spanned<PathBuf>>| file.as_ref().map(|file| file.get_ref().clone());
        let identity = match (&self.client_certificate_file, &self.client_key_file) {
            (Some(certificate), Some(key)) => Some((certificate.get_ref().clone(), key.get_ref().clone())),
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => {
                let message = "client_certificate_file and client_key_file come together";
                return Err(source.error(one.span(), message));
            }
        };
        let proxy = match &self.proxy {
            Some(proxy) => Some(web_address(source, proxy, true)?),
            None => None,
        };
        let timeout = self.timeout.get_ref().0.0;
        if self.delivery == Delivery::Direct && timeout > END_TIME.saturating_sub(DIRECT_MARGIN) {
            let most = END_TIME.saturating_sub(DIRECT_MARGIN).as_secs();
            let message = format!("with delivery = \"direct\" the SMTP client waits: at most {most}s");
            return Err(source.error(self.timeout.span(), message));
        }
        let connection = ConnectionSettings { url, timeout, ca_file: path(&self.ca_file), identity, proxy };
        let client = ClientSettings { connection, credentials };
        // What a PEM file holds, the TLS library says best.
        let mut spans =
            [&self.ca_file, &self.client_certificate_file].into_iter().flatten().map(Spanned::span);
        let place = spans.next_back().unwrap_or_else(|| self.url.span());
        Client::new(&client).map_err(|error| source.error(place, error))?;
        let http = HttpSettings {
            timeout,
            signing_secret_file: path(&self.signing_secret_file),
            include_raw_message: self.include_raw_message,
        };
        Ok((client, BackendKind::Http(http)))
    }
}

impl OAuthText {
    pub(super) fn validate(self, source: &Source, plain: bool) -> Result<OAuthSettings, SourceError> {
        let token_url = web_address(source, &self.token_url, plain)?;
        without_password(source, &self.token_url, &token_url, "client_secret_file")?;
        secret(source, &self.client_secret_file)?;
        Ok(OAuthSettings {
            token_url,
            client_id: self.client_id,
            client_secret_file: self.client_secret_file.into_inner(),
            scopes: self.scopes,
            audience: self.audience,
            auth_method: self.auth_method,
        })
    }
}

/// What stands in a URL is logged, shown by `check`, and read by everybody who may read the configuration.
fn without_password(
    source: &Source,
    text: &Spanned<String>,
    url: &reqwest::Url,
    remedy: &str,
) -> Result<(), SourceError> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(());
    }
    let message = format!("a name or password does not belong into a URL: use {remedy}");
    Err(source.error(text.span(), message))
}

/// An URL that we send mail or secrets to: encrypted, unless it stays on this machine or somebody said otherwise.
fn web_address(source: &Source, text: &Spanned<String>, plain: bool) -> Result<reqwest::Url, SourceError> {
    let url = reqwest::Url::parse(text.get_ref()).ok();
    let Some(url) = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) else {
        // What may hold a password is not repeated.
        let shown = match text.get_ref() {
            text if text.contains('@') => "this".to_owned(),
            text => format!("\"{text}\""),
        };
        let message = format!("{shown} is no URL: write one like \"https://crm.example.com/\"");
        return Err(source.error(text.span(), message));
    };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if url.scheme() == "http" && !is_here && !plain {
        let message =
            "mail and secrets would travel unencrypted: write https, or set backend.allow_plain_http = true";
        return Err(source.error(text.span(), message));
    }
    Ok(url)
}
