//! The world outside, by type: the business system, and the directory that says who is who.
//!
//! In: `[backend]` and `[directory]`. Out: both, made: the connection first, which they share.
//! Promise: nobody else names a type; what a directory knows outlives a reload, as long as it is the same directory.
//! Fails: [`SourceError`] for what is written wrong, [`OutsideError`] for what cannot be made.

use super::{
    Delivery,
    reading::Reading,
    severa::{self, Company, SeveraText},
    units::{Size, Span, Text},
};
use crate::backend::{
    Backend, CompanySettings, HttpBackend, HttpSettings, SeveraBackend, Unsure, signing_key_of,
};
use crate::directory::{
    self, Directory, FileDirectory, HttpDirectory, SeveraDirectory, SeveraSettings, SeveraTenant,
};
use crate::intake::END_TIME;
use crate::severa::{Client as SeveraClient, CopyError};
use crate::source::SourceError;
use crate::web::{
    AuthMethod, Client, ClientError, ClientSettings, ConnectionSettings, Credentials, OAuthSettings,
};
use miette::Diagnostic;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use toml::Spanned;

/// What business system, with its settings.
#[derive(Clone, Debug)]
pub enum BackendKind {
    /// Any, over our HTTP contract.
    Http(HttpSettings),
    /// Visma Severa, for these companies.
    Severa(Vec<Company>),
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
    /// A copy of what Severa has, of the backend's companies.
    Severa(SeveraSettings),
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
    /// The copy of Severa.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// The world outside.
#[derive(Clone)]
pub struct Outside {
    backend: Arc<dyn Backend>,
    directory: Known,
    accounts: Accounts,
}

/// What Severa counts and we remember of each company, from one configuration to the next.
#[derive(Clone, Default)]
struct Accounts {
    clients: Vec<Arc<SeveraClient>>,
    /// Of companies that are gone from the configuration: deliveries may be under way, and Severa counts on.
    gone: Vec<Arc<SeveraClient>>,
    unsure: Arc<Unsure>,
}

/// A directory, by the type that is needed to take it along into another configuration.
#[derive(Clone)]
enum Known {
    File(PathBuf, Arc<FileDirectory>),
    Http(Arc<HttpDirectory>),
    Severa(Arc<SeveraDirectory>),
}

impl OutsideSettings {
    /// Makes both; a directory file is read once. For commands. Connects to nobody.
    /// # Errors
    /// [`OutsideError`].
    pub fn open(&self) -> Result<Outside, OutsideError> {
        let client = Arc::new(Client::new(&self.client)?);
        let accounts = self.accounts(None)?;
        let directory = match &self.directory {
            DirectoryKind::File { path } => Known::File(path.clone(), Arc::new(FileDirectory::open(path)?)),
            DirectoryKind::Http(cache) => Known::http(HttpDirectory::new(Arc::clone(&client), cache.clone())),
            DirectoryKind::Severa(settings) => {
                Known::Severa(Arc::new(SeveraDirectory::open(settings, self.tenants(&accounts))?))
            }
        };
        Ok(Outside { backend: self.backend(client, &accounts)?, directory, accounts })
    }

    /// Makes the directory alone. A file needs no connection, and so no secret. For commands.
    /// # Errors
    /// [`OutsideError`].
    pub fn open_directory(&self) -> Result<Arc<dyn Directory>, OutsideError> {
        match &self.directory {
            DirectoryKind::File { path } => Ok(Arc::new(FileDirectory::open(path)?)),
            DirectoryKind::Http(_) | DirectoryKind::Severa(_) => Ok(self.open()?.directory()),
        }
    }

    /// Makes the business system alone.
    /// # Errors
    /// Settings that cannot work.
    pub fn open_backend(&self) -> Result<Arc<dyn Backend>, ClientError> {
        self.backend(Arc::new(Client::new(&self.client)?), &self.accounts(None)?)
    }

    /// Makes both for the service; a directory file is waited for until nobody writes it, and read again when it changes;
    /// a copy of Severa is kept up to date.
    /// `before`: what is in use so far; its directory stays, with what it knows, if it is the same one.
    /// # Errors
    /// [`OutsideError`]; nothing has changed then.
    pub async fn start(&self, before: Option<&Outside>) -> Result<Outside, OutsideError> {
        let client = Arc::new(Client::new(&self.client)?);
        let accounts = self.accounts(before)?;
        let backend = self.backend(Arc::clone(&client), &accounts)?;
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
            (DirectoryKind::Severa(settings), Some(Known::Severa(copy))) => {
                Known::Severa(copy.renewed(settings, self.tenants(&accounts))?)
            }
            (DirectoryKind::Severa(settings), _) => {
                Known::Severa(SeveraDirectory::start(settings, self.tenants(&accounts))?)
            }
        };
        Ok(Outside { backend, directory, accounts })
    }

    fn backend(&self, client: Arc<Client>, accounts: &Accounts) -> Result<Arc<dyn Backend>, ClientError> {
        match &self.backend {
            BackendKind::Http(settings) => Ok(Arc::new(HttpBackend::new(client, settings.clone())?)),
            BackendKind::Severa(companies) => {
                let settings = companies.iter().zip(&accounts.clients);
                let settings = settings.map(|(company, client)| CompanySettings {
                    prefix: company.prefix.clone(),
                    client: Arc::clone(client),
                    activity_type: company.activity_type.clone(),
                    closed: company.closed,
                    inline_files: company.inline_files,
                    notes_limit: company.notes_limit,
                    settle: company.settle,
                });
                Ok(Arc::new(SeveraBackend::new(settings.collect(), Arc::clone(&accounts.unsure))))
            }
        }
    }

    fn companies(&self) -> &[Company] {
        match &self.backend {
            BackendKind::Http(_) => &[],
            BackendKind::Severa(companies) => companies,
        }
    }

    /// A client for each company, in their order. Who has the same client id has the same calls in Severa's eyes.
    fn accounts(&self, before: Option<&Outside>) -> Result<Accounts, ClientError> {
        let before = before.map(|before| before.accounts.clone()).unwrap_or_default();
        let mut clients: Vec<Arc<SeveraClient>> = Vec::new();
        for company in self.companies() {
            let mut known = clients.iter().chain(&before.clients).chain(&before.gone);
            let same = known.find(|client| client.client_id() == company.access.client_id);
            let client = match same {
                Some(client) => client.renewed(&company.access)?,
                None => Arc::new(SeveraClient::new(&company.access)?),
            };
            clients.push(client);
        }
        let mut gone: Vec<Arc<SeveraClient>> = Vec::new();
        for old in before.clients.into_iter().chain(before.gone) {
            if !clients.iter().chain(&gone).any(|client| client.client_id() == old.client_id()) {
                gone.push(old);
            }
        }
        Ok(Accounts { clients, gone, unsure: before.unsure })
    }

    fn tenants(&self, accounts: &Accounts) -> Vec<SeveraTenant> {
        let tenant = |(company, client): (&Company, &Arc<SeveraClient>)| SeveraTenant {
            prefix: company.prefix.clone(),
            active: company.active,
            shadow: company.shadow,
            activity_type: company.activity_type.clone(),
            policy: Arc::clone(&company.policy),
            aliases: company.aliases.clone(),
            client: Arc::clone(client),
        };
        self.companies().iter().zip(&accounts.clients).map(tenant).collect()
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
            Known::Severa(copy) => Arc::clone(copy) as Arc<dyn Directory>,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectoryText {
    /// `file` (default), `http`: the backend's look-ups, or `severa`: a copy of what Severa has, for the backend `severa`.
    #[serde(rename = "type", default)]
    kind: DirectoryType,
    /// The directory file, for `file`; the copy, for `severa`: default `/var/lib/activity-milter/severa.db`.
    path: Option<Spanned<PathBuf>>,
    /// How often Severa is asked what has changed; default 60 s.
    #[serde(default = "one_minute")]
    poll: Text<Span>,
    /// How often everything is read from Severa anew; default 24 h.
    #[serde(default = "one_day")]
    full_pass: Text<Span>,
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum DirectoryType {
    #[default]
    File,
    Http,
    Severa,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendText {
    /// `http` (default): any system, over our HTTP contract; or `severa`: Visma Severa, for the companies of `[[severa]]`.
    #[serde(rename = "type", default)]
    kind: BackendType,
    /// Base URL; `v1/…` is appended. Default for `severa`: `https://api.severa.visma.com/rest-api`.
    url: Option<Spanned<String>>,
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
    /// Time for connecting and for an answer; default 30 s, for `severa` 60 s.
    timeout: Option<Spanned<Text<Span>>>,
    /// Attempts at a time; default 32. For `severa`, of each company; default 4.
    max_in_flight: Option<Spanned<usize>>,
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
#[derive(Clone, Debug, Deserialize, Serialize)]
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum BackendType {
    #[default]
    Http,
    Severa,
}

/// Attempts at a time.
const USUAL_IN_FLIGHT: usize = 32;

impl BackendType {
    fn usual_timeout(self) -> Duration {
        match self {
            Self::Http => Duration::from_secs(30),
            // Others wait so long for it, and call 5 s slow.
            Self::Severa => Duration::from_secs(60),
        }
    }
}

/// The copy of what Severa has.
fn usual_copy() -> PathBuf {
    "/var/lib/activity-milter/severa.db".into()
}

/// Defaults that depend on the type, and whole paths.
pub(super) fn complete(
    reading: &Reading,
    backend: &mut BackendText,
    directory: &mut DirectoryText,
) -> Result<(), SourceError> {
    let unset = |value| Spanned::new(0..0, value);
    let (timeout, in_flight) = match backend.kind {
        BackendType::Http => (backend.kind.usual_timeout(), USUAL_IN_FLIGHT),
        BackendType::Severa => (backend.kind.usual_timeout(), severa::USUAL_IN_FLIGHT),
    };
    backend.timeout.get_or_insert_with(|| unset(Text(Span(timeout))));
    backend.max_in_flight.get_or_insert_with(|| Spanned::new(0..0, in_flight));
    if backend.kind == BackendType::Severa {
        backend.url.get_or_insert_with(|| Spanned::new(0..0, severa::PRODUCTION.to_owned()));
    }
    if directory.kind == DirectoryType::Severa {
        directory.path.get_or_insert_with(|| Spanned::new(0..0, usual_copy()));
    }
    let files = [
        &mut directory.path,
        &mut backend.token_file,
        &mut backend.signing_secret_file,
        &mut backend.ca_file,
        &mut backend.client_certificate_file,
        &mut backend.client_key_file,
    ];
    for file in files.into_iter().flatten() {
        reading.complete(file)?;
    }
    if let Some(oauth) = &mut backend.oauth {
        reading.complete(&mut oauth.get_mut().client_secret_file)?;
    }
    Ok(())
}

fn thirty_seconds() -> Text<Span> {
    Text(Span(Duration::from_secs(30)))
}

fn one_minute() -> Text<Span> {
    Text(Span(Duration::from_secs(60)))
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

impl DirectoryText {
    fn validate(self, source: &Reading) -> Result<DirectoryKind, SourceError> {
        match (self.kind, self.path) {
            (DirectoryType::File, Some(path)) => {
                source.readable(&path)?;
                Ok(DirectoryKind::File { path: path.into_inner() })
            }
            (DirectoryType::File, None) => Err(source.error_at(
                "directory.path",
                "directory.path is missing: name the directory file, or set type = \"http\"",
            )),
            (DirectoryType::Severa, path) => {
                let path = path.map_or_else(usual_copy, Spanned::into_inner);
                Ok(DirectoryKind::Severa(SeveraSettings::new(path, self.poll.0.0, self.full_pass.0.0)))
            }
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
    fn validate(
        self,
        source: &Reading,
        companies: Vec<SeveraText>,
    ) -> Result<(ClientSettings, BackendKind), SourceError> {
        self.check_kind(source, &companies)?;
        let url = self.base(source)?;
        let credentials = self.credentials(source)?;
        let connection = self.connection(source, url)?;
        let timeout = connection.timeout;
        let client = ClientSettings { connection, credentials };
        // What a PEM file holds, the TLS library says best.
        let mut spans =
            [&self.ca_file, &self.client_certificate_file].into_iter().flatten().map(Spanned::span);
        let place = spans.next_back().or(self.url.as_ref().map(Spanned::span)).unwrap_or_default();
        // Where one of the files is amiss, that was said.
        if source.looks() && source.is_faultless() {
            let made = Client::new(&client).map(drop).map_err(|error| source.error(place, error));
            made.or_else(|error| source.told(error))?;
        }
        let kind = match self.kind {
            BackendType::Severa => {
                BackendKind::Severa(severa::companies(source, companies, &client.connection)?)
            }
            BackendType::Http => BackendKind::Http(HttpSettings {
                timeout,
                signing_secret_file: self.signing_secret_file.map(Spanned::into_inner),
                include_raw_message: self.include_raw_message,
            }),
        };
        Ok((client, kind))
    }

    /// What each type wants, and what only the other one knows.
    fn check_kind(&self, source: &Reading, companies: &[SeveraText]) -> Result<(), SourceError> {
        if self.kind == BackendType::Http {
            return match companies.is_empty() {
                true => Ok(()),
                false => Err(source.error_at(
                    "severa",
                    "[[severa]] is for the backend of that type: set backend.type = \"severa\"",
                )),
            };
        }
        if companies.is_empty() {
            let message = "backend.type = \"severa\" needs a table [[severa]] for each company";
            return Err(source.error_at("backend.type", message));
        }
        let foreign = [
            ("token_file", self.token_file.as_ref().map(Spanned::span)),
            ("oauth", self.oauth.as_ref().map(Spanned::span)),
            ("signing_secret_file", self.signing_secret_file.as_ref().map(Spanned::span)),
            (
                "include_raw_message",
                self.include_raw_message.then(|| source.place("backend.include_raw_message")),
            ),
        ];
        if let Some((key, Some(span))) = foreign.into_iter().find(|(_, span)| span.is_some()) {
            let message = format!(
                "backend.{key} is for our own contract: Severa wants client_id and client_secret_file in [[severa]]"
            );
            return Err(source.error(span, message));
        }
        if self.delivery == Delivery::Direct {
            let message = "backend.delivery = \"direct\" does not go with Severa: a delivery has several steps, and nothing could resume one that was interrupted";
            return Err(source.error_at("backend.delivery", message));
        }
        Ok(())
    }

    fn base(&self, source: &Reading) -> Result<reqwest::Url, SourceError> {
        let Some(text) = &self.url else {
            let missing =
                "backend.url is missing: write the business system's, like \"https://crm.example.com/\"";
            let production = || reqwest::Url::parse(severa::PRODUCTION).ok();
            let url = (self.kind == BackendType::Severa).then(production).flatten();
            return url.ok_or_else(|| source.error_at("backend.url", missing));
        };
        let url = web_address(source, text, self.allow_plain_http)?;
        let remedy = match self.kind {
            BackendType::Http => "backend.token_file",
            BackendType::Severa => "client_secret_file in [[severa]]",
        };
        without_password(source, text, &url, remedy)?;
        self.base_of_all(source, text.get_ref(), &url);
        if url.query().is_some() || url.fragment().is_some() {
            return Err(
                source.error(text.span(), "a base URL has no query and no fragment: /v1/... is appended")
            );
        }
        Ok(url)
    }

    /// `v1/…` is appended: a URL that has it already leads nowhere, most probably.
    fn base_of_all(&self, source: &Reading, text: &str, url: &reqwest::Url) {
        let segments: Vec<&str> =
            url.path_segments().into_iter().flatten().filter(|s| !s.is_empty()).collect();
        let is_version = |segment: &&str| {
            let segment = segment.to_ascii_lowercase();
            segment
                .strip_prefix('v')
                .is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit() || c == '.'))
        };
        if let Some(at) = segments.iter().position(is_version) {
            let appended = if self.kind == BackendType::Http { "/v1/activities" } else { "/v1.0/..." };
            let message = format!(
                "requests go to {}{appended}: leave out /{} if that is one too many",
                text.trim_end_matches('/'),
                segments[at..].join("/")
            );
            source.warn("backend.url", message);
        }
    }

    fn credentials(&self, source: &Reading) -> Result<Credentials, SourceError> {
        if let Some(file) = &self.signing_secret_file {
            for text in source.secret(file)?.iter().flat_map(|file| file.all().to_vec()) {
                let wrong =
                    |error| source.error(file.span(), format!("{}: {error}", file.get_ref().display()));
                signing_key_of(&text).map(drop).map_err(wrong).or_else(|error| source.told(error))?;
            }
        }
        match (&self.token_file, &self.oauth) {
            (None, None) => Ok(Credentials::None),
            (Some(file), None) => {
                source.secret(file)?;
                Ok(Credentials::Token(file.get_ref().clone()))
            }
            (None, Some(oauth)) => {
                Ok(Credentials::OAuth(oauth.get_ref().clone().validate(source, self.allow_plain_http)?))
            }
            (Some(_), Some(oauth)) => {
                Err(source.error(oauth.span(), "either oauth or token_file: both are bearer tokens"))
            }
        }
    }

    fn connection(&self, source: &Reading, url: reqwest::Url) -> Result<ConnectionSettings, SourceError> {
        for file in
            [&self.ca_file, &self.client_certificate_file, &self.client_key_file].into_iter().flatten()
        {
            source.readable(file)?;
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
            Some(text) => {
                let proxy = web_address(source, text, true)?;
                if proxy.password().is_some() {
                    let message = "whoever may read this file reads the proxy's password: let only the service's user read it";
                    source.warn("backend.proxy", message);
                }
                Some(proxy)
            }
            None => None,
        };
        let timeout =
            self.timeout.as_ref().map_or(self.kind.usual_timeout(), |timeout| timeout.get_ref().0.0);
        if self.delivery == Delivery::Direct && timeout > END_TIME.saturating_sub(DIRECT_MARGIN) {
            let most = END_TIME.saturating_sub(DIRECT_MARGIN).as_secs();
            let message = format!("with delivery = \"direct\" the SMTP client waits: at most {most}s");
            return Err(source.error(self.timeout.as_ref().map(Spanned::span).unwrap_or_default(), message));
        }
        Ok(ConnectionSettings { url, timeout, ca_file: path(&self.ca_file), identity, proxy })
    }

    /// How many attempts there are at a time, and of whom.
    fn shares(&self, companies: usize) -> (usize, Option<usize>) {
        let said = self.max_in_flight.as_ref().map(|number| *number.get_ref());
        match self.kind {
            BackendType::Http => (said.unwrap_or(USUAL_IN_FLIGHT), None),
            BackendType::Severa => {
                let each = said.unwrap_or(severa::USUAL_IN_FLIGHT);
                (each.saturating_mul(companies.max(1)), Some(each))
            }
        }
    }
}

/// Both together, and how many attempts there are at a time, and of whom.
pub(super) fn validate(
    source: &Reading,
    backend: BackendText,
    directory: DirectoryText,
    companies: Vec<SeveraText>,
) -> Result<(OutsideSettings, usize, HashMap<String, usize>), SourceError> {
    if (backend.kind == BackendType::Severa) != (directory.kind == DirectoryType::Severa) {
        let message = "Severa is backend and directory together: set both backend.type and directory.type to \"severa\", or neither";
        let key = if backend.kind == BackendType::Severa { "backend.type" } else { "directory.type" };
        return Err(source.error_at(key, message));
    }
    let (max_in_flight, each) = backend.shares(companies.len());
    let directory = directory.validate(source)?;
    let (client, backend) = backend.validate(source, companies)?;
    let settings = OutsideSettings { client, backend, directory };
    let share = |company: &Company| Some((company.prefix.clone(), each?));
    let shares = settings.companies().iter().filter_map(share).collect();
    Ok((settings, max_in_flight, shares))
}

impl OAuthText {
    pub(super) fn validate(self, source: &Reading, plain: bool) -> Result<OAuthSettings, SourceError> {
        let token_url = web_address(source, &self.token_url, plain)?;
        source.said("backend.oauth.client_id", &self.client_id)?;
        for scope in &self.scopes {
            source.said("backend.oauth.scopes", scope)?;
        }
        if let Some(audience) = &self.audience {
            source.said("backend.oauth.audience", audience)?;
        }
        without_password(source, &self.token_url, &token_url, "client_secret_file")?;
        source.secret(&self.client_secret_file)?;
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
    source: &Reading,
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

/// Written as people read it. The library takes much more for a URL: `https:host`, `https:///host`, blanks, backslashes.
fn is_whole(text: &str) -> bool {
    let begins = text.split_once("://").is_some_and(|(_, rest)| !rest.starts_with('/'));
    begins && !text.chars().any(|c| c.is_whitespace() || c.is_control() || "\\{}<>\"".contains(c))
}

/// An URL that we send mail or secrets to: encrypted, unless it stays on this machine or somebody said otherwise.
fn web_address(source: &Reading, text: &Spanned<String>, plain: bool) -> Result<reqwest::Url, SourceError> {
    let url = reqwest::Url::parse(text.get_ref()).ok().filter(|_| is_whole(text.get_ref()));
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
    if url.port() == Some(0) {
        return Err(source.error(text.span(), "nobody listens on port 0: write the port, or leave it out"));
    }
    Ok(url)
}
