//! `kill -9` at each call of a delivery, before and after Severa has acted: afterwards everything is there, once.

use super::{ANNA, PROJECT};
use crate::support::{
    severa::{Call, Fault},
    site::Site,
};

/// A message with project, two participants and two files, the number in subject and Message-ID.
fn message(number: usize) -> Vec<u8> {
    let file = |name: &str| {
        format!(
            "--b\nContent-Type: text/plain; name={name}\nContent-Disposition: attachment; filename={name}\n\n{name} {number}\n"
        )
    };
    format!(
        "From: {ANNA}\nTo: bo@acme.test, esa@mycompany.test\nSubject: number {number}\nMessage-ID: <{number}@x.test>\n\
         MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain\n\nx\n{}{}--b--\n",
        file("a.txt"),
        file("b.txt")
    )
    .into_bytes()
}

const HELD: &str = "owner Anna Aalto; users Esa Eklund; contacts Bo Berg; customer Acme AB; project 1001; files a.txt, b.txt";

/// Method and path of a call.
type Step = (&'static str, &'static str);

const GET_PROJECT: Step = ("GET", "/v1/projects/{guid}");
const POST_ACTIVITY: Step = ("POST", "/v1/activities");
const POST_PERSON: Step = ("POST", "/v1/activityparticipants");
const POST_FILE: Step = ("POST", "/v1/projects/{projectGuid}/files");
const FIND_ACTIVITY: Step = ("GET", "/v1/activities");
const FIND_PERSON: Step = ("GET", "/v1/activities/{activityGuid}/activityparticipants");
const FIND_FILE: Step = ("GET", "/v1/projects/{projectGuid}/files");

/// Each call of the message: which one, and what is looked for after it.
const CALLS: [(Step, usize, Option<Step>); 6] = [
    (GET_PROJECT, 1, None),
    (POST_ACTIVITY, 1, Some(FIND_ACTIVITY)),
    (POST_PERSON, 1, Some(FIND_PERSON)),
    (POST_PERSON, 2, Some(FIND_PERSON)),
    (POST_FILE, 1, Some(FIND_FILE)),
    (POST_FILE, 2, Some(FIND_FILE)),
];

fn stop_at(site: &Site, (method, template): Step, nth: usize, acted: bool) {
    site.severa().fault(method, template, nth, Fault::Stop { acted });
}

/// Waits for the call that stops, kills the service in it, and starts it again. `next` stops the service that follows.
fn kill(site: &mut Site, next: impl FnOnce(&Site)) -> Call {
    let call = site.severa().wait_until_stopped();
    site.world.milter().kill();
    site.severa().wait_until_gone();
    next(site);
    site.world.start_milter();
    call
}

/// Everything of so many messages is there, once.
#[track_caller]
fn assert_each_once(site: &Site, messages: usize, what: &str) {
    site.wait_until_delivered();
    let held = site.held("mycompany");
    let got: Vec<_> = held.iter().map(|held| (held.subject.clone(), held.to_string())).collect();
    let expected: Vec<_> = (0..messages).map(|n| (format!("number {n}"), HELD.to_owned())).collect();
    assert_eq!(got, expected, "{what}");
    assert_eq!(site.severa().faults_left(), 0, "{what}");
    site.severa().assert_nothing_wrong();
}

fn send(site: &Site, number: usize) {
    let (_, answer) = site.world.mail(ANNA, &[PROJECT], &message(number));
    assert!(answer.starts_with("250"), "{answer}");
}

fn killed_at_each_call(acted: bool) {
    let mut site = Site::start();
    for (number, (call, nth, _)) in CALLS.into_iter().enumerate() {
        stop_at(&site, call, nth, acted);
        send(&site, number);
        let stopped = kill(&mut site, |_| ());
        assert_eq!((stopped.method.as_str(), stopped.template.as_str()), call);
        assert_each_once(&site, number + 1, &format!("{call:?} {nth}"));
    }
}

#[test]
fn killed_at_each_call_before_severa_acts() {
    killed_at_each_call(false);
}

#[test]
fn killed_at_each_call_after_severa_acts() {
    killed_at_each_call(true);
}

/// Also the search for what the killed one made is a call that may be killed.
fn killed_at_each_search(acted: bool) {
    let mut site = Site::start();
    let searches = CALLS.into_iter().filter_map(|(call, nth, search)| Some((call, nth, search?)));
    for (number, (call, nth, search)) in searches.enumerate() {
        stop_at(&site, call, nth, acted);
        send(&site, number);
        kill(&mut site, |site| stop_at(site, search, 1, acted));
        let stopped = kill(&mut site, |_| ());
        assert_eq!((stopped.method.as_str(), stopped.template.as_str()), search);
        assert_each_once(&site, number + 1, &format!("{search:?} after {call:?} {nth}"));
    }
}

#[test]
fn killed_again_while_it_looks_for_what_is_not_there() {
    killed_at_each_search(false);
}

#[test]
fn killed_again_while_it_looks_for_what_is_there() {
    killed_at_each_search(true);
}

#[test]
fn killed_at_each_call_of_one_message() {
    let mut site = Site::start();
    // Each is the next such call that the message makes, whoever makes it: a participant that Severa had not added is
    // searched for and added again.
    let calls = [
        (GET_PROJECT, false),
        (POST_ACTIVITY, false),
        (FIND_ACTIVITY, false),
        (POST_ACTIVITY, true),
        (FIND_ACTIVITY, true),
        (POST_PERSON, false),
        (FIND_PERSON, false),
        (POST_PERSON, true),
        (FIND_PERSON, true),
        (POST_PERSON, true),
        (POST_FILE, false),
        (FIND_FILE, true),
        (POST_FILE, true),
        (FIND_FILE, true),
        (POST_FILE, true),
    ];
    let (first, acted) = calls[0];
    stop_at(&site, first, 1, acted);
    send(&site, 0);
    for (index, (call, _)) in calls.into_iter().enumerate() {
        let next = calls.get(index + 1);
        let stopped = kill(&mut site, |site| {
            if let Some((call, acted)) = next {
                stop_at(site, *call, 1, *acted);
            }
        });
        assert_eq!((stopped.method.as_str(), stopped.template.as_str()), call, "call {index}");
    }
    assert_each_once(&site, 1, "all of them");
}
