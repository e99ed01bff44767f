//! An installation that uses Severa: the fake of its API in this process, a company for each of some tenants of
//! `tests/directory.toml`, and a world around the service.
//!
//! In: which companies, and what a test puts into them before the service starts ([`Plan`]). Out: a [`Site`], and what
//! the fake holds in words that a person reads ([`Held`]).

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use super::{
    severa::{Company, Prism, Severa},
    wait_for,
    world::{AtSevera, Options, World},
};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, fs, path::PathBuf};

/// Everybody of the directory file.
pub const DIRECTORY: &str = include_str!("../directory.toml");

/// From a lost answer to the search for what it made.
const SETTLE: &str = "400ms";

/// Companies of a fake, before the service starts.
pub struct Plan {
    severa: Severa,
    companies: BTreeMap<String, Company>,
    secrets: tempfile::TempDir,
}

impl Plan {
    /// A fake with a company for each of these tenants.
    pub fn new(prefixes: &[&str]) -> Self {
        let secrets = tempfile::tempdir().unwrap();
        let mut plan = Self { severa: Severa::start(), companies: BTreeMap::new(), secrets };
        for prefix in prefixes {
            let company = plan.add(prefix);
            company.from_directory_toml(DIRECTORY, prefix);
        }
        plan
    }

    /// One more company, with nobody in it.
    pub fn add(&mut self, prefix: &str) -> Company {
        let company = self.severa.company(&client_id(prefix), "secret");
        fs::write(secret_file(&self.secrets, prefix), "secret\n").unwrap();
        self.companies.insert(prefix.to_owned(), company.clone());
        company
    }

    pub fn company(&self, prefix: &str) -> &Company {
        &self.companies[prefix]
    }

    /// Starts everything. The first copies are under way then.
    pub fn start(self, options: Options) -> Site {
        self.at(options, Api::Plain)
    }

    /// The same with Prism between the service and the fake.
    pub fn start_behind_prism(self, options: Options) -> Site {
        self.at(options, |severa| Api::Prism(Box::new(severa.behind_prism())))
    }

    fn at(self, options: Options, api: impl FnOnce(Severa) -> Api) -> Site {
        let api = api(self.severa);
        let table = |prefix: &String| (prefix.clone(), table(prefix, &secret_file(&self.secrets, prefix)));
        let tables: BTreeMap<_, _> = self.companies.keys().map(table).collect();
        let at = AtSevera { url: api.url(), companies: tables.values().cloned().collect() };
        let world = World::with(Options { severa: Some(at), ..options });
        Site { world, api, companies: self.companies, tables, secrets: self.secrets }
    }
}

fn client_id(prefix: &str) -> String {
    format!("client-{}", prefix.replace(|c: char| !c.is_ascii(), "-"))
}

fn secret_file(secrets: &tempfile::TempDir, prefix: &str) -> PathBuf {
    secrets.path().join(prefix)
}

/// `[[severa]]` of a company. What Severa has no place for, a tenant's state and the further addresses of its users, is
/// taken from the directory file.
fn table(prefix: &str, secret: &std::path::Path) -> String {
    let file: toml::Table = DIRECTORY.parse().unwrap();
    let tenants = file["tenant"].as_array().unwrap();
    let tenant = tenants.iter().find(|tenant| tenant["prefix"].as_str() == Some(prefix));
    let of = |key: &str| tenant.and_then(|tenant| tenant.get(key));
    let active = of("active").and_then(toml::Value::as_bool).unwrap_or(true);
    let mode = of("mode").and_then(toml::Value::as_str).unwrap_or("live");
    let users = of("user").and_then(toml::Value::as_array).into_iter().flatten();
    let aliases = users.filter_map(|user| {
        let addresses = user["addresses"].as_array().unwrap();
        let (first, further) = addresses.split_first().unwrap();
        (!further.is_empty()).then(|| format!("{first} = {}", toml::Value::from(further.to_vec())))
    });
    let aliases: Vec<_> = aliases.collect();
    format!(
        "\n[[severa]]\nprefix = \"{prefix}\"\nclient_id = \"{}\"\nclient_secret_file = \"{}\"\nactivity_type = \"E-mail\"\n\
         active = {active}\nmode = \"{mode}\"\nsettle = \"{SETTLE}\"\naliases = {{ {} }}\n",
        client_id(prefix),
        secret.display(),
        aliases.join(", ")
    )
}

/// The fake, or the fake behind Prism.
enum Api {
    Plain(Severa),
    Prism(Box<Prism>),
}

impl Api {
    fn url(&self) -> String {
        match self {
            Self::Plain(severa) => severa.url(),
            Self::Prism(prism) => prism.url(),
        }
    }
}

/// The installation. Fields are dropped in order: the service first.
pub struct Site {
    pub world: World,
    api: Api,
    companies: BTreeMap<String, Company>,
    /// `[[severa]]` of each company.
    tables: BTreeMap<String, String>,
    secrets: tempfile::TempDir,
}

impl Site {
    /// One company, `mycompany`, whose first copy is there.
    pub fn start() -> Self {
        Self::of(&["mycompany"])
    }

    /// These companies, whose first copies are there.
    pub fn of(prefixes: &[&str]) -> Self {
        let mut site = Plan::new(prefixes).start(Options::default());
        site.wait_for_copies(prefixes.len());
        site
    }

    pub fn severa(&self) -> &Severa {
        match &self.api {
            Api::Plain(severa) => severa,
            Api::Prism(prism) => prism,
        }
    }

    #[track_caller]
    pub fn prism(&self) -> &Prism {
        match &self.api {
            Api::Plain(_) => panic!("there is no Prism"),
            Api::Prism(prism) => prism,
        }
    }

    pub fn company(&self, prefix: &str) -> &Company {
        &self.companies[prefix]
    }

    pub fn mycompany(&self) -> &Company {
        self.company("mycompany")
    }

    /// Another secret in a company's file.
    pub fn write_secret(&self, prefix: &str, secret: &str) {
        fs::write(secret_file(&self.secrets, prefix), secret).unwrap();
    }

    /// Waits until the running service has told of so many full passes.
    #[track_caller]
    pub fn wait_for_copies(&mut self, count: usize) {
        let milter = self.world.milter();
        wait_for("the full passes", || {
            milter.assert_running();
            (milter.log().matches("full pass over Severa completed").count() >= count).then_some(())
        });
    }

    /// Writes the configuration with these companies and no others, with a change of its other lines.
    pub fn configure(&self, prefixes: &[&str], change: impl FnOnce(String) -> String) {
        let path = self.world.config_path();
        let text = fs::read_to_string(&path).unwrap();
        let (before, _) = text.split_once("\n[[severa]]").unwrap();
        let tables: String = prefixes.iter().map(|prefix| self.tables[*prefix].as_str()).collect();
        fs::write(&path, change(before.to_owned()) + &tables).unwrap();
    }

    /// Has the service read its configuration again.
    #[track_caller]
    pub fn reload(&mut self) {
        let milter = self.world.milter();
        let count = |log: String| log.matches("configuration read again").count();
        let before = count(milter.log());
        milter.signal("HUP");
        wait_for("the reload", || (count(milter.log()) > before).then_some(()));
    }

    /// Activities that wait or are held.
    pub fn queued(&self) -> u32 {
        let queue = rusqlite::Connection::open(self.world.root.join("queue/queue.db")).unwrap();
        queue.query_row("SELECT count(*) FROM item", [], |row| row.get(0)).unwrap()
    }

    /// Waits until everything that was accepted is delivered whole.
    #[track_caller]
    pub fn wait_until_delivered(&self) {
        wait_for("an empty queue", || (self.queued() == 0).then_some(()));
    }

    /// What the fake holds of one company, oldest first.
    pub fn held(&self, prefix: &str) -> Vec<Held> {
        let company = self.company(prefix);
        company.activities().iter().map(|activity| Held::new(company, activity)).collect()
    }
}

/// An activity of the fake, with what belongs to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub subject: String,
    owner: String,
    users: Vec<String>,
    contacts: Vec<String>,
    customer: Option<String>,
    project: Option<i64>,
    files: Vec<String>,
    /// The lines of `notes` that name people.
    external: Vec<String>,
    /// The lines of `notes` that name files.
    unkept: Vec<String>,
}

impl Held {
    fn new(company: &Company, activity: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let notes = text(&activity["notes"]);
        let people = |kind: &str| {
            let people = activity["participants"].as_array().unwrap().iter();
            people.filter(|one| one["type"] == kind).map(|one| text(&one["name"])).collect()
        };
        Self {
            subject: text(&activity["name"]),
            owner: text(&activity["ownerUser"]["name"]),
            users: people("User"),
            contacts: people("Contact"),
            customer: activity["customer"]["name"].as_str().map(str::to_owned),
            project: activity["phase"]["projectNumber"].as_i64(),
            files: files(company, activity, notes.lines().next_back().unwrap_or_default()),
            external: block(&notes, "Also in this e-mail, and unknown to Severa:"),
            unkept: block(&notes, "Files of this e-mail that are not kept:"),
        }
    }
}

/// The names of its files: those of the project whose description begins with its marker.
fn files(company: &Company, activity: &Value, marker: &str) -> Vec<String> {
    let Some(project) = activity["phase"]["projectGuid"].as_str() else { return Vec::new() };
    let files = company.files(project).into_iter();
    let mine = files.filter(|file| file.description.as_deref().is_some_and(|text| text.starts_with(marker)));
    mine.map(|file| file.name).collect()
}

/// The lines below a title.
fn block(notes: &str, title: &str) -> Vec<String> {
    let lines = notes.lines().skip_while(|line| *line != title).skip(1);
    lines.map_while(|line| line.strip_prefix("  ")).map(str::to_owned).collect()
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owner {}", self.owner)?;
        let project = self.project.map(|number| number.to_string());
        let one = |value: &Option<String>| value.iter().cloned().collect::<Vec<_>>();
        for (what, values) in [
            ("users", &self.users),
            ("contacts", &self.contacts),
            ("customer", &one(&self.customer)),
            ("project", &one(&project)),
            ("files", &self.files),
            ("external", &self.external),
            ("not kept", &self.unkept),
        ] {
            if !values.is_empty() {
                write!(f, "; {what} {}", values.join(", "))?;
            }
        }
        Ok(())
    }
}
