//! A text as a tree of values that know their places: laid over another one, and looked up by place or by key.

use std::ops::Range;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

/// What stands somewhere.
#[derive(Debug)]
pub(super) struct Place<'t, 'i> {
    /// The key whose value it is, or part of; none for what is no value (a key, a table's header).
    pub(super) key: Option<String>,
    /// The value, the innermost one.
    pub(super) value: Option<&'t DeValue<'i>>,
}

/// The same tree, each place so many bytes later.
pub(super) fn shifted(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    let mut moved = DeTable::new();
    for (key, value) in table {
        let span = key.span();
        let key = Spanned::new(span.start + by..span.end + by, key.into_inner());
        moved.insert(key, shifted_value(value, by));
    }
    moved
}

fn shifted_value(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shifted(table, by)),
        DeValue::Array(list) => {
            let mut moved = DeArray::new();
            list.into_iter().for_each(|value| moved.push(shifted_value(value, by)));
            DeValue::Array(moved)
        }
        value => value,
    };
    Spanned::new(span.start + by..span.end + by, value)
}

/// Lays `over` over `under`.
pub(super) fn merge<'i>(under: &mut DeTable<'i>, over: DeTable<'i>) {
    for (key, value) in over {
        let Some(there) = under.get_mut(key.get_ref().as_ref()) else {
            under.insert(key, value);
            continue;
        };
        let (span, value) = (value.span(), value.into_inner());
        match (there.get_mut(), value) {
            (DeValue::Table(there), DeValue::Table(new)) => merge(there, new),
            (DeValue::Array(there), DeValue::Array(new)) if are_tables(there) && are_tables(&new) => {
                new.into_iter().for_each(|table| there.push(table));
            }
            (_, value) => *there = Spanned::new(span, value),
        }
    }
}

/// True for what `[[name]]` makes.
fn are_tables(list: &DeArray<'_>) -> bool {
    !list.is_empty() && list.iter().all(|value| value.get_ref().is_table())
}

/// What stands at a byte.
pub(super) fn at<'t, 'i>(tree: &'t Spanned<DeTable<'i>>, at: usize) -> Option<Place<'t, 'i>> {
    inside(tree.get_ref(), at, None)
}

/// `of`: the key whose value the table is, if it stands behind its key, in braces.
fn inside<'t, 'i>(table: &'t DeTable<'i>, at: usize, of: Option<&str>) -> Option<Place<'t, 'i>> {
    table.iter().find_map(|(key, value)| {
        if key.span().contains(&at) && !value.span().contains(&at) {
            return Some(Place { key: of.map(str::to_owned), value: None });
        }
        within(of.unwrap_or(key.get_ref()), value, at)
    })
}

fn within<'t, 'i>(key: &str, value: &'t Spanned<DeValue<'i>>, at: usize) -> Option<Place<'t, 'i>> {
    let here = |key| {
        let is_here = value.span().contains(&at) || value.span().start == at;
        is_here.then(|| Place { key, value: Some(value.get_ref()) })
    };
    match value.get_ref() {
        DeValue::Table(table) => {
            let of = is_in_braces(value.span(), table).then_some(key);
            inside(table, at, of).or_else(|| here(of.map(str::to_owned)))
        }
        DeValue::Array(list) => {
            let one = list.iter().find_map(|value| within(key, value, at));
            one.or_else(|| here(Some(key.to_owned())))
        }
        _ => here(Some(key.to_owned())),
    }
}

/// True if what a table has stands where it stands, not below a header.
fn is_in_braces(span: Range<usize>, table: &DeTable<'_>) -> bool {
    let has = |inner: Range<usize>| span.start < inner.start && inner.end <= span.end;
    !table.is_empty() && table.values().all(|value| has(value.span()))
}

/// The name of the table with this place, as its header has it: `[backend.oauth]`; empty for the whole text.
pub(super) fn table_at(tree: &Spanned<DeTable<'_>>, span: &Range<usize>) -> String {
    named(tree.get_ref(), span, "").unwrap_or_default()
}

fn named(table: &DeTable<'_>, span: &Range<usize>, above: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = format!("{above}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(_) if value.span() == *span => Some(format!("[{name}]")),
            DeValue::Table(table) => named(table, span, &format!("{name}.")),
            DeValue::Array(list) => list.iter().find_map(|value| match value.get_ref() {
                DeValue::Table(_) if value.span() == *span => Some(format!("[[{name}]]")),
                DeValue::Table(table) => named(table, span, &format!("{name}.")),
                _ => None,
            }),
            _ => None,
        }
    })
}

/// The header of the table in which the key at a byte stands; empty above all tables.
pub(super) fn table_of(tree: &Spanned<DeTable<'_>>, at: usize) -> String {
    holding(tree.get_ref(), at, "", "").unwrap_or_default()
}

fn holding(table: &DeTable<'_>, at: usize, above: &str, header: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        if key.span().contains(&at) {
            return Some(header.to_owned());
        }
        let name = format!("{above}{}", key.get_ref());
        let below = format!("{name}.");
        match value.get_ref() {
            DeValue::Table(table) => holding(table, at, &below, &format!("[{name}]")),
            DeValue::Array(list) => {
                let header = format!("[[{name}]]");
                let mut tables = list.iter().filter_map(|value| value.get_ref().as_table());
                tables.find_map(|table| holding(table, at, &below, &header))
            }
            _ => None,
        }
    })
}

/// The value of a dotted key.
pub fn value_at<'t, 'i>(tree: &'t DeTable<'i>, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
    match key.split_once('.') {
        None => tree.get(key),
        Some((table, rest)) => value_at(tree.get(table)?.get_ref().as_table()?, rest),
    }
}
