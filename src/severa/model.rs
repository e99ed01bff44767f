//! What the API's objects hold that we need. Every field may be missing or null, and others may come: the schema calls
//! next to nothing required.

use serde::Deserialize;

/// A reference to another object.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Reference {
    /// Its id.
    pub guid: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

impl Reference {
    /// The id in it, unless it is missing or blank.
    pub fn guid_of(reference: Option<&Self>) -> Option<&str> {
        present(reference?.guid.as_deref())
    }
}

/// A text that is there and not blank.
pub(super) fn present(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

/// `UserOutputModel`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// Id.
    pub guid: Option<String>,
    /// The one address of a user.
    pub email: Option<String>,
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// Missing means true.
    pub is_active: Option<bool>,
}

/// `ContactModel`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContactPerson {
    /// Id.
    pub guid: Option<String>,
    /// Whole name.
    pub name: Option<String>,
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// Addresses.
    pub emails: Option<Vec<Option<String>>>,
    /// The one customer of a contact.
    pub customer: Option<Reference>,
    /// Missing means true.
    pub is_active: Option<bool>,
    /// Missing means false.
    pub is_deleted: Option<bool>,
}

/// `ContactCommunicationModel`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContactCommunication {
    /// Id.
    pub guid: Option<String>,
    /// The address, or the telephone number.
    pub value: Option<String>,
    /// Whose.
    pub contact: Option<Reference>,
    /// What it is.
    pub communication_type: Option<CommunicationType>,
}

/// `CommunicationTypeSubModel`
#[derive(Clone, Debug, Default, Deserialize)]
pub struct CommunicationType {
    /// `EmailAddress`, among others.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

impl ContactCommunication {
    /// True for an e-mail address.
    pub fn is_email(&self) -> bool {
        self.communication_type.as_ref().and_then(|kind| kind.kind.as_deref()) == Some("EmailAddress")
    }
}

/// `ProjectOutputModel`; sales cases have the same one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Project {
    /// Id.
    pub guid: Option<String>,
    /// The number that people know.
    pub number: Option<i64>,
    /// Name.
    pub name: Option<String>,
    /// For whom.
    pub customer: Option<Reference>,
    /// The phase that stands for the whole of it: activities are linked to that.
    pub root_phase: Option<Reference>,
}

/// `ActivityTypeModel`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ActivityType {
    /// Id.
    pub guid: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Missing means true.
    pub is_active: Option<bool>,
}

/// `ActivityModel`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Activity {
    /// Id.
    pub guid: Option<String>,
    /// The text, our marker in its last line.
    pub notes: Option<String>,
}

/// `ActivityParticipantModel`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Participant {
    /// Id.
    pub guid: Option<String>,
    /// Who it is.
    pub participant_guid: Option<String>,
}

/// `ProjectFileModel`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProjectFile {
    /// Id.
    pub guid: Option<String>,
    /// Id of what is stored.
    pub file_guid: Option<String>,
    /// Our marker and the file's number.
    pub description: Option<String>,
}
