//! Broadcasts of the `DataKnobs` wire: names of channels, texts, and who listens to which.
//!
//! What eventbus sends on it goes to the channel of its topic, for originals and exact
//! subscriptions, and to the one of everything, for patterns (contract D50 to D55).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::{Arc, Weak};

use ahash::AHashMap;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;

use crate::backend::ListenRequest;
use crate::topic::Binding;

/// Longest name that Postgres does not cut, in bytes.
const MOST_NAME: usize = 63;
/// Longest text of a notification in bytes.
pub(super) const MOST_TEXT: usize = 7_999;

/// How texts are read and written: that is the codec's, which a backend does not know.
#[derive(Debug, Clone, Copy)]
pub struct Texts {
    /// Reads what a receiver needs to know of a text; `None` when it is malformed.
    pub read: fn(&[u8]) -> Option<Heard>,
    /// Returns a string in quotation marks, in ASCII.
    pub quote: fn(&str) -> String,
}

/// What a receiver needs to know of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// The topic it was published on; eventbus says it, originals do not.
    pub bus_topic: Option<Arc<str>>,
    /// Where the event is stored, when it is not in the text.
    pub stored: Option<String>,
    /// The event's own topic.
    pub topic: Option<Arc<str>>,
}

/// Names and texts of one `channel_prefix`.
#[derive(Debug)]
pub(super) struct Names {
    prefix: String,
    texts: Texts,
}

/// Returns the original's mapping of a topic, and whether nothing of it was deleted.
fn mapped(topic: &str) -> (String, bool) {
    let keep = |c: char| match c {
        ':' | '.' | '-' => Some('_'),
        c if c.is_ascii_alphanumeric() || c == '_' => Some(c),
        _ => None,
    };
    let name: String = topic.chars().filter_map(keep).collect();
    let whole = name.len() == topic.len();
    (name, whole)
}

impl Names {
    pub(super) fn new(prefix: &str, texts: Texts) -> Self {
        Self { prefix: prefix.to_owned(), texts }
    }

    /// Returns the channel that originals use for a topic, if they have one of its own.
    fn plain(&self, topic: &str) -> Option<String> {
        let (name, whole) = mapped(topic);
        let channel = format!("{}_{name}", self.prefix);
        (whole && !topic.is_empty() && channel.len() <= MOST_NAME).then_some(channel)
    }

    /// Returns the channel of a topic.
    fn channel(&self, topic: &str) -> String {
        self.plain(topic).unwrap_or_else(|| {
            let mut digits = String::with_capacity(64);
            for byte in Sha256::digest(topic.as_bytes()) {
                // Writing to a string cannot fail.
                let _ = write!(digits, "{byte:02x}");
            }
            digits.truncate(32.min(62 - self.prefix.len().min(62)));
            format!("{}:{digits}", self.prefix)
        })
    }

    /// Returns the channel of everything.
    fn everything(&self) -> String {
        format!("{}:*", self.prefix)
    }

    /// Returns a broadcast as it is sent, `n` telling it from an equal one.
    pub(super) fn inline(&self, topic: &str, body: &[u8], n: Option<u64>) -> Vec<u8> {
        let open = body.strip_suffix(b"}").unwrap_or(body);
        let mut text = Vec::with_capacity(body.len() + topic.len() + 24);
        text.extend_from_slice(open);
        text.extend_from_slice(b", \"bus_topic\": ");
        self.end(text, topic, n)
    }

    /// Returns what is sent for a broadcast that is stored.
    pub(super) fn stored(&self, topic: &str, id: &str) -> Vec<u8> {
        let text = format!("{{\"stored\": \"{id}\", \"bus_topic\": ");
        self.end(text.into_bytes(), topic, None)
    }

    fn end(&self, mut text: Vec<u8>, topic: &str, n: Option<u64>) -> Vec<u8> {
        text.extend_from_slice((self.texts.quote)(topic).as_bytes());
        if let Some(n) = n {
            text.extend_from_slice(format!(", \"n\": {n}").as_bytes());
        }
        text.push(b'}');
        text
    }

    /// Returns a text with the channels that it goes to, as `send_foreign` takes it.
    pub(super) fn addressed(&self, topic: &str, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text);
        format!("d{},{} {text}", self.channel(topic), self.everything())
    }

    /// Whether a body fits into a notification.
    pub(super) fn fits(&self, topic: &str, body: &[u8]) -> bool {
        // A short number may tell equal ones apart.
        self.size(topic, body) + 24 <= MOST_TEXT || self.size(topic, body) <= MOST_TEXT
    }

    /// Returns how many bytes a broadcast is as it is sent.
    pub(super) fn size(&self, topic: &str, body: &[u8]) -> usize {
        body.len() + ", \"bus_topic\": ".len() + (self.texts.quote)(topic).len()
    }
}

/// What a text means here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A broadcast on a topic; `wide` says who takes it: those with patterns, or those without, or
    /// both.
    Broadcast { topic: Arc<str>, wide: Option<bool> },
    /// One that is stored.
    Stored { topic: Arc<str>, id: String, wide: bool },
    /// Nothing that can be understood; these topics may have been meant.
    Malformed(Vec<Arc<str>>),
}

/// Who listens to a channel: how many, and to which topics.
#[derive(Debug, Default)]
struct Wanted {
    count: usize,
    topics: Vec<Arc<str>>,
}

/// The channels that the listeners of one backend need.
#[derive(Debug)]
pub(super) struct Channels {
    pub(super) names: Arc<Names>,
    /// Whether listeners hear this wire.
    heard: bool,
    wanted: Mutex<AHashMap<String, Wanted>>,
    /// Read to subscribe and written to unsubscribe, so that the server sees them in order.
    pub(super) turn: tokio::sync::RwLock<()>,
    /// Told what may not be needed any more.
    unneeded: UnboundedSender<Vec<String>>,
}

impl Channels {
    pub(super) fn new(
        names: Arc<Names>,
        heard: bool,
        unneeded: UnboundedSender<Vec<String>>,
    ) -> Self {
        let (wanted, turn) = (Mutex::default(), tokio::sync::RwLock::default());
        Self { names, heard, wanted, turn, unneeded }
    }

    /// Notes what a listener needs; `near` is a topic whose channel it hears as well.
    pub(super) fn want(self: &Arc<Self>, request: &ListenRequest, near: Option<&str>) -> Needed {
        let mut names: Vec<(String, Option<Arc<str>>)> = Vec::new();
        let (bindings, near) =
            if self.heard { (&request.bindings[..], near) } else { (&[][..], None) };
        for binding in bindings {
            match binding {
                Binding::Topic(topic) => {
                    names.push((self.names.channel(topic), Some(Arc::clone(topic))));
                }
                Binding::Pattern(_) => names.push((self.names.everything(), None)),
            }
        }
        if let Some(channel) = near.and_then(|topic| self.names.plain(topic)) {
            names.push((channel, None));
        }
        let mut wanted = self.wanted.lock();
        for (name, topic) in &names {
            let entry = wanted.entry(name.clone()).or_default();
            entry.count += 1;
            entry.topics.extend(topic.clone());
        }
        drop(wanted);
        Needed { channels: Arc::downgrade(self), names }
    }

    /// Returns every channel that is wanted.
    pub(super) fn all(&self) -> Vec<String> {
        self.wanted.lock().keys().cloned().collect()
    }

    /// Returns those of the channels that nobody wants.
    pub(super) fn unwanted(&self, names: Vec<String>) -> Vec<String> {
        let wanted = self.wanted.lock();
        names.into_iter().filter(|name| !wanted.contains_key(name)).collect()
    }

    /// Reads a text that came on a channel (contract D53, D54).
    pub(super) fn read(&self, channel: &str, text: &str) -> Meaning {
        let topics: BTreeSet<Arc<str>> = {
            let wanted = self.wanted.lock();
            wanted.get(channel).map(|one| one.topics.iter().cloned().collect()).unwrap_or_default()
        };
        let Some(heard) = (self.names.texts.read)(text.as_bytes()) else {
            return Meaning::Malformed(topics.into_iter().collect());
        };
        if let Some(topic) = heard.bus_topic {
            let wide = channel == self.names.everything();
            return match heard.stored {
                Some(id) => Meaning::Stored { topic, id, wide },
                None => Meaning::Broadcast { topic, wide: Some(wide) },
            };
        }
        let Some(own) = heard.topic else {
            return Meaning::Malformed(topics.into_iter().collect());
        };
        let original = format!("{}_{}", self.names.prefix, mapped(&own).0);
        let topic = if original == channel {
            Some(own)
        } else {
            let begins = |topic: &&Arc<str>| {
                let rest = own.strip_prefix(&***topic);
                rest.is_some_and(|rest| rest.starts_with([':', '.', '-', '_']))
            };
            match topics.len() {
                1 => topics.into_iter().next(),
                _ => topics.iter().find(begins).cloned(),
            }
        };
        match topic {
            Some(topic) => Meaning::Broadcast { topic, wide: None },
            None => Meaning::Malformed(Vec::new()),
        }
    }
}

/// Keeps channels while it lives.
#[derive(Debug)]
pub(super) struct Needed {
    channels: Weak<Channels>,
    names: Vec<(String, Option<Arc<str>>)>,
}

impl Needed {
    /// Returns the statements that listen to them.
    pub(super) fn statements(&self) -> String {
        statements("listen", self.names.iter().map(|(name, _)| name))
    }
}

impl Drop for Needed {
    fn drop(&mut self) {
        let Some(channels) = self.channels.upgrade() else { return };
        let mut over = Vec::new();
        let mut wanted = channels.wanted.lock();
        for (name, topic) in self.names.drain(..) {
            let Some(entry) = wanted.get_mut(&name) else { continue };
            entry.count -= 1;
            let place = entry.topics.iter().position(|one| Some(one) == topic.as_ref());
            if let Some(place) = place {
                entry.topics.swap_remove(place);
            }
            if entry.count == 0 {
                wanted.remove(&name);
                over.push(name);
            }
        }
        drop(wanted);
        if !over.is_empty() {
            // Nobody tends them once the backend is closed.
            let _ = channels.unneeded.send(over);
        }
    }
}

/// Returns statements with one channel each; their names hold letters, digits, `_`, `:` and `*`.
pub(super) fn statements<'a>(verb: &str, names: impl Iterator<Item = &'a String>) -> String {
    names.fold(String::new(), |mut text, name| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{verb} \"{name}\"; ");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Overflow;
    use crate::topic::Pattern;

    fn names(prefix: &str) -> Names {
        let texts = Texts { read: |_| None, quote: |text| format!("{text:?}") };
        Names::new(prefix, texts)
    }

    #[test]
    fn channels_are_named_as_the_contract_says() {
        let names = names("events");
        let long = "a".repeat(57);
        for (topic, channel) in [
            ("registry:bots", "events_registry_bots"),
            ("Bots", "events_Bots"),
            ("a.b-c_d", "events_a_b_c_d"),
            ("café", "events:850f7dc43910ff890f8879c0ed26fe69"),
            (&long[1..], &format!("events_{}", &long[1..])),
        ] {
            assert_eq!(names.channel(topic), channel);
        }
        for odd in ["", "日本語", "bot:x 1", &long] {
            assert!(names.channel(odd).starts_with("events:"), "{odd}");
            assert_eq!(names.channel(odd).len(), 39, "{odd}");
        }
        let wide = super::Names { prefix: "p".repeat(61), texts: names.texts };
        assert_eq!(wide.channel("ü").len(), 63);
    }

    #[test]
    fn channels_are_wanted_until_the_last_listener_is_gone() {
        let (sender, mut gone) = tokio::sync::mpsc::unbounded_channel();
        let channels = Arc::new(Channels::new(Arc::new(names("p")), true, sender));
        let request = |bindings| ListenRequest {
            bindings,
            buffer: 1,
            overflow: Overflow::DropOldest,
            since: None,
        };
        let exact = request(vec![Binding::Topic("a:b".into())]);
        let first = channels.want(&exact, None);
        let second = channels.want(&exact, None);
        let wide = request(vec![Binding::Pattern(Pattern::new("*"))]);
        let third = channels.want(&wide, Some("a:b"));
        assert_eq!(first.statements(), "listen \"p_a_b\"; ");
        drop((first, second));
        assert!(gone.try_recv().is_err());
        drop(third);
        assert_eq!(gone.try_recv().ok(), Some(vec!["p:*".to_owned(), "p_a_b".to_owned()]));
        assert!(channels.all().is_empty());
        let (sender, _gone) = tokio::sync::mpsc::unbounded_channel();
        let native = Arc::new(Channels::new(Arc::new(names("p")), false, sender));
        assert_eq!(native.want(&exact, Some("a:b")).statements(), "");
    }
}
