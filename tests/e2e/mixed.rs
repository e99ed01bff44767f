//! Transactions with integration recipients, several of them, and others: who gets what, and what is taken out.

use crate::support::{
    smtp::matches,
    wait_for,
    world::{Options, World, eml},
};
use serde_json::Value;

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const BO: &str = "bo@acme.test";

fn strip() -> Options {
    Options { config: vec![("message", "mixed_recipients = \"strip\"".to_owned())], ..Options::default() }
}

#[track_caller]
fn assert_reply(got: &str, pattern: &str) {
    assert!(matches(got, pattern), "expected {pattern}, got {got}");
}

/// Waits until everything that Postfix accepted is delivered; to whom, sorted.
#[track_caller]
fn delivered_to(world: &World, count: usize) -> Vec<String> {
    wait_for("deliveries", || (world.postfix.delivered().len() >= count).then_some(()));
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    let mut to: Vec<_> = world.postfix.delivered().into_iter().map(|(to, _)| to).collect();
    to.sort();
    to
}

/// Tenant and project of each activity, sorted.
#[track_caller]
fn recorded(world: &World, count: usize) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: Vec<_> = world
        .wait_for_activities(count)
        .iter()
        .map(|a| (text(&a["tenant"]["id"]), text(&a["project"]["number"])))
        .collect();
    found.sort();
    found
}

fn pair(tenant: &str, project: &str) -> (String, String) {
    (tenant.to_owned(), project.to_owned())
}

#[test]
fn reject_tells_the_sender_and_strip_lets_the_rest_through() {
    let reject = World::start();
    let (_, answer) = reject.mail(ANNA, &[BO, MY], &eml("no_subject"));
    assert_reply(&answer, "550 5.6.0 <mycompany@severamail.test>: *[no-subject]");
    let world = World::with(strip());
    let (_, answer) = world.mail(ANNA, &[BO, MY], &eml("no_subject"));
    assert_reply(&answer, "250*");
    // Refused while nobody else is there: the sender learns it, whatever the setting.
    let (_, answer) = world.mail(ANNA, &[MY], &eml("no_subject"));
    assert_reply(&answer, "550 5.6.0 *[no-subject]");
    assert_eq!(delivered_to(&world, 1), [BO]);
    world.wait_for_activities(0);
    reject.wait_for_activities(0);
    assert_eq!(reject.postfix.delivered().len(), 0);
}

/// Every form in which a client can write an integration recipient is taken out, and nothing else is. D2.
#[test]
fn recipients_are_taken_out_in_whatever_form_the_client_wrote_them() {
    let mut options = strip();
    let domains = "integration_domains = [\"severamail.test\", \"räksmörgås.test\"]";
    options.config.push(("", domains.to_owned()));
    options.config.push(("message", "recipient_delimiter = \"+\"".to_owned()));
    options.postfix = vec![
        "relay_domains = severamail.test, räksmörgås.test, xn--rksmrgs-5wao1o.test".to_owned(),
        // What has been written on the way is found by what the client wrote.
        "virtual_alias_maps = inline:{ { sub.mycompany@severamail.test = archive@elsewhere.test } }"
            .to_owned(),
        "recipient_canonical_maps = inline:{ { other@severamail.test = otto@elsewhere.test } }".to_owned(),
    ];
    let world = World::with(options);
    let forms = [
        "MyCompany@SeveraMail.TEST",
        "mycompany@severamail.test",
        "\"mycompany\"@severamail.test",
        "\"my\\company\"@severamail.test",
        "1001.MYCOMPANY@severamail.test",
        "\"1002.mycompany\"@SEVERAMAIL.test",
        "mycompany+tag@severamail.test",
        "sub.mycompany@severamail.test",
        "Other@severamail.test",
        "mycompany@räksmörgås.test",
        "smörgås@severamail.test",
        "SMÖRGÅS@RÄKSMÖRGÅS.test",
        "mycompany@xn--rksmrgs-5wao1o.test",
    ];
    let mut count = 0;
    for form in forms {
        let message = format!("From: anna@mycompany.test\nCc: otto@other.test\nSubject: {count}\n\nx\n");
        let (answers, answer) = world.mail(ANNA, &[BO, form, "Carl@Else.test"], message.as_bytes());
        assert!(
            answers.iter().all(|a| a.starts_with("250")) && answer.starts_with("250"),
            "{form}: {answers:?} {answer}"
        );
        count += 1;
        world.wait_for_activities(count);
        assert_eq!(
            delivered_to(&world, count * 2).len(),
            count * 2,
            "{form}: {:?}",
            delivered_to(&world, count * 2)
        );
    }
    // All of them at once.
    let all: Vec<_> = [BO, "Carl@Else.test"].into_iter().chain(forms).collect();
    let (answers, answer) =
        world.mail(ANNA, &all, b"From: anna@mycompany.test\nCc: otto@other.test\nSubject: all\n\nx\n");
    assert!(
        answers.iter().all(|a| a.starts_with("250")) && answer.starts_with("250"),
        "{answers:?} {answer}"
    );
    count += 1;
    // Projects 1001 and 1002, and the three other tenants.
    world.wait_for_activities(count + 4);
    let to = delivered_to(&world, count * 2);
    assert_eq!(to, [vec!["Carl@Else.test"; count], vec![BO; count]].concat());
}

#[test]
fn several_tenants_and_projects_in_one_transaction() {
    let to = [
        MY,
        "1001.mycompany@severamail.test",
        "7.sub.mycompany@severamail.test",
        BO,
        "other@severamail.test",
    ];
    let message = |cc: &str, number: u8| {
        format!(
            "From: anna@mycompany.test\nTo: {BO}\n{cc}Subject: {number}\nMessage-ID: <{number}@x.test>\n\nx\n"
        )
    };
    let world = World::start();
    // Otto is a user of the other tenant: everybody records.
    let (_, answer) = world.mail(ANNA, &to, message("Cc: otto@other.test\n", 1).as_bytes());
    assert_reply(&answer, "250*");
    assert_eq!(recorded(&world, 3), [pair("t-1", "1001"), pair("t-2", ""), pair("t-4", "7")]);
    assert_eq!(delivered_to(&world, 1), [BO]);
    // No company learns of another's address.
    for activity in world.activities() {
        let prefix = activity["tenant"]["prefix"].as_str().unwrap();
        let shown: Vec<_> = activity["envelope"]["recipients"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r.as_str().unwrap())
            .collect();
        let ours = format!("{prefix}@severamail.test");
        assert!(shown.iter().all(|r| r.ends_with(&ours) || *r == BO), "{prefix}: {shown:?}");
    }
    // Without Otto one of them refuses: nothing is recorded, for anybody, and the text names the address.
    let (_, answer) = world.mail(ANNA, &to, message("", 2).as_bytes());
    assert_reply(&answer, "550 5.7.1 <other@severamail.test>: *[no-user]");
    // Or that one is taken out, and the others record.
    let strip = World::with(strip());
    let (_, answer) = strip.mail(ANNA, &to, message("", 3).as_bytes());
    assert_reply(&answer, "250*");
    assert_eq!(recorded(&strip, 2), [pair("t-1", "1001"), pair("t-4", "7")]);
    assert_eq!(delivered_to(&strip, 1), [BO]);
    assert_eq!((recorded(&world, 3).len(), delivered_to(&world, 1).len()), (3, 1));
}

#[test]
fn by_lmtp_each_recipient_has_its_own_answer() {
    let world = World::with(Options {
        lmtp: true,
        postfix: vec!["smtpd_milters =".to_owned()],
        ..Options::default()
    });
    let to = [MY, "7.sub.mycompany@severamail.test", "other@severamail.test", "nobody@severamail.test", BO];
    assert_reply(&world.mail(ANNA, &to, &eml("plain")).1, "250*");
    assert_eq!(recorded(&world, 2), [pair("t-1", ""), pair("t-4", "7")]);
    assert_eq!(delivered_to(&world, 2), [ANNA, BO]);
    let (_, bounce) = world.postfix.delivered().into_iter().find(|(to, _)| to == ANNA).unwrap();
    let bounce = String::from_utf8(bounce).unwrap();
    for said in ["other@severamail.test", "[no-user]", "nobody@severamail.test", "[no-such-tenant]"] {
        assert!(bounce.contains(said), "{said}: {bounce}");
    }
}

/// D2.
#[test]
fn a_recipient_refused_at_rcpt_stops_nobody_else() {
    let world = World::start();
    let to = ["nobody@severamail.test", BO, "closed@severamail.test", MY, "9999.mycompany@severamail.test"];
    let (answers, answer) = world.mail(ANNA, &to, &eml("plain"));
    for (got, pattern) in answers.iter().zip([
        "550 5.1.1 *[no-such-tenant]",
        "250*",
        "550 5.2.1 *[tenant-inactive]",
        "250*",
        "550 5.1.1 *[unknown-project]",
    ]) {
        assert_reply(got, pattern);
    }
    assert_reply(&answer, "250*");
    assert_eq!(recorded(&world, 1), [pair("t-1", "")]);
    assert_eq!(delivered_to(&world, 1), [BO]);
}

#[test]
fn keep_records_and_leaves_every_copy_to_postfix() {
    let mut options = strip();
    options.config.push(("message", "after_accept = \"keep\"".to_owned()));
    options.postfix = vec!["relay_transport = keep:".to_owned()];
    let world = World::with(options);
    let (_, answer) = world.mail(ANNA, &[BO, MY, "1001.mycompany@severamail.test"], &eml("plain"));
    assert_reply(&answer, "250*");
    assert_eq!(delivered_to(&world, 3), ["1001.mycompany@severamail.test", BO, MY]);
    // A tenant that refuses has nothing to keep: its address is taken out, the others stay.
    let (_, answer) =
        world.mail(ANNA, &["other@severamail.test", "sub.mycompany@severamail.test"], &eml("html_only"));
    assert_reply(&answer, "250*");
    assert_eq!(delivered_to(&world, 4).last().unwrap(), "sub.mycompany@severamail.test");
    assert_eq!(recorded(&world, 2), [pair("t-1", "1001"), pair("t-4", "")]);
}
