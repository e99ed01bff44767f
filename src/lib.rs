//! `activity-milter`: e-mail to an integration address becomes an activity in a company's business system.

pub mod activity;
pub mod backend;
pub mod courier;
pub mod directory;
pub mod intake;
pub mod mail;
pub mod observe;
pub mod queue;
pub mod rules;
pub mod source;
