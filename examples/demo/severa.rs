//! `make demo BACKEND=severa`: the same messages, one to a sales case, a lost answer and a kill, with a fake of Visma
//! Severa as directory and backend; what it holds then, and what it was asked.
//!
//! The fake lives in this process. So `KEEP=1` keeps the process, until Ctrl-C.

use super::{Fate, MESSAGES, Message, deliveries_to_others, support};
use std::{collections::BTreeMap, process::ExitCode};
use support::{
    severa::Fault,
    site::{Held, Plan, Site},
    world::{Options, eml},
};

const COMPANIES: [&str; 3] = ["mycompany", "other", "closed"];
const ANNA: &str = "anna@mycompany.test";
const CASE: &str = "2001.mycompany@severamail.test";

const SALES_CASE: Message = ("sales case", "exchange_folded_filename", ANNA, &[CASE], Fate::Recorded);

/// What became of all.
#[derive(Default)]
struct Sum {
    sent: usize,
    recorded: usize,
    refused: usize,
    passed: usize,
    wrong: i32,
}

impl Sum {
    fn add(&mut self, fate: Fate, as_expected: bool) {
        self.sent += 1;
        match fate {
            Fate::Recorded => self.recorded += 1,
            Fate::Refused(_) => self.refused += 1,
            Fate::Passed => self.passed += 1,
        }
        self.wrong += i32::from(!as_expected);
    }
}

/// Runs it all; fails if anything is not as expected.
pub fn demo(keep: bool) -> ExitCode {
    println!("demo: starting a private Postfix, the milter and a fake of Visma Severa …");
    let plan = Plan::new(&COMPANIES);
    let company = plan.company("mycompany");
    company.add_sales_case(2001, "A case in progress", Some(&company.guid("c-acme")));
    let mut site = plan.start(Options::default());
    site.wait_for_copies(COMPANIES.len());
    let mut sum = Sum::default();
    // The sales case not beside the unknown project: numbers that the copy lacks are looked up one a second at most.
    let (first, others) = MESSAGES.split_at(1);
    for message in first.iter().chain([&SALES_CASE]).chain(others) {
        show(&site, message, &mut sum);
    }
    sum.wrong += deliveries_to_others(&site.world);
    lost_answer(&site, &mut sum);
    kill(&mut site, &mut sum);
    sum.wrong += calls(&site);
    if sum.wrong > 0 {
        let log = site.world.milter().log();
        println!("demo: {} things did not come out as expected; the milter's log:\n{log}", sum.wrong);
    }
    println!(
        "demo: {} sent, {} recorded, {} refused, {} passed",
        sum.sent, sum.recorded, sum.refused, sum.passed
    );
    if keep {
        stay(&site);
    }
    ExitCode::from(u8::from(sum.wrong > 0))
}

/// All that the fake holds.
fn held(site: &Site) -> Vec<Held> {
    COMPANIES.iter().flat_map(|prefix| site.held(prefix)).collect()
}

/// What is new since there were so many; true if that is one activity or, if none is wanted, none.
fn show_new(site: &Site, before: usize, wanted: bool) -> bool {
    site.wait_until_delivered();
    let new = held(site).split_off(before);
    match new.as_slice() {
        [] => println!("    Severa:  nothing"),
        some => some.iter().for_each(show_held),
    }
    new.len() == usize::from(wanted)
}

/// An activity, a line for each kind of thing that belongs to it.
fn show_held(held: &Held) {
    println!("    Severa:  \"{}\"", held.subject);
    for part in held.to_string().split("; ") {
        println!("             {part}");
    }
}

fn mark(as_expected: bool) {
    if !as_expected {
        println!("    <- NOT AS EXPECTED");
    }
}

fn show(site: &Site, (what, file, sender, recipients, fate): &Message, sum: &mut Sum) {
    println!("\n{what}: {sender} -> {}", recipients.join(" "));
    let before = held(site).len();
    let (_, answer) = site.world.mail(sender, recipients, &eml(file));
    println!("    SMTP:    {answer}");
    let is_held = show_new(site, before, *fate == Fate::Recorded);
    let as_expected = is_held && fate.is_answered_by(&answer);
    mark(as_expected);
    sum.add(*fate, as_expected);
}

/// Sends a message with project, people and files under another id; true if it is accepted.
fn send(site: &Site, id: &str) -> bool {
    let text = String::from_utf8(eml("project_with_attachments")).unwrap();
    let message = text.replace("<offer-1@", &format!("<{id}@"));
    let (_, answer) = site.world.mail(ANNA, &["1001.mycompany@severamail.test"], message.as_bytes());
    println!("    SMTP:    {answer}");
    answer.starts_with("250")
}

fn lost_answer(site: &Site, sum: &mut Sum) {
    println!("\nSevera creates the activity, and its answer is lost");
    let before = held(site).len();
    site.severa().fault("POST", "/v1/activities", 1, Fault::LoseAfter);
    let accepted = send(site, "lost");
    let as_expected = show_new(site, before, true) && accepted && site.severa().faults_left() == 0;
    mark(as_expected);
    sum.add(Fate::Recorded, as_expected);
}

fn kill(site: &mut Site, sum: &mut Sum) {
    println!("\nkill -9 of the service after Severa has created the activity; then it is started again");
    let before = held(site).len();
    site.severa().fault("POST", "/v1/activities", 1, Fault::Stop { acted: true });
    let accepted = send(site, "killed");
    site.severa().wait_until_stopped();
    site.world.milter().kill();
    site.severa().wait_until_gone();
    site.world.start_milter();
    let as_expected = show_new(site, before, true) && accepted;
    mark(as_expected);
    sum.add(Fate::Recorded, as_expected);
}

/// What was asked of the fake, and how fast; how much is wrong with it.
fn calls(site: &Site) -> i32 {
    let calls = site.severa().calls();
    let mut by_path = BTreeMap::new();
    for call in &calls {
        *by_path.entry((call.template.as_str(), call.method.as_str())).or_insert(0) += 1;
    }
    println!("\n{} calls of Severa's API:", calls.len());
    for ((path, method), count) in by_path {
        println!("    {count:>4}  {method:<4} {path}");
    }
    let most = |prefix: &&str| site.severa().most_calls_in_a_second(site.company(prefix).client_id());
    let most = COMPANIES.iter().map(most).max().unwrap_or(0);
    println!("most calls of one company in any second: {most} (Severa admits 10)");
    let wrongs = site.severa().wrongs();
    wrongs.iter().for_each(|wrong| println!("Severa's schema does not allow: {wrong}"));
    i32::from(most > 9) + i32::from(!wrongs.is_empty())
}

/// Everything stays until Ctrl-C.
fn stay(site: &Site) {
    let (root, port) = (site.world.root.display(), site.world.postfix.port);
    println!(
        "\nEverything keeps running in {root} as long as this process does; Ctrl-C stops it and removes it."
    );
    println!(
        "  send more:    swaks --server 127.0.0.1:{port} --from {ANNA} --to mycompany@severamail.test \\"
    );
    println!("                  --header 'From: {ANNA}' --header 'Subject: Hello'");
    println!("  logs:         {root}/milter.log  {root}/postfix/mail.log");
    println!("  settings:     {root}/activity-milter.toml");
    println!("  the fake:     {}", site.severa().url());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::signal::ctrl_c()).unwrap();
}
