//! Random sequences of operations: the memory backend must do what the model does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eventbus::backend::memory::MemoryBackend;
use eventbus::backend::{
    Backend, ClaimRequest, DeadReason, Due, GroupSpec, Lease, Message, MessageAction, MessageId,
    Op, Outcome, Transaction,
};
use eventbus::clock::{Clock, ManualClock};
use eventbus::config::MemoryConfig;
use eventbus::error::{Error, Result};
use eventbus::topic::{Binding, Pattern};
use proptest::prelude::*;

use crate::actions::{Action, Step, TICK, action, ticks};
use crate::at_once;
use crate::model::{Copy, Group, Model, Publish, Refused, Settle};

/// Both sides of the comparison.
struct Run {
    bus: MemoryBackend,
    clock: ManualClock,
    model: Model,
    leases: Vec<(usize, Lease)>,
    published: u64,
}

fn name(group: usize) -> Arc<str> {
    format!("g{group}").into()
}

fn topic(number: usize) -> Arc<str> {
    format!("t{number}").into()
}

fn binding(number: usize) -> Binding {
    if number == 2 { Binding::Pattern(Pattern::new("*")) } else { Binding::Topic(topic(number)) }
}

fn message_id(number: u64) -> MessageId {
    u128::from(number).to_be_bytes()
}

fn number(id: MessageId) -> u64 {
    u64::try_from(u128::from_be_bytes(id)).unwrap()
}

fn message(publish: &Publish) -> Message {
    let text = |n: u8| n.to_string().into_boxed_str();
    let micros = |n: i64| Duration::from_micros(n.try_into().unwrap());
    Message {
        id: message_id(publish.id),
        topic: topic(publish.topic),
        body: Bytes::new(),
        key: publish.key.map(text),
        priority: publish.priority,
        due: if publish.delay == 0 { Due::Now } else { Due::After(micros(publish.delay)) },
        expires_after: publish.ttl.map(micros),
        dedup_id: publish.dedup.map(text),
        unique: publish.unique.map(text),
        broadcast: true,
        event: [0; 16],
    }
}

fn outcome(how: &Settle) -> Outcome {
    let error = "e".to_owned();
    match how {
        Settle::Ack => Outcome::Ack,
        Settle::Retry(after) => {
            Outcome::Retry { after: Duration::from_micros((*after).try_into().unwrap()), error }
        }
        Settle::Reject => Outcome::Dead { reason: DeadReason::Rejected, error },
        Settle::Fail => Outcome::Dead { reason: DeadReason::Failed, error },
        Settle::Release => Outcome::Release,
    }
}

fn refused(error: &Error) -> Refused {
    match error {
        Error::QueueFull { .. } => Refused::QueueFull,
        Error::LeaseLost { .. } => Refused::LeaseLost,
        Error::VersionConflict { .. } => Refused::VersionConflict,
        other => panic!("{other}"),
    }
}

impl Run {
    fn new() -> Self {
        let clock = ManualClock::new(1_700_000_000_000_000);
        let bus = MemoryBackend::new(MemoryConfig::default(), Arc::new(clock.clone()));
        let mut run =
            Self { model: Model::default(), bus, clock, leases: Vec::new(), published: 0 };
        for (group, max_length) in [(0, 1000), (1, 6)] {
            run.model.groups.push(Group { max_length, ..Group::default() });
            run.bind(group, group, Some(max_length as u64));
        }
        run.bind(0, 2, None);
        run
    }

    fn bind(&mut self, group: usize, number: usize, max_length: Option<u64>) {
        let spec = GroupSpec { name: name(group), bindings: vec![binding(number)], max_length };
        at_once(self.bus.declare_group(spec)).unwrap();
        self.model.bind(group, number);
    }

    fn swept(&mut self, group: usize) -> &mut Group {
        let group = &mut self.model.groups[group];
        group.sweep(self.model.now);
        group
    }

    fn commit(&mut self, steps: &[Step]) {
        let now = self.model.now;
        let ended: Vec<_> = self.model.groups.iter().map(|group| group.ended(now)).collect();
        let mut looked_at = BTreeSet::new();
        let mut model = self.model.clone();
        let mut ops = Vec::new();
        let mut expected = Ok((Vec::new(), Vec::new()));
        for step in steps {
            let mut step = step.clone();
            let done = match &mut step {
                Step::Publish(publish) => {
                    self.published += 1;
                    // Now and then an id comes twice.
                    publish.id = self.published - u64::from(self.published.is_multiple_of(7));
                    ops.push(Op::Publish(message(publish)));
                    let accepted = if expected.is_ok() {
                        model.publish(publish, &ended, &mut looked_at)
                    } else {
                        Ok((false, 0))
                    };
                    accepted.map(|accepted| (Some(accepted), None))
                }
                Step::Settle(nth, how) => {
                    let Some((group, lease)) = self.leases.iter().rev().nth(*nth) else { continue };
                    ops.push(Op::Settle(lease.clone(), outcome(how)));
                    let now = model.now;
                    model.groups[*group].settle(lease.token, how, now).map(|()| (None, None))
                }
                Step::Write { key, if_version, put } => {
                    let name: Arc<str> = key.to_string().into();
                    let if_version = *if_version;
                    ops.push(if *put {
                        Op::Put { key: name, value: Bytes::new(), if_version, ttl: None }
                    } else {
                        Op::Delete { key: name, if_version }
                    });
                    let version = model.write(*key, if_version, *put);
                    version.map(|version| (None, put.then_some(version)))
                }
            };
            match (done, &mut expected) {
                (Ok((accepted, version)), Ok((published, versions))) => {
                    published.extend(accepted);
                    versions.extend(version);
                }
                (Err(error), Ok(_)) => expected = Err(error),
                (_, Err(_)) => {}
            }
        }
        let result = at_once(self.bus.commit(vec![Transaction { ops }])).remove(0);
        let result = result.map_err(|error| refused(&error)).map(|done| {
            let published = done.published.iter().map(|a| (a.duplicate, a.queues)).collect();
            (published, done.versions)
        });
        assert_eq!(result, expected);
        if expected.is_ok() {
            self.model = model;
        } else {
            // What was dead before stays dead, whatever becomes of the transaction.
            looked_at.iter().for_each(|group| self.model.groups[*group].expire(&ended[*group]));
        }
    }

    fn claim(&mut self, group: usize, bindings: &[usize], max: usize, lease: u8) {
        let request = ClaimRequest {
            group: name(group),
            bindings: bindings.iter().map(|number| binding(*number)).collect(),
            max,
            lease: TICK * u32::from(lease),
            max_deliveries: 2,
        };
        let claimed = at_once(self.bus.claim(&request)).unwrap();
        let (now, model) = (self.model.now, &mut self.model.groups[group]);
        let wanted = |binding: &usize| bindings.is_empty() || bindings.contains(binding);
        let served: Vec<u32> =
            model.bound.iter().filter(|(b, _)| wanted(b)).map(|(_, queue)| *queue).collect();
        let expected = model.claim(now, &served, max, now + ticks(lease), 2);
        let real: Vec<_> = claimed
            .iter()
            .map(|d| (number(d.lease.message), d.lease.binding, d.attempts, d.crashes))
            .collect();
        assert_eq!(real, expected);
        for (place, lease) in (0..).zip(claimed.into_iter().map(|delivery| delivery.lease)) {
            // By place, not by id: two copies of one id need not come in order of acceptance, when
            // a dead letter in between frees the key of the older one.
            let fresh =
                |copy: &&mut Copy| copy.lease.is_some_and(|(token, _)| token == u64::MAX - place);
            let copy = model.copies.iter_mut().find(fresh);
            copy.unwrap().lease.as_mut().unwrap().0 = lease.token;
            self.leases.push((group, lease));
        }
    }

    fn act(&mut self, group: usize, nth: usize, how: u8) {
        let now = self.model.now;
        let id = (self.published + 1).saturating_sub(nth as u64);
        let model = self.swept(group);
        let waits = |copy: &Copy| copy.message.id == id && copy.lease.is_none();
        let (action, expected) = match how {
            0 => (MessageAction::Cancel, model.remove_waiting(waits)),
            1 => {
                let changed = model.copies.iter_mut().filter(|copy| waits(copy));
                let count = changed.map(|copy| copy.due = now + ticks(2)).count() as u64;
                (MessageAction::Reschedule(self.clock.now() + ticks(2)), count)
            }
            _ => {
                let late = |copy: &&mut Copy| waits(copy) && copy.due > now;
                let changed = model.copies.iter_mut().filter(late);
                (MessageAction::Promote, changed.map(|copy| copy.due = now).count() as u64)
            }
        };
        let changed = at_once(self.bus.act_on(Some(&name(group)), message_id(id), action)).unwrap();
        assert_eq!(changed, expected);
    }

    fn retry_dead(&mut self, group: usize, nth: usize) {
        let (now, mut seq) = (self.model.now, self.model.seq);
        let id = (self.published + 1).saturating_sub(nth as u64);
        let model = self.swept(group);
        let unbound = model.dead.iter().any(|(_, copy)| !model.is_bound(copy.queue));
        if unbound {
            // The model keeps no binding of a dead copy, so it cannot tell one that came back.
            at_once(self.bus.dead_letters(&name(group), None, 1)).unwrap();
            return;
        }
        let expected = model.retry_dead(id, &mut seq, now);
        self.model.seq = seq;
        let found = at_once(self.bus.retry_dead(&name(group), &[message_id(id)]));
        assert_eq!(found.map_err(|error| refused(&error)), expected);
    }

    fn inspect(&mut self) {
        let stats: Result<_> = at_once(self.bus.inspect());
        for (number_of_group, real) in stats.unwrap().groups.into_iter().enumerate() {
            let now = self.model.now;
            let model = self.swept(number_of_group);
            let waiting = |late: bool| {
                let hit = |c: &&Copy| c.lease.is_none() && (c.due > now) == late;
                model.copies.iter().filter(hit).count() as u64
            };
            let in_flight = model.copies.len() as u64 - waiting(true) - waiting(false);
            let places = (real.ready, real.delayed, real.in_flight, real.dead);
            assert_eq!(places, (waiting(false), waiting(true), in_flight, model.dead.len() as u64));
            let counts = (real.accepted, real.acked, real.removed);
            assert_eq!(counts, (model.accepted, model.acked, model.removed));
            let counts = (real.retried, real.expired_leases);
            assert_eq!(counts, (model.retried, model.expired_leases));
            let here = real.ready + real.delayed + real.in_flight;
            assert_eq!(real.accepted, real.acked + real.dead + real.removed + here);
            let mut dead: Vec<_> = model.dead.iter().map(|(dead, _)| *dead).collect();
            let letters = at_once(self.bus.dead_letters(&name(number_of_group), None, 1000));
            let mut found: Vec<_> = letters
                .unwrap()
                .iter()
                .map(|l| {
                    let reason = match l.reason {
                        DeadReason::Expired => "expired",
                        DeadReason::Crashed => "crashed",
                        DeadReason::Failed => "failed",
                        _ => "rejected",
                    };
                    (number(l.message), reason, l.attempts, l.crashes)
                })
                .collect();
            dead.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, dead);
        }
    }

    fn run(&mut self, action: &Action) {
        match action {
            Action::Commit(steps) => self.commit(steps),
            Action::Claim { group, bindings, max, lease } => {
                self.claim(*group, bindings, *max, *lease);
            }
            Action::Advance(n) => {
                self.clock.advance(TICK * u32::from(*n));
                self.model.now += ticks(*n);
            }
            Action::Act { group, message, how } => self.act(*group, *message, *how),
            Action::Purge(group) => {
                let expected = self.swept(*group).remove_waiting(|_| true);
                assert_eq!(at_once(self.bus.purge(&name(*group))).unwrap(), expected);
            }
            Action::Pause(group, paused) => {
                at_once(self.bus.pause(&name(*group), *paused)).unwrap();
                self.model.groups[*group].paused = *paused;
            }
            Action::Bind(group, number) => self.bind(*group, *number, None),
            Action::Unbind(group, number) => {
                let expected = self.model.unbind(*group, *number);
                let removed = at_once(self.bus.unbind(&name(*group), &[binding(*number)]));
                assert_eq!(removed.unwrap(), expected);
            }
            Action::RetryDead(group, nth) => self.retry_dead(*group, *nth),
            Action::DiscardDead(group, nth) => {
                let id = (self.published + 1).saturating_sub(*nth as u64);
                let model = self.swept(*group);
                let before = model.dead.len();
                model.dead.retain(|((dead, ..), _)| *dead != id);
                let expected = (before - model.dead.len()) as u64;
                model.removed += expected;
                let found = at_once(self.bus.discard_dead(&name(*group), &[message_id(id)]));
                assert_eq!(found.unwrap(), expected);
            }
            Action::Inspect => self.inspect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_backend_does_what_the_model_does(actions in prop::collection::vec(action(), 1..80)) {
        let mut run = Run::new();
        for action in &actions {
            run.run(action);
        }
        run.inspect();
    }
}
