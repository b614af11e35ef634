//! The copy of the groups' bindings that targets are computed with.

use std::sync::Arc;

use ahash::AHashMap;
use redis::Value;

use crate::backend::GroupSpec;
use crate::topic::{Binding, Pattern, Router};

/// Bindings of all groups at one version.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// What the server calls this version; `0` before any group was declared.
    pub(super) version: String,
    /// Changes when the server loses its data; empty before anything was read.
    pub(super) epoch: String,
    /// Whether the server had nothing before it was asked.
    pub(super) is_new: bool,
    /// The run id of the server that told it; empty when unknown.
    pub(super) server: String,
    /// Whether broadcasts are kept for replay.
    pub(super) keeps: bool,
    routes: Router<(u64, u64)>,
    names: AHashMap<u64, Arc<str>>,
    groups: AHashMap<Arc<str>, Known>,
}

/// What is known of a group: its number, and its queues by binding.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) group: u64,
    queues: Vec<(Binding, u64)>,
    max_length: Option<u64>,
}

impl Known {
    /// Returns the queues of bindings; none when one of them is not known.
    pub(super) fn queues(&self, bindings: &[Binding]) -> Vec<u64> {
        let of = |binding: &Binding| {
            self.queues.iter().find(|(known, _)| known == binding).map(|(_, queue)| *queue)
        };
        if bindings.is_empty() {
            return self.queues.iter().map(|(_, queue)| *queue).collect();
        }
        bindings.iter().map(of).collect::<Option<_>>().unwrap_or_default()
    }
}

impl Registry {
    /// Reads the answer of the script; `lua/admin.lua` says what it is.
    pub(super) fn read(answer: Value) -> Option<Self> {
        let Value::Array(parts) = answer else { return None };
        let mut texts = parts.into_iter().map(text);
        let mut registry = Self { version: texts.next()??, ..Self::default() };
        registry.keeps = texts.next()?? == "1";
        registry.epoch = texts.next()??;
        registry.is_new = texts.next()?? == "1";
        while let Some(name) = texts.next() {
            let group = texts.next()??.parse().ok()?;
            let queue = texts.next()??.parse().ok()?;
            let binding = read_binding(&texts.next()??)?;
            let name: Arc<str> = name?.into();
            registry.routes.insert(binding.clone(), (group, queue));
            let known = registry.groups.entry(Arc::clone(&name)).or_default();
            known.group = group;
            known.max_length = texts.next()??.parse().ok();
            known.queues.push((binding, queue));
            registry.names.insert(group, name);
        }
        Some(registry)
    }

    /// Returns the (group, queue) pairs that keep what is published on a topic.
    pub(super) fn targets(&self, topic: &str) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        self.routes.for_each_match(topic, |_, target| found.push(*target));
        found
    }

    pub(super) fn has_queue(&self, topic: &str) -> bool {
        self.routes.has_match(topic)
    }

    /// Returns what declares its groups.
    pub(super) fn specs(&self) -> Vec<GroupSpec> {
        let spec = |(name, known): (&Arc<str>, &Known)| GroupSpec {
            name: Arc::clone(name),
            bindings: known.queues.iter().map(|(binding, _)| binding.clone()).collect(),
            max_length: known.max_length,
        };
        self.groups.iter().map(spec).collect()
    }

    /// Whether a group has all these bindings.
    pub(super) fn has(&self, spec: &GroupSpec) -> bool {
        let known = self.groups.get(&spec.name);
        known.is_some_and(|known| {
            let is_bound = |binding| known.queues.iter().any(|(bound, _)| bound == binding);
            spec.bindings.iter().all(is_bound)
        })
    }

    pub(super) fn known(&self, name: &str) -> Option<&Known> {
        self.groups.get(name)
    }

    pub(super) fn name(&self, group: u64) -> Option<&Arc<str>> {
        self.names.get(&group)
    }
}

/// Returns the text form of a value that holds text.
pub(super) fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Returns a binding as it is stored: its kind, then its text.
pub(super) fn write_binding(binding: &Binding) -> Vec<u8> {
    let (kind, text) = match binding {
        Binding::Topic(topic) => (b't', topic.as_ref()),
        Binding::Pattern(pattern) => (b'p', pattern.as_str()),
    };
    let mut stored = vec![kind];
    stored.extend_from_slice(text.as_bytes());
    stored
}

pub(super) fn read_binding(stored: &str) -> Option<Binding> {
    if let Some(topic) = stored.strip_prefix('t') {
        return Some(Binding::Topic(topic.into()));
    }
    stored.strip_prefix('p').map(|pattern| Binding::Pattern(Pattern::new(pattern)))
}
