//! The table of replies (DESIGN section 6): every reason has its code, its enhanced status code and its text here,
//! and nowhere else.
//!
//! Promise: a [`Reply`] is always valid `ddd d.d.d text` in printable ASCII, ends in its reason code, and echoes of
//! the message nothing but the integration address, escaped. (A malformed reply would become Postfix's own 451 4.3.5.)

use crate::mail::Address;
use icu_normalizer::DecomposingNormalizerBorrowed;
use std::{collections::BTreeMap, fmt};

/// Longest text of one reply line, in bytes: with codes below the 512 of RFC 5321, section 4.5.3.1.5.
pub const MAX_TEXT_BYTES: usize = 400;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $major:literal . $minor:literal . $detail:literal, $slug:literal, $text:literal;)*) => {
        /// Why a message or a recipient is refused or deferred.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All reasons, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason code: end of every text, log field, heading of the manual.
            pub fn as_str(self) -> &'static str { match self { $(Self::$name => $slug,)* } }

            /// SMTP reply code (RFC 5321, section 4.2).
            pub fn code(self) -> u16 { match self { $(Self::$name => $code,)* } }

            /// Enhanced status code (RFC 3463).
            pub fn status(self) -> &'static str {
                match self { $(Self::$name => concat!($major, ".", $minor, ".", $detail),)* }
            }

            /// The text, unless the configuration replaces it; `{address}` becomes the integration address.
            pub fn default_text(self) -> &'static str { match self { $(Self::$name => $text,)* } }
        }
    };
}

reasons! {
    /// RCPT: no prefix of the local part is a tenant.
    NoSuchTenant = 550, 5 . 1 . 1, "no-such-tenant",
        "<{address}>: no company uses this integration address. Check the spelling";
    /// RCPT: the local part has an empty label.
    BadAddress = 550, 5 . 1 . 3, "bad-address",
        "<{address}>: this cannot be an integration address. Write company@ or project.company@";
    /// RCPT: the tenant is switched off.
    TenantInactive = 550, 5 . 2 . 1, "tenant-inactive",
        "<{address}>: this integration address is switched off. Ask the company's administrator";
    /// RCPT: the tenant has no project of that number.
    UnknownProject = 550, 5 . 1 . 1, "unknown-project",
        "<{address}>: the company has no project or sales case of this number. Check the number";
    /// LMTP RCPT: an address outside the integration domains, which nobody here can deliver to.
    NotIntegrationAddress = 451, 4 . 3 . 5, "not-an-integration-address",
        "<{address}>: Postfix delivers this address to activity-milter, but its domain is not in integration_domains";
    /// RCPT: an administrator has pulled a lever (`[emergency]`).
    Emergency = 451, 4 . 3 . 2, "emergency",
        "<{address}>: the service takes no messages at the moment. The message will be tried again";
    /// RCPT: an administrator has blocked the sender, the client or the tenant.
    Blocked = 550, 5 . 7 . 1, "blocked",
        "<{address}>: the service does not take this message. Ask the company's administrator";
    /// RCPT: the SMTP client has sent more than `limits.per_client`.
    ClientLimit = 451, 4 . 7 . 1, "client-limit",
        "<{address}>: too many messages have come from your mail server lately. The message will be tried again";
    /// RCPT: the envelope sender has sent more than `limits.per_sender`.
    SenderLimit = 451, 4 . 7 . 1, "sender-limit",
        "<{address}>: too many messages have come from this sender lately. The message will be tried again";
    /// RCPT: the tenant has got more than `limits.per_tenant`.
    TenantLimit = 450, 4 . 2 . 1, "tenant-limit",
        "<{address}>: too many messages have come for this company lately. The message will be tried again";
    /// RCPT: more integration recipients than one message may have.
    TooManyRecipients = 452, 4 . 5 . 3, "too-many-recipients",
        "<{address}>: too many integration addresses in one message. Send to the others separately";
    /// RCPT, end of header: the directory cannot answer now.
    DirectoryUnavailable = 451, 4 . 4 . 3, "directory-unavailable",
        "<{address}>: the directory of users cannot be reached now. The message will be tried again";
    /// End of header: there is no Subject, or it decodes to nothing visible.
    NoSubject = 550, 5 . 6 . 0, "no-subject",
        "<{address}>: a message to this address needs a subject. Add a subject and send again";
    /// End of header: neither the sender nor a recipient is a user.
    NoUser = 550, 5 . 7 . 1, "no-user",
        "<{address}>: neither the sender nor any recipient is a user of this company's system. Send from a registered address";
    /// End of header: no person wrote it, and the policy refuses this kind.
    Automatic = 550, 5 . 7 . 1, "automatic",
        "<{address}>: this address takes no automatic messages of this kind";
    /// End of header: who is named as sender is a user, and nothing proves that it is him.
    NotAuthenticated = 550, 5 . 7 . 26, "not-authenticated",
        "<{address}>: the sender is a user of this company's system, and nothing proves that it was he who sent the message. Log in to your mail server to send, or ask its administrator";
    /// End of header, end of message: the same, and a name server that may prove it does not answer now.
    SenderUnverified = 451, 4 . 4 . 3, "sender-unverified",
        "<{address}>: the sender is a user of this company's system, and a name server that may prove that it was he does not answer now. The message will be tried again";
    /// End of header: it names somebody of `never_log`.
    NeverLog = 550, 5 . 7 . 1, "never-log",
        "<{address}>: the company does not record messages like this one. Send it without this address";
    /// End of header: all people are users, and the policy skips such mail.
    Internal = 550, 5 . 7 . 1, "internal",
        "<{address}>: the company does not record messages among its own people. Send it without this address";
    /// End of header: several From fields.
    AmbiguousFrom = 550, 5 . 6 . 0, "ambiguous-from",
        "<{address}>: the From field of the message can be read in several ways, or is there several times, so its sender is not clear";
    /// End of header: not one field can be read, or the head is too large.
    UnreadableHead = 550, 5 . 6 . 0, "unreadable-head",
        "<{address}>: the header of the message cannot be read";
    /// LMTP, after the final dot: a CR or LF that is not part of a line end.
    BareLineEnd = 550, 5 . 6 . 0, "bare-line-end",
        "<{address}>: the message has a bare CR or LF, and lines must end in CRLF (RFC 5321, section 2.3.8)";
    /// Body: larger than `message.max_size`.
    TooLarge = 552, 5 . 3 . 4, "too-large",
        "<{address}>: the message is larger than this address accepts. Send smaller attachments";
    /// End of message: the queue holds `queue.max_items`.
    QueueFull = 452, 4 . 3 . 1, "queue-full",
        "<{address}>: too many activities are waiting. The message will be tried again";
    /// End of message: spool or queue cannot be written.
    StorageFailing = 452, 4 . 3 . 1, "storage-failing",
        "<{address}>: the message cannot be stored now. It will be tried again";
    /// End of message: the queue's database does not answer, or what it commits is not as safe as it should be.
    QueueUnavailable = 451, 4 . 3 . 0, "queue-unavailable",
        "<{address}>: the message cannot be recorded now. It will be tried again";
    /// End of message, direct mode: the backend refuses the activity.
    BackendRefused = 550, 5 . 6 . 0, "backend-refused",
        "<{address}>: the company's system refuses the message: {detail}";
    /// End of message, direct mode: the backend does not answer, or cannot take it now.
    BackendUnreachable = 451, 4 . 4 . 1, "backend-unreachable",
        "<{address}>: the company's system cannot be reached now. The message will be tried again";
    /// End of message, direct mode: the backend has too much to do.
    BackendBusy = 451, 4 . 3 . 2, "backend-busy",
        "<{address}>: the company's system has too much to do. The message will be tried again";
    /// End of message, direct mode: the backend does not accept us, or is not where we look for it.
    BackendMisconfigured = 451, 4 . 3 . 5, "backend-misconfigured",
        "<{address}>: the service is not set up correctly. The message will be tried again";
    /// Too many message bytes in flight.
    Busy = 451, 4 . 3 . 2, "busy",
        "<{address}>: too many messages are being received. The message will be tried again";
    /// LMTP RCPT: the service, or the tenant, is in shadow mode and records nothing.
    ShadowMode = 451, 4 . 3 . 2, "shadow-mode",
        "<{address}>: the service is being tried out and records nothing. The message will be tried again";
    /// The service is stopping.
    ShuttingDown = 451, 4 . 3 . 2, "shutting-down",
        "<{address}>: the service is restarting. The message will be tried again";
    /// A stage took longer than it may.
    DeadlineExceeded = 451, 4 . 3 . 0, "deadline-exceeded",
        "<{address}>: the service did not answer in time. The message will be tried again";
    /// A fault of ours.
    InternalError = 451, 4 . 3 . 0, "internal-error",
        "<{address}>: internal error. The message will be tried again";
}

impl Reason {
    /// True where a message is refused for lack of what the milter may have seen (a login): the same e-mail may be known by
    /// its key, and then another copy of it is not refused.
    pub fn may_be_known(self) -> bool {
        matches!(self, Self::NoUser | Self::NotAuthenticated | Self::SenderUnverified)
    }

    /// True for what log and trace hold no address of.
    pub fn is_private(self) -> bool {
        matches!(self, Self::NeverLog | Self::Internal)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the SMTP client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// SMTP reply code, 4xx or 5xx.
    pub code: u16,
    /// Enhanced status code of the same class.
    pub status: &'static str,
    /// Text lines: printable ASCII, none longer than [`MAX_TEXT_BYTES`]; the last one is the help, if there is one.
    pub lines: Vec<String>,
    /// Why.
    pub reason: Reason,
}

impl Reply {
    /// True if the client keeps the message and tries again.
    pub fn is_deferral(&self) -> bool {
        self.code < 500
    }
}

impl fmt::Display for Reply {
    /// As the client sees it, several lines joined by a line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.lines.iter().enumerate() {
            let (separator, end) = if i + 1 < self.lines.len() { ('-', "\n") } else { (' ', "") };
            write!(f, "{}{separator}{} {line}{end}", self.code, self.status)?;
        }
        Ok(())
    }
}

/// The texts of replies: the table's own, or the configuration's.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    replaced: BTreeMap<Reason, String>,
    help: Option<String>,
}

impl Texts {
    /// Replaces texts and sets the help line; see [`check_text`] for what is allowed.
    pub fn new(replaced: BTreeMap<Reason, String>, help: Option<String>) -> Self {
        Self { replaced, help }
    }

    /// The reply for a reason, about an integration address where one is known.
    pub fn reply(&self, reason: Reason, address: Option<&Address>) -> Reply {
        self.reply_with(reason, address, "")
    }

    /// The reply, with a note of ours behind its text.
    pub fn reply_noting(&self, reason: Reason, address: Option<&Address>, note: &str) -> Reply {
        let mut reply = self.reply(reason, address);
        let tail = format!(" [{reason}]");
        if !note.is_empty()
            && let Some(line) = reply.lines.first_mut()
            && let Some(text) = line.strip_suffix(&tail)
        {
            let mut text = format!("{text} ({})", printable(note));
            text.truncate(MAX_TEXT_BYTES - tail.len());
            *line = text + &tail;
        }
        reply
    }

    /// The reply, with what somebody else said: made printable ASCII, accents dropped, at most 200 characters.
    pub fn reply_with(&self, reason: Reason, address: Option<&Address>, detail: &str) -> Reply {
        let template = self.replaced.get(&reason).map_or(reason.default_text(), String::as_str);
        let text = match address {
            Some(address) => template.replace("{address}", &escaped(&address.to_string())),
            None => template.replace("<{address}>: ", "").replace("{address}", "this address"),
        };
        let detail = if detail.trim().is_empty() { "it gives no reason" } else { detail };
        let mut line = printable(&text.replace("{detail}", &unaccented(detail)));
        let tail = format!(" [{reason}]");
        line.truncate(MAX_TEXT_BYTES - tail.len());
        line.push_str(&tail);
        let lines = std::iter::once(line).chain(self.help.as_deref().map(printable)).collect();
        Reply { code: reason.code(), status: reason.status(), lines, reason }
    }
}

/// Checks a text from the configuration; the error says what is wrong with it.
pub fn check_text(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("the text is empty: write one, or remove the key".to_owned());
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii() || c.is_ascii_control()) {
        let shown = if bad.is_control() { format!("U+{:04X}", u32::from(bad)) } else { bad.to_string() };
        return Err(format!("SMTP replies are printable ASCII, and this text has '{shown}': leave it out"));
    }
    if text.len() > MAX_TEXT_BYTES / 2 {
        return Err(format!(
            "the text is longer than {} characters: write a shorter one",
            MAX_TEXT_BYTES / 2
        ));
    }
    Ok(())
}

/// An address in printable ASCII, no longer than a reply can carry.
fn escaped(address: &str) -> String {
    let escaped: String = address
        .chars()
        .flat_map(|c| if c.is_ascii() { c.to_string() } else { c.escape_default().to_string() }.into_bytes())
        .map(char::from)
        .collect();
    if escaped.len() <= 128 { escaped } else { format!("{}...", &escaped[..125]) }
}

/// A text of the backend's in ASCII, as well as it goes, no longer than 200 characters.
fn unaccented(text: &str) -> String {
    let decomposed = DecomposingNormalizerBorrowed::new_nfkd().normalize(text);
    let is_mark = |c: &char| ('\u{300}'..='\u{36f}').contains(c);
    decomposed.chars().filter(|c| !is_mark(c)).take(200).collect()
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_is_valid_and_ends_in_its_reason() {
        let long = format!("{}@severamail.test", "å".repeat(100));
        for &reason in Reason::ALL {
            for address in ["mycompany@severamail.test", "\"a\\\"b c\"@x.test", &long] {
                let texts = Texts::new(BTreeMap::new(), Some("https://help.example.com/email".to_owned()));
                let reply = texts.reply(reason, Some(&Address::parse(address).unwrap()));
                assert_eq!(reply.lines.len(), 2);
                for line in &reply.lines {
                    assert!(line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{line}");
                    assert!(line.len() <= MAX_TEXT_BYTES);
                }
                assert!(reply.lines[0].ends_with(&format!("[{reason}]")));
                assert_eq!(reply.status.as_bytes()[0], b'0' + u8::try_from(reply.code / 100).unwrap());
                assert_eq!(reply.is_deferral(), reply.code < 500);
            }
            assert!(!Texts::default().reply(reason, None).lines[0].contains('{'));
        }
    }

    #[test]
    fn what_the_backend_says_is_made_fit_for_smtp() {
        let texts = Texts::default();
        let reply = texts.reply_with(
            Reason::BackendRefused,
            None,
            "Projektia ei l\u{f6}ydy\r\n250 ok {address} \u{20ac}",
        );
        assert_eq!(
            reply.to_string(),
            "550 5.6.0 the company's system refuses the message: Projektia ei loydy??250 ok {address} ? [backend-refused]"
        );
        let reply = texts.reply_with(Reason::BackendRefused, None, &"x".repeat(999));
        assert!(reply.lines[0].len() < 300 && reply.lines[0].ends_with("x [backend-refused]"));
        assert!(texts.reply(Reason::BackendRefused, None).lines[0].contains("it gives no reason"));
    }

    #[test]
    fn texts_can_be_replaced() {
        let texts = Texts::new([(Reason::NoSubject, "Betreff fehlt ({address})".to_owned())].into(), None);
        let reply = texts.reply(Reason::NoSubject, Some(&Address::parse("a@x.test").unwrap()));
        assert_eq!(reply.to_string(), "550 5.6.0 Betreff fehlt (a@x.test) [no-subject]");
        assert!(check_text("ok 100%").is_ok());
        for bad in ["", " ", "ä", "a\r\nb", &"x".repeat(201)] {
            assert!(check_text(bad).is_err(), "{bad:?}");
        }
    }
}
