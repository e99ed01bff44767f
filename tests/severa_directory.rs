//! Companies' Severa accounts as the directory: the copy, how it is kept, and what is asked while a client waits.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "severa/copy_storms.rs"]
mod storms;
#[path = "support/mod.rs"]
mod support;

use activity_milter::{
    directory::{Directory, SeveraDirectory, SeveraSettings, SeveraTenant},
    mail::Address,
    rules::{Person, Project},
    severa::{self, CopyState},
    web::ConnectionSettings,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use support::severa::{Company, Fault, LastPage, Severa};
use tempfile::TempDir;
use tokio::time::sleep;

const USERS: &str = "/v1/users";
const CONTACTS: &str = "/v1/contactpersons";
const COMMUNICATIONS: &str = "/v1/contactcommunications";
const PROJECTS: &str = "/v1/projects";
const CASES: &str = "/v1/salescases";

/// Times within which a test sees polls and passes; what is to happen never is a day away.
const SOON: Duration = Duration::from_millis(200);
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// The fake, and a folder for the copy and the secrets.
struct World {
    severa: Severa,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        Self { severa: Severa::start(), folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("severa.db")
    }

    fn settings(&self, poll: Duration, full_pass: Duration) -> SeveraSettings {
        SeveraSettings::new(self.path(), poll, full_pass)
    }

    fn client(&self, client_id: &str) -> Arc<severa::Client> {
        let secret = self.folder.path().join(client_id);
        fs::write(&secret, "secret\n").unwrap();
        let url = self.severa.url().parse().unwrap();
        let connection = ConnectionSettings::new(url, Duration::from_secs(5));
        let settings =
            severa::Settings { connection, client_id: client_id.to_owned(), client_secret_file: secret };
        Arc::new(severa::Client::new(&settings).unwrap())
    }

    fn tenant(&self, prefix: &str, client_id: &str) -> SeveraTenant {
        SeveraTenant {
            prefix: prefix.to_owned(),
            active: true,
            shadow: false,
            policy: Arc::default(),
            activity_type: "E-mail".to_owned(),
            aliases: Default::default(),
            client: self.client(client_id),
        }
    }

    fn start(&self, poll: Duration, full_pass: Duration) -> Arc<SeveraDirectory> {
        SeveraDirectory::start(&self.settings(poll, full_pass), vec![self.tenant("mycompany", "id")]).unwrap()
    }

    fn changed_since(&self, path: &str) -> usize {
        let calls = self.severa.calls();
        calls.iter().filter(|call| call.path == path && call.query.contains("changedSince")).count()
    }

    /// The next poll that begins from here on, to its end.
    async fn poll(&self) {
        let before = self.changed_since(PROJECTS);
        wait("a poll", || self.changed_since(PROJECTS) >= before + 2).await;
    }
}

async fn wait(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + support::PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn complete(directory: &SeveraDirectory) {
    wait("the first copy", || directory.copies().iter().all(|copy| copy.is_complete)).await;
}

fn state(directory: &SeveraDirectory) -> CopyState {
    directory.copies().into_iter().next().unwrap()
}

fn counts(directory: &SeveraDirectory) -> [usize; 3] {
    let CopyState { users, contacts, projects, .. } = state(directory);
    [users, contacts, projects]
}

async fn person_of(directory: &SeveraDirectory, prefix: &str, address: &str) -> Person {
    let tenant = directory.tenant(prefix).await.unwrap().unwrap();
    let people = directory.people(&tenant, &[Address::parse(address).unwrap()]).await.unwrap();
    people.persons.into_iter().next().unwrap()
}

async fn person(directory: &SeveraDirectory, address: &str) -> Person {
    person_of(directory, "mycompany", address).await
}

async fn user(directory: &SeveraDirectory, address: &str) -> Option<String> {
    person(directory, address).await.user.map(|user| user.id)
}

async fn contacts(directory: &SeveraDirectory, address: &str) -> Vec<String> {
    person(directory, address).await.contacts.into_iter().map(|contact| contact.id).collect()
}

async fn project(directory: &SeveraDirectory, number: &str) -> Result<Option<Project>, String> {
    let tenant = directory.tenant("mycompany").await.unwrap().unwrap();
    directory.project(&tenant, number, &[]).await.map_err(|error| error.0)
}

async fn project_id(directory: &SeveraDirectory, number: &str) -> Option<String> {
    project(directory, number).await.unwrap().map(|project| project.id)
}

/// Users, a customer with contacts, projects.
fn fill(company: &Company, users: usize, contacts: usize, projects: usize) -> String {
    let customer = company.add_customer("Acme");
    for n in 0..users {
        company.add_user(&format!("user{n}@mycompany.test"), "User", &n.to_string());
    }
    for n in 0..contacts {
        company.add_contact(&customer, "Contact", &n.to_string(), &[&format!("contact{n}@acme.test")]);
    }
    for n in 0..projects {
        company.add_project(1000 + n as i64, "Project", Some(&customer));
    }
    customer
}

#[tokio::test]
async fn answers_are_guids_and_come_from_the_copy_alone() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    let customer = company.add_customer("Acme");
    let anna = company.add_user("Anna@MyCompany.test", "Anna", "Adams");
    let [first, second] =
        ["B1", "B2"].map(|name| company.add_contact(&customer, "Bo", name, &["bo@acme.test"]));
    let both = company.add_contact(&customer, "Anna", "Adams", &["anna@mycompany.test"]);
    let linked = company.add_project(1001, "Offer", Some(&customer));
    let loose = company.add_project(1002, "Own", None);
    let mut tenant = world.tenant("MyCompany", "id");
    tenant.shadow = true;
    let alias = |text: &str| vec![Address::parse(text).unwrap()];
    tenant.aliases = [
        (anna.to_uppercase(), alias("anna@home.test")),
        ("anna@mycompany.test".to_owned(), alias("Anna@Other.test")),
        ("gone@mycompany.test".to_owned(), alias("gone@home.test")),
    ]
    .into();
    let directory = SeveraDirectory::start(&world.settings(NEVER, NEVER), vec![tenant]).unwrap();
    complete(&directory).await;
    let calls = world.severa.calls().len();

    let tenant = directory.tenant("mycompany").await.unwrap().unwrap();
    assert_eq!((tenant.id.as_str(), tenant.name.as_str()), ("mycompany", "mycompany"));
    assert!(tenant.active && tenant.shadow && tenant.activity_type == "E-mail");
    assert!(directory.tenant("other").await.unwrap().is_none());
    let found = person(&directory, "anna@mycompany.TEST").await;
    let found_user = found.user.unwrap();
    assert_eq!((found_user.id.as_str(), found_user.name.as_deref()), (anna.as_str(), Some("Anna Adams")));
    assert_eq!(found.contacts[0].id, both, "a user and a contact share an address");
    assert_eq!(found.contacts[0].customer_id, customer);
    let mut expected = vec![first, second];
    expected.sort();
    assert_eq!(contacts(&directory, "bo@acme.test").await, expected);
    for address in ["anna@home.test", "anna@other.test"] {
        assert_eq!(user(&directory, address).await.as_deref(), Some(anna.as_str()), "{address}");
    }
    assert_eq!(user(&directory, "gone@home.test").await, None);
    assert_eq!(state(&directory).unknown_aliases, ["gone@mycompany.test"]);
    assert_eq!(person(&directory, "nobody@x.test").await, Person::default());
    let found = project(&directory, "0001001").await.unwrap().unwrap();
    let expected = Project { id: linked, number: "1001".to_owned(), customer: Some(customer) };
    assert_eq!(found, expected);
    let found = project(&directory, "1002").await.unwrap().unwrap();
    assert_eq!((found.id, found.customer), (loose, None));
    for number in ["x", "1001a", "", "12345678901234567890"] {
        assert!(project(&directory, number).await.unwrap().is_none(), "{number}");
    }
    assert_eq!(world.severa.calls().len(), calls, "nothing was asked");
    assert_eq!(fs::metadata(world.path()).unwrap().permissions().mode() & 0o777, 0o600);
    world.severa.assert_nothing_wrong();
}

#[tokio::test]
async fn of_two_users_of_one_address_it_is_always_the_same() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    let one = company.add_user("info@mycompany.test", "One", "One");
    let two = company.add_user("Info@mycompany.test", "Two", "Two");
    let directory = world.start(NEVER, NEVER);
    complete(&directory).await;
    let lower = one.min(two);
    assert_eq!(user(&directory, "info@mycompany.test").await, Some(lower));
}

#[tokio::test]
async fn the_first_copy_of_a_large_company_takes_125_calls() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 300, 10_000, 2_000);
    let begun = Instant::now();
    let directory = world.start(NEVER, NEVER);
    complete(&directory).await;
    let elapsed = begun.elapsed();
    let calls = world.severa.calls().len();
    assert!(calls <= 125, "{calls} calls");
    let most = world.severa.most_calls_in_a_second("id");
    assert!(most <= 9, "{most} calls in a second");
    assert_eq!(counts(&directory), [300, 10_000, 2_000]);
    assert!(user(&directory, "user299@mycompany.test").await.is_some());
    assert_eq!(contacts(&directory, "contact9999@acme.test").await.len(), 1);
    assert!(project_id(&directory, "2999").await.is_some());
    assert_eq!(world.severa.calls().len(), calls);
    world.severa.assert_nothing_wrong();
    println!("first copy: {calls} calls, {elapsed:.1?}, {most} in a second at most");
}

#[tokio::test]
async fn pages_of_every_kind_are_read_to_their_end() {
    for (last_page, rows) in
        [(LastPage::Absent, 100), (LastPage::Empty, 10), (LastPage::Repeated, 7), (LastPage::Repeated, 30)]
    {
        let world = World::new();
        let company = world.severa.company("id", "secret");
        fill(&company, 30, 30, 30);
        company.last_page(last_page);
        company.row_limit(rows);
        company.unknown_fields(true);
        let directory = world.start(NEVER, NEVER);
        complete(&directory).await;
        assert_eq!(counts(&directory), [30, 30, 30], "{last_page:?} {rows}");
        world.severa.assert_nothing_wrong();
    }
    // A server that gives the same rows for ever: the list ends all the same.
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 3, 3, 3);
    company.ignores_first_row(true);
    let directory = world.start(NEVER, NEVER);
    complete(&directory).await;
    assert_eq!((counts(&directory), world.severa.count("GET", "/v1/contactpersons")), ([3, 3, 3], 2));
}

/// S9.
#[tokio::test]
async fn before_the_first_copy_nobody_is_refused() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    world.severa.fault("GET", PROJECTS, 1, Fault::Stop { acted: false });
    let directory = world.start(NEVER, NEVER);
    let tenant = directory.tenant("mycompany").await.unwrap().unwrap();
    wait("the call to be stopped", || world.severa.stopped().is_some()).await;
    let error = directory.people(&tenant, &[]).await.unwrap_err().0;
    assert_eq!(error, "the first copy of Severa is being made: 1 contacts so far");
    assert_eq!(project(&directory, "1000").await.unwrap_err(), error);
    assert_eq!(project(&directory, "x").await, Ok(None), "this is certain");
    assert!(state(&directory).standing().starts_with("the first copy is being made: 3 calls so far"));
    // For a command there is none yet.
    let beside =
        SeveraDirectory::open(&world.settings(NEVER, NEVER), vec![world.tenant("mycompany", "id")]).unwrap();
    assert_eq!(beside.people(&tenant, &[]).await.unwrap_err().0, "there is no copy of Severa yet");
    world.severa.release();
    complete(&directory).await;
    assert!(directory.people(&tenant, &[]).await.is_ok_and(|people| !people.stale));
    assert!(project_id(&directory, "1000").await.is_some());
}

/// S10.
#[tokio::test]
async fn polls_bring_what_has_changed() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    company.clock_offset(-7200); // its clock is its own business
    let customer = fill(&company, 2, 3, 2);
    let directory = world.start(SOON, NEVER);
    complete(&directory).await;
    let [user0, user1] = ["user0@mycompany.test", "user1@mycompany.test"];
    let (leaves, moves) = (user(&directory, user0).await.unwrap(), user(&directory, user1).await.unwrap());
    let mut people = Vec::new();
    for n in 0..3 {
        people.extend(contacts(&directory, &format!("contact{n}@acme.test")).await);
    }
    company.set_user_active(&leaves, false);
    company.set_user_email(&moves, "moved@mycompany.test");
    let comes = company.add_user("new@mycompany.test", "New", "User");
    company.set_contact_active(&people[0], false);
    company.delete_contact(&people[1]);
    company.add_address(&people[2], "Touched@acme.test", true);
    company.add_address(&people[2], "Alone@acme.test", false);
    let known = company.add_contact(&customer, "New", "Contact", &["new@acme.test"]);
    let new = company.add_project(5000, "New", Some(&customer));
    world.poll().await;
    assert_eq!(user(&directory, user0).await, None);
    assert_eq!(user(&directory, user1).await, None);
    assert_eq!(user(&directory, "moved@mycompany.test").await, Some(moves));
    assert_eq!(user(&directory, "new@mycompany.test").await, Some(comes));
    for n in 0..2 {
        assert!(contacts(&directory, &format!("contact{n}@acme.test")).await.is_empty());
    }
    for address in ["contact2@acme.test", "touched@acme.test", "alone@acme.test"] {
        assert_eq!(contacts(&directory, address).await, [people[2].as_str()], "{address}");
    }
    assert_eq!(contacts(&directory, "new@acme.test").await, [known.as_str()]);
    assert_eq!(project_id(&directory, "5000").await, Some(new));
    assert_eq!(world.severa.count("GET", CASES), 0);
    assert!(state(&directory).age.is_some_and(|age| age < Duration::from_secs(30)));
    // From before the poll, by the API's clock.
    let calls = world.severa.calls();
    let last = calls.iter().rfind(|call| call.path == COMMUNICATIONS).unwrap();
    let since = last.query.split("changedSince=").nth(1).unwrap().split('&').next().unwrap();
    let since = humantime::parse_rfc3339(&since.replace("%3A", ":")).unwrap();
    let behind = std::time::SystemTime::now().duration_since(since).unwrap().as_secs();
    assert!((7500..7530).contains(&behind), "{behind}");
    world.severa.assert_nothing_wrong();
}

/// S10.
#[tokio::test]
async fn a_poll_that_fails_is_repeated_from_the_same_time() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let directory = world.start(SOON, NEVER);
    complete(&directory).await;
    world.poll().await;
    let since = || {
        let calls = world.severa.calls();
        let polls = calls.into_iter().filter(|call| call.query.contains("changedSince"));
        polls.map(|call| (call.path, call.query, call.status)).collect::<Vec<_>>()
    };
    // The last list of a poll: what the others brought is not enough.
    world.severa.fault("GET", PROJECTS, 1, Fault::status(500));
    wait("the fault", || world.severa.faults_left() == 0).await;
    wait("trouble", || state(&directory).trouble.is_some()).await;
    assert!(state(&directory).trouble.unwrap().contains("500"));
    wait("the end of it", || state(&directory).trouble.is_none()).await;
    let all = since();
    let failed = all.iter().position(|(_, _, status)| *status == Some(500)).unwrap();
    let again = all[failed + 1..].iter().find(|(path, _, _)| path == PROJECTS).unwrap();
    assert_eq!(all[failed].1, again.1, "the same time again");
    world.severa.assert_nothing_wrong();
}

/// S10.
#[tokio::test]
async fn what_two_passes_lacked_is_gone() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 2, 2, 2);
    let directory = world.start(NEVER, SOON);
    complete(&directory).await;
    let address = "user0@mycompany.test";
    let gone = user(&directory, address).await.unwrap();
    let contact = contacts(&directory, "contact0@acme.test").await.remove(0);
    let number = project_id(&directory, "1000").await.unwrap();
    // Between two passes: while the last list of one is being read, the next has not begun.
    world.severa.fault("GET", PROJECTS, 1, Fault::Stop { acted: true });
    wait("the end of a pass", || world.severa.stopped().is_some()).await;
    company.remove_user(&gone);
    company.remove_contact(&contact);
    company.remove_project(&number);
    world.severa.fault("GET", PROJECTS, 1, Fault::Stop { acted: true });
    world.severa.release();
    wait("the end of the next", || world.severa.stopped().is_some()).await;
    world.severa.fault("GET", USERS, 1, Fault::Stop { acted: true });
    world.severa.release();
    wait("the pass behind it", || world.severa.stopped().is_some()).await;
    assert_eq!(user(&directory, address).await, Some(gone), "one pass lacked it: it may have been a page");
    assert_eq!(counts(&directory), [2, 2, 2]);
    world.severa.release();
    wait("the second pass", || counts(&directory) == [1, 1, 1]).await;
    assert_eq!(user(&directory, address).await, None);
    assert!(contacts(&directory, "contact0@acme.test").await.is_empty());
    assert_eq!(project(&directory, "1000").await, Ok(None));
    world.severa.assert_nothing_wrong();
}

/// S10.
#[tokio::test]
async fn a_pass_that_fails_begins_anew_and_removes_nothing() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 150, 150);
    // The second page of contacts: refused, so it is not asked for again.
    world.severa.fault("GET", CONTACTS, 2, Fault::error(403, "PermissionDenied"));
    let directory = world.start(SOON, NEVER);
    complete(&directory).await;
    assert_eq!(world.severa.count("GET", CONTACTS) - world.changed_since(CONTACTS), 2 + 3);
    assert_eq!(counts(&directory), [1, 150, 150]);
    world.severa.assert_nothing_wrong();

    // A page without an answer is asked for again, and so is one after a 429.
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 150, 150);
    world.severa.fault("GET", CONTACTS, 2, Fault::LoseBefore);
    world.severa.fault("GET", PROJECTS, 2, Fault::TooMany { retry_after: None });
    let directory = world.start(NEVER, NEVER);
    complete(&directory).await;
    assert_eq!(world.severa.count("GET", CONTACTS), 4);
    assert_eq!(world.severa.count("GET", PROJECTS), 3);
    assert_eq!(counts(&directory), [1, 150, 150]);
    world.severa.assert_nothing_wrong();
}

#[tokio::test]
async fn polls_go_on_between_the_pages_of_a_pass() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 60, 1);
    let directory = world.start(Duration::from_secs(2), SOON);
    complete(&directory).await;
    company.row_limit(1); // many calls
    let contacts = world.severa.count("GET", CONTACTS);
    wait("the midst of a pass", || world.severa.count("GET", CONTACTS) > contacts + 3).await;
    let new = company.add_user("new@mycompany.test", "New", "User");
    wait("a poll", || directory.copies()[0].users == 2).await;
    assert!(state(&directory).calls.is_some(), "the pass is still under way");
    assert_eq!(user(&directory, "new@mycompany.test").await, Some(new));
}

/// S10.
#[tokio::test]
async fn rows_that_shift_between_pages_stay() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 250, 1);
    let directory = world.start(NEVER, SOON);
    complete(&directory).await;
    // While the second page is read, a row of the first goes: the third page begins a row too late.
    world.severa.fault("GET", CONTACTS, 2, Fault::Stop { acted: true });
    let first = contacts(&directory, "contact0@acme.test").await.remove(0);
    let passes = || world.severa.count("GET", PROJECTS);
    wait("the second page", || world.severa.stopped().is_some()).await;
    company.remove_contact(&first);
    let before = passes();
    world.severa.release();
    wait("two passes", || passes() >= before + 3).await;
    for n in 1..250 {
        assert_eq!(contacts(&directory, &format!("contact{n}@acme.test")).await.len(), 1, "{n}");
    }
}

/// S9.
#[tokio::test]
async fn a_copy_that_has_grown_old_refuses_nobody() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let mut settings = world.settings(SOON, NEVER);
    assert_eq!(settings.stale, Duration::from_secs(600));
    settings.stale = Duration::from_secs(2);
    settings.look_ups.misses = Duration::from_millis(1);
    let directory = SeveraDirectory::start(&settings, vec![world.tenant("mycompany", "id")]).unwrap();
    complete(&directory).await;
    let tenant = directory.tenant("mycompany").await.unwrap().unwrap();
    let nobody = [Address::parse("nobody@x.test").unwrap()];
    let stale = async || directory.people(&tenant, &nobody).await.unwrap().stale;
    assert!(!stale().await);
    assert_eq!(project(&directory, "9999").await, Ok(None));
    world.severa.down();
    assert!(project(&directory, "9998").await.is_err(), "never asked, and nobody can be");
    wait("the copy to grow old", || state(&directory).is_stale).await;
    assert!(stale().await);
    assert!(user(&directory, "user0@mycompany.test").await.is_some(), "who is known is known");
    assert!(project_id(&directory, "1000").await.is_some());
    let error = project(&directory, "9999").await.unwrap_err();
    assert!(error.contains("past its time"), "{error}");
    let words = state(&directory).standing();
    assert!(words.contains("too long: nobody is refused by it; "), "{words}");
    world.severa.up();
    wait("a good poll", || !state(&directory).is_stale).await;
    assert!(!stale().await);
    let deadline = Instant::now() + support::PATIENCE;
    while project(&directory, "9999").await != Ok(None) {
        assert!(Instant::now() < deadline, "nobody is asked again");
        sleep(SOON).await;
    }
    // The least is three polls is three polls.
    assert_eq!(world.settings(Duration::from_secs(3600), NEVER).stale, Duration::from_secs(3 * 3600));
}

/// S9: what a look-up said of a number is no word against it once the copy beside it has grown old, however fresh it is.
#[tokio::test]
async fn an_old_copy_refuses_no_number_that_was_looked_up() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let mut settings = world.settings(SOON, NEVER);
    settings.stale = Duration::from_secs(2);
    settings.look_ups.misses = Duration::from_secs(3600);
    let directory = SeveraDirectory::start(&settings, vec![world.tenant("mycompany", "id")]).unwrap();
    complete(&directory).await;
    assert_eq!(project(&directory, "9999").await, Ok(None));
    world.severa.down();
    wait("the copy to grow old", || state(&directory).is_stale).await;
    let error = project(&directory, "9999").await.unwrap_err();
    assert!(error.contains("past its time"), "{error}");
    world.severa.up();
    wait("a good poll", || !state(&directory).is_stale).await;
    assert_eq!(project(&directory, "9999").await, Ok(None));
}

#[tokio::test]
async fn unknown_numbers_are_looked_up_once() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    let customer = fill(&company, 1, 1, 1);
    let directory = world.start(NEVER, NEVER);
    complete(&directory).await;
    let projects = world.severa.count("GET", PROJECTS);
    let calls = || (world.severa.count("GET", PROJECTS) - projects, world.severa.count("GET", CASES));
    let case = company.add_sales_case(2001, "Case", Some(&customer));
    let expected = Project { id: case.clone(), number: "2001".to_owned(), customer: Some(customer) };
    let (one, other) = tokio::join!(project(&directory, "2001"), project(&directory, "02001"));
    assert_eq!((one.unwrap().unwrap(), other.unwrap().unwrap()), (expected.clone(), expected.clone()));
    assert_eq!(calls(), (1, 1));
    company.win_case(&case);
    assert_eq!(project(&directory, "2001").await.unwrap(), Some(expected), "kept, and the same when won");
    assert_eq!(calls(), (1, 1));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(project(&directory, "404").await, Ok(None));
    assert_eq!(project(&directory, "404").await, Ok(None));
    assert_eq!(calls(), (2, 2));
    sleep(Duration::from_secs(1)).await;
    let new = company.add_project(2002, "New", None);
    assert_eq!(project_id(&directory, "2002").await, Some(new));
    assert_eq!(calls(), (3, 2), "a project needs one call");
    world.severa.assert_nothing_wrong();
}

/// S12.
#[tokio::test]
async fn strangers_cannot_spend_the_quota() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let case = company.add_sales_case(2001, "Case", None);
    let mut settings = world.settings(NEVER, NEVER);
    settings.look_ups.hits = Duration::from_millis(1);
    let directory = SeveraDirectory::start(&settings, vec![world.tenant("mycompany", "id")]).unwrap();
    complete(&directory).await;
    assert_eq!(project_id(&directory, "2001").await, Some(case.clone()));
    sleep(Duration::from_millis(1100)).await;
    let before = world.severa.calls().len();
    let numbers: Vec<String> = (0..20).map(|n| format!("77{n}")).collect();
    let begun = Instant::now();
    let found =
        futures_util::future::join_all(numbers.iter().map(|number| project(&directory, number))).await;
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let refused: Vec<_> = found.iter().filter_map(|found| found.as_ref().err()).collect();
    assert!(refused.len() >= 14, "{found:?}");
    assert!(refused.iter().all(|error| error.contains("more than 2 calls a second")), "{found:?}");
    let calls = world.severa.calls();
    let seconds = calls[before..].windows(3).map(|calls| calls[2].at - calls[0].at);
    assert!(seconds.into_iter().all(|second| second > Duration::from_millis(900)), "two in any second");
    // Nobody takes the API for down because of that: what is past its time is asked for as soon as it may be.
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(project(&directory, "555").await, Ok(None));
    // The next one waits for its turn, and is answered all the same.
    let begun = Instant::now();
    assert_eq!(project(&directory, "556").await, Ok(None));
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    sleep(Duration::from_millis(1100)).await;
    let before = world.severa.calls().len();
    assert_eq!(project_id(&directory, "2001").await, Some(case));
    assert_eq!(world.severa.calls().len(), before + 2);
}

#[tokio::test]
async fn a_number_looked_up_before_is_known_while_the_api_is_down() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let case = company.add_sales_case(2001, "Case", None);
    let mut settings = world.settings(NEVER, NEVER);
    settings.look_ups.hits = Duration::from_millis(1);
    settings.look_ups.misses = Duration::from_millis(1);
    let directory = SeveraDirectory::start(&settings, vec![world.tenant("mycompany", "id")]).unwrap();
    complete(&directory).await;
    assert_eq!(project_id(&directory, "2001").await, Some(case.clone()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(project(&directory, "404").await, Ok(None));
    world.severa.down();
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(project_id(&directory, "2001").await, Some(case));
    let error = project(&directory, "404").await.unwrap_err();
    assert!(error.contains("past its time"), "an old no refuses nobody: {error}");
}

/// S11.
#[tokio::test]
async fn a_restart_goes_on_where_the_process_before_was() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    let customer = fill(&company, 2, 2, 2);
    let directory = world.start(SOON, NEVER);
    complete(&directory).await;
    world.poll().await;
    drop(directory);
    sleep(SOON * 2).await;
    company.add_user("new@mycompany.test", "New", "User");
    let case = company.add_sales_case(2001, "Case", Some(&customer));
    // A command reads what is there, and neither synchronises nor writes.
    let files = || {
        let mut names: Vec<_> = fs::read_dir(world.folder.path())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name(), entry.metadata().unwrap().modified().unwrap())
            })
            .collect();
        names.sort();
        names
    };
    let tenants = || vec![world.tenant("mycompany", "id")];
    let given = tenants();
    let before = (files(), world.severa.calls().len());
    let command = SeveraDirectory::open(&world.settings(SOON, NEVER), given).unwrap();
    assert!(user(&command, "user1@mycompany.test").await.is_some());
    assert_eq!(contacts(&command, "contact1@acme.test").await.len(), 1);
    assert!(project_id(&command, "1001").await.is_some());
    assert_eq!(user(&command, "new@mycompany.test").await, None);
    assert!(
        state(&command).age.is_some_and(|age| age < Duration::from_secs(60)) && !state(&command).is_stale
    );
    assert_eq!((files(), world.severa.calls().len()), before);
    assert_eq!(project_id(&command, "2001").await, Some(case), "what the copy lacks it may ask for");

    let passes = world.severa.count("GET", USERS) - world.changed_since(USERS);
    let directory = world.start(SOON, NEVER);
    assert!(user(&directory, "user0@mycompany.test").await.is_some(), "at once");
    world.poll().await;
    assert!(user(&directory, "new@mycompany.test").await.is_some());
    assert_eq!(world.severa.count("GET", USERS) - world.changed_since(USERS), passes, "no other full pass");
    // And one beside the service.
    let command = SeveraDirectory::open(&world.settings(SOON, NEVER), tenants()).unwrap();
    assert!(user(&command, "new@mycompany.test").await.is_some());
    world.severa.assert_nothing_wrong();
}

fn on_file(world: &World, sql: &str) {
    rusqlite::Connection::open(world.path()).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn times_to_come_are_not_believed() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let directory = world.start(NEVER, NEVER);
    complete(&directory).await;
    wait("the file", || !world.path().with_extension("db-journal").exists()).await;
    drop(directory);
    sleep(SOON).await;
    let open = || {
        SeveraDirectory::open(&world.settings(NEVER, NEVER), vec![world.tenant("mycompany", "id")]).unwrap()
    };
    assert!(!state(&open()).is_stale);
    on_file(&world, "UPDATE company SET good_at = good_at + 3600000, pass_at = pass_at + 3600000");
    let command = open();
    assert!(state(&command).is_stale && state(&command).age.is_none());
    assert!(state(&command).standing().contains("at an unknown time, too long"));
    on_file(&world, "UPDATE company SET good_at = good_at - 345600000");
    assert!(state(&open()).is_stale, "four days old");
    let before = world.severa.count("GET", CONTACTS);
    let directory = world.start(NEVER, NEVER);
    wait("a poll and a full pass", || !state(&directory).is_stale && state(&directory).calls.is_none()).await;
    wait("the pass", || world.severa.count("GET", CONTACTS) >= before + 3).await;
}

/// S11.
#[tokio::test]
async fn a_reload_keeps_the_copy_of_the_same_company_only() {
    let world = World::new();
    for (id, address) in [("a", "a@a.test"), ("b", "b@b.test"), ("c", "c@c.test")] {
        world.severa.company(id, "secret").add_user(address, id, id);
    }
    let settings = world.settings(NEVER, NEVER);
    let both = vec![world.tenant("one", "a"), world.tenant("two", "b")];
    let first = SeveraDirectory::start(&settings, both).unwrap();
    complete(&first).await;
    assert!(person_of(&first, "one", "a@a.test").await.user.is_some());
    assert_eq!(person_of(&first, "two", "a@a.test").await, Person::default(), "another company's people");
    let tenant = first.tenant("two").await.unwrap().unwrap();
    let case = world.severa.count("GET", CASES);
    assert!(first.project(&tenant, "77", &[]).await.unwrap().is_none());
    assert_eq!(world.severa.count("GET", CASES), case + 1);

    // `one` gets another client id; `two` stays, with another client object and shorter times; `three` is new.
    let calls = |id: &str| {
        let calls = world.severa.calls();
        calls.iter().filter(|call| call.client_id.as_deref() == Some(id) && call.path != "/v1/token").count()
    };
    let before = (calls("a"), calls("b"));
    let tenants = vec![world.tenant("one", "c"), world.tenant("two", "b"), world.tenant("three", "a")];
    let second = first.renewed(&world.settings(SOON, NEVER), tenants).unwrap();
    let held = first; // by a transaction that goes on
    assert!(person_of(&second, "two", "b@b.test").await.user.is_some(), "at once");
    assert!(second.project(&tenant, "77", &[]).await.unwrap().is_none());
    assert_eq!(world.severa.count("GET", CASES), case + 1, "what was looked up is known");
    let one = second.tenant("one").await.unwrap().unwrap();
    let unknown = [Address::parse("a@a.test").unwrap()];
    assert!(second.people(&one, &unknown).await.is_err(), "it may be another company");
    complete(&second).await;
    assert_eq!(person_of(&second, "one", "a@a.test").await, Person::default());
    assert!(person_of(&second, "one", "c@c.test").await.user.is_some());
    assert!(person_of(&second, "three", "a@a.test").await.user.is_some());
    wait("polls of `two`", || calls("b") > before.1 + 8).await;
    assert!(calls("a") > before.0);

    // `three` goes: nobody asks for it any more, and nothing of it is left in the file.
    let third = second
        .renewed(&world.settings(SOON, NEVER), vec![world.tenant("one", "c"), world.tenant("two", "b")])
        .unwrap();
    sleep(SOON).await;
    let gone = calls("a");
    let polled = calls("b");
    wait("polls of `two`", || calls("b") > polled + 8).await;
    assert_eq!(calls("a"), gone);
    let file = rusqlite::Connection::open(world.path()).unwrap();
    let of = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(of("SELECT count(*) FROM company"), 2);
    assert_eq!(of("SELECT count(*) FROM user"), 2);
    // And it comes again, as a new one.
    let tenants = vec![world.tenant("one", "c"), world.tenant("two", "b"), world.tenant("three", "a")];
    let fourth = third.renewed(&world.settings(SOON, NEVER), tenants).unwrap();
    assert!(!fourth.copies().iter().find(|copy| copy.tenant == "three").unwrap().is_complete);
    complete(&fourth).await;
    drop((held, second, third, fourth));
    sleep(SOON).await;
    let all = world.severa.calls().len();
    sleep(SOON * 3).await;
    assert_eq!(world.severa.calls().len(), all, "the last one ends the synchronisation");
    world.severa.assert_nothing_wrong();
}

#[tokio::test]
async fn one_companys_trouble_is_its_own() {
    let world = World::new();
    let (a, b) = (world.severa.company("a", "secret"), world.severa.company("b", "secret"));
    fill(&a, 1, 1, 1);
    fill(&b, 1, 1, 1);
    a.revoke_secret();
    let tenants = vec![world.tenant("one", "a"), world.tenant("two", "b")];
    let directory = SeveraDirectory::start(&world.settings(SOON, NEVER), tenants).unwrap();
    wait("the other's copy", || directory.copies()[1].is_complete).await;
    wait("trouble", || directory.copies()[0].trouble.is_some()).await;
    let trouble = directory.copies()[0].trouble.clone().unwrap();
    assert!(trouble.contains("no token for a: 401"), "{trouble}");
    assert!(directory.copies()[1].is_well() && !directory.copies()[0].is_well());
    a.set_secret("secret");
    complete(&directory).await;
    wait("no trouble", || directory.copies()[0].is_well()).await;
    // A scope is missing.
    a.grant(&["users:read"]);
    a.expire_tokens();
    wait("trouble", || directory.copies()[0].trouble.is_some()).await;
    let trouble = directory.copies()[0].trouble.clone().unwrap();
    assert!(trouble.contains("InsufficientApiScope"), "{trouble}");
    assert!(person_of(&directory, "one", "user0@mycompany.test").await.user.is_some());
}

#[tokio::test]
async fn a_file_of_no_use_is_put_aside_and_another_programs_is_not() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let aside = PathBuf::from(format!("{}.aside", world.path().display()));
    let again = async |what: &str| {
        let directory = world.start(NEVER, NEVER);
        complete(&directory).await;
        assert_eq!(counts(&directory), [1, 1, 1], "{what}");
        drop(directory);
        sleep(SOON).await;
        assert_eq!(aside.exists(), what != "new", "{what}");
        let _ = fs::remove_file(&aside);
    };
    again("new").await;
    for (what, sql) in [
        ("a newer version", "PRAGMA user_version = 99"),
        ("an older version", "PRAGMA user_version = 0"),
        ("a table less", "DROP TABLE contact"),
    ] {
        on_file(&world, sql);
        again(what).await;
    }
    for what in ["no database at all, but as long", "damaged in the middle"] {
        let mut bytes = fs::read(world.path()).unwrap();
        let from = if what.starts_with("no") { 0 } else { 4096 };
        bytes[from..].fill(0x55);
        fs::write(world.path(), bytes).unwrap();
        let command =
            SeveraDirectory::open(&world.settings(NEVER, NEVER), vec![world.tenant("mycompany", "id")]);
        assert!(!state(&command.unwrap()).is_complete, "{what}: no copy yet, for a command");
        again(what).await;
    }
    // Somebody else's: it may be the queue.
    for entry in fs::read_dir(world.folder.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    on_file(&world, "CREATE TABLE item (id INTEGER)");
    let start = SeveraDirectory::start(&world.settings(NEVER, NEVER), vec![world.tenant("mycompany", "id")]);
    let error = start.err().unwrap().to_string();
    assert!(error.ends_with("is no copy of Severa: give directory.path a file of its own"), "{error}");
    assert!(!aside.exists());
}

#[tokio::test]
async fn what_cannot_be_written_is_written_later() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let directory = world.start(SOON, NEVER);
    complete(&directory).await;
    let other = rusqlite::Connection::open(world.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let new = company.add_user("new@mycompany.test", "New", "User");
    wait("it in memory", || directory.copies()[0].users == 2).await;
    assert_eq!(user(&directory, "new@mycompany.test").await, Some(new));
    let in_file = || -> i64 { other.query_row("SELECT count(*) FROM user", [], |row| row.get(0)).unwrap() };
    // The write gives up, and what comes next finds the file free.
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(in_file(), 1);
    other.execute_batch("ROLLBACK").unwrap();
    wait("it in the file", || in_file() == 2).await;
    // Damaged while it is in use: it is made anew.
    drop(other);
    on_file(&world, "DELETE FROM company");
    company.add_user("newer@mycompany.test", "New", "User");
    let opened = || rusqlite::Connection::open(world.path()).unwrap();
    wait("all of it in the file", || {
        opened().query_row("SELECT count(*) FROM company, user WHERE user.company = company.id", [], |row| {
            row.get::<_, i64>(0)
        }) == Ok(3)
    })
    .await;
    world.severa.assert_nothing_wrong();
}

#[tokio::test]
async fn rows_that_say_too_little_stop_nothing() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 1, 1, 1);
    let body = r#"[{"guid":null},{"guid":"k1","customer":null,"emails":["x@x.test"]},{"guid":7},"text",
        {"guid":"k2","customer":{"guid":"c"},"emails":[null,"no address","k2@x.test"],"isActive":null,"new":{}},
        {"guid":"k3","customer":{"guid":"c"},"emails":["k3@x.test"],"isDeleted":true}]"#;
    let answer = Fault::Answer {
        status: 200,
        content_type: "application/json",
        body: body.to_owned(),
        headers: Vec::new(),
    };
    world.severa.fault("GET", CONTACTS, 1, answer);
    let directory = world.start(NEVER, NEVER);
    complete(&directory).await;
    assert_eq!(contacts(&directory, "k2@x.test").await, ["k2"]);
    for address in ["x@x.test", "k3@x.test"] {
        assert!(contacts(&directory, address).await.is_empty());
    }
}
