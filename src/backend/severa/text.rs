//! The `notes` of an activity: the e-mail's text, what of the e-mail has no place elsewhere, and the marker.
//!
//! In: an activity, and how long its notes may be. Out: notes of that many characters at most.
//! Promise: the last line is the marker, whole; what was cut says so.

use crate::activity::{Activity, FileRef, Key, Kind, one_line};
use std::fmt::Write as _;

/// Notes are never shorter than this many characters: marker, block and a line of text.
pub const LEAST_NOTES: usize = 500;

/// Between text, block and marker.
const GAP: &str = "\n\n";

/// Stands where text was cut.
const CUT: &str = "[The e-mail is longer.]";

/// The line by which an activity is found again whose answer was lost, and its files.
pub(super) fn marker(key: &Key) -> String {
    format!("[activity-milter {}]", key.as_str())
}

/// True if notes end in this marker.
pub(super) fn ends_in(notes: &str, marker: &str) -> bool {
    notes.trim_end().lines().next_back().is_some_and(|line| line.trim() == marker)
}

/// True if notes are no longer than they may be, and would be found by their marker.
pub(super) fn is_whole(notes: &str, marker: &str, limit: usize) -> bool {
    ends_in(notes, marker) && count(notes) <= limit.max(LEAST_NOTES)
}

/// Description of a file, by which it is found again: the marker, and the file's number in the activity.
pub(super) fn description(marker: &str, number: usize) -> String {
    format!("{marker} {number}")
}

/// The notes. `homeless`: files that are not sent.
pub(super) fn notes(activity: &Activity, homeless: &[&FileRef], limit: usize) -> String {
    let marker = marker(&activity.key);
    let room = limit.max(LEAST_NOTES).saturating_sub(count(&marker) + GAP.len());
    let shown = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    let text: String = activity.text.as_deref().unwrap_or_default().chars().filter(shown).collect();
    let text = text.trim_end();
    // A great many external people leave room for the text: half of it, if it needs that.
    let most = room.saturating_sub(count(text) + GAP.len()).max(room / 2);
    let block = block(activity, homeless, most);
    let block = block.trim_end();
    let text = cut(text, room.saturating_sub(count(block) + GAP.len()));
    let mut sections = vec![text.as_str(), block, &marker];
    sections.retain(|section| !section.is_empty());
    sections.join(GAP)
}

fn count(text: &str) -> usize {
    text.chars().count()
}

/// At most so many characters, with a word about it where it was longer.
fn cut(text: &str, most: usize) -> String {
    if count(text) <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(count(CUT) + 1)).collect();
    format!("{}\n{CUT}", kept.trim_end())
}

/// Who and what has no place in Severa but this one; each line at most a line long, all of it at most so many characters.
fn block(activity: &Activity, homeless: &[&FileRef], most: usize) -> String {
    let external = activity.participants.iter().filter(|person| person.kind == Kind::External);
    let people: Vec<String> = external
        .map(|person| match &person.name {
            Some(name) => format!("  {} <{}> ({})", one_line(name), person.address, person.field.as_str()),
            None => format!("  {} ({})", person.address, person.field.as_str()),
        })
        .collect();
    let files: Vec<String> = homeless
        .iter()
        .map(|file| {
            let inline = if file.inline { ", inline" } else { "" };
            let size = bytesize::ByteSize(file.size);
            format!("  {} ({}, {size}{inline})", one_line(&file.name), file.content_type)
        })
        .collect();
    let mut block = String::new();
    let more = activity.people_omitted;
    list(&mut block, "Also in this e-mail, and unknown to Severa:", &people, more, most);
    list(&mut block, "Files of this e-mail that are not kept:", &files, 0, most);
    block
}

/// Adds a list with its title, as far as there is room. `more`: so many are not even in it.
fn list(block: &mut String, title: &str, lines: &[String], more: usize, most: usize) {
    /// Room for the line that says how many more there are.
    const LAST_LINE: usize = 24;
    if lines.is_empty() && more == 0 {
        return;
    }
    let mut left = most.saturating_sub(count(block) + count(title) + 1 + LAST_LINE);
    let mut shown = 0;
    let mut text = format!("{title}\n");
    for line in lines {
        let line: String = line.chars().take(300).collect();
        let Some(rest) = left.checked_sub(count(&line) + 1) else { break };
        left = rest;
        shown += 1;
        text.push_str(&line);
        text.push('\n');
    }
    let more = more + lines.len() - shown;
    if more > 0 {
        let _ = writeln!(text, "  and {more} more"); // a String takes everything
    }
    block.push_str(&text);
}
