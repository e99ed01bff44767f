//! Visma Severa as directory and backend: a real Postfix, our program as a process, the fake of Severa's API.

mod crash;
mod operate;
mod outage;
mod sentences;

const ANNA: &str = "anna@mycompany.test";
const BO: &str = "bo@acme.test";
const MY: &str = "mycompany@severamail.test";
const PROJECT: &str = "1001.mycompany@severamail.test";

/// A message of its own for each number, from Anna to Bo.
fn numbered(number: usize) -> Vec<u8> {
    format!("From: {ANNA}\nTo: {BO}\nSubject: number {number}\nMessage-ID: <{number}@mycompany.test>\n\nx\n")
        .into_bytes()
}
