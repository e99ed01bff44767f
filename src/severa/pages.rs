//! Lists of the API, page by page. It has two ways of paging, and a list has one of them.
//!
//! In: the request of a list. Out: its rows, a page at a time, until there are no more.
//! Promise: it ends, whatever a server that repeats itself answers; a row that cannot be read is left out, and counted.

use super::{
    client::{Client, Patience, Request},
    error::Failed,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, SeqAccess, Visitor},
};
use std::{collections::HashSet, fmt, marker::PhantomData, time::Duration};

/// Rows asked for at a time: the most that the API gives.
const ROWS: &str = "100";

/// Rows of a page that are read at most: a list that knows no pages is still understood.
const MOST_ROWS: usize = 100_000;

/// Pages that are read at most: a million rows.
const MOST_PAGES: usize = 10_000;

/// How a list is paged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// `pageToken`, from the header `NextPageToken`, until that is absent, empty or one that was there already.
    Token,
    /// `firstRow`, by the rows received so far, until a page is empty: a server that gives fewer than asked must not end
    /// the list.
    Rows,
}

/// A list being read.
#[derive(Debug)]
pub struct Pages<'a> {
    client: &'a Client,
    request: Request,
    paging: Paging,
    patience: Patience,
    next: Option<Next>,
    seen: HashSet<String>,
    /// The ends of the page before.
    before: Option<Ends>,
    unreadable: usize,
}

/// First and last guid of a page, and its length: a server that ignores `firstRow` gives the same page for ever.
type Ends = (String, String, usize);

/// The rows of a page, read one by one: a page of a million numbers takes no more memory than its bytes.
struct Rows<T> {
    read: Vec<T>,
    count: usize,
    ends: Option<Ends>,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Rows<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(RowsVisitor(PhantomData))
    }
}

struct RowsVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for RowsVisitor<T> {
    type Value = Rows<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rows<T>, A::Error> {
        let mut rows = Rows { read: Vec::new(), count: 0, ends: None };
        let (mut first, mut last) = (None, None);
        while let Some(row) = list.next_element::<serde_json::Value>()? {
            rows.count += 1;
            if rows.count > MOST_ROWS {
                return Err(A::Error::custom("a page of too many rows"));
            }
            last = row.get("guid").and_then(|guid| guid.as_str()).map(str::to_owned);
            if rows.count == 1 {
                first.clone_from(&last);
            }
            rows.read.extend(serde_json::from_value(row).ok());
        }
        rows.ends = first.zip(last).map(|(first, last)| (first, last, rows.count));
        Ok(rows)
    }
}

#[derive(Debug)]
struct Next {
    token: Option<String>,
    row: usize,
    page: usize,
}

impl<'a> Pages<'a> {
    /// The list of a request.
    pub fn of(client: &'a Client, request: Request, paging: Paging) -> Self {
        let next = Some(Next { token: None, row: 0, page: 0 });
        let patience = Patience::usual(client);
        Self { client, request, paging, patience, next, seen: HashSet::new(), before: None, unreadable: 0 }
    }

    /// Pauses after a 429 up to this long are sat out.
    pub fn sit_out(mut self, pause: Duration) -> Self {
        self.patience.pause = pause;
        self
    }

    /// Rows of the pages so far that could not be read.
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// The next page; none after the last one. After a failure the same page can be asked for again.
    /// # Errors
    /// [`Failed`]
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<Vec<T>>, Failed> {
        let Some(next) = &self.next else { return Ok(None) };
        let mut request = self.request.clone().with("rowCount", ROWS);
        match (self.paging, &next.token) {
            (Paging::Token, Some(token)) => request = request.with("pageToken", token),
            (Paging::Token, None) => {}
            (Paging::Rows, _) => request = request.with("firstRow", next.row.to_string()),
        }
        let (rows, token): (Rows<T>, _) = self.client.page(&request, self.patience).await?;
        let (row, page) = (next.row + rows.count, next.page + 1);
        let goes_on = match self.paging {
            Paging::Token => token.as_ref().is_some_and(|token| self.seen.insert(token.clone())),
            Paging::Rows => {
                let repeats = rows.ends.is_some() && rows.ends == self.before;
                self.before = rows.ends;
                rows.count > 0 && !repeats
            }
        };
        self.next = (goes_on && page < MOST_PAGES).then_some(Next { token, row, page });
        self.unreadable += rows.count - rows.read.len();
        Ok(Some(rows.read))
    }

    /// All rows.
    /// # Errors
    /// [`Failed`]
    pub async fn all<T: DeserializeOwned>(mut self) -> Result<Vec<T>, Failed> {
        let mut all = Vec::new();
        while let Some(mut page) = self.next().await? {
            all.append(&mut page);
        }
        Ok(all)
    }
}
