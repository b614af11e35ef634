//! How the id of a message says which event it carries.
//!
//! The first publish of an event that this process made has the event's own key as its id. Every
//! other publish (of the same event again, of one that was received, of one whose id somebody chose)
//! has a UUID of version 8: its first half is made from the event's key, its second half is random.
//! So each publish has an id of its own, and who knows an event finds all of its messages: one by its
//! id, the others by the first half of theirs.

use uuid::Uuid;

use super::{EventKey, MessageId};

/// The byte that holds the version of a UUID, in its upper half.
const VERSION: usize = 6;
/// The byte that begins the second half, with the variant of a UUID in its upper two bits.
const VARIANT: usize = 8;

/// Returns the id of a message that carries an event and is not known to be its first: 62 of the
/// random bits tell it from the others.
#[must_use]
pub fn again(event: &EventKey, random: &[u8; 16]) -> MessageId {
    let mut id = half(event);
    id[VARIANT..].copy_from_slice(&random[VARIANT..]);
    id[VARIANT] = (id[VARIANT] & 0x3f) | 0x80;
    id
}

/// Whether an id was made by [`again`].
#[must_use]
pub fn is_again(id: &MessageId) -> bool {
    id[VERSION] >> 4 == 8
}

/// Returns the bounds, both inclusive, of what [`again`] makes of an event.
#[must_use]
pub fn range(event: &EventKey) -> (MessageId, MessageId) {
    let low = half(event);
    let mut high = low;
    high[VARIANT..].fill(0xff);
    (low, high)
}

/// Returns the id under which a message is found with all others of its event that are not the first.
#[must_use]
pub fn shelf(id: &MessageId) -> MessageId {
    let mut shelf = *id;
    if is_again(id) {
        shelf[VARIANT..].fill(0);
    }
    shelf
}

/// Returns the first half of the ids of an event; 60 bits of it tell events apart.
fn half(event: &EventKey) -> MessageId {
    let made = Uuid::new_v5(&Uuid::NAMESPACE_OID, event);
    let mut half = *made.as_bytes();
    half[VERSION] = (half[VERSION] & 0x0f) | 0x80;
    half[VARIANT..].fill(0);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_of_an_event_is_told_apart_and_found_by_the_event() {
        let (one, other) = ([1; 16], [2; 16]);
        let ids = [again(&one, &[3; 16]), again(&one, &[0xff; 16])];
        assert_ne!(ids[0], ids[1]);
        let (low, high) = range(&one);
        for id in ids {
            assert!(is_again(&id) && low <= id && id <= high);
            assert_eq!(shelf(&id), low);
            assert_eq!(Uuid::from_bytes(id).get_version_num(), 8);
            assert_eq!(Uuid::from_bytes(id).get_variant(), uuid::Variant::RFC4122);
        }
        assert_ne!(range(&other).0, low);
        assert!(!is_again(&one));
        assert_eq!(shelf(&one), one);
    }

    #[test]
    fn the_first_half_of_the_ids_of_an_event_never_changes() {
        // Written by one version of this program, looked for by another.
        let id = Uuid::from_bytes(again(&[7; 16], &[0; 16]));
        assert_eq!(id.hyphenated().to_string(), "dcefc6a0-939e-892e-8000-000000000000");
    }
}
