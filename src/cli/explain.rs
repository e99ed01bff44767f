//! `explain`: what would happen to a message, and why. It drives the very session the milter drives; only the last
//! step, the queue, is left out.

use super::{
    Failure, other,
    out::{say, say_json},
};
use crate::activity::Activity;
use crate::config::Config;
use crate::intake::{Client, Interest, Policy, Service, Session, Shadow, Then};
use crate::mail::{Address, AddressError, Automatic, Budget, Head, Intake, ReadPart, fields, header_end};
use crate::rules::{Part, Reply, Said};
use crate::source::unreadable;
use crate::verify;
use clap::Args as ClapArgs;
use serde::Serialize;
use std::{
    ffi::CString,
    fmt::Write as _,
    io::{self, Read},
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

/// What Postfix shows of a field to a milter, in bytes.
const MAX_FIELD_BYTES: usize = 60_000;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The message, with its header; - for standard input
    #[arg(value_name = "MESSAGE.eml")]
    message: PathBuf,
    /// The envelope sender, empty for the null sender; default: the message's own From
    #[arg(long, value_name = "ADDRESS")]
    sender: Option<String>,
    /// An envelope recipient; give one for each
    #[arg(long = "recipient", value_name = "ADDRESS", required = true)]
    recipients: Vec<String>,
    /// The IP address of the SMTP client, for `sender.trusted_networks`, `emergency.block.networks` and own SPF
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// The SASL login of the SMTP client
    #[arg(long, value_name = "NAME")]
    login: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came out, in the words of the log.
#[derive(Debug, Default, Serialize)]
struct Explanation {
    /// `record`, `reject`, `defer`, `strip`, `discard` or `pass`.
    verdict: &'static str,
    recipients: Vec<RecipientWord>,
    /// The reply to the message, if it is refused.
    reply: Option<ReplyWord>,
    /// What kind of automatic mail it is, if no person wrote it.
    automatic: Option<&'static str>,
    /// For whom nothing becomes of it, and why.
    discarded: Vec<DiscardWord>,
    activities: Vec<Explained>,
    /// How many more people the message names than were looked up.
    people_omitted: usize,
    /// Elements of address fields that are no address.
    addresses_skipped: usize,
    /// Address fields that Postfix cuts for milters.
    fields_cut: usize,
    /// Where each part of the message went.
    parts: Vec<PartWord>,
    /// How much is taken from whom, if that is limited. It is not counted here.
    limits: Option<String>,
    /// What Postfix is told to do with the message.
    postfix: Option<String>,
}

#[derive(Debug, Serialize)]
struct RecipientWord {
    address: String,
    /// `target`, `other` or `refused`.
    outcome: &'static str,
    tenant: Option<String>,
    project: Option<String>,
    reply: Option<ReplyWord>,
    /// What counts for the tenant, and whose word it is.
    policy: Vec<Said>,
}

#[derive(Debug, Serialize)]
struct ReplyWord {
    code: u16,
    status: &'static str,
    reason: &'static str,
    text: String,
}

/// Nothing becomes of the message for a recipient, and nobody is told.
#[derive(Debug, Serialize)]
struct DiscardWord {
    recipient: String,
    tenant: String,
    reason: &'static str,
}

/// Where one part of the message went.
#[derive(Debug, Serialize)]
struct PartWord {
    section: String,
    content_type: String,
    encoding: &'static str,
    size: u64,
    /// `text`, `html`, `file-1`, …
    went: Vec<String>,
}

impl From<&ReadPart> for PartWord {
    fn from(part: &ReadPart) -> Self {
        let place = part.place;
        let mut went = Vec::new();
        if place.text {
            went.push("text".to_owned());
        }
        if place.html {
            went.push("html".to_owned());
        }
        went.extend(place.file.map(|file| format!("file-{}", file + 1)));
        Self {
            section: part.section.clone(),
            content_type: part.content_type.clone(),
            encoding: part.encoding.as_str(),
            size: part.size,
            went,
        }
    }
}

#[derive(Debug, Serialize)]
struct Explained {
    people: Arc<[Part]>,
    activity: Activity,
}

impl From<&Reply> for ReplyWord {
    fn from(reply: &Reply) -> Self {
        let (status, reason) = (reply.status, reply.reason.as_str());
        Self { code: reply.code, status, reason, text: reply.lines.join("\n") }
    }
}

/// That something can be in an envelope. Local parts that are odd pass: what becomes of them the service says.
fn check_address(option: &str, text: &str) -> Result<(), Failure> {
    let inner = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
    let why = match Address::parse(inner) {
        Ok(_) => return Ok(()),
        Err(_) if is_complete_alone(option, inner) => return Ok(()),
        Err(AddressError::BadLocalPart) if inner.matches('@').count() > 1 && inner.contains(',') => {
            format!("these are several: give {option} for each")
        }
        Err(AddressError::BadLocalPart) if !inner.contains([' ', ',', '<']) => return Ok(()),
        Err(error) => error.to_string(),
    };
    let message = format!("{option}: \"{text}\" is no address: {why}: write one like anna@example.com");
    Err(Failure::CommandLine(message))
}

/// True for a name without a domain that an envelope may have: postmaster for all (RFC 5321, section 4.1.1.3), and as a
/// sender whatever sendmail(1) is called with, which completes it.
fn is_complete_alone(option: &str, name: &str) -> bool {
    name.eq_ignore_ascii_case("postmaster")
        || option == "--sender"
            && !name.contains('@')
            && Address::parse(&format!("{name}@example.com")).is_ok()
}

pub(super) async fn explain(config: Config, args: &Args) -> Result<ExitCode, Failure> {
    if let Some(sender) = args.sender.as_deref().filter(|sender| !matches!(*sender, "" | "<>")) {
        check_address("--sender", sender)?;
    }
    for recipient in &args.recipients {
        check_address("--recipient", recipient)?;
    }
    let message = read(&args.message)
        .map_err(|error| other(format!("{} {}", args.message.display(), unreadable(&error))))?;
    let directory = config.outside.open_directory()?;
    // Large messages go where any temporary file goes: explain must work without the rights of the service.
    let spool = std::env::temp_dir();
    let budget = Budget::new(config.memory_limit);
    // What the rules say, also of mail that shadow mode would let pass.
    let policy = Policy { shadow: Shadow::Nobody, ..config.policy.clone() };
    let verifier = verify::start(config.verify.as_ref()).map_err(other)?;
    let service = Service::new(config.addressing, policy, config.texts, directory, budget, spool);
    let service = service.verifying(verifier);
    let mut session = Session::new(service.into());
    let explanation = run(&mut session, args, &message).await;
    if args.json {
        say_json(&explanation)?;
    } else {
        say(&text(&explanation).map_err(other)?)?;
    }
    Ok(ExitCode::from(u8::from(matches!(explanation.verdict, "reject" | "defer"))))
}

fn read(path: &std::path::Path) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    if path.as_os_str() == "-" {
        io::stdin().read_to_end(&mut message)?;
    } else {
        message = std::fs::read(path)?;
    }
    Ok(message)
}

/// The first address of From: most mail has it as envelope sender.
fn from(message: &[u8]) -> String {
    let crlf = with_crlf(message);
    let head = Head::parse(&crlf[..header_end(&crlf).0]).unwrap_or_default();
    head.from.first().map(|mailbox| mailbox.address.to_string()).unwrap_or_default()
}

/// Line ends become CRLF, as SMTP has them.
fn with_crlf(message: &[u8]) -> Vec<u8> {
    let mut crlf = Vec::with_capacity(message.len() + message.len() / 40);
    for line in message.split_inclusive(|&b| b == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(line) => {
                crlf.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
                crlf.extend_from_slice(b"\r\n");
            }
            None => crlf.extend_from_slice(line),
        }
    }
    crlf
}

/// A field as Postfix shows it to a milter: not more than 60,000 bytes of it, `Name: ` included, folds as LF.
fn shown_to_milter(name: &[u8], value: &[u8]) -> Vec<u8> {
    let value = value.strip_suffix(b"\r\n").unwrap_or(value);
    let mut shown: Vec<u8> = value.iter().copied().filter(|&b| b != b'\r').collect();
    shown.truncate(MAX_FIELD_BYTES - name.len().min(MAX_FIELD_BYTES) - 1);
    shown
}

async fn run(session: &mut Session, args: &Args, message: &[u8]) -> Explanation {
    let limits = session.service().policy.limits.said();
    let mut explanation = Explanation { limits, ..Explanation::default() };
    let sender = args.sender.clone().unwrap_or_else(|| from(message));
    session.mail(sender.as_bytes(), Intake::Explain);
    for address in &args.recipients {
        let before = session.targets().count();
        let path = CString::new(address.as_bytes()).unwrap_or_default();
        let client = || Client {
            address: args.client.map(|client| client.to_string()),
            is_local: false,
            helo: None,
            login: args.login.clone(),
        };
        let answer = session.rcpt(&path, client).await;
        let default = &session.service().policy.tenants;
        let target = session.targets().nth(before);
        explanation.recipients.push(RecipientWord {
            address: address.clone(),
            outcome: match (&answer, target) {
                (Err(_), _) => "refused",
                (_, Some(_)) => "target",
                _ => "other",
            },
            tenant: target.map(|t| t.tenant.id.clone()),
            project: target.and_then(|t| t.project.as_ref()).map(|p| p.number.clone()),
            reply: answer.as_ref().err().map(ReplyWord::from),
            policy: target.map(|t| t.tenant.policy.said(default)).unwrap_or_default(),
        });
    }
    if explanation.recipients.iter().all(|recipient| recipient.outcome == "refused") {
        // What is refused for now is tried again, and so may be the message.
        let deferred = |recipient: &RecipientWord| recipient.reply.as_ref().is_some_and(|r| r.code < 500);
        let any = explanation.recipients.iter().any(deferred);
        explanation.verdict = if any { "defer" } else { "reject" };
        return explanation;
    }
    match explain_message(session, &mut explanation, message).await {
        Ok(then) => explanation.conclude(&then),
        Err(reply) => explanation.refuse(&reply),
    }
    explanation
}

/// What becomes of the message itself.
async fn explain_message(
    session: &mut Session,
    explanation: &mut Explanation,
    message: &[u8],
) -> Result<Then, Reply> {
    if session.data()? == Interest::Nothing {
        return Ok(Then::Pass);
    }
    let crlf = with_crlf(message);
    let (head, body) = header_end(&crlf);
    let (head, body) = (&crlf[..head], &crlf[body..]);
    for (name, value) in fields(head) {
        session.header(name, &shown_to_milter(name, value))?;
    }
    let interest = session.end_of_header().await;
    explanation.automatic = session.automatic().map(Automatic::as_str);
    if interest? == Interest::Nothing {
        return Ok(Then::Pass);
    }
    for piece in body.chunks(64 * 1024) {
        session.body(piece).await;
    }
    session.end_of_body().await?;
    let why = session.discards();
    let discarded = session.targets().zip(why).filter_map(|(target, why)| {
        let (recipient, tenant) = (target.address.to_string(), target.tenant.id.clone());
        Some(DiscardWord { recipient, tenant, reason: why?.as_str() })
    });
    explanation.discarded = discarded.collect();
    let people: Vec<_> = session.records().iter().map(|record| Arc::clone(&record.people)).collect();
    if let Some(left_out) = session.left_out() {
        explanation.people_omitted = left_out.omitted;
        explanation.addresses_skipped = left_out.skipped;
        explanation.fields_cut = left_out.cut_fields;
    }
    let end = session.end().await?;
    explanation.parts = session.parts().iter().map(PartWord::from).collect();
    if let Some(pending) = end.pending {
        let explained = people.into_iter().zip(pending.parcel.activities);
        explanation.activities = explained.map(|(people, activity)| Explained { people, activity }).collect();
    }
    Ok(end.then)
}

impl Explanation {
    fn refuse(&mut self, reply: &Reply) {
        self.reply = Some(reply.into());
        self.verdict = if reply.is_deferral() { "defer" } else { "reject" };
    }

    fn conclude(&mut self, then: &Then) {
        let is_discarded = !self.discarded.is_empty();
        let (verdict, postfix) = match then {
            Then::Pass => ("pass", "deliver the message to all recipients".to_owned()),
            Then::Discard => ("record", "discard the message".to_owned()),
            Then::DeliverWithout(gone) => {
                let gone: Vec<_> = gone.iter().map(|address| address.to_string_lossy()).collect();
                ("strip", format!("deliver the message to all recipients but {}", gone.join(", ")))
            }
        };
        self.verdict = match self.activities.is_empty() {
            true if is_discarded => "discard",
            true => verdict,
            false => "record",
        };
        self.postfix = Some(postfix);
    }
}

/// The explanation for people.
fn text(explanation: &Explanation) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    for recipient in &explanation.recipients {
        write!(out, "recipient {}: ", recipient.address)?;
        match (&recipient.reply, &recipient.tenant, &recipient.project) {
            (Some(reply), ..) => {
                writeln!(out, "refused with {} {} {}", reply.code, reply.status, reply.text)?
            }
            (None, Some(tenant), Some(project)) => writeln!(out, "tenant {tenant}, project {project}")?,
            (None, Some(tenant), None) => writeln!(out, "tenant {tenant}")?,
            (None, None, _) => writeln!(out, "no integration address")?,
        }
        for Said { key, value, by } in &recipient.policy {
            writeln!(out, "  policy: {key} = {value} ({})", by.as_str())?;
        }
    }
    writeln!(out, "verdict: {}", explanation.verdict)?;
    if let Some(reply) = &explanation.reply {
        writeln!(out, "reply: {} {} {}", reply.code, reply.status, reply.text)?;
    }
    if let Some(kind) = explanation.automatic {
        writeln!(out, "automatic mail: {kind}")?;
    }
    for DiscardWord { recipient, tenant, reason } in &explanation.discarded {
        writeln!(out, "discarded for {recipient} (tenant {tenant}): {reason}")?;
    }
    if explanation.addresses_skipped > 0 {
        writeln!(out, "address fields: {} elements are no address", explanation.addresses_skipped)?;
    }
    if explanation.fields_cut > 0 {
        writeln!(
            out,
            "address fields: {} are cut by Postfix, without their last element",
            explanation.fields_cut
        )?;
    }
    if !explanation.parts.is_empty() {
        writeln!(out, "parts:")?;
    }
    for part in &explanation.parts {
        let PartWord { section, content_type, encoding, size, went } = part;
        let went = if went.is_empty() { "nowhere".to_owned() } else { went.join(", ") };
        writeln!(out, "  {section:<9} {content_type}, {size} bytes, encoding {encoding}: {went}")?;
    }
    for explained in &explanation.activities {
        writeln!(out, "people:")?;
        for part in explained.people.iter() {
            let field = part.field.as_str();
            writeln!(out, "  {:<9} {} ({field}): {}", part.role.as_str(), part.address, part.why)?;
        }
        if explanation.people_omitted > 0 {
            writeln!(out, "  … and {} more, who were not looked up", explanation.people_omitted)?;
        }
        let json = serde_json::to_string_pretty(&explained.activity).map_err(|_| std::fmt::Error)?;
        writeln!(out, "activity: {json}")?;
    }
    if let Some(limits) = &explanation.limits {
        writeln!(out, "limits: {limits}; the service counts, and this message is not counted here")?;
    }
    if let Some(postfix) = &explanation.postfix {
        writeln!(out, "Postfix is told to {postfix}")?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_envelope_may_have() {
        for (option, text, expected) in [
            ("--recipient", "postmaster", true),
            ("--recipient", "<Postmaster>", true),
            ("--recipient", "root", false),
            ("--recipient", "anna@mycompany.test", true),
            ("--sender", "root", true),
            ("--sender", "MAILER-DAEMON", true),
            ("--sender", "<root>", true),
            ("--sender", "anna berg", false),
            ("--sender", "anna@", false),
            ("--sender", "", false),
        ] {
            assert_eq!(check_address(option, text).is_ok(), expected, "{option} {text}");
        }
    }
}
