//! Visma Severa's public REST API, as far as an e-mail integration needs it.
//!
//! In: one company's client id and secret. Out: answers of the API, in our words; a local copy of who is who.
//! Promise: no more than eight calls a second for each company, whoever makes them; a token is asked for once; what is
//! unknown in an answer is ignored.
//! Fails: [`Failed`], by what may have been done and who can mend it.
//!
//! What the API says of itself, and what it leaves open, is in `docs/severa.md`.

mod client;
mod clock;
mod copied;
mod copy;
mod error;
mod model;
mod pace;
mod pages;
mod store;
mod sync;
mod token;

pub use client::{Body, Client, LOOK_UP_CALLS, Request, SITS_OUT, Settings};
pub use copied::{Copied, FoundContact};
pub use copy::{CompanyCopy, Copies, CopyState, Times};
pub use error::{Failed, Refusal};
pub use model::{
    Activity, ActivityType, ContactCommunication, ContactPerson, Participant, Project, ProjectFile,
    Reference, User,
};
pub use pace::{Budget, Rank};
pub use pages::{Pages, Paging};
pub use store::CopyError;
pub use sync::synchronise;
pub use token::SCOPES;
