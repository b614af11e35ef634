//! The hole that a broken pub/sub connection leaves: when it may be announced.
//!
//! Not before the new connection has subscribed to everything: who reads anew because of the gap
//! would miss what is published between that and the subscription. And not behind a message of the
//! new connection.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redis::{PushInfo, PushKind, Value};

/// Whether there is a hole that nobody was told of.
#[derive(Debug, Default)]
pub(super) struct Hole {
    open: AtomicBool,
    told: AtomicBool,
    wanted: AtomicUsize,
}

impl Hole {
    /// Begins with the loss of the connection.
    pub(super) fn begin(&self) {
        self.wanted.store(usize::MAX, Ordering::Release);
        self.told.store(false, Ordering::Release);
        self.open.store(true, Ordering::Release);
    }

    /// Says how many names and patterns the new connection subscribes to.
    pub(super) fn expect(&self, names: usize) {
        self.wanted.store(names, Ordering::Release);
        if names == 0 {
            self.open.store(false, Ordering::Release);
        }
    }

    /// Whether the gap is to be told before this push is taken. When a message comes before the
    /// last confirmation, it is told twice: another name may have lost something in between.
    pub(super) fn is_told_now(&self, info: &PushInfo) -> bool {
        if !self.open.load(Ordering::Acquire) {
            return false;
        }
        match info.kind {
            PushKind::Subscribe | PushKind::PSubscribe => {
                let Some(&Value::Int(count)) = info.data.get(1) else { return false };
                let all = usize::try_from(count)
                    .is_ok_and(|count| count >= self.wanted.load(Ordering::Acquire));
                all && self.open.swap(false, Ordering::AcqRel)
            }
            PushKind::Message | PushKind::PMessage => !self.told.swap(true, Ordering::AcqRel),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(kind: PushKind, count: i64) -> PushInfo {
        PushInfo { kind, data: vec![Value::BulkString(b"name".to_vec()), Value::Int(count)] }
    }

    #[test]
    fn it_is_told_once_when_the_last_name_is_confirmed() {
        let hole = Hole::default();
        assert!(!hole.is_told_now(&push(PushKind::Subscribe, 1)));
        hole.begin();
        assert!(!hole.is_told_now(&push(PushKind::Subscribe, 9)), "a word of the old connection");
        hole.expect(3);
        assert!(!hole.is_told_now(&push(PushKind::Subscribe, 1)));
        assert!(!hole.is_told_now(&push(PushKind::Subscribe, 2)));
        assert!(hole.is_told_now(&push(PushKind::PSubscribe, 3)));
        assert!(!hole.is_told_now(&push(PushKind::Message, 0)));
    }

    #[test]
    fn a_message_never_comes_before_it() {
        let hole = Hole::default();
        hole.begin();
        hole.expect(2);
        assert!(!hole.is_told_now(&push(PushKind::Subscribe, 1)));
        assert!(hole.is_told_now(&push(PushKind::Message, 0)));
        assert!(!hole.is_told_now(&push(PushKind::Message, 0)));
        assert!(hole.is_told_now(&push(PushKind::PSubscribe, 2)));
    }

    #[test]
    fn nobody_listens_and_nobody_is_told() {
        let hole = Hole::default();
        hole.begin();
        hole.expect(0);
        assert!(!hole.is_told_now(&push(PushKind::Subscribe, 1)));
    }
}
