//! Messages for a queue, and a place on disk for it.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use activity_milter::{
    activity::{Owner, Parcel, Parties, ProjectRef, Raw, TenantRef},
    mail::{Budget, Envelope, Head, Intake, LIMITS, MEMORY_PER_MESSAGE, Reader, Spill},
};
use std::{
    io::Read,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// More bytes than a message has in memory.
pub const LARGE: usize = MEMORY_PER_MESSAGE + 1;

/// When the tests begin: some day, at noon.
pub fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + 43_200)
}

/// A directory whose syncs cost nothing, where there is one: what is tested is order, not the disk.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A message for targets, each a tenant by name or `tenant/project`; the same `id` is the same e-mail.
pub async fn letter(spool: &Path, id: usize, body_bytes: usize, targets: &[&str]) -> Parcel {
    let mut rest = b"Content-Type: image/png\r\n\r\n".to_vec();
    rest.resize(rest.len() + body_bytes, b'x');
    whole(spool, &format!("Subject: s\r\nMessage-ID: <{id}@x>\r\n"), &rest, targets).await
}

/// The same of any head and rest.
pub async fn whole(spool: &Path, head: &str, rest: &[u8], targets: &[&str]) -> Parcel {
    let mut spill = Spill::new(spool, u64::MAX, &Budget::new(u64::MAX));
    spill.push(head.as_bytes()).await.unwrap();
    for piece in rest.chunks(64 * 1024) {
        spill.push(piece).await.unwrap();
    }
    let (raw, _) = spill.finish().await.unwrap();
    let body = Reader::whole(&bytes_of(&raw), LIMITS);
    let head = Head::parse(head.as_bytes()).unwrap();
    let envelope = Envelope {
        sender: None,
        recipients: Vec::new(),
        queue_id: Some("4bQ".to_owned()),
        client: None,
        is_local: false,
        is_plain: true,
        helo: None,
        login: None,
        intake: Intake::Milter,
    };
    Parcel::build(targets.iter().map(|target| parties(target)).collect(), &envelope, &head, body, raw, noon())
}

fn parties(target: &str) -> Parties {
    let (tenant, project) = target.split_once('/').unwrap_or((target, ""));
    Parties {
        tenant: TenantRef { id: tenant.to_owned(), prefix: format!("{tenant}-inbox") },
        activity_type: "Email".to_owned(),
        owner: Owner { user_id: "u".to_owned(), address: "a@x.test".to_owned(), name: None },
        participants: Arc::default(),
        people_omitted: 0,
        automatic: None,
        sender_authenticated: None,
        customer: None,
        project: (!project.is_empty())
            .then(|| ProjectRef { id: project.to_owned(), number: project.to_owned() }),
    }
}

/// All bytes of a message.
pub fn bytes_of(raw: &Raw) -> Vec<u8> {
    let mut bytes = Vec::new();
    raw.reader(0..raw.len()).read_to_end(&mut bytes).unwrap();
    bytes
}
