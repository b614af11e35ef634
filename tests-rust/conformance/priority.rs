//! Priorities.

use eventbus::backend::Message;

use super::{Case, Fixture};

pub async fn higher_goes_first_strictly_then_older(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    for priority in [0, 5, -3, 5, i16::MAX, i16::MIN, 0] {
        case.publish(Message { priority, ..case.message("t", &priority.to_string()) }).await;
    }
    let expected = ["32767", "5", "5", "0", "0", "-3", "-32768"];
    assert_eq!(case.drain(&group).await, expected);
}

pub async fn it_is_compared_across_bindings(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("a"), case.on("b"), case.on("c")]).await;
    for (topic, priority) in [("a", 1), ("b", 3), ("c", 2), ("a", 3), ("c", 0)] {
        case.publish(Message { priority, ..case.message(topic, &format!("{topic}{priority}")) })
            .await;
    }
    assert_eq!(case.drain(&group).await, ["b3", "a3", "c2", "a1", "c0"]);
}
