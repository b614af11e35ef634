//! A parcel as the arguments of `commit`.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_postgres::Row;
use uuid::Uuid;

use super::calls::{ANNOUNCE, COMMIT};
use super::fault::Fault;
use super::link::Link;
use super::parcel::Parcel;
use super::session::{Argument, Session};
use super::step::{due, signed};
use super::{micros, registry::Registry};

/// What goes with every parcel of a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    pub(super) producer: Uuid,
    pub(super) dedup_window: i64,
}

/// Collects a column; one that holds nothing is sent empty.
fn column<T>(values: impl Iterator<Item = Option<T>>) -> Vec<Option<T>> {
    let column: Vec<_> = values.collect();
    if column.iter().all(Option::is_none) { Vec::new() } else { column }
}

impl Parcel<'_> {
    /// Sends it once; `published` are messages that were only broadcast before, to be counted.
    pub(super) async fn send(
        &self,
        (link, session): (&Arc<Link>, &Session),
        (sender, number): (Sender, u64),
        registry: &Registry,
        published: i64,
        deadline: Instant,
    ) -> Result<Vec<Row>, Fault> {
        if self.only_notifies() {
            let arguments: [Argument<'_>; 2] = [&registry.version, &self.notify];
            return link.attempt(session, &ANNOUNCE, &arguments, deadline).await;
        }
        let version = self.routes.then_some(registry.version);
        let number = signed(number);
        let mut limited: Vec<i32> = self
            .targets
            .iter()
            .filter(|target| target.limited)
            .map(|target| target.group)
            .collect();
        limited.sort_unstable();
        limited.dedup();
        let wake = self.touched();
        let (lane_group, lane_key): (Vec<_>, Vec<_>) = self.lanes.iter().copied().unzip();
        let large_id: Vec<_> = self.large.iter().map(|(id, _)| *id).collect();
        let large_topic: Vec<&str> =
            self.large.iter().map(|(_, message)| &*message.topic).collect();
        let large_body: Vec<&[u8]> = self.large.iter().map(|(_, message)| &*message.body).collect();

        let acks = || self.acks.iter();
        let ack_group: Vec<_> = acks().map(|(group, _)| *group).collect();
        let ack_binding: Vec<_> =
            acks().map(|(_, lease)| i32::try_from(lease.binding).unwrap_or(-1)).collect();
        let ack_id: Vec<_> = acks().map(|(_, lease)| Uuid::from_bytes(lease.message)).collect();
        let ack_token: Vec<_> = acks().map(|(_, lease)| signed(lease.token)).collect();

        let copies = || self.copies.iter();
        let messages = || self.copies.iter().map(|copy| copy.message);
        let copy_group: Vec<_> = copies().map(|copy| copy.target.group).collect();
        let copy_binding: Vec<_> = copies().map(|copy| copy.target.binding).collect();
        let copy_id: Vec<_> = messages().map(|message| Uuid::from_bytes(message.id)).collect();
        let copy_topic: Vec<&str> = messages().map(|message| &*message.topic).collect();
        let copy_body: Vec<&[u8]> = messages().map(|message| &*message.body).collect();
        let copy_key = column(messages().map(|message| message.key.as_deref()));
        let copy_priority =
            column(messages().map(|message| Some(message.priority).filter(|level| *level != 0)));
        let copy_after = column(messages().map(|message| due(message).0));
        let copy_due = column(messages().map(|message| due(message).1));
        let copy_ttl = column(messages().map(|message| message.expires_after.map(micros)));

        let steps = || self.steps.iter();
        let settled: Vec<_> =
            steps().filter(|step| step.kind == 1).filter_map(|step| step.id).collect();
        let target_group: Vec<_> = self.targets.iter().map(|target| target.group).collect();
        let target_binding: Vec<_> = self.targets.iter().map(|target| target.binding).collect();
        let tx: Vec<_> = steps().map(|step| step.tx).collect();
        let kind: Vec<_> = steps().map(|step| step.kind).collect();
        let id = column(steps().map(|step| step.id));
        let name = column(steps().map(|step| step.name));
        let body = column(steps().map(|step| step.body));
        let key = column(steps().map(|step| step.key));
        let unique = column(steps().map(|step| step.unique));
        let dedup = column(steps().map(|step| step.dedup));
        let error = column(steps().map(|step| step.error.as_deref()));
        let priority = column(steps().map(|step| step.priority));
        let figure = column(steps().map(|step| step.number));
        let group = column(steps().map(|step| step.group));
        let binding = column(steps().map(|step| step.binding));
        let outcome = column(steps().map(|step| step.outcome));
        let after = column(steps().map(|step| step.after));
        let due_at = column(steps().map(|step| step.due));
        let ttl = column(steps().map(|step| step.ttl));
        let first: Vec<_> = steps().map(|step| step.first).collect();
        let count: Vec<_> = steps().map(|step| step.count).collect();
        let notify = column(steps().map(|step| step.notify.as_deref()));
        let large = column(steps().map(|step| step.large));
        let event = column(steps().map(|step| step.event));

        let kept_event: Vec<_> =
            self.kept.iter().map(|message| Uuid::from_bytes(message.event)).collect();
        let kept_topic: Vec<&str> = self.kept.iter().map(|message| &*message.topic).collect();
        let kept_body: Vec<&[u8]> = self.kept.iter().map(|message| &*message.body).collect();

        link.attempt(
            session,
            &COMMIT,
            &[
                &sender.producer,
                &number,
                &version,
                &sender.dedup_window,
                &published,
                &limited,
                &wake,
                &lane_group,
                &lane_key,
                &self.notify,
                &large_id,
                &large_topic,
                &large_body,
                &ack_group,
                &ack_binding,
                &ack_id,
                &ack_token,
                &copy_group,
                &copy_binding,
                &copy_id,
                &copy_topic,
                &copy_body,
                &copy_key,
                &copy_priority,
                &copy_after,
                &copy_due,
                &copy_ttl,
                &settled,
                &target_group,
                &target_binding,
                &tx,
                &kind,
                &id,
                &name,
                &body,
                &key,
                &unique,
                &dedup,
                &error,
                &priority,
                &figure,
                &group,
                &binding,
                &outcome,
                &after,
                &due_at,
                &ttl,
                &first,
                &count,
                &notify,
                &large,
                &kept_event,
                &kept_topic,
                &kept_body,
                &event,
            ],
            deadline,
        )
        .await
    }
}
