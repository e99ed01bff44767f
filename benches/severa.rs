//! The copy of a large company of Severa's: how many calls and seconds the first one takes, and how long an answer from it
//! does. The first is paced by our own limit (eight calls a second), the second is memory alone.

#![allow(clippy::unwrap_used, missing_docs)] // a panic is this program's way to fail

#[path = "../tests/support/mod.rs"]
mod support;

use activity_milter::{
    directory::{Directory, SeveraDirectory, SeveraSettings, SeveraTenant},
    mail::Address,
    severa::{Client, Settings},
    web::ConnectionSettings,
};
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use support::severa::{Company, Severa};

const USERS: usize = 300;
const CONTACTS: usize = 10_000;
const PROJECTS: usize = 2_000;
/// People of a message.
const PEOPLE: usize = 40;
const ANSWERS: usize = 10_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

fn main() {
    let severa = Severa::start();
    fill(&severa.company("id", "secret"));
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let begun = Instant::now();
        let settings = SeveraSettings::new(folder.path().join("severa.db"), DAY, DAY);
        let directory = SeveraDirectory::start(&settings, vec![tenant(&severa, folder.path())]).unwrap();
        while !directory.copies()[0].is_complete {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (calls, most) = (severa.calls().len(), severa.most_calls_in_a_second("id"));
        println!("first copy of {USERS} users, {CONTACTS} contacts, {PROJECTS} projects:");
        println!("{calls} calls, {:.1?}, {most} in any second at most", begun.elapsed());
        let mut times = answers(directory.as_ref()).await;
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("answer about {PEOPLE} addresses: median {:?}, 99 % {:?}", at(50), at(99));
    });
}

fn fill(company: &Company) {
    let customer = company.add_customer("Acme");
    for n in 0..USERS {
        company.add_user(&format!("user{n}@mycompany.test"), "User", &n.to_string());
    }
    for n in 0..CONTACTS {
        company.add_contact(&customer, "Contact", &n.to_string(), &[&format!("contact{n}@acme.test")]);
    }
    for n in 0..PROJECTS {
        company.add_project(1000 + i64::try_from(n).unwrap(), "Project", Some(&customer));
    }
}

fn tenant(severa: &Severa, folder: &Path) -> SeveraTenant {
    let secret = folder.join("secret");
    fs::write(&secret, "secret\n").unwrap();
    let connection = ConnectionSettings::new(severa.url().parse().unwrap(), Duration::from_secs(5));
    let settings = Settings { connection, client_id: "id".to_owned(), client_secret_file: secret };
    SeveraTenant {
        prefix: "mycompany".to_owned(),
        active: true,
        shadow: false,
        policy: Arc::default(),
        activity_type: "E-mail".to_owned(),
        aliases: Default::default(),
        client: Arc::new(Client::new(&settings).unwrap()),
    }
}

/// Times of answers about people, half of them unknown, and a project.
async fn answers(directory: &SeveraDirectory) -> Vec<Duration> {
    let tenant = directory.tenant("mycompany").await.unwrap().unwrap();
    let mut times = Vec::with_capacity(ANSWERS);
    for n in 0..ANSWERS {
        let address = |i: usize| match i % 2 {
            0 => format!("contact{}@acme.test", (n * PEOPLE + i) % CONTACTS),
            _ => format!("nobody{i}@else.test"),
        };
        let addresses: Vec<_> = (0..PEOPLE).map(|i| Address::parse(&address(i)).unwrap()).collect();
        let begun = Instant::now();
        let project = directory.project(&tenant, &(1000 + n % PROJECTS).to_string(), &[]).await.unwrap();
        let people = directory.people(&tenant, &addresses).await.unwrap();
        times.push(begun.elapsed());
        assert!(project.is_some() && !people.persons[0].contacts.is_empty());
    }
    times
}
