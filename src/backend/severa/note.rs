//! How far the delivery of an activity to Severa came, as it is kept with the activity.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What was done, or begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum Note {
    /// Nothing that could have been made.
    Nothing,
    /// The activity is being created, or is there and we do not know it.
    Posting(Posting),
    /// It is there.
    Made(Made),
}

/// How to find an activity whose answer was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Posting {
    /// It was created after this time of the API's (RFC 3339), for certain.
    pub(super) since: String,
    /// The type it was posted with: the settings may have another one by now.
    pub(super) activity_type: String,
    /// The owner it was posted with.
    pub(super) owner: String,
    /// Where, and what goes along.
    pub(super) frame: Frame,
}

/// What was settled when the activity was posted, and stays so, whatever the settings say by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frame {
    /// Base URL of the API that has it.
    pub(super) url: String,
    /// The client id that posted it: with another one it may be another organisation's.
    pub(super) client_id: String,
    /// The project its files go to: a sales case that is won may be found under another id.
    pub(super) project: Option<String>,
    /// Files that are shown within the text go there too; the notes name what does not.
    pub(super) inline_files: bool,
}

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    /// The activity's guid.
    pub(super) activity: String,
    /// Where, and what goes along.
    pub(super) frame: Frame,
    /// So many participants are dealt with, in the activity's order.
    pub(super) people: usize,
    /// The numbers of the files that are there. By number, because settings say which are sent.
    pub(super) files: BTreeSet<usize>,
    /// What was begun, and may be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) begun: Option<Begun>,
}

/// A call whose answer has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Begun {
    /// The next participant.
    Participant,
    /// The file of this number.
    File(usize),
    /// Everything, by a delivery of before: what is there of it is looked for.
    Before,
}

impl Made {
    /// A new activity.
    pub(super) fn new(activity: String, frame: Frame) -> Self {
        Self { activity, frame, people: 0, files: BTreeSet::new(), begun: None }
    }
}

impl Note {
    /// Reads what was noted last; nothing was, if nothing was.
    pub(super) fn read(last: Option<&str>) -> Result<Self, serde_json::Error> {
        last.map_or(Ok(Self::Nothing), serde_json::from_str)
    }

    /// As it is kept.
    pub(super) fn written(&self) -> String {
        // Strings, numbers and sets of numbers always can be.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let frame = Frame {
            url: "https://severa.test/rest-api".to_owned(),
            client_id: "id".to_owned(),
            project: Some("p".to_owned()),
            inline_files: true,
        };
        let made = Made {
            activity: "a".to_owned(),
            frame: frame.clone(),
            people: 3,
            files: [1, 3].into(),
            begun: Some(Begun::File(4)),
        };
        let before = Made { begun: Some(Begun::Before), ..made.clone() };
        let posting = Posting {
            since: "2026-11-29T20:00:00Z".to_owned(),
            activity_type: "t".to_owned(),
            owner: "o".to_owned(),
            frame,
        };
        for note in [Note::Nothing, Note::Posting(posting), Note::Made(made), Note::Made(before)] {
            assert_eq!(Note::read(Some(&note.written())).unwrap(), note);
        }
        assert_eq!(Note::read(None).unwrap(), Note::Nothing);
        assert!(Note::read(Some("{\"step\":\"of another version\"}")).is_err());
    }
}
