//! What the parts are measured with: one e-mail of 4 KB, and one of 1 MB with a file.

use activity_milter::{
    activity::{Parcel, Parties, Raw},
    directory::{Directory, FileDirectory},
    mail::{Address, Domain, Envelope, Head, Intake, LIMITS, Reader, Recipient},
    rules::{
        Addressing, Case, Correspondents, Evidence, Mixed, Party, Person, Target, TenantPolicy, Texts,
        Verdict, correspondents, decide,
    },
};
use base64::Engine;
use std::{fs, time::SystemTime};

const DIRECTORY: &str = r#"
    [[tenant]]
    prefix = "mycompany"
    id = "t-1"
    name = "My Company Oy"
    [[tenant.user]]
    id = "u-anna"
    name = "Anna Aalto"
    addresses = ["anna@mycompany.test"]
    [[tenant.customer]]
    id = "c-acme"
    name = "Acme AB"
    [[tenant.customer.contact]]
    id = "k-bo"
    name = "Bo Berg"
    addresses = ["bo@acme.test"]
    [[tenant.project]]
    id = "p-1001"
    number = "1001"
    name = "Roll-out"
    customer = "c-acme"
"#;

/// A directory file with one tenant.
pub fn directory() -> FileDirectory {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), DIRECTORY).unwrap();
    FileDirectory::open(file.path()).unwrap()
}

/// The integration domain is `severamail.test`.
pub fn addressing() -> Addressing {
    Addressing {
        domains: vec![Domain::parse("severamail.test").unwrap()],
        recipient_delimiter: String::new(),
    }
}

/// A head as clients and relays make them; each number is another e-mail.
pub fn head(number: u64, content_type: &str) -> Vec<u8> {
    format!(
        "Received: from client.test (localhost [127.0.0.1])\r\n\tby mx.test (Postfix) with ESMTP id 4Xy\r\n\t\
         for <x>; Tue, 24 Nov 2026 12:00:00 +0000 (UTC)\r\nFrom: Anna Aalto <anna@mycompany.test>\r\n\
         To: =?utf-8?q?Bo_Bj=C3=B6rn?= <bo@acme.test>, \"Berg, Carl\" <carl@else.test>\r\nCc: dora@else.test\r\n\
         Subject: =?utf-8?b?VGFyam91cw==?= number {number}\r\nDate: Tue, 24 Nov 2026 12:00:00 +0000\r\n\
         Message-ID: <{number}@mycompany.test>\r\nReferences: <a@x.test> <b@x.test>\r\nMIME-Version: 1.0\r\n\
         Content-Type: {content_type}\r\n"
    )
    .into_bytes()
}

/// A message of text, 4 KB.
pub fn small(number: u64) -> Vec<u8> {
    let line = b"A line of text as people write them, some seventy characters long.\r\n";
    let mut raw = head(number, "text/plain; charset=utf-8");
    raw.extend_from_slice(b"\r\n");
    raw.extend(line.iter().copied().cycle().take(4096));
    raw
}

/// A message with a file in base64, 1 MB.
pub fn large(number: u64) -> Vec<u8> {
    let mut raw = head(number, "multipart/mixed; boundary=b");
    raw.extend_from_slice(
        b"\r\n--b\r\nContent-Type: text/plain\r\n\r\nsee the file\r\n--b\r\nContent-Type: application/pdf\r\n\
          Content-Disposition: attachment; filename=offer.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n",
    );
    let file: Vec<u8> = (0..730_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let text = base64::engine::general_purpose::STANDARD.encode(file);
    for line in text.as_bytes().chunks(76) {
        raw.extend_from_slice(line);
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"--b--\r\n");
    raw
}

/// Everything a decision needs, and what an activity is built from.
pub struct Mail {
    pub head: Head,
    pub envelope: Envelope,
    pub targets: Vec<Target>,
    pub people: Vec<Person>,
    pub correspondents: Correspondents,
    pub texts: Texts,
    pub raw: Raw,
}

impl Mail {
    pub fn new(raw: Vec<u8>) -> Self {
        let end = raw.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 2;
        let head = Head::parse(&raw[..end]).unwrap();
        let address = Address::parse("1001.mycompany@severamail.test").unwrap();
        let envelope = Envelope {
            sender: Address::parse("anna@mycompany.test").ok(),
            recipients: vec![Recipient {
                raw: c"<1001.mycompany@severamail.test>".to_owned(),
                address: address.clone(),
                tenant: Some("t-1".to_owned()),
            }],
            queue_id: Some("4XyQID".to_owned()),
            client: Some("192.0.2.7".to_owned()),
            is_local: false,
            is_plain: true,
            helo: None,
            login: None,
            intake: Intake::Milter,
        };
        let correspondents = correspondents(&head, &envelope, &addressing(), 1000);
        let addresses: Vec<Address> = correspondents.people.iter().map(|c| c.address.clone()).collect();
        let directory = directory();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (target, people) = runtime.block_on(async {
            let tenant = directory.tenant("mycompany").await.unwrap().unwrap();
            let people = directory.people(&tenant, &addresses).await.unwrap().persons;
            let project = directory.project(&tenant, "1001", &[]).await.unwrap();
            (Target { tenant, project, address }, people)
        });
        Self {
            head,
            envelope,
            targets: vec![target],
            people,
            correspondents,
            texts: Texts::default(),
            raw: raw.into(),
        }
    }

    /// The rules' verdict.
    pub fn decide(&self) -> Verdict {
        decide(&Case {
            policy: &TenantPolicy::default(),
            automatic: None,
            evidence: &Evidence::default(),
            head: &self.head,
            correspondents: &self.correspondents,
            parties: &[Party { targets: &self.targets, people: &self.people, is_private: false }],
            other_recipients: false,
            mixed: Mixed::Reject,
            texts: &self.texts,
        })
    }

    /// Who takes part, by the rules.
    pub fn parties(&self) -> Vec<Parties> {
        match self.decide() {
            Verdict::Record { records, .. } => records.into_iter().map(|record| record.parties).collect(),
            Verdict::Refuse { reply, .. } => panic!("refused: {reply:?}"),
        }
    }

    /// The activities.
    pub fn build(&self, parties: Vec<Parties>) -> Parcel {
        let Raw::Memory(bytes) = &self.raw else { panic!("the message is in memory") };
        let body = Reader::whole(bytes, LIMITS);
        Parcel::build(parties, &self.envelope, &self.head, body, self.raw.clone(), SystemTime::UNIX_EPOCH)
    }
}
