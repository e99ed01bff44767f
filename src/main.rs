//! `activity-milter`.

fn main() {}
