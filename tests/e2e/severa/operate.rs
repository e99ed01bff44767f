//! The copies, as they are operated: the first one, reloads, and the commands that read them.

use super::{ANNA, BO, PROJECT, numbered};
use crate::support::{
    severa::{Call, Company, Fault},
    site::{Plan, Site},
    smtp::matches,
    wait_for,
    world::{Options, eml},
};
use std::time::{Duration, Instant};

const CLIENT: &str = "client-mycompany";

/// So many contacts, projects and users more.
fn fill(company: &Company, contacts: usize, projects: i64, users: usize) {
    for number in 0..users {
        company.add_user(&format!("user{number}@mycompany.test"), "User", &number.to_string());
    }
    let customers: Vec<_> =
        (0..100).map(|number| company.add_customer(&format!("Customer {number}"))).collect();
    for number in 0..contacts {
        let customer = &customers[number % customers.len()];
        let address = format!("contact{number}@customer.test");
        company.add_contact(customer, "Contact", &number.to_string(), &[&address]);
    }
    for number in 0..projects {
        company.add_project(10_000 + number, "A project", Some(&customers[0]));
    }
}

#[test]
fn the_first_copy_of_a_large_company() {
    let mut plan = Plan::new(&[]);
    let company = plan.add("mycompany");
    company.add_user(ANNA, "Anna", "Aalto");
    fill(&company, 10_000, 2000, 299);
    let mut site = plan.start(Options::default());
    let begun = Instant::now();
    let message = format!("From: {ANNA}\nTo: contact9999@customer.test\nSubject: at last\n\nx\n");
    let to = ["11999.mycompany@severamail.test"];
    let (answers, answer) = site.world.mail(ANNA, &to, message.as_bytes());
    assert!(matches(&answer, "451 4.4.3 *"), "{answers:?} {answer}");
    site.wait_for_copies(1);
    let calls = site.severa().calls().len();
    println!(
        "first copy of 10000 contacts, 2000 projects, 300 users: {calls} calls, {:.1?}",
        begun.elapsed()
    );
    assert!(calls <= 126, "{calls}");
    let (_, answer) = site.world.mail(ANNA, &to, message.as_bytes());
    assert!(answer.starts_with("250"), "{answer}");
    site.wait_until_delivered();
    let held: Vec<String> = site.held("mycompany").iter().map(ToString::to_string).collect();
    assert_eq!(held, ["owner Anna Aalto; contacts Contact 9999; customer Customer 99; project 11999"]);
    let most = site.severa().most_calls_in_a_second(CLIENT);
    println!("most calls in any second: {most}");
    assert!(most <= 9, "{most}");
    site.severa().assert_nothing_wrong();
}

/// Calls of one kind without a change to ask for.
fn full_passes(site: &Site, company: &str) -> usize {
    let client = site.company(company).client_id().to_owned();
    let calls = site.severa().calls().into_iter();
    let of_users =
        calls.filter(|call| call.client_id.as_ref() == Some(&client) && call.template == "/v1/users");
    of_users.filter(|call| call.query.contains("isActive") && !call.query.contains("pageToken")).count()
}

fn tokens(site: &Site, company: &str) -> usize {
    let client = site.company(company).client_id().to_owned();
    let calls = site.severa().calls().into_iter();
    calls.filter(|call| call.client_id.as_ref() == Some(&client) && call.template == "/v1/token").count()
}

#[test]
fn a_reload_keeps_copy_token_and_pace() {
    let plan = Plan::new(&["mycompany"]);
    fill(plan.company("mycompany"), 4000, 0, 0);
    let mut site = plan.start(Options::default());
    // In the midst of the first copy, twice.
    for (calls, limit) in [(6, 20_000), (12, 25_000)] {
        wait_for("some calls", || (site.severa().calls().len() >= calls).then_some(()));
        let change = |text: String| {
            text.replace("type = \"severa\"\nurl", "max_in_flight = 3\ntype = \"severa\"\nurl")
        };
        site.configure(&["mycompany"], |text| if calls == 6 { change(text) } else { text });
        let path = site.world.config_path();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}notes_limit = {limit}\n")).unwrap();
        site.reload();
    }
    let log = site.world.milter().log();
    assert!(!log.contains("full pass over Severa completed"), "the reloads came too late: {log}");
    site.wait_for_copies(1);
    // And during deliveries.
    let mut smtp = site.world.smtp();
    for number in 0..12 {
        assert!(smtp.mail(ANNA, &[PROJECT], &numbered(number)).1.starts_with("250"));
    }
    wait_for("a first activity", || (!site.mycompany().activities().is_empty()).then_some(()));
    site.configure(&["mycompany"], |text| text);
    site.reload();
    assert!(site.mycompany().activities().len() < 12, "the reload came too late");
    site.wait_until_delivered();
    assert_eq!(site.held("mycompany").len(), 12);
    assert_eq!((tokens(&site, "mycompany"), full_passes(&site, "mycompany")), (1, 1));
    assert_eq!(
        site.severa().count("GET", "/v1/activitytypes"),
        2,
        "asked for by each configuration that delivers"
    );
    let most = site.severa().most_calls_in_a_second(CLIENT);
    assert!(most <= 9, "{most}");
    site.severa().assert_nothing_wrong();
}

#[test]
fn a_reload_adds_and_removes_companies() {
    const OTHER: &str = "other@severamail.test";
    let mut site = Plan::new(&["mycompany", "other"])
        .start(Options { config: vec![("directory", "poll = \"1s\"".to_owned())], ..Options::default() });
    site.wait_for_copies(2);
    // A transaction keeps what it began with, however long it takes.
    let mut begun = site.world.smtp();
    assert!(begun.command("MAIL FROM:<otto@other.test>").starts_with("250"));
    assert!(begun.command(&format!("RCPT TO:<{OTHER}>")).starts_with("250"));
    // Gone: refused at once, and it calls no more.
    site.configure(&["mycompany"], |text| text);
    site.reload();
    let mail = |site: &Site| {
        site.world.mail("otto@other.test", &[OTHER], b"From: otto@other.test\nSubject: x\n\nx\n").1
    };
    assert!(matches(&mail(&site), "550 5.1.1 *[no-such-tenant]"));
    let of = |site: &Site, prefix: &str| {
        let client = site.company(prefix).client_id().to_owned();
        site.severa().calls().iter().filter(|call| call.client_id.as_ref() == Some(&client)).count()
    };
    let (gone, stays) = (of(&site, "other"), of(&site, "mycompany"));
    wait_for("polls of the one that stays", || (of(&site, "mycompany") >= stays + 12).then_some(()));
    assert!(of(&site, "other") <= gone + 1, "one call may have been under way");
    drop(begun);
    // There again: its copy is begun, and its mail waits for it.
    let passes = full_passes(&site, "other");
    site.company("other").fault("GET", "/v1/contactpersons", 1, Fault::HoldBefore(Duration::from_secs(2)));
    site.configure(&["mycompany", "other"], |text| text);
    site.reload();
    wait_for("the new company's mail", || {
        let answer = mail(&site);
        assert!(answer.starts_with("250") || matches(&answer, "451 4.4.3 *"), "{answer}");
        answer.starts_with("250").then_some(())
    });
    assert_eq!(full_passes(&site, "other"), passes + 1);
    assert_eq!(full_passes(&site, "mycompany"), 1);
    site.wait_until_delivered();
    assert_eq!(site.held("other").len(), 1);
    site.severa().assert_nothing_wrong();
}

/// Two companies, and arguments that concern the first.
struct Desk {
    site: Site,
    explain: Vec<String>,
}

const LOOKUP: [&str; 6] = ["directory", "lookup", PROJECT, ANNA, BO, "carl@else.test"];

impl Desk {
    fn new() -> Self {
        let plan = Plan::new(&["mycompany", "other"]);
        let site = plan.start(Options { without_milter: true, ..Options::default() });
        let message = site.world.root.join("plain.eml");
        std::fs::write(&message, eml("plain")).unwrap();
        let words = ["explain", message.to_str().unwrap(), "--sender", ANNA, "--recipient", PROJECT];
        let explain = words.map(str::to_owned).into();
        Self { site, explain }
    }

    fn with_copies() -> Self {
        let mut desk = Self::new();
        desk.site.world.start_milter();
        desk.site.wait_for_copies(2);
        desk
    }

    fn explain(&self) -> (Option<i32>, String, String) {
        self.site.world.command(&self.explain.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The calls that a command makes, beside what it says.
    fn calls_of(&self, args: &[&str]) -> (Vec<Call>, (Option<i32>, String, String)) {
        let before = self.site.severa().calls().len();
        let said = self.site.world.command(args);
        (self.site.severa().calls().split_off(before), said)
    }
}

#[test]
fn commands_without_a_copy_say_so_and_make_none() {
    let Desk { site, .. } = &Desk::new();
    let (code, _, error) = site.world.command(&LOOKUP);
    assert!(code == Some(69) && error.contains("there is no copy of Severa yet"), "{error}");
    let (code, out, _) = Desk::new().explain();
    assert!(code == Some(1) && out.contains("451"), "{out}");
    assert_eq!(site.severa().calls().len(), 0);
    let (code, out, _) = site.world.command(&["check"]);
    // Nothing is wrong with a machine that was not started yet.
    let line = "ok     severa mycompany no copy yet: the service makes it\n";
    assert!(code == Some(0) && out.contains(line), "{out}");
    assert!(!site.world.root.join("severa.db").exists());
}

#[test]
fn lookup_and_explain_answer_from_the_copy() {
    let desk = Desk::with_copies();
    let guid = |id: &str| desk.site.mycompany().guid(id);
    let (asked, (code, out, error)) = desk.calls_of(&LOOKUP);
    assert_eq!((code, error.as_str(), asked.len()), (Some(1), "", 0), "one is unknown: {out}");
    let (project, customer) = (guid("p-1001"), guid("c-acme"));
    for line in [
        "tenant mycompany: mycompany \"mycompany\", active, activity type E-mail\n".to_owned(),
        format!("{PROJECT}: integration address {project} of customer {customer} in tenant mycompany\n"),
        format!("{ANNA}: user {} \"Anna Aalto\" in tenant mycompany\n", guid("u-anna")),
        format!("{BO}: contact {} \"Bo Berg\" of customer {customer} in tenant mycompany\n", guid("k-bo")),
        "carl@else.test: unknown in tenant mycompany\n".to_owned(),
        "copies of 2 of 2 companies of Severa".to_owned(),
    ] {
        assert!(out.contains(&line), "{line}{out}");
    }
    let before = desk.site.severa().calls().len();
    let (code, out, error) = desk.explain();
    assert!(code == Some(0) && out.contains(&project), "{out}{error}");
    assert_eq!(desk.site.severa().calls().len(), before);
    // A number that the copy lacks is asked for: a token, projects, sales cases.
    let case = desk.site.mycompany().add_sales_case(2001, "A case", None);
    let (asked, (code, out, _)) = desk.calls_of(&["directory", "lookup", "2001.mycompany@severamail.test"]);
    assert!(code == Some(0) && out.contains(&case), "{out}");
    assert_eq!(asked.len(), 3, "{asked:#?}");
    desk.site.severa().assert_nothing_wrong();
}

#[test]
fn check_asks_what_a_delivery_needs_and_synchronises_nothing() {
    let desk = Desk::with_copies();
    let (asked, (code, out, error)) = desk.calls_of(&["check"]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("keep it out of Severa's synchronisation"), "{out}");
    assert!(out.contains("3 users, 5 contacts, 2 projects; last good poll"), "{out}");
    assert!(asked.iter().all(|call| call.template == "/v1/token" || call.method == "GET"), "{asked:#?}");
    assert!(asked.iter().all(|call| !call.query.contains("changedSince")), "{asked:#?}");
    let of_one = asked.iter().filter(|call| call.client_id.as_deref() == Some(CLIENT)).count();
    assert!(of_one <= 7, "a token, five lists, the types: {asked:#?}");
    // What is wrong with one company is said of that one.
    desk.site.mycompany().revoke_secret();
    let (_, (code, out, _)) = desk.calls_of(&["check"]);
    let line = out.lines().find(|line| line.starts_with("NOT OK severa mycompany")).unwrap_or_default();
    assert!(code == Some(1) && line.contains("AuthenticationRequired"), "{out}");
    assert!(!out.contains("NOT OK severa other"), "{out}");
    desk.site.mycompany().set_secret("secret");
    let path = desk.site.world.config_path();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("type = \"E-mail\"", "type = \"Letter\"", 1)).unwrap();
    let (_, (code, out, _)) = desk.calls_of(&["check"]);
    let said = "no active activity type \"Letter\": set activity_type to one of E-mail";
    assert!(code == Some(1) && out.contains(said), "{out}");
    desk.site.severa().assert_nothing_wrong();
}

/// Two processes of one company share its quota and nothing else: what one has too many, it waits for.
#[test]
fn check_beside_a_service_that_is_busy() {
    let plan = Plan::new(&["mycompany"]);
    fill(plan.company("mycompany"), 8000, 0, 0);
    let mut site = plan.start(Options::default());
    wait_for("the first copy to be begun", || (site.severa().calls().len() > 4).then_some(()));
    let (_, out, _) = site.world.command(&["check"]);
    let log = site.world.milter().log();
    assert!(!log.contains("full pass over Severa completed"), "check came too late: {log}");
    let unwell: Vec<_> = out.lines().filter(|line| line.starts_with("NOT OK")).collect();
    assert!(unwell.len() == 1 && unwell[0].starts_with("NOT OK severa mycompany 3 users, "), "{out}");
    site.wait_for_copies(1);
    assert_eq!(full_passes(&site, "mycompany"), 1);
}
