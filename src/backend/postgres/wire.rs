//! The text of notifications: broadcasts packed into few of them, wake-ups, and what is neither.
//!
//! `b<producer>.<parcel>.<part>:<base64>` carries broadcasts, with `.<signature>` behind the part on a bus
//! with keys, `w<group>,<group>` wakes who waits,
//! `r<version>` says that the registry changed, `t<nonce>` tests that notifications arrive.
//! Anybody may notify, so everything is checked.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use uuid::Uuid;

use super::foreign::{MOST_TEXT, Names};
use crate::backend::gate::Gate;

/// A notification's text must be shorter than 8,000 bytes: base64 of this many, and its head.
const PACK_BYTES: usize = 5_850;

const INLINE: u8 = 0;
const STORED: u8 = 1;
const NAMED: u8 = 2;

/// Names a notification, so that one that arrives twice is heard once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub(super) producer: u128,
    pub(super) parcel: u64,
    pub(super) part: u32,
}

/// One broadcast inside a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// With its body.
    Inline { topic: Arc<str>, body: Bytes },
    /// With the name under which its body is stored.
    Stored { topic: Arc<str>, id: Uuid },
    /// With the name under which topic and body are stored.
    Named { id: Uuid },
}

/// What a notification says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// Broadcasts, in order.
    Broadcasts(Stamp, Vec<Frame>),
    /// Broadcasts without the signature that they must have here.
    Unsigned,
    /// Something may be ready in these groups.
    Wake(Vec<i32>),
    /// The registry changed.
    Registry,
    /// A test.
    Test(String),
}

/// Whether a broadcast fits into a notification.
fn fits(topic: &str, body: &[u8]) -> bool {
    topic.len() <= usize::from(u16::MAX) && 7 + topic.len() + body.len() <= PACK_BYTES
}

/// How a process sends broadcasts.
#[derive(Debug, Clone, Default)]
pub(super) struct Style {
    /// Set when broadcasts go out one by one, for `DataKnobs` processes too.
    pub(super) foreign: Option<Arc<Names>>,
    /// What signs notifications.
    pub(super) gate: Option<Arc<Gate>>,
}

/// Packs broadcasts of one parcel into notifications.
#[derive(Debug)]
pub(super) struct Packer {
    producer: u128,
    parcel: u64,
    part: u32,
    packed: Vec<u8>,
    style: Style,
    /// Whether notifications only name what is stored.
    parts: bool,
    /// What went out so: the server sends equal texts of one transaction once only.
    sent: HashMap<u64, u64, RandomState>,
}

impl Packer {
    /// Without a producer other parcels may come in the same transaction.
    pub(super) fn new(producer: Uuid, parcel: u64, style: &Style, parts: bool) -> Self {
        let (producer, sent, style) = (producer.as_u128(), HashMap::default(), style.clone());
        Self { producer, parcel, part: 0, packed: Vec::new(), style, parts, sent }
    }

    /// Whether a broadcast fits into a notification.
    pub(super) fn fits(&self, topic: &str, body: &[u8]) -> bool {
        match &self.style.foreign {
            Some(names) => names.fits(topic, body),
            None => !self.parts && fits(topic, body),
        }
    }

    /// Returns a broadcast as `DataKnobs` processes read it, with the channels that it goes to.
    fn foreign(&mut self, names: &Names, topic: &str, body: &[u8]) -> String {
        let mut number = (self.producer == 0).then_some(self.parcel);
        if number.is_none() {
            let hash = self.sent.hasher().hash_one((topic, body));
            let times = self.sent.entry(hash).or_default();
            number = (*times > 0).then_some(*times);
            *times += 1;
        }
        let mut text = names.inline(topic, body, number);
        if text.len() > MOST_TEXT {
            // An equal text that leaves no room for a number is sent as it is.
            text = names.inline(topic, body, None);
        }
        names.addressed(topic, &text)
    }

    /// Adds a broadcast with its body; returns the text of a notification that became full.
    pub(super) fn inline(&mut self, topic: &str, body: &[u8]) -> Option<String> {
        if let Some(names) = self.style.foreign.clone() {
            return Some(self.foreign(&names, topic, body));
        }
        let full = self.make_room(7 + topic.len() + body.len());
        self.head(INLINE, topic);
        self.packed.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.packed.extend_from_slice(body);
        full
    }

    /// Adds a broadcast whose body is stored.
    pub(super) fn stored(&mut self, topic: &str, id: Uuid) -> Option<String> {
        if let Some(names) = &self.style.foreign {
            return Some(names.addressed(topic, &names.stored(topic, &id.to_string())));
        }
        if self.parts {
            let full = self.make_room(17);
            self.packed.push(NAMED);
            self.packed.extend_from_slice(id.as_bytes());
            return full;
        }
        let full = self.make_room(3 + topic.len() + 16);
        self.head(STORED, topic);
        self.packed.extend_from_slice(id.as_bytes());
        full
    }

    fn head(&mut self, kind: u8, topic: &str) {
        self.packed.push(kind);
        let length = u16::try_from(topic.len()).unwrap_or(u16::MAX);
        self.packed.extend_from_slice(&length.to_be_bytes());
        self.packed.extend_from_slice(topic.as_bytes());
    }

    fn make_room(&mut self, bytes: usize) -> Option<String> {
        if self.packed.len() + bytes > PACK_BYTES { self.take() } else { None }
    }

    /// Returns what is packed as the text of a notification.
    pub(super) fn take(&mut self) -> Option<String> {
        if self.packed.is_empty() {
            return None;
        }
        let mut text = format!("b{:032x}.{}.{}", self.producer, self.parcel, self.part);
        let keys = self.style.gate.as_ref().map(|gate| gate.keys());
        if let Some(signature) = keys.and_then(|keys| keys.sign_notice(&text, &self.packed)) {
            text.push('.');
            text.push_str(&signature);
        }
        text.push(':');
        STANDARD.encode_string(&self.packed, &mut text);
        self.packed.clear();
        self.part += 1;
        Some(text)
    }
}

/// Reads a notification; `None` when it is malformed. With a gate broadcasts must be signed.
pub(super) fn read(text: &str, gate: Option<&Gate>) -> Option<Notice> {
    let rest = text.get(1..)?;
    match text.as_bytes().first()? {
        b'b' => {
            let (head, packed) = text.split_once(':')?;
            let packed = STANDARD.decode(packed).ok()?;
            if gate.is_some_and(|gate| !is_signed(head, &packed, gate)) {
                return Some(Notice::Unsigned);
            }
            let mut head = head.get(1..)?.split('.');
            let producer = u128::from_str_radix(head.next()?, 16).ok()?;
            let parcel = head.next()?.parse().ok()?;
            let part = head.next()?.parse().ok()?;
            let frames = frames(packed.into())?;
            Some(Notice::Broadcasts(Stamp { producer, parcel, part }, frames))
        }
        b'w' => rest.split(',').map(|id| id.parse().ok()).collect::<Option<_>>().map(Notice::Wake),
        b'r' => Some(Notice::Registry),
        b't' => Some(Notice::Test(rest.to_owned())),
        _ => None,
    }
}

/// Whether the last field of a head is a signature of what stands before it and what is packed.
fn is_signed(head: &str, packed: &[u8], gate: &Gate) -> bool {
    let parts = head.rsplit_once('.');
    parts.is_some_and(|(stamp, signature)| gate.keys().verify_notice(signature, stamp, packed))
}

fn frames(mut packed: Bytes) -> Option<Vec<Frame>> {
    let mut frames = Vec::new();
    while packed.has_remaining() {
        let kind = packed.try_get_u8().ok()?;
        if kind == NAMED {
            frames.push(Frame::Named { id: Uuid::from_u128(packed.try_get_u128().ok()?) });
            continue;
        }
        let length = packed.try_get_u16().ok()?;
        let topic = take(&mut packed, usize::from(length))?;
        let topic: Arc<str> = std::str::from_utf8(&topic).ok()?.into();
        frames.push(match kind {
            INLINE => {
                let length = usize::try_from(packed.try_get_u32().ok()?).ok()?;
                Frame::Inline { topic, body: take(&mut packed, length)? }
            }
            STORED => Frame::Stored { topic, id: Uuid::from_u128(packed.try_get_u128().ok()?) },
            _ => return None,
        });
    }
    Some(frames)
}

fn take(from: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= from.len()).then(|| from.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::Keys;

    #[test]
    fn what_is_packed_is_read_and_every_text_is_short_enough() {
        let mut packer = Packer::new(Uuid::from_u128(7), 9, &Style::default(), false);
        let bodies: Vec<Vec<u8>> = (0..200).map(|n| vec![1; n * 29]).collect();
        let mut texts: Vec<String> =
            bodies.iter().filter_map(|body| packer.inline("a:b", body)).collect();
        texts.extend(packer.stored("large", Uuid::from_u128(5)));
        texts.extend(packer.take());
        let mut seen = Vec::new();
        for (part, text) in texts.iter().enumerate() {
            assert!(text.len() < 8_000, "{}", text.len());
            let Some(Notice::Broadcasts(stamp, frames)) = read(text, None) else {
                panic!("{text}")
            };
            assert_eq!((stamp.producer, stamp.parcel, stamp.part as usize), (7, 9, part));
            seen.extend(frames);
        }
        assert_eq!(seen.len(), 201);
        let large = Frame::Stored { topic: "large".into(), id: Uuid::from_u128(5) };
        assert_eq!(seen.pop(), Some(large));
        for (frame, expected) in seen.iter().zip(bodies) {
            let body = Bytes::from(expected);
            assert_eq!(frame, &Frame::Inline { topic: "a:b".into(), body });
        }
    }

    #[test]
    fn hostile_texts_are_refused() {
        let huge = format!("b0.0.0:{}", STANDARD.encode([0, 0, 1, b't', 255, 255, 255, 255]));
        let bad = ["", "x", "b", "b0.0:", "b0.0.0:!", "bé.0.0:", "w", "w1,x", "é", &huge];
        for text in bad {
            assert_eq!(read(text, None), None, "{text}");
        }
        assert_eq!(read("w1,2", None), Some(Notice::Wake(vec![1, 2])));
    }

    fn signed(secret: &str) -> Style {
        let keys = Keys::new(&[secret]).unwrap_or_default();
        Style { foreign: None, gate: Gate::of(&keys, false) }
    }

    #[test]
    fn a_signed_text_is_short_enough_and_any_change_of_it_is_noticed() {
        let style = signed("a secret of 16 b.");
        let mut packer = Packer::new(Uuid::from_u128(u128::MAX), u64::MAX, &style, false);
        let _ = packer.inline("t", &[7; 5_842]);
        let text = packer.take().unwrap_or_default();
        assert!((7_850..8_000).contains(&text.len()), "{}", text.len());
        let gate = style.gate.as_deref();
        assert!(matches!(read(&text, gate), Some(Notice::Broadcasts(..))));
        // Who has no key reads it all the same.
        assert!(matches!(read(&text, None), Some(Notice::Broadcasts(..))));
        let other = signed("another secret 16");
        assert_eq!(read(&text, other.gate.as_deref()), Some(Notice::Unsigned));
        for (from, to) in [("bf", "be"), (".0.", ".1."), ("AAAB", "AAAC"), (".0.", ".0")] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(!matches!(read(&changed, gate), Some(Notice::Broadcasts(..))), "{from}");
        }
        assert_eq!(read("b7.1.0:", gate), Some(Notice::Unsigned));
    }

    #[test]
    fn a_bus_that_parts_names_neither_topic_nor_body() {
        let mut packer = Packer::new(Uuid::from_u128(7), 9, &Style::default(), true);
        assert!(!packer.fits("topic", b"body"));
        let texts: Vec<String> =
            (0..1000).filter_map(|n| packer.stored("topic", Uuid::from_u128(n))).collect();
        assert_eq!(texts.len(), 2);
        let Some(Notice::Broadcasts(_, frames)) = read(&texts[0], None) else { panic!() };
        assert_eq!(frames.len(), PACK_BYTES / 17);
        assert_eq!(frames[3], Frame::Named { id: Uuid::from_u128(3) });
    }
}
