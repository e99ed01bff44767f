//! Where an MTA under test leaves mail for other people: a directory with a file for each recipient of each message.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Writes the delivery agent: its argument is the envelope recipient, its input the message.
pub fn keep_script(script: &Path, mail: &Path) {
    let text = format!(
        "#!/bin/sh\nf=$(mktemp {0}/XXXXXXXX) || exit 75\n{{ echo \"$1\"; cat; }} > \"$f\" && mv \"$f\" \"$f.eml\"\n",
        mail.display()
    );
    fs::write(script, text).unwrap();
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What it has written: envelope recipient, then the message.
pub fn delivered(mail: &Path) -> Vec<(String, Vec<u8>)> {
    let mut paths: Vec<_> = fs::read_dir(mail).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "eml"));
    paths.sort();
    let split = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        let at = bytes.iter().position(|&b| b == b'\n').unwrap();
        (String::from_utf8(bytes[..at].to_vec()).unwrap(), bytes[at + 1..].to_vec())
    };
    paths.iter().map(split).collect()
}
