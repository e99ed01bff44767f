//! One company: its settings, and the activity type that its e-mails get.

use super::{super::Check, stop::Stop};
use crate::severa::{ActivityType, Client, Failed, Pages, Paging, Request, SCOPES, SITS_OUT};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// How long the guid of a type's name counts.
const KIND_COUNTS: Duration = Duration::from_secs(3600);

/// A clock that differs by more than this is somebody's to set right.
const MOST_DIFFERENCE: Duration = Duration::from_secs(300);

/// Settings of one company.
#[derive(Clone, Debug)]
pub struct CompanySettings {
    /// Its integration address, and its id.
    pub prefix: String,
    /// Its way to the API.
    pub client: Arc<Client>,
    /// Name or guid of the type that its activities get.
    pub activity_type: String,
    /// Activities are created as done.
    pub closed: bool,
    /// Files that are shown within the text become files of the project too.
    pub inline_files: bool,
    /// Longest notes, in characters.
    pub notes_limit: usize,
    /// From a lost answer to the search for what it made.
    pub settle: Duration,
}

#[derive(Debug)]
pub(super) struct Company {
    pub(super) settings: CompanySettings,
    /// The type's guid, and when it was looked up. Held during the look-up: who comes meanwhile waits for its answer, and
    /// asks nothing himself.
    kind: Mutex<Option<(Instant, String)>>,
}

impl Company {
    pub(super) fn new(settings: CompanySettings) -> Self {
        Self { settings, kind: Mutex::default() }
    }

    pub(super) fn client(&self) -> &Client {
        &self.settings.client
    }

    /// The guid of the type to post with.
    pub(super) async fn kind(&self) -> Result<String, Stop> {
        let wanted = &self.settings.activity_type;
        if is_guid(wanted) {
            return Ok(wanted.clone());
        }
        let mut kind = self.kind.lock().await;
        if let Some((at, guid)) = kind.as_ref()
            && at.elapsed() < KIND_COUNTS
        {
            return Ok(guid.clone());
        }
        let guid = guid_of(wanted, &self.kinds().await?).map_err(Stop::settings)?;
        *kind = Some((Instant::now(), guid.clone()));
        Ok(guid)
    }

    /// Something was wrong with an activity: whether the settings still name the type of this guid.
    pub(super) async fn still_has(&self, kind: &str) -> Result<(), Stop> {
        *self.kind.lock().await = None;
        let found = guid_of(&self.settings.activity_type, &self.kinds().await?).map_err(Stop::settings)?;
        match found.eq_ignore_ascii_case(kind) {
            true => Ok(()),
            false => Err(Stop::settings("the activity type is another one by now".to_owned())),
        }
    }

    /// The types that an activity can have.
    pub(super) async fn kinds(&self) -> Result<Vec<ActivityType>, Failed> {
        let request = Request::get(&["v1", "activitytypes"]).with("active", "true");
        let mut kinds: Vec<ActivityType> =
            Pages::of(self.client(), request, Paging::Token).sit_out(SITS_OUT).all().await?;
        kinds.retain(|kind| kind.is_active != Some(false));
        Ok(kinds)
    }

    /// Token, scopes, type and clock, a line each.
    pub(super) async fn check(&self, patience: Duration) -> Vec<Check> {
        let line = |outcome| Check { name: format!("severa {}", self.settings.prefix), outcome };
        let late = |_| Err(format!("no answer within {patience:.0?}"));
        let token = tokio::time::timeout(patience, self.check_token()).await.unwrap_or_else(late);
        if token.is_err() {
            return vec![line(token)];
        }
        let scopes = self.check_reading(patience).await;
        let kind = tokio::time::timeout(patience, self.check_kind()).await.unwrap_or_else(late);
        vec![line(token), line(scopes), line(kind), line(self.check_clock())]
    }

    async fn check_token(&self) -> Result<String, String> {
        let missing = in_turn(|| self.client().scopes_missing()).await.map_err(|error| error.to_string())?;
        if missing.is_empty() {
            let id = self.client().client_id();
            return Ok(format!("{} gives a token for {id}", self.client().url()));
        }
        let missing = missing.join(", ");
        Err(format!("the token lacks scopes: {missing}: grant them to these client credentials in Severa"))
    }

    /// Whether what we read may be read. What we write can only be shown by writing.
    async fn check_reading(&self, patience: Duration) -> Result<String, String> {
        for (path, scope) in [
            ("users", "users:read"),
            ("contactpersons", "customers:read"),
            ("projects", "projects:read"),
            ("activitytypes", "settings:read"),
            ("activities", "activities:read"),
        ] {
            let request = Request::get(&["v1", path]).with("rowCount", "1");
            let read = in_turn(|| self.client().read::<serde_json::Value>(&request));
            let read = tokio::time::timeout(patience, read).await;
            let read = read.map_err(|_| format!("GET /v1/{path}: no answer within {patience:.0?}"))?;
            read.map_err(|error| format!("GET /v1/{path} (scope {scope}): {error}"))?;
        }
        let wanted: Vec<_> = SCOPES.into_iter().filter(|scope| scope.ends_with(":write")).collect();
        Ok(format!("everything can be read; {} and files:read only a delivery can show", wanted.join(", ")))
    }

    async fn check_kind(&self) -> Result<String, String> {
        let kinds = in_turn(|| self.kinds()).await.map_err(|error| error.to_string())?;
        let wanted = &self.settings.activity_type;
        let guid = guid_of(wanted, &kinds)?;
        let kind = kinds.iter().find(|kind| same(kind.guid.as_deref(), &guid));
        let name = kind.and_then(|kind| kind.name.as_deref()).unwrap_or(wanted);
        Ok(format!(
            "activity type \"{name}\" ({guid}): keep it out of Severa's synchronisation with Google and Exchange calendars"
        ))
    }

    fn check_clock(&self) -> Result<String, String> {
        let Some((is_ahead, by)) = self.client().difference() else {
            return Ok("Severa's answers have no date: our own clock counts".to_owned());
        };
        let which = if is_ahead { "behind" } else { "ahead of" };
        let text = format!("our clock is {}s {which} Severa's", by.as_secs());
        if by > MOST_DIFFERENCE { Err(format!("{text}: set it right")) } else { Ok(text) }
    }
}

/// Asks again after each 429: of what a company may call in a second, a service that runs beside us has its part.
async fn in_turn<T, F>(ask: impl Fn() -> F + Send) -> Result<T, Failed>
where
    F: Future<Output = Result<T, Failed>> + Send,
{
    loop {
        match ask().await {
            Err(Failed::Busy(left) | Failed::Paused(left)) => tokio::time::sleep(left).await,
            answer => return answer,
        }
    }
}

fn same(guid: Option<&str>, wanted: &str) -> bool {
    guid.is_some_and(|guid| guid.eq_ignore_ascii_case(wanted))
}

/// True for 8-4-4-4-12 hex digits.
fn is_guid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.chars().all(|c| c.is_ascii_hexdigit()))
}

/// The guid of a type that is named by its guid or by its name.
fn guid_of(wanted: &str, kinds: &[ActivityType]) -> Result<String, String> {
    let guids = |is: &dyn Fn(&str) -> bool| -> Vec<&str> {
        let named = kinds.iter().filter(|kind| kind.name.as_deref().is_some_and(|name| is(name.trim())));
        named.filter_map(|kind| kind.guid.as_deref()).collect()
    };
    if let Some(kind) = kinds.iter().find(|kind| same(kind.guid.as_deref(), wanted)) {
        return Ok(kind.guid.clone().unwrap_or_default());
    }
    let mut found = guids(&|name| name == wanted.trim());
    if found.is_empty() {
        found = guids(&|name| name.to_lowercase() == wanted.trim().to_lowercase());
    }
    match found.as_slice() {
        [guid] => Ok((*guid).to_owned()),
        [] => {
            let names: Vec<&str> = kinds.iter().filter_map(|kind| kind.name.as_deref()).collect();
            Err(format!(
                "Severa has no active activity type \"{wanted}\": set activity_type to one of {}",
                names.join(", ")
            ))
        }
        several => Err(format!(
            "Severa has several activity types \"{wanted}\": set activity_type to one of the guids {}",
            several.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_by_name_or_guid() {
        let kind = |guid: &str, name: &str| ActivityType {
            guid: Some(guid.to_owned()),
            name: Some(name.to_owned()),
            is_active: Some(true),
        };
        let kinds = [
            kind("1", "E-mail"),
            kind("2", "Meeting"),
            kind("3", "meeting"),
            kind("4", "Call"),
            kind("5", "Call"),
        ];
        for (wanted, expected) in [
            ("E-mail", Ok("1")),
            ("e-MAIL", Ok("1")),
            ("Meeting", Ok("2")),
            ("meeting", Ok("3")),
            (
                "MEETING",
                Err("several activity types \"MEETING\": set activity_type to one of the guids 2, 3"),
            ),
            ("Call", Err("4, 5")),
            ("5", Ok("5")),
            ("Email", Err("no active activity type \"Email\": set activity_type to one of E-mail, Meeting")),
        ] {
            match (guid_of(wanted, &kinds), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{wanted}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{wanted}: {found}"),
                (found, _) => panic!("{wanted}: {found:?}"),
            }
        }
        assert!(is_guid("00000000-0000-4000-8000-00000000004F"));
        assert!(!is_guid("E-mail") && !is_guid("00000000-0000-4000-8000-00000000004G"));
    }
}
