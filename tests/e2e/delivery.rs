//! Mail to integration addresses: recorded as appendix C says, and gone from Postfix.

use crate::support::{
    http::http_get,
    wait_for,
    world::{Options, World, eml},
};
use serde_json::{Value, json};

/// The queue id Postfix names in its answer.
pub fn queue_id(answer: &str) -> &str {
    answer.rsplit(' ').next().unwrap()
}

#[test]
fn an_activity_is_exactly_what_the_contract_says() {
    let world = World::start();
    let recipients = ["1001.MyCompany@SeveraMail.test"];
    let (_, answer) = world.mail("anna@mycompany.test", &recipients, &eml("project_with_attachments"));
    assert!(answer.starts_with("250 2.0.0 Ok: queued as "), "{answer}");
    let mut activity = world.wait_for_activities(1).remove(0);

    let key = activity["key"].take();
    let (status, one) = http_get(world.sink_port, &format!("/v1/activities/{}", key.as_str().unwrap()));
    assert_eq!((status, serde_json::from_slice::<Value>(&one).unwrap()["key"].clone()), (200, key.clone()));
    assert!(key.as_str().unwrap().starts_with("b3:"), "{key}");
    let received = activity["received_at"].take();
    assert!(received.as_str().unwrap().ends_with('Z'), "{received}");
    assert_eq!(
        activity,
        json!({
            "key": null, "schema": 1,
            "tenant": {"id": "t-1", "prefix": "mycompany"},
            "activity_type": "Email",
            "subject": "Offer for the roll-out",
            "sent_at": "2026-11-23T18:00:00Z", "received_at": null,
            "owner": {"user_id": "u-anna", "address": "anna@mycompany.test", "name": "Anna Aalto"},
            "participants": [
                {"kind": "contact", "id": "k-bo", "customer_id": "c-acme", "address": "bo@acme.test", "name": "Bo Berg", "field": "to"},
                {"kind": "external", "address": "carl@else.test", "name": "Carl", "field": "cc"},
                {"kind": "user", "id": "u-esa", "address": "esa@mycompany.test", "name": "Esa Eklund", "field": "cc"}
            ],
            "people_omitted": 0,
            "automatic": null,
            "sender_authenticated": null,
            "customer": {"id": "c-acme"},
            "project": {"id": "p-1001", "number": "1001"},
            "text": "Hi Bo,\n\nhere is the offer, and the price list as a table.\nThe sum is 4 200 €.\n\nBest regards\nAnna",
            "html": null,
            "message_id": "offer-1@mycompany.test", "in_reply_to": [], "references": [],
            "files": [
                {"part": "file-1", "name": "offer.pdf", "content_type": "application/pdf", "size": 390, "inline": false,
                 "sha256": "788b6f6215441388d816bfa63f4098a41cf29b7b447768994c7eb1fc82453372", "content_id": null, "verified": true},
                {"part": "file-2", "name": "Preisliste für Acme.csv", "content_type": "text/csv", "size": 27, "inline": false,
                 "sha256": "c991afb08eaeee08a6cc1156c6875733a4b07f59d58acc51d8d25417887a0bae", "content_id": null, "verified": true}
            ],
            "envelope": {"sender": "anna@mycompany.test", "recipients": ["1001.MyCompany@severamail.test"],
                "queue_id": queue_id(&answer), "client": "127.0.0.1", "login": null, "intake": "milter"}
        })
    );
    assert_eq!(world.postfix.queued(), Vec::<Value>::new());
    let log = world.postfix.log();
    assert!(log.contains(&format!("{}: milter-discard: END-OF-MESSAGE", queue_id(&answer))), "{log}");
    let (status, page) = http_get(world.sink_port, "/");
    assert!(status == 200 && String::from_utf8(page).unwrap().contains("Offer for the roll-out"));
    assert_eq!(http_get(world.sink_port, "/v1/activities/b3:none").0, 404);
}

#[test]
fn mixed_recipients_get_the_message_without_the_integration_address() {
    // smtputf8 addresses, quotes and case: DELRCPT must name them as the client did.
    let world = World::start();
    // Of a source route Postfix knows nothing any more by then.
    let integration = [
        "1002.MyCompany@SeveraMail.test",
        "\"mycompany\"@severamail.test",
        "@relay.test,@other.test:1001.mycompany@SEVERAMAIL.TEST",
    ];
    let mut recipients = vec!["bo@acme.test"];
    recipients.extend(integration);
    recipients.push("Carl@else.test");
    let (answers, last) = world.mail("anna@mycompany.test", &recipients, &eml("mixed_recipients"));
    assert!(answers.iter().all(|a| a.starts_with("250")) && last.starts_with("250"), "{answers:?} {last}");
    let delivered = wait_for("two deliveries", || Some(world.postfix.delivered()).filter(|d| d.len() == 2));
    let mut to: Vec<_> = delivered.iter().map(|(to, _)| to.as_str()).collect();
    to.sort_unstable();
    assert_eq!(to, ["Carl@else.test", "bo@acme.test"]);
    // The bare address adds nothing beside the projects.
    let activities = world.wait_for_activities(2);
    let mut projects: Vec<_> = activities.iter().map(|a| a["project"]["number"].as_str().unwrap()).collect();
    projects.sort_unstable();
    assert_eq!(projects, ["1001", "1002"]);
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
}

#[test]
fn smtputf8_recipients_and_tcp_sockets() {
    let world = World::with(Options { tcp: true, ..Options::default() });
    let message = "From: åsa@räksmörgås.test\nTo: anna@mycompany.test\nSubject: Ä\n\nö\n".as_bytes();
    let recipients = ["mycompany@severamail.test", "bø@acme.test"];
    let (answers, last) = world.mail("åsa@räksmörgås.test", &recipients, message);
    assert!(answers.iter().all(|a| a.starts_with("250")) && last.starts_with("250"), "{answers:?} {last}");
    let activity = world.wait_for_activities(1).remove(0);
    assert_eq!((&activity["subject"], &activity["text"]), (&json!("Ä"), &json!("ö\n")));
    assert_eq!(activity["owner"]["user_id"], "u-anna");
    assert_eq!(activity["participants"][1]["address"], "bø@acme.test");
}

#[test]
fn the_same_e_mail_twice_is_one_activity() {
    let world = World::start();
    for _ in 0..3 {
        let (_, answer) = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], &eml("plain"));
        assert!(answer.starts_with("250"), "{answer}");
    }
    let _ = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], &eml("html_only"));
    let subjects: Vec<_> = world.wait_for_activities(2).iter().map(|a| a["subject"].clone()).collect();
    assert_eq!(subjects, ["Meeting on Friday", "Newsletter  Bcc: x@y.test"]);
}

#[test]
fn a_message_of_megabytes_goes_through_the_spool_with_its_files() {
    let world = World::with(Options {
        config: vec![("backend", "include_raw_message = true".to_owned())],
        ..Options::default()
    });
    let file: Vec<u8> = (0..2_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let encoded: String = file
        .chunks(57)
        .map(|line| line.iter().map(|b| format!("={b:02X}")).collect::<String>())
        .map(|line| {
            line.as_bytes()
                .chunks(72)
                .map(|l| String::from_utf8_lossy(l).into_owned())
                .collect::<Vec<_>>()
                .join("=\n")
                + "=\n"
        })
        .collect();
    let message = format!(
        "From: anna@mycompany.test\nSubject: big\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n\
         --b\n\nsee attachment\n--b\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: quoted-printable\n\
         Content-Disposition: attachment; filename=big.bin\n\n{encoded}\n--b--\n"
    );
    let (_, answer) = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], message.as_bytes());
    assert!(answer.starts_with("250"), "{answer}");
    let activity = world.wait_for_activities(1).remove(0);
    assert_eq!(
        (&activity["files"][0]["size"], &activity["files"][0]["verified"]),
        (&json!(file.len()), &json!(true))
    );
    assert_eq!(activity["text"], "see attachment");
    // The sink keeps files by the digest of the key; only ours is there.
    let kept = std::fs::read_dir(world.root.join("sink/files")).unwrap().next().unwrap().unwrap().path();
    assert!(std::fs::read(kept.join("file-1")).unwrap() == file, "the file arrived byte for byte");
    assert!(std::fs::read(kept.join("message.eml")).unwrap().len() > file.len() * 3);
    wait_for("an empty spool", || (world.spooled() == 0).then_some(()));
}
