//! Who is named by a message.

use super::{
    addressing::Addressing,
    evidence::Place,
    words::{Candidate, Correspondent, Correspondents, Standing},
};
use crate::activity::Field;
use crate::mail::{Address, AddressFields, Element, Envelope, Head, Mailbox};
use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

/// Who is named by the message, each once: first all who may be its sender, in the order in which they are asked for (From,
/// Sender, Resent-From, Resent-Sender, login, envelope sender), then To, Cc, Bcc, their Resent- forms, and the envelope's
/// recipients. Integration addresses are left out; of more than `max` people the rest is counted.
///
/// From is a person of the activity; the envelope sender stands in for him where neither From nor Sender names anybody. The other senders are
/// only people if the directory knows them: bounce addresses of lists and forwarders are nobody.
pub fn correspondents(
    head: &Head,
    envelope: &Envelope,
    addressing: &Addressing,
    max: usize,
) -> Correspondents {
    let mut gathering = Gathering {
        addressing,
        max,
        known: HashMap::new(),
        omitted: HashSet::new(),
        found: Correspondents { skipped: head.skipped, ..Correspondents::default() },
    };
    gathering.mailboxes(&head.from, Standing::Sender, Field::From, Place::From);
    for list in [&head.sender, &head.resent_from, &head.resent_sender] {
        gathering.mailboxes(list, Standing::SenderIfKnown, Field::Sender, Place::Sender);
    }
    if let Some(login) = envelope.login.as_deref().and_then(|login| Address::parse(login).ok()) {
        let person = gathering.add(&login, None, Standing::SenderIfUser, Field::Envelope);
        gathering.may_be_sender(person, Place::Login);
    }
    if let Some(sender) = &envelope.sender {
        let person = match head.from.is_empty() && head.sender.is_empty() {
            true => gathering.add(sender, None, Standing::Sender, Field::From),
            false => gathering.add(sender, None, Standing::SenderIfUser, Field::Envelope),
        };
        gathering.may_be_sender(person, Place::Envelope);
    }
    for (fields, field) in [
        (&head.to, Field::To),
        (&head.cc, Field::Cc),
        (&head.bcc, Field::Bcc),
        (&head.resent_to, Field::To),
        (&head.resent_cc, Field::Cc),
        (&head.resent_bcc, Field::Bcc),
    ] {
        gathering.fields(fields, field);
    }
    for recipient in &envelope.recipients {
        gathering.add(&recipient.address, None, Standing::Recipient, Field::Envelope);
    }
    gathering.found.omitted = gathering.omitted.len();
    gathering.found
}

struct Gathering<'a> {
    addressing: &'a Addressing,
    max: usize,
    /// Index by folded address.
    known: HashMap<String, usize>,
    /// Digests of the addresses that are too many: they are only counted.
    omitted: HashSet<u64>,
    found: Correspondents,
}

impl Gathering<'_> {
    fn mailboxes(&mut self, list: &[Mailbox], standing: Standing, field: Field, place: Place) {
        for mailbox in list {
            let person = self.add(&mailbox.address, mailbox.name.as_deref(), standing, field);
            self.may_be_sender(person, place);
        }
    }

    fn may_be_sender(&mut self, person: Option<usize>, place: Place) {
        self.found.senders.extend(person.map(|person| Candidate { person, place }));
    }

    fn fields(&mut self, fields: &AddressFields, field: Field) {
        for element in fields.elements() {
            match element {
                Element::Mailbox(Mailbox { address, name }) => {
                    self.add(&address, name.as_deref(), Standing::Recipient, field);
                }
                Element::Skipped => self.found.skipped += 1,
            }
        }
    }

    /// The index of the person; none of an integration address, and of one too many.
    fn add(
        &mut self,
        address: &Address,
        name: Option<&str>,
        standing: Standing,
        field: Field,
    ) -> Option<usize> {
        if self.addressing.covers(address) {
            return None;
        }
        let is_listed = matches!(standing, Standing::Sender | Standing::Recipient);
        if let Some(&index) = self.known.get(address.folded()) {
            let before = &mut self.found.people[index];
            if before.name.is_none() {
                before.name = name.map(str::to_owned);
            }
            // Who is a sender only if somebody knows him is a recipient in any case.
            if is_listed {
                before.listed.get_or_insert(field);
            }
            if standing == Standing::SenderIfKnown && before.standing == Standing::SenderIfUser {
                before.standing = standing;
            }
            return Some(index);
        }
        if self.found.people.len() >= self.max {
            let mut hasher = DefaultHasher::new();
            address.folded().hash(&mut hasher);
            self.omitted.insert(hasher.finish());
            return None;
        }
        self.known.insert(address.folded().to_owned(), self.found.people.len());
        self.found.people.push(Correspondent {
            address: address.clone(),
            name: name.map(str::to_owned),
            standing,
            field,
            listed: is_listed.then_some(field),
        });
        Some(self.found.people.len() - 1)
    }
}
