//! The directory as the backend's look-ups (`docs/backend-api.yaml`), with a cache before them.
//!
//! In: the connection to the backend. Out: answers of the cache, or of one request.
//! Promise: five seconds for a request; a stale answer never refuses anybody: what it says there is, is used while the
//! backend is down, and what it says there is not, is not known.
//! Fails: [`Unavailable`]: no connection, an error status, an answer that cannot be read.

use super::{
    CacheSettings, Directory, People, Unavailable,
    cache::{Answer, Answers, Cache, Known, Life, Question},
    wire::{ResolveAnswer, ResolveRequest, TenantAnswer},
};
use crate::backend::{CallError, Client, body_of};
use crate::mail::Address;
use crate::rules::{Person, Project, Tenant};
use async_trait::async_trait;
use futures_util::{FutureExt, future::BoxFuture};
use headers::{CacheControl, HeaderMapExt};
use reqwest::{RequestBuilder, Response, StatusCode, header::CONTENT_TYPE};
use serde::de::DeserializeOwned;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Time for a request: after it the message is deferred (451 4.4.3).
const ASK_TIME: Duration = Duration::from_secs(5);

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
}

impl HttpDirectory {
    /// Asks over this connection.
    pub fn new(client: Arc<Client>, settings: CacheSettings) -> Self {
        Self { client, cache: Cache::new(settings) }
    }

    /// Asks over another connection.
    pub fn renewed(&self, client: Arc<Client>, settings: CacheSettings) -> Self {
        Self { client, cache: Cache::new(settings) }
    }

    async fn tenant_known(&self, prefix: &str) -> Result<(Option<Tenant>, bool), Unavailable> {
        let client = Arc::clone(&self.client);
        let fetch = move |questions: Vec<Question>| fetch_tenant(client, questions).boxed();
        let known = self.cache.ask(vec![Question::Tenant(prefix.to_owned())], fetch).await?;
        match known.into_iter().next() {
            Some(Known { answer: Answer::Tenant(tenant), stale }) => Ok((tenant, stale)),
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

fn person(tenant: &Tenant, address: &Address) -> Question {
    Question::Person(tenant.prefix.clone(), address.folded().to_owned())
}

#[async_trait]
impl Directory for HttpDirectory {
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
        let project = Question::Project(tenant.prefix.clone(), number.to_lowercase());
        let people = also.iter().take(MAX_ADDRESSES).map(|address| person(tenant, address));
        let known = match self.resolve(tenant, std::iter::once(project.clone()).chain(people).collect()).await
        {
            // The project may be known although the people are not.
            Err(_) if !also.is_empty() => self.resolve(tenant, vec![project]).await?,
            known => known?,
        };
        match known.into_iter().next() {
            Some(Known { answer: Answer::Project(None), stale: true }) => Err(stale_no("no such project")),
            Some(Known { answer: Answer::Project(project), .. }) => Ok(project),
            _ => Err(Unavailable("the backend answered something else".to_owned())),
        }
    }

    fn source(&self) -> String {
        self.client.url(&["v1"]).to_string()
    }
}

/// The backend is down, and what is remembered would refuse somebody.
fn stale_no(what: &str) -> Unavailable {
    Unavailable(format!("it is down, and its last word, \"{what}\", is past its time"))
}

async fn fetch_tenant(client: Arc<Client>, questions: Vec<Question>) -> Result<(Answers, Life), Unavailable> {
    let (mut answers, mut life) = (Answers::new(), Life::default());
    for question in questions {
        let Question::Tenant(prefix) = &question else { continue };
        let url = client.url(&["v1", "tenants", prefix]);
        let response = send(&client, |http| http.get(url.clone())).await?;
        life = life_of(&response);
        let tenant = if is_none(&response) {
            None
        } else {
            let answer: TenantAnswer = read(response).await?;
            if answer.prefix.to_lowercase() != *prefix || answer.id.is_empty() {
                return Err(Unavailable(format!("the answer is about another tenant than \"{prefix}\"")));
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
        life = life_of(&response);
        let answer: ResolveAnswer = read(response).await?;
        let mut people: HashMap<String, Person> =
            answer.people.into_iter().map(|person| (folded(&person.address), person.into())).collect();
        let project: Option<Project> = answer.project.map(Project::from);
        for question in chunk {
            let answer = match question {
                Question::Person(_, address) => Answer::Person(people.remove(address).unwrap_or_default()),
                Question::Project(..) => Answer::Project(project.clone()),
                Question::Tenant(_) => continue,
            };
            answers.insert(question.clone(), answer);
        }
    }
    Ok((answers, life))
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
    let status = response.status();
    if !status.is_success() {
        return Err(Unavailable(format!("the backend answers {status} to a look-up")));
    }
    let body = body_of(response, MAX_ANSWER_BYTES).await;
    serde_json::from_slice(&body).map_err(|error| Unavailable(format!("the answer cannot be read: {error}")))
}

fn life_of(response: &Response) -> Life {
    let Some(control) = response.headers().typed_get::<CacheControl>() else { return Life::default() };
    let fresh = if control.no_cache() { Some(Duration::ZERO) } else { control.max_age() };
    Life { fresh, forbidden: control.no_store() }
}
