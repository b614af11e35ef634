//! Which notifications came before: a parcel whose answer was lost is sent again, and heard once.

use std::collections::{HashMap, HashSet, VecDeque};

use ahash::RandomState;
use parking_lot::Mutex;

use super::wire::Stamp;

/// Most producers whose last notification is remembered.
const MOST_PRODUCERS: usize = 10_000;
/// Most notifications that are remembered one by one.
const MOST_TEXTS: usize = 65_536;

/// The notifications that were received, as far as they are remembered.
#[derive(Debug, Default)]
pub(super) struct Heard {
    signed: Mutex<HashMap<u128, Stamp, RandomState>>,
    texts: Mutex<Texts>,
}

/// Hashes of the newest texts, keyed by a secret of this process.
#[derive(Debug, Default)]
struct Texts {
    known: HashSet<u64, RandomState>,
    order: VecDeque<u64>,
}

impl Heard {
    /// Whether a signed notification is heard for the first time. A producer's rise, so an old one that
    /// somebody sends again is known as such.
    pub(super) fn is_new(&self, stamp: Stamp) -> bool {
        if is_of_sql(stamp) {
            return true;
        }
        let mut newest = self.signed.lock();
        if newest.len() >= MOST_PRODUCERS {
            newest.clear();
        }
        let last = newest.entry(stamp.producer).or_insert(Stamp { parcel: 0, part: 0, ..stamp });
        let first = last.parcel == 0 || stamp > *last;
        if first {
            *last = stamp;
        }
        first
    }

    /// Whether a notification that nobody signed is heard for the first time. Its stamp may be anybody's
    /// and says nothing of those that follow: only an equal text is the same.
    pub(super) fn is_new_text(&self, stamp: Stamp, text: &str) -> bool {
        if is_of_sql(stamp) {
            return true;
        }
        let mut texts = self.texts.lock();
        let hash = texts.known.hasher().hash_one(text);
        if !texts.known.insert(hash) {
            return false;
        }
        texts.order.push_back(hash);
        if texts.order.len() > MOST_TEXTS
            && let Some(oldest) = texts.order.pop_front()
        {
            texts.known.remove(&oldest);
        }
        true
    }
}

/// Producer 0 stands for SQL clients, which send nothing twice.
fn is_of_sql(stamp: Stamp) -> bool {
    stamp.producer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(producer: u128, parcel: u64, part: u32) -> Stamp {
        Stamp { producer, parcel, part }
    }

    #[test]
    fn a_signed_stamp_silences_what_is_not_newer() {
        let heard = Heard::default();
        for (one, expected) in [
            (stamp(7, 1, 0), true),
            (stamp(7, 1, 1), true),
            (stamp(7, 1, 0), false),
            (stamp(8, 1, 0), true),
            (stamp(7, 9, 0), true),
            (stamp(7, 8, 4), false),
            (stamp(0, 1, 0), true),
            (stamp(0, 1, 0), true),
        ] {
            assert_eq!(heard.is_new(one), expected, "{one:?}");
        }
    }

    #[test]
    fn a_stamp_that_nobody_signed_silences_nothing_but_its_equal() {
        let heard = Heard::default();
        assert!(heard.is_new_text(stamp(7, u64::MAX, 0), "forged"));
        assert!(heard.is_new_text(stamp(7, 1, 0), "one"));
        assert!(heard.is_new_text(stamp(7, 2, 0), "two"));
        assert!(!heard.is_new_text(stamp(7, 1, 0), "one"));
        for n in 0..MOST_TEXTS {
            assert!(heard.is_new_text(stamp(9, 1, 0), &format!("{n}")));
        }
        assert_eq!(heard.texts.lock().order.len(), MOST_TEXTS);
        assert_eq!(heard.texts.lock().known.len(), MOST_TEXTS);
        assert!(heard.is_new_text(stamp(7, 1, 0), "one"));
    }
}
