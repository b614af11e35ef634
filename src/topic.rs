//! Topics and what is bound to them: name rules, `fnmatch` patterns, and the routing index.
//!
//! - [`Pattern`]: one compiled `fnmatch` pattern
//! - [`Router`]: from a topic to everything that matches it

mod pattern;
mod router;
mod starts;

use std::sync::Arc;

use crate::error::{Error, Result};

pub use pattern::Pattern;
pub use router::Router;

/// Names an entry of a [`Router`]; increasing in order of insertion.
pub type RouteId = u64;

/// What a subscription or a group is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Binding {
    /// Exactly this topic.
    Topic(Arc<str>),
    /// Every topic the pattern matches.
    Pattern(Pattern),
}

impl Binding {
    /// Whether a topic belongs to it.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::Topic(text) => **text == *topic,
            Self::Pattern(pattern) => pattern.matches(topic),
        }
    }
}

/// Checks a topic of the native API: 1–255 bytes of UTF-8 without control characters.
///
/// # Errors
/// `Topic` naming the rule.
pub fn validate_topic(topic: &str) -> Result<()> {
    validate_name("topic", topic)
}

/// Checks a group name: 1–255 bytes of UTF-8 without control characters.
///
/// # Errors
/// `Topic` naming the rule.
pub fn validate_group(group: &str) -> Result<()> {
    validate_name("group", group)
}

fn validate_name(what: &'static str, name: &str) -> Result<()> {
    let rule = if name.is_empty() {
        "must not be empty".to_owned()
    } else if name.len() > 255 {
        format!("is {} bytes, limit 255", name.len())
    } else if let Some((at, c)) = name.char_indices().find(|(_, c)| c.is_control()) {
        format!("holds the control character U+{:04X} at byte {at}", u32::from(c))
    } else {
        return Ok(());
    };
    Err(Error::Topic { what, name: name.chars().take(80).collect(), rule })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        assert!(validate_topic("registry:bots").is_ok());
        assert!(validate_topic(&"x".repeat(255)).is_ok());
        assert!(validate_topic("日本語 with spaces").is_ok());
        for bad in ["", "a\nb", "\0", "a\u{7f}", "\u{85}", &"x".repeat(256)] {
            assert!(validate_topic(bad).is_err(), "{bad:?}");
            assert!(validate_group(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_binding_is_exact_or_a_pattern() {
        assert!(Binding::Topic("a*".into()).matches("a*"));
        assert!(!Binding::Topic("a*".into()).matches("ab"));
        assert!(Binding::Pattern(Pattern::new("a*")).matches("ab"));
    }
}
