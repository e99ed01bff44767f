//! What the world does to deliveries: other people's software between us and Severa, settings that change meanwhile,
//! companies that delay each other, ends at any moment. Each of these once broke a promise.

use super::*;
use activity_milter::{
    activity::Parcel,
    courier,
    mail::{Envelope, Head, Intake, LIMITS, Reader},
};
use desk::Desk as Office;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn client_of(
    url: &str,
    client_id: &str,
    secret: &std::path::Path,
    ca: Option<std::path::PathBuf>,
) -> Arc<Client> {
    let connection = ConnectionSettings {
        ca_file: ca,
        ..ConnectionSettings::new(url.parse().unwrap(), Duration::from_secs(2))
    };
    let settings =
        Settings { connection, client_id: client_id.to_owned(), client_secret_file: secret.to_owned() };
    Arc::new(Client::new(&settings).unwrap())
}

/// A5xx whose body names an account's type: it may have been done.
#[tokio::test(flavor = "multi_thread")]
async fn x500_with_an_account_type_after_it_was_done() {
    for (status, kind) in
        [(500, "ConfigurationError"), (503, "FeatureIsNotEnabled"), (408, "OrganizationNotActive")]
    {
        let desk = Desk::start().await;
        let body = json!({"error": {"httpStatusCode": status, "type": kind, "details": []}}).to_string();
        desk.severa.fault(
            "POST",
            "/v1/activities",
            1,
            Fault::AnswerAfter { status, content_type: "application/json", body, headers: Vec::new() },
        );
        let delivery = desk.message();
        let first = desk.deliver(&delivery).await;
        println!("{status} {kind}: {first:?}; note {:?}", desk.notes.last());
        tokio::time::sleep(SETTLE).await;
        let _ = desk.carry(&delivery).await;
        assert_eq!(desk.company.activities().len(), 1, "{status} {kind}");
    }
}

/// TLS that breaks after the request was done: by an alert, or by bytes that are no record.
#[tokio::test(flavor = "multi_thread")]
async fn tls_breaks_after_it_was_done() {
    for garbage in [false, true] {
        let mut desk = Desk::start().await;
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert =
            CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream = desk.severa.port();
        let posts = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&posts);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let mut up = tokio::net::TcpStream::connect(("127.0.0.1", upstream)).await.unwrap();
                    let (mut a, mut b) = (vec![0; 65536], vec![0; 65536]);
                    let mut breaks = false;
                    loop {
                        tokio::select! {
                            n = tls.read(&mut a) => {
                                let Ok(n) = n else { return };
                                if n == 0 { return }
                                if a[..n].starts_with(b"POST /rest-api/v1/activities ")
                                    && seen.fetch_add(1, Ordering::SeqCst) == 0 { breaks = true; }
                                up.write_all(&a[..n]).await.unwrap();
                            }
                            n = up.read(&mut b) => {
                                let Ok(n) = n else { return };
                                if n == 0 { return }
                                if breaks {
                                    // It was done. The answer never comes: the record that comes is no record.
                                    let (mut tcp, _) = tls.into_inner();
                                    let bytes: &[u8] = if garbage { b"HTTP/1.1 502 Bad Gateway\r\n\r\n" } else { &[21, 3, 3, 0, 2, 2, 80] };
                                    let _ = tcp.write_all(bytes).await;
                                    tokio::time::sleep(Duration::from_millis(300)).await;
                                    return;
                                }
                                tls.write_all(&b[..n]).await.unwrap();
                                tls.flush().await.unwrap();
                            }
                        }
                    }
                });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let (pem, secret) = (folder.path().join("ca.pem"), folder.path().join("secret"));
        std::fs::write(&pem, ca.pem()).unwrap();
        std::fs::write(&secret, "secret\n").unwrap();
        let url = format!("https://127.0.0.1:{port}/rest-api");
        desk.settings.client = client_of(&url, "client", &secret, Some(pem));
        let delivery = desk.message();
        let first = desk.deliver(&delivery).await;
        println!("garbage {garbage}: {first:?}; note {:?}", desk.notes.last());
        assert_eq!(desk.company.activities().len(), 1, "it was done");
        tokio::time::sleep(SETTLE).await;
        let (outcome, _) = desk.carry(&delivery).await;
        assert_eq!(outcome, Outcome::Taken);
        assert_eq!(desk.company.activities().len(), 1, "garbage {garbage}: created twice");
    }
}

/// A gateway that answers 404 to everything for a moment: the e-mail's participants and files are not there, and it is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateways_404_is_no_deletion() {
    let desk = Desk::start().await;
    let html = |status| Fault::Answer {
        status,
        content_type: "text/html",
        body: "<html>404 Web Site not found</html>".to_owned(),
        headers: Vec::new(),
    };
    desk.severa.fault("POST", "/v1/activityparticipants", 1, html(404));
    desk.severa.fault("GET", "/v1/activities/{guid}", 1, html(404));
    let (outcome, before) = desk.carry(&desk.message()).await;
    println!(
        "{outcome:?} after {before:?}: activities {}, participants {:?}, files {}",
        desk.company.activities().len(),
        participants(&desk.company.activities()[0]).len(),
        desk.company.files(&desk.company.guid("p-1001")).len()
    );
    assert!(
        outcome != Outcome::Taken || desk.company.files(&desk.company.guid("p-1001")).len() == 2,
        "taken, and not all is there"
    );
}

/// Settings name another organisation (a test account before, production now) while an e-mail is half delivered.
#[tokio::test(flavor = "multi_thread")]
async fn another_organisation_between_two_attempts() {
    let mut desk = Desk::start().await;
    let delivery = desk.message();
    desk.severa.fault("POST", "/v1/activityparticipants", 1, Fault::LoseBefore);
    let _ = desk.deliver(&delivery).await;
    let other = desk.severa.company("client-2", "secret");
    other.from_directory_toml(include_str!("../directory.toml"), "mycompany");
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("s");
    std::fs::write(&secret, "secret\n").unwrap();
    desk.settings.client = client_of(&desk.severa.url(), "client-2", &secret, None);
    let (outcome, _) = desk.carry(&delivery).await;
    println!(
        "{outcome:?}: old {} activity, {} participants, {} files; new {}",
        desk.company.activities().len(),
        participants(&desk.company.activities()[0]).len(),
        desk.company.files(&desk.company.guid("p-1001")).len(),
        other.activities().len()
    );
    assert_ne!(outcome, Outcome::Taken, "taken, and there are neither participants nor files anywhere");
}

/// `inline_files` is switched off between activity and files: the picture is neither a file nor named.
#[tokio::test(flavor = "multi_thread")]
async fn inline_files_switched_off_in_between() {
    let mut desk = Desk::with(|settings| CompanySettings { inline_files: true, ..settings }).await;
    let delivery = desk.message();
    desk.severa.fault("POST", "/v1/activityparticipants", 1, Fault::LoseBefore);
    let _ = desk.deliver(&delivery).await;
    desk.settings.inline_files = false;
    assert_eq!(desk.carry(&delivery).await.0, Outcome::Taken);
    let notes = desk.company.activities()[0]["notes"].as_str().unwrap().to_owned();
    let files = desk.company.files(&desk.company.guid("p-1001"));
    assert!(
        notes.contains("logo.png") || files.iter().any(|file| file.name == "logo.png"),
        "logo.png is nowhere: {notes}"
    );
}

/// One answer from a machine whose clock is an hour ahead, just before the activity is posted, and that answer is lost.
#[tokio::test(flavor = "multi_thread")]
async fn one_answer_with_a_date_ahead() {
    let desk = Desk::start().await;
    let ahead = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
    let body = json!([{"guid": desk.company.activity_type("E-mail"), "name": "E-mail", "category": "Task", "isActive": true}]).to_string();
    desk.severa.fault(
        "GET",
        "/v1/activitytypes",
        1,
        Fault::Answer { status: 200, content_type: "application/json", body, headers: vec![("Date", ahead)] },
    );
    desk.severa.fault("POST", "/v1/activities", 1, Fault::LoseAfter);
    let delivery = desk.message_to(None);
    let (outcome, _) = desk.carry(&delivery).await;
    assert_eq!(outcome, Outcome::Taken);
    assert_eq!(desk.company.activities().len(), 1, "created twice");
}

/// Notes within the limit in characters, as Severa (C#) would count them: UTF-16.
#[tokio::test(flavor = "multi_thread")]
async fn many_participants_a_page() {
    let desk = Desk::start().await;
    let mut delivery = desk.message_to(None);
    let people: Vec<_> =
        (0..45).map(|n| desk.company.add_user(&format!("u{n}@x.test"), "U", &n.to_string())).collect();
    change(&mut delivery, |activity| {
        let one = |guid: &String| Participant {
            kind: Kind::User,
            id: Some(guid.clone()),
            customer_id: None,
            address: "x@x.test".to_owned(),
            name: None,
            field: Field::To,
        };
        activity.participants = people.iter().map(one).collect();
    });
    desk.severa.fault("POST", "/v1/activityparticipants", 45, Fault::LoseAfter);
    let (outcome, _) = desk.carry(&delivery).await;
    assert_eq!(outcome, Outcome::Taken);
    assert_eq!(participants(&desk.company.activities()[0]).len(), 45);
}

/// Files of odd kinds, from a spool file too.
#[tokio::test(flavor = "multi_thread")]
async fn odd_files() {
    let desk = Desk::start().await;
    let big = "eHg=\r\n".repeat(60_000);
    let letter = format!(
        "Subject: Odd\r\nMessage-ID: <2@x>\r\nDate: Mon, 23 Nov 2026 18:00:00 +0000\r\nMIME-Version: 1.0\r\n\
        Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nHi\r\n--b\r\n\
        Content-Type: application/x-empty; name=empty\r\nContent-Disposition: attachment; filename=\"\"\r\n\r\n\r\n--b\r\n\
        Content-Type: foo/b\u{e4}r; x=\"a\r\n b\"\r\nContent-Disposition: attachment; filename=\"a\\\"b\\\\c.txt\"\r\n\r\nX\r\n--b\r\n\
        Content-Type: text/plain; charset=\"a;b\"\r\nContent-Disposition: attachment; filename*=utf-8''a%0D%0Ab%22%E2%80%A8.txt\r\n\r\nY\r\n--b\r\n\
        Content-Type: multipart/mixed; boundary=zz\r\nContent-Disposition: attachment; filename=\"{}\"\r\n\r\n--zz\r\n\r\ninner\r\n--zz--\r\n--b\r\n\
        Content-Type: message/rfc822\r\nContent-Disposition: attachment; filename=m.eml\r\n\r\nSubject: i\r\n\r\nz\r\n--b\r\n\
        Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=big.bin\r\nContent-Transfer-Encoding: base64\r\n\r\n{big}--b--\r\n",
        "n".repeat(400)
    );
    let parties = {
        let d = desk.message();
        Parties {
            tenant: TenantRef { id: "mycompany".to_owned(), prefix: "mycompany".to_owned() },
            activity_type: "E-mail".to_owned(),
            owner: d.activity.owner.clone(),
            participants: Arc::default(),
            people_omitted: 0,
            automatic: None,
            sender_authenticated: None,
            customer: None,
            project: d.activity.project.clone(),
        }
    };
    let delivery = desk::delivery_of(desk::parcel_with(parties, letter.clone()));
    let outcome = desk.deliver(&delivery).await;
    let files = desk.company.files(&desk.company.guid("p-1001"));
    for file in &files {
        println!(
            "{:?} {:?} {} bytes",
            file.name.chars().take(40).collect::<String>(),
            file.content_type,
            file.bytes.len()
        );
    }
    println!(
        "{:?}",
        delivery
            .activity
            .files
            .iter()
            .map(|f| (f.name.chars().take(30).collect::<String>(), f.content_type.clone(), f.size))
            .collect::<Vec<_>>()
    );
    assert_eq!(outcome, Outcome::Taken, "{:?}", desk.severa.wrongs());
    assert_eq!(files.len(), delivery.activity.files.len());
    desk.severa.assert_nothing_wrong();
}

/// Five e-mails of one company that get no answer delay another company's.
#[tokio::test(flavor = "multi_thread")]
async fn one_company_without_answers_delays_another() {
    let severa = tokio::task::spawn_blocking(Severa::start).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("s");
    std::fs::write(&secret, "secret\n").unwrap();
    let mut settings = Vec::new();
    let mut companies = Vec::new();
    for id in ["a", "b"] {
        let company = severa.company(id, "secret");
        let user = company.add_user("a@x.test", "A", "B");
        settings.push(CompanySettings {
            prefix: id.to_owned(),
            client: client_of(&severa.url(), id, &secret, None),
            activity_type: company.activity_type("E-mail"),
            closed: true,
            inline_files: false,
            notes_limit: 30_000,
            settle: Duration::from_secs(10),
        });
        companies.push((company, user));
    }
    let backend = Arc::new(SeveraBackend::new(settings, Arc::default()));
    let office = Office::closed(8);
    let office = office.begin_so(
        backend,
        courier::Settings {
            max_in_flight: 8,
            shares: [("a".to_owned(), 4), ("b".to_owned(), 4)].into(),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(600),
            max_age: Duration::from_secs(432_000),
        },
    );
    let put = async |tenant: &str, id: usize, user: &str| {
        let mut parcel = desk::parcel_for(tenant, id);
        let activity = &mut parcel.activities[0];
        activity.owner.user_id = user.to_owned();
        activity.files = [].into();
        office.queue.put(parcel).await.unwrap();
    };
    for n in 0..5 {
        companies[0].0.fault("POST", "/v1/activities", 1, Fault::status(500));
        put("a", n, &companies[0].1).await;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while severa.faults_left() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    put("b", 100, &companies[1].1).await;
    while companies[1].0.activities().is_empty() && began.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("b waited {:?}; paused {:?}", began.elapsed(), office.controls.paused());
    assert!(began.elapsed() < Duration::from_secs(3), "b waited {:?}", began.elapsed());
}

/// A company is taken out of the settings and put back at once (two reloads): its calls are still its calls.
#[tokio::test(flavor = "multi_thread")]
async fn two_reloads_keep_the_limit() {
    let severa = tokio::task::spawn_blocking(Severa::start).await.unwrap();
    severa.set_rate_limit(None);
    let company = severa.company("id", "secret");
    let other = severa.company("other", "secret");
    other.add_user("a@x.test", "A", "B");
    let customer = company.add_customer("C");
    for n in 0..3000 {
        company.add_contact(&customer, "C", &n.to_string(), &[]);
    }
    company.add_user("a@x.test", "A", "B");
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("s");
    std::fs::write(&secret, "secret\n").unwrap();
    let table = |prefix: &str, id: &str| {
        format!(
            "[[severa]]\nprefix = \"{prefix}\"\nclient_id = \"{id}\"\nclient_secret_file = \"{}\"\nactivity_type = \"E-mail\"\n",
            secret.display()
        )
    };
    let config = |tables: String| {
        let path = folder.path().join("am.toml");
        let text = format!(
            "integration_domains = [\"x.test\"]\n[directory]\ntype = \"severa\"\npath = \"{}\"\n[backend]\ntype = \"severa\"\nurl = \"{}\"\n{tables}",
            folder.path().join("s.db").display(),
            severa.url()
        );
        std::fs::write(&path, text).unwrap();
        activity_milter::config::Config::read(&path).unwrap().outside
    };
    let both = config(table("o", "other") + &table("c", "id"));
    let without = config(table("o", "other"));
    let first = both.start(None).await.unwrap();
    // Deliveries of the old settings go on: they are finished, whatever a reload says.
    let running = first.backend();
    let user = company.add_user("b@x.test", "A", "B");
    let mut posts = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (backend, user) = (Arc::clone(&running), user.clone());
        let guids: Vec<_> =
            (0..40).map(|m| company.add_user(&format!("p{n}-{m}@x.test"), "P", "Q")).collect();
        posts.spawn(async move {
            let parties = Parties {
                tenant: TenantRef { id: "c".to_owned(), prefix: "c".to_owned() },
                activity_type: "E-mail".to_owned(),
                owner: Owner { user_id: user, address: "b@x.test".to_owned(), name: None },
                participants: guids
                    .into_iter()
                    .map(|id| Participant {
                        kind: Kind::User,
                        id: Some(id),
                        customer_id: None,
                        address: "p@x.test".to_owned(),
                        name: None,
                        field: Field::To,
                    })
                    .collect(),
                people_omitted: 0,
                automatic: None,
                sender_authenticated: None,
                customer: None,
                project: None,
            };
            let text = format!("Subject: {n}\r\nMessage-ID: <{n}@y>\r\n\r\nHi\r\n");
            let delivery = desk::delivery_of(desk::parcel_with(parties, text.clone()));
            backend.deliver(&delivery, &Notes::default()).await
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("before: {}", severa.most_calls_in_a_second("id"));
    let second = without.start(Some(&first)).await.unwrap();
    let third = both.start(Some(&second)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("after: {}", severa.most_calls_in_a_second("id"));
    drop(third);
    posts.abort_all();
    assert!(severa.most_calls_in_a_second("id") <= 9, "{}", severa.most_calls_in_a_second("id"));
}

/// A machine whose clock was never set says 1970.
#[tokio::test(flavor = "multi_thread")]
async fn a_date_of_1970() {
    let desk = Desk::start().await;
    let body = json!([{"guid": desk.company.activity_type("E-mail"), "name": "E-mail", "category": "Task", "isActive": true}]).to_string();
    desk.severa.fault(
        "GET",
        "/v1/activitytypes",
        1,
        Fault::Answer {
            status: 200,
            content_type: "application/json",
            body,
            headers: vec![("Date", "Thu, 01 Jan 1970 00:00:10 GMT".to_owned())],
        },
    );
    let delivery = desk.message_to(None);
    let backend = desk.backend();
    let notes = Arc::new(Notes::default());
    let (n, d) = (Arc::clone(&notes), delivery);
    let task = tokio::spawn(async move { backend.deliver(&d, n.as_ref()).await });
    let ended = task.await;
    assert!(ended.is_ok(), "the attempt panicked: {:?}", ended.err());
}

/// What cannot be read of the token's answer is not told: it may be the token.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_stay_out_of_reasons() {
    let desk = Desk::start().await;
    desk.severa.fault(
        "POST",
        "/v1/token",
        1,
        Fault::Answer {
            status: 200,
            content_type: "application/json",
            body: "\"eyJ-a-token-that-works\"".to_owned(),
            headers: Vec::new(),
        },
    );
    let outcome = format!("{:?}", desk.deliver(&desk.message()).await);
    assert!(!outcome.contains("eyJ-a-token"), "{outcome}");
}

/// What cannot be read of an answer is not told: it may be the mail.
#[tokio::test(flavor = "multi_thread")]
async fn mail_stays_out_of_reasons() {
    let desk = Desk::start().await;
    desk.severa.fault(
        "POST",
        "/v1/activities",
        1,
        Fault::AnswerAfter {
            status: 201,
            content_type: "application/json",
            body: "\"Hi Bo, see below.\"".to_owned(),
            headers: Vec::new(),
        },
    );
    let outcome = format!("{:?}", desk.deliver(&desk.message()).await);
    assert!(!outcome.contains("Hi Bo"), "{outcome}");
}

/// The next page's token is not ASCII.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_that_is_no_ascii_does_not_end_a_search() {
    let desk = Desk::start().await;
    let delivery = desk.message_to(None);
    desk.severa.fault("POST", "/v1/activities", 1, Fault::LoseAfter);
    let _ = desk.deliver(&delivery).await;
    desk.severa.fault(
        "GET",
        "/v1/activities",
        1,
        Fault::Answer {
            status: 200,
            content_type: "application/json",
            body: "[]".to_owned(),
            headers: vec![("NextPageToken", "p\u{e4}ge2".to_owned())],
        },
    );
    let _ = desk.carry(&delivery).await;
    assert_eq!(desk.company.activities().len(), 1);
}

/// Whatever happens in whatever order: faults, attempts cut off, restarts, lost leases. Everything is there once.
#[tokio::test(flavor = "multi_thread")]
async fn anything_goes() {
    let mut running = JoinSet::new();
    for seed in 0..60_u64 {
        if running.len() >= 12 {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut desk = Desk::start().await;
            desk.severa.set_rate_limit(Some(10));
            let delivery = desk.message();
            let mut story = Vec::new();
            for _ in 0..rng.usize(1..8) {
                let (method, template) = [
                    ("POST", "/v1/activities"),
                    ("POST", "/v1/activityparticipants"),
                    ("POST", "/v1/projects/{projectGuid}/files"),
                    ("GET", "/v1/activities"),
                    ("GET", "/v1/activities/{activityGuid}/activityparticipants"),
                    ("GET", "/v1/projects/{projectGuid}/files"),
                    ("GET", "/v1/projects/{guid}"),
                    ("POST", "/v1/token"),
                ][rng.usize(0..8)];
                let fault = match rng.usize(0..9) {
                    0 => Fault::LoseBefore,
                    1 => Fault::LoseAfter,
                    2 => Fault::status(503),
                    3 => Fault::status_after(502),
                    4 => Fault::HoldAfter(Duration::from_millis(2300)),
                    5 => Fault::HoldBefore(Duration::from_millis(2200)),
                    6 => Fault::TooMany { retry_after: None },
                    7 => Fault::error(401, "AuthenticationRequired"),
                    _ => Fault::HoldBefore(Duration::from_millis(150)),
                };
                let nth = rng.usize(1..4);
                story.push(format!("{method} {template} {nth} {fault:?}"));
                desk.severa.fault(method, template, nth, fault);
            }
            desk.settings.settle = Duration::from_millis(500);
            let mut taken = false;
            for _ in 0..60 {
                if rng.usize(0..4) == 0 {
                    desk.unsure = Arc::default();
                    story.push("restart".to_owned());
                }
                let patience = if rng.bool() {
                    Duration::from_secs(60)
                } else {
                    Duration::from_millis(rng.u64(50..1500))
                };
                match tokio::time::timeout(patience, desk.deliver(&delivery)).await {
                    Err(_) => story.push(format!(
                        "cut {patience:?} {:?}",
                        desk.notes.last().map(|n| n.chars().take(30).collect::<String>())
                    )),
                    Ok(Outcome::Taken) => {
                        taken = true;
                        break;
                    }
                    Ok(Outcome::Again { after, reason, .. }) => {
                        story.push(reason);
                        tokio::time::sleep(
                            after.unwrap_or(Duration::from_millis(100)).min(Duration::from_secs(3)),
                        )
                        .await;
                    }
                    Ok(other) => {
                        story.push(format!("{other:?}"));
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
            assert!(taken, "{seed}: {story:#?}");
            desk.assert_all_once(&format!("{seed}: {story:#?}"));
            let most = desk.severa.most_calls_in_a_second("client");
            assert!(most <= 9, "{seed}: {most} calls a second");
        });
    }
    let mut failed = Vec::new();
    while let Some(done) = running.join_next().await {
        if let Err(error) = done {
            failed.push(error.to_string());
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// A business system that is slow for some companies, and at once for the others.
#[derive(Debug)]
struct Slow(Mutex<Vec<(String, Instant)>>);

#[async_trait::async_trait]
impl Backend for Slow {
    async fn deliver(&self, delivery: &Delivery, _: &dyn Journal) -> Outcome {
        let prefix = delivery.activity.tenant.prefix.clone();
        if prefix != "b" {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        self.0.lock().unwrap().push((prefix, Instant::now()));
        Outcome::Taken
    }

    async fn check(&self, _: Duration) -> Vec<activity_milter::backend::Check> {
        Vec::new()
    }
}

/// Three slow companies with something waiting, of ten: a fourth's e-mail has its own four places.
#[tokio::test(flavor = "multi_thread")]
async fn slow_companies_with_much_waiting_delay_no_other() {
    let backend = Arc::new(Slow(Mutex::default()));
    let shares =
        (0..10).map(|n| (["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][n].to_owned(), 4)).collect();
    let office = Office::closed(40).begin_so(
        Arc::clone(&backend) as Arc<dyn Backend>,
        courier::Settings {
            max_in_flight: 40,
            shares,
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(600),
            max_age: Duration::from_secs(432_000),
        },
    );
    for tenant in ["a", "c", "d", "e"] {
        let puts = (0..100).map(|n| office.queue.put(desk::parcel_for(tenant, n)));
        for put in futures_util::future::join_all(puts).await {
            put.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let began = Instant::now();
    office.queue.put(desk::parcel_for("b", 1)).await.unwrap();
    let at = || backend.0.lock().unwrap().iter().find(|(tenant, _)| tenant == "b").map(|(_, at)| *at);
    while at().is_none() && began.elapsed() < Duration::from_secs(90) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("b waited {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2), "b waited {:?}", began.elapsed());
}

/// The real queue and courier, ended without a word again and again, each time another process's memory.
#[test]
fn the_service_is_ended_again_and_again() {
    use activity_milter::queue::{self, Queue, SystemClock};
    let threads: Vec<_> = (0..6_u64)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let severa = Severa::start();
                let company = severa.company("client", "secret");
                company.from_directory_toml(include_str!("../directory.toml"), "mycompany");
                let folder = tempfile::tempdir().unwrap();
                let secret = folder.path().join("s");
                std::fs::write(&secret, "secret\n").unwrap();
                let mut settings =
                    queue::Settings::new(folder.path().join("q.db"), folder.path().join("spool"));
                settings.min_free = 0;
                let mut keys = 0;
                for round in 0..14 {
                    let runtime = tokio::runtime::Builder::new_multi_thread()
                        .worker_threads(2)
                        .enable_all()
                        .build()
                        .unwrap();
                    let is_last = round == 13;
                    let time = if is_last { 45_000 } else { rng.u64(200..2600) };
                    let (severa, company, secret, settings, rng, keys) =
                        (&severa, &company, &secret, &settings, &mut rng, &mut keys);
                    runtime.block_on(async move {
                        let queue: Arc<dyn Queue> = queue::open(settings, Arc::new(SystemClock)).unwrap();
                        if round < 4 {
                            let guid = |id: &str| company.guid(id);
                            let one = |kind, id: &str| Participant {
                                kind,
                                id: Some(guid(id)),
                                customer_id: None,
                                address: "x@x.test".to_owned(),
                                name: None,
                                field: Field::To,
                            };
                            let parties = Parties {
                                tenant: TenantRef {
                                    id: "mycompany".to_owned(),
                                    prefix: "mycompany".to_owned(),
                                },
                                activity_type: "E-mail".to_owned(),
                                owner: Owner {
                                    user_id: guid("u-anna"),
                                    address: "anna@mycompany.test".to_owned(),
                                    name: None,
                                },
                                participants: [one(Kind::User, "u-esa"), one(Kind::Contact, "k-bo")].into(),
                                people_omitted: 0,
                                automatic: None,
                                sender_authenticated: None,
                                customer: Some(CustomerRef { id: guid("c-acme") }),
                                project: Some(ProjectRef { id: guid("p-1001"), number: "1001".to_owned() }),
                            };
                            let text = LETTER.replace("<1@x>", &format!("<{round}@x>"));
                            let parcel = desk::parcel_with(parties, text);
                            queue.put(parcel).await.unwrap();
                            *keys += 1;
                        }
                        if !is_last {
                            for _ in 0..rng.usize(0..3) {
                                let template = [
                                    "/v1/activities",
                                    "/v1/activityparticipants",
                                    "/v1/projects/{projectGuid}/files",
                                ][rng.usize(0..3)];
                                let fault = match rng.usize(0..4) {
                                    0 => Fault::LoseAfter,
                                    1 => Fault::LoseBefore,
                                    2 => Fault::HoldBefore(Duration::from_millis(300)),
                                    _ => Fault::status_after(500),
                                };
                                severa.fault("POST", template, rng.usize(1..3), fault);
                            }
                        }
                        let backend = SeveraBackend::new(
                            vec![CompanySettings {
                                prefix: "mycompany".to_owned(),
                                client: client_of(&severa.url(), "client", secret, None),
                                activity_type: "E-mail".to_owned(),
                                closed: true,
                                inline_files: false,
                                notes_limit: 30_000,
                                settle: Duration::from_millis(400),
                            }],
                            Arc::default(),
                        );
                        let controls = courier::Controls::new(courier::Settings {
                            max_in_flight: 4,
                            shares: [("mycompany".to_owned(), 4)].into(),
                            retry_first: Duration::from_millis(50),
                            retry_max: Duration::from_millis(300),
                            max_age: Duration::from_secs(86_400),
                        });
                        let stop = tokio_util::sync::CancellationToken::new();
                        tokio::spawn(courier::run(Arc::clone(&queue), Arc::new(backend), controls, stop));
                        let deadline = Instant::now() + Duration::from_millis(time);
                        while Instant::now() < deadline {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            if is_last && queue.counts().await.unwrap().waiting == 0 {
                                break;
                            }
                        }
                        if is_last {
                            let counts = queue.counts().await.unwrap();
                            assert_eq!((counts.waiting, counts.held), (0, 0), "{seed}");
                        }
                    });
                    drop(runtime); // every task ends where it stands
                }
                let activities = company.activities();
                let files = company.files(&company.guid("p-1001"));
                println!(
                    "{seed}: {keys} e-mails, {} activities, {} files, {} calls",
                    activities.len(),
                    files.len(),
                    severa.calls().len()
                );
                assert_eq!(activities.len(), keys, "{seed}");
                assert!(
                    activities.iter().all(|a| participants(a).len() == 2),
                    "{seed}: {:?}",
                    activities.iter().map(|a| participants(a).len()).collect::<Vec<_>>()
                );
                assert_eq!(files.len(), 2 * keys, "{seed}");
            })
        })
        .collect();
    let failed = threads.into_iter().map(std::thread::JoinHandle::join).filter(Result::is_err).count();
    assert_eq!(failed, 0);
}

/// A file's answer names it by `fileGuid`, which the schema has beside a `guid` that may be null.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_guid_is_a_guid() {
    let desk = Desk::start().await;
    for _ in 0..2 {
        desk.severa.fault(
            "POST",
            "/v1/projects/{projectGuid}/files",
            1,
            Fault::AnswerAfter {
                status: 201,
                content_type: "application/json",
                body: json!([{"guid": null, "fileGuid": "f-1", "name": "offer.txt", "projectGuid": "p"}])
                    .to_string(),
                headers: Vec::new(),
            },
        );
    }
    let first = desk.deliver(&desk.message()).await;
    assert_eq!(first, Outcome::Taken);
}

/// A large message in a spool file: whole, and cut by our own disk.
#[test]
fn large_files_from_the_spool() {
    use activity_milter::queue::{self, Queue, SystemClock};
    for cut in [false, true] {
        let severa = Severa::start();
        let company = severa.company("client", "secret");
        company.from_directory_toml(include_str!("../directory.toml"), "mycompany");
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("s");
        std::fs::write(&secret, "secret\n").unwrap();
        let spool = folder.path().join("spool");
        let mut settings = queue::Settings::new(folder.path().join("q.db"), spool.clone());
        settings.min_free = 0;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let queue: Arc<dyn Queue> = queue::open(&settings, Arc::new(SystemClock)).unwrap();
            let guid = |id: &str| company.guid(id);
            let parties = Parties {
                tenant: TenantRef { id: "mycompany".to_owned(), prefix: "mycompany".to_owned() },
                activity_type: "E-mail".to_owned(),
                owner: Owner { user_id: guid("u-anna"), address: "anna@mycompany.test".to_owned(), name: None },
                participants: Arc::default(), people_omitted: 0, automatic: None, sender_authenticated: None, customer: None,
                project: Some(ProjectRef { id: guid("p-1001"), number: "1001".to_owned() }),
            };
            let big = "YWJj".repeat(19);
            let body: String = (1..=3).map(|n| format!("--b\r\nContent-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=f{n}.bin\r\nContent-Transfer-Encoding: base64\r\n\r\n{}", format!("{big}\r\n").repeat(20_000))).collect();
            let text = format!("Subject: L\r\nMessage-ID: <l@x>\r\nDate: Mon, 23 Nov 2026 18:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n{body}--b--\r\n");
            let head = Head::parse(text.split("\r\n\r\n").next().unwrap().as_bytes()).unwrap();
            let envelope = Envelope { sender: None, recipients: Vec::new(), queue_id: None, client: None, is_local: false, is_plain: true, helo: None, login: None, intake: Intake::Milter };
            std::fs::create_dir_all(&spool).unwrap();
            let mut spill = activity_milter::mail::Spill::new(&spool, u64::MAX, &activity_milter::mail::Budget::new(u64::MAX));
            spill.push(text.as_bytes()).await.unwrap();
            let (raw, _) = spill.finish().await.unwrap();
            let read = Reader::whole(text.as_bytes(), LIMITS);
            let parcel = Parcel::build(vec![parties], &envelope, &head, read, raw, SystemTime::now());
            queue.put(parcel).await.unwrap();
            let mut files = Vec::new();
            let mut folders = vec![spool.clone()];
            while let Some(f) = folders.pop() {
                for e in std::fs::read_dir(f).unwrap().flatten() { if e.path().is_dir() { folders.push(e.path()) } else { files.push(e.path()) } }
            }
            println!("spool: {:?}", files.iter().map(|f| std::fs::metadata(f).unwrap().len()).collect::<Vec<_>>());
            if cut {
                for f in &files { if std::fs::metadata(f).unwrap().len() > 1_000_000 { std::fs::File::options().write(true).open(f).unwrap().set_len(2_500_000).unwrap(); } }
            }
            let backend = SeveraBackend::new(vec![CompanySettings {
                prefix: "mycompany".to_owned(), client: client_of(&severa.url(), "client", &secret, None), activity_type: "E-mail".to_owned(),
                closed: true, inline_files: false, notes_limit: 30_000, settle: Duration::from_millis(400),
            }], Arc::default());
            let controls = courier::Controls::new(courier::Settings {
                max_in_flight: 4, shares: [("mycompany".to_owned(), 4)].into(), retry_first: Duration::from_millis(50),
                retry_max: Duration::from_millis(300), max_age: Duration::from_secs(86_400),
            });
            let stop = tokio_util::sync::CancellationToken::new();
            tokio::spawn(courier::run(Arc::clone(&queue), Arc::new(backend), controls, stop));
            let began = Instant::now();
            while queue.counts().await.unwrap().waiting > 0 && began.elapsed() < Duration::from_secs(if cut { 14 } else { 40 }) { tokio::time::sleep(Duration::from_millis(50)).await; }
            let there = company.files(&company.guid("p-1001"));
            println!("cut {cut}: {:?}; files {:?}; activities {}; calls {}", queue.counts().await.unwrap(), there.iter().map(|f| (f.name.clone(), f.bytes.len())).collect::<Vec<_>>(), company.activities().len(), severa.calls().len());
            assert_eq!(company.activities().len(), 1);
            assert!(there.iter().all(|f| f.bytes.len() == 20_000 * 57 && f.bytes.chunks(3).all(|c| c == b"abc")));
            assert_eq!(there.len(), if cut { 1 } else { 3 });
        });
        runtime.shutdown_background();
    }
}

/// A gateway that answers 404, 405 or 409 in HTML for a moment: the e-mail is tried again, not left to a person.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateways_page_holds_nothing() {
    let mut held = Vec::new();
    for status in [404, 405, 409, 425] {
        let desk = Desk::start().await;
        let html = || Fault::Answer {
            status,
            content_type: "text/html",
            body: "<html>".to_owned(),
            headers: Vec::new(),
        };
        desk.severa.fault("POST", "/v1/activities", 1, html());
        let outcome = desk.deliver(&desk.message_to(None)).await;
        if matches!(outcome, Outcome::Refused { .. }) {
            held.push((status, outcome));
        }
    }
    assert!(held.is_empty(), "{held:?}");
}

/// What gateways say when the API behind them is away for a moment: neither deletes nor holds anything.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_says_of_404_decides_nothing() {
    for (content_type, body) in [
        ("text/plain; charset=utf-8", "default backend - 404"),
        ("text/plain; charset=utf-8", "404 page not found\n"),
        ("application/json", "{ \"statusCode\": 404, \"message\": \"Resource not found\" }"),
        ("application/json; charset=utf-8", "{\"message\":\"no Route matched with those values\"}"),
    ] {
        let desk = Desk::start().await;
        let calls = [
            ("GET", "/v1/activitytypes"),
            ("GET", "/v1/projects/{guid}"),
            ("POST", "/v1/activities"),
            ("POST", "/v1/activityparticipants"),
            ("GET", "/v1/activities/{guid}"),
            ("POST", "/v1/projects/{projectGuid}/files"),
        ];
        for (method, template) in calls {
            let body = body.to_owned();
            let fault = Fault::Answer { status: 404, content_type, body, headers: Vec::new() };
            desk.severa.fault(method, template, 1, fault);
        }
        assert_eq!(desk.carry(&desk.message()).await.0, Outcome::Taken, "{body}");
        desk.assert_all_once(body);
    }
}

/// The same without a word in it: an activity is gone only if Severa says so twice, and speaks between.
#[tokio::test(flavor = "multi_thread")]
async fn a_404_without_a_word_is_asked_about_again() {
    let desk = Desk::start().await;
    desk.severa.fault("POST", "/v1/activityparticipants", 1, Fault::status(404));
    desk.severa.fault("GET", "/v1/activities/{guid}", 1, Fault::status(404));
    assert_eq!(desk.carry(&desk.message()).await.0, Outcome::Taken);
    assert_eq!(desk.company.files(&desk.company.guid("p-1001")).len(), 2, "it was there all the time");
}

/// A type that is gone is a setting, however it is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_gone_is_a_setting_by_guid_too() {
    for kind in ["No such type", "00000000-0000-4000-8000-0000000000ff"] {
        let mut desk = Desk::start().await;
        kind.clone_into(&mut desk.settings.activity_type);
        let delivery = desk.message();
        for _ in 0..2 {
            let outcome = desk.deliver(&delivery).await;
            assert!(matches!(outcome, Outcome::Misconfigured { scope: Scope::Tenant, .. }), "{outcome:?}");
        }
        desk.settings.activity_type = "E-mail".to_owned();
        assert_eq!(desk.carry(&delivery).await, (Outcome::Taken, Vec::new()));
        desk.assert_all_once(kind);
    }
}

/// Deliveries in a pause after a 429 wait in their own company's attempts, and note nothing meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_pause_is_sat_out() {
    let desk = Desk::start().await;
    assert_eq!(desk.deliver(&desk.message_to(None)).await, Outcome::Taken);
    desk.severa.fault("POST", "/v1/activities", 1, Fault::TooMany { retry_after: Some(4) });
    let mut second = desk.message();
    change(&mut second, |activity| activity.subject = "Second".to_owned());
    let (backend, notes) = (desk.backend(), Notes::default());
    let first = backend.deliver(&second, &notes).await;
    assert!(matches!(first, Outcome::Again { trouble: Trouble::Later, .. }), "{first:?}");
    let (began, noted) = (Instant::now(), *notes.count.lock().unwrap());
    assert_eq!(backend.deliver(&second, &notes).await, Outcome::Taken);
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    // Intent and guid of the activity, and the intents of two participants and two files.
    assert_eq!(*notes.count.lock().unwrap() - noted, 6);
}
