//! The sizes of a server's messages, followed by their headers.

use crate::guard::{Limit, Meter};

/// Largest message that the server sends on its own: a notification, a notice, a setting.
const UNASKED: usize = 64 << 10;
/// Largest message beside a row.
const BESIDE: usize = 1 << 20;
/// Most bytes of settings that the server may tell on one connection.
const SETTINGS: usize = 16 << 20;

/// Follows the messages of one connection.
#[derive(Debug, Default)]
pub(super) struct Messages {
    head: [u8; 5],
    /// How much of the head is there.
    have: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    /// Bytes and messages of the answer so far.
    bytes: usize,
    parts: usize,
    settings: usize,
}

impl Meter for Messages {
    fn measure(&mut self, mut bytes: &[u8], limit: Limit) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = bytes.get(taken..).unwrap_or_default();
                continue;
            }
            let (first, rest) = bytes.split_at(bytes.len().min(self.head.len() - self.have));
            for byte in first {
                if let Some(place) = self.head.get_mut(self.have) {
                    *place = *byte;
                }
                self.have += 1;
            }
            bytes = rest;
            if self.have == self.head.len() {
                self.have = 0;
                self.begin(limit)?;
            }
        }
        Ok(())
    }
}

impl Messages {
    fn begin(&mut self, limit: Limit) -> Result<(), String> {
        let [tag, a, b, c, d] = self.head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let kind = char::from(tag);
        let Some(body) = length.checked_sub(4) else {
            return Err(format!("a message {kind:?} of the server says it has {length} bytes"));
        };
        self.left = body;
        let most = match tag {
            b'D' => limit.bytes,
            b'A' | b'N' | b'S' => UNASKED.min(limit.bytes),
            _ => BESIDE.min(limit.bytes),
        };
        if length > most {
            return Err(format!(
                "a message {kind:?} of the server has {length} bytes, more than the limit of {most}"
            ));
        }
        match tag {
            b'A' | b'N' => {}
            b'S' => self.settings += length,
            b'Z' => (self.bytes, self.parts) = (0, 0),
            _ => {
                self.bytes = self.bytes.saturating_add(length);
                self.parts += 1;
            }
        }
        if self.bytes > limit.bytes || self.parts > limit.parts {
            let Limit { bytes, parts } = limit;
            return Err(format!(
                "the server's answer is larger than the limit of {bytes} bytes or {parts} rows"
            ));
        }
        if self.settings > SETTINGS {
            return Err(format!("the server told more than {SETTINGS} bytes of settings"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { bytes: 100_000, parts: 100 };

    fn message(tag: u8, body: usize) -> Vec<u8> {
        let length = u32::try_from(body + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), &vec![0; body]].concat()
    }

    fn measured(bytes: &[u8]) -> Result<(), String> {
        let (mut whole, mut slow) = (Messages::default(), Messages::default());
        let first = whole.measure(bytes, LIMIT);
        let second = bytes.iter().try_for_each(|byte| slow.measure(&[*byte], LIMIT));
        assert_eq!(first, second);
        first
    }

    #[test]
    fn answers_end_where_the_server_is_ready_again() {
        let rows = message(b'D', 50_000);
        let ready = message(b'Z', 1);
        let fine = [&rows[..], &ready, &rows, &message(b'A', 8000), &ready].concat();
        assert_eq!(measured(&fine.repeat(10)), Ok(()));
        assert!(measured(&rows.repeat(2)).unwrap_err().contains("100000 bytes or 100 rows"));
        assert!(measured(&message(b'D', 0).repeat(101)).is_err());
        assert!(measured(&message(b'N', 10).repeat(10_000)).is_ok());
    }

    #[test]
    fn a_message_that_is_too_large_is_told_from_its_header() {
        for (head, said) in [
            (b"D\x20\x00\x00\x00", "'D' of the server has 536870912 bytes"),
            (b"S\x00\x01\x00\x01", "more than the limit of 65536"),
            (b"E\x00\x02\x00\x00", "more than the limit of 100000"),
            (b"Z\x00\x00\x00\x03", "says it has 3 bytes"),
            (b"Z\xff\xff\xff\xff", "4294967295 bytes"),
        ] {
            assert!(measured(head).unwrap_err().contains(said), "{head:?}");
        }
    }
}
