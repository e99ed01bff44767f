//! One thing that happened to a mail.

use std::time::{Duration, SystemTime};

/// Bytes of a text that are kept; an address has at most 320, a Message-ID 998 (RFC 5322, section 2.1.1).
const LONGEST: usize = 1000;

/// Recipients beside the integration address that are kept.
const MOST_OTHERS: usize = 50;

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum What {
    /// The client heard 5xx.
    #[default]
    Refused,
    /// The client heard 4xx.
    Deferred,
    /// A tenant's recipients were taken out of a mixed transaction.
    Stripped,
    /// Nothing becomes of a message that was taken.
    Discarded,
    /// An activity is on disk, or with the backend.
    Recorded,
    /// The same e-mail was recorded before.
    Known,
    /// Shadow mode: would be refused.
    WouldRefuse,
    /// Shadow mode: would be deferred.
    WouldDefer,
    /// Shadow mode: would be discarded.
    WouldDiscard,
    /// Shadow mode: would be recorded.
    WouldRecord,
    /// Something of ours failed.
    Fault,
    /// The backend has it.
    Delivered,
    /// An attempt failed, and there will be another.
    TriedInVain,
    /// Direct mode: an attempt failed, and the client will come again.
    NotDelivered,
    /// A person must look at it.
    Held,
    /// A person deleted it in the business system while it was being delivered.
    Gone,
    /// A person had it attempted again.
    RetriedByHand,
    /// A person held it.
    HeldByHand,
    /// A person dropped it.
    DroppedByHand,
    /// A person had it sent again after its delivery.
    RedeliveredByHand,
}

impl What {
    /// The word in the file, in JSON and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Deferred => "deferred",
            Self::Stripped => "stripped",
            Self::Discarded => "discarded",
            Self::Recorded => "recorded",
            Self::Known => "known",
            Self::WouldRefuse => "would_refuse",
            Self::WouldDefer => "would_defer",
            Self::WouldDiscard => "would_discard",
            Self::WouldRecord => "would_record",
            Self::Fault => "fault",
            Self::Delivered => "delivered",
            Self::TriedInVain => "tried_in_vain",
            Self::NotDelivered => "not_delivered",
            Self::Held => "held",
            Self::Gone => "gone",
            Self::RetriedByHand => "retried_by_hand",
            Self::HeldByHand => "held_by_hand",
            Self::DroppedByHand => "dropped_by_hand",
            Self::RedeliveredByHand => "redelivered_by_hand",
        }
    }

    /// What a person did, by the queue's word for it.
    pub fn by_hand(word: &str) -> Option<Self> {
        match word {
            "retried" => Some(Self::RetriedByHand),
            "held" => Some(Self::HeldByHand),
            "dropped" => Some(Self::DroppedByHand),
            "redelivered" => Some(Self::RedeliveredByHand),
            _ => None,
        }
    }
}

/// What is noted. Addresses are as they may be shown; what is not known, or empty, is none.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// What happened.
    pub what: What,
    /// When; none: now.
    pub at: Option<SystemTime>,
    /// The transaction, a number given once: RCPT has no queue id yet at the first recipient.
    pub transaction: Option<i64>,
    /// Postfix's queue id.
    pub queue_id: Option<String>,
    /// The activity's key: `b3:` and 64 hex digits.
    pub key: Option<String>,
    /// Message-ID without brackets.
    pub message_id: Option<String>,
    /// The envelope sender.
    pub sender: Option<String>,
    /// The integration address.
    pub recipient: Option<String>,
    /// Other recipients of the envelope.
    pub others: Vec<String>,
    /// The tenant's id.
    pub tenant: Option<String>,
    /// The project's number.
    pub project: Option<String>,
    /// `milter` or `lmtp`.
    pub door: Option<&'static str>,
    /// IP address of the SMTP client.
    pub client: Option<String>,
    /// Where it was refused.
    pub stage: Option<&'static str>,
    /// SMTP reply code.
    pub code: Option<u16>,
    /// Enhanced status code.
    pub status: Option<&'static str>,
    /// Reason code of a reply.
    pub reason: Option<&'static str>,
    /// Which attempt it was.
    pub attempt: Option<u32>,
    /// Duration of an attempt, or until the next one.
    pub span: Option<Duration>,
    /// What was said: by the backend, by an error.
    pub detail: Option<String>,
}

impl Record {
    /// Nothing empty, nothing longer than it may be.
    pub(super) fn tidy(mut self) -> Self {
        self.at.get_or_insert_with(SystemTime::now);
        let texts = [
            &mut self.queue_id,
            &mut self.key,
            &mut self.message_id,
            &mut self.sender,
            &mut self.recipient,
            &mut self.tenant,
            &mut self.project,
            &mut self.client,
            &mut self.detail,
        ];
        for text in texts {
            if let Some(long) = text.as_mut().filter(|text| text.len() > LONGEST) {
                long.truncate(long.floor_char_boundary(LONGEST));
                long.shrink_to_fit();
            }
            text.take_if(|text| text.is_empty());
        }
        self.others.retain(|other| !other.is_empty() && other.len() <= LONGEST && !other.contains('\n'));
        if let Some(recipient) = &self.recipient {
            self.others.retain(|other| other != recipient);
        }
        self.others.truncate(MOST_OTHERS);
        self
    }

    /// About the bytes it holds in memory.
    pub(super) fn size(&self) -> usize {
        let texts = [
            &self.queue_id,
            &self.key,
            &self.message_id,
            &self.sender,
            &self.recipient,
            &self.tenant,
            &self.project,
            &self.client,
            &self.detail,
        ];
        let others: usize = self.others.iter().map(|other| other.capacity() + size_of::<String>()).sum();
        size_of::<Self>() + others + texts.into_iter().flatten().map(String::capacity).sum::<usize>()
    }
}

/// The digest of a key's text, 32 bytes; none for what is no key.
pub(super) fn digest(key: &str) -> Option<[u8; 32]> {
    let hex = key.strip_prefix("b3:").filter(|hex| hex.len() == 64 && hex.is_ascii())?;
    let mut digest = [0; 32];
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(digest)
}

/// A digest's text.
pub(super) fn key(digest: &[u8]) -> String {
    digest.iter().fold("b3:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Milliseconds since 1970.
pub(super) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_none_and_what_is_long_is_cut() {
        let record = Record {
            queue_id: Some(String::new()),
            detail: Some("ä".repeat(LONGEST)),
            recipient: Some("m@x.test".to_owned()),
            others: [vec!["m@x.test".to_owned(), String::new()], vec!["k@y.test".to_owned(); 60]].concat(),
            ..Record::default()
        }
        .tidy();
        assert_eq!((record.queue_id, record.detail.unwrap().len()), (None, LONGEST));
        assert_eq!(record.others, vec!["k@y.test"; MOST_OTHERS]);
        assert!(record.at.is_some());
    }

    #[test]
    fn a_key_is_kept_as_its_digest() {
        let text = format!("b3:{}", "0f".repeat(32));
        assert_eq!(key(&digest(&text).unwrap()), text);
        for wrong in ["", "b3:", "b3:0f", &text[3..], &format!("b3:{}", "zz".repeat(32)), &"b3:ä".repeat(20)]
        {
            assert_eq!(digest(wrong), None, "{wrong}");
        }
    }
}
