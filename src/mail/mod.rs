//! What an e-mail is made of: addresses, envelope, head, parts, and the buffer its bytes wait in.
//!
//! In: bytes as SMTP carried them. Out: typed values that the rules can decide with.
//! Promise: bytes stay bytes until something here parses them, and nothing here panics on any input.
//! Fails: what cannot be read says so by its type; a broken part of a message never hides the rest.

mod address;
mod decode;
mod envelope;
mod head;
mod mime;
mod parameters;
mod spill;
mod text;

pub use address::{Address, AddressError, Domain, Mailbox, domain_of, parse_list, parse_path};
pub use decode::Encoding;
pub use envelope::{Envelope, Intake, Recipient};
pub use head::{Head, HeadError, MAX_HEAD_BYTES, fields};
pub use mime::{Body, Cut, FilePart, LIMITS, Limits, read_body};
pub use spill::{Budget, MEMORY_PER_MESSAGE, Raw, Reservation, Spill, SpillError};
pub use text::{is_blank, one_line};
