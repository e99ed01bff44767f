//! The directory as the backend's look-ups (`docs/backend-api.yaml`), with a cache before them.
//!
//! In: the connection to the backend. Out: answers of the cache, or of one request.
//! Promise: five seconds for a request; a stale answer never refuses anybody: what it says there is, is used while the
//! backend is down, and what it says there is not, is not known.
//! Fails: [`Unavailable`]: no connection, an error status, an answer that cannot be read whole or is about somebody else.

use super::{
    CacheSettings, Directory, People, Unavailable,
    cache::{Answer, Answers, Cache, Known, Life, Question, Unanswered, Whose},
    names_of,
    wire::{PersonAnswer, PolicyAnswer, ResolveAnswer, ResolveRequest, TenantAnswer},
};
use crate::mail::Address;
use crate::rules::{Person, Project, Tenant};
use crate::web::{CallError, Client, body_of, misread};
use async_trait::async_trait;
use futures_util::{FutureExt, future::BoxFuture};
use headers::{CacheControl, HeaderMapExt};
use reqwest::{RequestBuilder, Response, StatusCode, header::CONTENT_TYPE};
use serde::de::DeserializeOwned;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Time for a request: after it the message is deferred (451 4.4.3).
const ASK_TIME: Duration = Duration::from_secs(5);

/// From the question for a recipient's tenant to that for its project, at most.
const MOMENT: Duration = Duration::from_secs(60);

/// Bytes of an answer that are read: a thousand people with their contacts.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Addresses of one request.
const MAX_ADDRESSES: usize = 1000;

/// Labels of the longest prefix that is asked for: a stranger's `a.b.c.d.e.f.g@` must not become seven requests.
const MAX_PREFIX_LABELS: usize = 4;

/// A directory behind HTTP.
pub struct HttpDirectory {
    client: Arc<Client>,
    cache: Cache,
    /// [`MOMENT`]
    moment: Duration,
    /// A tenant in shadow mode was answered.
    has_shadow: Arc<AtomicBool>,
}

impl HttpDirectory {
    /// Asks over this connection.
    pub fn new(client: Arc<Client>, settings: CacheSettings) -> Self {
        Self { client, cache: Cache::new(settings), moment: MOMENT, has_shadow: Arc::default() }
    }

    /// The same with other settings, for a reload that nothing refuses any more: if there is less room, this one has less
    /// too. The answers stay, unless another system is asked, or by somebody else.
    pub fn renewed(&self, client: Arc<Client>, settings: CacheSettings) -> Self {
        let same = client.is_same_caller(&self.client);
        let cache = if same { self.cache.renewed(settings) } else { Cache::new(settings) };
        Self { client, cache, moment: self.moment, has_shadow: Arc::clone(&self.has_shadow) }
    }

    /// True if what is known of the tenant whose prefix is `number.prefix` is an old "there is none".
    fn doubts_tenant(&self, number: &str, tenant: &Tenant) -> bool {
        let longer = format!("{}.{}", number.to_lowercase(), tenant.prefix);
        // It was asked for a moment ago, at the recipient; then it is not old, however short its life.
        let known = self.cache.past(&Question::Tenant(longer), self.moment);
        matches!(known, Some(Answer::Tenant(None)))
    }

    async fn tenant_known(&self, prefix: &str) -> Result<(Option<Tenant>, bool), Unavailable> {
        let client = Arc::clone(&self.client);
        let fetch = move |questions: Vec<Question>| fetch_tenant(client, questions).boxed();
        let known = self.cache.ask(vec![Question::Tenant(prefix.to_owned())], fetch).await?;
        match known.into_iter().next() {
            Some(Known { answer: Answer::Tenant(tenant), stale }) => {
                if tenant.as_ref().is_some_and(|tenant| tenant.shadow) {
                    self.has_shadow.store(true, Ordering::Relaxed);
                }
                Ok((tenant, stale))
            }
            _ => Err(Unavailable("the backend answered something else".to_owned())),
        }
    }

    async fn resolve(&self, tenant: &Tenant, questions: Vec<Question>) -> Result<Vec<Known>, Unavailable> {
        let (client, prefix) = (Arc::clone(&self.client), tenant.prefix.clone());
        let fetch = move |questions: Vec<Question>| -> BoxFuture<'static, _> {
            fetch_resolved(client, prefix, questions).boxed()
        };
        self.cache.ask(questions, fetch).await
    }
}

fn whose(tenant: &Tenant) -> Whose {
    Whose { prefix: tenant.prefix.clone(), id: tenant.id.clone() }
}

fn person(tenant: &Tenant, address: &Address) -> Question {
    Question::Person(whose(tenant), address.folded().to_owned())
}

#[async_trait]
impl Directory for HttpDirectory {
    fn names(&self, ids: &HashSet<&str>) -> HashMap<String, String> {
        names_of(self.cache.tenants().iter(), ids)
    }

    fn expire(&self, prefixes: &[String]) {
        self.cache.expire(prefixes);
    }

    async fn tenant(&self, prefix: &str) -> Result<Option<Tenant>, Unavailable> {
        let found = self.tenant_of(std::slice::from_ref(&prefix.to_owned())).await?;
        Ok(found.map(|(_, tenant)| tenant))
    }

    async fn tenant_of(&self, prefixes: &[String]) -> Result<Option<(usize, Tenant)>, Unavailable> {
        let mut doubt = false;
        for (index, prefix) in prefixes.iter().enumerate() {
            if prefix.split('.').count() > MAX_PREFIX_LABELS {
                continue;
            }
            match self.tenant_known(prefix).await? {
                (Some(tenant), stale) if stale && !tenant.active => {
                    return Err(stale_no("an inactive tenant"));
                }
                (Some(tenant), _) => return Ok(Some((index, tenant))),
                (None, stale) => doubt |= stale,
            }
        }
        if doubt { Err(stale_no("no such tenant")) } else { Ok(None) }
    }

    async fn people(&self, tenant: &Tenant, addresses: &[Address]) -> Result<People, Unavailable> {
        let questions = addresses.iter().map(|address| person(tenant, address)).collect();
        let known = self.resolve(tenant, questions).await?;
        let stale = known.iter().any(|known| known.stale);
        let persons = known.into_iter().map(|known| match known.answer {
            Answer::Person(person) => person,
            Answer::Tenant(_) | Answer::Project(_) => Person::default(),
        });
        Ok(People { persons: persons.collect(), stale })
    }

    async fn project(
        &self,
        tenant: &Tenant,
        number: &str,
        also: &[Address],
    ) -> Result<Option<Project>, Unavailable> {
        let project = Question::Project(whose(tenant), number.to_lowercase());
        let people = also.iter().take(MAX_ADDRESSES).map(|address| person(tenant, address));
        let known = match self.resolve(tenant, std::iter::once(project.clone()).chain(people).collect()).await
        {
            // The project may be known although the people are not.
            Err(_) if !also.is_empty() => self.resolve(tenant, vec![project]).await?,
            known => known?,
        };
        match known.into_iter().next() {
            Some(Known { answer: Answer::Project(None), stale: true }) => Err(stale_no("no such project")),
            // `b.a@` was taken for project b of a, because there was no tenant `b.a`: that word is past its time.
            Some(Known { answer: Answer::Project(None), .. }) if self.doubts_tenant(number, tenant) => {
                Err(stale_no("no such tenant"))
            }
            Some(Known { answer: Answer::Project(project), .. }) => Ok(project),
            _ => Err(Unavailable("the backend answered something else".to_owned())),
        }
    }

    fn has_shadow(&self) -> bool {
        self.has_shadow.load(Ordering::Relaxed)
    }

    fn source(&self) -> String {
        self.client.url(&["v1"]).to_string()
    }
}

/// The backend is down, and what is remembered would refuse somebody.
fn stale_no(what: &str) -> Unavailable {
    Unavailable(format!("it is down, and its last word, \"{what}\", is past its time"))
}

async fn fetch_tenant(client: Arc<Client>, questions: Vec<Question>) -> Result<(Answers, Life), Unanswered> {
    let (mut answers, mut life) = (Answers::new(), Life::default());
    for question in questions {
        let Question::Tenant(prefix) = &question else { continue };
        let url = client.url(&["v1", "tenants", prefix]);
        let response = send(&client, |http| http.get(url.clone())).await?;
        life = life.and(life_of(&response));
        let tenant = if is_none(&response) {
            None
        } else {
            let body = object_of(response).await?;
            // It may be stricter than the one that is remembered.
            if let Some(why) = misread_policy(&body) {
                let error = format!("the policy of \"{prefix}\" cannot be read ({why}), and its mail waits");
                return Err(Unanswered::Changed(Unavailable(error)));
            }
            // It has answered, and concerns nobody else: the others' answers go on to be fetched.
            let answer: TenantAnswer = parsed(&body).map_err(Unanswered::Changed)?;
            if answer.prefix.to_lowercase() != *prefix || answer.id.is_empty() {
                let error = format!("the answer is about another tenant than \"{prefix}\"");
                return Err(Unanswered::Changed(Unavailable(error)));
            }
            Some(answer.into())
        };
        answers.insert(question, Answer::Tenant(tenant));
    }
    Ok((answers, life))
}

async fn fetch_resolved(
    client: Arc<Client>,
    prefix: String,
    questions: Vec<Question>,
) -> Result<(Answers, Life), Unavailable> {
    let url = client.url(&["v1", "tenants", &prefix, "resolve"]);
    let (mut answers, mut life) = (Answers::new(), Life::default());
    for chunk in questions.chunks(MAX_ADDRESSES) {
        let mut request = ResolveRequest { addresses: Vec::new(), project: None };
        for question in chunk {
            match question {
                Question::Person(_, address) => request.addresses.push(address.clone()),
                Question::Project(_, number) => request.project = Some(number.clone()),
                Question::Tenant(_) => {}
            }
        }
        let response = send(&client, |http| http.post(url.clone()).json(&request)).await?;
        life = life.and(life_of(&response));
        answers.extend(answers_to(chunk, read(response).await?)?);
    }
    Ok((answers, life))
}

/// What an answer says to the questions; what was not asked is nobody's business.
fn answers_to(questions: &[Question], answer: ResolveAnswer) -> Result<Answers, Unavailable> {
    let mut people: HashMap<String, Vec<PersonAnswer>> = HashMap::new();
    for person in answer.people {
        people.entry(folded(&person.address)).or_default().push(person);
    }
    let project = answer.project.map(Project::from);
    let mut answers = Answers::new();
    for question in questions {
        let answer = match question {
            Question::Person(_, address) => {
                Answer::Person(person_of(people.remove(address).unwrap_or_default())?)
            }
            Question::Project(_, number) => Answer::Project(the_project(number, project.clone())?),
            Question::Tenant(_) => continue,
        };
        answers.insert(question.clone(), answer);
    }
    Ok(answers)
}

/// The person of an address. Backends may list the user and the contacts of an address one by one.
fn person_of(listed: Vec<PersonAnswer>) -> Result<Person, Unavailable> {
    let (mut found, mut seen) = (Person::default(), HashSet::new());
    for Person { user, contacts } in listed.into_iter().map(Person::from) {
        match (&found.user, user) {
            (_, Some(user)) if user.id.is_empty() => {
                return Err(Unavailable("the answer has a user without id".to_owned()));
            }
            (Some(known), Some(user)) if known.id != user.id => {
                return Err(Unavailable("the answer has two users of one address".to_owned()));
            }
            (None, user) => found.user = user,
            (Some(_), _) => {}
        }
        let new = contacts.into_iter().filter(|c| seen.insert((c.customer_id.clone(), c.id.clone())));
        found.contacts.extend(new);
    }
    Ok(found)
}

/// The project, if it is the one that was asked for.
fn the_project(number: &str, project: Option<Project>) -> Result<Option<Project>, Unavailable> {
    match &project {
        Some(other) if other.number.to_lowercase() != number || other.id.is_empty() => {
            Err(Unavailable(format!("the answer is about another project than \"{number}\"")))
        }
        _ => Ok(project),
    }
}

/// The address as questions have it; backends may give it back in another spelling.
fn folded(address: &str) -> String {
    Address::parse(address).map_or_else(|_| address.to_owned(), |address| address.folded().to_owned())
}

async fn send(
    client: &Client,
    build: impl Fn(&reqwest::Client) -> RequestBuilder,
) -> Result<Response, Unavailable> {
    let answer = client.send(ASK_TIME, |http| Ok(build(http))).await;
    answer.map_err(|error| match error {
        CallError::Credentials(reason) => {
            Unavailable(format!("{reason}: check the credentials in [backend]"))
        }
        error => Unavailable(error.to_string()),
    })
}

/// "There is none" is a 404 that the backend meant: any web server says 404 to a wrong URL, but not with problem details
/// (RFC 9457).
fn is_none(response: &Response) -> bool {
    let media_type =
        response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    response.status() == StatusCode::NOT_FOUND
        && media_type.split(';').next().unwrap_or_default().trim() == "application/problem+json"
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Unavailable> {
    parsed(&object_of(response).await?)
}

async fn object_of(response: Response) -> Result<Vec<u8>, Unavailable> {
    let status = response.status();
    if !status.is_success() {
        return Err(Unavailable(format!("the backend answers {status} to a look-up")));
    }
    let body = body_of(response, MAX_ANSWER_BYTES).await;
    // Half an object is none, but serde also takes lists for our types, and an empty list for "there is nobody".
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(unreadable(format!("its {} bytes are no JSON object", body.len())));
    }
    Ok(body)
}

fn unreadable(why: String) -> Unavailable {
    Unavailable(format!("the answer cannot be read: {why}"))
}

/// What cannot be read of a tenant's policy, if it is the policy: its keys, and nothing that stands in them.
fn misread_policy(tenant: &[u8]) -> Option<String> {
    let tenant: serde_json::Value = serde_json::from_slice(tenant).ok()?;
    let keys = match tenant.get("policy")? {
        serde_json::Value::Object(keys) => keys,
        serde_json::Value::Null => return None,
        _ => return Some("it is no object".to_owned()),
    };
    let is_wrong = |key: &str, value: &serde_json::Value| {
        serde_json::from_value::<PolicyAnswer>(serde_json::json!({ key: value })).is_err()
    };
    let wrong: Vec<_> =
        keys.iter().filter(|(key, value)| is_wrong(key, value)).map(|(key, _)| key.as_str()).collect();
    (!wrong.is_empty()).then(|| format!("its {}", wrong.join(", ")))
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unavailable> {
    serde_json::from_slice(body).map_err(|error| match body.len() {
        MAX_ANSWER_BYTES => unreadable(format!("it is longer than {MAX_ANSWER_BYTES} bytes")),
        _ => unreadable(misread(&error)),
    })
}

fn life_of(response: &Response) -> Life {
    let Some(control) = response.headers().typed_get::<CacheControl>() else { return Life::default() };
    let fresh = if control.no_cache() { Some(Duration::ZERO) } else { control.max_age() };
    Life { fresh, forbidden: control.no_store() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::ClientSettings;
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        sync::{Mutex, atomic::AtomicUsize},
    };

    /// A backend that answers each request with the same bytes.
    struct Backend {
        url: String,
        says: Arc<Mutex<Vec<u8>>>,
        asked: Arc<AtomicUsize>,
    }

    impl Backend {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let (says, asked) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicUsize>::default());
            let (answer, count) = (Arc::clone(&says), Arc::clone(&asked));
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut request = BufReader::new(&stream);
                    let (mut line, mut length) = (String::new(), 0);
                    while request.read_line(&mut line).is_ok_and(|n| n > 2) {
                        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        line.clear();
                    }
                    let _ = request.read_exact(&mut vec![0; length]);
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(&answer.lock().unwrap());
                }
            });
            Self { url, says, asked }
        }

        fn client(&self, path: &str) -> Arc<Client> {
            let url = format!("{}{path}", self.url).parse().unwrap();
            Arc::new(Client::new(&ClientSettings::new(url, Duration::from_secs(5))).unwrap())
        }

        fn says(&self, head: &str, body: impl AsRef<[u8]>) {
            let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
            *self.says.lock().unwrap() = [head.as_bytes(), body.as_ref()].concat();
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    fn settings() -> CacheSettings {
        let time = Duration::from_secs(60);
        CacheSettings { hits: time, misses: time, stale: time, size: 1 << 20 }
    }

    fn tenant(id: &str) -> Tenant {
        Tenant {
            id: id.to_owned(),
            prefix: "a".to_owned(),
            name: String::new(),
            active: true,
            activity_type: "Email".to_owned(),
            shadow: false,
            policy: Arc::default(),
        }
    }

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    /// What the directory says of anna, bo and project 1: `user, contacts, user, contacts, project`.
    async fn resolved(directory: &HttpDirectory) -> Result<String, String> {
        let who = [address("anna@x.test"), address("bo@y.test")];
        let project = directory.project(&tenant("1"), "1", &who).await.map_err(|error| error.0)?;
        let people = directory.people(&tenant("1"), &who).await.map_err(|error| error.0)?;
        let mut words = Vec::new();
        for person in people.persons {
            words.push(person.user.map_or("-".to_owned(), |user| user.id));
            words.push(person.contacts.into_iter().map(|contact| contact.id).collect::<Vec<_>>().join("+"));
        }
        words.push(project.map_or("-".to_owned(), |project| project.id));
        Ok(words.join(" "))
    }

    #[tokio::test]
    async fn what_backends_answer() {
        let (ok, json) = ("200 OK", "200 OK\r\nContent-Type: application/json\r\nContent-Length: ");
        let long =
            |text: &str| format!("{{\"people\": [], \"x\": \"{}\"{text}", "x".repeat(MAX_ANSWER_BYTES));
        let twice = r#"{"people": [{"address": "anna@x.test", "user": {"id": "u"}}, {"address": "ANNA@x.test",
            "contacts": [{"id": "k", "customer_id": "c"}]}, {"address": "Anna@X.test", "user": {"id": "u"},
            "contacts": [{"id": "k", "customer_id": "c"}, {"id": "l", "customer_id": "c"}]}]}"#;
        let two_users = r#"{"people": [{"address": "anna@x.test", "user": {"id": "u"}},
            {"address": "anna@x.test", "user": {"id": "v"}}]}"#;
        let others = r#"{"people": [{"address": "eve@x.test", "user": {"id": "u"}}, {"address": "eve@x.test",
            "user": {"id": "v"}}, {"address": "bo@y.test", "user": {"id": "b"}}]}"#;
        let cases: &[(&str, String, &str, Result<&str, &str>)] = &[
            ("nobody", ok.to_owned(), "{}", Ok("-  -  -")),
            ("the same address twice", ok.to_owned(), twice, Ok("u k+l -  -")),
            ("two users of one address", ok.to_owned(), two_users, Err("two users of one address")),
            ("people who were not asked for", ok.to_owned(), others, Ok("-  b  -")),
            (
                "a user without id",
                ok.to_owned(),
                &two_users.replace("\"u\"", "\"\""),
                Err("a user without id"),
            ),
            ("the project", ok.to_owned(), r#"{"project": {"id": "p", "number": "1"}}"#, Ok("-  -  p")),
            (
                "another project",
                ok.to_owned(),
                r#"{"project": {"id": "p", "number": "2"}}"#,
                Err("about another project than \"1\""),
            ),
            (
                "a project without id",
                ok.to_owned(),
                r#"{"project": {"id": "", "number": "1"}}"#,
                Err("another"),
            ),
            ("an empty body", format!("{json}0"), "", Err("its 0 bytes are no JSON object")),
            ("no content", "204 No Content".to_owned(), "", Err("its 0 bytes")),
            ("HTML", ok.to_owned(), "<html>people</html>", Err("no JSON object")),
            ("an empty list", ok.to_owned(), "[]", Err("no JSON object")),
            ("a list", ok.to_owned(), "[[],null]", Err("no JSON object")),
            ("null", ok.to_owned(), "null", Err("no JSON object")),
            ("cut off", format!("{json}1000"), r#"{"people": []"#, Err("cannot be read")),
            ("cut off behind the end", format!("{json}1000"), r#"{"people": []}"#, Ok("-  -  -")),
            (
                "cut off between two chunks",
                "200 OK\r\nTransfer-Encoding: chunked".to_owned(),
                "d\r\n{\"people\": []\r\n",
                Err("cannot be read"),
            ),
            ("two answers", ok.to_owned(), "{}{}", Err("cannot be read")),
            ("too long", ok.to_owned(), &long("\"}"), Err("longer than 4194304 bytes")),
            ("too long, and cut off", format!("{json}9000000"), &long(""), Err("longer than 4194304 bytes")),
            ("a redirect", "302 Found\r\nLocation: /".to_owned(), "{}", Err("302")),
            ("an error", "500 Internal Server Error".to_owned(), "{}", Err("500")),
            (
                "no such tenant any more",
                "404 Not Found\r\nContent-Type: application/problem+json".to_owned(),
                "{}",
                Err("404"),
            ),
        ];
        let backend = Backend::new();
        for (name, head, body, expected) in cases {
            backend.says(head, body);
            let found = resolved(&HttpDirectory::new(backend.client(""), settings())).await;
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{name}: {found}"),
                _ => panic!("{name}: {found:?}"),
            }
        }
        for (name, head, body, expected) in [
            ("a tenant", ok, r#"{"id": "t", "prefix": "A"}"#, Ok(true)),
            ("another tenant", ok, r#"{"id": "t", "prefix": "b"}"#, Err("about another tenant than \"a\"")),
            ("without id", ok, r#"{"id": "", "prefix": "a"}"#, Err("about another tenant")),
            ("a list", ok, r#"["t", "a"]"#, Err("no JSON object")),
            ("an empty body", ok, "", Err("its 0 bytes")),
            ("cut off", ok, r#"{"id": "t", "prefix": "a""#, Err("cannot be read")),
            ("none", "404 Not Found\r\nContent-Type: application/problem+json", "{", Ok(false)),
            ("a web server's none", "404 Not Found\r\nContent-Type: text/html", "", Err("404")),
        ] {
            backend.says(head, body);
            let found = HttpDirectory::new(backend.client(""), settings()).tenant("a").await;
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.is_some(), expected, "{name}"),
                (Err(found), Err(expected)) => assert!(found.0.contains(expected), "{name}: {found}"),
                _ => panic!("{name}: {found:?}"),
            }
        }
    }

    #[tokio::test]
    async fn whoever_gets_a_prefix_has_people_of_his_own() {
        let backend = Backend::new();
        let directory = HttpDirectory::new(backend.client(""), settings());
        let user = async |tenant: Tenant| {
            let people = directory.people(&tenant, &[address("anna@x.test")]).await.unwrap();
            people.persons[0].user.as_ref().map(|user| user.id.clone())
        };
        backend.says("200 OK", r#"{"people": [{"address": "anna@x.test", "user": {"id": "u"}}]}"#);
        assert_eq!(user(tenant("1")).await.as_deref(), Some("u"));
        backend.says("200 OK", "{}");
        assert_eq!(user(tenant("1")).await.as_deref(), Some("u"));
        assert_eq!(user(tenant("2")).await, None);
        assert_eq!(backend.asked(), 2);
    }

    #[tokio::test]
    async fn a_reload_keeps_the_answers_of_the_same_system() {
        let backend = Backend::new();
        backend.says("200 OK", r#"{"id": "t", "prefix": "a"}"#);
        let first = HttpDirectory::new(backend.client(""), settings());
        let knows = async |directory: &HttpDirectory| directory.tenant("a").await.is_ok_and(|t| t.is_some());
        assert!(knows(&first).await);
        backend.says("503 Service Unavailable", "");
        for (path, size, kept) in [("", 1 << 20, true), ("", 1 << 19, true), ("b", 1 << 20, false)] {
            let renewed = first.renewed(backend.client(path), CacheSettings { size, ..settings() });
            assert_eq!(knows(&renewed).await, kept, "{path} {size}");
            let back = renewed.renewed(backend.client(""), settings());
            assert_eq!(knows(&back).await, kept, "{path} {size}, and back");
        }
        assert!(knows(&first).await);
    }

    #[tokio::test]
    async fn of_two_answers_the_shorter_life_counts() {
        let fresh = |seconds| Life { fresh: Some(Duration::from_secs(seconds)), forbidden: false };
        let not_kept = Life { fresh: None, forbidden: true };
        assert_eq!(fresh(3).and(fresh(2)).fresh, Some(Duration::from_secs(2)));
        assert_eq!(Life::default().and(fresh(2)).fresh, Some(Duration::from_secs(2)));
        assert!(not_kept.and(Life::default()).forbidden && Life::default().and(not_kept).forbidden);
    }

    #[tokio::test]
    async fn an_old_no_of_the_longer_prefix_refuses_no_project() {
        let backend = Backend::new();
        let misses = Duration::from_millis(20);
        let directory = HttpDirectory::new(backend.client(""), CacheSettings { misses, ..settings() });
        let directory = HttpDirectory { moment: misses, ..directory };
        backend.says("404 Not Found\r\nContent-Type: application/problem+json", "{}");
        assert!(directory.tenant("b.a").await.unwrap().is_none());
        backend.says("200 OK", "{\"id\":\"1\",\"prefix\":\"a\"}");
        let tenant = directory.tenant("a").await.unwrap().unwrap();
        tokio::time::sleep(misses * 3).await;
        backend.says("200 OK", "{\"people\":[]}");
        assert!(directory.project(&tenant, "B", &[]).await.is_err());
        assert!(directory.project(&tenant, "c", &[]).await.unwrap().is_none(), "nobody asked for c.a");
    }

    /// A policy that cannot be read may be stricter than the one that is remembered: the tenant's mail waits, and nobody else's.
    #[tokio::test]
    async fn an_unreadable_policy_is_no_outage() {
        let backend = Backend::new();
        let short = CacheSettings { hits: Duration::ZERO, misses: Duration::ZERO, ..settings() };
        let directory = HttpDirectory::new(backend.client(""), short);
        let tenant = |policy: &str| format!("{{\"id\": \"1\", \"prefix\": \"a\", \"policy\": {policy}}}");
        for (policy, expected) in [
            (r#"{"never_log": ["law.test"]}"#, ""),
            (r#"{"never_log": ["law.test", "*.law.test"]}"#, "its never_log"),
            (r#"{"require": "dmarc", "internal": "maybe"}"#, "its require, internal"),
            ("[]", "it is no object"),
            ("null", ""),
            (r#"{"some_day": true}"#, ""),
        ] {
            backend.says("200 OK", tenant(policy));
            for _ in 0..2 {
                match directory.tenant("a").await {
                    Ok(found) => assert!(found.is_some() && expected.is_empty(), "{policy}"),
                    Err(error) => {
                        let wanted = format!("the policy of \"a\" cannot be read ({expected})");
                        assert!(!expected.is_empty() && error.0.contains(&wanted), "{policy}: {error}");
                    }
                }
            }
        }
        // Nor is an answer that is about something else.
        for answer in [
            r#"{"id": "1", "prefix": "a", "mode": "shadoww"}"#,
            r#"{"id": "1", "prefix": "b"}"#,
            r#"{"id": 7, "prefix": "a"}"#,
        ] {
            backend.says("200 OK", tenant("null"));
            assert!(directory.tenant("a").await.is_ok());
            backend.says("200 OK", answer);
            assert!(directory.tenant("a").await.is_err(), "{answer}");
        }
        backend.says("200 OK", tenant("null"));
        assert!(directory.tenant("a").await.is_ok());
        // What is no answer at all is an outage: the last word counts.
        backend.says("200 OK", "<html>maintenance</html>");
        assert!(directory.tenant("a").await.unwrap().is_some());
    }
}
