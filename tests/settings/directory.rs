//! The directory file: what is wrong in it, with line and remedy.

use super::{accept, judge};
use activity_milter::directory::{Directory, FileDirectory};
use std::fs;

const GOOD: &str = "[[tenant]]\nprefix = \"mycompany\"\nid = \"t-1\"\n\
    [[tenant.user]]\nid = \"u-1\"\naddresses = [\"anna@mycompany.test\"]\n\
    [[tenant.customer]]\nid = \"c-1\"\n\
    [[tenant.customer.contact]]\nid = \"p-1\"\naddresses = [\"bo@acme.test\"]\n\
    [[tenant.project]]\nid = \"pr-1\"\nnumber = \"1001\"\ncustomer = \"c-1\"\n";

/// What is changed, the line, and words.
const WRONG: &[(&str, &str, usize, &[&str])] = &[
    ("\"mycompany\"", "1", 2, &["prefix: ", "1 is a number", "in quotes"]),
    ("\"mycompany\"", "[\"mycompany\"]", 2, &["prefix: ", "in quotes"]),
    ("\"mycompany\"", "\"\"", 2, &["prefix: ", "write one like \"mycompany\""]),
    ("\"mycompany\"", "\"my..company\"", 2, &["prefix: ", "write one like \"mycompany\""]),
    ("\"mycompany\"", "\"my@company\"", 2, &["prefix: ", "write one like \"mycompany\""]),
    ("\"mycompany\"", "\" my \"", 2, &["prefix: ", "write one like \"mycompany\""]),
    ("\"mycompany\"", "\"my company\"", 2, &["prefix: ", "write one like \"mycompany\""]),
    ("\"mycompany\"", "\"m\\ny\"", 2, &["prefix: ", "write one like \"mycompany\""]),
    ("\"mycompany\"", "\"*\"", 2, &["prefix: ", "write one like \"mycompany\""]),
    ("\"mycompany\"", "\"(my)\"", 2, &["prefix: ", "write one like \"mycompany\""]),
    (
        "\"mycompany\"",
        "\"aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggggg\"",
        2,
        &["prefix: ", "write one like \"mycompany\""],
    ),
    ("\"mycompany\"", "mycompany", 2, &["write text in quotes"]),
    ("prefix =", "prefx =", 2, &["unknown field `prefx`", "did you mean `prefix`?"]),
    ("prefix = \"mycompany\"\n", "", 1, &["missing field `prefix` in [[tenant]]"]),
    ("id = \"t-1\"\n", "", 1, &["missing field `id` in [[tenant]]"]),
    ("\"t-1\"", "\"\"", 3, &["id: ", "write the one the backend knows"]),
    ("\"t-1\"", "7", 3, &["id: ", "in quotes"]),
    ("\"t-1\"", "\"t-1\"\nactive = \"yes\"", 4, &["active: ", "write true or false"]),
    ("\"t-1\"", "\"t-1\"\nactive = 1", 4, &["active: ", "write true or false"]),
    ("\"t-1\"", "\"t-1\"\nmode = \"dark\"", 4, &["mode: ", "there is no `dark`: there are live, shadow"]),
    ("\"t-1\"", "\"t-1\"\nactivity_type = \" \"", 4, &["activity_type: ", "write the one the backend knows"]),
    ("\"t-1\"", "\"t-1\"\nname = 1", 4, &["name: ", "in quotes"]),
    ("\"t-1\"", "\"t-1\"\npolicy = \"authenticated\"", 4, &["policy: ", "write a table"]),
    ("\"t-1\"", "\"t-1\"\npolicy = [\"authenticated\"]", 4, &["policy: ", "a list", "write a table"]),
    ("\"t-1\"", "\"t-1\"\npolicy = { require = \"yes\" }", 4, &["policy: ", "there are none, authenticated"]),
    ("\"t-1\"", "\"t-1\"\npolicy = { requires = \"none\" }", 4, &["did you mean `require`?"]),
    ("\"t-1\"", "\"t-1\"\npolicy.automatic.bounce = true", 4, &["bounce: ", "write "]),
    ("\"t-1\"", "\"t-1\"\npolicy.automatic = [\"refuse\"]", 4, &["automatic: ", "write a table"]),
    ("[[tenant]]", "[tenant]", 1, &["tenant: ", "write [[tenant]]"]),
    ("[[tenant.user]]", "[tenant.user]", 4, &["tenant.user: ", "write [[tenant.user]]"]),
    ("[[tenant.user]]", "[[tenant.users]]", 4, &["unknown field `users`", "did you mean `user`?"]),
    ("[[tenant.user]]", "[[user]]", 4, &["unknown field `user`"]),
    ("id = \"u-1\"\n", "", 4, &["missing field `id` in [[tenant.user]]"]),
    ("\"u-1\"", "\"\"", 5, &["id: ", "write the one the backend knows"]),
    ("[\"anna@mycompany.test\"]", "\"anna@mycompany.test\"", 6, &["addresses: ", "write a list"]),
    ("[\"anna@mycompany.test\"]", "[1]", 6, &["addresses: ", "in quotes"]),
    ("anna@mycompany.test", "anna", 6, &["addresses: ", "write one like \"anna@example.com\""]),
    ("anna@mycompany.test", "*@mycompany.test", 6, &["addresses: ", "* stands for nobody", "write one like"]),
    ("anna@mycompany.test", "@mycompany.test", 6, &["addresses: ", "write one like"]),
    ("anna@mycompany.test", "Anna <anna@mycompany.test>", 6, &["addresses: ", "write one like"]),
    ("addresses = [\"anna@mycompany.test\"]\n", "", 4, &["missing field `addresses` in [[tenant.user]]"]),
    ("[\"anna@mycompany.test\"]", "[\"anna@mycompany.test\"", 7, &["close it with ]"]),
    ("\"c-1\"\n[[", "\"\"\n[[", 8, &["id: ", "write the one the backend knows"]),
    ("\"p-1\"", "\"\"", 10, &["id: ", "write the one the backend knows"]),
    ("bo@acme.test", "bo", 11, &["addresses: ", "write one like"]),
    ("\"pr-1\"", "\"\"", 13, &["id: ", "write the one the backend knows"]),
    ("\"1001\"", "1001", 14, &["number: ", "1001 is a number", "in quotes"]),
    ("\"1001\"", "\"1001.\"", 14, &["number: ", "like 1001"]),
    ("\"1001\"", "\"\"", 14, &["number: ", "like 1001"]),
    (
        "customer = \"c-1\"",
        "customer = \"c-2\"",
        15,
        &["customer: ", "has no customer \"c-2\"", "[[tenant.customer]]"],
    ),
    // Twice.
    (
        "customer = \"c-1\"",
        "[[tenant]]\nprefix = \"MyCompany\"\nid = \"t-2\"",
        16,
        &["prefix: ", "already taken in line 2"],
    ),
    (
        "customer = \"c-1\"",
        "[[tenant]]\nprefix = \"b\"\nid = \"t-1\"",
        17,
        &["id: ", "already taken in line 3"],
    ),
    (
        "customer = \"c-1\"",
        "[[tenant.project]]\nid = \"x\"\nnumber = \"1001\"",
        17,
        &["number: ", "already taken in line 14"],
    ),
    (
        "customer = \"c-1\"",
        "[[tenant.user]]\nid = \"u-1\"\naddresses = []",
        16,
        &["id: ", "already taken in line 5"],
    ),
    (
        "customer = \"c-1\"",
        "[[tenant.user]]\nid = \"u-2\"\naddresses = [\"ANNA@mycompany.test\"]",
        17,
        &["addresses: ", "already taken in line 6"],
    ),
    (
        "customer = \"c-1\"",
        "[[tenant.project]]\nid = \"pr-1\"\nnumber = \"1002\"",
        16,
        &["id: ", "already taken in line 13"],
    ),
    ("customer = \"c-1\"", "[[tenant.customer]]\nid = \"c-1\"", 16, &["id: ", "already taken in line 8"]),
    ("\"t-1\"", "\"t-1\"\nid = \"t-2\"", 4, &["`id`", "second time"]),
];

#[test]
fn the_sheet_of_the_directory_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.toml");
    let mut complaints = Vec::new();
    fs::write(&path, GOOD).unwrap();
    FileDirectory::open(&path).unwrap();
    for (from, to, line, words) in WRONG {
        assert!(GOOD.contains(from), "{from}");
        fs::write(&path, GOOD.replacen(from, to, 1)).unwrap();
        let what = format!("{from} -> {to}");
        match FileDirectory::open(&path) {
            Ok(_) => complaints.push(format!("{what}\n  is taken")),
            Err(error) => {
                let place = format!("d.toml:{line}:");
                complaints.extend(judge(&what, &error.to_string(), &[&[place.as_str()], *words].concat()));
            }
        }
    }
    // What no mail reaches stops nobody, and is told by `check`.
    for number in ["10 01", "1001\\n", " 1001", "10@01", "1001.my@a.test", "(1001)"] {
        fs::write(&path, GOOD.replacen("\"1001\"", &format!("\"{number}\""), 1)).unwrap();
        let said = FileDirectory::open(&path).unwrap().source();
        complaints.extend(judge(number, &said, &["d.toml:14:", "number: ", "no mail reaches", "like 1001"]));
    }
    for (name, bytes, words) in [
        ("latin", &b"# \n# \xe4\n"[..], &["latin:2: ", "save the file as UTF-8"][..]),
        ("broken", b"[[tenant]\n", &["broken:1:"]),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = FileDirectory::open(&path).unwrap_err().to_string();
        complaints.extend(judge(name, &error, words));
    }
    let missing = FileDirectory::open(&directory.path().join("none")).unwrap_err().to_string();
    complaints.extend(judge("none", &missing, &["cannot be read", "write the file, or name another one"]));
    accept(complaints);
}
