//! The activity as it travels: the wire contract of DESIGN appendix C, and its key.
//!
//! In: what the rules decided ([`Parties`]), the message, and when it came. Out: JSON that a backend in any language
//! can take, and a [`Parcel`]: the activities of one message with the bytes their files are cut from.
//! Promise: the same e-mail gives the same [`Key`] whichever way it came; new fields may be added, none changes its
//! meaning within a schema version, and receivers ignore what they do not know.
//! Fails: only as reading the message fails.

mod contract;
mod key;
mod parcel;

pub use crate::mail::{Cut, Raw, one_line};
pub use contract::{
    Activity, CustomerRef, EnvelopeRef, Field, FileRef, Kind, NOTICE_ID, Owner, Participant, Parties,
    ProjectRef, SCHEMA, TenantRef,
};
pub use key::Key;
pub use parcel::Parcel;
