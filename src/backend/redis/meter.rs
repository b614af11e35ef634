//! The sizes of a server's replies, followed byte by byte without keeping them.

use crate::guard::{Limit, Meter};

/// Longest line: a status, an error, a number.
const LINE: usize = 64 << 10;
/// Longest line whose number counts.
const NUMBER: usize = 24;
/// Deepest nesting; the replies that are asked for have three levels.
const DEPTH: usize = 16;

/// Follows the replies of one connection.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// First byte of the value that is under way; none between two.
    kind: Option<u8>,
    /// What stands behind it on its line, as far as a number can be long.
    digits: Vec<u8>,
    /// Bytes of the line so far.
    line: usize,
    /// Whether the last one was a carriage return.
    is_ending: bool,
    /// Bytes of a text that are still to come, with its line end.
    text: usize,
    /// Values that are still to come in each list that is open.
    open: Vec<usize>,
    /// Bytes and values of the reply so far.
    bytes: usize,
    parts: usize,
}

impl Meter for Replies {
    fn measure(&mut self, mut bytes: &[u8], limit: Limit) -> Result<(), String> {
        while !bytes.is_empty() {
            let taken =
                if self.text > 0 { self.in_text(bytes) } else { self.in_line(bytes, limit)? };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Replies {
    fn in_text(&mut self, bytes: &[u8]) -> usize {
        let taken = self.text.min(bytes.len());
        self.text -= taken;
        if self.text == 0 {
            self.end_value();
        }
        taken
    }

    /// Takes bytes of a line; returns how many.
    fn in_line(&mut self, bytes: &[u8], limit: Limit) -> Result<usize, String> {
        let mut taken = 0;
        for byte in bytes {
            taken += 1;
            let Some(kind) = self.kind else {
                self.kind = Some(*byte);
                self.line = 1;
                continue;
            };
            self.line += 1;
            if self.line > LINE {
                return Err(format!("a line of the server's reply is longer than {LINE} bytes"));
            }
            if self.is_ending && *byte == b'\n' {
                self.end_line(kind, limit)?;
                break;
            }
            self.is_ending = *byte == b'\r';
            if !self.is_ending && self.digits.len() < NUMBER {
                self.digits.push(*byte);
            }
        }
        Ok(taken)
    }

    fn end_line(&mut self, kind: u8, limit: Limit) -> Result<(), String> {
        let line = self.line;
        let number = std::str::from_utf8(&self.digits).ok().and_then(|text| text.parse().ok());
        (self.kind, self.line, self.is_ending) = (None, 0, false);
        self.digits.clear();
        self.add(line, 0, limit)?;
        match kind {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => self.end_value(),
            b'$' if number == Some(-1) => self.end_value(),
            b'$' | b'!' | b'=' => {
                let length = length_of(kind, number)?;
                self.add(length.saturating_add(2), 0, limit)?;
                self.text = length + 2;
            }
            b'*' | b'~' | b'>' if number.is_some_and(|number| number <= 0) => self.end_value(),
            b'*' | b'~' | b'>' => self.open(length_of(kind, number)?, limit)?,
            b'%' if number == Some(0) => self.end_value(),
            b'%' => self.open(length_of(kind, number)?.saturating_mul(2), limit)?,
            b'|' => {
                self.open(length_of(kind, number)?.saturating_mul(2).saturating_add(1), limit)?
            }
            other => return Err(format!("the server's reply begins with {:?}", char::from(other))),
        }
        Ok(())
    }

    fn open(&mut self, values: usize, limit: Limit) -> Result<(), String> {
        // The reader makes room for them before they come.
        self.add(0, values, limit)?;
        if self.open.len() >= DEPTH {
            return Err(format!("the server's reply has more than {DEPTH} levels"));
        }
        self.open.push(values);
        Ok(())
    }

    fn add(&mut self, bytes: usize, parts: usize, limit: Limit) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes);
        self.parts = self.parts.saturating_add(parts);
        if self.bytes > limit.bytes {
            let most = limit.bytes;
            return Err(format!("the server's reply is larger than the limit of {most} bytes"));
        }
        if self.parts > limit.parts {
            return Err(format!("the server's reply has more than {} values", limit.parts));
        }
        Ok(())
    }

    fn end_value(&mut self) {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return;
            }
            self.open.pop();
        }
        (self.bytes, self.parts) = (0, 0);
    }
}

fn length_of(kind: u8, number: Option<i64>) -> Result<usize, String> {
    number.and_then(|number| usize::try_from(number).ok()).ok_or_else(|| {
        format!("the server's reply has no length where {:?} needs one", char::from(kind))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { bytes: 100_000, parts: 1000 };

    fn all_at_once_and_byte_by_byte(bytes: &[u8]) -> Result<Replies, String> {
        let (mut whole, mut slow) = (Replies::default(), Replies::default());
        let first = whole.measure(bytes, LIMIT);
        let second = bytes.iter().try_for_each(|byte| slow.measure(&[*byte], LIMIT));
        assert_eq!(first, second);
        first.map(|()| whole)
    }

    #[test]
    fn ends_of_replies_are_found() {
        for reply in [
            &b"+OK\r\n"[..],
            b"-ERR a\rb\nc\r\n",
            b":5\r\n",
            b"$5\r\n\r\n$9\n\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
            b"%1\r\n+a\r\n~2\r\n#t\r\n_\r\n",
            b"|1\r\n+k\r\n+v\r\n*1\r\n,1.5\r\n",
            b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\np\r\n",
            b"=8\r\ntxt:abcd\r\n",
            b"(123456789012345678901234567890\r\n",
        ] {
            let twice = [reply, reply].concat();
            let replies = all_at_once_and_byte_by_byte(&twice).unwrap();
            assert_eq!((replies.bytes, replies.text, replies.kind), (0, 0, None), "{reply:?}");
            assert!(replies.open.is_empty(), "{reply:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_told_from_its_header() {
        let deep = b"*1\r\n".repeat(DEPTH + 1);
        let wide = b"*9\r\n*900\r\n".repeat(2);
        let long = [b"+".to_vec(), vec![b'x'; LINE]].concat();
        let many = [b"*999\r\n".to_vec(), b"*1\r\n:1\r\n".repeat(999)].concat();
        for (bytes, said) in [
            (&b"$5368709120\r\n"[..], "larger than the limit of 100000 bytes"),
            (b"*2\r\n$60000\r\n", ""),
            (b"$99999999999999999999999999\r\n", "no length"),
            (b"*99999999\r\n", "more than 1000 values"),
            (b"%501\r\n", "more than 1000 values"),
            (b"$-2\r\n", "no length"),
            (b"$?\r\n", "no length"),
            (b"!-1\r\n", "no length"),
            (b"x1\r\n", "begins with 'x'"),
            (&deep, "more than 16 levels"),
            (&wide, "more than 1000 values"),
            (&long, "longer than 65536 bytes"),
            (&many, "more than 1000 values"),
        ] {
            match all_at_once_and_byte_by_byte(bytes) {
                Ok(_) => assert_eq!(said, "", "{bytes:?}"),
                Err(found) => assert!(!said.is_empty() && found.contains(said), "{found}"),
            }
        }
    }
}
