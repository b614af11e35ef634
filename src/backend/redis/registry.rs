//! The copy of the groups' bindings that targets are computed with.

use std::sync::Arc;

use ahash::AHashMap;
use redis::Value;
use tokio::task::yield_now;

use crate::backend::GroupSpec;
use crate::topic::{Binding, MOST_WORK, Router};

/// Bindings that are read before others get a turn: who declares many of them holds nobody up.
const STEP: usize = 256;

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
    /// Entries that nobody could have declared; they match nothing.
    pub(super) unreadable: u64,
    routes: Router<(u64, u64)>,
    names: AHashMap<u64, Arc<str>>,
    groups: AHashMap<Arc<str>, Known>,
}

/// What is known of a group: its number, and its queues by binding.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) group: u64,
    queues: AHashMap<Binding, u64>,
    max_length: Option<u64>,
}

impl Known {
    /// Returns the queues of bindings; none when one of them is not known.
    pub(super) fn queues(&self, bindings: &[Binding]) -> Vec<u64> {
        let of = |binding: &Binding| self.queues.get(binding).copied();
        if bindings.is_empty() {
            let mut queues: Vec<u64> = self.queues.values().copied().collect();
            queues.sort_unstable();
            return queues;
        }
        bindings.iter().map(of).collect::<Option<_>>().unwrap_or_default()
    }
}

impl Registry {
    /// Reads the answer of the script, in steps between which others get a turn; `lua/admin.lua`
    /// says what it is.
    pub(super) async fn read(answer: Value) -> Option<Self> {
        let (mut registry, mut texts) = Self::begin(answer)?;
        while registry.read_some(&mut texts) {
            yield_now().await;
        }
        Some(registry)
    }

    /// Reads it without giving a turn to anybody.
    #[cfg(feature = "fuzzing")]
    pub(super) fn read_at_once(answer: Value) -> Option<Self> {
        let (mut registry, mut texts) = Self::begin(answer)?;
        while registry.read_some(&mut texts) {}
        Some(registry)
    }

    fn begin(answer: Value) -> Option<(Self, impl Iterator<Item = Option<String>>)> {
        let Value::Array(parts) = answer else { return None };
        let mut texts = parts.into_iter().map(text);
        let mut registry = Self { version: texts.next()??, ..Self::default() };
        registry.keeps = texts.next()?? == "1";
        registry.epoch = texts.next()??;
        registry.is_new = texts.next()?? == "1";
        Some((registry, texts))
    }

    /// Reads up to [`STEP`] entries; returns whether there may be more.
    fn read_some(&mut self, texts: &mut impl Iterator<Item = Option<String>>) -> bool {
        for _ in 0..STEP {
            let Some(name) = texts.next() else { return false };
            let entry = [name, texts.next().flatten(), texts.next().flatten()];
            let (binding, max) = (texts.next().flatten(), texts.next().flatten());
            if self.add(entry, binding, max).is_none() {
                self.unreadable += 1;
            }
        }
        true
    }

    /// Adds an entry; `None` when nobody could have declared it.
    fn add(
        &mut self,
        [name, group, queue]: [Option<String>; 3],
        binding: Option<String>,
        max: Option<String>,
    ) -> Option<()> {
        let (name, group, queue) = (name?, group?.parse().ok()?, queue?.parse().ok()?);
        let (binding, max) = (read_binding(&binding?)?, max?);
        if binding.is_pattern() && self.routes.work() > MOST_WORK {
            return None;
        }
        let name: Arc<str> = name.into();
        self.routes.insert(binding.clone(), (group, queue));
        let known = self.groups.entry(Arc::clone(&name)).or_default();
        known.group = group;
        known.max_length = max.parse().ok();
        known.queues.insert(binding, queue);
        self.names.insert(group, name);
        Some(())
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
            bindings: known.queues.keys().cloned().collect(),
            max_length: known.max_length,
        };
        self.groups.iter().map(spec).collect()
    }

    /// Whether a group has all these bindings.
    pub(super) fn has(&self, spec: &GroupSpec) -> bool {
        let known = self.groups.get(&spec.name);
        known.is_some_and(|known| {
            spec.bindings.iter().all(|binding| known.queues.contains_key(binding))
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

/// Reads a stored binding; `None` when nobody could have declared it.
pub(crate) fn read_binding(stored: &str) -> Option<Binding> {
    if let Some(topic) = stored.strip_prefix('t') {
        return Binding::stored(false, topic);
    }
    Binding::stored(true, stored.strip_prefix('p')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(entries: &[[&[u8]; 5]]) -> Value {
        let head = ["7", "1", "epoch", "0"].map(|text| Value::BulkString(text.into()));
        let rest = entries.iter().flatten().map(|text| Value::BulkString(text.to_vec()));
        Value::Array(head.into_iter().chain(rest).collect())
    }

    #[tokio::test]
    async fn entries_that_nobody_could_have_declared_match_nothing_and_stop_nothing() {
        let long = [b"p".to_vec(), vec![b'['; 300_000]].concat();
        let bad: [[&[u8]; 5]; 6] = [
            [b"g", b"1", b"2", &long, b""],
            [b"g", b"1", b"3", b"x*", b""],
            [b"g", b"one", b"4", b"p*", b""],
            [b"g", b"1", b"", b"p*", b""],
            [b"\xff", b"1", b"5", b"p*", b""],
            [b"g", b"1", b"6", b"p\xff", b""],
        ];
        let mut entries = bad.to_vec();
        entries.insert(3, [b"g", b"1", b"9", b"ta:b", b"10"]);
        entries.push([b"h", b"2", b"0", b"pa:*", b""]);
        let registry = Registry::read(answer(&entries)).await.unwrap_or_default();
        assert_eq!((registry.unreadable, registry.version.as_str()), (6, "7"));
        assert_eq!(registry.targets("a:b"), [(1, 9), (2, 0)]);
    }

    #[tokio::test]
    async fn patterns_that_would_make_every_publish_slow_match_nothing() {
        let slow = [b"p*".to_vec(), vec![b'?'; 127], b"*".to_vec()].concat();
        let mut entries = vec![[&b"g"[..], b"1", b"2", &slow, b""]; 1_000];
        entries.push([b"g", b"1", b"3", b"ta:b", b""]);
        let registry = Registry::read(answer(&entries)).await.unwrap_or_default();
        assert!((900..1_000).contains(&registry.unreadable), "{}", registry.unreadable);
        assert_eq!(registry.targets("a:b"), [(1, 3)]);
    }

    #[tokio::test]
    async fn others_get_a_turn_while_many_bindings_are_read() {
        let longest = [b"p".to_vec(), b"*[".repeat(127)].concat();
        let entries = vec![[&b"g"[..], b"1", b"2", &longest, b""]; 20 * STEP];
        let turns = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = async {
            loop {
                turns.set(turns.get() + 1);
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            registry = Registry::read(answer(&entries)) => {
                assert!(registry.is_some_and(|registry| registry.version == "7"));
            }
            () = count => {}
        }
        assert!(turns.get() >= 20, "{}", turns.get());
    }
}
