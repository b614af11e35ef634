//! What this process declared, declared again when the schema was dropped and made anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::kept;
use super::live::Live;
use crate::backend::GroupSpec;
use crate::config::{Bodies, PostgresConfig, Retention};
use crate::error::Result;
use crate::topic::Binding;

/// The declarations of one process.
#[derive(Debug)]
pub(super) struct Declared {
    groups: Mutex<BTreeMap<Arc<str>, GroupSpec>>,
    /// Which bus holds them, as its schema says. Held while they are declared again.
    bus: tokio::sync::Mutex<String>,
    retention: Option<Retention>,
    bodies: Option<Bodies>,
}

impl Declared {
    pub(super) fn new(bus: String, config: &PostgresConfig) -> Self {
        let (retention, bodies) = (config.kept(), config.broadcast_bodies);
        Self { groups: Mutex::default(), bus: tokio::sync::Mutex::new(bus), retention, bodies }
    }

    /// Notes a declaration; bindings come together.
    pub(super) fn add(&self, spec: &GroupSpec) {
        let mut groups = self.groups.lock();
        let entry = groups.entry(Arc::clone(&spec.name));
        let known = entry.or_insert_with(|| GroupSpec { bindings: Vec::new(), ..spec.clone() });
        known.max_length = spec.max_length.or(known.max_length);
        for binding in &spec.bindings {
            if !known.bindings.contains(binding) {
                known.bindings.push(binding.clone());
            }
        }
    }

    /// Notes that bindings of a group were removed.
    pub(super) fn remove_bindings(&self, group: &str, bindings: &[Binding]) {
        if let Some(known) = self.groups.lock().get_mut(group) {
            known.bindings.retain(|binding| !bindings.contains(binding));
        }
    }

    /// Notes that a group was deleted.
    pub(super) fn remove(&self, group: &str) {
        self.groups.lock().remove(group);
    }
}

impl Live {
    /// Says whether another bus has taken the place of `before` in the schema; what this process
    /// declared is declared there by then. What was waiting is gone with the former.
    pub(super) async fn was_replaced(&self, before: &str) -> Result<bool> {
        let mut bus = self.declared.bus.lock().await;
        let found = self.registry.refresh(&self.pool).await?;
        if *bus != found.bus {
            if let Some(retention) = self.declared.retention {
                kept::retain(&self.pool, retention).await?;
            }
            if let Some(bodies) = self.declared.bodies {
                kept::set_bodies(&self.pool, bodies).await?;
            }
            let specs: Vec<_> = self.declared.groups.lock().values().cloned().collect();
            for spec in &specs {
                self.declare(spec).await?;
            }
            bus.clone_from(&found.bus);
            self.link
                .note("the schema was made anew: groups were declared again, what waited is gone");
        }
        Ok(found.bus != before)
    }
}
