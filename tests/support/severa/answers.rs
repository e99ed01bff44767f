//! What the fake answers to a request that the schema allows: each operation, its filters, its paging.
//!
//! In: an organisation and a request whose credentials were found good. Out: an answer, and the change it made.
//! A filter that the schema has and the fake does not know is an error, so that no test trusts a list that was not cut.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use super::{
    organisation::{LastPage, Organisation, Row, StoredFile, Token, find, instant, new_guid, push, stamp},
    related,
    schema::{Operation, SCHEMA},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashSet};

/// An answer before it goes out.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn empty(status: u16) -> Self {
        Self { status, content_type: String::new(), headers: Vec::new(), body: Vec::new() }
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Self {
            content_type: "application/json".to_owned(),
            body: value.to_string().into(),
            ..Self::empty(status)
        }
    }

    pub fn text(status: u16, text: &str) -> Self {
        Self { content_type: "text/plain".to_owned(), body: text.into(), ..Self::empty(status) }
    }

    /// Severa's form of an error.
    pub fn error(status: u16, kind: &str, message: &str) -> Self {
        let details = json!([{"message": message, "url": null, "location": null}]);
        Self::json(status, &json!({"error": {"httpStatusCode": status, "type": kind, "details": details}}))
    }
}

/// A request whose method and path the schema has.
pub struct Asked<'r> {
    pub operation: &'r Operation,
    /// Values of the path's parameters.
    pub path: Vec<&'r str>,
    pub query: &'r [(String, String)],
    pub content_type: &'r str,
    pub bytes: &'r [u8],
    /// The JSON body.
    pub json: Value,
}

/// What is wrong with a request beyond the schema.
pub struct Wrong(pub String);

/// A token for good credentials.
pub fn token(organisation: &mut Organisation, body: &Value) -> Result<Reply, Wrong> {
    let asked: BTreeSet<String> = match body["scope"].as_str() {
        None => SCHEMA.scopes.clone(),
        Some(scopes) => scopes.split(',').map(str::to_owned).collect(),
    };
    if let Some(unknown) = asked.difference(&SCHEMA.scopes).next() {
        return Err(Wrong(format!("no such scope: {unknown:?}")));
    }
    if organisation.secret.is_none() || organisation.secret.as_deref() != body["client_secret"].as_str() {
        return Ok(Reply::error(401, "AuthenticationRequired", "Invalid client credentials."));
    }
    let scopes: BTreeSet<String> = asked.intersection(&organisation.granted).cloned().collect();
    let expires = organisation.now() + organisation.token_life;
    let seconds = organisation.token_life.as_secs();
    let text = format!("token-{}", new_guid());
    let answer = json!({
        "access_token": text, "access_token_type": "Bearer", "access_token_expires_in": seconds,
        "access_token_expires_utc": stamp(expires), "refresh_token": format!("refresh-{}", new_guid()),
        "refresh_token_expires_in": 2 * seconds, "refresh_token_expires_utc": stamp(expires + organisation.token_life),
        "scope": scopes.iter().cloned().collect::<Vec<_>>().join(","),
    });
    organisation.tokens.push(Token { text, scopes, expires });
    Ok(Reply::json(200, &answer))
}

/// Any other operation.
pub fn answer(organisation: &mut Organisation, asked: &Asked) -> Result<Reply, Wrong> {
    let o = organisation;
    let first = asked.path.first().copied().unwrap_or_default();
    match (asked.operation.method.as_str(), asked.operation.template.as_str()) {
        ("GET", "/v1/users") => by_token(o, &o.users, asked),
        ("GET", "/v1/contactpersons") => by_row(o, o.contacts.iter(), asked),
        ("GET", "/v1/contactcommunications") => by_row(o, o.communications.iter(), asked),
        ("GET", "/v1/projects") if o.cases_are_projects => {
            let mut rows: Vec<_> = o.projects.iter().chain(&o.cases).collect();
            rows.sort_by_key(|row| row.place);
            by_token(o, rows, asked)
        }
        ("GET", "/v1/projects") => by_token(o, &o.projects, asked),
        ("GET", "/v1/projects/{guid}") => {
            let case = || find(&o.cases, first).filter(|_| o.cases_are_projects);
            Ok(one(find(&o.projects, first).or_else(case)))
        }
        ("GET", "/v1/salescases") => by_token(o, &o.cases, asked),
        ("GET", "/v1/activitytypes") => by_token(o, &o.types, asked),
        ("GET", "/v1/activities") => by_token(o, &o.activities, asked),
        ("GET", "/v1/activities/{guid}") => Ok(one(find(&o.activities, first))),
        ("GET", "/v1/activities/{activityGuid}/activityparticipants") => {
            Ok(match find(&o.activities, first) {
                None => Reply::empty(404),
                Some(_) => {
                    let mine = o.participants.iter().filter(|row| row.value["activityGuid"] == first);
                    Reply::json(200, &mine.map(|row| row.value.clone()).collect())
                }
            })
        }
        ("POST", "/v1/activities") => Ok(match o.activity(&asked.json) {
            Err(field) => Reply::error(400, "InvalidParameter", &format!("The field {field} is not valid.")),
            Ok(row) => {
                let reply = Reply::json(201, &row.value);
                o.activities.push(row);
                reply
            }
        }),
        ("POST", "/v1/activityparticipants") => Ok(add_participant(o, &asked.json)),
        ("GET", "/v1/projects/{projectGuid}/files") => {
            if !has_files(o, first) {
                return Ok(Reply::empty(404));
            }
            by_row(o, o.files.get(first).into_iter().flatten().map(|(row, _)| row), asked)
        }
        ("POST", "/v1/projects/{projectGuid}/files") => add_files(o, first, asked),
        (method, template) => Err(Wrong(format!("the fake does not know {method} {template}"))),
    }
}

fn one(row: Option<&Row>) -> Reply {
    row.map_or_else(|| Reply::empty(404), |row| Reply::json(200, &row.value))
}

fn add_participant(o: &mut Organisation, body: &Value) -> Reply {
    let guid = |field: &str| body[field].as_str().unwrap();
    if find(&o.activities, guid("activityGuid")).is_none() {
        return Reply::empty(404);
    }
    let Some((kind, person)) = o.person(guid("participantGuid"), body["type"].as_str()) else {
        return match o.unknown_participant {
            404 => Reply::empty(404),
            status => Reply::error(status, "InvalidParameter", "The field participantGuid is not valid."),
        };
    };
    let mut value = body.clone();
    value["guid"] = json!(new_guid());
    value["type"] = json!(kind);
    if value["status"].is_null() {
        value["status"] = json!("Unknown");
    }
    value.as_object_mut().unwrap().extend(person.as_object().unwrap().clone());
    let guid = value["guid"].as_str().unwrap().to_owned();
    // A participant has no time stamps.
    let row = Row { value: value.clone(), guid, ..o.row(json!({}), &[]) };
    push(&mut o.participants, row);
    Reply::json(201, &value)
}

fn has_files(o: &Organisation, project: &str) -> bool {
    find(&o.projects, project).is_some() || o.files_of_cases && find(&o.cases, project).is_some()
}

fn add_files(o: &mut Organisation, project: &str, asked: &Asked) -> Result<Reply, Wrong> {
    let uploads = related::uploads(asked.content_type, asked.bytes).map_err(Wrong)?;
    if !has_files(o, project) {
        return Ok(Reply::empty(404));
    }
    let mut made = Vec::new();
    for upload in uploads {
        let value = json!({
            "fileGuid": new_guid(), "name": upload.name, "description": upload.description,
            "contentType": upload.content_type, "size": upload.bytes.len(), "projectGuid": project,
            "category": "Projects", "isReadOnly": false, "isInternal": false, "usages": [],
        });
        let row = o.row(value, &["createdBy"]);
        made.push(row.value.clone());
        let file = StoredFile {
            guid: row.guid.clone(),
            name: upload.name,
            description: upload.description,
            content_type: upload.content_type,
            bytes: upload.bytes,
        };
        o.files.entry(project.to_owned()).or_default().push((row, file));
    }
    Ok(Reply::json(201, &made.into()))
}

fn parameter<'q>(asked: &'q Asked, name: &str) -> Option<&'q str> {
    asked.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

fn invalid(message: &str) -> Reply {
    Reply::error(400, "InvalidParameter", message)
}

/// How many rows a page has: 20 if nothing is said, never more than the limit.
fn rows_of_page(o: &Organisation, asked: &Asked) -> Result<usize, Reply> {
    match parameter(asked, "rowCount").map(str::parse::<usize>) {
        None => Ok(20.min(o.row_limit)),
        Some(Ok(count)) if count > 0 => Ok(count.min(o.row_limit)),
        Some(_) => Err(invalid("rowCount")),
    }
}

fn by_row<'r>(
    o: &Organisation,
    rows: impl IntoIterator<Item = &'r Row>,
    asked: &Asked,
) -> Result<Reply, Wrong> {
    let rows = filtered(o, rows, asked)?;
    let count = match rows_of_page(o, asked) {
        Ok(count) => count,
        Err(reply) => return Ok(reply),
    };
    let Ok(first) = parameter(asked, "firstRow").map_or(Ok(0), str::parse::<usize>) else {
        return Ok(invalid("firstRow"));
    };
    let first = if o.ignores_first_row { 0 } else { first };
    Ok(Reply::json(200, &rows.into_iter().skip(first).take(count).map(|row| row.value.clone()).collect()))
}

fn by_token<'r>(
    o: &Organisation,
    rows: impl IntoIterator<Item = &'r Row>,
    asked: &Asked,
) -> Result<Reply, Wrong> {
    let rows = filtered(o, rows, asked)?;
    let count = match rows_of_page(o, asked) {
        Ok(count) => count,
        Err(reply) => return Ok(reply),
    };
    // Whether the API would notice other filters on the next page is unknown; they are a client's mistake.
    let filters: Vec<_> = asked.query.iter().filter(|(name, _)| name != "pageToken").collect();
    let list = Sha256::digest(format!("{} {filters:?}", asked.operation.template));
    let list = BASE64_URL_SAFE_NO_PAD.encode(&list[..6]);
    let given = parameter(asked, "pageToken").filter(|token| !token.is_empty());
    let after = match given
        .map(|token| token.split_once('.').map(|(of, place)| (of == list, place.parse::<u64>())))
    {
        None => 0,
        Some(Some((true, Ok(place)))) => place,
        Some(_) => return Err(Wrong(format!("pageToken {given:?} is not of this list"))),
    };
    let mut rest = rows.into_iter().filter(|row| row.place > after);
    let page: Vec<_> = rest.by_ref().take(count).collect();
    let more = rest.next().is_some();
    let token = format!("{list}.{}", page.last().map_or(after, |row| row.place));
    let mut reply = Reply::json(200, &page.into_iter().map(|row| row.value.clone()).collect());
    let next = match o.last_page {
        _ if more => Some(token),
        LastPage::Absent => None,
        LastPage::Empty => Some(String::new()),
        LastPage::Repeated => Some(token),
    };
    reply.headers.extend(next.map(|token| ("NextPageToken".to_owned(), token)));
    Ok(reply)
}

fn filtered<'r>(
    o: &Organisation,
    rows: impl IntoIterator<Item = &'r Row>,
    asked: &Asked,
) -> Result<Vec<&'r Row>, Wrong> {
    let mut rows: Vec<&Row> = rows.into_iter().collect();
    let names: BTreeSet<&str> = asked.query.iter().map(|(name, _)| name.as_str()).collect();
    for name in names {
        let values: Vec<&str> =
            asked.query.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect();
        let (value, flag) = (values[0], values[0] == "true");
        let among = |found: &Value| found.as_str().is_some_and(|found| values.contains(&found));
        match name {
            "pageToken" | "rowCount" | "firstRow" => {}
            "active" if asked.operation.template == "/v1/contactcommunications" => {
                // It has no flag of its own: its contact's is taken.
                let active: HashSet<&str> = o
                    .contacts
                    .iter()
                    .filter(|row| row.value["isActive"] == true && row.value["isDeleted"] == false)
                    .map(|row| row.guid.as_str())
                    .collect();
                rows.retain(|row| active.contains(row.value["contact"]["guid"].as_str().unwrap()) == flag);
            }
            "isActive" | "active" => rows.retain(|row| row.value["isActive"] == flag),
            "isClosed" | "closed" => rows.retain(|row| row.value["isClosed"] == flag),
            "changedSince" => {
                let since = instant(value).ok_or_else(|| Wrong(format!("{name}={value}")))?;
                rows.retain(|row| row.changed >= since);
            }
            "email" if value.is_empty() => {}
            "email" => rows.retain(|row| {
                row.value["email"].as_str().is_some_and(|email| email.eq_ignore_ascii_case(value))
            }),
            "textToSearch" => {
                let wanted = value.to_lowercase();
                rows.retain(|row| text_of(&row.value).to_lowercase().contains(&wanted));
            }
            "numbers" => rows.retain(|row| {
                row.value["number"]
                    .as_i64()
                    .is_some_and(|number| values.contains(&number.to_string().as_str()))
            }),
            "category" | "activityCategories" => {
                let at = if name == "category" { "/category" } else { "/activityType/category" };
                rows.retain(|row| among(row.value.pointer(at).unwrap()));
            }
            "userGuids" => rows.retain(|row| among(&row.value["ownerUser"]["guid"])),
            "activityTypeGuids" => rows.retain(|row| among(&row.value["activityType"]["guid"])),
            "customerGuids" => rows.retain(|row| among(&row.value["customer"]["guid"])),
            "phaseGuids" => rows.retain(|row| among(&row.value["phase"]["guid"])),
            "projectGuids" if asked.operation.template == "/v1/activities" => {
                rows.retain(|row| among(&row.value["phase"]["projectGuid"]));
            }
            "projectGuids" => rows.retain(|row| values.contains(&row.guid.as_str())),
            other => return Err(Wrong(format!("the fake does not know the filter {other}"))),
        }
    }
    Ok(rows)
}

/// What a text search looks at.
fn text_of(value: &Value) -> String {
    let lists = ["emails", "phoneNumbers"].into_iter().filter_map(|field| value[field].as_array()).flatten();
    let single = ["firstName", "lastName", "name", "value"].into_iter().map(|field| &value[field]);
    single.chain(lists).filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}
