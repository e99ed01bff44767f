//! Deliveries to Severa's API: what is made there, and what becomes of each failure, call by call.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/desk.rs"]
mod desk;
#[path = "severa/storms.rs"]
mod storms;
#[path = "support/mod.rs"]
mod support;

use activity_milter::{
    activity::{Activity, CustomerRef, Field, Kind, Owner, Participant, Parties, ProjectRef, TenantRef},
    backend::{
        Backend, CompanySettings, Delivery, Journal, NotNoted, Outcome, Scope, SeveraBackend, Trouble, Unsure,
    },
    severa::{Client, Settings},
    web::ConnectionSettings,
};
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use support::severa::{Company, Fault, Severa};
use tokio::task::JoinSet;

const SETTLE: Duration = Duration::from_millis(400);

/// What is noted, and at which note the lease is lost.
#[derive(Default)]
struct Notes {
    last: Mutex<Option<String>>,
    count: Mutex<usize>,
    lost_at: Option<usize>,
}

#[async_trait::async_trait]
impl Journal for Notes {
    fn last(&self) -> Option<String> {
        self.last.lock().unwrap().clone()
    }

    async fn note(&self, step: String) -> Result<(), NotNoted> {
        let mut count = self.count.lock().unwrap();
        *count += 1;
        if self.lost_at == Some(*count) {
            return Err(NotNoted::Lost);
        }
        *self.last.lock().unwrap() = Some(step);
        Ok(())
    }
}

/// A fake with one company, and a backend for it.
struct Desk {
    severa: Severa,
    company: Company,
    settings: CompanySettings,
    unsure: Arc<Unsure>,
    notes: Notes,
    _secret: tempfile::TempDir,
}

impl Desk {
    async fn start() -> Self {
        Self::with(|settings| settings).await
    }

    async fn with(change: impl FnOnce(CompanySettings) -> CompanySettings) -> Self {
        let severa = tokio::task::spawn_blocking(Severa::start).await.unwrap();
        let company = severa.company("client", "secret");
        company.from_directory_toml(include_str!("directory.toml"), "mycompany");
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "secret\n").unwrap();
        let url = severa.url().parse().unwrap();
        let settings = Settings {
            connection: ConnectionSettings::new(url, Duration::from_secs(2)),
            client_id: "client".to_owned(),
            client_secret_file: secret,
        };
        let settings = change(CompanySettings {
            prefix: "mycompany".to_owned(),
            client: Arc::new(Client::new(&settings).unwrap()),
            activity_type: "E-mail".to_owned(),
            closed: true,
            inline_files: false,
            notes_limit: 30_000,
            settle: SETTLE,
        });
        let unsure = Arc::new(Unsure::default());
        Self { severa, company, settings, unsure, notes: Notes::default(), _secret: directory }
    }

    fn backend(&self) -> SeveraBackend {
        SeveraBackend::new(vec![self.settings.clone()], Arc::clone(&self.unsure))
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        self.backend().deliver(delivery, &self.notes).await
    }

    /// As the courier does it: again and again, until it is taken or held.
    async fn carry(&self, delivery: &Delivery) -> (Outcome, Vec<Outcome>) {
        let backend = self.backend();
        let mut before = Vec::new();
        for _ in 0..20 {
            match backend.deliver(delivery, &self.notes).await {
                Outcome::Again { after, trouble, reason } => {
                    tokio::time::sleep(after.unwrap_or(Duration::from_millis(200))).await;
                    before.push(Outcome::Again { after, trouble, reason });
                }
                outcome => return (outcome, before),
            }
        }
        panic!("no end: {before:?}");
    }

    /// A message of everything: project, user, contact, externals, two files and a picture in the text.
    fn message(&self) -> Delivery {
        self.message_to(Some(("p-1001", "1001")))
    }

    fn message_to(&self, project: Option<(&str, &str)>) -> Delivery {
        let guid = |id: &str| self.company.guid(id);
        let person = |kind, id: Option<&str>, address: &str| Participant {
            kind,
            id: id.map(guid),
            customer_id: None,
            address: address.to_owned(),
            name: None,
            field: Field::To,
        };
        let participants = [
            person(Kind::User, Some("u-esa"), "esa@mycompany.test"),
            person(Kind::Contact, Some("k-bo"), "bo@acme.test"),
            person(Kind::External, None, "carl@else.test"),
        ];
        let parties = Parties {
            tenant: TenantRef { id: "mycompany".to_owned(), prefix: "mycompany".to_owned() },
            activity_type: "E-mail".to_owned(),
            owner: Owner { user_id: guid("u-anna"), address: "anna@mycompany.test".to_owned(), name: None },
            participants: participants.into(),
            people_omitted: 0,
            automatic: None,
            sender_authenticated: None,
            customer: Some(CustomerRef { id: guid("c-acme") }),
            project: project.map(|(id, number)| ProjectRef { id: guid(id), number: number.to_owned() }),
        };
        desk::delivery_of(desk::parcel_with(parties, LETTER.to_owned()))
    }

    /// Everything is there, once.
    #[track_caller]
    fn assert_all_once(&self, what: &str) {
        let log = || format!("{what}: {:#?}", self.severa.calls());
        let activities = self.company.activities();
        assert_eq!(activities.len(), 1, "{}", log());
        let people: Vec<_> = participants(&activities[0]);
        let expected = [(self.company.guid("u-esa"), "User"), (self.company.guid("k-bo"), "Contact")];
        assert_eq!(people, expected.map(|(guid, kind)| (guid, kind.to_owned())), "{}", log());
        let files = self.company.files(&self.company.guid("p-1001"));
        let files: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.bytes.as_slice())).collect();
        assert_eq!(files, [("offer.txt", b"Offer".as_slice()), ("b\u{e4}r.bin", b"\0\x01\x02")], "{}", log());
        self.severa.assert_nothing_wrong();
    }
}

const LETTER: &str = "Subject: Offer\r\nMessage-ID: <1@x>\r\nDate: Mon, 23 Nov 2026 18:00:00 +0000\r\nMIME-Version: 1.0\r\n\
    Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nHi Bo,\r\nsee below.\r\n--b\r\n\
    Content-Type: text/plain; name=offer.txt\r\nContent-Disposition: attachment; filename=offer.txt\r\n\r\nOffer\r\n--b\r\n\
    Content-Type: image/png\r\nContent-ID: <logo>\r\nContent-Disposition: inline; filename=logo.png\r\n\r\nPNG\r\n--b\r\n\
    Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename*=utf-8''b%C3%A4r.bin\r\n\
    Content-Transfer-Encoding: base64\r\n\r\nAAEC\r\n--b--\r\n";

fn participants(activity: &Value) -> Vec<(String, String)> {
    let people = activity["participants"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    people.iter().map(|one| (text(&one["participantGuid"]), text(&one["type"]))).collect()
}

fn change(delivery: &mut Delivery, change: impl FnOnce(&mut Activity)) {
    change(&mut delivery.activity);
    delivery.json = serde_json::to_vec(&delivery.activity).unwrap().into();
}

/// The calls of [`Desk::message`], in their order.
const CALLS: [(&str, &str, usize); 8] = [
    ("POST", "/v1/token", 1),
    ("GET", "/v1/activitytypes", 1),
    ("GET", "/v1/projects/{guid}", 1),
    ("POST", "/v1/activities", 1),
    ("POST", "/v1/activityparticipants", 1),
    ("POST", "/v1/activityparticipants", 2),
    ("POST", "/v1/projects/{projectGuid}/files", 1),
    ("POST", "/v1/projects/{projectGuid}/files", 2),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_message_becomes_an_activity_its_participants_and_files() {
    let desk = Desk::start().await;
    let delivery = desk.message();
    assert_eq!(desk.deliver(&delivery).await, Outcome::Taken);
    desk.assert_all_once("the first attempt");
    let calls: Vec<_> = desk.severa.calls().into_iter().map(|call| (call.method, call.template)).collect();
    assert_eq!(calls, CALLS.map(|(method, template, _)| (method.to_owned(), template.to_owned())));
    let activity = &desk.company.activities()[0];
    for (field, expected) in [
        ("name", json!("Offer")),
        ("startDateTime", json!("2026-11-23T18:00:00Z")),
        ("endDateTime", json!("2026-11-23T18:00:00Z")),
        ("isClosed", json!(true)),
    ] {
        assert_eq!(activity[field], expected, "{field}");
    }
    let guid = |id: &str| json!(desk.company.guid(id));
    assert_eq!(activity["ownerUser"]["guid"], guid("u-anna"));
    assert_eq!(activity["customer"]["guid"], guid("c-acme"));
    assert_eq!(activity["activityType"]["guid"], json!(desk.company.activity_type("E-mail")));
    assert_eq!(activity["phase"]["guid"], json!(desk.company.root_phase(&desk.company.guid("p-1001"))));
    let key = delivery.activity.key.as_str();
    let notes = format!(
        "Hi Bo,\nsee below.\n\nAlso in this e-mail, and unknown to Severa:\n  carl@else.test (to)\n\
         Files of this e-mail that are not kept:\n  logo.png (image/png, 3 B, inline)\n\n[activity-milter {key}]"
    );
    assert_eq!(activity["notes"], json!(notes));
    let files = desk.company.files(&desk.company.guid("p-1001"));
    let said: Vec<_> = files.iter().map(|file| file.description.clone().unwrap_or_default()).collect();
    assert_eq!(said, [1, 3].map(|number| format!("[activity-milter {key}] {number}")));
    assert!(files[1].content_type.starts_with("application/octet-stream"));
}

/// S1: Whatever is lost, of whichever call, before or after it was done: everything is there once.
#[tokio::test(flavor = "multi_thread")]
async fn each_once_whichever_answer_is_lost() {
    let no_guid = |template: &str| match template {
        "/v1/projects/{projectGuid}/files" => "[]",
        _ => "{}",
    };
    let answer = |status, body: &str| Fault::AnswerAfter {
        status,
        content_type: "application/json",
        body: body.to_owned(),
        headers: Vec::new(),
    };
    let mut running = JoinSet::new();
    for (method, template, nth) in CALLS {
        let creates = method == "POST" && template != "/v1/token";
        let faults = [
            ("lost before", Fault::LoseBefore, true),
            ("lost after", Fault::LoseAfter, true),
            ("500 before", Fault::error(500, "Unknown"), true),
            ("502 after", Fault::status_after(502), true),
            ("408", Fault::status(408), true),
            ("too late, and done", Fault::HoldAfter(Duration::from_secs(4)), true),
            ("done much later", Fault::HoldBefore(Duration::from_millis(2300)), creates),
            ("cut off", answer(201, "{\"guid\": \"1"), creates),
            ("no guid", answer(201, no_guid(template)), creates),
            ("too many", Fault::TooMany { retry_after: Some(1) }, true),
        ];
        for (what, fault, is_of_it) in faults {
            if !is_of_it {
                continue;
            }
            if running.len() >= 8 {
                running.join_next().await.unwrap().unwrap();
            }
            running.spawn(async move {
                let desk = Desk::start().await;
                desk.severa.fault(method, template, nth, fault);
                let delivery = desk.message();
                let (outcome, before) = desk.carry(&delivery).await;
                let what = format!("{method} {template} {nth}: {what}: {before:?}");
                assert_eq!(outcome, Outcome::Taken, "{what}");
                assert!(!before.is_empty(), "{what}");
                assert_eq!(desk.severa.faults_left(), 0, "{what}");
                desk.assert_all_once(&what);
                assert!(desk.severa.most_calls_in_a_second("client") <= 9, "{what}");
            });
        }
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// S2: The lease is lost at any note: what follows is not done by this attempt, and the next one does it once.
#[tokio::test(flavor = "multi_thread")]
async fn each_once_whichever_note_fails() {
    let mut running = JoinSet::new();
    // Intent and guid of the activity, and the intent of each of the other four.
    for note in 1..=6 {
        running.spawn(async move {
            let mut desk = Desk::start().await;
            desk.notes.lost_at = Some(note);
            let delivery = desk.message();
            let first = desk.deliver(&delivery).await;
            assert!(matches!(first, Outcome::Again { trouble: Trouble::Ours, .. }), "{note}: {first:?}");
            let calls = desk.severa.calls().iter().filter(|call| call.method == "POST").count();
            assert_eq!(calls, [1, 2, 2, 3, 4, 5][note - 1], "{note}");
            tokio::time::sleep(SETTLE).await;
            assert_eq!(desk.carry(&delivery).await.0, Outcome::Taken, "{note}");
            desk.assert_all_once(&format!("note {note}"));
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// S13: What was delivered before is sent once more, without a note of it: what is there is found, what was lost is made.
/// What is lost of the delivery before: nothing, or a call and all after it; the settings have another type by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_makes_what_is_lost_and_nothing_else() {
    let mut running = JoinSet::new();
    let creates =
        CALLS.into_iter().filter(|(method, template, _)| *method == "POST" && *template != "/v1/token");
    let cuts = creates.map(Some).chain([None]);
    for (cut, fault) in cuts.flat_map(|cut| [Fault::LoseBefore, Fault::LoseAfter].map(|fault| (cut, fault))) {
        running.spawn(async move {
            let mut desk = Desk::start().await;
            let what = format!("{cut:?} {fault:?}");
            if let Some((method, template, nth)) = cut {
                desk.severa.fault(method, template, nth, fault);
            }
            let mut delivery = desk.message();
            let mut first = desk.deliver(&delivery).await;
            while first != Outcome::Taken && desk.severa.faults_left() > 0 {
                first = desk.deliver(&delivery).await; // it did not come so far
            }
            assert_eq!(first == Outcome::Taken, cut.is_none(), "{what}: {first:?}");
            desk.notes = Notes::default();
            desk.company.add_activity_type("Letter", true);
            desk.settings.activity_type = "Letter".to_owned();
            delivery.replay = true;
            let (outcome, before) = desk.carry(&delivery).await;
            let waits = |outcome: &Outcome| matches!(outcome, Outcome::Again { trouble: Trouble::Waits, .. });
            assert!(outcome == Outcome::Taken && !before.iter().any(waits), "{what}: {before:?}");
            desk.assert_all_once(&what);
        });
        if running.len() >= 4 {
            running.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// S13: A replay's own lost answers and notes are as any other's.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_cut_off_goes_on_where_it_was() {
    let mut running = JoinSet::new();
    for lost_at in [Some(1), Some(2), Some(3), None] {
        for there in [false, true] {
            running.spawn(async move {
                let mut desk = Desk::start().await;
                let mut delivery = desk.message();
                if there {
                    desk.severa.fault("POST", "/v1/activityparticipants", 2, Fault::LoseAfter);
                    assert!(matches!(desk.deliver(&delivery).await, Outcome::Again { .. }));
                }
                desk.notes = Notes { lost_at, ..Notes::default() };
                delivery.replay = true;
                if lost_at.is_none() {
                    desk.severa.fault("POST", "/v1/projects/{projectGuid}/files", 1, Fault::LoseAfter);
                }
                let (outcome, before) = desk.carry(&delivery).await;
                assert!(outcome == Outcome::Taken && !before.is_empty(), "{lost_at:?} {there}: {before:?}");
                desk.assert_all_once(&format!("{lost_at:?} {there}"));
            });
            if running.len() >= 4 {
                running.join_next().await.unwrap().unwrap();
            }
        }
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// S3: An attempt that is cut off (its lease ended, it panicked) leaves an answer open like one that was lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_cut_off_settles() {
    let desk = Desk::start().await;
    let delivery = desk.message();
    desk.severa.fault("POST", "/v1/activities", 1, Fault::Stop { acted: false });
    let begun = tokio::time::timeout(Duration::from_millis(1500), desk.deliver(&delivery)).await;
    assert!(begun.is_err());
    desk.severa.release();
    let (outcome, before) = desk.carry(&delivery).await;
    assert_eq!(outcome, Outcome::Taken);
    let waits = |outcome: &Outcome| matches!(outcome, Outcome::Again { trouble: Trouble::Waits, .. });
    assert!(before.iter().all(waits) && !before.is_empty(), "{before:?}");
    desk.assert_all_once("cut off");
}

/// S5: What each answer means: for the activity, for the company, for the next attempt.
#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_each_refusal() {
    fn name(outcome: &Outcome) -> String {
        match outcome {
            Outcome::Taken => "taken".to_owned(),
            Outcome::Again { trouble, .. } => format!("again {trouble:?}"),
            Outcome::Refused { status, detail, .. } => format!("held {status} {detail}"),
            Outcome::Misconfigured { scope, reason, .. } => {
                assert_eq!(*scope, Scope::Tenant);
                format!("pause {reason}")
            }
        }
    }
    let post = ("POST", "/v1/activities");
    let person = ("POST", "/v1/activityparticipants");
    let project = ("GET", "/v1/projects/{guid}");
    let types = ("GET", "/v1/activitytypes");
    let token = ("POST", "/v1/token");
    let mut cases: Vec<((&str, &str), Fault, String)> = vec![
        (post, Fault::error(400, "InvalidParameter"), "held 400 InvalidParameter: It is so.".to_owned()),
        (post, Fault::error(409, "SomethingNew"), "held 409 SomethingNew: It is so.".to_owned()),
        (post, Fault::error(403, "PermissionDenied"), "held 403 PermissionDenied: It is so.".to_owned()),
        (post, Fault::status(403), "pause Severa answers 403".to_owned()),
        (post, Fault::status(302), "pause Severa answers 302".to_owned()),
        (post, Fault::TooMany { retry_after: None }, "again Later".to_owned()),
        (person, Fault::error(400, "InvalidParameter"), "taken".to_owned()),
        (person, Fault::status(404), "taken".to_owned()),
        (person, Fault::error(403, "PermissionDenied"), "held 403 PermissionDenied: It is so.".to_owned()),
        (person, Fault::error(409, "Conflict"), "held 409 Conflict: It is so.".to_owned()),
        (project, Fault::error(403, "PermissionDenied"), "held 403 PermissionDenied: It is so.".to_owned()),
        (
            types,
            Fault::error(403, "InsufficientApiScope"),
            "pause Severa answers 403 InsufficientApiScope".to_owned(),
        ),
        (token, Fault::error(400, "InvalidParameter"), "pause no token for client: 400".to_owned()),
        (token, Fault::status(500), "again Lost".to_owned()),
        (token, Fault::TooMany { retry_after: Some(9) }, "again Waits".to_owned()),
    ];
    for kind in [
        "InsufficientApiScope",
        "AddonMissing",
        "FeatureIsNotEnabled",
        "TermsOfServiceNotApproved",
        "OrganizationNotActive",
        "TrialExpired",
        "ConfigurationError",
    ] {
        for status in [400, 403] {
            let expected = format!("pause Severa answers {status} {kind}");
            cases.push((post, Fault::error(status, kind), expected));
        }
    }
    let mut running = JoinSet::new();
    for ((method, template), fault, expected) in cases {
        if running.len() >= 8 {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(async move {
            let desk = Desk::start().await;
            desk.severa.fault(method, template, 1, fault.clone());
            let delivery = desk.message();
            let outcome = name(&desk.deliver(&delivery).await);
            let what = format!("{template} {fault:?}");
            assert!(outcome.starts_with(&expected), "{what}: {outcome}");
            if expected == "taken" {
                return;
            }
            // A refusal left nothing open: the next attempt looks for nothing, and waits for nothing.
            tokio::time::sleep(Duration::from_millis(1100)).await;
            if template != "/v1/token" {
                assert_eq!(desk.carry(&delivery).await, (Outcome::Taken, Vec::new()), "{what}");
                assert_eq!(desk.severa.count("GET", "/v1/activities"), 0, "{what}");
                desk.assert_all_once(&what);
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// S7.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_calls_pause_the_company_as_long_as_it_says() {
    let desk = Desk::start().await;
    let delivery = desk.message();
    desk.severa.fault("POST", "/v1/activities", 1, Fault::TooMany { retry_after: Some(90) });
    let Outcome::Again { after, trouble: Trouble::Later, .. } = desk.deliver(&delivery).await else {
        panic!()
    };
    assert!(after.unwrap() > Duration::from_secs(89));
    let calls = desk.severa.calls().len();
    let began = Instant::now();
    let Outcome::Again { after, trouble: Trouble::Waits, .. } = desk.deliver(&delivery).await else {
        panic!()
    };
    assert!(after.unwrap() > Duration::from_secs(80) && began.elapsed() < Duration::from_secs(5));
    assert_eq!(desk.severa.calls().len(), calls, "nobody calls in a pause");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_is_renewed_once() {
    let desk = Desk::start().await;
    assert_eq!(desk.deliver(&desk.message_to(None)).await, Outcome::Taken);
    desk.company.expire_tokens();
    let mut second = desk.message();
    change(&mut second, |activity| activity.subject = "Second".to_owned());
    let notes = Notes::default();
    assert_eq!(desk.backend().deliver(&second, &notes).await, Outcome::Taken);
    assert_eq!(desk.severa.count("POST", "/v1/token"), 2);
    desk.company.revoke_secret();
    let Outcome::Misconfigured { scope: Scope::Tenant, reason, .. } =
        desk.backend().deliver(&second, &Notes::default()).await
    else {
        panic!()
    };
    assert!(reason.contains("no token for client"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_refused_stands_before_no_other() {
    let desk = Desk::start().await;
    let delivery = desk.message();
    let files = ("POST", "/v1/projects/{projectGuid}/files");
    desk.severa.fault(files.0, files.1, 1, Fault::status(413));
    let Outcome::Refused { status, detail, about } = desk.deliver(&delivery).await else { panic!() };
    assert_eq!((status.as_str(), detail.as_str()), ("413", "1 of its files, all else is done"));
    assert_eq!(about.as_deref(), Some("offer.txt"));
    let project = desk.company.guid("p-1001");
    let there: Vec<_> = desk.company.files(&project).into_iter().map(|file| file.name).collect();
    assert_eq!(there, ["b\u{e4}r.bin"]);
    // A person made room, and has it tried again: only what is missing is sent.
    assert_eq!(desk.carry(&delivery).await, (Outcome::Taken, Vec::new()));
    let there: Vec<_> = desk.company.files(&project).into_iter().map(|file| file.name).collect();
    assert_eq!(there, ["b\u{e4}r.bin", "offer.txt"]);
    assert_eq!(desk.company.activities().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_deleted_stays_deleted() {
    for nth in [1, 2] {
        let desk = Desk::start().await;
        let delivery = desk.message();
        desk.severa.fault("POST", "/v1/activityparticipants", nth, Fault::LoseBefore);
        let first = desk.deliver(&delivery).await;
        assert!(matches!(first, Outcome::Again { trouble: Trouble::Lost, .. }), "{first:?}");
        let guid = desk.company.activities()[0]["guid"].as_str().unwrap().to_owned();
        desk.company.delete_activity(&guid);
        assert_eq!(desk.carry(&delivery).await.0, Outcome::Taken);
        assert!(desk.company.activities().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sales_cases_have_a_phase_too_also_when_they_are_won() {
    let desk = Desk::start().await;
    let case = desk.company.add_sales_case(2001, "Offer", None);
    let to_case = |desk: &Desk, subject: &str| {
        let mut delivery = desk.message_to(None);
        let project = Some(ProjectRef { id: case.clone(), number: "2001".to_owned() });
        change(&mut delivery, |activity| {
            (activity.project, activity.subject) = (project, subject.to_owned());
        });
        delivery
    };
    let phase = |index: usize| desk.company.activities()[index]["phase"]["guid"].clone();
    assert_eq!(desk.backend().deliver(&to_case(&desk, "1"), &Notes::default()).await, Outcome::Taken);
    assert_eq!(phase(0), json!(desk.company.root_phase(&case)));
    desk.company.win_case(&case);
    assert_eq!(desk.backend().deliver(&to_case(&desk, "2"), &Notes::default()).await, Outcome::Taken);
    assert_eq!(phase(1), json!(desk.company.root_phase(&case)));
    assert_ne!(phase(0), phase(1));
    desk.company.remove_project(&case);
    let Outcome::Refused { detail, .. } =
        desk.backend().deliver(&to_case(&desk, "3"), &Notes::default()).await
    else {
        panic!()
    };
    assert_eq!(detail, "2001 is no project or sales case with a root phase any more");
    desk.severa.assert_nothing_wrong();
}

/// S4: A search goes through all pages, and takes nothing but the marker in the last line, of this type and owner, for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_not_misled() {
    let desk = Desk::start().await;
    desk.company.row_limit(7);
    let delivery = desk.message();
    let marker = format!("[activity-milter {}]", delivery.activity.key.as_str());
    let others = |owner: &str, notes: String| {
        desk.company.add_activity(json!({
            "name": "Other", "notes": notes, "startDateTime": "2026-11-23T18:00:00Z",
            "activityType": {"guid": desk.company.activity_type("E-mail")}, "ownerUser": {"guid": desk.company.guid(owner)},
        }));
    };
    desk.severa.fault("POST", "/v1/activities", 1, Fault::LoseBefore);
    let first = desk.deliver(&delivery).await;
    assert!(matches!(first, Outcome::Again { .. }), "{first:?}");
    for _ in 0..20 {
        others("u-anna", format!("{marker}\nquoted, and answered"));
        others("u-esa", marker.clone());
        others("u-anna", format!("> {marker}"));
    }
    assert_eq!(desk.carry(&delivery).await.0, Outcome::Taken);
    assert_eq!(desk.company.activities().len(), 61, "it was not there, and is posted");
    let desk = Desk::start().await;
    desk.company.row_limit(7);
    desk.severa.fault("POST", "/v1/activities", 1, Fault::LoseAfter);
    let first = desk.deliver(&delivery_of(&desk)).await;
    assert!(matches!(first, Outcome::Again { .. }), "{first:?}");
    for _ in 0..20 {
        desk.company.add_activity(json!({
            "name": "Other", "startDateTime": "2026-11-23T18:00:00Z", "notes": null,
            "activityType": {"guid": desk.company.activity_type("E-mail")},
            "ownerUser": {"guid": desk.company.guid("u-anna")},
        }));
    }
    assert_eq!(desk.carry(&delivery_of(&desk)).await.0, Outcome::Taken);
    assert_eq!(desk.company.activities().len(), 21, "it was there, and is found");
}

fn delivery_of(desk: &Desk) -> Delivery {
    desk.message()
}

/// S4: What is found is found by the type and owner it was posted with, though the settings have another type by now.
#[tokio::test(flavor = "multi_thread")]
async fn other_settings_find_what_the_old_ones_made() {
    let mut desk = Desk::start().await;
    let delivery = desk.message();
    desk.severa.fault("POST", "/v1/activities", 1, Fault::LoseAfter);
    assert!(matches!(desk.deliver(&delivery).await, Outcome::Again { .. }));
    desk.company.add_activity_type("Letter", true);
    desk.settings.activity_type = "Letter".to_owned();
    assert_eq!(desk.carry(&delivery).await.0, Outcome::Taken);
    desk.assert_all_once("another type");
}

/// S4.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_finds_what_was_made() {
    for offset in [-86_400 * 400, 86_400 * 400] {
        let desk = Desk::start().await;
        desk.company.clock_offset(offset);
        let delivery = desk.message();
        desk.severa.fault("POST", "/v1/activities", 1, Fault::LoseAfter);
        assert_eq!(desk.carry(&delivery).await.0, Outcome::Taken);
        desk.assert_all_once(&format!("{offset}"));
    }
}

/// What no people write is left out.
#[tokio::test(flavor = "multi_thread")]
async fn control_characters_are_not_sent() {
    let desk = Desk::start().await;
    let mut delivery = desk.message_to(None);
    change(&mut delivery, |activity| activity.text = Some("a\u{0}b\u{1b}[31m\tc\rd\r\ne".into()));
    assert_eq!(desk.deliver(&delivery).await, Outcome::Taken);
    let notes = desk.company.activities()[0]["notes"].as_str().unwrap().to_owned();
    assert!(notes.starts_with("ab[31m\tcd\ne\n\n"), "{notes:?}");
}

/// S5.
#[tokio::test(flavor = "multi_thread")]
async fn a_company_that_is_gone_from_the_settings_pauses() {
    let desk = Desk::start().await;
    let backend = SeveraBackend::new(Vec::new(), Arc::clone(&desk.unsure));
    let outcome = backend.deliver(&desk.message(), &desk.notes).await;
    let Outcome::Misconfigured { scope: Scope::Tenant, reason, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason, "there is no [[severa]] with prefix = \"mycompany\" any more");
}

/// S5.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_not_there_pauses_until_the_settings_are_right() {
    let mut desk = Desk::start().await;
    desk.settings.activity_type = "Email".to_owned();
    let outcome = desk.deliver(&desk.message()).await;
    let Outcome::Misconfigured { scope: Scope::Tenant, reason, .. } = outcome else { panic!("{outcome:?}") };
    assert!(
        reason.contains("no active activity type \"Email\": set activity_type to one of E-mail"),
        "{reason}"
    );
    desk.settings.activity_type = desk.company.activity_type("E-mail");
    assert_eq!(desk.deliver(&desk.message()).await, Outcome::Taken);
}

/// S6: Texts that do not fit are cut, and the marker never is.
#[tokio::test(flavor = "multi_thread")]
async fn notes_have_a_limit_and_end_in_the_marker() {
    let desk = Desk::with(|settings| CompanySettings { notes_limit: 1000, ..settings }).await;
    for (what, text, people) in [
        ("fits", "x".repeat(500), 3),
        ("much text", "\u{1f600}".repeat(2000), 3),
        ("many people", "short".to_owned(), 500),
        ("both", "line\r\n".repeat(2000), 500),
        ("nothing", String::new(), 0),
        ("a false marker", "[activity-milter b3:0]".to_owned(), 0),
    ] {
        let mut delivery = desk.message_to(None);
        change(&mut delivery, |activity| {
            activity.subject = what.to_owned();
            activity.text = Some(text.clone().into());
            activity.files = [].into();
            let external = |number| Participant {
                kind: Kind::External,
                id: None,
                customer_id: None,
                address: format!("person{number}@else.test"),
                name: Some("A Name".to_owned()),
                field: Field::Cc,
            };
            activity.participants = (0..people).map(external).collect();
        });
        let backend = desk.backend();
        assert_eq!(backend.deliver(&delivery, &Notes::default()).await, Outcome::Taken, "{what}");
        let activities = desk.company.activities();
        let notes = activities.last().unwrap()["notes"].as_str().unwrap().to_owned();
        assert!(notes.chars().count() <= 1000, "{what}: {}", notes.chars().count());
        let marker = format!("[activity-milter {}]", delivery.activity.key.as_str());
        assert_eq!(notes.lines().last(), Some(marker.as_str()), "{what}");
        assert_eq!(
            notes.contains("[The e-mail is longer.]"),
            ["much text", "both"].contains(&what),
            "{what}"
        );
        assert_eq!(notes.contains(" more\n"), people == 500, "{what}: {notes}");
        assert_eq!(notes.contains("A Name <person0@else.test> (cc)"), people > 0, "{what}: {notes}");
        if what == "both" {
            assert!(notes.matches("line").count() > 50, "{notes}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_begin_together_look_the_type_up_once() {
    let desk = Desk::start().await;
    let (delivery, backend) = (desk.message_to(None), desk.backend());
    let notes: [Notes; 4] = Default::default();
    let attempts = notes.iter().map(|notes| backend.deliver(&delivery, notes));
    let outcomes = futures_util::future::join_all(attempts).await;
    assert_eq!(outcomes, vec![Outcome::Taken; 4]);
    assert_eq!(desk.severa.count("GET", "/v1/activitytypes"), 1);
    desk.severa.assert_nothing_wrong();
}

/// A service that runs beside it may have made the calls that a second has.
#[tokio::test(flavor = "multi_thread")]
async fn check_waits_where_there_were_too_many_calls() {
    let desk = Desk::start().await;
    for (method, path) in [
        ("POST", "/v1/token"),
        ("GET", "/v1/projects"),
        ("GET", "/v1/activities"),
        ("GET", "/v1/activitytypes"),
    ] {
        desk.severa.fault(method, path, 1, Fault::TooMany { retry_after: None });
    }
    let lines = desk.backend().check(Duration::from_secs(10)).await;
    assert!(lines.len() == 4 && lines.iter().all(|line| line.outcome.is_ok()), "{lines:?}");
    assert_eq!(desk.severa.faults_left(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_is_wrong_with_each_company() {
    let desk = Desk::start().await;
    let patience = Duration::from_secs(5);
    let texts = async |desk: &Desk| -> Vec<String> {
        let lines = desk.backend().check(patience).await;
        assert!(lines.iter().all(|line| line.name == "severa mycompany"), "{lines:?}");
        lines.into_iter().map(|line| line.outcome.unwrap_or_else(|error| format!("NOT OK {error}"))).collect()
    };
    let all = texts(&desk).await;
    assert_eq!(all.len(), 4, "{all:?}");
    assert!(all[0].contains("gives a token for client"), "{all:?}");
    assert!(all[2].contains("keep it out of Severa's synchronisation"), "{all:?}");
    assert!(all[3].starts_with("our clock is 0s") || all[3].starts_with("our clock is 1s"), "{all:?}");
    desk.company.clock_offset(3600);
    assert!(texts(&desk).await[3].starts_with("NOT OK our clock is 3"), "an hour");
    desk.severa.assert_nothing_wrong();
    let desk = Desk::start().await;
    desk.company.grant(&["users:read", "customers:read"]);
    let all = texts(&desk).await;
    assert!(all[0].starts_with("NOT OK the token lacks scopes: projects:read"), "{all:?}");
    desk.company.revoke_secret();
    desk.severa.down();
    let fresh = Desk { unsure: Arc::default(), ..Desk::start().await };
    fresh.severa.down();
    assert!(texts(&fresh).await[0].starts_with("NOT OK"), "nobody is there");
}
