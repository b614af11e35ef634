//! What `fuzz/` gives any text to: the reader of notifications.
#![allow(missing_docs)]

use uuid::Uuid;

use super::wire::{Frame, Notice, Packer, read};

/// Reads a notification; packs the broadcasts in it again and checks that they are read back.
///
/// # Panics
/// When they are not.
#[allow(clippy::panic)] // it is what a fuzzer looks for
pub fn notification(text: &str) {
    let Some(Notice::Broadcasts(stamp, frames)) = read(text) else { return };
    let mut packer = Packer::new(Uuid::from_u128(stamp.producer), stamp.parcel, None);
    let mut texts = Vec::new();
    for frame in &frames {
        match frame {
            Frame::Inline { topic, body } => texts.extend(packer.inline(topic, body)),
            Frame::Stored { topic, id } => texts.extend(packer.stored(topic, *id)),
        }
    }
    texts.extend(packer.take());
    let mut again = Vec::new();
    for text in &texts {
        match read(text) {
            Some(Notice::Broadcasts(_, frames)) => again.extend(frames),
            other => panic!("own notifications are read: {other:?}"),
        }
    }
    assert_eq!(frames, again, "what was packed again");
}
