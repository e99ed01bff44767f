//! The directory as local copies of companies' Severa accounts (`crate::severa`).
//!
//! In: the companies, and their clients. Out: answers from memory; of a number that the copy lacks, from the API: projects
//! first, then sales cases in progress, which no list of changes has.
//! Promise: no call at SMTP time but for an unknown number, and no more than two of these calls a second for each company,
//! so that strangers cannot spend its quota. A copy that has grown old refuses nobody. Other settings keep the copy, and
//! what was looked up, of the same company: same file, prefix, API and client id.
//! Fails: [`Unavailable`] as long as there is no copy, and for a number that nobody can be asked about.

use super::{
    CacheSettings, Directory, People, Unavailable,
    cache::{Answer, Answers, Cache, Known, Life, Question, Unanswered, Whose},
    names_of,
};
use crate::mail::Address;
use crate::observe::events;
use crate::rules::{Contact, Person, Project, Tenant, User, Wish};
use crate::severa::{
    self, Client, CompanyCopy, Copied, Copies, CopyError, CopyState, Failed, LOOK_UP_CALLS, Pages, Paging,
    Rank, Request, Times,
};
use async_trait::async_trait;
use futures_util::{FutureExt, future::BoxFuture};
use moka::policy::EvictionPolicy;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a call of a look-up waits for its turn: less than the milter's patience.
const TURN_PATIENCE: Duration = Duration::from_secs(2);

/// How many numbers that had to wait in vain are remembered, and how long: until an MTA tries again. A megabyte or so.
const MOST_TURNED_AWAY: u64 = 16 * 1024;
const TURNED_AWAY_FOR: Duration = Duration::from_secs(3600);

/// Digits of the longest number: the API's are 64 bits wide.
const MAX_DIGITS: usize = 18;

/// Addresses of several users that are spoken of, for each company.
const SHARED_TOLD: usize = 1000;

/// Settings of the copies.
#[derive(Clone, Debug)]
pub struct SeveraSettings {
    /// The file.
    pub path: PathBuf,
    /// From one poll to the next.
    pub poll: Duration,
    /// From one full pass to the next.
    pub full_pass: Duration,
    /// Age of the last good poll from which on nobody is refused.
    pub stale: Duration,
    /// How long what was looked up counts.
    pub look_ups: CacheSettings,
}

impl SeveraSettings {
    /// Settings with everything else as it should be.
    pub fn new(path: PathBuf, poll: Duration, full_pass: Duration) -> Self {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let look_ups = CacheSettings {
            hits: minutes(60),
            misses: Duration::from_secs(30),
            stale: minutes(24 * 60),
            size: 1 << 20,
        };
        Self { path, poll, full_pass, stale: poll.saturating_mul(3).max(minutes(10)), look_ups }
    }

    fn times(&self) -> Times {
        Times { poll: self.poll, full_pass: self.full_pass, stale: self.stale }
    }
}

/// A company.
#[derive(Clone, Debug)]
pub struct SeveraTenant {
    /// The local part of its address, and its id.
    pub prefix: String,
    /// Whether mail to it is taken.
    pub active: bool,
    /// Whether its mail is only judged and logged.
    pub shadow: bool,
    /// Default activity type.
    pub activity_type: String,
    /// What it expects of us, where it says so.
    pub policy: Arc<Wish>,
    /// Further addresses of users, each user by guid or by an address.
    pub aliases: BTreeMap<String, Vec<Address>>,
    /// Its client.
    pub client: Arc<Client>,
}

/// The directory.
pub struct SeveraDirectory {
    settings: SeveraSettings,
    /// None for commands.
    copies: Option<Copies>,
    companies: HashMap<String, Company>,
}

struct Company {
    tenant: Tenant,
    aliases: Aliases,
    copy: Arc<CompanyCopy>,
    numbers: Numbers,
    /// None for commands. Directories that have the same copy share it; the last one ends the synchronisation.
    syncing: Option<Arc<Syncing>>,
}

/// A synchronisation; it ends when this is dropped.
struct Syncing {
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Syncing {
    fn start(copy: &Arc<CompanyCopy>) -> Arc<Self> {
        let stop = CancellationToken::new();
        tokio::spawn(severa::synchronise(Arc::clone(copy), stop.clone()));
        Arc::new(Self { _guard: stop.clone().drop_guard(), stop })
    }
}

impl SeveraDirectory {
    /// The copies as they are now, for commands: nothing is synchronised, made or changed. No copy yet is no error.
    /// # Errors
    /// A file that cannot be read.
    pub fn open(settings: &SeveraSettings, tenants: Vec<SeveraTenant>) -> Result<Self, CopyError> {
        let asked = tenants.iter().map(|tenant| (prefix_of(tenant), Arc::clone(&tenant.client))).collect();
        let found = Copies::look(&settings.path, asked, settings.times())?;
        let company = |(tenant, copy): (SeveraTenant, Arc<CompanyCopy>)| {
            let numbers = Numbers::new(&tenant, settings);
            Company::new(tenant, copy, numbers, None)
        };
        let companies = tenants.into_iter().zip(found).map(company);
        Ok(Self { settings: settings.clone(), copies: None, companies: by_prefix(companies) })
    }

    /// For the service: synchronises, in tasks of its own, until it is dropped.
    /// # Errors
    /// A file that cannot be opened or made, or is another program's.
    pub fn start(settings: &SeveraSettings, tenants: Vec<SeveraTenant>) -> Result<Arc<Self>, CopyError> {
        Self::with(settings, tenants, None)
    }

    /// The same with other settings, for a reload that nothing refuses any more: companies that are the same go on with
    /// what they have, and synchronise by the new settings from here on; those that are gone stop, and leave nothing in
    /// the file.
    /// # Errors
    /// As [`SeveraDirectory::start`]; nothing has changed then.
    pub fn renewed(
        &self,
        settings: &SeveraSettings,
        tenants: Vec<SeveraTenant>,
    ) -> Result<Arc<Self>, CopyError> {
        Self::with(settings, tenants, Some(self))
    }

    fn with(
        settings: &SeveraSettings,
        tenants: Vec<SeveraTenant>,
        before: Option<&Self>,
    ) -> Result<Arc<Self>, CopyError> {
        let same = before.and_then(|before| before.copies.as_ref());
        let same = same.filter(|copies| copies.path() == settings.path);
        let copies = same.cloned().map_or_else(|| Copies::open(&settings.path), Ok)?;
        let company = |tenant: SeveraTenant| {
            let kept = before.filter(|_| same.is_some());
            let kept = kept.and_then(|before| before.companies.get(&prefix_of(&tenant)));
            match kept.filter(|kept| kept.copy.is_of(&kept.tenant.prefix, &tenant.client)) {
                Some(kept) => kept.renewed(tenant, settings),
                None => {
                    let prefix = prefix_of(&tenant);
                    let copy = copies.of(&prefix, Arc::clone(&tenant.client), settings.times());
                    let numbers = Numbers::new(&tenant, settings);
                    let syncing = Some(Syncing::start(&copy));
                    Company::new(tenant, copy, numbers, syncing)
                }
            }
        };
        let companies = by_prefix(tenants.into_iter().map(company));
        if let Some(before) = before {
            before.stop_those_not_in(&companies);
        }
        copies.keep_only(companies.values().map(|company| company.copy.as_ref()));
        Ok(Arc::new(Self { settings: settings.clone(), copies: Some(copies), companies }))
    }

    /// A transaction that is not over yet may hold us long after the reload.
    fn stop_those_not_in(&self, companies: &HashMap<String, Company>) {
        for (prefix, company) in &self.companies {
            let goes_on = companies.get(prefix).is_some_and(|new| Arc::ptr_eq(&new.copy, &company.copy));
            if let Some(syncing) = company.syncing.as_ref().filter(|_| !goes_on) {
                syncing.stop.cancel();
            }
        }
    }

    fn company(&self, tenant: &Tenant) -> Result<&Company, Unavailable> {
        let company = self.companies.get(&tenant.prefix).filter(|company| company.tenant.id == tenant.id);
        company.ok_or_else(|| Unavailable("the tenant was changed meanwhile".to_owned()))
    }
}

fn prefix_of(tenant: &SeveraTenant) -> String {
    tenant.prefix.to_lowercase()
}

fn by_prefix(companies: impl Iterator<Item = Company>) -> HashMap<String, Company> {
    companies.map(|company| (company.tenant.prefix.clone(), company)).collect()
}

impl Company {
    fn new(
        tenant: SeveraTenant,
        copy: Arc<CompanyCopy>,
        numbers: Numbers,
        syncing: Option<Arc<Syncing>>,
    ) -> Self {
        let prefix = prefix_of(&tenant);
        let aliases = Aliases::new(&tenant.aliases);
        let SeveraTenant { active, shadow, activity_type, policy, .. } = tenant;
        let (id, name) = (prefix.clone(), prefix.clone());
        let tenant = Tenant { id, prefix, name, active, activity_type, shadow, policy };
        Self { tenant, aliases, copy, numbers, syncing }
    }

    /// The same company with other settings.
    fn renewed(&self, tenant: SeveraTenant, settings: &SeveraSettings) -> Self {
        self.copy.go_on_with(Arc::clone(&tenant.client), settings.times());
        let numbers = self.numbers.renewed(&tenant, settings);
        Self::new(tenant, Arc::clone(&self.copy), numbers, self.syncing.clone())
    }

    /// Nobody answers before the first full pass is completed: who is not there yet would be refused.
    fn answers(&self) -> Result<(), Unavailable> {
        if self.copy.is_complete() {
            return Ok(());
        }
        let CopyState { contacts, calls, .. } = self.copy.state();
        Err(Unavailable(match calls {
            Some(_) => format!("the first copy of Severa is being made: {contacts} contacts so far"),
            None => "there is no copy of Severa yet".to_owned(),
        }))
    }

    async fn project(&self, number: i64) -> Result<Option<Project>, Unavailable> {
        let found = self.copy.read().project(number).map(|(guid, customer)| project(guid, number, customer));
        if found.is_some() {
            return Ok(found);
        }
        match self.numbers.look_up(&self.tenant, number).await? {
            (None, true) => Err(stale_no()),
            (None, false) if self.copy.is_stale() => Err(stale_no()),
            (found, _) => Ok(found),
        }
    }
}

fn stale_no() -> Unavailable {
    Unavailable("Severa cannot be asked, and its last word, \"no such project\", is past its time".to_owned())
}

fn project(guid: &str, number: i64, customer: Option<&str>) -> Project {
    Project { id: guid.to_owned(), number: number.to_string(), customer: customer.map(str::to_owned) }
}

/// The number that people wrote, if it can be one.
fn number_of(text: &str) -> Option<i64> {
    let digits = text.trim_start_matches('0');
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || digits.len() > MAX_DIGITS {
        return None;
    }
    if digits.is_empty() { Some(0) } else { digits.parse().ok() }
}

#[async_trait]
impl Directory for SeveraDirectory {
    fn names(&self, ids: &HashSet<&str>) -> HashMap<String, String> {
        names_of(self.companies.values().map(|company| &company.tenant), ids)
    }

    fn has_shadow(&self) -> bool {
        self.companies.values().any(|company| company.tenant.shadow)
    }

    fn says_never_log(&self) -> bool {
        self.companies.values().any(|company| company.tenant.policy.says_never_log())
    }

    fn expire(&self, prefixes: &[String]) {
        for company in self.companies.values() {
            if prefixes.iter().any(|prefix| prefix.is_empty() || *prefix == company.tenant.prefix) {
                company.numbers.cache.expire(prefixes);
                company.copy.ask_now();
            }
        }
    }

    async fn tenant(&self, prefix: &str) -> Result<Option<Tenant>, Unavailable> {
        Ok(self.companies.get(prefix).map(|company| company.tenant.clone()))
    }

    async fn people(&self, tenant: &Tenant, addresses: &[Address]) -> Result<People, Unavailable> {
        let company = self.company(tenant)?;
        company.answers()?;
        let stale = company.copy.is_stale();
        let copied = company.copy.read();
        let person = |address: &Address| company.aliases.person(&tenant.id, &copied, address.folded());
        Ok(People { persons: addresses.iter().map(person).collect(), stale })
    }

    async fn project(
        &self,
        tenant: &Tenant,
        number: &str,
        _also: &[Address],
    ) -> Result<Option<Project>, Unavailable> {
        let company = self.company(tenant)?;
        let Some(number) = number_of(number) else { return Ok(None) };
        company.answers()?;
        company.project(number).await
    }

    fn source(&self) -> String {
        source(&self.settings.path, &self.copies())
    }

    fn copies(&self) -> Vec<CopyState> {
        let state = |company: &Company| CopyState {
            unknown_aliases: company.aliases.of_nobody(&company.copy),
            ..company.copy.state()
        };
        let mut states: Vec<_> = self.companies.values().map(state).collect();
        states.sort_by(|one, other| one.tenant.cmp(&other.tenant));
        states
    }
}

fn source(path: &Path, copies: &[CopyState]) -> String {
    let complete = copies.iter().filter(|copy| copy.is_complete).count();
    let of = copies.len();
    let age = copies.iter().filter_map(|copy| copy.age).max();
    let age = age.map_or_else(String::new, |age| {
        let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
        format!(", the oldest polled {age} ago")
    });
    format!("{}, copies of {complete} of {of} companies of Severa{age}", path.display())
}

/// Further addresses of users, as the settings have them.
#[derive(Debug, Default)]
struct Aliases {
    users: HashMap<String, Vec<Named>>,
    /// How users are named, as it was written.
    names: Vec<(String, Named)>,
    /// Addresses of several users that were spoken of.
    told: Mutex<HashSet<String>>,
}

/// How the settings name a user.
#[derive(Clone, Debug)]
enum Named {
    Address(String),
    Guid(String),
}

impl Named {
    fn new(text: &str) -> Self {
        match Address::parse(text) {
            Ok(address) => Self::Address(address.folded().to_owned()),
            Err(_) => Self::Guid(text.trim().to_owned()),
        }
    }

    fn users<'a>(&'a self, copied: &'a Copied) -> Vec<&'a str> {
        match self {
            Self::Address(address) => copied.users_of(address).collect(),
            Self::Guid(guid) => copied.user(guid).map(|(guid, _)| guid).into_iter().collect(),
        }
    }
}

impl Aliases {
    fn new(settings: &BTreeMap<String, Vec<Address>>) -> Self {
        let mut aliases = Self::default();
        for (name, addresses) in settings {
            let named = Named::new(name);
            for address in addresses {
                aliases.users.entry(address.folded().to_owned()).or_default().push(named.clone());
            }
            aliases.names.push((name.clone(), named));
        }
        aliases
    }

    /// Names of users whom the copy does not have.
    fn of_nobody(&self, copy: &CompanyCopy) -> Vec<String> {
        if !copy.is_complete() {
            return Vec::new();
        }
        let copied = copy.read();
        let nobody = self.names.iter().filter(|(_, named)| named.users(&copied).is_empty());
        nobody.map(|(name, _)| name.clone()).collect()
    }

    /// Who has an address. Of several users it is the one of the lowest guid, so that it is the same one each time.
    fn person(&self, tenant: &str, copied: &Copied, address: &str) -> Person {
        let own = copied.users_of(address);
        let named = self.users.get(address).into_iter().flatten();
        let mut guids: Vec<&str> = own.chain(named.flat_map(|named| named.users(copied))).collect();
        guids.sort_unstable();
        guids.dedup();
        if let [first, _, ..] = guids[..] {
            self.tell(tenant, address, first);
        }
        let user = guids.first().and_then(|guid| copied.user(guid));
        let user = user.map(|(guid, name)| User { id: guid.to_owned(), name: name.map(str::to_owned) });
        let contact = |contact: severa::FoundContact<'_>| Contact {
            id: contact.guid.to_owned(),
            name: contact.name.map(str::to_owned),
            customer_id: contact.customer.to_owned(),
        };
        Person { user, contacts: copied.contacts_of(address).map(contact).collect() }
    }

    fn tell(&self, tenant: &str, address: &str, user: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < SHARED_TOLD && told.insert(address.to_owned()) {
            events::severa_shared_address(tenant, address, user);
        }
    }
}

/// Looks numbers up that the copy lacks.
struct Numbers {
    client: Arc<Client>,
    cache: Cache,
    turned_away: TurnedAway,
}

/// Numbers that there was no call for when they were asked for.
type TurnedAway = moka::sync::Cache<i64, ()>;

impl Numbers {
    fn new(tenant: &SeveraTenant, settings: &SeveraSettings) -> Self {
        let turned_away = TurnedAway::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(MOST_TURNED_AWAY)
            .time_to_live(TURNED_AWAY_FOR)
            .build();
        Self { client: Arc::clone(&tenant.client), cache: Cache::new(settings.look_ups.clone()), turned_away }
    }

    fn renewed(&self, tenant: &SeveraTenant, settings: &SeveraSettings) -> Self {
        Self {
            client: Arc::clone(&tenant.client),
            cache: self.cache.renewed(settings.look_ups.clone()),
            turned_away: self.turned_away.clone(),
        }
    }

    /// The project or sales case of a number, and whether that is past its time.
    async fn look_up(&self, tenant: &Tenant, number: i64) -> Result<(Option<Project>, bool), Unavailable> {
        let (client, turned_away) = (Arc::clone(&self.client), self.turned_away.clone());
        let fetch = move |questions: Vec<Question>| -> BoxFuture<'static, _> {
            async move {
                let mut answers = Answers::new();
                for question in questions {
                    let found = look_up(&client, &turned_away, number).await?;
                    answers.insert(question, Answer::Project(found));
                }
                Ok::<_, Unanswered>((answers, Life::default()))
            }
            .boxed()
        };
        let whose = Whose { prefix: tenant.prefix.clone(), id: tenant.id.clone() };
        let question = Question::Project(whose, number.to_string());
        match self.cache.ask(vec![question], fetch).await?.into_iter().next() {
            Some(Known { answer: Answer::Project(found), stale }) => Ok((found, stale)),
            _ => Err(Unavailable("the number was answered with something else".to_owned())),
        }
    }
}

/// Asks the API: projects first, because a sales case that was won is one.
async fn look_up(
    client: &Client,
    turned_away: &TurnedAway,
    number: i64,
) -> Result<Option<Project>, Unanswered> {
    let rank = if turned_away.contains_key(&number) { Rank::Again } else { Rank::New };
    let turn = async |rank| {
        let in_time = client.look_ups().turn(rank, TURN_PATIENCE).await;
        in_time.then_some(()).ok_or_else(|| {
            turned_away.insert(number, ());
            over_budget()
        })
    };
    turn(rank).await?;
    if let Some(found) = first_of(client, "projects", number).await? {
        return Ok(Some(found));
    }
    turn(Rank::Begun).await?;
    first_of(client, "salescases", number).await
}

fn over_budget() -> Unanswered {
    let most = format!("more than {LOOK_UP_CALLS} calls a second for unknown project numbers");
    Unanswered::NotAsked(Unavailable(most))
}

async fn first_of(client: &Client, list: &str, number: i64) -> Result<Option<Project>, Unanswered> {
    let request = Request::get(&["v1", list]).with("numbers", number.to_string());
    let page = Pages::of(client, request, Paging::Token).next::<severa::Project>().await;
    let rows = page.map_err(unanswered)?.unwrap_or_default();
    let of_number = rows.iter().filter(|row| row.number == Some(number));
    let found = of_number.filter_map(|row| {
        let guid = row.guid.as_deref().map(str::trim).filter(|guid| !guid.is_empty())?;
        Some(project(guid, number, severa::Reference::guid_of(row.customer.as_ref())))
    });
    Ok(found.min_by(|one, other| one.id.cmp(&other.id)))
}

fn unanswered(failed: Failed) -> Unanswered {
    Unanswered::Down(Unavailable(format!("Severa: {failed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_a_number() {
        for (text, expected) in [
            ("1001", Some(1001)),
            ("0001001", Some(1001)),
            ("0", Some(0)),
            ("000", Some(0)),
            ("999999999999999999", Some(999_999_999_999_999_999)),
            ("000999999999999999999", Some(999_999_999_999_999_999)),
            ("1000000000000000000", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("10a", None),
            (" 1", None),
            ("١٢", None),
        ] {
            assert_eq!(number_of(text), expected, "{text}");
        }
    }
}
