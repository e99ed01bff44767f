//! `activity-milter`: e-mail to an integration address becomes an activity in a company's business system.
//!
//! # The way of a message
//!
//! Postfix hands a message over while the SMTP client is still connected. [`intake`] turns the protocol into an
//! envelope, a head and bytes; [`mail`] reads them; [`directory`] says who the people are; [`rules`] decides, pure and
//! without I/O; the [`queue`] makes the activities durable, and only then is the client answered. Later the
//! [`courier`] takes each [`activity`] to the [`backend`] and tries again until it is taken or a person must look.
//!
//! ```text
//! Postfix smtpd ── milter ── intake ── mail ── rules ── queue ── courier ── backend ── your business system
//!                                        │
//!                                    directory
//! ```
//!
//! One direction, no way back: `tests/house.rs` keeps the table of which room may use which.
//!
//! # Where to look
//!
//! | Question | Room |
//! | --- | --- |
//! | What does the SMTP client read, and when? | [`rules`]: the table of replies |
//! | Who owns an activity, who takes part, which customer? | [`rules::decide`] |
//! | What is promised when we say 250? | [`queue`] |
//! | Is the sender who he says, if we ask name servers ourselves? | [`verify`] |
//! | What travels to the backend? | [`activity`] |
//! | Who is told that an activity is held? | [`notify`] |
//! | When is a delivery tried again, when held? | [`backend::Outcome`], [`courier`] |
//! | How is Visma Severa asked, and how often? | [`severa`]; its deliveries: [`backend::SeveraBackend`] |
//! | How do we speak HTTP? | [`web`] |
//! | What can be configured? | [`config`] |
//! | What is logged? | [`observe::events`] |
//! | What became of a mail of last Tuesday? | [`trace`] |
//! | What do administrators see? | [`admin`], [`observe::metrics`], [`queue::Queue`] |
//!
//! # What holds everywhere
//!
//! Nothing accepted is lost or recorded twice; nothing invalid is dropped in silence. Whatever waits has a deadline,
//! whatever grows has a limit. A fault in one message never reaches another.

pub mod activity;
pub mod admin;
pub mod backend;
pub mod cli;
pub mod config;
pub mod courier;
pub mod directory;
pub mod intake;
pub mod mail;
pub mod notify;
pub mod observe;
pub mod queue;
pub mod rules;
pub mod severa;
pub mod sink;
pub mod source;
pub mod trace;
pub mod verify;
pub mod web;
