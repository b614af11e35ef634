//! Versioned records by key, with time to live, and the memory that no version is used twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use ahash::RandomState;
use bytes::Bytes;

use crate::backend::Record;

#[derive(Debug)]
struct Entry {
    version: u64,
    value: Bytes,
    expires: Option<i64>,
}

/// What a precondition is checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    /// Whether the record exists.
    pub(super) exists: bool,
    /// Its version, or the last one that was used for its key.
    pub(super) last: u64,
}

impl Version {
    /// Returns the version a caller sees: 0 = absent.
    pub(super) fn visible(self) -> u64 {
        if self.exists { self.last } else { 0 }
    }
}

/// All records.
#[derive(Debug, Default)]
pub(super) struct Records {
    live: BTreeMap<Arc<str>, Entry>,
    expiry: BTreeSet<(i64, Arc<str>)>,
    /// The last version of keys that were deleted.
    tombstones: HashMap<Arc<str>, u64, RandomState>,
    deletions: VecDeque<(Arc<str>, u64)>,
    /// No forgotten tombstone was above it, so a key without one starts after it.
    floor: u64,
}

impl Records {
    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// Removes records whose time to live ended; call before anything else.
    pub(super) fn sweep(&mut self, now: i64) {
        while self.expiry.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.expiry.pop_first() else { return };
            self.bury(&key);
        }
    }

    /// Forgets the oldest tombstones beyond `max`; call at the end of a transaction.
    pub(super) fn trim(&mut self, max: usize) {
        while self.deletions.len() > max {
            let Some((key, version)) = self.deletions.pop_front() else { return };
            if self.tombstones.get(&key) == Some(&version) {
                self.tombstones.remove(&key);
                self.floor = self.floor.max(version);
            }
        }
    }

    pub(super) fn version(&self, key: &str) -> Version {
        match self.live.get(key) {
            Some(entry) => Version { exists: true, last: entry.version },
            None => {
                let last = self.tombstones.get(key).copied().unwrap_or(self.floor);
                Version { exists: false, last }
            }
        }
    }

    pub(super) fn put(&mut self, key: Arc<str>, value: Bytes, expires: Option<i64>) -> u64 {
        let before = self.version(&key);
        let version = before.last + 1;
        if !before.exists {
            self.tombstones.remove(&key);
        }
        if let Some(at) = expires {
            self.expiry.insert((at, Arc::clone(&key)));
        }
        let old = self.live.insert(Arc::clone(&key), Entry { version, value, expires });
        if let Some(at) = old.and_then(|entry| entry.expires)
            && expires != Some(at)
        {
            self.expiry.remove(&(at, key));
        }
        version
    }

    pub(super) fn delete(&mut self, key: &Arc<str>) {
        if let Some(at) = self.bury(key) {
            self.expiry.remove(&(at, Arc::clone(key)));
        }
    }

    /// Replaces a record by its tombstone; returns when it would have expired.
    fn bury(&mut self, key: &Arc<str>) -> Option<i64> {
        let entry = self.live.remove(key)?;
        self.tombstones.insert(Arc::clone(key), entry.version);
        self.deletions.push_back((Arc::clone(key), entry.version));
        entry.expires
    }

    pub(super) fn read(&self, key: &str) -> Option<Record> {
        self.live.get_key_value(key).map(record)
    }

    pub(super) fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Record> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let from_start = self.live.range::<str, _>((start, Bound::Unbounded));
        from_start.take_while(|(key, _)| key.starts_with(prefix)).take(limit).map(record).collect()
    }
}

fn record((key, entry): (&Arc<str>, &Entry)) -> Record {
    Record { key: Arc::clone(key), version: entry.version, value: entry.value.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_tombstones_raise_the_floor_so_versions_only_increase() {
        let mut records = Records::default();
        let key: Arc<str> = "k".into();
        for _ in 0..3 {
            records.put(Arc::clone(&key), Bytes::new(), None);
        }
        records.delete(&key);
        assert_eq!(records.version("other").last, 0);
        records.trim(0);
        assert!(records.tombstones.is_empty());
        assert_eq!(records.put(key, Bytes::new(), None), 4);
        assert_eq!(records.put("other".into(), Bytes::new(), None), 4);
    }
}
