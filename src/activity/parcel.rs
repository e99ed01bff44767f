//! The activities of one message, built.

use super::{
    contract::{Activity, EnvelopeRef, FileRef, Parties, SCHEMA},
    key::Key,
};
use crate::mail::{Address, Body, Cut, Envelope, FilePart, Head, Raw};
use std::{sync::Arc, time::SystemTime};

/// The activities of one accepted message, with everything their delivery needs.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// One for each target.
    pub activities: Vec<Activity>,
    /// Where the bytes of `activity.files` lie, in the same order; shared by all activities of the message.
    pub cuts: Vec<Cut>,
    /// Where the text of all activities stands in `raw` as it is, but for the line ends; none if it was decoded.
    pub verbatim: Option<Cut>,
    /// The message.
    pub raw: Raw,
    /// Keys of the bare address of tenants whose project is among the activities. It adds nothing beside a project
    /// (DESIGN section 1), also when it comes later and through the other door, as an automatic BCC does.
    pub covered: Vec<Key>,
}

impl Parcel {
    /// Builds the activities of one message.
    pub fn build(
        parties: Vec<Parties>,
        envelope: &Envelope,
        head: &Head,
        body: Body,
        raw: Raw,
        received_at: SystemTime,
    ) -> Self {
        let content = Content {
            text: body.text.map(Arc::from),
            html: body.html.map(Arc::from),
            files: body.files.iter().enumerate().map(file_ref).collect(),
            digest: body.digest,
        };
        let cuts = body.files.iter().map(|file| file.cut).collect();
        let covered = parties
            .iter()
            .filter(|parties| parties.project.is_some())
            .map(|parties| Key::digest(&parties.tenant.id, None, head, &content.digest))
            .collect();
        let activities = parties
            .into_iter()
            .map(|parties| activity(parties, envelope, head, &content, received_at))
            .collect();
        Self { activities, cuts, verbatim: body.verbatim, raw, covered }
    }
}

/// What all activities of a message share.
struct Content {
    text: Option<Arc<str>>,
    html: Option<Arc<str>>,
    files: Arc<[FileRef]>,
    digest: [u8; 32],
}

fn activity(
    parties: Parties,
    envelope: &Envelope,
    head: &Head,
    content: &Content,
    received_at: SystemTime,
) -> Activity {
    let project_id = parties.project.as_ref().map(|project| project.id.as_str());
    let tenant_id = parties.tenant.id.clone();
    let rfc3339 = |time| humantime::format_rfc3339_seconds(time).to_string();
    Activity {
        key: Key::digest(&parties.tenant.id, project_id, head, &content.digest),
        schema: SCHEMA,
        tenant: parties.tenant,
        activity_type: parties.activity_type,
        subject: head.subject.clone().unwrap_or_default(),
        sent_at: rfc3339(head.date.unwrap_or(received_at)),
        received_at: rfc3339(received_at),
        owner: parties.owner,
        participants: parties.participants,
        people_omitted: parties.people_omitted,
        automatic: parties.automatic,
        sender_authenticated: parties.sender_authenticated,
        customer: parties.customer,
        project: parties.project,
        text: content.text.clone(),
        html: content.html.clone(),
        message_id: head.message_id.clone(),
        in_reply_to: head.in_reply_to.clone(),
        references: head.references.clone(),
        files: Arc::clone(&content.files),
        envelope: EnvelopeRef {
            sender: envelope.sender.as_ref().map(Address::to_string),
            recipients: recipients_for(&tenant_id, envelope),
            queue_id: envelope.queue_id.clone(),
            client: envelope.client.clone(),
            login: envelope.login.clone(),
            intake: envelope.intake.as_str().to_owned(),
        },
    }
}

/// A tenant need not learn which other companies got a copy: their integration addresses are left out.
fn recipients_for(tenant: &str, envelope: &Envelope) -> Vec<String> {
    let shown = envelope.recipients.iter().filter(|r| r.tenant.as_deref().is_none_or(|id| id == tenant));
    shown.map(|r| r.address.to_string()).collect()
}

fn file_ref((index, file): (usize, &FilePart)) -> FileRef {
    FileRef {
        part: format!("file-{}", index + 1),
        name: file.name.clone(),
        content_type: file.content_type.clone(),
        size: file.size,
        sha256: file.sha256.clone(),
        inline: file.inline,
        content_id: file.content_id.clone(),
    }
}
