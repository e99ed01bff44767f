//! What an e-mail is made of: addresses, envelope, head, parts, and the buffer its bytes wait in.
//!
//! In: bytes as SMTP carried them. Out: typed values that the rules can decide with.
//! Promise: bytes stay bytes until something here parses them, and nothing here panics on any input.
//! Fails: what cannot be read says so by its type; a broken part of a message never hides the rest.
//!
//! A file for each noun; which file uses which goes one way too (`tests/house.rs`).

mod address;
mod address_list;
mod authentication_results;
mod automatic;
mod body;
mod charset;
mod comment;
mod content_type;
mod date;
mod digest;
mod encoded_word;
mod envelope;
mod everybody;
mod field;
mod file_name;
mod flowed;
mod from;
mod head;
mod html;
mod mention;
mod message_id;
mod page;
mod part;
mod quotable;
mod raw;
mod reader;
mod received;
mod seven_bit;
mod spill;
mod text;
mod transfer_encoding;

pub use address::{Address, AddressError, Domain, domain_of, parse_path, without_route};
pub use address_list::{Element, ListReader, Mailbox, is_cut, mailboxes};
pub use authentication_results::{
    AuthenticationFields, AuthenticationResults, MethodResult, authserv_id_of, disguised_authserv_id,
};
pub use automatic::{Automatic, Signs};
pub use body::{Body, FilePart, Place, ReadPart};
pub use envelope::{Envelope, Intake, Recipient};
pub use everybody::everybody;
pub use field::{fields, header_end};
pub use from::{FromField, read_from};
pub use head::{AddressFields, Head, HeadError, MAX_HEAD_BYTES};
pub use mention::{Mention, mentions};
pub use quotable::{is_plain_host, is_plain_path};
pub use raw::{Cut, Raw};
pub use reader::{LIMITS, Limits, Reader};
pub use received::{authenticated_sender, helo_of};
pub use spill::{Budget, MEMORY_PER_MESSAGE, Reservation, Spill, SpillError};
pub use text::{is_blank, one_line};
pub use transfer_encoding::Encoding;
