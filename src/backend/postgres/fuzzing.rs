//! The reader of notifications, opened for the fuzz target that gives it any text.
#![allow(missing_docs)]

use uuid::Uuid;

use super::wire::{Frame, Notice, Packer, Stamp, Style, read};
use crate::backend::gate::Gate;
use crate::signing::Keys;

/// Reads a notification; packs the broadcasts in it again and checks that they are read back.
///
/// # Panics
/// When they are not, or when an unsigned one is let in by keys.
pub fn notification(text: &str, keys: &Keys) {
    if let Some(gate) = Gate::of(keys, false) {
        let read = read(text, Some(&gate));
        assert!(!matches!(read, Some(Notice::Broadcasts(..))), "nobody else has the key");
    }
    let Some(Notice::Broadcasts(stamp, frames)) = read(text, None) else { return };
    let (named, others): (Vec<_>, Vec<_>) =
        frames.into_iter().partition(|frame| matches!(frame, Frame::Named { .. }));
    assert_eq!(again(stamp, &named, true), named, "what was packed again");
    assert_eq!(again(stamp, &others, false), others, "what was packed again");
}

/// Packs frames and reads them.
#[allow(clippy::panic)] // it is what a fuzzer looks for
fn again(stamp: Stamp, frames: &[Frame], parts: bool) -> Vec<Frame> {
    let producer = Uuid::from_u128(stamp.producer);
    let mut packer = Packer::new(producer, stamp.parcel, &Style::default(), parts);
    let mut texts = Vec::new();
    for frame in frames {
        match frame {
            Frame::Inline { topic, body } => texts.extend(packer.inline(topic, body)),
            Frame::Stored { topic, id } => texts.extend(packer.stored(topic, *id)),
            Frame::Named { id } => texts.extend(packer.stored("", *id)),
        }
    }
    texts.extend(packer.take());
    let read_one = |text: &String| match read(text, None) {
        Some(Notice::Broadcasts(_, frames)) => frames,
        other => panic!("own notifications are read: {other:?}"),
    };
    texts.iter().flat_map(read_one).collect()
}
