//! What an e-mail is made of: addresses, envelope, head, parts, and the buffer its bytes wait in.
//!
//! In: bytes as SMTP carried them. Out: typed values that the rules can decide with.
//! Promise: bytes stay bytes until something here parses them, and nothing here panics on any input.
//! Fails: what cannot be read says so by its type; a broken part of a message never hides the rest.
//!
//! A file for each noun; which file uses which goes one way too (`tests/house.rs`).

mod address;
mod address_list;
mod body;
mod charset;
mod content_type;
mod date;
mod encoded_word;
mod envelope;
mod file_name;
mod from;
mod head;
mod message_id;
mod raw;
mod spill;
mod text;
mod transfer_encoding;

pub use address::{Address, AddressError, Domain, domain_of, parse_path};
pub use address_list::{Element, ListReader, Mailbox, is_cut, mailboxes};
pub use body::{Body, FilePart, LIMITS, Limits, read_body};
pub use envelope::{Envelope, Intake, Recipient};
pub use from::{FromField, read_from};
pub use head::{Head, HeadError, MAX_HEAD_BYTES, fields};
pub use raw::{Cut, Raw};
pub use spill::{Budget, MEMORY_PER_MESSAGE, Reservation, Spill, SpillError};
pub use text::{is_blank, one_line};
pub use transfer_encoding::Encoding;
