//! `GET /v1/tenants/{prefix}` and `POST /v1/tenants/{prefix}/resolve`: the look-ups, from a directory file.

use super::{Problem, Sink};
use crate::directory::{
    Directory, FileDirectory, Unavailable,
    wire::{PersonAnswer, ResolveAnswer, ResolveRequest, TenantAnswer},
};
use crate::mail::Address;
use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use std::sync::{Arc, atomic::Ordering};

/// Addresses of one request, as the contract says.
const MAX_ADDRESSES: usize = 1000;

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

/// Counts the look-up; a sink without directory cannot say that there is no tenant.
fn directory(sink: &Sink) -> Result<&FileDirectory, Problem> {
    sink.look_ups.fetch_add(1, Ordering::Relaxed);
    let none = || Problem::new(StatusCode::NOT_IMPLEMENTED, "the sink has no directory (--directory)");
    sink.directory.as_deref().ok_or_else(none)
}

fn cached(sink: &Sink, answer: impl IntoResponse) -> Response {
    match &sink.settings.cache_control {
        Some(value) => ([(header::CACHE_CONTROL, value.clone())], answer).into_response(),
        None => answer.into_response(),
    }
}

fn no_tenant() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no tenant has this prefix")
}

pub(super) async fn tenant(
    State(sink): State<Arc<Sink>>,
    Path(prefix): Path<String>,
) -> Result<Response, Problem> {
    tokio::time::sleep(sink.settings.delay).await;
    match directory(&sink)?.tenant(&prefix.to_lowercase()).await? {
        Some(tenant) => Ok(cached(&sink, Json(TenantAnswer::from(tenant)))),
        None => Ok(cached(&sink, no_tenant())),
    }
}

pub(super) async fn resolve(
    State(sink): State<Arc<Sink>>,
    Path(prefix): Path<String>,
    request: Result<Json<ResolveRequest>, JsonRejection>,
) -> Result<Response, Problem> {
    tokio::time::sleep(sink.settings.delay).await;
    let Json(request) = request.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    if request.addresses.len() > MAX_ADDRESSES {
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "more than 1000 addresses"));
    }
    let directory = directory(&sink)?;
    let tenant = directory.tenant(&prefix.to_lowercase()).await?.ok_or_else(no_tenant)?;
    // What is no address is nobody's.
    let asked: Vec<(String, Address)> = request
        .addresses
        .into_iter()
        .filter_map(|text| Address::parse(&text).ok().map(|address| (text, address)))
        .collect();
    let addresses: Vec<Address> = asked.iter().map(|(_, address)| address.clone()).collect();
    let persons = directory.people(&tenant, &addresses).await?.persons;
    let people = asked.into_iter().zip(persons).map(|((text, _), person)| PersonAnswer::new(text, person));
    let people = people.filter(|person| person.user.is_some() || !person.contacts.is_empty()).collect();
    let project = match &request.project {
        Some(number) => directory.project(&tenant, number, &[]).await?.map(Into::into),
        None => None,
    };
    Ok(cached(&sink, Json(ResolveAnswer { people, project })))
}
