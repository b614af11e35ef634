//! The pub/sub connection: one for all listeners and all wake-ups of a process.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::context::{Context, DECLARED};
use super::hole::Hole;
use super::link::{Link, Trouble};
use super::message;
use super::waits::Waits;
use crate::backend::feeds::Feeds;
use crate::backend::gate::Gate;
use crate::backend::{Gap, GapCause};
use crate::topic::Binding;

/// Most calls of other processes that wait for their turn.
pub(super) const MOST_CALLS: usize = 10_000;
/// Longest call in bytes: two numbers, or the name of a process.
const LONGEST_CALL: usize = 100;

/// What reads what the server pushes; runs on the connection's own task and never waits.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) feeds: Feeds,
    pub(super) waits: Arc<Waits>,
    pub(super) names: Names,
    pub(super) link: Arc<Link>,
    pub(super) hole: Hole,
    /// What does what other processes ask for.
    pub(super) calls: mpsc::Sender<Call>,
    context: Arc<Context>,
    latest: Mutex<Latest>,
}

/// Names of channels.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// Before the topic of a native broadcast.
    pub(super) native: String,
    /// Before the topic of a `DataKnobs` broadcast; `None`: they are not heard.
    pub(super) dataknobs: Option<String>,
    /// Where this process is woken.
    pub(super) wake: String,
    /// Where who has noticed lost data asks for declarations.
    pub(super) lost: String,
}

/// What another process asks for.
#[derive(Debug)]
pub(super) enum Call {
    /// Wake who waits for `group:queue`.
    Wake(String),
    /// Declare the groups of this process again, and tell this process so.
    Lost(String),
}

/// The newest message, and how it came: one that matches several subscriptions comes several times
/// in a row, each time another way.
#[derive(Debug, Default)]
struct Latest {
    channel: Vec<u8>,
    payload: Bytes,
    ways: Vec<Vec<u8>>,
}

impl Latest {
    /// Whether this is another copy of the newest message.
    fn is_copy(&mut self, channel: &[u8], payload: &Bytes, way: &[u8]) -> bool {
        if self.channel == channel && self.payload == payload {
            if self.ways.iter().all(|known| known != way) {
                self.ways.push(way.to_vec());
                return true;
            }
            self.ways.truncate(1);
            if let Some(first) = self.ways.first_mut() {
                way.clone_into(first);
            }
            return false;
        }
        channel.clone_into(&mut self.channel);
        self.payload = payload.clone();
        self.ways.clear();
        self.ways.push(way.to_vec());
        false
    }
}

impl Receiver {
    pub(super) fn new(
        context: Arc<Context>,
        names: Names,
        link: Arc<Link>,
        calls: mpsc::Sender<Call>,
        gate: Option<Arc<Gate>>,
    ) -> Self {
        let (feeds, hole, latest) = (Feeds::new(gate), Hole::default(), Mutex::default());
        let waits = Arc::clone(&context.waits);
        Self { feeds, waits, names, link, hole, calls, context, latest }
    }

    /// Takes what the server sent on its own.
    pub(super) fn take(&self, info: PushInfo) {
        if self.hole.is_told_now(&info) {
            self.feeds.gap(Gap { cause: GapCause::Reconnect, count: None });
        }
        let mut data = info.data.into_iter();
        match info.kind {
            PushKind::Disconnection => self.link.break_off(),
            PushKind::Message => {
                if let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) =
                    (data.next(), data.next())
                {
                    self.message(&channel, payload, b"");
                }
            }
            PushKind::PMessage => {
                if let (
                    Some(Value::BulkString(pattern)),
                    Some(Value::BulkString(channel)),
                    Some(Value::BulkString(payload)),
                ) = (data.next(), data.next(), data.next())
                {
                    self.message(&channel, payload, &pattern);
                }
            }
            _ => {}
        }
    }

    fn message(&self, channel: &[u8], payload: Vec<u8>, way: &[u8]) {
        if channel == self.names.wake.as_bytes() {
            if payload == DECLARED.as_bytes() {
                // Whoever waits for it may hold up what takes the calls.
                return self.context.count_answer();
            }
            return self.call(payload, Call::Wake);
        }
        if channel == self.names.lost.as_bytes() {
            return self.call(payload, Call::Lost);
        }
        let payload = Bytes::from(payload);
        if self.latest.lock().is_copy(channel, &payload, way) {
            return;
        }
        let read = if channel.starts_with(self.names.native.as_bytes()) {
            self.native(payload)
        } else {
            self.dataknobs(channel, payload)
        };
        if read.is_none() {
            self.link.status.malformed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Passes on what another process asks for. What is too much is dropped: the sweep finds what
    /// nobody was woken for.
    fn call(&self, payload: Vec<u8>, what: impl FnOnce(String) -> Call) {
        let call = String::from_utf8(payload).ok().filter(|text| text.len() <= LONGEST_CALL);
        if call.is_none_or(|text| self.calls.try_send(what(text)).is_err()) {
            self.link.status.malformed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Delivers messages in stored form, one after the other.
    fn native(&self, mut payload: Bytes) -> Option<()> {
        while !payload.is_empty() {
            let (stored, rest) = message::read(&payload)?;
            self.feeds.deliver(&stored.topic, &stored.body);
            payload = rest;
        }
        Some(())
    }

    /// Delivers a bare body; its topic is in the channel's name (contract D50).
    fn dataknobs(&self, channel: &[u8], payload: Bytes) -> Option<()> {
        let topic = channel.strip_prefix(self.names.dataknobs.as_ref()?.as_bytes())?;
        let topic = std::str::from_utf8(topic).ok()?;
        self.feeds.deliver(&topic.into(), &payload);
        Some(())
    }
}

/// What is subscribed on the server, with how many listeners need it: (name, is a pattern).
type Wanted = AHashMap<(Vec<u8>, bool), usize>;

/// The subscriptions of a process.
#[derive(Debug)]
pub(super) struct Subscriptions {
    wanted: Mutex<Wanted>,
    /// Subscribing and unsubscribing go one by one, so that the server sees them in order.
    turn: tokio::sync::Mutex<()>,
    /// Told what may not be needed any more.
    unneeded: tokio::sync::mpsc::UnboundedSender<Vec<(Vec<u8>, bool)>>,
}

impl Subscriptions {
    pub(super) fn new(unneeded: tokio::sync::mpsc::UnboundedSender<Vec<(Vec<u8>, bool)>>) -> Self {
        Self { wanted: Mutex::default(), turn: tokio::sync::Mutex::default(), unneeded }
    }

    /// Subscribes to what bindings need and waits for the server's confirmation.
    pub(super) async fn add(
        self: &Arc<Self>,
        link: &Link,
        names: Vec<(Vec<u8>, bool)>,
        deadline: Instant,
    ) -> Result<Needed, Trouble> {
        {
            let mut wanted = self.wanted.lock();
            for name in &names {
                *wanted.entry(name.clone()).or_default() += 1;
            }
        }
        let needed = Needed { subscriptions: Arc::downgrade(self), names };
        let _turn = self.turn.lock().await;
        for patterns in [false, true] {
            let some: Vec<Vec<u8>> = needed
                .names
                .iter()
                .filter(|(_, is_pattern)| *is_pattern == patterns)
                .map(|(name, _)| name.clone())
                .collect();
            if some.is_empty() {
                continue;
            }
            // A connection that broke meanwhile is made again with all that is wanted.
            loop {
                match link.subscribe(&some, patterns, deadline).await {
                    Ok(()) => break,
                    Err(Trouble::Lost | Trouble::Away) if Instant::now() < deadline => {}
                    Err(trouble) => return Err(trouble),
                }
            }
        }
        Ok(needed)
    }

    /// Returns everything that is wanted: names, then patterns.
    pub(super) fn all(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let wanted = self.wanted.lock();
        let of = |patterns: bool| {
            let some = wanted.keys().filter(move |(_, is_pattern)| *is_pattern == patterns);
            some.map(|(name, _)| name.clone()).collect()
        };
        (of(false), of(true))
    }

    /// Ends what nobody needs any more, until the sender of the names goes.
    pub(super) async fn end_unneeded(
        &self,
        link: &Link,
        mut over: mpsc::UnboundedReceiver<Vec<(Vec<u8>, bool)>>,
        limit: Duration,
    ) {
        while let Some(mut names) = over.recv().await {
            while let Ok(more) = over.try_recv() {
                names.extend(more);
            }
            self.end(link, names, Instant::now() + limit).await;
        }
    }

    async fn end(&self, link: &Link, names: Vec<(Vec<u8>, bool)>, deadline: Instant) {
        let _turn = self.turn.lock().await;
        for patterns in [false, true] {
            let some: Vec<Vec<u8>> = {
                let wanted = self.wanted.lock();
                let unneeded =
                    |name: &&(Vec<u8>, bool)| name.1 == patterns && !wanted.contains_key(*name);
                names.iter().filter(unneeded).map(|(name, _)| name.clone()).collect()
            };
            if !some.is_empty() {
                link.unsubscribe(&some, patterns, deadline).await;
            }
        }
    }
}

/// Keeps subscriptions while it lives.
#[derive(Debug)]
pub(super) struct Needed {
    subscriptions: Weak<Subscriptions>,
    names: Vec<(Vec<u8>, bool)>,
}

impl Drop for Needed {
    fn drop(&mut self) {
        let Some(subscriptions) = self.subscriptions.upgrade() else { return };
        let mut over = Vec::new();
        let mut wanted = subscriptions.wanted.lock();
        for name in self.names.drain(..) {
            if let Some(count) = wanted.get_mut(&name) {
                *count -= 1;
                if *count == 0 {
                    wanted.remove(&name);
                    over.push(name);
                }
            }
        }
        drop(wanted);
        if !over.is_empty() {
            let _ = subscriptions.unneeded.send(over);
        }
    }
}

/// Returns the server's subscriptions that cover a binding on every wire that is heard.
pub(super) fn server_names(names: &Names, binding: &Binding) -> Vec<(Vec<u8>, bool)> {
    let prefixes = std::iter::once(&names.native).chain(&names.dataknobs);
    let name = |prefix: &String| match binding {
        Binding::Topic(topic) => (format!("{prefix}{topic}").into_bytes(), false),
        Binding::Pattern(pattern) => {
            let mut glob = escaped(prefix);
            glob.extend(glob_of(pattern.as_str()));
            (glob, true)
        }
    };
    prefixes.map(name).collect()
}

/// Escapes what a glob of the server would take for a wildcard.
fn escaped(text: &str) -> Vec<u8> {
    let mut glob = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^') {
            glob.push(b'\\');
        }
        glob.push(byte);
    }
    glob
}

/// Returns a glob that covers at least what an fnmatch pattern matches (contract D50): the server
/// counts bytes where fnmatch counts characters, so `?` and sets become `*`.
fn glob_of(pattern: &str) -> Vec<u8> {
    let mut glob = Vec::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(next) = rest.chars().next() {
        let mut length = next.len_utf8();
        match next {
            '*' | '?' => star(&mut glob),
            '[' => match set_length(rest) {
                Some(set) => {
                    length = set;
                    star(&mut glob);
                }
                None => glob.extend(escaped("[")),
            },
            _ => glob.extend(escaped(rest.get(..length).unwrap_or_default())),
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    glob
}

fn star(glob: &mut Vec<u8>) {
    if glob.last() != Some(&b'*') || glob.get(glob.len().wrapping_sub(2)) == Some(&b'\\') {
        glob.push(b'*');
    }
}

/// Returns the length of the set that a text begins with, if its bracket is closed.
fn set_length(text: &str) -> Option<usize> {
    // The first character of a set, after `!`, may be `]` itself.
    let inner = text.strip_prefix('[')?;
    let skipped = usize::from(inner.starts_with('!'));
    let first = inner.get(skipped..)?.chars().next()?.len_utf8();
    let end = inner.get(skipped + first..)?.find(']')?;
    Some(1 + skipped + first + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(pattern: &str) -> String {
        String::from_utf8(glob_of(pattern)).unwrap_or_default()
    }

    #[test]
    fn a_glob_covers_what_the_pattern_matches() {
        for (pattern, wanted) in [
            ("orders:*", "orders:*"),
            ("a?c", "a*c"),
            ("a[bc]d", "a*d"),
            ("a[!bc]d", "a*d"),
            ("a[]b]c", "a*c"),
            ("a[b", "a\\[b"),
            ("a\\b^", "a\\\\b\\^"),
            ("**?x", "*x"),
            ("[*]x", "*x"),
        ] {
            assert_eq!(glob(pattern), wanted, "{pattern}");
        }
    }

    #[test]
    fn copies_of_one_message_are_told_from_a_message_sent_twice() {
        let mut latest = Latest::default();
        let body = Bytes::from_static(b"x");
        assert!(!latest.is_copy(b"c", &body, b""));
        assert!(latest.is_copy(b"c", &body, b"c*"));
        assert!(latest.is_copy(b"c", &body, b"*"));
        assert!(!latest.is_copy(b"c", &body, b""));
        assert!(latest.is_copy(b"c", &body, b"c*"));
        assert!(!latest.is_copy(b"d", &body, b""));
        assert!(!latest.is_copy(b"d", &body, b""));
    }
}
