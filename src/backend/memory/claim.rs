//! Claims: the best ready copies of the queues a consumer serves.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::group::{Group, Queue};
use super::ready::Rank;
use super::wait::Wakes;
use crate::backend::{ClaimRequest, DeadReason, Delivery, Lease, Token};
use crate::topic::Binding;

/// The best ranks of queues, by queue.
pub(super) type Heads = BinaryHeap<Reverse<(Rank, u32)>>;

impl Group {
    /// Returns the queues that belong to the bindings; `None` = all.
    pub(super) fn served(&self, bindings: &[Binding]) -> Option<Vec<u32>> {
        if bindings.is_empty() {
            return None;
        }
        Some(bindings.iter().filter_map(|binding| self.bound.get(binding).copied()).collect())
    }

    /// Whether a claim that serves these bindings would find something.
    pub(super) fn has_ready(&self, bindings: &[Binding]) -> bool {
        if self.paused || self.ready == 0 {
            return false;
        }
        let ready = |index| self.queues.get(index).is_some_and(|queue| !queue.ready.is_empty());
        bindings.is_empty() || bindings.iter().filter_map(|b| self.bound.get(b)).any(ready)
    }

    /// Claims at most `request.max` copies; `token` is the last one given out.
    pub(super) fn claim(
        &mut self,
        request: &ClaimRequest,
        now: i64,
        token: &mut Token,
        wakes: &mut Wakes,
    ) -> Vec<Delivery> {
        self.sweep(now, wakes);
        if self.paused || self.ready == 0 {
            return Vec::new();
        }
        let mut heads = std::mem::take(&mut self.heads);
        self.add_heads(request, &mut heads);
        let until = now.saturating_add(super::micros(request.lease));
        let ready = usize::try_from(self.ready).unwrap_or(usize::MAX);
        let mut claimed = Vec::with_capacity(request.max.min(ready));
        while claimed.len() < request.max {
            let Some(Reverse((rank, index))) = heads.pop() else { break };
            let Some(queue) = self.queues.get_mut(&index) else { continue };
            // A dead letter's key may have moved its next message to the front of any queue.
            let stale = queue.ready.peek() != Some(rank);
            let taken = if stale { None } else { queue.ready.pop() };
            if let Some(next) = queue.ready.peek() {
                heads.push(Reverse((next, index)));
            }
            let Some(copy) = taken else { continue };
            if self.crashed_too_often(copy, request.max_deliveries) {
                let max = request.max_deliveries;
                let error = format!("claimed {max} times without settle or release; limit {max}");
                self.bury(copy, now, (DeadReason::Crashed, Some(error)), wakes);
                heads.clear();
                self.add_heads(request, &mut heads);
                continue;
            }
            *token += 1;
            self.lease(copy, *token, until, wakes);
            claimed.extend(self.delivery(copy));
        }
        heads.clear();
        self.heads = heads;
        claimed
    }

    fn crashed_too_often(&self, index: u32, max_deliveries: u32) -> bool {
        self.copies.get(index).is_some_and(|copy| copy.crashes >= max_deliveries)
    }

    /// Offers the heads of the served queues.
    fn add_heads(&self, request: &ClaimRequest, heads: &mut Heads) {
        let head = |(index, queue): (u32, &Queue)| Some(Reverse((queue.ready.peek()?, index)));
        if request.bindings.is_empty() {
            let bound = self.queues.iter().filter(|(_, queue)| queue.bound);
            return heads.extend(bound.filter_map(|(index, queue)| head((*index, queue))));
        }
        let served = request.bindings.iter().filter_map(|binding| self.bound.get(binding));
        let served = served.filter_map(|index| Some((*index, self.queues.get(index)?)));
        heads.extend(served.filter_map(head));
    }

    fn delivery(&self, index: u32) -> Option<Delivery> {
        let copy = self.copies.get(index)?;
        let message = &copy.message;
        Some(Delivery {
            lease: Lease {
                group: self.name.clone(),
                binding: copy.queue,
                message: message.id,
                token: copy.token,
            },
            topic: message.topic.clone(),
            body: message.body.clone(),
            key: message.key.clone(),
            priority: message.priority,
            attempts: copy.attempts,
            crashes: copy.crashes.saturating_sub(1),
            accepted_at: copy.accepted_at,
            lease_until: copy.at,
        })
    }
}
