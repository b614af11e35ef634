//! A pattern as a regular expression of Postgres, for publishers that have only SQL.

use std::fmt::Write;

use super::{CharSet, Part, Pattern, Segment};

impl Pattern {
    /// Returns an advanced regular expression of Postgres that matches the same topics.
    #[must_use]
    pub fn to_regex(&self) -> String {
        let this = &*self.inner;
        // Nothing follows the end, so the last one matches nothing.
        if this.never {
            return "***:$.".to_owned();
        }
        let mut out = "***:^".to_owned();
        segment(&mut out, &this.head);
        if let Some(tail) = &this.tail {
            for part in &this.middle {
                out.push_str(".*");
                segment(&mut out, part);
            }
            out.push_str(".*");
            segment(&mut out, tail);
        }
        out.push('$');
        out
    }
}

fn segment(out: &mut String, segment: &Segment) {
    for part in &segment.parts {
        match part {
            Part::Text(text) => text.chars().for_each(|c| literal(out, c)),
            Part::AnyChar => out.push('.'),
            Part::Set(set) => alternatives(out, set),
        }
    }
}

fn alternatives(out: &mut String, set: &CharSet) {
    out.push_str(if set.negated { "[^" } else { "[" });
    for &(low, high) in &set.ranges {
        literal(out, low);
        if low != high {
            out.push('-');
            literal(out, high);
        }
    }
    out.push(']');
}

/// Whatever may mean something is written by its number.
fn literal(out: &mut String, c: char) {
    let number = u32::from(c);
    // Writing to a text cannot fail.
    let _ = match number {
        _ if c.is_ascii_alphanumeric() || c == ':' => write!(out, "{c}"),
        0..=0xffff => write!(out, "\\u{number:04x}"),
        _ => write!(out, "\\U{number:08x}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_its_form() {
        let regex = |text: &str| Pattern::new(text).to_regex();
        assert_eq!(regex("a:*"), "***:^a:.*$");
        assert_eq!(regex("*x?"), "***:^.*x.$");
        assert_eq!(regex("[!a-c]."), "***:^[^a-c]\\u002e$");
        assert_eq!(regex("[b-a]"), "***:$.");
        assert_eq!(regex("𝄞"), "***:^\\U0001d11e$");
    }
}
