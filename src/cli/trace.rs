//! `trace`: what became of a mail. Works beside the service, and without it.

use super::{
    Failure, other,
    out::{say, tell},
};
use crate::config::Config;
use crate::observe::Addresses;
use crate::trace::{self, Event, Found, Mail, Query, SearchError, Term};
use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};
use std::{process::ExitCode, time::SystemTime};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Postfix's queue id, a key or its beginning (b3:…), a Message-ID, an address, or a line of a log with one of them
    #[arg(value_name = "QUEUEID|KEY|MESSAGE-ID|ADDRESS", required = true)]
    what: Vec<String>,
    /// Only mail of which something happened since: how long ago, like 2h or 3days, or a time (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = |text: &str| trace::since(text, SystemTime::now()))]
    since: Option<SystemTime>,
    /// Only what is found until then, as --since says it: the newest are shown, and this leads to those before
    #[arg(long, value_name = "TIME", value_parser = |text: &str| trace::since(text, SystemTime::now()))]
    until: Option<SystemTime>,
    /// Print JSON, an object a line for each thing that happened
    #[arg(long)]
    json: bool,
}

pub(super) async fn trace(config: &Config, args: Args) -> Result<ExitCode, Failure> {
    let term = term(&args.what)?;
    if args.since.zip(args.until).is_some_and(|(since, until)| until < since) {
        return Err(Failure::CommandLine(
            "--until is before --since: nothing happened between them".to_owned(),
        ));
    }
    let query = Query { term, since: args.since, until: args.until };
    let (path, asked) = (config.trace.path.clone(), query.clone());
    let found = tokio::task::spawn_blocking(move || trace::search(&path, &asked)).await.map_err(other)?;
    let off = config.trace.keep.is_none();
    let found = match found {
        Err(SearchError::Missing(_)) if off => {
            return Err(other("nothing is traced, because trace.keep is \"0\""));
        }
        found => found.map_err(other)?,
    };
    if found.mails.is_empty() {
        let is_whole = config.log.addresses == Addresses::Full;
        let off = if off { ". Nothing is traced any more, because trace.keep is \"0\"" } else { "" };
        // Who took a mail and who delivered it may be two machines.
        let elsewhere = match config.queue.server {
            Some(_) => {
                ". Each machine has a trace of its own: ask at those that take mail, and at those that deliver"
            }
            None => "",
        };
        tell(&format!("{}{off}{elsewhere}", trace::not_found(&config.trace, &query, &found, is_whole)));
        return Ok(ExitCode::from(1));
    }
    say(&if args.json { lines_of_json(&found.mails) } else { text(&found) })?;
    match found.older {
        Some(older) => {
            let older = humantime::format_rfc3339_millis(older);
            tell(&format!("the newest are shown; those before: --until {older}"));
        }
        None if found.more => {
            tell("there is more of these mails than is shown: a queue id or a key says which")
        }
        None => {}
    }
    if found.reach.lost > 0 {
        tell(&format!("the trace has gaps: {} records were lost", found.reach.lost));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is looked for: one thing. The words of a line of a log are about one too, and which it is is said.
fn term(words: &[String]) -> Result<Term, Failure> {
    let line = words.join(" ");
    let term = Term::read(&line).map_err(|error| Failure::CommandLine(error.to_string()))?;
    let each: Vec<Term> = words.iter().filter_map(|word| Term::read(word).ok()).collect();
    if words.len() > 1 && each.len() == words.len() && each.iter().any(|other| *other != term) {
        let message = format!("{} things are asked for: ask for one at a time", words.len());
        return Err(Failure::CommandLine(message));
    }
    if line.trim().contains(char::is_whitespace) {
        tell(&format!("this is about the {term}"));
    }
    Ok(term)
}

fn rfc3339(event: &Event) -> String {
    humantime::format_rfc3339_millis(event.at.time()).to_string()
}

/// A paragraph for each mail, the newest last, where the eye is.
fn text(found: &Found) -> String {
    let paragraphs: Vec<String> = found.mails.iter().rev().map(paragraph).collect();
    paragraphs.join("\n")
}

fn paragraph(mail: &Mail) -> String {
    let mut text = String::new();
    let mut say = |name: &str, values: Vec<&str>| {
        if !values.is_empty() {
            text += &format!("{name:<11} {}\n", values.join(", "));
        }
    };
    say("queue id", mail.all(|event| event.queue_id.as_deref()));
    say("came by", mail.all(|event| event.door.as_deref()));
    say("client", mail.all(|event| event.client.as_deref()));
    say("from", mail.all(|event| event.sender.as_deref()));
    say("to", mail.recipients());
    say("message-id", mail.all(|event| event.message_id.as_deref()));
    say("key", mail.all(|event| event.key.as_deref()));
    let width = mail.events.iter().map(|event| event.word().len()).max().unwrap_or_default();
    for event in &mail.events {
        let line = format!("  {}  {:<width$}  {}", rfc3339(event), event.word(), event.sentence());
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// `mail` says which belong together.
fn lines_of_json(mails: &[Mail]) -> String {
    let numbered = mails.iter().rev().enumerate();
    let lines = numbered.flat_map(|(at, mail)| mail.events.iter().map(move |event| as_json(at + 1, event)));
    lines.fold(String::new(), |text, line| text + &line.to_string() + "\n")
}

/// Only what is known.
fn as_json(mail: usize, event: &Event) -> Value {
    let all = json!({
        "mail": mail, "at": rfc3339(event), "what": event.what, "queue_id": event.queue_id, "key": event.key,
        "message_id": event.message_id, "sender": event.sender, "recipient": event.recipient,
        "others": (!event.others.is_empty()).then_some(&event.others), "tenant": event.tenant,
        "project": event.project, "door": event.door, "client": event.client, "stage": event.stage,
        "reply": event.code, "status": event.status, "reason": event.reason, "attempt": event.attempt,
        "span_ms": event.span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        "detail": event.detail,
    });
    let Value::Object(all) = all else { return all };
    Value::Object(all.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>())
}
