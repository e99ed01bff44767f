//! One attempt: from where the last one stopped to the end, or as far as it goes.

use super::{
    super::{
        Delivery, Journal, Outcome, Trouble,
        multipart::{Multipart, Upload},
    },
    company::Company,
    note::{Begun, Frame, Made, Note, Posting},
    settle::{Call, Unsure},
    stop::{Stop, refused},
    text,
};
use crate::activity::{FileRef, Kind};
use crate::observe::{Promise, events};
use crate::severa::{
    Activity, Failed, Pages, Paging, Participant, Project, ProjectFile, Reference, Refusal, Request, SITS_OUT,
};
use crate::web::CallError;
use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

/// What is posted now is created after this much before now, whatever the two clocks of a server farm say.
const MARGIN: Duration = Duration::from_secs(300);

/// Slowest upload that is waited for, in bytes a second, on top of `timeout`.
const SLOWEST_UPLOAD: u64 = 256 * 1024;

/// An attempt under way.
pub(super) struct Steps<'a> {
    pub(super) company: &'a Company,
    pub(super) delivery: &'a Delivery,
    pub(super) journal: &'a dyn Journal,
    pub(super) unsure: &'a Unsure,
}

impl Steps<'_> {
    /// Does what is left to be done.
    pub(super) async fn take(&self) -> Result<(), Stop> {
        let note = Note::read(self.journal.last().as_deref());
        let note =
            note.map_err(|error| Stop::held(format!("the note of what was done cannot be read: {error}")))?;
        let made = match note {
            Note::Nothing if self.delivery.replay => match self.delivered_before().await? {
                Some(made) => made,
                None => self.post().await?,
            },
            Note::Nothing => self.post().await?,
            Note::Posting(posting) => match self.find(&posting).await? {
                Some(activity) => self.is_made(activity, posting.frame).await?,
                None => self.post().await?,
            },
            Note::Made(made) => made,
        };
        self.finish(made).await
    }

    fn settle(&self) -> Duration {
        self.company.settings.settle
    }

    fn marker(&self) -> String {
        text::marker(&self.delivery.activity.key)
    }

    async fn note(&self, note: Note) -> Result<(), Stop> {
        Ok(self.journal.note(note.written()).await?)
    }

    /// A call that creates something begins.
    fn call(&self) -> Call<'_> {
        self.unsure.call(&self.delivery.activity.key, self.settle())
    }

    /// What a call came to whose intent is noted: `before` is noted again if nothing was done.
    async fn answer<T>(
        &self,
        call: Call<'_>,
        before: Note,
        answer: Result<T, Failed>,
    ) -> Result<Answer<T>, Stop> {
        match answer {
            Ok(made) => {
                call.answered();
                Ok(Answer::Made(made))
            }
            Err(Failed::Refused(refusal)) => {
                call.answered();
                Ok(Answer::Refused(refusal))
            }
            Err(
                failed @ (Failed::NotSent(_)
                | Failed::NoToken(_)
                | Failed::Busy(_)
                | Failed::Paused(_)
                | Failed::Account(_)),
            ) => {
                call.answered();
                self.note(before).await?;
                Err(failed.into())
            }
            Err(failed @ (Failed::Lost(_) | Failed::AccountOrLost(_) | Failed::Ours(_))) => {
                drop(call);
                Err(Stop::from(failed).lost(self.settle()))
            }
        }
    }

    /// Waits for its time to look for what a lost answer made.
    fn may_look(&self) -> Result<(), Stop> {
        match self.unsure.left(&self.delivery.activity.key, self.settle()) {
            None => Ok(()),
            Some(left) => {
                let reason = format!("an answer was lost: what it made is looked for in {left:.0?}");
                Err(Stop::again(Some(left), Trouble::Waits, reason))
            }
        }
    }

    /// Creates the activity.
    async fn post(&self) -> Result<Made, Stop> {
        let kind = self.company.kind().await?;
        let place = self.place().await?;
        let client = self.company.client();
        client.scopes_missing().await?; // a token: its answer has shown what time it is there
        let posting = Posting {
            since: client.written_before(MARGIN),
            activity_type: kind.clone(),
            owner: self.delivery.activity.owner.user_id.clone(),
            frame: self.frame(place.as_ref().map(|place| place.project.clone())),
        };
        let frame = posting.frame.clone();
        let body = self.body(&kind, &frame, place.as_ref().map(|place| place.phase.as_str()));
        let notes = body["notes"].as_str().unwrap_or_default();
        if !text::is_whole(notes, &self.marker(), self.company.settings.notes_limit) {
            let seen = "notes without their marker, or longer than notes_limit";
            events::broken(Promise::Notes, self.delivery.activity.key.as_str(), &seen);
        }
        self.note(Note::Posting(posting)).await?;
        let call = self.call();
        let request = Request::post(&["v1", "activities"]);
        let put = |http: reqwest::RequestBuilder| Ok(http.json(&body));
        let answer = client.create::<Activity>(&request, &put, client.timeout()).await;
        let answer = answer.and_then(|activity| {
            self.look_at_notes(&activity);
            with_guid(activity.guid, "POST /v1/activities")
        });
        match self.answer(call, Note::Nothing, answer).await? {
            Answer::Made(guid) => self.is_made(guid, frame).await,
            Answer::Refused(refusal) => {
                self.note(Note::Nothing).await?;
                // A type that is gone is a setting, and every e-mail would be refused like this one.
                self.company.still_has(&kind).await?;
                Err(Failed::Refused(refusal).into())
            }
        }
    }

    /// What the log says of it.
    fn which(&self) -> events::Which<'_> {
        let activity = &self.delivery.activity;
        events::Which {
            queue_id: activity.envelope.queue_id.as_deref().unwrap_or_default(),
            key: activity.key.as_str(),
            tenant: &self.company.settings.prefix,
        }
    }

    /// Notes that come back without the marker were cut: an activity could not be found again.
    fn look_at_notes(&self, activity: &Activity) {
        if activity.notes.as_deref().is_some_and(|notes| !text::ends_in(notes, &self.marker())) {
            events::severa_marker_lost(&self.company.settings.prefix, self.company.settings.notes_limit);
        }
    }

    fn frame(&self, project: Option<String>) -> Frame {
        let (client, inline_files) = (self.company.client(), self.company.settings.inline_files);
        let (url, client_id) = (client.url().to_string(), client.client_id().to_owned());
        Frame { url, client_id, project, inline_files }
    }

    async fn is_made(&self, activity: String, frame: Frame) -> Result<Made, Stop> {
        let made = Made::new(activity, frame);
        self.note(Note::Made(made.clone())).await?;
        Ok(made)
    }

    fn body(&self, kind: &str, frame: &Frame, phase: Option<&str>) -> Value {
        let (activity, settings) = (&self.delivery.activity, &self.company.settings);
        // Both are RFC 3339 in UTC, so that their order as texts is that of time.
        let at = (&activity.sent_at).min(&activity.received_at);
        let homeless: Vec<&FileRef> = activity.files.iter().filter(|file| !frame.takes(file)).collect();
        let mut body = json!({
            "name": activity.subject,
            "notes": text::notes(activity, &homeless, settings.notes_limit),
            "activityType": {"guid": kind},
            "ownerUser": {"guid": activity.owner.user_id},
            "startDateTime": at,
            "endDateTime": at,
            "isClosed": settings.closed,
        });
        if let Some(customer) = &activity.customer {
            body["customer"] = json!({"guid": customer.id});
        }
        if let Some(phase) = phase {
            body["phase"] = json!({"guid": phase});
        }
        body
    }

    /// Where the activity goes, if it is linked: asked each time, because a sales case that is won gets another phase.
    async fn place(&self) -> Result<Option<Place>, Stop> {
        let Some(project) = &self.delivery.activity.project else { return Ok(None) };
        let client = self.company.client();
        let request = Request::get(&["v1", "projects", &project.id]);
        match client.read::<Project>(&request).await {
            Ok(found) => {
                if let Some(place) = Place::of(&project.id, &found) {
                    return Ok(Some(place));
                }
            }
            Err(Failed::Refused(refusal)) if refusal.status == 404 => {}
            Err(failed) => return Err(failed.into()),
        }
        let request = Request::get(&["v1", "salescases"]).with("numbers", &project.number);
        let cases: Vec<Project> = Pages::of(client, request, Paging::Token).sit_out(SITS_OUT).all().await?;
        let is_it = |case: &&Project| case.number.is_some_and(|number| number.to_string() == project.number);
        let found: Vec<&Project> = cases.iter().filter(is_it).collect();
        let same = found.iter().find(|case| case.guid.as_deref() == Some(&project.id));
        let place = same.or(found.first()).and_then(|case| Place::of(case.guid.as_deref()?, case));
        place.map(Some).ok_or_else(|| {
            let number = &project.number;
            Stop::held(format!("{number} is no project or sales case with a root phase any more"))
        })
    }

    /// Looks for the activity of a lost answer.
    async fn find(&self, posting: &Posting) -> Result<Option<String>, Stop> {
        self.may_look()?;
        let request = Request::get(&["v1", "activities"])
            .with("activityTypeGuids", &posting.activity_type)
            .with("userGuids", &posting.owner)
            .with("changedSince", &posting.since);
        self.search(request).await
    }

    /// A replay: looks for what was delivered before, and may be lost with the rest of what was restored from a back-up.
    /// Of the call that made it nothing is known any more but that it came after the e-mail; its type may have been another.
    async fn delivered_before(&self) -> Result<Option<Made>, Stop> {
        let client = self.company.client();
        client.scopes_missing().await?; // a token: its answer has shown what time it is there
        let accepted = humantime::parse_rfc3339_weak(&self.delivery.activity.received_at);
        let age = accepted.map(|accepted| accepted.elapsed().unwrap_or_default());
        let age = age.map_err(|error| Stop::held(format!("received_at cannot be read: {error}")))?;
        let request = Request::get(&["v1", "activities"])
            .with("userGuids", &self.delivery.activity.owner.user_id)
            .with("changedSince", client.written_before(age.saturating_add(MARGIN)));
        let Some(activity) = self.search(request).await? else { return Ok(None) };
        let frame = self.frame(self.place().await?.map(|place| place.project));
        let made = Made { begun: Some(Begun::Before), ..Made::new(activity, frame) };
        self.note(Note::Made(made.clone())).await?;
        Ok(Some(made))
    }

    /// The activity with our marker, if it is among those that are asked for.
    async fn search(&self, request: Request) -> Result<Option<String>, Stop> {
        let marker = self.marker();
        let mut pages = Pages::of(self.company.client(), request, Paging::Token).sit_out(SITS_OUT);
        while let Some(page) = pages.next::<Activity>().await? {
            let is_it = |activity: &Activity| {
                activity.notes.as_deref().is_some_and(|notes| text::ends_in(notes, &marker))
            };
            if let Some(guid) = page.into_iter().find(is_it).and_then(|activity| activity.guid) {
                events::severa_found(&self.which(), "activity");
                return Ok(Some(guid));
            }
        }
        readable(&pages)?;
        Ok(None)
    }

    /// What follows when the activity is there: participants, then files.
    async fn finish(&self, mut made: Made) -> Result<(), Stop> {
        let mut there = HashSet::new();
        match made.begun {
            None => {}
            Some(Begun::Participant) => {
                self.may_look()?;
                match self.participants(&made.activity).await? {
                    Some(found) => there = found,
                    None => return self.is_gone(&made),
                }
                made.begun = None;
            }
            Some(Begun::File(number)) => {
                self.may_look()?;
                let found = self.files_there(&made, &[number].into()).await?;
                made.files.extend(found);
                made.begun = None;
            }
            Some(Begun::Before) => {
                match self.participants(&made.activity).await? {
                    Some(found) => there = found,
                    None => return self.is_gone(&made),
                }
                let all = (1..=self.delivery.activity.files.len()).collect();
                made.files = self.files_there(&made, &all).await?;
                made.begun = None;
            }
        }
        match self.add_participants(&mut made, &there).await? {
            Presence::There => self.add_files(made).await,
            Presence::Gone => self.is_gone(&made),
        }
    }

    /// A person deleted the activity: what that person wanted, is done. Unless it is another organisation that we ask.
    fn is_gone(&self, made: &Made) -> Result<(), Stop> {
        let now = self.frame(None);
        if (&now.url, &now.client_id) != (&made.frame.url, &made.frame.client_id) {
            let Made { activity, frame, .. } = made;
            return Err(Stop::held(format!(
                "the activity {activity} was posted at {} with client id {}, and the one of now does not have it",
                frame.url, frame.client_id
            )));
        }
        events::severa_activity_gone(&self.which());
        Ok(())
    }

    /// Who is a participant already; none if the activity is gone.
    async fn participants(&self, activity: &str) -> Result<Option<HashSet<String>>, Stop> {
        let request = Request::get(&["v1", "activities", activity, "activityparticipants"]);
        match self.company.client().read::<Vec<Participant>>(&request).await {
            Ok(found) => {
                let guids = found.into_iter().filter_map(|one| one.participant_guid);
                Ok(Some(guids.map(|guid| guid.to_lowercase()).collect()))
            }
            Err(Failed::Refused(refusal)) if refusal.status == 404 && !self.is_there(activity).await? => {
                Ok(None)
            }
            Err(failed) => Err(failed.into()),
        }
    }

    /// False only if Severa says so twice, and another answer between shows that it is Severa who speaks.
    async fn is_there(&self, activity: &str) -> Result<bool, Stop> {
        if self.asks_for(activity).await? {
            return Ok(true);
        }
        self.company.kinds().await?;
        self.asks_for(activity).await
    }

    async fn asks_for(&self, activity: &str) -> Result<bool, Stop> {
        match self.company.client().read::<Activity>(&Request::get(&["v1", "activities", activity])).await {
            Ok(_) => Ok(true),
            Err(Failed::Refused(refusal)) if refusal.status == 404 => Ok(false),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Users and contacts, each once, the owner not among them: in the same order at each attempt.
    fn people(&self) -> Vec<(&str, &'static str)> {
        let activity = &self.delivery.activity;
        let mut seen = HashSet::from([activity.owner.user_id.as_str()]);
        let people = activity.participants.iter().filter_map(|person| {
            let kind = match person.kind {
                Kind::User => "User",
                Kind::Contact => "Contact",
                Kind::External => return None,
            };
            Some((person.id.as_deref()?, kind))
        });
        people.filter(|(guid, _)| seen.insert(guid)).collect()
    }

    async fn add_participants(&self, made: &mut Made, there: &HashSet<String>) -> Result<Presence, Stop> {
        let people = self.people();
        let client = self.company.client();
        while let Some(&(guid, kind)) = people.get(made.people) {
            if there.contains(&guid.to_lowercase()) {
                made.people += 1;
                continue;
            }
            let before = Note::Made(made.clone());
            self.note(Note::Made(Made { begun: Some(Begun::Participant), ..made.clone() })).await?;
            let call = self.call();
            let body = json!({"activityGuid": made.activity, "participantGuid": guid, "type": kind});
            let put = |http: reqwest::RequestBuilder| Ok(http.json(&body));
            let request = Request::post(&["v1", "activityparticipants"]);
            let answer = client.create::<Participant>(&request, &put, client.timeout()).await;
            let answer = answer.and_then(|one| with_guid(one.guid, "POST /v1/activityparticipants"));
            match self.answer(call, before.clone(), answer).await? {
                Answer::Made(_) => {}
                Answer::Refused(refusal) => {
                    if refusal.status == 404 && !self.is_there(&made.activity).await? {
                        return Ok(Presence::Gone);
                    }
                    if !matches!(refusal.status, 400 | 404) {
                        self.note(before).await?;
                        return Err(Failed::Refused(refusal).into());
                    }
                    events::severa_participant_skipped(&self.which(), guid, &refusal);
                }
            }
            made.people += 1;
        }
        Ok(Presence::There)
    }

    /// Uploads the files that are not there, each alone; those that are refused do not stand before the others.
    async fn add_files(&self, mut made: Made) -> Result<(), Stop> {
        let Some(project) = made.frame.project.clone() else { return Ok(()) };
        let mut refused_files: Vec<(&FileRef, Refusal)> = Vec::new();
        for (index, file) in self.delivery.activity.files.iter().enumerate() {
            let number = index + 1;
            if !made.frame.takes(file) || made.files.contains(&number) {
                continue;
            }
            let before = Note::Made(made.clone());
            self.note(Note::Made(Made { begun: Some(Begun::File(number)), ..made.clone() })).await?;
            let call = self.call();
            let answer = self.upload(&project, index, file).await;
            match self.answer(call, before.clone(), answer).await? {
                Answer::Made(_) => {
                    made.files.insert(number);
                }
                Answer::Refused(refusal) if matches!(refusal.status, 400 | 413 | 415) => {
                    refused_files.push((file, refusal));
                }
                Answer::Refused(refusal) => {
                    self.note(before).await?;
                    return Err(Stop(refused(&refusal, Some(file.name.clone()))));
                }
            }
        }
        let Some((_, refusal)) = refused_files.first() else { return Ok(()) };
        self.note(Note::Made(made)).await?;
        let names: Vec<&str> = refused_files.iter().map(|(file, _)| file.name.as_str()).collect();
        Err(Stop(match refused(refusal, Some(names.join(", "))) {
            Outcome::Refused { status, detail, about } => {
                let count = refused_files.len();
                let detail = format!("{detail}: {count} of its files, all else is done");
                Outcome::Refused { status, detail: detail.trim_start_matches([':', ' ']).to_owned(), about }
            }
            other => other,
        }))
    }

    async fn upload(&self, project: &str, index: usize, file: &FileRef) -> Result<String, Failed> {
        let client = self.company.client();
        let description = text::description(&self.marker(), index + 1);
        let json = json!({"Name": file.name, "Description": description}).to_string();
        let Some(cut) = self.delivery.cuts.get(index) else {
            return Err(Failed::Ours("a file's place in the message is not known".to_owned()));
        };
        let body = Arc::new(Multipart::described(self.delivery, file, *cut, Bytes::from(json)));
        let upload = Upload::default();
        let put = |http: reqwest::RequestBuilder| {
            let whole = body.body(&upload).map_err(|error| CallError::Ours(error.to_string()))?;
            let http = http.header(CONTENT_TYPE, body.content_type()).header(CONTENT_LENGTH, body.length());
            Ok(http.body(whole))
        };
        let patience = client.timeout() + Duration::from_secs(body.length() / SLOWEST_UPLOAD);
        let request = Request::post(&["v1", "projects", project, "files"]);
        let answer = client.create::<Vec<ProjectFile>>(&request, &put, patience).await;
        match (answer, upload.failure()) {
            (Err(Failed::Lost(_)), Some(ours)) => Err(Failed::Ours(ours)),
            (answer, _) => {
                let guid = answer?.into_iter().find_map(|file| file.guid.or(file.file_guid));
                with_guid(guid, "POST /v1/projects/…/files")
            }
        }
    }

    /// Which of these files are there, by their numbers.
    async fn files_there(&self, made: &Made, wanted: &BTreeSet<usize>) -> Result<BTreeSet<usize>, Stop> {
        let mut found = BTreeSet::new();
        let Some(project) = &made.frame.project else { return Ok(found) };
        let descriptions: HashMap<String, usize> =
            wanted.iter().map(|number| (text::description(&self.marker(), *number), *number)).collect();
        let request = Request::get(&["v1", "projects", project, "files"]);
        let mut pages = Pages::of(self.company.client(), request, Paging::Rows).sit_out(SITS_OUT);
        while found.len() < wanted.len()
            && let Some(page) = pages.next::<ProjectFile>().await?
        {
            let number = |file: &ProjectFile| descriptions.get(file.description.as_deref()?.trim()).copied();
            found.extend(page.iter().filter_map(number));
        }
        if found.len() < wanted.len() {
            readable(&pages)?;
        }
        for _ in &found {
            events::severa_found(&self.which(), "file");
        }
        Ok(found)
    }
}

impl Frame {
    /// True if a file of the e-mail becomes one of the project.
    fn takes(&self, file: &FileRef) -> bool {
        self.project.is_some() && (self.inline_files || !file.inline)
    }
}

/// What a call that creates something came to.
enum Answer<T> {
    Made(T),
    Refused(Refusal),
}

/// What became of the activity meanwhile.
enum Presence {
    There,
    Gone,
}

/// What an activity is linked to.
struct Place {
    project: String,
    phase: String,
}

impl Place {
    fn of(guid: &str, project: &Project) -> Option<Self> {
        let phase = Reference::guid_of(project.root_phase.as_ref())?;
        Some(Self { project: guid.to_owned(), phase: phase.to_owned() })
    }
}

/// Success without an id is no answer: something was made, and must be looked for.
fn with_guid(guid: Option<String>, what: &str) -> Result<String, Failed> {
    let guid = guid.filter(|guid| !guid.trim().is_empty());
    guid.ok_or_else(|| Failed::Lost(format!("{what}: success, and no guid")))
}

/// What cannot be read may be what is looked for.
fn readable(pages: &Pages<'_>) -> Result<(), Stop> {
    match pages.unreadable() {
        0 => Ok(()),
        count => Err(Stop::again(None, Trouble::Later, format!("{count} rows of the search cannot be read"))),
    }
}
