//! What is bound to what, as last read from the server.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use ahash::RandomState;
use parking_lot::RwLock;
use tokio::task::yield_now;
use tokio_postgres::Row;

use super::calls::{ROUTES, column};
use super::pool::Pool;
use crate::error::Result;
use crate::topic::{Binding, MOST_WORK, Router};

/// Where a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) group: i32,
    pub(super) binding: i32,
    /// The group has a `max_length`.
    pub(super) limited: bool,
}

/// Rows that are read before others get a turn: who declares many bindings holds nobody up.
const STEP: usize = 256;

/// One version of the registry.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) version: i32,
    /// Whether broadcasts are kept for replay.
    pub(super) keeps: bool,
    /// Whether bodies of broadcasts are kept out of notifications.
    pub(super) parts: bool,
    /// Which bus this is, as its schema says.
    pub(super) bus: String,
    /// Bindings that nobody could have declared; they match nothing.
    pub(super) unreadable: u64,
    ids: HashMap<Arc<str>, i32, RandomState>,
    names: HashMap<i32, Arc<str>, RandomState>,
    routes: Router<Target>,
}

impl Registry {
    /// Reads the rows, in steps between which others get a turn.
    async fn read(rows: &[Row]) -> Result<Self> {
        let mut registry = Self::default();
        for rows in rows.chunks(STEP) {
            registry.read_some(rows)?;
            yield_now().await;
        }
        Ok(registry)
    }

    fn read_some(&mut self, rows: &[Row]) -> Result<()> {
        for row in rows {
            self.version = column(row, 0)?;
            self.keeps = column(row, 7)?;
            self.bus = column::<Option<String>>(row, 8)?.unwrap_or_default();
            self.parts = column(row, 9)?;
            let Some(id) = column::<Option<i32>>(row, 1)? else { continue };
            if let Entry::Vacant(entry) = self.names.entry(id) {
                let name: Arc<str> = column::<&str>(row, 2)?.into();
                entry.insert(Arc::clone(&name));
                self.ids.insert(name, id);
            }
            let Some(binding) = column::<Option<i32>>(row, 4)? else { continue };
            let (limited, text): (bool, &str) = (column(row, 3)?, column(row, 6)?);
            let bound = Binding::stored(column(row, 5)?, text);
            let Some(bound) =
                bound.filter(|one| !one.is_pattern() || self.routes.work() <= MOST_WORK)
            else {
                self.unreadable += 1;
                continue;
            };
            self.routes.insert(bound, Target { group: id, binding, limited });
        }
        Ok(())
    }

    /// Returns where copies of a topic go, by group and binding.
    pub(super) fn targets(&self, topic: &str) -> Vec<Target> {
        let mut found = Vec::new();
        self.routes.for_each_match(topic, |_, target| found.push(*target));
        found.sort_unstable_by_key(|target| (target.group, target.binding));
        found
    }

    pub(super) fn has_match(&self, topic: &str) -> bool {
        !self.routes.is_empty() && self.routes.has_match(topic)
    }

    pub(super) fn id(&self, group: &str) -> Option<i32> {
        self.ids.get(group).copied()
    }

    pub(super) fn name(&self, id: i32) -> Option<&Arc<str>> {
        self.names.get(&id)
    }
}

/// The registry that this client routes by.
#[derive(Debug, Default)]
pub(super) struct Cache {
    current: RwLock<Arc<Registry>>,
}

impl Cache {
    pub(super) fn get(&self) -> Arc<Registry> {
        Arc::clone(&self.current.read())
    }

    /// Reads it again; an older answer never replaces a newer one of the same bus.
    pub(super) async fn refresh(&self, pool: &Pool) -> Result<Arc<Registry>> {
        let read = Registry::read(&pool.call(&ROUTES, &[], "").await?).await?;
        let mut current = self.current.write();
        if read.bus != current.bus || read.version >= current.version {
            *current = Arc::new(read);
        }
        Ok(Arc::clone(&current))
    }
}
