//! Records as readers see them.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use bytes::Bytes;
use tokio_postgres::Row;

use super::calls::{READ_RECORDS, SCAN_RECORDS, column};
use super::live::Live;
use super::session::Argument;
use super::step::signed;
use crate::backend::Record;
use crate::error::Result;

fn record(row: &Row) -> Result<Record> {
    Ok(Record {
        key: column::<&str>(row, 0)?.into(),
        version: u64::try_from(column::<i64>(row, 1)?).unwrap_or(0),
        value: Bytes::copy_from_slice(column(row, 2)?),
    })
}

/// Returns the least text above every text that begins with the prefix; `None` = there is none.
fn above(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // Bytes of UTF-8 are in the order of code points; surrogates are none.
        let next = u32::from(last) + 1;
        let next = if (0xd800..0xe000).contains(&next) { 0xe000 } else { next };
        if let Some(next) = char::from_u32(next) {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

impl Live {
    pub(super) async fn read(&self, keys: &[Arc<str>]) -> Result<Vec<Option<Record>>> {
        // A key that cannot be stored is not there.
        let asked: Vec<&str> =
            keys.iter().map(|key| &**key).filter(|key| !key.contains('\0')).collect();
        let _room = self.link.connector.room.ask(keys.len());
        let rows = self.pool.call(&READ_RECORDS, &[&asked], "").await?;
        let found: HashMap<Arc<str>, Record, RandomState> = rows
            .iter()
            .map(|row| record(row).map(|record| (Arc::clone(&record.key), record)))
            .collect::<Result<_>>()?;
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    pub(super) async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        if prefix.contains('\0') {
            return Ok(Vec::new());
        }
        // A place that holds U+0000 lies right after what stands before it.
        let after = after.map(|after| after.split('\0').next().unwrap_or_default());
        let _room = self.link.connector.room.ask(limit);
        let (below, limit) = (above(prefix), signed(limit as u64));
        let arguments: [Argument<'_>; 4] = [&prefix, &below, &after, &limit];
        let rows = self.pool.call(&SCAN_RECORDS, &arguments, "").await?;
        rows.iter().map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_above_all_it_begins() {
        assert_eq!(above("ab").as_deref(), Some("ac"));
        assert_eq!(above("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(above("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!((above(""), above("\u{10ffff}")), (None, None));
        assert!("a\u{10ffff}\u{10ffff}" < "b");
    }
}
