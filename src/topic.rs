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

/// Longest name or pattern in bytes.
pub const LONGEST: usize = 255;

/// Steps that a lookup among bindings which others have declared may take; patterns that would
/// make it longer match nothing.
pub const MOST_WORK: u64 = 1 << 20;

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
    /// Makes a binding of a pattern.
    ///
    /// # Errors
    /// `Topic` when it is longer than [`LONGEST`].
    pub fn pattern(text: &str) -> Result<Self> {
        if text.len() > LONGEST {
            let rule = format!("is {} bytes, limit {LONGEST}", text.len());
            return Err(refused("pattern", text, rule));
        }
        Ok(Self::Pattern(Pattern::new(text)))
    }

    /// Makes a binding of what a server has stored; `None` for a pattern that nobody could have
    /// declared.
    #[must_use]
    pub fn stored(is_pattern: bool, text: &str) -> Option<Self> {
        if is_pattern { Self::pattern(text).ok() } else { Some(Self::Topic(text.into())) }
    }

    /// Whether it is a pattern.
    #[must_use]
    pub fn is_pattern(&self) -> bool {
        matches!(self, Self::Pattern(_))
    }

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
    } else if name.len() > LONGEST {
        format!("is {} bytes, limit {LONGEST}", name.len())
    } else if let Some((at, c)) = name.char_indices().find(|(_, c)| c.is_control()) {
        format!("holds the control character U+{:04X} at byte {at}", u32::from(c))
    } else {
        return Ok(());
    };
    Err(refused(what, name, rule))
}

fn refused(what: &'static str, name: &str, rule: String) -> Error {
    Error::Topic { what, name: name.chars().take(80).collect(), rule }
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
    fn a_pattern_is_as_long_as_a_topic_at_most_wherever_it_comes_from() {
        let (longest, longer) = ("[".repeat(255), "[".repeat(256));
        assert!(Binding::pattern(&longest).is_ok() && Binding::pattern("").is_ok());
        let refused = Binding::pattern(&longer).unwrap_err().to_string();
        assert!(
            refused.contains("pattern") && refused.contains("256 bytes, limit 255"),
            "{refused}"
        );
        assert!(Binding::stored(true, &longest).is_some());
        assert!(Binding::stored(true, &longer).is_none());
        // Topics of any length may have been declared, and cost a look-up.
        assert!(Binding::stored(false, &longer).is_some());
    }

    #[test]
    fn a_binding_is_exact_or_a_pattern() {
        assert!(Binding::Topic("a*".into()).matches("a*"));
        assert!(!Binding::Topic("a*".into()).matches("ab"));
        assert!(Binding::Pattern(Pattern::new("a*")).matches("ab"));
    }
}
