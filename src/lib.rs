//! `activity-milter`: e-mail to an integration address becomes an activity in a company's business system.

pub mod activity;
pub mod mail;
pub mod rules;
