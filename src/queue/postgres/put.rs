//! Takes the activities of a message.
//!
//! In: a [`Parcel`]. Out: what became of each activity.
//! Promise: all of a message or none, once for each key. When it returns, the database has committed, with the guarantee
//! that is asked of it.
//! Fails: [`StorageError`]; nothing is stored then, or nobody knows, and the same message again finds out.
//!
//! The essay: one statement does it all, for all messages that wait (`together`), so a small message costs a part of one
//! round trip and one commit. It always writes: an
//! `INSERT … ON CONFLICT DO NOTHING` that finds the key answers at once, also where the row it found is on no standby yet,
//! and the second try of a client would be told 250 for a row that dies with the primary. An update of the row that is
//! there waits for the standby as every other commit does. Keys are written in their order, so that two messages with the
//! same ones wait for each other and never both.

use super::{
    Inner,
    fault::{lacks_function, lacks_partition},
    leaving,
    line::{Line, Trouble, Value},
    mail::{Columns, Mail},
    mend, past, payload,
    routine::{Made, Routine},
};
use crate::activity::{Key, Parcel, Raw};
use crate::queue::{
    Put, StorageError,
    tally::{self, Room},
    written,
};
use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
};
use tokio_postgres::types::Type;

/// Bytes of JSON and small messages that may be on their way, over all messages; more wait in their callers.
pub(super) const ON_THE_WAY: usize = 64 << 20;

/// Largest message, in bytes, whose activities become JSON where they are.
const WORDED_AT_ONCE: u64 = 64 * 1024;

/// Several messages. `mail` is the number of a message among them, and `ord` that of an activity among all.
pub(super) static PUT: Routine = LazyLock::new(|| {
    let (texts, numbers, bytes) = (Type::TEXT_ARRAY, Type::INT8_ARRAY, Type::BYTEA_ARRAY);
    let takes = [
        Type::INT8,
        numbers.clone(),
        bytes.clone(),
        texts.clone(),
        texts.clone(),
        texts.clone(),
        texts.clone(),
        numbers,
        bytes.clone(),
        texts.clone(),
        texts,
        bytes,
    ];
    let gives = [Type::INT8, Type::BOOL, Type::INT8, Type::INT8, Type::INT8];
    Made::new("put", &takes, &gives, STORE)
});

const STORE: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    given AS MATERIALIZED (
        SELECT ord, mail, key, tenant, prefix, brief, activity, size, nextval('activity_milter.number'::regclass) AS id
        FROM unnest($2::int8[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::text[], $8::int8[])
            WITH ORDINALITY AS given (mail, key, tenant, prefix, brief, activity, size, ord)),
    mails AS MATERIALIZED (
        SELECT mail, cuts, text, bytes, CASE WHEN targets = 1 THEN id ELSE nextval('activity_milter.number'::regclass) END AS letter
        FROM unnest($10::text[], $11::text[], $12::bytea[]) WITH ORDINALITY AS mails (cuts, text, bytes, mail)
        JOIN (SELECT mail, count(*) AS targets, min(id) AS id FROM given GROUP BY mail) AS of_mail USING (mail)),
    keys AS (
        INSERT INTO activity_milter.key AS known (key, item, at)
        SELECT key, item, now
        FROM (SELECT key, id AS item FROM given UNION ALL SELECT key, 0 FROM unnest($9::bytea[]) AS covered (key)) AS all_keys, t
        ORDER BY key
        ON CONFLICT (key) DO UPDATE SET at = excluded.at
        RETURNING key, item),
    fresh AS MATERIALIZED (
        SELECT given.*, letter FROM given JOIN mails USING (mail) JOIN keys ON keys.key = given.key AND keys.item = given.id),
    items AS (
        INSERT INTO activity_milter.item (id, key, tenant, letter, day, due, accepted_at, size)
        SELECT id, key, tenant, letter, now / 86400000, now, now, size FROM fresh, t ORDER BY id),
    texts AS (
        INSERT INTO activity_milter.payload (day, id, part, brief, activity, cuts, text, bytes)
        SELECT now / 86400000, fresh.id, 0, brief, activity, own.cuts, own.text, own.bytes
        FROM t, fresh LEFT JOIN mails AS own ON own.mail = fresh.mail AND own.letter = fresh.id
        UNION ALL
        SELECT now / 86400000, letter, 0, NULL, NULL, cuts, text, bytes FROM t, mails
        WHERE EXISTS (SELECT FROM fresh WHERE fresh.mail = mails.mail AND fresh.id <> mails.letter)),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, prefix, waiting)
        SELECT tenant, min(prefix), count(*) FROM fresh GROUP BY tenant)
    SELECT mail, coalesce(keys.item = given.id, false), letter, now, given.id
    FROM t, given JOIN mails USING (mail) LEFT JOIN keys ON keys.key = given.key ORDER BY ord";

/// Takes a message.
pub(super) async fn put(inner: Arc<Inner>, parcel: Parcel) -> Result<Vec<Put>, StorageError> {
    inner.is_service()?;
    inner.note_leaps().await?;
    // A key twice in one message: the first of them counts.
    let mut seen = HashSet::new();
    let is_first: Vec<bool> = parcel.activities.iter().map(|one| seen.insert(one.key.bytes())).collect();
    let covered: Vec<Vec<u8>> = parcel
        .covered
        .iter()
        .map(Key::bytes)
        .filter(|key| seen.insert(*key))
        .map(|key| key.to_vec())
        .collect();
    let tenants: Vec<String> = parcel.activities.iter().map(|one| one.tenant.id.clone()).collect();
    let keys: Vec<Key> = parcel.activities.iter().map(|one| one.key.clone()).collect();
    let room = inner.room(&tenants, &keys).await?;
    let cuts = serde_json::to_string(&parcel.cuts).map_err(written::damaged)?;
    let text = parcel.verbatim.filter(|_| matches!(parcel.raw, Raw::Memory(_)));
    let (raw, mut given) = (parcel.raw, is_first.iter());
    let mut activities = parcel.activities;
    activities.retain(|_| given.next().copied().unwrap_or(true));
    let held = if matches!(raw, Raw::Memory(_)) { raw.len() } else { 0 };
    let bytes = activities.iter().map(written::size_of).sum::<u64>() + held;
    let permits = u32::try_from(bytes.min(ON_THE_WAY as u64) >> 10).unwrap_or(u32::MAX);
    let _words =
        inner.words.acquire_many(permits).await.map_err(|error| StorageError::Other(error.to_string()))?;
    let columns = if raw.len() <= WORDED_AT_ONCE {
        Columns::of(activities, text, held)?
    } else {
        let word = tokio::task::spawn_blocking(move || Columns::of(activities, text, held));
        word.await.map_err(|error| StorageError::Other(error.to_string()))??
    };
    let text = text.map(|cut| serde_json::to_string(&cut)).transpose().map_err(written::damaged)?;
    let mail = Mail { columns, covered, cuts, text, raw, pasts: Vec::new() };
    let (fresh, mail) = if mail.is_long() {
        let nothing = || Err(StorageError::Other("it was not stored".to_owned()));
        all_or_each(&inner, vec![mail]).await.pop().unwrap_or_else(nothing)?
    } else {
        inner.puts.bring(mail, fits, |mails| all_or_each(&inner, mails)).await?
    };
    let mended = mend::mend(&inner, &mail, &fresh).await?;
    let mut stored = fresh.into_iter().zip(mended);
    let mut puts = Vec::with_capacity(tenants.len());
    for is_first in is_first {
        puts.push(match is_first.then(|| stored.next()).flatten() {
            Some((true, _)) => Put::New,
            Some((_, true)) => Put::Mended,
            _ => Put::Known,
        });
    }
    let waiting = tally::Numbers { waiting: 1, ..tally::Numbers::default() };
    let new = tenants.into_iter().zip(&puts).filter(|(_, put)| **put == Put::New);
    inner.tally.commit(new.map(|(tenant, _)| (tenant, waiting)));
    drop(room); // counted, from here on
    if puts.iter().any(|put| *put != Put::Known) {
        inner.ring();
    }
    Ok(puts)
}

/// How often a statement is tried once more: each of the connections that rest may be of no use.
const MOST_TRIES: usize = 20;

/// Messages of one statement.
const MOST_MAILS: usize = 64;

/// Bytes of one statement, unless it is for a single message.
const MOST_BYTES: u64 = 4 << 20;

/// A key is written once in a statement: the same e-mail waits for the next.
pub(super) fn fits(mails: &[Mail], one: &Mail) -> bool {
    mails.len() < MOST_MAILS
        && mails.iter().map(Mail::bytes).sum::<u64>() + one.bytes() <= MOST_BYTES
        && !mails.iter().any(|other| other.keys().any(|key| one.keys().any(|own| own == key)))
}

/// Which activities of a message are new, and the message.
pub(super) type Stored = (Vec<bool>, Mail);

/// Stores messages, all in one, or each for itself where one of them cannot be.
async fn all_or_each(inner: &Inner, mails: Vec<Mail>) -> Vec<Result<Stored, StorageError>> {
    let all: Vec<&Mail> = mails.iter().collect();
    match store_on_a_day(inner, &all).await {
        Ok(fresh) => fresh.into_iter().zip(mails).map(Ok).collect(),
        Err(Trouble::Said(_)) if all.len() > 1 => {
            let mut each = Vec::with_capacity(mails.len());
            for one in mails {
                let fresh = store_on_a_day(inner, &[&one]).await;
                let stored = fresh.map(|mut fresh| (fresh.pop().unwrap_or_default(), one));
                each.push(stored.map_err(StorageError::from));
            }
            each
        }
        Err(trouble) => {
            let error = StorageError::from(trouble);
            mails.iter().map(|_| Err(error.clone())).collect()
        }
    }
}

/// Stores them; makes the table of a day that has none.
pub(super) async fn store_on_a_day(inner: &Inner, mails: &[&Mail]) -> Result<Vec<Vec<bool>>, Trouble> {
    let mut tries = 0;
    loop {
        match store(inner, mails).await {
            Err(Trouble::Said(error)) if lacks_partition(&error) && tries < MOST_TRIES => {
                payload::prepare(inner).await.map_err(Trouble::Unsure)?;
            }
            // Within a transaction: the next one does without.
            Err(Trouble::Said(error)) if lacks_function(&error) && tries < MOST_TRIES => {}
            // A connection that somebody between cut while it rested. Perhaps it was done: then it is known.
            Err(Trouble::Said(error)) if error.as_db_error().is_none() && tries < MOST_TRIES => inner.ring(),
            stored => return stored,
        }
        tries += 1;
    }
}

async fn store(inner: &Inner, mails: &[&Mail]) -> Result<Vec<Vec<bool>>, Trouble> {
    let mut line = inner.lines.lend(inner.patience).await.map_err(Trouble::Unsure)?;
    // Now, and not before: the connection may be a new one, to another server.
    inner.may_commit(&line).map_err(Trouble::Unsure)?;
    let stored = store_on(inner, &mut line, mails).await;
    inner.finds(&line);
    stored
}

async fn store_on(inner: &Inner, line: &mut Line, mails: &[&Mail]) -> Result<Vec<Vec<bool>>, Trouble> {
    let mut pieces = Vec::with_capacity(mails.len());
    for mail in mails {
        pieces.push(payload::part(&mail.raw, 0).await.map_err(Trouble::Unsure)?);
    }
    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
    let numbers = || (1_i64..).zip(mails);
    let mail_of: Vec<i64> =
        numbers().flat_map(|(number, mail)| mail.columns.keys.iter().map(move |_| number)).collect();
    fn of<'a, T>(mails: &[&'a Mail], column: impl Fn(&'a Columns) -> &'a Vec<T>) -> Vec<&'a T> {
        mails.iter().flat_map(|mail| column(&mail.columns)).collect()
    }
    let covered: Vec<&Vec<u8>> = mails.iter().flat_map(|mail| &mail.covered).collect();
    let cuts: Vec<&String> = mails.iter().map(|mail| &mail.cuts).collect();
    let texts: Vec<&Option<String>> = mails.iter().map(|mail| &mail.text).collect();
    let long = mails.iter().find(|mail| mail.is_long());
    let is_moved = mails.iter().any(|mail| !mail.pasts.is_empty());
    let is_in_parts = long.is_some() || is_moved;
    if is_in_parts {
        line.begin().await.map_err(Trouble::Unsure)?;
    }
    if is_moved {
        leaving::may_take_in(inner, line).await.map_err(Trouble::Unsure)?;
    }
    let values: &[Value<'_>] = &[
        (&inner.when.given(), Type::INT8),
        (&mail_of, Type::INT8_ARRAY),
        (&of(mails, |columns| &columns.keys), Type::BYTEA_ARRAY),
        (&of(mails, |columns| &columns.tenants), Type::TEXT_ARRAY),
        (&of(mails, |columns| &columns.prefixes), Type::TEXT_ARRAY),
        (&of(mails, |columns| &columns.briefs), Type::TEXT_ARRAY),
        (&of(mails, |columns| &columns.activities), Type::TEXT_ARRAY),
        (&of(mails, |columns| &columns.sizes), Type::INT8_ARRAY),
        (&covered, Type::BYTEA_ARRAY),
        (&cuts, Type::TEXT_ARRAY),
        (&texts, Type::TEXT_ARRAY),
        (&pieces, Type::BYTEA_ARRAY),
    ];
    let rows = match is_in_parts {
        true => line.call(&PUT, values).await?,
        false => line.call_for_good(&PUT, values).await?,
    };
    let mut fresh: Vec<Vec<bool>> = mails.iter().map(|_| Vec::new()).collect();
    for row in &rows {
        let mail = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
        if let Some(fresh) = fresh.get_mut(mail) {
            fresh.push(row.get(1));
        }
    }
    if let Some(long) = long
        && fresh.iter().flatten().any(|is_fresh| *is_fresh)
        && let Some(row) = rows.first()
    {
        let (number, now): (i64, i64) = (row.get(2), row.get(3));
        payload::write_rest(line, (number, now), &long.raw, inner.patience).await?;
    }
    if is_moved {
        let pasts = mails.iter().flat_map(|mail| &mail.pasts).zip(&rows);
        let pasts = pasts.filter(|(_, row)| row.get(1)).map(|(past, row)| (row.get(4), past));
        past::give_past(inner, line, &pasts.collect::<Vec<_>>()).await?;
    }
    if is_in_parts {
        line.commit_for_good().await?;
    }
    Ok(fresh)
}

/// Room for what comes from another queue; what is kept after its delivery needs none, and what is known neither: a page of
/// which a part is here already comes again.
pub(super) async fn room_for(inner: &Inner, mails: &[&Mail]) -> Result<Option<Room>, StorageError> {
    let mut rows = Vec::new();
    for mail in mails {
        let columns = mail.columns.tenants.iter().zip(&mail.columns.keys);
        for (past, (tenant, key)) in mail.pasts.iter().zip(columns) {
            let key = <[u8; 32]>::try_from(key.as_slice()).map(Key::from_bytes);
            if past.delivered_at.is_none() {
                rows.extend(key.ok().map(|key| (tenant.clone(), key)));
            }
        }
    }
    let keys: Vec<Key> = rows.iter().map(|(_, key)| key.clone()).collect();
    let mut line = inner.lookers.lend(super::LOOK_TIME).await?;
    let mut known = known_here(&mut line, &keys).await?.into_iter();
    drop(line);
    rows.retain(|_| known.next() != Some(true));
    let tenants: Vec<String> = rows.into_iter().map(|(tenant, _)| tenant).collect();
    // This machine's disk is none of it.
    if tenants.is_empty() { Ok(None) } else { inner.share(&tenants).await.map(Some) }
}

/// Whether each of these keys was recorded or covered, here at least: for who says nobody 250 for it.
async fn known_here(line: &mut Line, keys: &[Key]) -> Result<Vec<bool>, StorageError> {
    let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.bytes().to_vec()).collect();
    let rows = line
        .ask(
            "SELECT EXISTS (SELECT FROM activity_milter.key WHERE key.key = asked.key)
             FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (key, ord) ORDER BY ord",
            &[(&keys, Type::BYTEA_ARRAY)],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether each of these keys was recorded or covered, with the guarantee that is asked: what this server alone has is known to
/// nobody.
pub(super) async fn known(inner: &Inner, keys: &[Key]) -> Result<Vec<bool>, StorageError> {
    let mut line = inner.lines.lend(inner.patience).await?;
    let known = known_here(&mut line, keys).await?;
    if known.contains(&true) {
        let confirmed = line.confirm().await;
        inner.finds(&line);
        confirmed?;
    }
    Ok(known)
}
