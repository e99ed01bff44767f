//! Instructions of the pure parts, counted by Valgrind: the same whatever else the machine does, so that a part that
//! became slower shows. Needs `gungraun-runner`; `make bench` installs it.

#![allow(clippy::unwrap_used, missing_docs)] // a panic is this program's way to fail

mod inputs;

use activity_milter::{
    activity::{Parcel, Parties},
    mail::{Address, Head, HeadError},
    rules::{Addressing, Reading, Verdict},
};
use gungraun::{library_benchmark, library_benchmark_group, main};
use inputs::Mail;
use std::hint::black_box;

fn head() -> Vec<u8> {
    inputs::head(1, "text/plain")
}

fn small() -> Mail {
    Mail::new(inputs::small(1))
}

fn with_parties(mail: Mail) -> (Mail, Vec<Parties>) {
    let parties = mail.parties();
    (mail, parties)
}

fn small_decided() -> (Mail, Vec<Parties>) {
    with_parties(small())
}

fn large_decided() -> (Mail, Vec<Parties>) {
    with_parties(Mail::new(inputs::large(1)))
}

fn small_built() -> Parcel {
    let (mail, parties) = small_decided();
    mail.build(parties)
}

#[library_benchmark]
#[bench::typical(head())]
fn head_parsing(head: Vec<u8>) -> Result<Head, HeadError> {
    Head::parse(black_box(&head))
}

#[library_benchmark]
#[bench::project(inputs::addressing())]
fn address_reading(addressing: Addressing) -> Vec<Reading> {
    addressing.readings(&Address::parse(black_box("1001.mycompany@severamail.test")).unwrap())
}

#[library_benchmark]
#[bench::one_target(small())]
fn rules(mail: Mail) -> Verdict {
    black_box(&mail).decide()
}

#[library_benchmark]
#[bench::text_4_kb(small_decided())]
#[bench::file_1_mb(large_decided())]
fn activity((mail, parties): (Mail, Vec<Parties>)) -> (Mail, Parcel) {
    let parcel = mail.build(black_box(parties));
    (mail, parcel)
}

#[library_benchmark]
#[bench::text_4_kb(small_built())]
fn activity_json(parcel: Parcel) -> String {
    serde_json::to_string(black_box(&parcel.activities[0])).unwrap()
}

library_benchmark_group!(
    name = pure,
    benchmarks = [head_parsing, address_reading, rules, activity, activity_json]
);
main!(library_benchmark_groups = pure);
