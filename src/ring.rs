//! A bounded buffer between one that must not wait and one that may be slow, with gap notices.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::backend::{Gap, GapCause, Overflow};

/// What a ring hands out, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<T> {
    /// Something that was pushed.
    Value(T),
    /// A hole at this place.
    Gap(Gap),
}

/// What became of a push. What is dropped is returned, so that it is not destroyed under the lock.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed<T> {
    /// Stored.
    Stored,
    /// Stored; this older one was dropped for it.
    Replaced(T),
    /// Not stored: the ring is full or closed.
    Refused(T),
}

/// A bounded buffer with an overflow policy.
#[derive(Debug)]
pub struct Ring<T> {
    state: Mutex<State<T>>,
    limit: usize,
    overflow: Overflow,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<Item<T>>,
    /// Values among the items.
    values: usize,
    closed: bool,
    wakers: Vec<Waker>,
    /// Who waits for room.
    fillers: Vec<Waker>,
}

impl<T> Ring<T> {
    /// Creates a ring for at most `limit` values (at least 1).
    #[must_use]
    pub fn new(limit: usize, overflow: Overflow) -> Self {
        let state = State {
            items: VecDeque::new(),
            values: 0,
            closed: false,
            wakers: Vec::new(),
            fillers: Vec::new(),
        };
        Self { state: Mutex::new(state), limit: limit.max(1), overflow }
    }

    /// Adds a value and wakes who waits.
    pub fn push(&self, value: T) -> Pushed<T> {
        let (pushed, wakers) = self.push_quietly(value);
        wakers.into_iter().for_each(Waker::wake);
        pushed
    }

    /// Adds a value and returns who waits, for a caller that holds a lock: waking runs foreign code.
    #[must_use]
    pub fn push_quietly(&self, value: T) -> (Pushed<T>, Vec<Waker>) {
        let mut state = self.state.lock();
        let pushed = state.push(value, self.limit, self.overflow);
        (pushed, std::mem::take(&mut state.wakers))
    }

    /// Announces a hole at the end of what is buffered.
    pub fn push_gap(&self, gap: Gap) {
        let wakers = {
            let mut state = self.state.lock();
            state.items.push_back(Item::Gap(gap));
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes the next item, if there is one.
    pub fn pop(&self) -> Option<Item<T>> {
        let mut state = self.state.lock();
        let item = state.pop();
        let fillers = state.fillers_with_room(self.limit);
        drop(state);
        fillers.into_iter().for_each(Waker::wake);
        item
    }

    /// Takes at most `max` items when there are any; `Ready` with none means closed and empty.
    pub fn poll_take(&self, context: &mut Context<'_>, max: usize) -> Poll<Vec<Item<T>>> {
        let mut state = self.state.lock();
        if state.items.is_empty() {
            if state.closed {
                return Poll::Ready(Vec::new());
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.wakers.push(context.waker().clone());
            }
            return Poll::Pending;
        }
        let count = max.max(1).min(state.items.len());
        let taken = (0..count).filter_map(|_| state.pop()).collect();
        let fillers = state.fillers_with_room(self.limit);
        drop(state);
        fillers.into_iter().for_each(Waker::wake);
        Poll::Ready(taken)
    }

    /// Waits for items and takes at most `max`; none means closed and empty. Cancel safe.
    pub async fn take(&self, max: usize) -> Vec<Item<T>> {
        poll_fn(|context| self.poll_take(context, max)).await
    }

    /// Waits until there is an item or the ring is closed. Cancel safe.
    pub async fn ready(&self) {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if !state.items.is_empty() || state.closed {
                return Poll::Ready(());
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits until it is at most half full and returns how many values fit; 0 means closed. Cancel
    /// safe.
    pub async fn room(&self) -> usize {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if state.closed {
                return Poll::Ready(0);
            }
            if state.has_room(self.limit) {
                return Poll::Ready(self.limit - state.values);
            }
            if !state.fillers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.fillers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Refuses what comes from now on; what is buffered can still be taken.
    pub fn close(&self) {
        let wakers = {
            let mut state = self.state.lock();
            state.closed = true;
            let mut wakers = std::mem::take(&mut state.wakers);
            wakers.append(&mut state.fillers);
            wakers
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Drops and returns what is buffered.
    #[must_use]
    pub fn drain(&self) -> Vec<T> {
        let mut state = self.state.lock();
        state.values = 0;
        let items = std::mem::take(&mut state.items);
        let fillers = state.fillers_with_room(self.limit);
        drop(state);
        fillers.into_iter().for_each(Waker::wake);
        items
            .into_iter()
            .filter_map(|item| match item {
                Item::Value(value) => Some(value),
                Item::Gap(_) => None,
            })
            .collect()
    }

    /// Whether pushes are refused.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Returns how many values are buffered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().values
    }

    /// Whether no value is buffered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> State<T> {
    /// Half of it at once: to fill it up one by one would cost a turn each.
    fn has_room(&self, limit: usize) -> bool {
        self.values <= limit / 2
    }

    /// Returns whom to wake because there is room.
    fn fillers_with_room(&mut self, limit: usize) -> Vec<Waker> {
        if self.fillers.is_empty() || !self.has_room(limit) {
            return Vec::new();
        }
        std::mem::take(&mut self.fillers)
    }

    fn push(&mut self, value: T, limit: usize, overflow: Overflow) -> Pushed<T> {
        if self.closed {
            return Pushed::Refused(value);
        }
        if self.values < limit {
            self.values += 1;
            self.items.push_back(Item::Value(value));
            return Pushed::Stored;
        }
        match overflow {
            Overflow::DropOldest => self.replace_oldest(value),
            Overflow::DropNewest => {
                self.lose_newest();
                Pushed::Refused(value)
            }
            Overflow::Close => {
                self.lose_newest();
                self.closed = true;
                Pushed::Refused(value)
            }
        }
    }

    /// The hole moves with the front: what is taken next is the gap, then the oldest kept.
    fn replace_oldest(&mut self, value: T) -> Pushed<T> {
        let mut lost = 0;
        let mut known = true;
        let mut oldest = None;
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Gap(gap) => {
                    lost += gap.count.unwrap_or(0);
                    known &= gap.count.is_some();
                }
                Item::Value(old) => {
                    oldest = Some(old);
                    lost += 1;
                    break;
                }
            }
        }
        let count = known.then_some(lost);
        self.items.push_front(Item::Gap(Gap { cause: GapCause::Overflow, count }));
        self.items.push_back(Item::Value(value));
        match oldest {
            Some(oldest) => Pushed::Replaced(oldest),
            None => Pushed::Stored,
        }
    }

    fn lose_newest(&mut self) {
        if let Some(Item::Gap(Gap { cause: GapCause::Overflow, count: Some(count) })) =
            self.items.back_mut()
        {
            *count += 1;
        } else {
            let gap = Gap { cause: GapCause::Overflow, count: Some(1) };
            self.items.push_back(Item::Gap(gap));
        }
    }

    fn pop(&mut self) -> Option<Item<T>> {
        let item = self.items.pop_front()?;
        if matches!(item, Item::Value(_)) {
            self.values -= 1;
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ring: &Ring<u32>) -> Vec<Item<u32>> {
        std::iter::from_fn(|| ring.pop()).collect()
    }

    fn gap<T>(count: u64) -> Item<T> {
        Item::Gap(Gap { cause: GapCause::Overflow, count: Some(count) })
    }

    #[test]
    fn drop_oldest_puts_the_gap_before_what_is_kept() {
        let ring = Ring::new(2, Overflow::DropOldest);
        for number in 0..5 {
            ring.push(number);
        }
        assert_eq!(taken(&ring), [gap(3), Item::Value(3), Item::Value(4)]);
    }

    #[test]
    fn drop_newest_puts_the_gap_where_the_hole_is() {
        let ring = Ring::new(2, Overflow::DropNewest);
        for number in 0..5 {
            ring.push(number);
        }
        assert_eq!(ring.pop(), Some(Item::Value(0)));
        ring.push(9);
        assert_eq!(taken(&ring), [Item::Value(1), gap(3), Item::Value(9)]);
    }

    #[test]
    fn close_keeps_what_is_buffered_and_ends_with_a_gap() {
        let ring = Ring::new(1, Overflow::Close);
        assert_eq!(ring.push(0), Pushed::Stored);
        assert_eq!(ring.push(1), Pushed::Refused(1));
        assert_eq!(ring.push(2), Pushed::Refused(2));
        assert_eq!(taken(&ring), [Item::Value(0), gap(1)]);
        assert!(ring.is_closed());
    }

    #[tokio::test]
    async fn room_is_told_when_half_is_taken_and_when_it_is_closed() {
        let ring = std::sync::Arc::new(Ring::new(4, Overflow::DropOldest));
        assert_eq!(ring.room().await, 4);
        for number in 0..4 {
            ring.push(number);
        }
        let waits = std::sync::Arc::clone(&ring);
        let room = tokio::spawn(async move { waits.room().await });
        tokio::task::yield_now().await;
        ring.pop();
        tokio::task::yield_now().await;
        assert!(!room.is_finished());
        ring.pop();
        assert_eq!(room.await.ok(), Some(2));
        ring.push(9);
        let waits = std::sync::Arc::clone(&ring);
        let room = tokio::spawn(async move { waits.room().await });
        tokio::task::yield_now().await;
        ring.close();
        assert_eq!(room.await.ok(), Some(0));
    }

    #[tokio::test]
    async fn a_cancelled_take_loses_nothing() {
        let ring = Ring::new(4, Overflow::DropOldest);
        {
            let mut take = std::pin::pin!(ring.take(1));
            let poll = poll_fn(|context| Poll::Ready(take.as_mut().poll(context))).await;
            assert!(poll.is_pending());
            ring.push(7);
        }
        assert_eq!(ring.take(1).await, [Item::Value(7)]);
    }
}
