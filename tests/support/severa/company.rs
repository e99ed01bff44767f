//! A test's hand on one organisation of the fake.
//!
//! In: what the organisation shall have, and what shall become of its credentials and clock. Out: guids, and what the
//! service under test made: activities with their participants, files.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use super::{
    Fault, Shared,
    organisation::{LastPage, Organisation, StoredFile, find_mut, new_guid, push},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// One organisation; clones are the same one.
#[derive(Clone)]
pub struct Company {
    pub(super) shared: Arc<Shared>,
    pub(super) client_id: String,
}

impl Company {
    fn with<T>(&self, act: impl FnOnce(&mut Organisation) -> T) -> T {
        act(self.shared.state().organisations.get_mut(&self.client_id).unwrap())
    }

    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    pub fn add_user(&self, email: &str, first: &str, last: &str) -> String {
        self.with(|o| o.add_user(email, first, last))
    }

    pub fn set_user_active(&self, guid: &str, active: bool) {
        self.with(|o| {
            let now = o.now();
            let row = find_mut(&mut o.users, guid);
            row.value["isActive"] = json!(active);
            Organisation::touch(row, now);
        });
    }

    pub fn set_user_email(&self, guid: &str, email: &str) {
        self.with(|o| {
            let now = o.now();
            let row = find_mut(&mut o.users, guid);
            row.value["email"] = json!(email);
            Organisation::touch(row, now);
        });
    }

    /// Gone without a trace: no list shows it again, `changedSince` neither.
    pub fn remove_user(&self, guid: &str) {
        self.with(|o| o.users.retain(|row| row.guid != guid));
    }

    pub fn add_customer(&self, name: &str) -> String {
        self.with(|o| o.add_customer(name))
    }

    pub fn add_contact(&self, customer: &str, first: &str, last: &str, emails: &[&str]) -> String {
        self.with(|o| o.add_contact(customer, first, last, emails))
    }

    pub fn set_contact_active(&self, guid: &str, active: bool) {
        self.change_contact(guid, "isActive", active);
    }

    /// Deleted, and still listed as such.
    pub fn delete_contact(&self, guid: &str) {
        self.change_contact(guid, "isDeleted", true);
    }

    fn change_contact(&self, guid: &str, flag: &str, value: bool) {
        self.with(|o| {
            let now = o.now();
            let row = find_mut(&mut o.contacts, guid);
            row.value[flag] = json!(value);
            Organisation::touch(row, now);
        });
    }

    /// Gone without a trace, its addresses too.
    pub fn remove_contact(&self, guid: &str) {
        self.with(|o| {
            o.contacts.retain(|row| row.guid != guid);
            o.communications.retain(|row| row.value["contact"]["guid"] != guid);
        });
    }

    /// One more address. If it does not touch the contact, only the communication has a new time stamp; the contact's
    /// `emails` has it either way.
    pub fn add_address(&self, contact: &str, email: &str, touches_contact: bool) -> String {
        self.with(|o| {
            let now = o.now();
            let row = find_mut(&mut o.contacts, contact);
            row.value["emails"].as_array_mut().unwrap().push(json!(email));
            if touches_contact {
                Organisation::touch(row, now);
            }
            let row = o.communication(contact, email);
            push(&mut o.communications, row)
        })
    }

    /// A project with a root phase of its own.
    pub fn add_project(&self, number: i64, name: &str, customer: Option<&str>) -> String {
        self.with(|o| o.add_project(false, number, name, customer))
    }

    /// A sales case in progress: in `/v1/salescases` only.
    pub fn add_sales_case(&self, number: i64, name: &str, customer: Option<&str>) -> String {
        self.with(|o| o.add_project(true, number, name, customer))
    }

    /// The case becomes a project: same guid, new root phase.
    pub fn win_case(&self, guid: &str) {
        self.with(|o| {
            let now = o.now();
            find_mut(&mut o.cases, guid);
            let at = o.cases.iter().position(|row| row.guid == guid).unwrap();
            let mut row = o.cases.remove(at);
            row.value["rootPhase"]["guid"] = json!(new_guid());
            Organisation::touch(&mut row, now);
            o.projects.push(row);
            // It may be older than the last of them, and pages go by place.
            o.projects.sort_by_key(|row| row.place);
        });
    }

    /// Gone without a trace: project or case.
    pub fn remove_project(&self, guid: &str) {
        self.with(|o| {
            o.projects.retain(|row| row.guid != guid);
            o.cases.retain(|row| row.guid != guid);
        });
    }

    /// The guid of the root phase of a project or a case.
    pub fn root_phase(&self, guid: &str) -> String {
        self.with(|o| {
            let mut rows = o.projects.iter().chain(&o.cases);
            let row = rows.find(|row| row.guid == guid).expect("a project or a case of the fake");
            row.value["rootPhase"]["guid"].as_str().unwrap().to_owned()
        })
    }

    /// `GET /v1/projects`, also of one, has cases in progress too; at first it has none.
    pub fn set_cases_are_projects(&self, yes: bool) {
        self.with(|o| o.cases_are_projects = yes);
    }

    /// Cases in progress take files; at first they do.
    pub fn set_files_of_cases(&self, yes: bool) {
        self.with(|o| o.files_of_cases = yes);
    }

    pub fn add_activity_type(&self, name: &str, active: bool) -> String {
        self.with(|o| o.add_type(name, active))
    }

    /// The guid of an activity type; "E-mail" is there from the start.
    pub fn activity_type(&self, name: &str) -> String {
        self.with(|o| {
            let row = o.types.iter().find(|row| row.value["name"] == name);
            row.expect("an activity type of the fake").guid.clone()
        })
    }

    /// As stored, oldest first, each with its `participants`.
    pub fn activities(&self) -> Vec<Value> {
        self.with(|o| {
            let with_participants = |row: &super::organisation::Row| {
                let mut value = row.value.clone();
                let mine = o.participants.iter().filter(|p| p.value["activityGuid"] == row.guid);
                value["participants"] = mine.map(|p| p.value.clone()).collect();
                value
            };
            o.activities.iter().map(with_participants).collect()
        })
    }

    /// Files of a project, oldest first.
    pub fn files(&self, project: &str) -> Vec<StoredFile> {
        self.with(|o| o.files.get(project).into_iter().flatten().map(|(_, file)| file.clone()).collect())
    }

    /// A person deletes it.
    pub fn delete_activity(&self, guid: &str) {
        self.with(|o| {
            find_mut(&mut o.activities, guid);
            o.activities.retain(|row| row.guid != guid);
            o.participants.retain(|row| row.value["activityGuid"] != guid);
        });
    }

    /// As if somebody else had posted this.
    #[track_caller]
    pub fn add_activity(&self, body: Value) -> String {
        self.with(|o| {
            let row = o.activity(&body).unwrap_or_else(|field| panic!("{field}: {body}"));
            push(&mut o.activities, row)
        })
    }

    /// The secret is worth nothing from now on, nor are the tokens that it brought.
    pub fn revoke_secret(&self) {
        self.with(|o| {
            o.secret = None;
            o.tokens.clear();
        });
    }

    /// Another secret; tokens stay.
    pub fn set_secret(&self, secret: &str) {
        self.with(|o| o.secret = Some(secret.to_owned()));
    }

    /// All tokens given so far are worth nothing from now on.
    pub fn expire_tokens(&self) {
        self.with(|o| o.tokens.clear());
    }

    /// Tokens from now on have these scopes at most, whatever is asked for. At first: all.
    pub fn grant(&self, scopes: &[&str]) {
        let scopes: BTreeSet<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        self.with(|o| o.granted = scopes);
    }

    /// How long tokens from now on live; at first an hour.
    pub fn token_life(&self, seconds: u64) {
        self.with(|o| o.token_life = Duration::from_secs(seconds));
    }

    /// By how many seconds its clock is ahead: header Date, expiry, time stamps.
    pub fn clock_offset(&self, seconds: i64) {
        self.with(|o| o.clock_offset = seconds);
    }

    /// How its lists say that no page follows.
    pub fn last_page(&self, last_page: LastPage) {
        self.with(|o| o.last_page = last_page);
    }

    /// `firstRow` is taken for 0, whatever it says.
    pub fn ignores_first_row(&self, yes: bool) {
        self.with(|o| o.ignores_first_row = yes);
    }

    /// A page has this many rows at most, whatever `rowCount` says; at first 100.
    pub fn row_limit(&self, rows: usize) {
        self.with(|o| o.row_limit = rows);
    }

    /// Answers have fields that the schema lacks, as a later version's may.
    pub fn unknown_fields(&self, yes: bool) {
        self.with(|o| o.unknown_fields = yes);
    }

    /// The status for a participant whom nobody knows: 400 at first, or 404.
    pub fn unknown_participant(&self, status: u16) {
        self.with(|o| o.unknown_participant = status);
    }

    /// As [`super::Severa::fault`], of this organisation's calls.
    pub fn fault(&self, method: &str, template: &str, nth: usize, fault: Fault) {
        self.shared.fault(Some(&self.client_id), method, template, nth, fault);
    }

    /// Users, customers, contacts and projects as a directory file's tenant of this prefix names them.
    /// A user has one address here: his first. [`Self::guid`] knows what each id became.
    #[allow(clippy::wrong_self_convention)] // the file is what it is filled from
    pub fn from_directory_toml(&self, text: &str, prefix: &str) {
        let file: toml::Table = text.parse().unwrap();
        let tenants = file["tenant"].as_array().unwrap();
        let tenant = tenants.iter().find(|tenant| tenant["prefix"].as_str() == Some(prefix));
        let tenant = tenant.unwrap_or_else(|| panic!("no tenant {prefix}"));
        self.with(|o| {
            for user in list(tenant, "user") {
                let addresses = addresses(user);
                let (first, last) = names(user, addresses[0]);
                let guid = o.add_user(addresses[0], &first, &last);
                o.names.insert(text_of(user, "id").to_owned(), guid);
            }
            for customer in list(tenant, "customer") {
                let id = text_of(customer, "id");
                let name = customer.get("name").and_then(toml::Value::as_str).unwrap_or(id);
                let guid = o.add_customer(name);
                o.names.insert(id.to_owned(), guid.clone());
                for contact in list(customer, "contact") {
                    let addresses = addresses(contact);
                    let (first, last) = names(contact, addresses[0]);
                    let contact_guid = o.add_contact(&guid, &first, &last, &addresses);
                    o.names.insert(text_of(contact, "id").to_owned(), contact_guid);
                }
            }
            for project in list(tenant, "project") {
                let number = text_of(project, "number");
                let name = project.get("name").and_then(toml::Value::as_str).unwrap_or(number);
                let customer = project.get("customer").map(|id| o.names[id.as_str().unwrap()].clone());
                let guid = o.add_project(false, number.parse().unwrap(), name, customer.as_deref());
                o.names.insert(text_of(project, "id").to_owned(), guid);
            }
        });
    }

    /// What the id of a directory file became.
    #[track_caller]
    pub fn guid(&self, id: &str) -> String {
        self.with(|o| o.names.get(id).cloned()).unwrap_or_else(|| panic!("no {id} in the directory file"))
    }
}

fn list<'t>(table: &'t toml::Value, name: &str) -> impl Iterator<Item = &'t toml::Value> {
    table.get(name).and_then(toml::Value::as_array).into_iter().flatten()
}

fn text_of<'t>(table: &'t toml::Value, name: &str) -> &'t str {
    table[name].as_str().unwrap()
}

fn addresses(person: &toml::Value) -> Vec<&str> {
    person["addresses"].as_array().unwrap().iter().map(|address| address.as_str().unwrap()).collect()
}

/// First and last name: Severa demands both.
fn names(person: &toml::Value, address: &str) -> (String, String) {
    let name = person.get("name").and_then(toml::Value::as_str).unwrap_or(address.split('@').next().unwrap());
    let (first, last) = name.split_once(' ').unwrap_or((name, name));
    (first.to_owned(), last.to_owned())
}
