//! The connection to the backend: TLS, credentials, signatures, against real servers on real sockets.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/desk.rs"]
mod desk;
#[path = "support/http.rs"]
mod http;
#[path = "support/wire.rs"]
mod wire;

use activity_milter::{
    activity::Raw,
    backend::{Backend, Delivery, Fleeting, HttpBackend, HttpSettings, Outcome, Trouble},
    mail::{Budget, Spill},
    sink,
    web::{AuthMethod, Client, ClientError, ClientSettings, Credentials, OAuthSettings},
};
use axum::{Json, Router, extract::State, http::HeaderMap, response::IntoResponse, routing::post};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use desk::delivery;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use serde_json::json;
use std::{
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::{Act, Wire, status};

/// All that one attempt needs.
struct Settings {
    client: ClientSettings,
    signing_secret_file: Option<PathBuf>,
    include_raw_message: bool,
}

impl Settings {
    fn backend(self) -> Result<HttpBackend, ClientError> {
        let Self { client, signing_secret_file, include_raw_message } = self;
        let settings =
            HttpSettings { timeout: client.connection.timeout, signing_secret_file, include_raw_message };
        HttpBackend::new(Arc::new(Client::new(&client)?), settings)
    }
}

async fn deliver(backend: &HttpBackend, delivery: &Delivery) -> Outcome {
    backend.deliver(delivery, &Fleeting::default()).await
}

fn settings(url: &str) -> Settings {
    Settings {
        client: ClientSettings::new(url.parse().unwrap(), Duration::from_secs(2)),
        signing_secret_file: None,
        include_raw_message: false,
    }
}

/// One attempt.
async fn attempt(settings: Settings) -> Outcome {
    deliver(&settings.backend().unwrap(), &delivery(1)).await
}

async fn attempt_with(settings: Settings, delivery: &Delivery) -> Outcome {
    deliver(&settings.backend().unwrap(), delivery).await
}

/// Asserts that there was no connection, for a reason.
#[track_caller]
fn assert_no_connection(outcome: &Outcome, why: &str) {
    match outcome {
        Outcome::Again { trouble: Trouble::Down, reason, .. } if reason.contains(why) => {}
        other => panic!("expected no connection because of {why}, got {other:?}"),
    }
}

/// An authority of our own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key.
    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    fn server(&self, name: &str, wants_client: bool) -> ServerConfig {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (certificate, key) = self.issue(name);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let builder = ServerConfig::builder();
        let builder = if wants_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).unwrap();
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
    }

    fn file(&self, directory: &Path) -> PathBuf {
        write(directory, "ca.pem", &self.0.pem())
    }
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn certificates_are_checked() {
    let scratch = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let good = Wire::with_tls(Vec::new(), Some(authority.server("127.0.0.1", false))).await;
    let wrong_name = Wire::with_tls(Vec::new(), Some(authority.server("other.test", false))).await;
    let at = |wire: &Wire| settings(&format!("https://127.0.0.1:{}/", wire.port));
    let with_ca = |mut settings: Settings| {
        settings.client.connection.ca_file = Some(authority.file(scratch.path()));
        settings
    };
    // The system does not know this authority.
    assert_no_connection(&attempt(at(&good)).await, "certificate");
    assert_eq!(attempt(with_ca(at(&good))).await, Outcome::Taken);
    assert_no_connection(&attempt(with_ca(at(&wrong_name))).await, "certificate");
    assert_eq!((good.seen().len(), wrong_name.seen().len()), (1, 0), "no mail went to a stranger");
    // TLS where plain HTTP is spoken, and the other way round.
    let plain = Wire::start(Vec::new()).await;
    assert!(matches!(attempt(at(&plain)).await, Outcome::Again { .. }));
    assert!(matches!(
        attempt(settings(&format!("http://127.0.0.1:{}/", good.port))).await,
        Outcome::Again { .. }
    ));
}

/// A container without certificates of authorities.
#[test]
fn without_authorities_to_trust_http_works_and_https_says_what_is_missing() {
    let scratch = tempfile::tempdir().unwrap();
    let nothing = write(scratch.path(), "none.pem", "");
    write(scratch.path(), "directory.toml", include_str!("directory.toml"));
    let check = |url: &str, more: &str| {
        let text = format!(
            "integration_domains = [\"severamail.test\"]\n[milter]\nlisten = \"inet:127.0.0.1:1\"\n[directory]\n\
             path = \"{0}/directory.toml\"\n[queue]\npath = \"{0}/queue.db\"\nspool = \"{0}\"\n[backend]\nurl = \"{url}\"\n{more}",
            scratch.path().display()
        );
        let config = write(scratch.path(), "config.toml", &text);
        let output = Command::new(env!("CARGO_BIN_EXE_activity-milter"))
            .args(["check", "--offline", "-c"])
            .arg(config)
            .env("SSL_CERT_FILE", &nothing)
            .env("SSL_CERT_DIR", scratch.path())
            .output()
            .unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let missing = "install ca-certificates";
    let text = check("https://127.0.0.1:9/", "");
    assert!(text.contains(missing) && text.contains("ca_file"), "{text}");
    let authority = Authority::new();
    let ca_file = format!("ca_file = \"{}\"\n", authority.file(scratch.path()).display());
    for (url, more) in [("http://127.0.0.1:9/", ""), ("https://127.0.0.1:9/", ca_file.as_str())] {
        let text = check(url, more);
        assert!(!text.contains(missing) && !text.contains("CA certificates"), "{text}");
    }
}

#[tokio::test]
async fn mutual_tls() {
    let scratch = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let wire = Wire::with_tls(Vec::new(), Some(authority.server("127.0.0.1", true))).await;
    let identity = |authority: &Authority, name: &str| {
        let (certificate, key) = authority.issue("activity-milter");
        let certificate = write(scratch.path(), &format!("{name}.pem"), &certificate.pem());
        (certificate, write(scratch.path(), &format!("{name}.key"), &key.serialize_pem()))
    };
    let with = |identity: Option<(PathBuf, PathBuf)>| {
        let mut settings = settings(&format!("https://127.0.0.1:{}/", wire.port));
        settings.client.connection.ca_file = Some(authority.file(scratch.path()));
        settings.client.connection.identity = identity;
        settings
    };
    assert!(matches!(attempt(with(None)).await, Outcome::Again { trouble: Trouble::Down, .. }));
    let theirs = identity(&stranger, "stranger");
    assert!(matches!(attempt(with(Some(theirs))).await, Outcome::Again { trouble: Trouble::Down, .. }));
    assert_eq!(attempt(with(Some(identity(&authority, "ours")))).await, Outcome::Taken);
    assert_eq!(wire.seen().len(), 1);
    // A key that is none is an error at start, with the file's name.
    let broken = (write(scratch.path(), "x.pem", "x"), write(scratch.path(), "x.key", "x"));
    let error = with(Some(broken)).backend().unwrap_err().to_string();
    assert!(error.contains("x.pem"), "{error}");
}

#[tokio::test]
async fn a_proxy_only_if_it_is_configured() {
    let proxy = Wire::start(Vec::new()).await;
    let wire = Wire::start(Vec::new()).await;
    let mut through = settings(&wire.url());
    through.client.connection.proxy = Some(proxy.url().parse().unwrap());
    assert_eq!(attempt(through).await, Outcome::Taken);
    assert_eq!((proxy.seen().len(), wire.seen().len()), (1, 0));
    assert!(proxy.seen()[0].head.starts_with(&format!("POST {}v1/activities ", wire.url())));
    // Cargo runs each test binary as a process; another one shows that the environment does not count.
    assert_eq!(attempt(settings(&wire.url())).await, Outcome::Taken);
    assert_eq!((proxy.seen().len(), wire.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_new_token_is_read_when_the_old_one_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let file = write(scratch.path(), "token", "old\n");
    let wire = Wire::start(vec![status(201), status(401), status(201), status(401)]).await;
    let mut settings = settings(&wire.url());
    settings.client.credentials = Credentials::Token(file.clone());
    let backend = settings.backend().unwrap();
    assert_eq!(deliver(&backend, &delivery(1)).await, Outcome::Taken);
    fs::write(&file, "new\n").unwrap();
    assert_eq!(deliver(&backend, &delivery(2)).await, Outcome::Taken);
    // Refused with nothing newer to show: our settings.
    assert!(matches!(deliver(&backend, &delivery(3)).await, Outcome::Misconfigured { .. }));
    let shown: Vec<_> =
        wire.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(shown, ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]);
}

/// A token endpoint that counts, and gives each token a life.
struct Endpoint {
    asked: AtomicUsize,
    life: u64,
    works: Mutex<bool>,
}

async fn endpoint(
    State(endpoint): State<Arc<Endpoint>>,
    headers: HeaderMap,
    body: String,
) -> axum::response::Response {
    let authorization = headers["authorization"].to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
    if STANDARD.decode(authorization).unwrap() != b"us:the-secret" || !*endpoint.works.lock().unwrap() {
        return (axum::http::StatusCode::UNAUTHORIZED, Json(json!({"error": "invalid_client"})))
            .into_response();
    }
    assert!(body.contains("grant_type=client_credentials") && body.contains("scope=activities"), "{body}");
    let number = endpoint.asked.fetch_add(1, Ordering::SeqCst) + 1;
    let token = format!("token-{number}");
    Json(json!({"access_token": token, "token_type": "Bearer", "expires_in": endpoint.life})).into_response()
}

async fn start_endpoint(life: u64) -> (Arc<Endpoint>, String) {
    let state = Arc::new(Endpoint { asked: AtomicUsize::new(0), life, works: Mutex::new(true) });
    let router = Router::new().route("/token", post(endpoint)).with_state(Arc::clone(&state));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (state, url)
}

fn with_oauth(url: &str, token_url: &str, secret: PathBuf) -> Settings {
    let mut settings = settings(url);
    settings.client.credentials = Credentials::OAuth(OAuthSettings {
        token_url: token_url.parse().unwrap(),
        client_id: "us".to_owned(),
        client_secret_file: secret,
        scopes: vec!["activities".to_owned()],
        audience: None,
        auth_method: AuthMethod::default(),
    });
    settings
}

#[tokio::test]
async fn oauth_tokens_are_shared_renewed_and_replaced() {
    let scratch = tempfile::tempdir().unwrap();
    let secret = write(scratch.path(), "secret", "the-secret\n");
    let bearer = |wire: &Wire| -> Vec<String> {
        wire.seen().iter().map(|seen| seen.header("authorization").unwrap().replace("Bearer ", "")).collect()
    };
    // Fifty at once: one token.
    let (tokens, token_url) = start_endpoint(3600).await;
    let wire = Wire::start(Vec::new()).await;
    let backend = with_oauth(&wire.url(), &token_url, secret.clone()).backend().unwrap();
    let attempts = (0..50).map(|id| {
        let backend = &backend;
        async move { deliver(backend, &delivery(id)).await }
    });
    assert!(
        futures_util::future::join_all(attempts).await.into_iter().all(|outcome| outcome == Outcome::Taken)
    );
    assert_eq!((tokens.asked.load(Ordering::SeqCst), bearer(&wire)), (1, vec!["token-1".to_owned(); 50]));

    // Refused before its time: one new token, one more try.
    let wire = Wire::start(vec![status(401), status(201), status(401), status(401)]).await;
    let backend = with_oauth(&wire.url(), &token_url, secret.clone()).backend().unwrap();
    assert_eq!(deliver(&backend, &delivery(1)).await, Outcome::Taken);
    assert!(matches!(deliver(&backend, &delivery(2)).await, Outcome::Misconfigured { .. }));
    assert_eq!(bearer(&wire), ["token-2", "token-3", "token-3", "token-4"]);

    // Renewed before it expires: at half a life of two seconds.
    let (tokens, token_url) = start_endpoint(2).await;
    let wire = Wire::start(Vec::new()).await;
    let backend = with_oauth(&wire.url(), &token_url, secret.clone()).backend().unwrap();
    for id in 0..2 {
        assert_eq!(deliver(&backend, &delivery(id)).await, Outcome::Taken);
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(deliver(&backend, &delivery(3)).await, Outcome::Taken);
    assert_eq!(bearer(&wire), ["token-1", "token-1", "token-2"]);

    // An endpoint that refuses us is our settings; one that cannot be reached, or is broken, is tried again later.
    *tokens.works.lock().unwrap() = false;
    let refused = attempt(with_oauth(&wire.url(), &token_url, secret.clone())).await;
    assert!(
        matches!(&refused, Outcome::Misconfigured { reason, .. } if reason.contains("invalid_client")),
        "{refused:?}"
    );
    let gone = attempt(with_oauth(&wire.url(), "http://127.0.0.1:1/token", secret.clone())).await;
    assert_no_connection(&gone, "token endpoint");
    let broken = Wire::start(vec![status(503)]).await;
    assert_no_connection(&attempt(with_oauth(&wire.url(), &broken.url(), secret)).await, "503");
    assert_eq!(wire.seen().len(), 3, "no activity is sent without a token");
}

/// P17: all who wait get the one answer, and it takes its time once; a request's time covers that of the token.
#[tokio::test]
async fn a_token_endpoint_that_hangs_is_waited_for_once() {
    let scratch = tempfile::tempdir().unwrap();
    let secret = write(scratch.path(), "secret", "the-secret\n");
    let tokens = Wire::start(vec![Act::Hang; 100]).await;
    let wire = Wire::start(Vec::new()).await;
    let mut with = with_oauth(&wire.url(), &tokens.url(), secret);
    with.client.connection.timeout = Duration::from_secs(1);
    let backend = with.backend().unwrap();
    let began = Instant::now();
    let all = (0..16).map(|id| {
        let backend = &backend;
        async move { deliver(backend, &delivery(id)).await }
    });
    for outcome in futures_util::future::join_all(all).await {
        assert!(matches!(outcome, Outcome::Again { trouble: Trouble::Down, .. }), "{outcome:?}");
    }
    assert_eq!(tokens.seen().len(), 1, "asked once");
    assert!(began.elapsed() < Duration::from_secs(8), "sixteen times a second: {:?}", began.elapsed());
    // The next ones ask anew, once that is over.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(matches!(deliver(&backend, &delivery(1)).await, Outcome::Again { .. }));
    assert_eq!((tokens.seen().len(), wire.seen().len()), (2, 0));
}

/// Whatever goes wrong with tokens, an endpoint is asked once a second at most; what it does decides the outcome.
#[tokio::test]
async fn a_token_that_is_refused_makes_no_storm_of_requests() {
    let scratch = tempfile::tempdir().unwrap();
    let secret = write(scratch.path(), "secret", "the-secret\n");
    let token = |name: &str| {
        let body = format!("{{\"access_token\":\"{name}\",\"token_type\":\"bearer\",\"expires_in\":3600}}");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length";
        Act::Answer(format!("{head}: {}\r\n\r\n{body}", body.len()))
    };
    // The same token again and again, for an endpoint may cache; or a refusal of the secret itself.
    let began = Instant::now();
    for acts in [vec![token("same"); 100], vec![status(400); 100]] {
        let tokens = Wire::start(acts).await;
        let wire = Wire::start(vec![status(401); 100]).await;
        let backend = with_oauth(&wire.url(), &tokens.url(), secret.clone()).backend().unwrap();
        for id in 0..20 {
            let outcome = deliver(&backend, &delivery(id)).await;
            assert!(matches!(outcome, Outcome::Misconfigured { .. } | Outcome::Again { .. }), "{outcome:?}");
        }
        let most = 2 + usize::try_from(began.elapsed().as_secs()).unwrap();
        assert!(tokens.seen().len() <= most, "{} requests for twenty deliveries", tokens.seen().len());
    }
    // 401, and then the endpoint does not answer: it is down, as it would have been without the token before.
    for act in [Act::Hang, status(503), Act::Reset] {
        let tokens = Wire::start(vec![token("t"), act]).await;
        let wire = Wire::start(vec![status(401); 10]).await;
        let mut with = with_oauth(&wire.url(), &tokens.url(), secret.clone());
        with.client.connection.timeout = Duration::from_secs(1);
        let outcome = attempt(with).await;
        assert!(matches!(outcome, Outcome::Again { trouble: Trouble::Down, .. }), "{outcome:?}");
    }
}

/// P18, and what else an endpoint may say of a token's life.
#[tokio::test]
async fn lives_of_tokens_may_be_any() {
    let scratch = tempfile::tempdir().unwrap();
    let secret = write(scratch.path(), "secret", "the-secret\n");
    for (life, asked) in [(u64::MAX, 1), (u64::from(u32::MAX), 1), (0, 2)] {
        let (tokens, token_url) = start_endpoint(life).await;
        let wire = Wire::start(Vec::new()).await;
        let backend = with_oauth(&wire.url(), &token_url, secret.clone()).backend().unwrap();
        for id in 0..2 {
            assert_eq!(deliver(&backend, &delivery(id)).await, Outcome::Taken, "{life}");
        }
        assert_eq!(tokens.asked.load(Ordering::SeqCst), asked, "{life}");
    }
}

#[tokio::test]
async fn an_endpoint_is_told_the_audience_and_the_secret_as_it_wants_them() {
    let scratch = tempfile::tempdir().unwrap();
    let secret = write(scratch.path(), "secret", "the secret is &+%".replace(' ', "_").as_str());
    for (method, audience) in [
        (AuthMethod::ClientSecretBasic, None),
        (AuthMethod::ClientSecretPost, Some("https://api.crm.test/".to_owned())),
    ] {
        let answer = "{\"access_token\":\"t\",\"token_type\":\"bearer\"}";
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        let tokens = Wire::start(vec![Act::Answer(answer)]).await;
        let wire = Wire::start(Vec::new()).await;
        let mut with = with_oauth(&wire.url(), &tokens.url(), secret.clone());
        if let Credentials::OAuth(oauth) = &mut with.client.credentials {
            (oauth.auth_method, oauth.audience) = (method, audience.clone());
        }
        assert_eq!(attempt(with).await, Outcome::Taken);
        let asked = &tokens.seen()[0];
        let body = String::from_utf8(asked.body.clone()).unwrap();
        let form: std::collections::BTreeMap<String, String> =
            reqwest::Url::parse(&format!("http://x/?{body}")).unwrap().query_pairs().into_owned().collect();
        let in_body = (method == AuthMethod::ClientSecretPost).then_some("the_secret_is_&+%");
        assert_eq!(form.get("client_secret").map(String::as_str), in_body, "{body}");
        assert_eq!(form.get("audience"), audience.as_ref(), "{body}");
        assert_eq!(asked.header("authorization").is_some(), in_body.is_none());
    }
}

/// A delivery whose message lies in a file.
async fn large_delivery(directory: &Path, bytes: usize) -> Delivery {
    let text =
        format!("Subject: s\r\nMessage-ID: <1@x>\r\nContent-Type: image/png\r\n\r\n{}", "x".repeat(bytes));
    let mut spill = Spill::new(directory, u64::MAX, &Budget::new(u64::MAX));
    spill.push(text.as_bytes()).await.unwrap();
    let (raw, _) = spill.finish().await.unwrap();
    let Delivery { mut activity, .. } = delivery(1);
    let mut file = activity.files[0].clone();
    file.size = raw.len();
    activity.files = [file].into();
    let json = serde_json::to_vec(&activity).unwrap().into();
    Delivery { activity, json, cuts: vec![raw.whole()], raw, replay: false }
}

/// P19: a backend that refuses by the head alone and closes, or never reads on: it is the activity, not the backend.
#[tokio::test]
async fn an_early_refusal_counts_for_the_activity() {
    let scratch = tempfile::tempdir().unwrap();
    let delivery = large_delivery(scratch.path(), 20 << 20).await;
    for how in ["closes at once", "reads on", "hangs", "resets"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let _ = stream.read(&mut buffer).await;
                let refusal =
                    "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                match how {
                    "hangs" => kept.push(stream),
                    "resets" => stream.set_zero_linger().unwrap(),
                    how => {
                        let _ = stream.write_all(refusal.as_bytes()).await;
                        let reads = async { while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {} };
                        if how == "reads on" {
                            let _ = tokio::time::timeout(Duration::from_secs(1), reads).await;
                        }
                    }
                }
            }
        });
        let mut settings = settings(&url);
        settings.client.connection.timeout = Duration::from_millis(500);
        let patience = Duration::from_secs((20 << 20) / (256 * 1024));
        for _ in 0..if how == "hangs" { 0 } else { 5 } {
            let backend =
                Settings { client: settings.client.clone(), ..self::settings(&url) }.backend().unwrap();
            let outcome = tokio::time::timeout(patience, deliver(&backend, &delivery)).await.unwrap();
            let counts_for_it =
                matches!(outcome, Outcome::Again { trouble: Trouble::Broken, .. } | Outcome::Refused { .. });
            assert!(counts_for_it, "{how}: {outcome:?}");
        }
    }
}

/// What our own disk does is not the backend's doing.
#[tokio::test]
async fn our_own_disk_is_not_the_backend() {
    let scratch = tempfile::tempdir().unwrap();
    let wire = Wire::start(Vec::new()).await;
    let secret = write(scratch.path(), "secret", &format!("{}\n", SECRETS[0]));
    for is_signed in [false, true] {
        let delivery = large_delivery(scratch.path(), 3 << 20).await;
        let Raw::File { file, .. } = &delivery.raw else { panic!("it is large") };
        // As if its blocks could not be read: the file ends before the message does.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 20).unwrap();
        let mut settings = settings(&wire.url());
        settings.signing_secret_file = is_signed.then(|| secret.clone());
        let outcome = attempt_with(settings, &delivery).await;
        assert!(
            matches!(&outcome, Outcome::Again { trouble: Trouble::Ours, reason, .. } if reason.contains("spooled")),
            "{outcome:?}"
        );
    }
    assert_eq!(attempt(settings(&wire.url())).await, Outcome::Taken);
}

const SECRETS: [&str; 2] =
    ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_bm90IHRoZSBzYW1lIHNlY3JldCBhdCBhbGwh"];

/// The recipe of `docs/backend-api.yaml` in Python: true if a request is signed with a secret.
fn python_says(secret: &str, seen: &wire::Seen, scratch: &Path) -> bool {
    let body = scratch.join("body");
    fs::write(&body, &seen.body).unwrap();
    let script = r#"
import base64, hashlib, hmac, sys
secret, id, timestamp, signatures, path = sys.argv[1:]
body = open(path, "rb").read()
key = base64.b64decode(secret.removeprefix("whsec_"))
signed = f"{id}.{timestamp}.".encode() + body
expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
sys.exit(not any(hmac.compare_digest(expected, s) for s in signatures.split(" ")))
"#;
    let header = |name: &str| seen.header(name).unwrap().to_owned();
    let status = Command::new("python3")
        .args(["-c", script, secret, &header("webhook-id"), &header("webhook-timestamp")])
        .arg(header("webhook-signature"))
        .arg(&body)
        .stderr(Stdio::inherit())
        .status();
    status.unwrap().success()
}

#[tokio::test]
async fn signatures_cover_the_exact_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let file = write(scratch.path(), "secret", &format!("{}\n", SECRETS[0]));
    let wire = Wire::start(vec![status(503)]).await;
    let mut signed = settings(&wire.url());
    signed.signing_secret_file = Some(file.clone());
    signed.include_raw_message = true;
    let backend = signed.backend().unwrap();
    assert!(matches!(deliver(&backend, &delivery(1)).await, Outcome::Again { .. }));
    assert_eq!(deliver(&backend, &delivery(1)).await, Outcome::Taken);
    // While the secret is being changed both count; then only the new one.
    fs::write(&file, format!("{}\n{}\n", SECRETS[1], SECRETS[0])).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(deliver(&backend, &delivery(2)).await, Outcome::Taken);
    fs::write(&file, format!("{}\n", SECRETS[1])).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(deliver(&backend, &delivery(3)).await, Outcome::Taken);
    let seen = wire.seen();
    let says: Vec<_> =
        seen.iter().map(|seen| SECRETS.map(|secret| python_says(secret, seen, scratch.path()))).collect();
    assert_eq!(says, [[true, false], [true, false], [true, true], [false, true]]);
    let mut forged = seen[0].clone();
    *forged.body.last_mut().unwrap() ^= 1;
    assert!(!python_says(SECRETS[0], &forged, scratch.path()));
    // The id is the key, the same on each attempt, without dots; the raw message is part of what is signed.
    assert_eq!(seen[0].header("webhook-id"), seen[1].header("webhook-id"));
    assert_eq!(
        format!("\"{}\"", seen[0].header("webhook-id").unwrap()),
        seen[0].header("idempotency-key").unwrap()
    );
    assert!(!seen[0].header("webhook-id").unwrap().contains('.'));
    assert!(seen[0].body.windows(14).any(|w| w == b"message/rfc822"));
    // What is sent once more says so, with the key of then.
    let replay = Delivery { replay: true, ..delivery(1) };
    assert_eq!(deliver(&backend, &replay).await, Outcome::Taken);
    let seen = wire.seen();
    let headers: Vec<_> = seen.iter().map(|seen| seen.header("replay")).collect();
    assert_eq!(headers, [None, None, None, None, Some("true")]);
    assert_eq!(seen[4].header("idempotency-key"), seen[0].header("idempotency-key"));
    // Without a secret there is no signature.
    let wire = Wire::start(Vec::new()).await;
    assert_eq!(attempt(settings(&wire.url())).await, Outcome::Taken);
    assert_eq!(wire.seen()[0].header("webhook-signature"), None);
}

#[tokio::test]
async fn the_sink_takes_what_is_signed_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let data = scratch.path().join("sink");
    let sink =
        sink::Settings { data, signing_secrets: vec![SECRETS[0].to_owned()], ..sink::Settings::default() };
    tokio::spawn(async move { sink::run(listener, sink, std::future::pending()).await.unwrap() });
    let with = |secrets: &str| {
        let mut settings = settings(&url);
        settings.signing_secret_file = Some(write(scratch.path(), "secret", secrets));
        settings
    };
    let stored = async || {
        let url = format!("{url}v1/activities");
        tokio::task::spawn_blocking(move || http::activities(&url).len()).await.unwrap()
    };
    let refused =
        |outcome: Outcome| matches!(outcome, Outcome::Misconfigured { reason, .. } if reason.contains("401"));
    assert!(refused(attempt(settings(&url)).await), "no signature");
    assert!(refused(attempt(with(&format!("{}\n", SECRETS[1]))).await), "another secret");
    assert_eq!(stored().await, 0);
    assert_eq!(
        attempt(with(&format!("{}\n{}\n", SECRETS[1], SECRETS[0]))).await,
        Outcome::Taken,
        "being changed"
    );
    assert_eq!(stored().await, 1);
    // Also a key that is known must be signed to be answered.
    assert!(refused(attempt(with(&format!("{}\n", SECRETS[1]))).await));
    assert_eq!(attempt(with(&format!("{}\n", SECRETS[0]))).await, Outcome::Taken);
    assert_eq!(stored().await, 1);
}
