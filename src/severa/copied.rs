//! What a copy of one company's people and projects holds, in memory.
//!
//! In: changes, row by row. Out: who has an address, what has a number; each by a look into a map.
//! Promise: the order in which rows came does not matter for who is found: of two users of one address, and of two
//! projects of one number, it is the one of the lower guid.

use super::model::{ContactCommunication, ContactPerson, Project, Reference, User, present};
use crate::mail::Address;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

pub(super) type Guid = Arc<str>;

/// A row that is there, or is there no more.
#[derive(Clone, Debug)]
pub(super) enum Change {
    User(Guid, UserRow),
    NoUser(Guid),
    Contact(Guid, ContactRow),
    NoContact(Guid),
    /// These are a contact's addresses too.
    Addresses(Guid, BTreeSet<String>),
    Project(Guid, ProjectRow),
    NoProject(Guid),
}

#[derive(Clone, Debug)]
pub(super) struct UserRow {
    pub(super) address: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct ContactRow {
    pub(super) customer: String,
    pub(super) name: Option<String>,
    pub(super) addresses: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub(super) struct ProjectRow {
    pub(super) number: i64,
    pub(super) customer: Option<String>,
}

/// A row, and the full pass that saw it last.
#[derive(Clone, Debug)]
pub(super) struct Seen<T> {
    pub(super) row: T,
    pub(super) pass: i64,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Copied {
    pub(super) users: HashMap<Guid, Seen<UserRow>>,
    pub(super) contacts: HashMap<Guid, Seen<ContactRow>>,
    pub(super) projects: HashMap<Guid, Seen<ProjectRow>>,
    addresses: HashMap<String, People>,
    numbers: HashMap<i64, BTreeSet<Guid>>,
}

#[derive(Debug, Default)]
struct People {
    users: BTreeSet<Guid>,
    contacts: BTreeSet<Guid>,
}

/// A contact person who was found.
#[derive(Clone, Copy, Debug)]
pub struct FoundContact<'a> {
    /// Id.
    pub guid: &'a str,
    /// Name.
    pub name: Option<&'a str>,
    /// The customer's id.
    pub customer: &'a str,
}

impl Copied {
    /// The users of an address (folded), by guid.
    pub fn users_of(&self, address: &str) -> impl Iterator<Item = &str> {
        self.addresses.get(address).into_iter().flat_map(|people| &people.users).map(AsRef::as_ref)
    }

    /// The contact persons of an address (folded), by guid.
    pub fn contacts_of(&self, address: &str) -> impl Iterator<Item = FoundContact<'_>> {
        let guids = self.addresses.get(address).into_iter().flat_map(|people| &people.contacts);
        guids.filter_map(|guid| {
            let (guid, contact) = self.contacts.get_key_value(guid)?;
            Some(FoundContact {
                guid,
                name: contact.row.name.as_deref(),
                customer: contact.row.customer.as_str(),
            })
        })
    }

    /// A user of a guid, in whatever case that is written: guid and name.
    pub fn user(&self, guid: &str) -> Option<(&str, Option<&str>)> {
        let same = |(other, _): &(&Guid, &Seen<UserRow>)| other.eq_ignore_ascii_case(guid);
        let (guid, user) = self.users.get_key_value(guid).or_else(|| self.users.iter().find(same))?;
        Some((guid, user.row.name.as_deref()))
    }

    /// The project of a number: guid and customer.
    pub fn project(&self, number: i64) -> Option<(&str, Option<&str>)> {
        let guid = self.numbers.get(&number)?.first()?;
        Some((guid, self.projects.get(guid)?.row.customer.as_deref()))
    }

    /// Changes a row. What it came to, if anything: of an address more, all that the contact has then.
    pub(super) fn change(&mut self, change: Change, pass: i64) -> Option<Change> {
        match change {
            Change::User(guid, row) => {
                self.forget_user(&guid);
                if let Some(address) = &row.address {
                    self.people_of(address).users.insert(Arc::clone(&guid));
                }
                self.users.insert(Arc::clone(&guid), Seen { row: row.clone(), pass });
                Some(Change::User(guid, row))
            }
            Change::Contact(guid, row) => {
                self.forget_contact(&guid);
                for address in &row.addresses {
                    self.people_of(address).contacts.insert(Arc::clone(&guid));
                }
                self.contacts.insert(Arc::clone(&guid), Seen { row: row.clone(), pass });
                Some(Change::Contact(guid, row))
            }
            Change::Addresses(guid, addresses) => {
                let Seen { mut row, pass } = self.contacts.get(&guid)?.clone();
                let before = row.addresses.len();
                row.addresses.extend(addresses);
                let all = row.addresses.clone();
                if all.len() == before {
                    return None;
                }
                self.change(Change::Contact(Arc::clone(&guid), row), pass);
                Some(Change::Addresses(guid, all))
            }
            Change::Project(guid, row) => {
                self.forget_project(&guid);
                self.numbers.entry(row.number).or_default().insert(Arc::clone(&guid));
                self.projects.insert(Arc::clone(&guid), Seen { row: row.clone(), pass });
                Some(Change::Project(guid, row))
            }
            Change::NoUser(guid) => self.forget_user(&guid).then_some(Change::NoUser(guid)),
            Change::NoContact(guid) => self.forget_contact(&guid).then_some(Change::NoContact(guid)),
            Change::NoProject(guid) => self.forget_project(&guid).then_some(Change::NoProject(guid)),
        }
    }

    /// Forgets what no full pass since this one has seen; how many rows.
    pub(super) fn forget_until(&mut self, pass: i64) -> usize {
        fn gone<T>(rows: &HashMap<Guid, Seen<T>>, pass: i64) -> Vec<Guid> {
            let old = rows.iter().filter(|(_, seen)| seen.pass <= pass);
            old.map(|(guid, _)| Arc::clone(guid)).collect()
        }
        let (users, contacts, projects) =
            (gone(&self.users, pass), gone(&self.contacts, pass), gone(&self.projects, pass));
        let count = users.len() + contacts.len() + projects.len();
        for guid in users {
            self.forget_user(&guid);
        }
        for guid in contacts {
            self.forget_contact(&guid);
        }
        for guid in projects {
            self.forget_project(&guid);
        }
        count
    }

    fn people_of(&mut self, address: &str) -> &mut People {
        self.addresses.entry(address.to_owned()).or_default()
    }

    fn forget_user(&mut self, guid: &Guid) -> bool {
        let Some(Seen { row, .. }) = self.users.remove(guid) else { return false };
        if let Some(address) = row.address {
            self.leave(&address, |people| &mut people.users, guid);
        }
        true
    }

    fn forget_contact(&mut self, guid: &Guid) -> bool {
        let Some(Seen { row, .. }) = self.contacts.remove(guid) else { return false };
        for address in row.addresses {
            self.leave(&address, |people| &mut people.contacts, guid);
        }
        true
    }

    fn forget_project(&mut self, guid: &Guid) -> bool {
        let Some(Seen { row, .. }) = self.projects.remove(guid) else { return false };
        if let Some(guids) = self.numbers.get_mut(&row.number) {
            guids.remove(guid);
            if guids.is_empty() {
                self.numbers.remove(&row.number);
            }
        }
        true
    }

    fn leave(&mut self, address: &str, of: fn(&mut People) -> &mut BTreeSet<Guid>, guid: &Guid) {
        if let Some(people) = self.addresses.get_mut(address) {
            of(people).remove(guid);
            if people.users.is_empty() && people.contacts.is_empty() {
                self.addresses.remove(address);
            }
        }
    }
}

fn guid_of(guid: Option<&str>) -> Option<Guid> {
    present(guid).map(Guid::from)
}

fn folded(address: &str) -> Option<String> {
    Address::parse(address.trim()).ok().map(|address| address.folded().to_owned())
}

fn joined(first: Option<&str>, last: Option<&str>) -> Option<String> {
    let name: Vec<&str> = [first, last].into_iter().filter_map(present).collect();
    (!name.is_empty()).then(|| name.join(" "))
}

impl Change {
    /// What a row of the API says, if it can be used at all.
    pub(super) fn of_user(user: User) -> Option<Self> {
        let guid = guid_of(user.guid.as_deref())?;
        if user.is_active == Some(false) {
            return Some(Self::NoUser(guid));
        }
        let address = present(user.email.as_deref()).and_then(folded);
        let name = joined(user.first_name.as_deref(), user.last_name.as_deref());
        Some(Self::User(guid, UserRow { address, name }))
    }

    /// As [`Change::of_user`]. A contact without a customer is none: an activity could not say whom it concerns.
    pub(super) fn of_contact(contact: ContactPerson) -> Option<Self> {
        let guid = guid_of(contact.guid.as_deref())?;
        let is_there = contact.is_active != Some(false) && contact.is_deleted != Some(true);
        let Some(customer) = Reference::guid_of(contact.customer.as_ref()).filter(|_| is_there) else {
            return Some(Self::NoContact(guid));
        };
        let name = present(contact.name.as_deref()).map(str::to_owned);
        let name = name.or_else(|| joined(contact.first_name.as_deref(), contact.last_name.as_deref()));
        let emails = contact.emails.unwrap_or_default().into_iter().flatten();
        let addresses = emails.filter_map(|address| folded(&address)).collect();
        Some(Self::Contact(guid, ContactRow { customer: customer.to_owned(), name, addresses }))
    }

    /// As [`Change::of_user`]; the inner one is none for what is no address.
    pub(super) fn of_communication(communication: ContactCommunication) -> Option<Option<Self>> {
        let guid = Reference::guid_of(communication.contact.as_ref()).map(Guid::from)?;
        let value = communication.value.as_deref().filter(|_| communication.is_email());
        Some(value.and_then(folded).map(|address| Self::Addresses(guid, BTreeSet::from([address]))))
    }

    /// As [`Change::of_user`]. A project without a number is none: nobody can write to it.
    pub(super) fn of_project(project: Project) -> Option<Self> {
        let guid = guid_of(project.guid.as_deref())?;
        let customer = Reference::guid_of(project.customer.as_ref()).map(str::to_owned);
        Some(match project.number {
            Some(number) => Self::Project(guid, ProjectRow { number, customer }),
            None => Self::NoProject(guid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(guid: &str, email: Option<&str>, active: bool) -> Change {
        let row =
            json!({"guid": guid, "email": email, "firstName": "A", "lastName": " ", "isActive": active});
        Change::of_user(serde_json::from_value(row).unwrap()).unwrap()
    }

    fn contact(guid: &str, emails: &[&str]) -> Change {
        let row = json!({"guid": guid, "name": guid, "customer": {"guid": "c"}, "emails": emails});
        Change::of_contact(serde_json::from_value(row).unwrap()).unwrap()
    }

    fn project(guid: &str, number: i64) -> Change {
        Change::of_project(
            serde_json::from_value(json!({"guid": guid, "number": number, "customer": null})).unwrap(),
        )
        .unwrap()
    }

    fn users(copied: &Copied, address: &str) -> Vec<String> {
        copied.users_of(address).map(str::to_owned).collect()
    }

    fn contacts(copied: &Copied, address: &str) -> Vec<String> {
        copied.contacts_of(address).map(|contact| contact.guid.to_owned()).collect()
    }

    #[test]
    fn rows_move_with_their_addresses_and_numbers() {
        let mut copied = Copied::default();
        for change in [
            user("u2", Some("Anna@X.test"), true),
            user("u1", Some("anna@x.test"), true),
            user("u3", None, true),
            contact("k2", &["anna@x.test", "B@x.test"]),
            contact("k1", &["b@x.test", "no address", "b@x.test"]),
            project("p2", 7),
            project("p1", 7),
        ] {
            assert!(copied.change(change, 1).is_some());
        }
        assert_eq!(users(&copied, "anna@x.test"), ["u1", "u2"]);
        assert_eq!(copied.user("u3"), Some(("u3", Some("A"))));
        assert_eq!(contacts(&copied, "anna@x.test"), ["k2"]);
        assert_eq!(contacts(&copied, "b@x.test"), ["k1", "k2"]);
        assert_eq!(copied.project(7), Some(("p1", None)));
        copied.change(user("u1", Some("other@x.test"), true), 1);
        copied.change(user("u2", Some("anna@x.test"), false), 1);
        copied.change(contact("k2", &[]), 1);
        copied.change(project("p1", 8), 1);
        assert!(users(&copied, "anna@x.test").is_empty() && contacts(&copied, "anna@x.test").is_empty());
        assert_eq!(users(&copied, "other@x.test"), ["u1"]);
        assert_eq!(copied.project(7), Some(("p2", None)));
        assert_eq!(copied.project(8), Some(("p1", None)));
        assert_eq!(copied.addresses.len(), 2, "an address of nobody takes no room");
        copied.change(project("p1", 7), 1);
        assert_eq!(copied.numbers.len(), 1);
    }

    #[test]
    fn what_two_passes_lacked_is_forgotten() {
        let mut copied = Copied::default();
        copied.change(user("u1", Some("a@x.test"), true), 1);
        copied.change(contact("k1", &["a@x.test"]), 1);
        copied.change(project("p1", 1), 1);
        copied.change(project("p2", 2), 2);
        assert_eq!(copied.forget_until(0), 0);
        assert_eq!(copied.forget_until(1), 3);
        assert!(copied.addresses.is_empty() && copied.project(1).is_none() && copied.project(2).is_some());
    }

    #[test]
    fn a_communication_adds_to_a_contact_that_is_there() {
        let mut copied = Copied::default();
        let row = |kind: &str, value: serde_json::Value| {
            let row = json!({"value": value, "contact": {"guid": "k"}, "communicationType": {"type": kind}});
            Change::of_communication(serde_json::from_value(row).unwrap()).unwrap()
        };
        let address = row("EmailAddress", json!("New@x.test")).unwrap();
        assert!(copied.change(address.clone(), 5).is_none() && copied.contacts.is_empty());
        copied.change(contact("k", &["old@x.test"]), 3);
        assert!(
            matches!(copied.change(address.clone(), 5), Some(Change::Addresses(_, all)) if all.len() == 2)
        );
        assert_eq!(copied.contacts["k"].pass, 3, "it says nothing of the contact's own row");
        assert!(copied.change(address, 5).is_none(), "nothing new");
        assert_eq!(contacts(&copied, "new@x.test"), ["k"]);
        assert_eq!(contacts(&copied, "old@x.test"), ["k"]);
        for (kind, value) in
            [("PhoneNumber", json!("a@x.test")), ("EmailAddress", json!(null)), ("EmailAddress", json!("x"))]
        {
            assert!(row(kind, value).is_none());
        }
    }

    #[test]
    fn rows_that_say_too_little() {
        let contact = |row: serde_json::Value| Change::of_contact(serde_json::from_value(row).unwrap());
        assert!(contact(json!({"customer": {"guid": "c"}})).is_none());
        for row in [
            json!({"guid": "k"}),
            json!({"guid": "k", "customer": {"guid": " "}}),
            json!({"guid": "k", "customer": {"guid": "c"}, "isDeleted": true}),
            json!({"guid": "k", "customer": {"guid": "c"}, "isActive": false}),
        ] {
            assert!(matches!(contact(row), Some(Change::NoContact(_))));
        }
        let row =
            json!({"guid": "k", "customer": {"guid": "c"}, "emails": [null, "a@x.test"], "isDeleted": null});
        assert!(matches!(contact(row), Some(Change::Contact(_, row)) if row.addresses.len() == 1));
        assert!(matches!(
            Change::of_project(Project { guid: Some("p".to_owned()), ..Project::default() }),
            Some(Change::NoProject(_))
        ));
        assert!(Change::of_user(User::default()).is_none());
    }
}
