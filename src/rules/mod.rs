//! What becomes of a message: `decide()` and the words it decides with.
//!
//! In: head, envelope, the targets of the recipients, what the directory says of the people, and the policy.
//! Out: a [`Verdict`]: record these activities, or refuse with a [`Reply`].
//! Promise: pure. No I/O, no clock, no async, no log; the same input gives the same verdict, so a table tests it.
//! Fails: never; what cannot be decided well is a reply.
//!
//! The sentences of DESIGN section 1 are the cases of `tests/rules.rs`.

mod addressing;
mod correspondents;
mod decide;
mod emergency;
mod evidence;
mod limits;
mod policy;
mod reply;
mod words;

pub use addressing::{Addressing, Reading};
pub use correspondents::correspondents;
pub use decide::{Settled, decide, reply_to, settled};
pub use emergency::{Block, Emergency, Who, contains};
pub use evidence::{Claim, Evidence, Finding, Logins, Method, Outcome, Place, Proof, Trust};
pub use limits::{Limits, Rate};
pub use policy::{Answer, Discard, Internal, Require, Said, Speaker, TenantPolicy, Treatment, Wish};
pub use reply::{MAX_TEXT_BYTES, Reason, Reply, Texts, check_text};
pub use words::{
    Candidate, Case, Contact, Correspondent, Correspondents, Mixed, Part, Party, Person, Project, Record,
    Role, Standing, Target, Tenant, User, Verdict,
};
