//! What one organisation has in the fake: its rows, its credentials, its clock.
//!
//! In: changes, by an answer or by a test. Out: rows, oldest first, each as the API shows it.
//! Every row has a place that only grows, so a page goes on after the row before it whatever came or went between.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use super::schema::SCHEMA;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How a list says that no page follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LastPage {
    /// `NextPageToken` is absent.
    Absent,
    /// It is there and empty.
    Empty,
    /// There is always one; of an empty page it is the token that the page was asked with.
    Repeated,
}

/// A file as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredFile {
    pub guid: String,
    pub name: String,
    pub description: Option<String>,
    pub content_type: String,
    pub bytes: Vec<u8>,
}

pub struct Row {
    pub place: u64,
    pub guid: String,
    /// What `changedSince` asks for; whole milliseconds, as the stamps that are shown.
    pub changed: SystemTime,
    pub value: Value,
}

pub struct Token {
    pub text: String,
    pub scopes: BTreeSet<String>,
    pub expires: SystemTime,
}

pub struct Organisation {
    pub secret: Option<String>,
    pub granted: BTreeSet<String>,
    pub token_life: Duration,
    pub tokens: Vec<Token>,
    /// Seconds by which its clock is ahead.
    pub clock_offset: i64,
    pub last_page: LastPage,
    pub row_limit: usize,
    pub ignores_first_row: bool,
    pub cases_are_projects: bool,
    pub files_of_cases: bool,
    pub unknown_fields: bool,
    /// The status for a participant whom nobody knows.
    pub unknown_participant: u16,
    pub users: Vec<Row>,
    pub customers: Vec<Row>,
    pub contacts: Vec<Row>,
    pub communications: Vec<Row>,
    pub projects: Vec<Row>,
    pub cases: Vec<Row>,
    pub types: Vec<Row>,
    pub activities: Vec<Row>,
    pub participants: Vec<Row>,
    /// By project.
    pub files: HashMap<String, Vec<(Row, StoredFile)>>,
    /// The guids of what a directory file names.
    pub names: HashMap<String, String>,
}

/// A guid that this process has not given out.
pub fn new_guid() -> String {
    format!("5e7e4a00-0000-4000-8000-{:012x}", next())
}

fn next() -> u64 {
    static GIVEN: AtomicU64 = AtomicU64::new(1);
    GIVEN.fetch_add(1, Ordering::Relaxed)
}

/// RFC 3339, in whole milliseconds.
pub fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A point in time from a query or a body, with `Z` or any offset.
pub fn instant(text: &str) -> Option<SystemTime> {
    let (time, offset) = match text.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let (time, offset) = text.split_at(text.len().checked_sub(6)?);
            let (hours, minutes) = offset[1..].split_once(':')?;
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            (time, if offset.starts_with('-') { -seconds } else { seconds })
        }
    };
    let local = humantime::parse_rfc3339(&format!("{time}Z")).ok()?;
    shifted(local, -offset)
}

fn shifted(time: SystemTime, seconds: i64) -> Option<SystemTime> {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time.checked_sub(by) } else { time.checked_add(by) }
}

pub fn find<'r>(rows: &'r [Row], guid: &str) -> Option<&'r Row> {
    rows.iter().find(|row| row.guid == guid)
}

/// The row of a test's guid.
#[track_caller]
pub fn find_mut<'r>(rows: &'r mut [Row], guid: &str) -> &'r mut Row {
    rows.iter_mut().find(|row| row.guid == guid).unwrap_or_else(|| panic!("the fake has no {guid}"))
}

impl Organisation {
    pub fn new(secret: &str) -> Self {
        let mut new = Self {
            secret: Some(secret.to_owned()),
            granted: SCHEMA.scopes.clone(),
            token_life: Duration::from_secs(3600),
            tokens: Vec::new(),
            clock_offset: 0,
            last_page: LastPage::Absent,
            row_limit: 100,
            ignores_first_row: false,
            cases_are_projects: false,
            files_of_cases: true,
            unknown_fields: false,
            unknown_participant: 400,
            users: Vec::new(),
            customers: Vec::new(),
            contacts: Vec::new(),
            communications: Vec::new(),
            projects: Vec::new(),
            cases: Vec::new(),
            types: Vec::new(),
            activities: Vec::new(),
            participants: Vec::new(),
            files: HashMap::new(),
            names: HashMap::new(),
        };
        new.add_type("E-mail", true);
        new
    }

    pub fn now(&self) -> SystemTime {
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let now = UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap());
        shifted(now, self.clock_offset).unwrap()
    }

    /// A new row: guid and time stamps, then what it says, then fields that say nothing.
    pub fn row(&self, value: Value, silent: &[&str]) -> Row {
        let (guid, changed) = (new_guid(), self.now());
        let mut fields = Map::new();
        fields.insert("guid".to_owned(), json!(guid));
        let Value::Object(said) = value else { panic!("no object: {value}") };
        fields.extend(said);
        fields.extend(silent.iter().map(|name| ((*name).to_owned(), Value::Null)));
        fields.insert("createdDateTime".to_owned(), json!(stamp(changed)));
        fields.insert("lastUpdatedDateTime".to_owned(), json!(stamp(changed)));
        Row { place: next(), guid, changed, value: Value::Object(fields) }
    }

    pub fn touch(row: &mut Row, now: SystemTime) {
        row.changed = now;
        row.value["lastUpdatedDateTime"] = json!(stamp(now));
    }

    pub fn add_user(&mut self, email: &str, first: &str, last: &str) -> String {
        let value = json!({"firstName": first, "lastName": last, "email": email, "isActive": true});
        let silent = ["code", "phone", "title", "country", "keywords", "salutation", "userType", "lastLogin"];
        let row = self.row(value, &silent);
        push(&mut self.users, row)
    }

    pub fn add_customer(&mut self, name: &str) -> String {
        let number = self.customers.len() + 1;
        let row = self.row(json!({"name": name, "number": number}), &[]);
        push(&mut self.customers, row)
    }

    /// What other rows say of a customer.
    #[track_caller]
    fn customer(&self, guid: &str) -> Value {
        let row = find(&self.customers, guid).unwrap_or_else(|| panic!("the fake has no customer {guid}"));
        json!({"guid": guid, "name": row.value["name"], "number": row.value["number"]})
    }

    pub fn add_contact(&mut self, customer: &str, first: &str, last: &str, emails: &[&str]) -> String {
        let value = json!({
            "firstName": first, "lastName": last, "name": format!("{first} {last}"), "emails": [], "phoneNumbers": [],
            "customer": self.customer(customer), "isActive": true, "isDeleted": false, "isEmailAllowed": false,
        });
        let row =
            self.row(value, &["addressGuid", "jobTitle", "language", "role", "salutation", "dateOfBirth"]);
        let guid = push(&mut self.contacts, row);
        for email in emails {
            let row = self.communication(&guid, email);
            self.communications.push(row);
        }
        self.contacts.last_mut().unwrap().value["emails"] = json!(emails);
        guid
    }

    pub fn communication(&self, contact: &str, email: &str) -> Row {
        let kind = json!({"guid": "communication-type-1", "name": "E-mail", "type": "EmailAddress", "isActive": true});
        let value = json!({
            "value": email, "contact": {"guid": contact}, "communicationType": kind, "isForbiddenToUse": true,
        });
        self.row(value, &["createdBy"])
    }

    pub fn add_project(&mut self, case: bool, number: i64, name: &str, customer: Option<&str>) -> String {
        let value = json!({
            "name": name, "number": number, "isClosed": false, "isInternal": false,
            "customer": customer.map(|guid| self.customer(guid)), "rootPhase": {"guid": new_guid(), "name": name},
        });
        let silent =
            ["billingContact", "description", "keywords", "closedDate", "expectedValue", "projectOwner"];
        let row = self.row(value, &silent);
        push(if case { &mut self.cases } else { &mut self.projects }, row)
    }

    pub fn add_type(&mut self, name: &str, active: bool) -> String {
        let default = self.types.is_empty();
        let value = json!({"name": name, "category": "Task", "isActive": active, "isDefault": default});
        let row = self.row(value, &["code", "isPaidLeave"]);
        push(&mut self.types, row)
    }

    /// What an activity would be as stored, or the field that names nothing.
    pub fn activity(&self, body: &Value) -> Result<Row, &'static str> {
        let guid = |field: &str| body[field]["guid"].as_str();
        let owner = guid("ownerUser").and_then(|guid| find(&self.users, guid)).ok_or("ownerUser")?;
        let kind = guid("activityType").and_then(|guid| find(&self.types, guid)).ok_or("activityType")?;
        let mut value = body.clone();
        value["activityType"] = json!({
            "guid": kind.guid, "name": kind.value["name"], "category": kind.value["category"],
        });
        let name = [&owner.value["firstName"], &owner.value["lastName"]]
            .map(|name| name.as_str().unwrap())
            .join(" ");
        value["ownerUser"] = json!({"guid": owner.guid, "name": name, "code": null, "keywords": []});
        if let Some(guid) = guid("customer") {
            find(&self.customers, guid).ok_or("customer")?;
            value["customer"] = self.customer(guid);
        }
        if let Some(guid) = guid("phase") {
            let mut projects = self.projects.iter().chain(&self.cases);
            let project = projects.find(|row| row.value["rootPhase"]["guid"] == guid).ok_or("phase")?;
            value["phase"] = json!({
                "guid": guid, "name": project.value["rootPhase"]["name"], "isLocked": false,
                "projectGuid": project.guid, "projectName": project.value["name"],
                "projectNumber": project.value["number"], "projectOwnerGuid": null,
            });
        }
        let start = value["startDateTime"].as_str().and_then(instant).ok_or("startDateTime")?;
        if let Some(end) = value["endDateTime"].as_str() {
            instant(end).filter(|end| *end >= start).ok_or("endDateTime")?;
        }
        for (field, otherwise) in [
            ("isClosed", false),
            ("isAllDay", false),
            ("isUnassigned", false),
            ("hasDuration", true),
            ("hasHours", false),
        ] {
            if value[field].is_null() {
                value[field] = json!(otherwise);
            }
        }
        value["recurrenceType"] = json!("None");
        for silent in ["notes", "location", "customer", "phase", "endDateTime", "recurrence"] {
            if value.get(silent).is_none() {
                value[silent] = Value::Null;
            }
        }
        Ok(self.row(value, &["recurrenceRule"]))
    }

    /// The name, address and activity of a user or contact: what a participant shows.
    pub fn person(&self, guid: &str, kind: Option<&str>) -> Option<(&'static str, Value)> {
        let user = || find(&self.users, guid).map(|row| ("User", &row.value));
        let contact = || {
            let row = find(&self.contacts, guid).filter(|row| row.value["isDeleted"] == false)?;
            Some(("Contact", &row.value))
        };
        let (kind, value) = match kind {
            Some("User") => user(),
            Some("Contact") => contact(),
            None => user().or_else(contact),
            Some(_) => None,
        }?;
        let name = [&value["firstName"], &value["lastName"]].map(|name| name.as_str().unwrap()).join(" ");
        let email = if kind == "User" { &value["email"] } else { &value["emails"][0] };
        Some((kind, json!({"name": name, "email": email, "isActive": value["isActive"]})))
    }
}

pub fn push(rows: &mut Vec<Row>, row: Row) -> String {
    let guid = row.guid.clone();
    rows.push(row);
    guid
}
