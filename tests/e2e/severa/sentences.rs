//! Each sentence of the design's section 1, through Postfix, seen in Severa.

use super::{ANNA, BO, MY, PROJECT};
use crate::support::{
    site::{Plan, Site},
    smtp::matches,
    wait_for,
    world::{Options, eml},
};
use std::collections::BTreeMap;

const CARL: &str = "carl@else.test";
const ESA: &str = "esa@mycompany.test";
const ASA: &str = "asa@xn--rksmrgs-5wao1o.test";
const OTHER: &str = "other@severamail.test";

/// What becomes of a message.
enum Fate {
    /// It is in Severa, so, and nothing else is.
    Held(&'static str),
    /// An activity for each of these companies.
    Each(&'static [(&'static str, &'static str)]),
    /// The reply; nothing is in Severa.
    Refused(&'static str),
}

use Fate::{Each, Held, Refused};

/// A message: of the corpus, or head fields.
enum Message {
    Eml(&'static str),
    Fields(&'static str),
}

use Message::{Eml, Fields};

/// The design's sentence, envelope sender, envelope recipients, message, what becomes of it.
type Case = (&'static str, &'static str, &'static [&'static str], Message, Fate);

/// In `Fields` the subject is missing: it is the sentence.
const CASES: &[Case] = &[
    (
        "sender is a user: that user owns",
        ANNA,
        &[MY],
        Fields("From: anna@mycompany.test\nTo: esa@mycompany.test"),
        Held("owner Anna Aalto; users Esa Eklund"),
    ),
    (
        "sender is no user: the first user in To owns, before Cc",
        CARL,
        &[MY],
        Fields("From: carl@else.test\nCc: anna@mycompany.test\nTo: dora@elsewhere.test, esa@mycompany.test"),
        Held("owner Esa Eklund; users Anna Aalto; external carl@else.test (from), dora@elsewhere.test (to)"),
    ),
    (
        "Cc before Bcc",
        CARL,
        &[MY],
        Fields("From: carl@else.test\nBcc: anna@mycompany.test\nCc: esa@mycompany.test"),
        Held("owner Esa Eklund; users Anna Aalto; external carl@else.test (from)"),
    ),
    (
        "Bcc before the envelope",
        CARL,
        &[ESA, MY],
        Fields("From: carl@else.test\nBcc: anna@mycompany.test"),
        Held("owner Anna Aalto; users Esa Eklund; external carl@else.test (from)"),
    ),
    (
        "then in the envelope's order",
        CARL,
        &[ASA, MY, ESA],
        Fields("From: carl@else.test\nTo: dora@elsewhere.test"),
        Held(
            "owner \u{c5}sa \u{d6}berg; users Esa Eklund; external carl@else.test (from), dora@elsewhere.test (to)",
        ),
    ),
    (
        "all other users are participants",
        ESA,
        &[MY],
        Fields("From: esa@mycompany.test\nTo: anna@mycompany.test\nCc: asa@xn--rksmrgs-5wao1o.test"),
        Held("owner Esa Eklund; users Anna Aalto, \u{c5}sa \u{d6}berg"),
    ),
    (
        "a contact takes part, and links the customer",
        ANNA,
        &[MY],
        Fields("From: anna@mycompany.test\nTo: bo@acme.test"),
        Held("owner Anna Aalto; contacts Bo Berg; customer Acme AB"),
    ),
    (
        "Joint workshop", // contacts of two customers: no link, all of them external
        ANNA,
        &[MY],
        Eml("several_customers"),
        Held(
            "owner Anna Aalto; users Esa Eklund; external Bo Berg <bo@acme.test> (to), Dora Dahl <dora@globex.test> (cc), \
             Shared Person <shared@both.test> (cc)",
        ),
    ),
    (
        "any other address is external",
        ANNA,
        &[MY],
        Fields("From: anna@mycompany.test\nTo: Carl <carl@else.test>, x@y.test"),
        Held("owner Anna Aalto; external Carl <carl@else.test> (to), x@y.test (to)"),
    ),
    (
        "Re: Offer for the roll-out", // a customer's reply links to the customer
        BO,
        &[MY],
        Eml("customer_reply"),
        Held(
            "owner Anna Aalto; contacts Bo Berg; customer Acme AB; external Dora <dora.private@mail.test> (cc)",
        ),
    ),
    (
        "Offer for the roll-out", // the project's root phase; the attachments are its files
        ANNA,
        &[PROJECT],
        Eml("project_with_attachments"),
        Held(
            "owner Anna Aalto; users Esa Eklund; contacts Bo Berg; customer Acme AB; project 1001; \
             files offer.pdf, Preisliste f\u{fc}r Acme.csv; external Carl <carl@else.test> (cc)",
        ),
    ),
    (
        "a project's customer, where no contact says otherwise",
        ANNA,
        &[PROJECT],
        Fields("From: anna@mycompany.test\nTo: carl@else.test"),
        Held("owner Anna Aalto; customer Acme AB; project 1001; external carl@else.test (to)"),
    ),
    (
        "the number of a sales case",
        ANNA,
        &[LOOKED_UP[0]],
        Fields(WITH_FILE),
        Held("owner Anna Aalto; contacts Bo Berg; customer Acme AB; project 2001; files list.txt"),
    ),
    (
        "files without a project have no place",
        ANNA,
        &[MY],
        Fields(WITH_FILE),
        Held("owner Anna Aalto; contacts Bo Berg; customer Acme AB; not kept list.txt (text/plain, 4 B)"),
    ),
    (
        "no such number",
        ANNA,
        &[LOOKED_UP[1]],
        Fields("From: anna@mycompany.test\nTo: bo@acme.test"),
        Refused("550 5.1.1 *[unknown-project]"),
    ),
    ("the subject is mandatory", ANNA, &[MY], Eml("no_subject"), Refused("550 5.6.0 *[no-subject]")),
    ("nobody is a user", CARL, &[MY], Eml("unknown_sender"), Refused("550 5.7.1 *[no-user]")),
    (
        "the company is not active",
        ANNA,
        &["closed@severamail.test"],
        Eml("plain"),
        Refused("550 5.2.1 *[tenant-inactive]"),
    ),
    (
        "no such company",
        ANNA,
        &["nobody@severamail.test"],
        Eml("plain"),
        Refused("550 5.1.1 *[no-such-tenant]"),
    ),
    (
        "one activity for each project, and the bare address adds nothing",
        ANNA,
        &[MY, PROJECT, "1002.mycompany@severamail.test"],
        Fields("From: anna@mycompany.test\nTo: 1001.mycompany@severamail.test, carl@else.test"),
        Each(&[
            ("mycompany", "owner Anna Aalto; customer Acme AB; project 1001; external carl@else.test (to)"),
            ("mycompany", "owner Anna Aalto; project 1002; external carl@else.test (to)"),
        ]),
    ),
    (
        "one activity for each company",
        ANNA,
        &[MY, OTHER],
        Fields("From: anna@mycompany.test\nTo: otto@other.test"),
        Each(&[
            ("mycompany", "owner Anna Aalto; external otto@other.test (to)"),
            ("other", "owner Otto Orava; external anna@mycompany.test (from)"),
        ]),
    ),
    (
        "a prefix with a dot is a company's, before a project's",
        ANNA,
        &["7.sub.mycompany@severamail.test"],
        Fields("From: anna@mycompany.test\nTo: carl@else.test"),
        Each(&[("sub.mycompany", "owner Anna Aalto; project 7; external carl@else.test (to)")]),
    ),
    (
        "Sender counts after From",
        "bounces@list.test",
        &[MY],
        Fields("From: sales@mycompany.test\nSender: esa@mycompany.test\nTo: anna@mycompany.test"),
        Held("owner Esa Eklund; users Anna Aalto; external sales@mycompany.test (from)"),
    ),
    (
        "the envelope sender counts at last",
        ESA,
        &[MY],
        Fields("From: sales@mycompany.test\nTo: anna@mycompany.test"),
        Held("owner Esa Eklund; users Anna Aalto; external sales@mycompany.test (from)"),
    ),
    (
        "Resent- fields name recipients",
        ANNA,
        &[MY],
        Fields("From: anna@mycompany.test\nTo: x@y.test\nResent-To: bo@acme.test"),
        Held("owner Anna Aalto; contacts Bo Berg; customer Acme AB; external x@y.test (to)"),
    ),
    (
        "the real Bcc recipients are in the envelope",
        ANNA,
        &[BO, MY],
        Fields("From: anna@mycompany.test\nTo: x@y.test"),
        Held("owner Anna Aalto; contacts Bo Berg; customer Acme AB; external x@y.test (to)"),
    ),
    (
        "nobody is listed twice, and no integration address",
        ANNA,
        &[BO, MY],
        Fields(
            "From: anna@mycompany.test\nTo: bo@acme.test, mycompany@severamail.test, anna@mycompany.test\nCc: BO@acme.test",
        ),
        Held("owner Anna Aalto; contacts Bo Berg; customer Acme AB"),
    ),
    (
        "RE: Logo for the brochure", // an alias of Anna's
        "anna.aalto@mycompany.test",
        &[MY],
        Eml("outlook_inline_image"),
        Held(
            "owner Anna Aalto; contacts Bo Berg; customer Acme AB; not kept image001.png (image/png, 78 B, inline)",
        ),
    ),
    (
        "Offert f\u{f6}r \u{e5}tg\u{e4}rder p\u{e5} \u{f6}n", // an address that is not ASCII
        ASA,
        &[MY],
        Eml("swedish_subject"),
        Held("owner \u{c5}sa \u{d6}berg; contacts Bo Berg; customer Acme AB"),
    ),
    (
        "a company that is not ASCII",
        ANNA,
        &["SM\u{d6}RG\u{c5}S@severamail.test"],
        Fields("From: anna@mycompany.test\nTo: carl@else.test"),
        Each(&[("sm\u{f6}rg\u{e5}s", "owner anna anna; external carl@else.test (to)")]),
    ),
];

const WITH_FILE: &str = "From: anna@mycompany.test\nTo: bo@acme.test\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n\
    --b\nContent-Type: text/plain\n\nsee there\n--b\nContent-Type: text/plain; name=list.txt\n\
    Content-Disposition: attachment; filename=list.txt\n\n1\n2\n--b--";

/// Numbers that the copy lacks: a sales case's, and nobody's.
const LOOKED_UP: [&str; 2] = ["02001.mycompany@severamail.test", "9999.mycompany@severamail.test"];

/// The companies of the table.
const COMPANIES: [&str; 5] = ["mycompany", "other", "closed", "sub.mycompany", "sm\u{f6}rg\u{e5}s"];

/// With a sales case beside what the directory file has.
fn plan() -> Plan {
    let plan = Plan::new(&COMPANIES);
    let company = plan.company("mycompany");
    company.add_sales_case(2001, "A case in progress", Some(&company.guid("c-acme")));
    plan
}

fn options() -> Options {
    Options { lmtp: true, ..Options::default() }
}

/// The message of a case, its subject before its fields.
fn message((sentence, _, _, message, _): &Case) -> Vec<u8> {
    match message {
        Eml(name) => eml(name),
        Fields(fields) => {
            let (head, body) = fields.split_once("\n\n").unwrap_or((fields, "x"));
            // Postfix would add what is missing of these, another one each time.
            let id = sentence.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            let own = format!("Message-ID: <{id}@x.test>\nDate: Mon, 23 Nov 2026 20:00:00 +0200");
            format!("Subject: {sentence}\n{own}\n{head}\n\n{body}\n").into_bytes()
        }
    }
}

/// Sends every message of the table; each is answered as it should be.
fn send_all(site: &Site) {
    for case in CASES {
        let (sentence, sender, to, _, fate) = case;
        let (answers, last) = wait_for("an answer", || {
            let answers = site.world.mail(sender, to, &message(case));
            // Numbers that the copy lacks are looked up one a second at most; a client comes again.
            let comes_again = matches(&answers.1, "451 4.4.3 *") && LOOKED_UP.contains(&to[0]);
            (!comes_again).then_some(answers)
        });
        let expected = if let Refused(reply) = fate { *reply } else { "250*" };
        assert!(matches(&last, expected), "{sentence}: expected {expected}, got {answers:?} {last}");
    }
}

/// What each company must hold: subject and content, sorted.
fn expected() -> BTreeMap<&'static str, Vec<(String, String)>> {
    let mut all: BTreeMap<_, Vec<_>> = COMPANIES.map(|company| (company, Vec::new())).into();
    for (sentence, _, _, _, fate) in CASES {
        let held: &[(&str, &str)] = match fate {
            Held(held) => &[("mycompany", held)],
            Each(each) => each,
            Refused(_) => &[],
        };
        for (company, held) in held {
            all.get_mut(company).unwrap().push(((*sentence).to_owned(), (*held).to_owned()));
        }
    }
    all.values_mut().for_each(|held| held.sort());
    all
}

/// Each company holds what the table says, and every call that made it so was right.
#[track_caller]
fn assert_held(site: &Site) {
    site.wait_until_delivered();
    for (company, expected) in expected() {
        let held = site.held(company).into_iter();
        let mut held: Vec<_> = held.map(|held| (held.subject.clone(), held.to_string())).collect();
        held.sort();
        for (held, expected) in held.iter().zip(&expected) {
            assert_eq!(held, expected, "{company}");
        }
        assert_eq!(held.len(), expected.len(), "{company}: {held:#?}");
    }
    site.severa().assert_nothing_wrong();
}

/// No company was asked too often.
#[track_caller]
fn assert_paced(site: &Site) {
    for company in COMPANIES {
        let most = site.severa().most_calls_in_a_second(site.company(company).client_id());
        assert!(most <= 9, "{company}: {most} calls in a second");
    }
}

#[test]
fn each_sentence_of_the_design() {
    let mut site = plan().start(options());
    site.wait_for_copies(COMPANIES.len());
    send_all(&site);
    assert_held(&site);
    assert_eq!(site.severa().count("GET", "/v1/salescases"), 3, "2001, 9999, and 2001 at its delivery");
    // The same messages again, by the other way where all recipients are ours: nothing more.
    let mut ways = [0, 0];
    for case in CASES.iter().filter(|case| !matches!(case.4, Refused(_))) {
        let (sentence, sender, to, ..) = case;
        let by_lmtp = to.len() == 1 && to[0].is_ascii();
        let mut client = if by_lmtp { site.world.lmtp() } else { site.world.smtp() };
        let (_, answer) = client.mail(sender, to, &message(case));
        assert!(answer.starts_with("250"), "{sentence}: {answer}");
        ways[usize::from(by_lmtp)] += 1;
    }
    assert!(ways.iter().all(|count| *count > 5), "{ways:?}");
    assert_held(&site);
    // Not behind Prism: what waits there comes all at once.
    assert_paced(&site);
}

#[test]
fn a_second_opinion_on_every_call() {
    let mut site = plan().start_behind_prism(options());
    site.wait_for_copies(COMPANIES.len());
    send_all(&site);
    assert_held(&site);
    let prism = site.prism();
    assert_eq!(prism.violations(), Vec::<String>::new());
    let uploads = site.severa().count("POST", "/v1/projects/{projectGuid}/files");
    assert_eq!(
        prism.forwarded() + uploads,
        site.severa().calls().len(),
        "all but uploads went through Prism"
    );
    wait_for("Postfix to have nothing left", || site.world.postfix.queued().is_empty().then_some(()));
}
